"""Telling people: `service.Alerts` takes what is raised, keeps it until it is delivered, and sends it to channels."""
