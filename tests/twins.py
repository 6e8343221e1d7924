"""Compares what the engine gives with the exact reference, node by node."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from approx_env import data, reference
from approx_env.network import INPUT, Addition, Concatenation, Network, Node, Site, Weighted
from approx_env.onednn import OneDnnEngine

TIE = 1e-3  # how close to a half a value must be for the engine to round it the other way
RAREST = 10_000  # fewer than one code in so many may differ


def engine_outputs(network: Network, images: np.ndarray, configuration, engine=OneDnnEngine) -> dict[str, np.ndarray]:
    """The output of every node, as the engine has it."""
    runner = engine(network, observed=[node.name for node in network.nodes])
    state = runner.start(images)
    found = dict(state.tensors)
    for name in network.layers:
        state = runner.advance(state, *configuration.get(name, (None,)))
        found |= state.tensors
    pixels = data.standardise(images).numpy() if network.standardised else images
    return {INPUT: pixels} | {name: tensor.numpy() for name, tensor in found.items()}


def alone(network: Network, node: Node, codes: np.ndarray, configuration) -> np.ndarray:
    """The reference's output of one node on the codes that the engine gave it."""
    source = node.inputs[0]
    single = replace(
        network,
        input_shape=network.shapes[source],
        input_scale=network.scales.get(source, 1.0),
        input_zero_point=network.zero_point(source),
        nodes=(replace(node, inputs=(INPUT,)), Site("end", (node.name,))),
        attention=(),
        standardised=False,
    )
    return reference.forward(single, codes, configuration)[node.name]


def check_every_node(network: Network, images: np.ndarray, configuration) -> tuple[dict[str, np.ndarray], int]:
    """Compares each node on the engine's own inputs, so that a tie is judged where it falls.

    Returns:
        The engine's outputs, and how many codes differ in all.
    """
    found = engine_outputs(network, images, configuration)
    assert found.keys() == {INPUT, *(node.name for node in network.nodes)}
    differing, total = 0, 0
    for node in network.nodes:
        got, codes = found[node.name], found[node.inputs[0]]
        if isinstance(node, Concatenation):
            assert np.array_equal(got, np.concatenate([found[name] for name in node.inputs], 1))
            continue
        if isinstance(node, Addition):
            total_codes = sum(found[name].astype(int) for name in node.inputs)
            assert np.array_equal(got, np.minimum(total_codes, 255))
            continue
        expected = alone(network, node, codes, configuration)
        assert got.shape == expected.shape == (len(images), *network.shapes[node.name])
        if got.dtype != np.uint8:
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        elif isinstance(node, Weighted):
            wrong = got != expected
            exact = alone(network, replace(node, scale=None, relu=False), codes, configuration)[wrong] / node.scale
            assert (np.abs(got[wrong].astype(int) - expected[wrong]) == 1).all()
            assert (np.abs(exact - np.floor(exact) - 0.5) < TIE).all()
            differing, total = differing + wrong.sum(), total + wrong.size
        else:
            assert np.array_equal(got, expected), node.name
    assert differing * RAREST <= total
    return found, differing
