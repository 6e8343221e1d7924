"""The oneDNN engine gives the integers of the exact reference, but for rounding ties."""

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from approx_env import cost, quantize, reference, tap
from approx_env.network import INPUT, Convolution, Flatten, Linear, Network, Site, pool_first
from approx_env.vector import VectorEngine
from approx_env.portable import PortableEngine
from tests.twins import TIE, alone, check_every_node, engine_outputs

# -- random networks


def random_module(widths, kernels, strides, pool: bool, branches: bool, hidden: int, seed: int) -> nn.Module:
    """Convolutions with a layer each, perhaps as two branches, perhaps a pool, and two linear layers."""
    torch.manual_seed(seed)

    class Branches(nn.Module):
        def __init__(self, left: nn.Module, right: nn.Module):
            super().__init__()
            self.left, self.right = left, right

        def forward(self, x):
            return torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)

    parts, channels = OrderedDict(), 3
    for i, (width, kernel, stride) in enumerate(zip(widths, kernels, strides, strict=True)):
        conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2)
        if branches and i == len(widths) - 1:
            parts[f"fire{i}"], channels = Branches(conv, nn.Conv2d(channels, width + 1, 1, stride)), 2 * width + 1
        else:
            norm = nn.BatchNorm2d(width)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            parts |= {f"conv{i}": conv, f"norm{i}": norm, f"relu{i}": nn.ReLU()}
            channels = width
        parts[f"layer{i}"] = nn.Identity()
    if pool:
        parts["pool"] = nn.MaxPool2d(3, 2, ceil_mode=True)
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
        st.lists(st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 33, 64])), min_size=depth, max_size=depth)
    )
    kernels = draw(st.lists(st.sampled_from([1, 3, 5]), min_size=depth, max_size=depth))
    strides = draw(st.lists(st.sampled_from([1, 2]), min_size=depth, max_size=depth))
    seed = draw(st.integers(0, 2**31))
    module = random_module(
        widths, kernels, strides, draw(st.booleans()), draw(st.booleans()), draw(st.integers(1, 40)), seed
    )
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


@settings(max_examples=40)
@given(cases())
def test_random_networks(case):
    network, images, configuration = case
    for codes in ({}, configuration):
        found, differing = check_every_node(network, images, codes)
        if not differing:
            expected = reference.forward(network, images, codes)
            for name, output in found.items():
                assert output.dtype != np.uint8 or np.array_equal(output, expected[name]), name


@settings(max_examples=20)
@given(cases())
def test_portable_engine_is_the_reference(case):
    network, images, configuration = case
    images = images[:20]
    found = engine_outputs(network, images, configuration, PortableEngine)
    for name, output in reference.forward(network, images, configuration).items():
        if output.dtype == np.uint8:
            assert np.array_equal(found[name], output), name
        else:
            np.testing.assert_allclose(found[name], output, rtol=1e-6, atol=1e-30)


@settings(max_examples=20)
@given(cases(), st.sampled_from([VectorEngine, PortableEngine]))
def test_counts_and_energies_are_the_references(case, engine):
    network, images, configuration = case
    network = replace(network, attention=network.layers)
    images, readers = images[:9], cost.readers(network)
    runner = engine(network, readers, observed=[*network.layers, *(reader.tensor for reader in readers)])
    state = runner.start(images)
    for name in network.layers:
        (_, v1, _, _), tmax = configuration[name]
        state = runner.advance(state, *configuration[name])
        expected = np.zeros(4, np.int64)
        for reader in readers:
            if reader.layer == name:
                codes = state[reader.tensor].numpy().astype(np.uint8)
                codes = codes if codes.ndim == 4 else codes[:, :, None, None]
                expected += reference.tally(codes, (0, v1, tmax), reader.weights.reshape(codes.shape[2:]))
        assert state.counts[0].tolist() == expected.tolist()
        codes = state[name].numpy().astype(np.uint8)
        energy = reference.energy(codes).reshape(len(codes), -1) if codes.ndim == 4 else codes.astype(np.int64) ** 2
        assert np.array_equal(state.energy.numpy(), energy.astype(np.float32))


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
    shape = (outputs, channels) if linear else (outputs, channels, kernel, kernel)
    generator = np.random.default_rng(seed)
    weight, weight_scale = quantize.quantize_weight(lively_weight(generator, shape))
    bias = generator.integers(-10_000, 10_000, outputs).astype(np.int32)
    # Sums reach the highest codes, and the scale is no round number.
    scale = float(weight_scale.max() * np.abs(weight.astype(int)).sum((*range(1, weight.ndim),)).max() * 0.97117) or 1.0
    parts = {"weight": weight, "weight_scale": weight_scale, "bias": bias, "relu": True, "scale": scale}
    if linear:
        nodes = (Flatten("flat", (INPUT,)), Linear("node", ("flat",), **parts))
    else:
        nodes = (Convolution("node", (INPUT,), stride=stride, padding=kernel // 2, **parts),)
    size = (channels, 1, 1) if linear else (channels, 7, 5)
    network = Network("m", ("0", "1"), size, 1.0, zero_point, (*nodes, Site("s", ("node",))), ())
    images = generator.choice(np.array([0, 254, 255], np.uint8), (60, *size), p=[0.1, 0.1, 0.8])
    return network, images


@given(extremes())
def test_largest_products_do_not_saturate(case):
    network, images = case
    found = engine_outputs(network, images, {})["node"]
    node = network.by_name["node"]
    codes = images.reshape(len(images), -1) if isinstance(node, Linear) else images
    exact = alone(network, replace(node, scale=None, relu=False), codes, {}) / node.scale
    # Even weights make many equal sums: a tie is one wherever it comes again.
    assert (np.abs(np.clip(exact, 0, 255) - found) < 0.5 + TIE).all()


# -- the shipped teachers


def test_shipped_teachers(network, quintile, digits):
    images, _ = digits.load("search", 8)
    found, _ = check_every_node(network, images, quintile)
    expected = reference.forward(network, images, quintile)
    same = np.ones(len(images), bool)
    for name, output in found.items():
        if output.dtype == np.uint8:
            same &= (output == expected[name]).reshape(len(images), -1).all(1)
    last = network.nodes[-1].name
    scale = np.abs(expected[last]).max()
    np.testing.assert_allclose(found[last][same], expected[last][same], rtol=1e-4, atol=1e-4 * scale)
    # Where a tie was rounded the other way, what follows may move a little.
    np.testing.assert_allclose(found[last], expected[last], atol=0.02 * scale)


def test_shipped_teachers_pool_first(network, quintile, digits):
    images, _ = digits.load("search", 8)
    assert torch.equal(logits(network, images, quintile), logits(pool_first(network), images, quintile))
