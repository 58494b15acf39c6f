"""Who takes part in which experiment, in which variant, and what came of it."""
