from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from approx_env import tap
from approx_env.adapt.simulation import Simulation
from approx_env.adapt.straight_through import Approximate, Convolve, Instead, Requantise
from approx_env.int8.nodes import ScaledAddition


def test_rounding_and_tap_pass_the_gradient(ramp):
    """Codes 10 and 30 become 12 and 32; each pixel's gradient is that of the sum of eight codes, times a multiplier."""
    simulation = Simulation(ramp, {"ramp": ((5, 12, 20, 32), 40)})
    pixels = torch.tensor([[[[138, 138, 158, 158, 138, 158, 138, 158]]]], dtype=torch.uint8)
    logits = simulation(pixels)
    assert logits.tolist() == [[4 * (12 + 32) * 2**19 / 2**16 / 64] * 2]
    logits[0, 0].backward()
    unit = 2**19 / 2**16 / 64  # a logit of one more in its sum
    assert simulation.weights[1].grad.tolist() == [[code * unit for code in (12, 12, 32, 32, 12, 32, 12, 32)], [0] * 8]
    assert simulation.biases[1].grad.tolist() == [unit, 0]
    assert simulation.gains[1].grad.tolist() == pytest.approx([4 * 44 * unit, 0])
    assert simulation.biases[0].grad.item() == pytest.approx(8 * unit)
    assert simulation.weights[0].grad.item() == pytest.approx(4 * (10 + 30) * unit)
    assert simulation.gains[0].grad.item() == pytest.approx(4 * (10 + 30) * unit)


