import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from approx_env.teachers.muon import Muon, orthogonalised

SHAPES = [(8, 8), (16, 64), (64, 16), (32, 33), (3, 1), (1, 5), (48, 9 * 16)]


def random_matrix(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spread(value: float) -> float:
    """Five Newton-Schulz steps on one singular value."""
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    return value


def stepped(weight: torch.Tensor, gradients: list[torch.Tensor], **rules) -> torch.Tensor:
    parameter = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
    optimizer = Muon([parameter], **rules)
    for gradient in gradients:
        parameter.grad = gradient.clone(memory_format=torch.preserve_format)
        optimizer.step()
    return parameter.detach()


# -- orthogonalisation


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one_and_singular_vectors_stay(shape):
    matrix = random_matrix(shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalised(matrix)
    assert result.shape == shape
    found = torch.linalg.svdvals(result)
    assert found.min() > 0.6 and found.max() < 1.3
    core = left.T @ result @ right.T
    assert torch.allclose(core, torch.diag(core.diag()), atol=1e-4)
    assert core.diag().min() > 0.6 and core.diag().max() < 1.3  # no vector has turned round
    assert torch.linalg.matrix_norm(result - left @ right, 2) < 0.4


def test_singular_values_follow_the_polynomial():
    values = torch.tensor([3.0, 2.0, 1.0, 0.5])
    shares = values / values.norm()
    found = orthogonalised(torch.diag(values))
    assert torch.allclose(found, torch.diag(torch.tensor([spread(share.item()) for share in shares])), atol=1e-5)


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 1000), st.floats(0.1, 1000))
@settings(max_examples=30)
def test_length_does_not_matter_and_transposing_commutes(rows, columns, seed, factor):
    matrix = random_matrix((rows, columns), seed)
    result = orthogonalised(matrix)
    assert torch.allclose(orthogonalised(factor * matrix), result, atol=1e-3)
    assert torch.allclose(orthogonalised(matrix.T.contiguous()).T, result, atol=1e-3)
    assert torch.allclose(orthogonalised(-matrix), -result, atol=1e-6)


def test_nothing_stays_nothing():
    assert torch.equal(orthogonalised(torch.zeros(3, 4)), torch.zeros(3, 4))


# -- steps


def test_first_step_on_a_kernel_by_hand():
    """The kernel (2, 1, 1, 2) is the matrix diag(3, -4); its length is 5."""
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 1, 1, 2)
    gradient = torch.tensor([[3.0, 0.0], [0.0, -4.0]]).reshape(2, 1, 1, 2)
    found = stepped(weight, [gradient], lr=0.5, momentum=0.9, weight_decay=0.1)
    # what is left of the weights is 1 - 0.5 * 0.1
    expected = [0.95 - 0.5 * spread(0.6), 1.9, 2.85, 3.8 + 0.5 * spread(0.8)]
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-5)


def test_second_step_has_nesterov_momentum():
    """Momentum 0.75: m = (1, 0), then (0.75, 1); the second update goes along 0.25 g + 0.75 m = (0.5625, 1.75)."""
    gradients = [torch.diag(torch.tensor(values)) for values in ([4.0, 0.0], [0.0, 4.0])]
    found = stepped(torch.zeros(2, 2), gradients, lr=1.0, momentum=0.75, weight_decay=0.0)
    length = math.hypot(0.5625, 1.75)
    expected = [-spread(1.0) - spread(0.5625 / length), -spread(1.75 / length)]
    assert found.diag().tolist() == pytest.approx(expected, abs=1e-5)
    assert found[0, 1] == found[1, 0] == 0


def test_tall_kernels_take_longer_steps():
    """Four rows, one column: the singular value 1, stretched by the root of 4."""
    gradient = torch.tensor([3.0, 0.0, -4.0, 0.0]).reshape(4, 1, 1, 1)
    found = stepped(torch.zeros(4, 1, 1, 1), [gradient], lr=0.1, momentum=0.9, weight_decay=0.0)
    step = 0.1 * 2 * spread(1.0)
    assert found.flatten().tolist() == pytest.approx([-0.6 * step, 0, 0.8 * step, 0], abs=1e-5)


def test_without_a_gradient_there_is_decay_alone():
    weight = torch.tensor([[2.0, -4.0]])
    found = stepped(weight, [torch.zeros(1, 2)] * 2, lr=0.5, momentum=0.9, weight_decay=0.2)
    assert found.flatten().tolist() == pytest.approx([2 * 0.81, -4 * 0.81])


def test_memory_format_does_not_matter():
    weight, *gradients = (random_matrix((6, 36), seed).reshape(6, 4, 3, 3) for seed in range(4))
    rules = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    last = torch.channels_last
    found = stepped(
        weight.contiguous(memory_format=last), [part.contiguous(memory_format=last) for part in gradients], **rules
    )
    assert found.is_contiguous(memory_format=last)
    assert torch.allclose(found, stepped(weight, gradients, **rules), atol=1e-4)


def test_groups_have_their_own_rules():
    one, two = (nn.Parameter(torch.ones(1, 1)) for _ in range(2))
    optimizer = Muon([{"params": [one], "lr": 0.5}, {"params": [two]}], lr=0.25, momentum=0.9, weight_decay=0.0)
    one.grad, two.grad = torch.ones(1, 1), -torch.ones(1, 1)
    optimizer.step()
    assert [one.item(), two.item()] == pytest.approx([1 - 0.5 * spread(1.0), 1 + 0.25 * spread(1.0)])


def test_a_parameter_without_a_gradient_stays():
    still, moved = (nn.Parameter(torch.ones(1, 1)) for _ in range(2))
    optimizer = Muon([still, moved], lr=0.25, momentum=0.9, weight_decay=0.5)
    moved.grad = torch.ones(1, 1)
    optimizer.step()
    assert still.item() == 1 and moved.item() < 1
    assert set(optimizer.state_dict()["state"]) == {1}


def test_state_goes_to_disk_and_back(tmp_path):
    gradients = [random_matrix((6, 4), seed) for seed in range(4)]
    rules = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    straight = stepped(torch.ones(6, 4), gradients, **rules)
    parameter = nn.Parameter(torch.ones(6, 4))
    optimizer = Muon([parameter], **rules)
    for gradient in gradients[:2]:
        parameter.grad = gradient
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state")
    again = nn.Parameter(parameter.detach().clone())
    resumed = Muon([again], lr=7.0, momentum=0.0, weight_decay=0.0)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for gradient in gradients[2:]:
        again.grad = gradient
        resumed.step()
    assert torch.equal(again.detach(), straight)
