"""Every engine gives the integers of the exact reference, at every node."""

import math
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from approx_env import tap
from approx_env.engines import reference
from approx_env.engines.vector.engine import VectorEngine
from approx_env.int8 import cost, quantize
from approx_env.int8.network import Network, pool_first
from approx_env.int8.nodes import INPUT, Convolution, Flatten, Linear, Site
from approx_env.int8.sites import with_sites
from approx_env.lookup import Lookup
from tests.twins import ENGINES, check_every_node, table_of

# -- random networks


class Concatenated(nn.Module):
    def __init__(self, left: nn.Module, right: nn.Module):
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x):
        return torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)


class Added(nn.Module):
    """A sum of branches without a ReLU, of which the right one may be the input or have a ReLU."""

    def __init__(self, left: nn.Module, right: nn.Module, last: nn.Module):
        super().__init__()
        self.left, self.right, self.last = left, right, last

    def forward(self, x):
        return self.last(self.left(x) + self.right(x))


def random_module(widths, kernels, strides, kinds, pool, branches, relu, hidden: int, seed: int) -> nn.Module:
    """Convolutions with a layer each, the last perhaps in two branches, perhaps a pool, and two linear layers."""
    torch.manual_seed(seed)
    parts, channels = OrderedDict(), 3
    for i, (width, kernel, stride, kind) in enumerate(zip(widths, kernels, strides, kinds, strict=True)):
        width = channels * (1 + width % 2) if kind == "depthwise" else width
        groups = {"depthwise": channels, "grouped": math.gcd(channels, width)}.get(kind, 1)
        conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups)
        if branches == "concatenated" and i == len(widths) - 1:
            parts[f"fire{i}"], channels = Concatenated(conv, nn.Conv2d(channels, width + 1, 1, stride)), 2 * width + 1
        elif branches and i == len(widths) - 1:
            shortcut = nn.Conv2d(channels, width, 1, stride)
            if branches == "identity" and i and stride == 1:
                conv, width = nn.Conv2d(channels, channels, kernel, 1, kernel // 2), channels
                shortcut = nn.Identity()
            elif branches == "positive":
                shortcut = nn.Sequential(shortcut, relu())
            parts[f"sum{i}"], channels = Added(conv, shortcut, relu()), width
        else:
            norm = nn.BatchNorm2d(width)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            parts |= {f"conv{i}": conv, f"norm{i}": norm, f"relu{i}": relu()}
            channels = width
        parts[f"layer{i}"] = nn.Identity()
    if pool:
        parts["pool"] = nn.MaxPool2d(3, 2, ceil_mode=True) if pool == "max" else nn.AvgPool2d(3, 2)
    parts["flatten"] = nn.Flatten()
    features = nn.Sequential(parts).eval()
    with torch.inference_mode():
        count = features(torch.zeros(1, 3, 13, 11)).shape[1]
    parts |= {"hidden": nn.Linear(count, hidden), "act": nn.ReLU(), "top": nn.Identity(), "last": nn.Linear(hidden, 3)}
    return nn.Sequential(parts).eval()


@st.composite
def cases(draw):
    """A random INT8 network, images, and valid codes for its layers."""
    depth = draw(st.integers(1, 3))
    widths = draw(
        st.lists(st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 33, 48, 64])), min_size=depth, max_size=depth)
    )
    kernels = draw(st.lists(st.sampled_from([1, 3, 5]), min_size=depth, max_size=depth))
    strides = draw(st.lists(st.sampled_from([1, 2]), min_size=depth, max_size=depth))
    kinds = draw(st.lists(st.sampled_from(["plain", "grouped", "depthwise"]), min_size=depth, max_size=depth))
    seed = draw(st.integers(0, 2**31))
    # Behind three strides its window is wider than what is left.
    pool = draw(st.sampled_from([None, "max", "average"])) if strides.count(2) < 3 else None
    branches = draw(st.sampled_from([None, "concatenated", "convolved", "identity", "positive"]))
    relu, hidden = draw(st.sampled_from([nn.ReLU, nn.ReLU6])), draw(st.integers(1, 40))
    module = random_module(widths, kernels, strides, kinds, pool, branches, relu, hidden, seed)
    generator = np.random.default_rng(seed)
    # Flat patches of extreme pixels beside noise: sums as large as they get.
    images = generator.integers(0, 256, (128, 3, 13, 11), np.uint8)
    images[:40] = np.where(generator.random((40, 3, 1, 1)) < 0.5, 0, 255)
    layers = {name: name for name in dict(module.named_children()) if name.startswith("layer") or name == "top"}
    network = quantize.quantize(
        module, images[:64], model="random", classes=("0", "1", "2"), layers=layers, attention=("top",)
    )
    configuration = {}
    for name in network.layers:
        tmax = int(generator.integers(15, 256))
        configuration[name] = tap.random_codes(tmax, generator), tmax
    return network, images, configuration


