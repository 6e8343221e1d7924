"""Which configurations are kept, and which one is chosen.

A front holds the points of value (the higher, the better) and share of exact multiplications (the lower, the better)
that no other point beats in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Point = tuple[float, float]  # value, share of exact multiplications


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


def front(points: Sequence[Point]) -> list[int]:
    """Positions of the points that none beats, the highest value first; of equal points the first.

    >>> front([(0.9, 0.5), (0.7, 0.6), (0.8, 0.25), (0.8, 0.25)])
    [0, 2]
    """
    kept: list[int] = []
    for k in sorted(range(len(points)), key=lambda k: (points[k][1], -points[k][0])):
        if not kept or points[k][0] > points[kept[-1]][0]:
            kept.append(k)
    return kept[::-1]


def spread(points: Sequence[Point], count: int) -> list[int]:
    """Positions of `count` points of a front (all, if there are fewer) that lie far from each other, in their order.

    The most crowded point goes, again and again. The ends stay.

    Args:
        points: of a front, in the order of their values.

    Source: crowding distance of Deb et al., IEEE TEC 6(2), 2002, section III-B, measured anew after each removal.
    """
    kept = list(range(len(points)))
    while len(kept) > count:
        distances = _crowding([points[k] for k in kept])
        del kept[min(range(len(kept)), key=lambda place: (distances[place], -place))]
    return kept


def _crowding(points: Sequence[Point]) -> list[float]:
    """How far each point's neighbours are apart, in both objectives over their ranges; infinite at the ends."""
    distances = [math.inf] * len(points)
    for k in range(1, len(points) - 1):
        distances[k] = sum(abs(points[k + 1][axis] - points[k - 1][axis]) / abs(points[-1][axis] - points[0][axis])
                           for axis in (0, 1))  # fmt: skip
    return distances


def point(row: Row) -> Point:
    """Where a row lies: its return and its share of all multiplications that stay exact."""
    return row["return"], row["mac_exact_all"]


def best_front(rows: Iterable[Row], identity: Callable[[Row], tuple]) -> list[Row]:
    """The rows of the front, each configuration and each point once, the highest return first; in any order of rows."""
    distinct = best(rows, None, identity)
    return [distinct[k] for k in front([point(row) for row in distinct])]


def by_fronts(rows: Iterable[Row], count: int, identity: Callable[[Row], tuple]) -> list[Row]:
    """`count` rows: the front, the front of those that are left, and so on; of the last one what lies far apart.

    Source: Deb et al., IEEE TEC 6(2), 2002, section III-C.
    """
    left, kept = best(rows, None, identity), []
    while left and len(kept) < count:
        layer = best_front(left, identity)
        taken = {identity(row) for row in layer}
        left = [row for row in left if identity(row) not in taken]
        kept += [layer[k] for k in spread([point(row) for row in layer], count - len(kept))]
    return kept


def promoted(
    rows: Iterable[Row],
    images: int,
    more: int,
    least: int,
    identity: Callable[[Row], tuple],
    fronts: bool = False,
) -> tuple[list[Row], int]:
    """Picks those of `rows`, scored on `images` images, that are to be scored on `more`: successive halving.

    Of n distinct configurations the best ceil(n images / more), so that they cost no more than their rung has cost;
    but at least `least`, or all if there are fewer. With `fronts` they are ranked as `by_fronts` has it.

    Source: Jamieson and Talwalkar, arXiv:1502.07943, with images as the budget of an arm.

    Returns:
        Their rows, best first, and n.
    """
    ranked = best(rows, None, identity)
    count = max(-(-len(ranked) * images // more), least)
    return by_fronts(ranked, count, identity) if fronts else ranked[:count], len(ranked)


def choose(
    accuracies: Sequence[float],
    drops_points: Sequence[float],
    max_acc_drop: float,
    exact: Sequence[float] | None = None,
) -> tuple[int, bool]:
    """Picks one of the validated configurations, which come in the order of their search returns.

    The one with the highest student accuracy among those whose drop is at most `max_acc_drop` points, else the one
    with the highest accuracy of all; of equal ones the first.

    Args:
        exact: shares of exact multiplications, if few of these are wanted. Then it is the one with the fewest among
            those within the drop, of equal ones the most accurate; if none is within, of the most accurate ones.

    Returns:
        Its position, and whether it is within `max_acc_drop`.
    """
    within = [k for k, drop in enumerate(drops_points) if drop <= max_acc_drop]
    candidates = within or range(len(accuracies))
    few = [0.0] * len(accuracies) if exact is None else [-share for share in exact]
    if within:
        return max(candidates, key=lambda k: (few[k], accuracies[k], -k)), True
    return max(candidates, key=lambda k: (accuracies[k], few[k], -k)), False
