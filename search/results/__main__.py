"""The command `python -m search.results`: `search.results.program` is its program."""

import sys

from approx_env.errors import run_module

if __name__ == "__main__":
    sys.exit(run_module("search.results.program"))
