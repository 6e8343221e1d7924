"""A run's folder: rows, lease, the one writer, and the report."""
