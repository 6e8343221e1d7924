"""The search for TAP codes: RLlib PPO and its baselines on Ray, Tune trials, Parquet results."""

import os

# One thread a process, because env runners share the cores; set here, before torch and Ray are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends our commands, not only Tune
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # no banner: our own line tells the progress
