"""Coordinate search from the better one of quintile and the reconstruction.

Both are of little cost: the reconstruction takes gradients on 128 images, and coordinate search half of a network for
each configuration.
"""

from __future__ import annotations

from search.algorithms.coordinate import Options, Search
from search.algorithms.reconstruction import start

__all__ = ["Options", "Search", "start"]
