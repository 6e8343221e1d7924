"""Searches for TAP configurations: PPO and baselines on Ray, results in Parquet."""
