"""The command `python -m approx_env.training`: `approx_env.teachers.training` is its program."""

import sys

from approx_env.errors import run_module

if __name__ == "__main__":
    sys.exit(run_module("approx_env.teachers.training.program"))
