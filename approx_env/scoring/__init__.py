"""What a configuration is worth: calibration, evaluator, losses."""
