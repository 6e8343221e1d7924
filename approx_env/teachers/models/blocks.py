"""What the float networks have in common: named blocks with record points.

A record point is an `nn.Identity` behind the activation that it names. A network's attributes say all that others
need: `layers` maps each approximated layer to the path of its record point, in forward order; `attention` names the
layers whose attention maps are compared; `image_size` is the side of its images in pixels; `standardised` says whether
each image is brought to one mean and contrast first (`data.standardise`); `resizable` says whether other image sizes
pass, too. Nothing else knows a model class. A network of a user's own has any of them, or none: `traits` says what then
holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn


class Blocks(nn.Module):
    """Named blocks in a row, a record point behind each, and a max pool behind some; a classifier reads the last."""

    classifier: nn.Module
    attention: tuple[str, ...]
    image_size = 32
    standardised = False
    resizable = False

    def __init__(
        self, blocks: Mapping[str, nn.Module], pool: nn.MaxPool2d | None = None, pool_after: tuple[str, ...] = ()
    ):
        super().__init__()
        self.blocks = nn.ModuleDict(blocks)
        self.block_output = nn.ModuleDict({name: nn.Identity() for name in blocks})
        self.pool = pool
        self.pool_after = pool_after
        self.layers = {name: f"block_output.{name}" for name in blocks}

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """`(n, 3, image_size, image_size) float` -> `(n, channels, h, w) float`, what the classifier reads."""
        for name, block in self.blocks.items():
            x = self.block_output[name](block(x))
            if name in self.pool_after:
                x = self.pool(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(n, 3, image_size, image_size) float` -> logits `(n, classes) float`."""
        return self.classifier(self.features(x))


@dataclass(frozen=True)
class Traits:
    """What others need to know of a network; the attributes of `Blocks` by their names."""

    layers: Mapping[str, str] | None  # None: whatever is multiplied, as `int8.sites` has it
    attention: tuple[str, ...] | None  # None: what `int8.sites.watched` says
    image_size: int
    standardised: bool


def traits(module: nn.Module) -> Traits:
    """What a module says of itself in the attributes of `Blocks`.

    A module of a user's own may call something else by these names, a `ModuleList` for instance. That is left alone.
    """
    layers, attention, side = (getattr(module, name, None) for name in ("layers", "attention", "image_size"))
    return Traits(
        layers if isinstance(layers, Mapping) else None,
        tuple(attention) if isinstance(attention, list | tuple) else None,
        side if isinstance(side, int) else Blocks.image_size,
        getattr(module, "standardised", False) is True,
    )


def conv_block(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    batch_norm: bool,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    relu: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Convolution ('same' padding unless told), batch norm where asked for, ReLU or ReLU6."""
    padding = kernel // 2 if padding is None else padding
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, groups=groups)
    return nn.Sequential(conv, *([nn.BatchNorm2d(outputs)] if batch_norm else []), relu(inplace=True))


def pooled_classifier(inputs: int, classes: int, dropout: float) -> nn.Sequential:
    """A linear layer on the mean of each channel, with dropout before it."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(inputs, classes))


def initialise(model: nn.Module) -> None:
    """He initialisation for ReLU networks, biases zero. Source: He et al., ICCV 2015, eq. 10."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
