from dataclasses import replace

import numpy as np
import pytest
import torch

from approx_env.engines import reference
from approx_env.engines.vector import convolution
from approx_env.engines.vector import engine as vector
from approx_env.engines.vector.engine import VectorEngine
from approx_env.errors import InputError
from approx_env.int8 import cost
from approx_env.int8.network import Network, pool_first
from approx_env.int8.nodes import (
    AveragePool,
    Concatenation,
    Convolution,
    GlobalAveragePool,
    Linear,
    MaxPool,
    ScaledAddition,
    Site,
)
from tests import twins

# Pixels of two channels; p = pixel - 128 is [[10, -4], [0, 100]] and [[2, 8], [-20, 50]].
IMAGES = np.array([[[[138, 124], [128, 228]], [[130, 136], [108, 178]]]], np.uint8)
# clamp((p0 - p1 + 4) / 2) and clamp((2 p0 + 3 p1 - 8) / 4), halves rounded up: 18 / 4 = 4.5 gives 5.
FIRST = [[[6, 0], [12, 27]], [[5, 2], [0, 86]]]


def test_codes_by_hand(by_hand):
    runner = VectorEngine(by_hand)
    assert runner.codes(runner.start(IMAGES))[0].tolist() == FIRST


def test_logits_by_hand(by_hand):
    # The pool gives 27 and 86.
    expected = [0.5 * (27 + 2 * 86) / 64, 0.25 * (-27 + 16) / 64]
    assert VectorEngine(by_hand).forward(IMAGES)[0].tolist() == pytest.approx(expected)


def test_tap_by_hand(by_hand):
    runner = VectorEngine(by_hand, observed={"first"})
    state = runner.advance(runner.start(IMAGES), (3, 5, 10, 20), 30)
    assert state["first"][0].tolist() == [[[5, 0], [20, 20]], [[5, 0], [0, 86]]]
    expected = [0.5 * (20 + 2 * 86) / 64, 0.25 * (-20 + 16) / 64]
    assert runner.logits(state)[0].tolist() == pytest.approx(expected)


def test_reference_agrees_with_the_same_hand(by_hand):
    outputs = reference.forward(by_hand, IMAGES, {"first": ((3, 5, 10, 20), 30)})
    assert outputs["conv"][0].tolist() == FIRST
    assert outputs["first"][0].tolist() == [[[5, 0], [20, 20]], [[5, 0], [0, 86]]]
    assert outputs["pool"].reshape(-1).tolist() == [20, 86]
    assert outputs["linear"][0].tolist() == [(20 + 2 * 86) * 2**15, (-20 + 16) * 2**14]
    assert by_hand.logit_scale == 2**-6 / 2**16


def test_padding_is_the_zero_point(ramp):
    """A border of code 128 is a border of 0.0: it adds nothing to a sum."""
    conv = replace(ramp.by_name["conv"], weight=np.ones((1, 1, 3, 3), np.int8), padding=1)
    network = replace(ramp, nodes=(conv, *ramp.nodes[1:]))
    images = np.full((1, 1, 1, 8), 138, np.uint8)
    runner = VectorEngine(network)
    assert runner.codes(runner.start(images)).reshape(-1).tolist() == [20, *[30] * 6, 20]


def test_codes_saturate_at_both_ends(ramp):
    conv = replace(ramp.by_name["conv"], weight=np.array([[[[4]]]], np.int8))
    runner = VectorEngine(replace(ramp, nodes=(conv, *ramp.nodes[1:])))
    images = np.array([0, 127, 128, 129, 191, 192, 200, 255], np.uint8).reshape(1, 1, 1, 8)
    assert runner.codes(runner.start(images)).reshape(-1).tolist() == [0, 0, 0, 4, 252, 255, 255, 255]


def test_advance_leaves_its_state_as_it_was(small):
    runner = VectorEngine(small.network, observed={"one"})
    start = runner.start(small.images)
    before = {name: tensor.clone() for name, tensor in start.tensors.items()}
    first, second = (runner.advance(start, codes, 200) for codes in ((10, 50, 100, 150), (1, 2, 3, 4)))
    assert start.layer == 0
    assert start.tensors.keys() == before.keys()
    assert all(torch.equal(start[name], before[name]) for name in before)
    assert not torch.equal(first["one"], second["one"])
    again = runner.advance(start, (10, 50, 100, 150), 200)
    assert torch.equal(first["one"], again["one"])


