"""Batches and background responses: paid for before they begin, settled when they are over."""
