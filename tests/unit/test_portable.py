from dataclasses import replace

import numpy as np
import pytest
import torch

from approx_env.engines import build as engines
from approx_env.engines import portable
from approx_env.engines.portable import PortableEngine
from approx_env.engines.vector.engine import VectorEngine
from approx_env.errors import InputError
from approx_env.int8.network import Network
from approx_env.int8.nodes import INPUT, Flatten, Linear, Site


@pytest.fixture
def long() -> Network:
    """A linear layer whose sums reach 255 x 63 x 2,400, beyond what float32 counts."""
    weight = np.full((3, 2400), 63, np.int8)
    weight[1] = np.arange(2400) % 129 - 64
    nodes = (
        Flatten("flat", (INPUT,)),
        Site("layer", ("flat",)),
        Linear("linear", ("layer",), weight, np.array([1, 2, 3], np.int32), np.ones(3, np.int32), False, 2.0**16, True),
    )
    return Network("long", ("a", "b", "c"), (2400, 1, 1), 1.0, 0, nodes, ())


def test_sums_beyond_float32_are_exact(long):
    runner = PortableEngine(long)
    assert len(runner._weights["linear"]) > 1
    images = np.full((2, 2400, 1, 1), 255, np.uint8)
    images[1, ::2] = 254
    exact = images.reshape(2, -1).astype(np.int64) @ long.by_name["linear"].weight.T.astype(np.int64) + [1, 2, 3]
    assert (
        runner._sums(long.by_name["linear"], torch.from_numpy(images).float().flatten(1)).tolist()
        == (exact - [1, 2, 3]).tolist()
    )
    assert np.array_equal(runner.forward(images).numpy(), exact)


def test_a_device_that_is_not_exact_is_refused(long, monkeypatch):
    monkeypatch.setattr(portable, "LARGEST_EXACT", 2**40)
    with pytest.raises(
        InputError, match="^the portable engine on cpu must give exact codes, and those of 'linear' dif"
    ):
        PortableEngine(long)


@pytest.mark.parametrize("name", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there(by_hand, name):
    with pytest.raises(InputError, match=f"^--device must be one that torch has here, as cpu or cuda, got {name} "):
        PortableEngine(by_hand, device=name)


def test_build(by_hand):
    assert isinstance(engines.build(by_hand), VectorEngine)
    assert isinstance(engines.build(by_hand, "portable"), PortableEngine)
    with pytest.raises(InputError, match="^--engine vector runs on the cpu, and --device cuda came: use --engine port"):
        engines.build(by_hand, "vector", "cuda")


@pytest.mark.parametrize("name", engines.ENGINES)
def test_lockstep_is_each_configuration_alone(small, name):
    network = replace(small.network, attention=small.network.layers)
    runner = engines.build(network, name)
    first, second = [(10, 50, 100, 150), (5, 20, 40, 90), (1, 2, 3, 4)], (10, 20, 30, 40)
    start = runner.start(small.images)
    together = runner.advance(runner.advance(start, first, 200), [second] * 3, 120)
    for k, codes in enumerate(first):
        alone = runner.advance(runner.advance(start, codes, 200), second, 120)
        assert torch.equal(runner.codes(alone), runner.codes(together).chunk(3)[k])
        assert torch.equal(alone.energy, together.energy.chunk(3)[k])
    own = [(*codes, tmax) for codes, tmax in zip(first, (160, 255, 90), strict=True)]
    together = runner.advance(runner.advance(start, own), [(*second, 80), (*second, 40), (*second, 255)])
    for k, (codes, tmax) in enumerate(zip(own, (80, 40, 255), strict=True)):
        alone = runner.advance(runner.advance(start, codes[:4], codes[4]), second, tmax)
        assert torch.equal(runner.codes(alone), runner.codes(together).chunk(3)[k])
    with pytest.raises(ValueError, match="^3 configurations are in lockstep, and codes for 2 came$"):
        runner.advance(together, [second] * 2, 120)