def test_forward_is_a_pass_without_approximation(small):
    runner = VectorEngine(small.network)
    state = runner.start(small.images)
    for layer in range(3):
        assert state.layer == layer
        state = runner.advance(state, None)
    assert torch.equal(runner.logits(state), runner.forward(small.images))
    assert runner.logits(state).shape == (48, 2)
    assert runner.logits(state).dtype == torch.float64


def test_forward_takes_arrays_and_tensors_in_any_memory_order(small):
    runner = VectorEngine(small.network)
    expected = runner.forward(small.images)
    tensor = torch.from_numpy(small.images)
    assert torch.equal(runner.forward(tensor), expected)
    assert torch.equal(runner.forward(tensor.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("images", [np.zeros((2, 2, 2, 2), np.int64), np.zeros((2, 2, 2, 1), np.uint8)])
def test_images_of_another_kind_are_refused(by_hand, images):
    with pytest.raises(ValueError, match=r"^images must be \(n, 2, 2, 2\) uint8, got \(2, 2, 2, \d\) torch\.\w+$"):
        VectorEngine(by_hand).forward(images)


def test_a_network_may_end_with_a_site(ramp):
    images = np.arange(120, 136, dtype=np.uint8).reshape(2, 1, 1, 8)
    runner = VectorEngine(replace(ramp, nodes=ramp.nodes[:2]))
    assert torch.equal(runner.forward(images), runner.logits(runner.advance(runner.start(images), None)))


def test_images_do_not_influence_each_other(small):
    runner = VectorEngine(small.network)
    assert torch.equal(runner.forward(small.images)[7:20], runner.forward(small.images[7:20]))


def test_invalid_codes_are_refused(small):
    runner = VectorEngine(small.network)
    with pytest.raises(ValueError, match=r"^codes must satisfy 1 <= t1 < v1 < t2 < v2 <= tmax = 20, got t1=5 v1=4 "):
        runner.advance(runner.start(small.images), (5, 4, 6, 7), 20)


def test_states_keep_what_is_observed_and_no_more(by_hand):
    plain, observing = VectorEngine(by_hand), VectorEngine(by_hand, observed={"pool", "conv"})
    assert set(plain.start(IMAGES).tensors) == {"conv"}
    assert set(plain.advance(plain.start(IMAGES), None).tensors) == {"linear"}
    state = observing.advance(observing.start(IMAGES), None)
    assert set(state.tensors) == {"pool", "linear"}
    assert state["pool"].reshape(-1).tolist() == [27, 86]


def test_engine_runs_networks_that_pool_first(by_hand):
    runner = VectorEngine(pool_first(by_hand), observed={"first"})
    state = runner.start(IMAGES)
    assert runner.codes(state).reshape(-1).tolist() == [27, 86]
    state = runner.advance(state, (3, 5, 10, 20), 30)
    assert state["first"].reshape(-1).tolist() == [20, 86]


def test_machine_without_vector_instructions_is_told(ramp, monkeypatch):
    monkeypatch.setattr(convolution, "available", lambda: ())
    with pytest.raises(InputError, match="^--engine vector needs an x86 CPU with AVX2, which this one is not: use --"):
        VectorEngine(ramp)


# -- plans of branched networks


def conv(name: str, source: str, inputs: int, outputs: int, seed: int = 0, kernel: int = 1) -> Convolution:
    weight = np.random.default_rng(seed).integers(-60, 61, (outputs, inputs, kernel, kernel)).astype(np.int8)
    zeros, multiplier = np.zeros(outputs, np.int32), np.full(outputs, 300, np.int32)
    return Convolution(name, (source,), weight, zeros, multiplier, True, 1 / 64, False, 1, kernel // 2)


def wide(*geometry) -> Convolution:
    return replace(conv(*geometry), logits=True, relu=False, scale=1 / 50)


def classifier(source: str, inputs: int) -> tuple:
    top = replace(conv("top", source, inputs, 2), logits=True, relu=False)
    return top, GlobalAveragePool("mean", ("top",))


BRANCHED = {
    "one tensor twice": (
        conv("c", "input", 3, 16), Concatenation("j", ("c", "c")), Site("s", ("j",)), *classifier("s", 32)
    ),
    "a concatenation of a concatenation": (
        conv("a", "input", 3, 16), conv("b", "input", 3, 5, 1), Concatenation("ab", ("a", "b")),
        conv("c", "input", 3, 7, 2, 3), Concatenation("abc", ("ab", "c")), Site("s", ("abc",)), *classifier("s", 28),
    ),
    "a concatenation across a layer": (
        conv("a", "input", 3, 16), Site("s", ("a",)), conv("b", "s", 16, 16, 1, 3), conv("c", "input", 3, 16, 2),
        Concatenation("j", ("b", "c")), conv("d", "s", 16, 8, 3), Concatenation("k", ("j", "d")), Site("t", ("k",)),
        *classifier("t", 40),
    ),
    "a part that is read elsewhere, too": (
        conv("a", "input", 3, 16), conv("b", "a", 16, 16, 1), Concatenation("j", ("a", "b")), Site("s", ("j",)),
        *classifier("s", 32),
    ),
    "a global pool before a linear layer": (
        conv("a", "input", 3, 16), Site("s", ("a",)), GlobalAveragePool("g", ("s",)),
        Linear("l", ("g",), conv("x", "x", 16, 2).weight[:, :, 0, 0], np.zeros(2, np.int32), np.full(2, 9, np.int32),
               False, 1.0, True),
    ),
    "windows that the border would cut": (
        conv("a", "input", 3, 16), AveragePool("p", ("a",), 2, 3), Site("s", ("p",)), *classifier("s", 16),
    ),
    "two wide operands": (
        conv("a", "input", 3, 16), Site("s", ("a",)), wide("b", "s", 16, 8, 1, 3), wide("c", "s", 16, 8, 2),
        ScaledAddition("sum", ("b", "c"), np.ones(2, np.int32), 1 / 50), Site("t", ("sum",)), *classifier("t", 8),
    ),
    "codes of another scale, added to a wide operand across a layer": (
        conv("a", "input", 3, 16), wide("c", "a", 16, 16, 2, 3), Site("s", ("a",)), conv("b", "s", 16, 16, 1, 3),
        Site("t", ("b",)), ScaledAddition("sum", ("t", "c"), np.array([70_000, 1], np.int32), 1 / 50),
        *classifier("sum", 16),
    ),
    "codes of two scales": (
        conv("a", "input", 3, 16), Site("s", ("a",)), conv("b", "s", 16, 16, 1, 3),
        ScaledAddition("sum", ("b", "s"), np.array([70_000, 9], np.int32), 1 / 50), *classifier("sum", 16),
    ),
    "groups in a concatenation": (
        conv("a", "input", 3, 16), Site("s", ("a",)), conv("b", "s", 16, 5, 1, 3),
        replace(conv("c", "s", 4, 8, 2, 3), groups=4), Concatenation("j", ("b", "c")), *classifier("j", 13),
    ),
    "a kernel that is not square": (
        replace(conv("a", "input", 3, 16), weight=conv("x", "x", 3, 16, 0, 5).weight[:, :, :3], padding=1),
        Site("s", ("a",)), *classifier("s", 16),
    ),
}  # fmt: skip


@pytest.mark.parametrize("engine", twins.ENGINES)
@pytest.mark.parametrize("name", BRANCHED)
def test_branched_networks_are_the_reference(name, engine):
    network = Network("branched", ("no", "yes"), (3, 9, 7), 1 / 64, 128, BRANCHED[name], ())
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 9, 7), np.uint8)
    configuration = {layer: ((3, 20, 50, 90), 120) for layer in network.layers}
    for codes in ({}, configuration):
        twins.check_every_node(network, images, codes, twins.ENGINES[engine])
    runner = twins.ENGINES[engine](network)
    assert torch.equal(runner.forward(images), runner.forward(images))


def test_average_pool_of_codes_rounds_halves_up(ramp):
    pooled = GlobalAveragePool("g", ("ramp",))
    linear = replace(ramp.by_name["linear"], inputs=("g",), weight=np.ones((2, 1), np.int8))
    network = replace(ramp, nodes=(*ramp.nodes[:2], pooled, linear))
    images = np.array([[128] * 4 + [129] * 4, [128] * 5 + [129] * 3], np.uint8).reshape(2, 1, 1, 8)
    for engine in twins.ENGINES.values():
        found = twins.engine_outputs(network, images, {}, engine)["g"]
        assert found.reshape(-1).tolist() == [1, 0]


def test_average_pool_with_a_window_by_hand(ramp):
    square = replace(ramp, input_shape=(1, 4, 5), nodes=(*ramp.nodes[:2], AveragePool("g", ("ramp",), 2, 2)))
    images = np.full((1, 1, 4, 5), 128, np.uint8)
    images[0, 0, :2, 0], images[0, 0, 2:, 2:4], images[0, 0, 3, 1] = 129, 130, 129
    for engine in twins.ENGINES.values():
        # Means of 1, 0, 1, 0; of 0; of 0, 0, 0, 1; of 2. The last column is left out.
        assert twins.engine_outputs(square, images, {}, engine)["g"].tolist() == [[[[1, 0], [0, 2]]]]


def test_scaled_addition_by_hand(ramp):
    """Codes c, four times as coarse as the sum, and wide integers -c * 2**15: 3.5 c, halves rounded up, cut at 255."""
    half = replace(ramp.by_name["conv"], name="half", weight=-ramp.by_name["conv"].weight, logits=True,
                   relu=False, multiplier=np.full(1, 2**15, np.int32), inputs=("ramp",))  # fmt: skip
    sum_ = ScaledAddition("sum", ("ramp", "half"), np.array([2**18, 1], np.int32), half.scale)
    network = replace(ramp, nodes=(*ramp.nodes[:2], half, sum_))
    images = np.array([128, 129, 130, 131, 200, 254, 255, 0], np.uint8).reshape(1, 1, 1, 8)
    for engine in twins.ENGINES.values():
        found = twins.engine_outputs(network, images, {}, engine)["sum"]
        assert found.reshape(-1).tolist() == [0, 4, 7, 11, 252, 255, 255, 0]


def test_rows_are_views_of_channels_last_memory():
    codes = torch.arange(24, dtype=torch.uint8).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    view = vector.rows(codes)
    assert view.shape == (1, 12, 2)
    assert view[0, 5].tolist() == [5, 17]
    assert view.ctypes.data == codes.data_ptr()
    assert vector.rows(torch.zeros((3, 5), dtype=torch.uint8)).shape == (3, 1, 5)


@pytest.mark.parametrize("engine", twins.ENGINES)
def test_products_behind_a_pool_are_counted_where_another_layer_comes_in_between(engine):
    nodes = (
        conv("a", "input", 3, 4), Site("s", ("a",)), conv("b", "input", 3, 4, 1), Site("t", ("b",)),
        MaxPool("p", ("s",), 2, 2, False), MaxPool("q", ("t",), 2, 2, False), Concatenation("j", ("p", "q")),
        conv("c", "p", 4, 5, 2), conv("d", "q", 4, 6, 3), *classifier("j", 8),
    )  # fmt: skip
    network = Network("pools", ("no", "yes"), (3, 8, 8), 1 / 64, 128, nodes, ())
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8)
    codes = (3, 20, 50, 90), 120
    twins.check_every_node(network, images, dict.fromkeys("st", codes), twins.ENGINES[engine])
    runner, expected = twins.ENGINES[engine](network, cost.readers(network)), {}
    outputs = reference.forward(network, images, dict.fromkeys("st", codes))
    for layer, pool, count in (("s", "p", 5), ("t", "q", 6)):
        expected[layer] = reference.tally(outputs[pool], (0, 20, 120), np.full((4, 4), count))
    state = runner.start(images)
    for layer in "st":
        state = runner.advance(state, *codes)
        assert state.counts[0].tolist() == expected[layer].tolist()


@pytest.mark.parametrize("engine", twins.ENGINES)
def test_products_of_an_exact_layer_are_zero_or_exact(by_hand, engine):
    """The pool gives 27 and 86 of one image, 2 and 0 of the other; two products read each code."""
    images = np.concatenate([IMAGES, np.full_like(IMAGES, 128)])
    runner = twins.ENGINES[engine](by_hand, cost.readers(by_hand))
    assert runner.advance(runner.start(images), None).counts.tolist() == [[2, 0, 0, 6]]
