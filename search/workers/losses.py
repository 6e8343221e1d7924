"""Lost processes and exceptions: what another attempt may help, and when to give up."""

from __future__ import annotations

import traceback

import ray

from approx_env.errors import Failure, InputError

LOSSES_TOLERATED = 5  # of each process in a row


class ScoringFailed(Failure):
    """Scoring raises an exception, or kills every process that tries. To try again would not help."""


class Losses:
    """Counts how often a pool loses a process, and gives up when that never ends.

    Args:
        processes: how many the pool has.
    """

    def __init__(self, processes: int):
        self._most, self._in_a_row = LOSSES_TOLERATED * processes, 0

    def finished(self) -> None:
        """A process has finished some work: the count begins anew."""
        self._in_a_row = 0

    def lost(self, why: object = "") -> None:
        """A process is lost; `why`, if that is known, is told when this gives up.

        Raises:
            ScoringFailed: this happened too often since one last finished some work.
        """
        self._in_a_row += 1
        if self._in_a_row > self._most:
            text = f"scoring processes were lost {self._in_a_row} times in a row, and none finished its work"
            raise ScoringFailed(f"{text}: look into Ray's logs, and whether memory suffices. {why}".rstrip())


def raised(error: Exception) -> Exception | None:
    """What scoring itself raised, if that is the reason of `error`; None if a process, a node or an object was lost."""
    cause = error
    if getattr(error, "actor_init_failed", False) and error.args:  # Ray keeps what a constructor raised
        cause = error.args[0]
    if isinstance(cause, ray.exceptions.RayTaskError):
        cause = cause.cause
    if isinstance(cause, InputError | ScoringFailed):
        return cause
    if isinstance(cause, ray.exceptions.RayError):
        return None
    told = str(error) if isinstance(error, ray.exceptions.RayError) else "".join(traceback.format_exception(error))
    return ScoringFailed(f"the search raised an exception:\n{told}")
