"""What searches propose and evaluators score. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

# (t1, v1, t2, v2) of every layer, in forward order, perhaps with its own tmax as a fifth code; None: exact
Configuration = Sequence[Sequence[int] | None]


def layer_forwards(configuration: Configuration, before: Configuration = ()) -> int:
    """Layers that an evaluator computes for a configuration after another one: those from where they part.

    So it is for one evaluator whose cache holds all states. The count is the same on every machine, whoever scores.

    >>> layer_forwards([(1, 2, 3, 4), (1, 2, 3, 4)], [(1, 2, 3, 4), (1, 2, 3, 5)])
    1
    """
    layers = ((None if codes is None else tuple(codes) for codes in one) for one in (configuration, before))
    same = takewhile(lambda pair: pair[0] == pair[1], zip(*layers, strict=False))
    return len(configuration) - sum(1 for _ in same)
