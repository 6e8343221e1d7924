"""Formats, each found by its file's name; see `approx_env.export`."""