EVERY_ENGINE = st.sampled_from(sorted(ENGINES))


@settings(max_examples=40)
@given(cases(), EVERY_ENGINE)
def test_random_networks(case, engine):
    network, images, configuration = case
    for codes in ({}, configuration):
        check_every_node(network, images[:40], codes, ENGINES[engine])


def without_sites(network: Network, left_out: set[str]) -> Network:
    """The network without some of its sites."""
    source = {node.name: node.inputs[0] for node in network.nodes if node.name in left_out}
    kept = (node for node in network.nodes if node.name not in left_out)
    nodes = tuple(replace(node, inputs=tuple(source.get(name, name) for name in node.inputs)) for node in kept)
    return replace(network, nodes=nodes)


@settings(max_examples=30)
@given(cases(), EVERY_ENGINE, st.data())
def test_random_networks_with_all_sites(case, engine, data):
    network, images, configuration = case
    left_out = data.draw(st.sets(st.sampled_from(network.layers[:-1])))
    sites = with_sites(without_sites(network, left_out), "all")
    assert len(sites.layers) == len(network.layers)
    codes = dict(zip(sites.layers, configuration.values(), strict=True))
    for chosen in (sites, pool_first(sites)):
        check_every_node(chosen, images[:9], codes, ENGINES[engine])


@settings(max_examples=10)
@given(cases(), EVERY_ENGINE)
def test_tables_on_random_networks(case, engine):
    """Any table; and TAP as a table gives the codes, counts and energies of the engine's own way."""
    network, images, configuration = case
    images, readers = images[:9], cost.readers(network)
    generator = np.random.default_rng(len(network.nodes))
    kinds = np.r_[0, generator.integers(0, 4, 255)].astype(np.uint8)
    tables = {
        name: (Lookup(np.sort(generator.integers(0, 256, 256)).astype(np.uint8), kinds),) for name in network.layers
    }
    check_every_node(network, images, tables, ENGINES[engine])
    runner = ENGINES[engine](replace(network, attention=network.layers), readers)
    fast, slow = runner.start(images), runner.start(images)
    for name in network.layers:
        fast, slow = (runner.advance(fast, *configuration[name]), runner.advance(slow, table_of(*configuration[name])))
        assert fast.counts.tolist() == slow.counts.tolist()
        assert torch.equal(fast.energy, slow.energy)
    assert torch.equal(runner.logits(fast), runner.logits(slow))


@settings(max_examples=10)
@given(cases(), EVERY_ENGINE)
def test_zeros_of_the_exact_network_are_the_references(case, engine):
    network, images, _ = case
    images, readers = images[:9], cost.readers(network)
    outputs, runner = reference.forward(network, images), ENGINES[engine](network, readers)
    state = runner.start(images)
    for name in network.layers:
        state = runner.advance(state, None)
        expected = np.zeros(4, np.int64)
        for reader in readers:
            if reader.layer == name:
                codes = outputs[reader.tensor]
                codes = codes if codes.ndim == 4 else codes[:, :, None, None]
                expected += reference.tally(codes, (0, 0, 0), reader.weights.reshape(codes.shape[2:]))
        assert state.counts[0].tolist() == expected.tolist() and expected[1] == expected[2] == 0


@settings(max_examples=10)
@given(cases(), st.integers(1, 9))
def test_no_engine_and_no_batch_changes_a_bit(case, size):
    """Logits are equal between all engines, for any batch."""
    network, images, _ = case
    images = images[:23]
    expected = VectorEngine(network).forward(images)
    for engine in ENGINES.values():
        runner = engine(network)
        parts = [runner.forward(images[i : i + size]) for i in range(0, len(images), size)]
        assert torch.equal(torch.cat(parts), expected)


