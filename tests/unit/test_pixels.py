"""A network of other pixels computes the same from ours, but at padding."""

import numpy as np
import pytest
import torch
from torch import nn

from approx_env import data
from approx_env.errors import InputError
from approx_env.teachers.models.pixels import absorb

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def outputs(module: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """What it made of its own pixels before, and makes of ours now."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 9, 9), np.uint8))
    mean, std = (torch.tensor(part)[:, None, None] for part in (MEAN, STD))
    with torch.no_grad():
        before = module.eval()((pixels / 255 - mean) / std)
        absorb(module, MEAN, STD)
        return before.numpy(), module(data.normalise(pixels)).numpy()


@pytest.mark.parametrize("biased", [True, False])
def test_without_padding_nothing_changes(biased):
    torch.manual_seed(0)
    module = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, bias=biased), nn.BatchNorm2d(4), nn.ReLU())
    np.testing.assert_allclose(*outputs(module), atol=1e-5)


def test_padding_alone_differs():
    torch.manual_seed(0)
    before, now = outputs(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()))
    np.testing.assert_allclose(before[..., 1:-1, 1:-1], now[..., 1:-1, 1:-1], atol=1e-5)
    assert abs(before - now).max() > 1e-3


def test_by_hand():
    """A pixel of 128 is 0 in ours, and 128 / 255 in [0, 1]; 64 codes more are 1 more, and 64 / 255."""
    module = nn.Conv2d(3, 1, 1)
    nn.init.ones_(module.weight)
    nn.init.zeros_(module.bias)
    absorb(nn.Sequential(module), (0.0, 0.0, 0.0), (1.0, 0.5, 1.0))
    np.testing.assert_allclose(module.weight.detach().flatten(), [64 / 255, 128 / 255, 64 / 255], rtol=1e-6)
    np.testing.assert_allclose(module.bias.item(), 4 * 128 / 255, rtol=1e-6)


@pytest.mark.parametrize("reader", [nn.Conv2d(3, 3, 1, groups=3), nn.Sequential(nn.Flatten(), nn.Linear(243, 2))])
def test_another_reader_is_refused(reader):
    with pytest.raises(InputError):
        absorb(nn.Sequential(reader), MEAN, STD)
