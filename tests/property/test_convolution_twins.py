"""Our own convolutions give the codes of exact integers, on every shape that they take."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional as F

from approx_env import convolution, quantize

pytestmark = pytest.mark.skipif(not convolution.available(), reason="this CPU has no AVX2")

TIE = 1e-3


@st.composite
def problems(draw, kind: str):
    """Codes `(n, h, w, c)`, weights, bias, zero point, stride and padding that `kind` takes."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, height, width = draw(st.integers(1, 9)), draw(st.integers(1, 19)), draw(st.integers(1, 19))
    out, zero_point = 16 * draw(st.integers(1, 5)), draw(st.sampled_from([0, 0, 1, 128, 255]))
    kernel, stride, padding = {"Winograd": (3, 1, 1), "Pointwise": (1, 1, 0)}.get(kind, (0, 0, 0))
    if kind == "Shallow":
        kernel, stride, padding = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(0, 2))
        assume(min(height, width) + 2 * padding >= kernel)
        channels = draw(st.integers(1, 3))
    else:
        channels = draw(st.sampled_from({"Winograd": [16, 32, 48, 112], "Pointwise": [4, 8, 20, 64, 512]}[kind]))
    sharp = draw(st.booleans())
    shape = (out, channels, kernel, kernel)
    weight = generator.integers(-64, 65, shape)
    if sharp:  # the largest that pairs may be, of one sign in each channel
        weight = 64 * np.sign(generator.random((out, 1, 1, 1)) - 0.5) * np.ones(shape)
        weight[:, ::2] = np.sign(weight[:, ::2]) * (1 if channels == 1 else generator.integers(1, 65))
    codes = generator.integers(0, 256, (count, height, width, channels))
    codes = np.where(generator.random((count, 1, 1, 1)) < 0.3, 255, codes)
    bias = generator.integers(-5000, 5000, out)
    return codes.astype(np.uint8), weight.astype(np.int8), bias.astype(np.int32), zero_point, stride, padding


def check(codes, weight, bias, zero_point, stride, padding, kind: str):
    assert quantize.weight_pairs(weight).max() <= quantize.HIGHEST_PAIR
    values = torch.from_numpy(codes.astype(np.float64) - zero_point).permute(0, 3, 1, 2)
    sums = F.conv2d(values, torch.from_numpy(weight.astype(np.float64)), stride=stride, padding=padding)
    sums = sums.permute(0, 2, 3, 1).numpy() + bias
    multiplier = (150 / (np.abs(sums).max((0, 1, 2)) + 1)).astype(np.float32)
    exact = sums * multiplier
    found = convolution.packable(weight, bias, stride, padding)
    assert found.__name__ == kind
    packed = found(weight, bias, multiplier, zero_point, stride, padding)
    y = np.full((*sums.shape[:3], len(weight) + 20), 77, np.uint8)
    packed(codes, y, 7)
    got = y[..., 7 : 7 + len(weight)]
    assert (y[..., :7] == 77).all() and (y[..., 7 + len(weight) :] == 77).all()
    wrong = got != np.clip(np.rint(exact), 0, 255)
    assert (np.abs(exact[wrong] - np.floor(exact[wrong]) - 0.5) < TIE).all()
    assert (np.abs(got[wrong] - exact[wrong]) < 0.5 + TIE).all()


@given(problems("Winograd"))
def test_winograd(problem):
    check(*problem, "Winograd")


@given(problems("Pointwise"))
def test_pointwise(problem):
    check(*problem, "Pointwise")


@given(problems("Shallow"))
def test_shallow(problem):
    check(*problem, "Shallow")


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


def test_what_no_kind_takes():
    bias = np.zeros(16, np.int32)
    ones = {shape: np.ones(shape, np.int8) for shape in [(16, 16, 3, 3), (16, 16, 5, 5), (10, 16, 1, 1), (16, 6, 1, 1)]}
    assert convolution.packable(ones[16, 16, 3, 3], bias, 1, 1) is convolution.Winograd
    assert convolution.packable(ones[16, 16, 3, 3], bias, 2, 1) is None
    assert convolution.packable(ones[16, 16, 3, 3], bias, 1, 0) is None
    assert convolution.packable(ones[16, 16, 5, 5], bias, 1, 2) is None
    assert convolution.packable(ones[10, 16, 1, 1], bias[:10], 1, 0) is None
    assert convolution.packable(ones[16, 6, 1, 1], bias, 1, 0) is None


def test_sums_that_winograd_could_not_hold():
    bias = np.zeros(16, np.int32)
    fits, too_many = (np.full((16, channels, 3, 3), 127, np.int8) for channels in (112, 128))
    assert convolution.packable(fits, bias, 1, 1) is convolution.Winograd
    assert convolution.packable(too_many, bias, 1, 1) is None
