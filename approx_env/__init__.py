"""TAP, the tri-segment activation approximation of INT8 networks: operator, INT8 engine, scoring, environment."""
