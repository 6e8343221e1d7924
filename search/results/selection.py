"""Which configurations are kept, and which one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def best(rows: Iterable[Row], count: int | None, identity: Callable[[Row], tuple]) -> list[Row]:
    """The `count` rows (all, if None) with the highest `return`, each configuration once, best first.

    Equal returns are ordered by their codes, and of a configuration's rows that of the lowest seed and there the
    earliest episode is taken, so that the order of `rows` does not matter.

    Args:
        identity: a row's configuration, as a tuple of codes.
    """
    distinct: dict[tuple, Row] = {}
    for row in sorted(rows, key=lambda row: (row["seed"], row["episode"])):
        distinct.setdefault(identity(row), row)
    return [row for _, row in sorted(distinct.items(), key=lambda item: (-item[1]["return"], item[0]))[:count]]


def promoted(
    rows: Iterable[Row], images: int, more: int, least: int, identity: Callable[[Row], tuple]
) -> tuple[list[Row], int]:
    """Picks those of `rows`, scored on `images` images, that are to be scored on `more`: successive halving.

    Of n distinct configurations the best ceil(n images / more), so that they cost no more than their rung has cost;
    but at least `least`, or all if there are fewer.

    Source: Jamieson and Talwalkar, arXiv:1502.07943, with images as the budget of an arm.

    Returns:
        Their rows, best first, and n.
    """
    ranked = best(rows, None, identity)
    affordable = -(-len(ranked) * images // more)
    return ranked[: max(affordable, least)], len(ranked)


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
