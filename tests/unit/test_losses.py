"""When a lost process is borne, and which exceptions are no losses."""

import pytest
import ray

from approx_env.errors import InputError
from search.workers import losses
from search.workers.losses import Losses, ScoringFailed


def test_losses_in_a_row_are_counted_and_work_begins_the_count_anew(monkeypatch):
    monkeypatch.setattr(losses, "LOSSES_TOLERATED", 2)
    lost = Losses(2)
    for _ in range(3):
        for _ in range(4):
            lost.lost()
        lost.finished()
    for _ in range(4):
        lost.lost()
    with pytest.raises(ScoringFailed, match="lost 5 times in a row.*out of memory"):
        lost.lost("out of memory")


def test_what_was_raised_is_told_from_what_was_lost():
    def task_error(cause: Exception) -> ray.exceptions.RayTaskError:
        return ray.exceptions.RayTaskError("evaluate", "Traceback: here", cause, "ray::Runner", 1, "::1")

    assert losses.raised(ray.exceptions.ActorDiedError()) is None
    assert losses.raised(ray.exceptions.OutOfMemoryError("killed")) is None
    assert losses.raised(task_error(ray.exceptions.ActorDiedError())) is None  # the sink's process, say
    assert "Traceback: here" in str(losses.raised(task_error(ValueError("codes"))))
    assert "Traceback: here" in str(losses.raised(ray.exceptions.ActorDiedError(task_error(ValueError("codes")))))
    bad = InputError("no such device")
    assert losses.raised(ray.exceptions.ActorDiedError(task_error(bad))) is bad
    assert "KeyError: 'a'" in str(losses.raised(KeyError("a")))
