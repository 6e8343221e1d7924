"""A bug in every worker of a search that is started with `ENVIRONMENT`.

`TAPSEARCH_TEST_BUG` says which: 'raise' in every evaluation, or 'die' where an environment of PPO's is made.
"""

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
    """From now on this process has the bug."""
    from approx_env.env import TapVectorEnv
    from approx_env.scoring.evaluator import Evaluation

    def raising(self, codes):
        raise ZeroDivisionError("a bug in the evaluator")

    if os.environ["TAPSEARCH_TEST_BUG"] == "raise":
        Evaluation.advance = Evaluation.complete = raising
    else:
        TapVectorEnv.__init__ = lambda *arguments, **more: os._exit(1)
