"""Compares what engines give with the exact reference, node by node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from approx_env import data, tap
from approx_env.engines import reference
from approx_env.engines.base import Engine
from approx_env.engines.portable import PortableEngine
from approx_env.engines.vector import convolution, kernels, steps
from approx_env.engines.vector.engine import VectorEngine
from approx_env.int8.network import Network
from approx_env.int8.nodes import INPUT
from approx_env.lookup import Lookup

CODES = np.arange(256, dtype=np.uint8)
# Every way in which this machine can run a network, by name.
ENGINES: dict[str, Callable[..., Engine]] = {
    **{name: partial(VectorEngine, instructions=name) for name in convolution.available()},
    "portable": PortableEngine,
}


def engine_outputs(network: Network, images: np.ndarray, configuration, engine=VectorEngine) -> dict[str, np.ndarray]:
    """The output of every node, as the engine has it."""
    runner = engine(network, observed=[node.name for node in network.nodes])
    state = runner.start(images)
    found = dict(state.tensors)
    for name in network.layers:
        state = runner.advance(state, *configuration.get(name, (None,)))
        found |= state.tensors
    pixels = data.standardise(images).numpy() if network.standardised else images
    return {INPUT: pixels} | {name: tensor.numpy() for name, tensor in found.items()}


def check_every_node(network: Network, images: np.ndarray, configuration, engine=VectorEngine) -> None:
    """The engine gives the reference's integers at every node."""
    found, expected = (
        engine_outputs(network, images, configuration, engine),
        reference.forward(network, images, configuration),
    )
    assert found.keys() == expected.keys() == {INPUT, *(node.name for node in network.nodes)}
    for name, output in expected.items():
        assert found[name].shape == output.shape, name
        assert np.array_equal(found[name].astype(np.int64), output.astype(np.int64)), name


def take(packed: steps.Packed, x: np.ndarray, y: np.ndarray, offset: int = 0) -> None:
    """Runs a node with weights on `x (n, h, w, c)`, into the channels of `y (n, i, j, c)` from `offset` on."""
    shapes = ((each.shape[3], *each.shape[1:3]) for each in (x, y))
    step = packed.step(*shapes, offset)
    row = np.array([[step.code.address, 0, 0, 1, *step.numbers()]], np.int64)
    addresses = np.array([x.ctypes.data, y.ctypes.data], np.int64)
    kernels.run(row, len(x), len(x), addresses, np.zeros(2, np.int64))


def table_of(codes: Sequence[int], tmax: int) -> Lookup:
    """TAP as a table: the slow twin of the engines' own way."""
    kinds = np.where(CODES == 0, 0, np.where(codes[1] >= CODES, 1, np.where(tmax >= CODES, 2, 3)))
    return Lookup(tap.tap(CODES, codes, tmax), kinds.astype(np.uint8))
