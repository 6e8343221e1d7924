"""Where a plan's tensors lie; that each node's codes are right is shown where engines are compared."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from approx_env.engines.vector import convolution, plan
from approx_env.engines.vector.engine import VectorEngine

pytestmark = pytest.mark.skipif(not convolution.available(), reason="this CPU has no AVX2")


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_what_is_needed_at_the_same_time_shares_no_memory(lives):
    lives = sorted(lives, key=lambda one: min(one[1:]))
    buffers = [plan._Buffer(size, min(steps), max(steps)) for size, *steps in lives]
    total = plan._pack(buffers)
    for place, one in enumerate(buffers):
        assert 0 <= one.offset and one.offset + one.size <= total
        for other in buffers[:place]:
            if one.begin <= other.end and other.begin <= one.end:
                assert one.offset + one.size <= other.offset or other.offset + other.size <= one.offset


def test_memory_that_is_not_needed_any_more_is_used_again():
    buffers = [plan._Buffer(64, step, step + 1) for step in range(9)]
    assert plan._pack(buffers) == 128


def test_a_pass_takes_no_memory_that_grows_with_its_length(small):
    """The first part of a network is done with its tensors when the last part begins."""
    runner = VectorEngine(small.network)
    everything = sum(int(np.prod(shape)) for shape in small.network.shapes.values())
    assert 0 < runner._whole._scratch_bytes < everything
    runner.forward(small.images)
    before = runner._scratch._bytes
    runner.forward(small.images[:7])
    assert runner._scratch._bytes is before


def test_results_stay_when_the_plan_runs_again(small):
    runner = VectorEngine(small.network)
    first = runner.start(small.images)
    kept = {name: tensor.clone() for name, tensor in first.tensors.items()}
    runner.start(255 - small.images)
    assert all(torch.equal(first[name], tensor) for name, tensor in kept.items())


def test_steps_are_told_by_their_nodes(by_hand):
    runner = VectorEngine(replace(by_hand))
    assert [made.names for made in runner.plans] == [["conv"], ["pool", "flat", "linear"]]
