"""Which configurations are kept, and which one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def best(rows: Iterable[Row], count: int, identity: Callable[[Row], tuple]) -> list[Row]:
    """The `count` rows with the highest `return`, each configuration once, best first.

    Equal returns are ordered by their codes, so that the order of `rows` does not matter.

    Args:
        identity: a row's configuration, as a tuple of codes.
    """
    distinct: dict[tuple, Row] = {}
    for row in rows:
        distinct.setdefault(identity(row), row)
    return [row for _, row in sorted(distinct.items(), key=lambda item: (-item[1]["return"], item[0]))[:count]]


def choose(accuracies: Sequence[float], drops_points: Sequence[float], max_acc_drop: float) -> tuple[int, bool]:
    """Picks one of the validated configurations, which come in the order of their search returns.

    The one with the highest student accuracy among those whose drop is at most `max_acc_drop` points, else the one
    with the highest accuracy of all; of equal ones the first.

    Returns:
        Its position, and whether it is within `max_acc_drop`.
    """
    within = [k for k, drop in enumerate(drops_points) if drop <= max_acc_drop]
    candidates = within or range(len(accuracies))
    return max(candidates, key=lambda k: (accuracies[k], -k)), bool(within)
