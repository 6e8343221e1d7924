from dataclasses import replace

import numpy as np
import pytest
import torch

from approx_env import onednn, reference
from approx_env.errors import InputError
from approx_env.network import pool_first
from approx_env.vector import VectorEngine

# Pixels of two channels; p = pixel - 128 is [[10, -4], [0, 100]] and [[2, 8], [-20, 50]].
IMAGES = np.array([[[[138, 124], [128, 228]], [[130, 136], [108, 178]]]], np.uint8)
# clamp((p0 - p1 + 4) / 2) and clamp((2 p0 + 3 p1 - 8) / 4), rounded: (18 / 4 = 4.5 is even in 4)
FIRST = [[[6, 0], [12, 27]], [[4, 2], [0, 86]]]


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
    assert outputs["linear"][0].tolist() == [0.5 * (20 + 2 * 86) / 64, 0.25 * (-20 + 16) / 64]


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
    assert runner.logits(state).dtype == torch.float32


def test_forward_takes_arrays_and_tensors_in_any_memory_order(small):
    runner = VectorEngine(small.network)
    expected = runner.forward(small.images)
    tensor = torch.from_numpy(small.images)
    assert torch.equal(runner.forward(tensor), expected)
    assert torch.equal(runner.forward(tensor.contiguous(memory_format=torch.channels_last)), expected)


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


def test_saturating_cpu_refuses_unsafe_weights(ramp, monkeypatch):
    unsafe = replace(ramp.by_name["linear"], weight=np.full((2, 8), 65, np.int8))
    network = replace(ramp, nodes=(*ramp.nodes[:-1], unsafe))
    monkeypatch.setattr(onednn, "saturates", lambda: True)
    VectorEngine(ramp)
    with pytest.raises(InputError) as caught:
        VectorEngine(network)
    assert str(caught.value).startswith(
        "'linear' has neighbouring weights that add up to 130, and this CPU, which has no VNNI instructions, "
        "saturates above 128: quantise the teacher with approx_env.quantize"
    )
    monkeypatch.setattr(onednn, "saturates", lambda: False)
    VectorEngine(network)


def test_machine_without_onednn_is_told(ramp, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(InputError, match="^the onednn engine needs an x86 build of torch with oneDNN"):
        VectorEngine(ramp)


def test_rows_are_views_of_channels_last_memory():
    codes = torch.arange(24, dtype=torch.uint8).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    view = onednn.rows(codes)
    assert view.shape == (1, 12, 2)
    assert view[0, 5].tolist() == [5, 17]
    assert view.ctypes.data == codes.data_ptr()
    assert onednn.rows(torch.zeros((3, 5), dtype=torch.uint8)).shape == (3, 1, 5)
