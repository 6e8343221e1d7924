"""Processes: the Ray session, their environment, and those that score."""
