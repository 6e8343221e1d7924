"""An evaluator with a bug, in every worker of a search that is started with `ENVIRONMENT`."""

import os
from pathlib import Path

# How Ray tells a worker of the set-up hook in its runtime environment.
ROOT = Path(__file__).parents[2]  # workers find this module from there
ENVIRONMENT = {
    "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": f"{__name__}.install",
    "TAPSEARCH_TEST_BUG": "raise",
    "PYTHONPATH": str(ROOT),
}


def install() -> None:
    """From now on every evaluation in this process raises, or ends the process."""
    from approx_env.scoring.evaluator import Evaluation

    def advance(self, codes):
        if os.environ["TAPSEARCH_TEST_BUG"] == "die":
            os._exit(1)
        raise ZeroDivisionError("a bug in the evaluator")

    Evaluation.advance = advance
