"""The float simulation of a student gives the integers of the engines, and its network is within bounds."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from approx_env.adapt.simulation import Simulation
from approx_env.engines import reference
from approx_env.engines.portable import LARGEST_EXACT
from approx_env.engines.vector.engine import VectorEngine
from approx_env.int8.nodes import HIGHEST_PAIR, INPUT, Weighted, highest_sums, weight_pairs
from tests.property.test_engine_twin import cases


@st.composite
def exact_cases(draw):
    """Networks whose sums are exact in float32, as a simulation needs them."""
    network, images, configuration = draw(cases())
    weighted = [node for node in network.nodes if isinstance(node, Weighted)]
    assume(max(highest_sums(node).max() for node in weighted) < LARGEST_EXACT // 2)  # with room to move
    return network, images, configuration


def moved(simulation: Simulation, seed: int, distance: float) -> None:
    """Moves every number, as training would, and more."""
    generator = torch.Generator().manual_seed(seed)
    rates = {"weights": 1.0, "biases": 20.0, "gains": 0.01}
    with torch.no_grad():
        for name, rate in rates.items():
            for values in getattr(simulation, name):
                values += distance * rate * torch.randn(values.shape, generator=generator)
    simulation.project()


@settings(max_examples=15)
@given(exact_cases(), st.sampled_from([0.0, 0.7, 10.0]), st.booleans(), st.booleans())
def test_every_node_is_the_references(case, distance, exact, standardised):
    network, images, configuration = case
    network, images = replace(network, standardised=standardised), images[:12]
    configuration = {} if exact else configuration
    simulation = Simulation(network, configuration)
    if distance:
        moved(simulation, 1, distance)
    expected = reference.forward(simulation.network(), images, configuration)
    with torch.no_grad():
        found = simulation.outputs(torch.from_numpy(images))
    for name, output in expected.items():
        if name != INPUT:
            assert np.array_equal(found[name].numpy().astype(np.int64), output.astype(np.int64)), name


@settings(max_examples=10)
@given(exact_cases())
def test_logits_are_the_engines(case):
    network, images, configuration = case
    simulation, engine = Simulation(network, configuration), VectorEngine(network)
    state = engine.start(images)
    for name in network.layers:
        state = engine.advance(state, *configuration[name])
    with torch.no_grad():
        assert torch.equal(simulation(torch.from_numpy(images)), engine.logits(state))


@settings(max_examples=10)
@given(exact_cases(), st.sampled_from([0.5, 5.0, 500.0]))
def test_projected_weights_are_pair_safe(case, distance):
    """As `validity` finds when the network is made; and what fits already stays nearly as it is."""
    network, _, configuration = case
    simulation = Simulation(network, configuration)
    moved(simulation, 2, distance)
    for node in simulation.network().nodes:
        if isinstance(node, Weighted):
            assert weight_pairs(node.weight).max() <= HIGHEST_PAIR
    before = [weight.clone() for weight in simulation.weights]
    simulation.project()
    for one, other in zip(before, simulation.weights, strict=True):
        assert (one - other).abs().max() <= 1e-4


@settings(max_examples=10)
@given(exact_cases())
def test_a_simulation_begins_as_the_network_itself(case):
    network, _, configuration = case
    same = Simulation(network, configuration).network()
    for one, other in zip(network.nodes, same.nodes, strict=True):
        if isinstance(one, Weighted):
            for name in ("weight", "bias", "multiplier"):
                assert getattr(one, name).tolist() == getattr(other, name).tolist(), (one.name, name)
        else:
            assert one is other
