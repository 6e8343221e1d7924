"""The SqueezeNet family. Source: Iandola et al., arXiv:1602.07360."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from approx_env.errors import InputError
from approx_env.teachers.models.blocks import Blocks, conv_block, initialise

BYPASSES = ("none", "simple", "complex")


class Fire(nn.Module):
    """Squeeze to few channels by 1x1, expand by 1x1 and 3x3 side by side, concatenate.

    Source: Iandola et al., SqueezeNet, arXiv:1602.07360, section 3.2.
    """

    def __init__(self, inputs: int, squeeze: int, expand1x1: int, expand3x3: int, *, batch_norm: bool):
        super().__init__()
        self.squeeze = conv_block(inputs, squeeze, 1, batch_norm=batch_norm)
        self.expand1x1 = conv_block(squeeze, expand1x1, 1, batch_norm=batch_norm)
        self.expand3x3 = conv_block(squeeze, expand3x3, 3, batch_norm=batch_norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze(x)
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], 1)


class Bypass(nn.Module):
    """A Fire module's output plus its input, taken as it is or through a `shortcut`.

    Source: Iandola et al., arXiv:1602.07360, section 6.
    """

    def __init__(self, fire: Fire, shortcut: nn.Module):
        super().__init__()
        self.fire = fire
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fire(x) + self.shortcut(x)


@dataclass(frozen=True)
class Layout:
    """What tells one SqueezeNet from another, besides its options."""

    stem: tuple[int, int, int, int]  # of conv1: output channels, kernel, stride, padding
    fires: tuple[tuple[int, int], ...]  # of fire2, fire3, ...: squeeze channels, expand channels (1x1 and 3x3 together)
    pool_after: tuple[str, ...]
    attention: tuple[str, ...]
    image_size: int = 32
    standardised: bool = False
    last_relu: bool = True  # behind conv10


_EIGHT_FIRES = ((16, 128), (16, 128), (32, 256), (32, 256), (48, 384), (48, 384), (64, 512), (64, 512))
_EIGHT_MAPS = ("fire4", "fire6", "fire8")
LAYOUTS = {
    "cifar": Layout((96, 3, 1, 1), _EIGHT_FIRES, ("conv1", "fire4", "fire8"), _EIGHT_MAPS),
    "v1.0": Layout((96, 7, 2, 0), _EIGHT_FIRES, ("conv1", "fire4", "fire8"), _EIGHT_MAPS, image_size=224),
    "v1.1": Layout((64, 3, 2, 0), _EIGHT_FIRES, ("conv1", "fire3", "fire5"), _EIGHT_MAPS, image_size=224),
    "compact": Layout(
        (64, 3, 1, 1), ((32, 128), (32, 128), (32, 256), (32, 256)), ("conv1", "fire3"), ("fire3", "fire5"),
        standardised=True, last_relu=False,
    ),
}  # fmt: skip


class SqueezeNet(Blocks):
    """SqueezeNet: conv1, Fire modules, a 1x1 convolution to the classes, global average pool.

    Args:
        classes: number of classes, at least 2.
        layout: 'cifar' (3x32x32 images, first convolution 3x3 with stride 1: 729,034 parameters for ten classes,
            734,986 with batch norm, 52.5 M MACs), 'v1.0' and 'v1.1' (3x224x224, as torchvision's) or 'compact'
            (3x32x32, four Fire modules, standardised images).
        batch_norm: batch norm behind each convolution but the last.
        bypass: 'none'; 'simple', the input added to the output of each Fire module that keeps the number of channels;
            'complex', around the others also, through a 1x1 convolution with ReLU.
        squeeze_ratio: squeeze channels over expand channels, in (0, 1]; None leaves the layout's own (0.125 but for
            the first two Fire modules of 'compact').
        pct3x3: share of 3x3 filters among the expand filters, in (0, 1).
        dropout: share of features dropped in training before the last convolution, in [0, 1).

    Raises:
        InputError: a value out of its range.

    Source: Iandola et al., arXiv:1602.07360, table 1, sections 5 (metaparameters) and 6 (bypass).
    """

    resizable = True

    def __init__(
        self,
        classes: int = 10,
        *,
        layout: str = "cifar",
        batch_norm: bool = True,
        bypass: str = "none",
        squeeze_ratio: float | None = None,
        pct3x3: float = 0.5,
        dropout: float = 0.5,
    ):
        _check(layout, bypass, squeeze_ratio, pct3x3)
        shape = LAYOUTS[layout]
        inputs, kernel, stride, padding = shape.stem
        blocks = {"conv1": conv_block(3, inputs, kernel, batch_norm=batch_norm, stride=stride, padding=padding)}
        for number, (squeeze, expand) in enumerate(shape.fires, 2):
            if squeeze_ratio is not None:
                squeeze = max(1, round(squeeze_ratio * expand))
            expand3x3 = min(max(1, round(pct3x3 * expand)), expand - 1)
            fire = Fire(inputs, squeeze, expand - expand3x3, expand3x3, batch_norm=batch_norm)
            if bypass != "none" and inputs == expand:
                fire = Bypass(fire, nn.Identity())
            elif bypass == "complex":
                fire = Bypass(fire, conv_block(inputs, expand, 1, batch_norm=batch_norm))
            blocks[f"fire{number}"] = fire
            inputs = expand
        super().__init__(blocks, nn.MaxPool2d(3, stride=2, ceil_mode=True), shape.pool_after)
        self.attention, self.image_size, self.standardised = shape.attention, shape.image_size, shape.standardised
        last = [nn.ReLU(inplace=True)] if shape.last_relu else []
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Conv2d(inputs, classes, 1), *last, nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        initialise(self)


def _check(layout: str, bypass: str, squeeze_ratio: float | None, pct3x3: float) -> None:
    problems = []
    if layout not in LAYOUTS:
        problems.append(f"layout must be one of {', '.join(LAYOUTS)}, got '{layout}'")
    if bypass not in BYPASSES:
        problems.append(f"bypass must be one of {', '.join(BYPASSES)}, got '{bypass}'")
    if squeeze_ratio is not None and not 0 < squeeze_ratio <= 1:
        problems.append(f"the squeeze ratio SR (--sr) must lie in (0, 1], got {squeeze_ratio}")
    if not 0 < pct3x3 < 1:
        problems.append(f"the share of 3x3 filters (--pct3x3) must lie in (0, 1), got {pct3x3}")
    if problems:
        raise InputError(problems)
