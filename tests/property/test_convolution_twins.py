"""Our own convolutions give the codes of exact integers, on every shape that they take."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from approx_env.engines import reference
from approx_env.engines.vector import convolution
from approx_env.int8.network import Network
from approx_env.int8.nodes import Convolution, Site
from tests import twins

pytestmark = pytest.mark.skipif(not convolution.available(), reason="this CPU has no AVX2")


@st.composite
def problems(draw, kind: str):
    """Codes `(n, h, w, c)`, a convolution that `kind` takes, and the zero point of its input."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, height, width = draw(st.integers(1, 9)), draw(st.integers(1, 19)), draw(st.integers(1, 19))
    out, zero_point = draw(st.integers(1, 80)), draw(st.sampled_from([0, 0, 1, 128, 255]))
    kernel, stride, padding = (3, 3), 1, 1
    channels = draw(st.sampled_from([16, 32, 48, 112]))
    if kind == "Direct":
        kernel, stride = draw(st.tuples(*[st.integers(1, 5)] * 2)), draw(st.integers(1, 3))
        padding = draw(st.integers(0, 3))
        assume(height + 2 * padding >= kernel[0] and width + 2 * padding >= kernel[1])
        channels = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 20, 64]))
    shape = (out, channels, *kernel)
    weight = generator.integers(-64, 65, shape)
    if draw(st.booleans()):  # the largest that pairs may be, of one sign in each channel
        weight = 64 * np.sign(generator.random((out, 1, 1, 1)) - 0.5) * np.ones(shape)
        weight[:, ::2] = np.sign(weight[:, ::2]) * (1 if channels == 1 else generator.integers(1, 65))
    codes = generator.integers(0, 256, (count, height, width, channels))
    codes = np.where(generator.random((count, 1, 1, 1)) < 0.3, 255, codes).astype(np.uint8)
    weight, bias = weight.astype(np.int8), generator.integers(-5000, 5000, out).astype(np.int32)
    multiplier = generator.integers(1, max(2, 2**25 // (64 * channels * kernel[0] * kernel[1])), out).astype(np.int32)
    logits = kind == "Direct" and draw(st.booleans())
    node = Convolution("c", ("input",), weight, bias, multiplier, False, 1.0, logits, stride, padding)
    return codes, node, zero_point


def check(codes: np.ndarray, node: Convolution, zero_point: int, kind: type[convolution.PackedConvolution]):
    """Each instruction set writes the reference's codes, or sums, into its own channels alone."""
    images = codes.transpose(0, 3, 1, 2)
    layer = replace(node_of(1, images.shape[1], 1), name="other"), Site("s", ("other",))
    network = Network("m", ("0", "1"), images.shape[1:], 1.0, zero_point, (node, *layer), ())
    expected = reference.weighted(network, node, images).transpose(0, 2, 3, 1)
    out = len(node.weight)
    for name in convolution.available():
        packed = kind(node, zero_point, name)
        if node.logits:
            integers = np.empty(expected.shape, np.int64)
            twins.take(packed, codes, integers)
            assert np.array_equal(integers, expected), name
            continue
        y = np.full((*expected.shape[:3], out + 20), 77, np.uint8)
        twins.take(packed, codes, y, 7)
        assert np.array_equal(y[..., 7 : 7 + out], expected), name
        assert (y[..., :7] == 77).all() and (y[..., 7 + out :] == 77).all(), name


@settings(max_examples=60)
@given(problems("Winograd"))
def test_winograd(problem):
    check(*problem, convolution.Winograd)
    check(*problem, convolution.Direct)  # which takes whatever there is


@settings(max_examples=100)
@given(problems("Direct"))
def test_direct(problem):
    check(*problem, convolution.Direct)


@given(st.integers(-(2**30), 2**30), st.integers(1, 2**24 - 1))
def test_float32_requantises_as_the_integers_do(total, multiplier):
    """What the vector code computes, in numpy: the proof that `network` gives, on numbers of all sizes."""
    assume(abs(total) * multiplier < 2**47)
    value = np.float32(total) * np.float32(multiplier / 2**16) + np.float32(0.5)
    assert min(max(int(value), 0), 255) == min(max((total * multiplier + 2**15) >> 16, 0), 255)


def test_the_largest_transformed_values_fit_int16():
    """|B^T d B| and |G g G^T| of the worst tile and the worst weights."""
    sides = np.array(
        [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
         [0, 4, 0, -5, 0, 1]]
    )  # fmt: skip
    products = np.einsum("ai,bj->abij", sides, sides)
    assert 255 * np.maximum(products, 0).sum((2, 3)).max() == 17340
    assert 255 * np.maximum(-products, 0).sum((2, 3)).max() <= 17340
    assert 127 * np.abs(np.einsum("ai,bj->abij", convolution.G, convolution.G)).sum((2, 3)).max() == 6223


def node_of(out: int, channels: int, kernel: int, stride: int = 1, padding: int = 0, value: int = 1) -> Convolution:
    weight, zeros = np.full((out, channels, kernel, kernel), value, np.int8), np.zeros(out, np.int32)
    return Convolution("c", ("input",), weight, zeros, zeros + 1, True, 1.0, False, stride, padding)


def kind_of(node: Convolution) -> type[convolution.PackedConvolution]:
    return convolution.kind_of(node, "avx2")


def test_winograd_takes_what_it_can_and_direct_the_rest():
    assert kind_of(node_of(16, 16, 3, 1, 1)) is convolution.Winograd
    assert kind_of(node_of(7, 16, 3, 1, 1)) is convolution.Winograd
    for other in (node_of(16, 16, 3, 2, 1), node_of(16, 16, 3), node_of(16, 16, 5, 1, 2), node_of(16, 6, 3, 1, 1)):
        assert kind_of(other) is convolution.Direct
    assert kind_of(replace(node_of(16, 16, 3, 1, 1), logits=True)) is convolution.Direct


def test_dot_products_of_512_bits_need_no_winograd():
    assert convolution.kind_of(node_of(17, 16, 3, 1, 1), "avx512vnni") is convolution.Direct
    assert convolution.kind_of(node_of(16, 16, 3, 1, 1), "avx512vnni") is convolution.Winograd  # 256 bits take it


def test_sums_that_winograd_could_not_hold():
    assert kind_of(node_of(16, 112, 3, 1, 1, 127)) is convolution.Winograd
    assert kind_of(node_of(16, 128, 3, 1, 1, 127)) is convolution.Direct
