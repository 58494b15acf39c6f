"""Real parts for the tests and benchmarks: one module, and one way to start it, for each."""
