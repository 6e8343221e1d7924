"""What a run goes through: trials, promotion, validation."""
