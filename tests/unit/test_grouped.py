from dataclasses import replace

import numpy as np
import pytest

from approx_env.engines.vector.grouped import Grouped
from approx_env.int8.nodes import Convolution
from tests import twins

X = np.array([[[1, 10], [2, 20]], [[3, 30], [4, 255]]], np.uint8)[None]  # (n, h, w, c)


def node(weight: list, groups: int, multiplier: int = 2**16, **options) -> Convolution:
    outputs = len(weight)
    weight = np.array(weight, np.int8).reshape(outputs, -1, 1, 1) if "padding" not in options else np.array(weight, np.int8)
    parts = {"logits": False, "stride": 1, "padding": 0} | options
    bias, multipliers = np.arange(outputs, dtype=np.int32), np.full(outputs, multiplier, np.int32)
    return Convolution("c", ("input",), weight, bias, multipliers, False, 1.0, groups=groups, **parts)


def outputs(made: Grouped, kind: type = np.uint8, offset: int = 0, channels: int = 2) -> np.ndarray:
    y = np.zeros((1, 2, 2, channels), kind)
    twins.take(made, X, y, offset)
    return y[0].reshape(4, -1)


def test_a_depthwise_convolution_multiplies_each_channel_alone():
    assert outputs(Grouped(node([2, 1], 2), 0)).tolist() == [[2, 11], [4, 21], [6, 31], [8, 255]]


def test_outputs_of_a_group_read_its_inputs():
    assert outputs(Grouped(node([2, -1, 1, 3], 2), 0), channels=4).tolist() == [
        [2, 0, 12, 33], [4, 0, 22, 63], [6, 0, 32, 93], [8, 0, 255, 255]
    ]  # fmt: skip


def test_halves_are_rounded_up_and_the_zero_point_is_taken_off():
    # (x - 1 + bias) / 2, of codes 1, 2, 3, 4 and 10, 20, 30, 255
    assert outputs(Grouped(node([1, 1], 2, 2**15), 1)).tolist() == [[0, 5], [1, 10], [1, 15], [2, 128]]


def test_arrays_may_be_views():
    one = node([2, 1], 2)
    strided = np.repeat(one.bias, 2)[::2]
    assert outputs(Grouped(replace(one, bias=strided), 0)).tolist() == outputs(Grouped(one, 0)).tolist()


def test_padding_is_nothing():
    weight = np.zeros((2, 1, 3, 3), np.int8)
    weight[:, :, 0, 0] = 1  # the place above and to the left
    assert outputs(Grouped(node(weight, 2, padding=1), 0)).tolist() == [[0, 1], [0, 1], [0, 1], [1, 11]]


def test_sums_of_logits_keep_their_sign():
    found = outputs(Grouped(node([-1, 1], 2, logits=True), 0), np.int64)
    assert (found / 2**16).tolist() == [[-1, 11], [-2, 21], [-3, 31], [-4, 256]]


@pytest.mark.parametrize("offset", [0, 1])
def test_results_go_into_a_slice(offset):
    found = outputs(Grouped(node([2, 1], 2), 0), offset=offset, channels=3)
    assert found[:, offset : offset + 2].tolist() == [[2, 11], [4, 21], [6, 31], [8, 255]]
    assert not np.delete(found, [offset, offset + 1], 1).any()
