"""A student's own numbers under the operator: requantisation fitted to the teacher's, weights trained."""
