"""The search for TAP codes: RLlib PPO and its baselines on Ray, Tune trials, Parquet results."""