def test_cut_codes_pass_no_gradient():
    sums = torch.tensor([[-1.0, 0.0, 0.2, 100.0, 254.9, 255.0, 300.0]], requires_grad=True)
    scale = torch.full((7,), 1.0, requires_grad=True)
    codes = Requantise.apply(sums, scale)
    assert codes.tolist() == [[0, 0, 0, 100, 255, 255, 255]]
    codes.sum().backward()
    assert sums.grad.tolist() == [[0, 0, 1, 1, 1, 0, 0]]
    assert scale.grad.tolist() == pytest.approx([0, 0, 0.2, 100, 254.9, 0, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["loops", "torch"])
@pytest.mark.parametrize("shape", [(3, 4, 5, 5), (6, 4)], ids=str)
def test_requantisation_has_the_gradient_of_what_is_not_rounded(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    sums = (torch.randn(shape, generator=generator).to(dtype) * 200).requires_grad_()
    scale = torch.rand(4, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(shape, generator=generator).to(dtype)
    found = torch.autograd.grad((Requantise.apply(sums, scale) * weight).sum(), (sums, scale))
    across = scale.view(4, *[1] * (sums.dim() - 2))
    expected = torch.autograd.grad(((sums * across).clamp(0, 255) * weight).sum(), (sums, scale))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("held", [True, False], ids=["tmax follows", "tmax stays"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["loops", "torch"])
def test_codes_have_the_gradients_of_what_they_make(dtype, held):
    """Codes: their own. Where tmax follows, those far above v2 that become it have none. v1 and v2: sums over their
    segments. A threshold: what all outputs change by when it moves over its neighbourhood, from two codes below to two
    above, a code of that distance."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (3, 4, 5, 5), generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(x.shape, generator=generator).to(dtype)
    codes = torch.tensor([40.0, 60, 120, 150, 200], dtype=dtype, requires_grad=True)
    exact = torch.tensor(0.1) if held else None

    def total(**moved) -> float:
        changed = dict(zip(tap.WITH_TMAX, codes.detach().clone(), strict=True)) | moved
        return (Approximate.apply(x.detach(), torch.stack(list(changed.values())), exact) * weight).sum().item()

    of_x, of_codes = torch.autograd.grad((Approximate.apply(x, codes, exact) * weight).sum(), (x, codes))
    assert torch.equal(of_x, weight * ((x <= 180) | (x > 200)) if held else weight)
    t1, v1, t2, v2, tmax = (code.detach() for code in codes)
    expected = [
        (total(t1=t1 + 2) - total(t1=t1 - 2)) / 4,
        total(v1=v1 + 1) - total(),
        (total(t2=t2 + 2) - total(t2=t2 - 2)) / 4,
        total(v2=v2 + 1) - total(),
        0.1 - (x > tmax).double().mean().item() if held else 0,
    ]
    assert of_codes.tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("bf16", "groups"), [(False, 1), (True, 1), (False, 4)])
def test_convolutions_of_whole_numbers_have_torchs_gradients(bf16, groups):
    """In bf16 only what comes in is rounded, to 8 bits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, 4, 8, 8), generator=generator).float().requires_grad_()
    weight = torch.randint(-127, 128, (4, 4 // groups, 3, 3), generator=generator).float().requires_grad_()
    bias = torch.zeros(4, requires_grad=True)
    back = torch.randn((2, 4, 4, 4), generator=generator)
    results = []
    ours = Convolve.apply(x, weight, bias, (2, 2), (1, 1), groups, bf16)
    for made in (ours, F.conv2d(x, weight, bias, 2, 1, groups=groups)):
        results.append([made, *torch.autograd.grad(made, (x, weight, bias), back)])
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(*results, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= (0.01 if bf16 else 1e-5) * other.norm()


def test_gradients_pass_a_scaled_addition_where_it_is_not_cut(ramp):
    """The sum is 4 c - c / 2 of codes c; two of eight are above 255."""
    half = replace(ramp.by_name["conv"], name="half", weight=-ramp.by_name["conv"].weight, logits=True,
                   relu=False, multiplier=np.full(1, 2**15, np.int32), inputs=("ramp",))  # fmt: skip
    added = ScaledAddition("sum", ("ramp", "half"), np.array([2**18, 1], np.int32), half.scale)
    simulation = Simulation(replace(ramp, nodes=(*ramp.nodes[:2], half, added)), {})
    pixels = torch.tensor([129, 130, 131, 133, 140, 200, 254, 255], dtype=torch.uint8).view(1, 1, 1, 8)
    total = simulation.outputs(pixels)["sum"]
    assert total.flatten().tolist() == [4, 7, 11, 18, 42, 252, 255, 255]
    of_first, of_half = torch.autograd.grad(total.sum(), list(simulation.biases))
    assert (of_first.item(), of_half.item()) == (6 * 3.5, 6 * 0.5)


@pytest.mark.parametrize("tmax", [40, 255])
def test_moved_codes_stay_valid(ramp, tmax):
    simulation = Simulation(ramp, {"ramp": ((5, 12, 20, 32), tmax)}, learn_codes=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        with torch.no_grad():
            simulation.codes += 60 * torch.randn(1, 5, generator=generator)
        simulation.project()
        ((codes, moved),) = simulation.configuration().values()
        tap.check(codes, moved)
        assert moved < 255 or tmax == 255


def test_the_held_share_is_of_what_the_student_has(ramp):
    """Pixels 138 and 158 are codes 10 and 30."""
    simulation = Simulation(ramp, {"ramp": ((1, 2, 3, 4), 20)}, learn_codes=True)
    simulation.hold_exact(torch.tensor([[[[138, 138, 158, 158, 138, 158, 138, 138]]]], dtype=torch.uint8))
    assert simulation.state_dict()["_exact"].tolist() == [3 / 8]


def test_instead():
    x = torch.tensor([0.4, 2.6], requires_grad=True)
    y = Instead.apply(x, x.round())
    assert y.tolist() == [0, 3]
    (y * torch.tensor([2.0, 5.0])).sum().backward()
    assert x.grad.tolist() == [2, 5]


def test_invalid_codes_are_refused(ramp):
    with pytest.raises(ValueError, match="^codes must satisfy"):
        Simulation(ramp, {"ramp": ((4, 3, 2, 1), 40)})


def test_numbers_stay_within_what_engines_rely_on(ramp):
    simulation = Simulation(ramp, {})
    with torch.no_grad():
        for weight, bias, gain in zip(simulation.weights, simulation.biases, simulation.gains, strict=True):
            weight += 1e4
            bias += 1e12
            gain += 100
    simulation.project()
    conv, _, _, linear = simulation.network().nodes
    assert conv.weight.max() == 127 and linear.weight.tolist() == [[64] * 8] * 2
    assert np.abs(conv.bias).max() < 2**30


def test_average_of_codes_rounds_halves_up():
    """As `int8.nodes` says; the gradient is that of the mean."""
    from approx_env.int8.network import Network
    from approx_env.int8.nodes import GlobalAveragePool, Linear, Site

    linear = Linear("last", ("pool",), weight=np.array([[1], [2]], np.int8), bias=np.zeros(2, np.int32),
                    multiplier=np.ones(2, np.int32), relu=False, scale=65536.0, logits=True)  # fmt: skip
    network = Network("m", ("0", "1"), (1, 1, 2), 1.0, 0, (Site("s", ("input",)), GlobalAveragePool("pool", ("s",)),
                      linear), ())  # fmt: skip
    simulation = Simulation(network, {})
    logits = simulation(torch.tensor([[[[3, 4]]], [[[3, 3]]]], dtype=torch.uint8))
    assert logits.tolist() == [[4, 8], [3, 6]]
