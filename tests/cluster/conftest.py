"""Searches that nothing happened to, for those that something happens to."""

import pandas as pd
import pytest

from tests.cluster.test_faults import PPO, RANDOM, finished
from tests.command import Command


@pytest.fixture(scope="session")
def undisturbed() -> dict[str, pd.DataFrame]:
    """Their rows, by their arguments."""
    return {arguments: finished(Command(*arguments.split()), arguments) for arguments in (PPO, RANDOM)}
