"""Budgets on the LiteLLM side: what a request can cost, and the limit that is sent with it."""
