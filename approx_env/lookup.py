"""Approximation of a layer's codes by a table of all 256: what baselines do, and of which TAP is one case."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from approx_env.tap import CODE_COUNT

ZERO, SHARED, EXACT = 0, 1, 3  # kinds, as places in `cost.KINDS`; 2 is shared, too


@dataclass(frozen=True, eq=False)
class Lookup:
    """What each code becomes, and what a product with the result costs.

    Raises:
        ValueError: engines could not apply it; see the fields.
    """

    values: np.ndarray  # (256,) uint8: what each code becomes; never decreases, so that max pools commute with it
    kinds: np.ndarray  # (256,) uint8: kind of a product with each code of the result; of code 0 it is ZERO

    def __post_init__(self):
        for name in ("values", "kinds"):
            table = getattr(self, name)
            if table.shape != (CODE_COUNT,) or table.dtype != np.uint8:
                raise ValueError(f"{name} must be (256,) uint8, got {table.shape} {table.dtype}")
        if (np.diff(self.values.astype(int)) < 0).any():
            raise ValueError("values must never decrease: sites change places with max pools")
        if self.kinds.max() > EXACT or self.kinds[0] != ZERO:
            raise ValueError(f"kinds must lie in 0..{EXACT}, that of code 0 must be 0, got {self.kinds.tolist()}")
