"""Measurements of what tapsearch costs: `python -m benchmarks`."""

import os

from search.workers.processes import SAME_BITS

# Before numpy is loaded: what CMA-ES proposes is then the same on every CPU, and its rows can be gone on from. Kernels
# that the environment names are not kept: they round in another way.
os.environ["OPENBLAS_CORETYPE"] = SAME_BITS["OPENBLAS_CORETYPE"]