@settings(max_examples=20)
@given(cases(), EVERY_ENGINE)
def test_counts_and_energies_are_the_references(case, engine):
    network, images, configuration = case
    network = replace(network, attention=network.layers)
    images, readers = images[:9], cost.readers(network)
    runner = ENGINES[engine](network, readers, observed=[*network.layers, *(reader.tensor for reader in readers)])
    state = runner.start(images)
    for place, name in enumerate(network.layers):
        (_, v1, _, _), tmax = configuration[name]
        own = ((*configuration[name][0], tmax),)  # the same with tmax as a fifth code
        state = runner.advance(state, *(own if place % 2 else configuration[name]))
        expected = np.zeros(4, np.int64)
        for reader in readers:
            if reader.layer == name:
                codes = state[reader.tensor].numpy().astype(np.uint8)
                codes = codes if codes.ndim == 4 else codes[:, :, None, None]
                expected += reference.tally(codes, (0, v1, tmax), reader.weights.reshape(codes.shape[2:]))
        assert state.counts[0].tolist() == expected.tolist()
        codes = state[name].numpy().astype(np.uint8)
        energy = reference.energy(codes).reshape(len(codes), -1) if codes.ndim == 4 else codes.astype(np.int64) ** 2
        assert np.array_equal(state.energy.numpy(), energy)


def logits(network: Network, images: np.ndarray, configuration) -> torch.Tensor:
    runner = VectorEngine(network)
    state = runner.start(images)
    for name in network.layers:
        state = runner.advance(state, *configuration[name])
    return runner.logits(state)


@settings(max_examples=20)
@given(cases())
def test_pool_first_gives_the_same_logits(case):
    network, images, configuration = case
    assert torch.equal(logits(network, images, configuration), logits(pool_first(network), images, configuration))


# -- extreme products


def lively_weight(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Pair-safe weights with as much in each pair of input channels as there may be, in a random one or in both."""
    outputs, inputs, *kernel = shape
    left = generator.choice([0.0, 0.5, 1.0], (outputs, (inputs + 1) // 2, *kernel))
    pairs = np.stack([left, 1 - left], 2) * generator.choice([1.0, 1.0, 1.0, -1.0], (outputs, 1, 1, *[1] * len(kernel)))
    return pairs.reshape(outputs, -1, *kernel)[:, :inputs]


@st.composite
def extremes(draw):
    """One weighted node whose weights and codes lie at the ends of their ranges."""
    seed, outputs, linear = draw(st.integers(0, 2**31)), draw(st.integers(1, 20)), draw(st.booleans())
    kernel, stride = draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 2]))
    zero_point = 0 if linear else draw(st.sampled_from([0, 128]))
    channels = draw(st.integers(1, 1200) if linear else st.one_of(st.integers(1, 9), st.integers(10, 70)))
    groups = 1 if linear else draw(st.sampled_from([1, 1, 3]))
    outputs *= groups
    shape = (outputs, channels) if linear else (outputs, channels, kernel, kernel)
    generator = np.random.default_rng(seed)
    weight, _ = quantize.quantize_weight(lively_weight(generator, shape), 1e-9)
    bias = generator.integers(-10_000, 10_000, outputs).astype(np.int32)
    largest = 255 * np.abs(weight.astype(int)).sum((*range(1, weight.ndim),)).max()
    # Sums reach the highest codes, and the multiplier is no round number.
    multiplier = np.maximum(1, 255 * 2**16 // max(1, largest) + generator.integers(0, 9, outputs)).astype(np.int32)
    parts = {"weight": weight, "bias": bias, "multiplier": multiplier, "relu": True, "scale": 1.0, "logits": False}
    if linear:
        nodes = (Flatten("flat", (INPUT,)), Linear("node", ("flat",), **parts))
    else:
        nodes = (Convolution("node", (INPUT,), stride=stride, padding=kernel // 2, groups=groups, **parts),)
    size = (channels, 1, 1) if linear else (groups * channels, 7, 5)
    network = Network("m", ("0", "1"), size, 1.0, zero_point, (*nodes, Site("s", ("node",))), ())
    images = generator.choice(np.array([0, 254, 255], np.uint8), (60, *size), p=[0.1, 0.1, 0.8])
    return network, images


@given(extremes(), EVERY_ENGINE)
def test_largest_products_do_not_saturate(case, engine):
    check_every_node(*case, {}, ENGINES[engine])


# -- the shipped teachers


@pytest.mark.parametrize("engine", ENGINES)
def test_shipped_teachers(network, quintile, digits, engine):
    images, _ = digits.load("search", 8)
    check_every_node(network, images, quintile, ENGINES[engine])


def test_shipped_teachers_pool_first(network, quintile, digits):
    images, _ = digits.load("search", 8)
    assert torch.equal(logits(network, images, quintile), logits(pool_first(network), images, quintile))
