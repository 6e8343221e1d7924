"""Corrected networks run in every engine, bit for bit, and their numbers are within bounds."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from approx_env.adapt import correction
from approx_env.adapt.requantisation import with_bias, with_multiplier
from approx_env.int8 import nodes
from approx_env.int8.network import Network
from approx_env.int8.nodes import Convolution, Site
from approx_env.scoring.calibration import Calibration, Layer
from tests.property.test_engine_twin import EVERY_ENGINE, cases
from tests.twins import ENGINES, check_every_node

METHODS = st.sampled_from(correction.METHODS)


def as_calibration(configuration) -> Calibration:
    layers = [Layer(name, np.zeros(256, int), tmax, np.zeros(4)) for name, (_, tmax) in configuration.items()]
    return Calibration(tuple(layers), 90.0, 10)


@settings(max_examples=10)
@given(cases(), EVERY_ENGINE, METHODS)
def test_engines_agree_on_corrected_networks(case, engine, method):
    network, images, configuration = case
    codes = [codes for codes, _ in configuration.values()]
    student = correction.correct(network, as_calibration(configuration), codes, images[:32], method)
    check_every_node(student, images[:9], configuration, ENGINES[engine])


@settings(max_examples=6)
@given(cases(), METHODS)
def test_without_approximated_readers_nothing_changes(case, method):
    """Where sites stand beside the way and nothing reads them."""
    network, images, configuration = case
    behind = {node.name: node.inputs[0] for node in network.nodes if isinstance(node, Site)}
    apart = tuple(
        node if isinstance(node, Site) else replace(node, inputs=tuple(behind.get(name, name) for name in node.inputs))
        for node in network.nodes
    )
    network = replace(network, nodes=apart)
    codes = [codes for codes, _ in configuration.values()]
    student = correction.correct(network, as_calibration(configuration), codes, images[:16], method)
    assert all(one is other for one, other in zip(student.nodes, network.nodes, strict=True))


@given(st.integers(0, 2**31), st.booleans(), st.floats(-1e12, 1e12), st.floats(-1e15, 1e15))
def test_any_numbers_are_brought_within_bounds(seed, logits, multiplier, bias):
    """`validity` checks a network when it is made."""
    generator = np.random.default_rng(seed)
    weight = generator.integers(-64, 65, (3, 40, 3, 3)).astype(np.int8)
    node = Convolution(
        "node", ("site",), weight=weight, bias=np.zeros(3, np.int32), multiplier=np.ones(3, np.int32),
        relu=True, scale=1.0, logits=logits, stride=1, padding=1,
    )  # fmt: skip
    made = with_bias(with_multiplier(node, np.full(3, multiplier)), np.array([bias, 0, -bias]))
    tail = () if logits else (Site("behind", ("node",)),)
    Network("m", ("0", "1"), (40, 5, 5), 1.0, 0, (Site("site", ("input",)), made, *tail), ())
    if 1 <= multiplier <= 100 and abs(bias) <= 2**20:
        assert made.multiplier.tolist() == [round(multiplier)] * 3
        assert made.bias.tolist() == [round(bias), 0, -round(bias)]
    assert (np.abs(made.bias) < nodes.HIGHEST_SUM).all()
