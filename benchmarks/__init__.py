"""Measurements of what tapsearch costs: `python -m benchmarks`."""
