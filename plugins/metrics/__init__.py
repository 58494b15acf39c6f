"""What Prometheus reads: counters that the services keep anyway, and a few of the requests themselves."""
