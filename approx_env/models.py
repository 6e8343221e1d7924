"""Float networks: the SqueezeNet family, AlexNet and VGG16, with the record points that TAP approximates.

A record point is an `nn.Identity` behind the activation that it names. A network's attributes say all that others
need: `layers` maps each approximated layer to the path of its record point, in forward order; `attention` names the
layers whose attention maps are compared; `image_size` is the side of its images in pixels; `standardised` whether
each image is brought to one mean and contrast first (`data.standardise`); `resizable` whether other image sizes pass,
too. Nothing else knows a model class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from approx_env.errors import InputError

BYPASSES = ("none", "simple", "complex")


class Blocks(nn.Module):
    """Named blocks in a row, a record point behind each, and a max pool behind some."""

    attention: tuple[str, ...]
    image_size = 32
    standardised = False
    resizable = False

    def __init__(self, blocks: Mapping[str, nn.Module], pool: nn.MaxPool2d, pool_after: tuple[str, ...]):
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


def _conv_block(
    inputs: int, outputs: int, kernel: int, *, batch_norm: bool, stride: int = 1, padding: int | None = None
) -> nn.Sequential:
    """Convolution ('same' padding unless told), batch norm where asked for, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2 if padding is None else padding)
    return nn.Sequential(conv, *([nn.BatchNorm2d(outputs)] if batch_norm else []), nn.ReLU(inplace=True))


class Fire(nn.Module):
    """Squeeze to few channels by 1x1, expand by 1x1 and 3x3 side by side, concatenate.

    Source: Iandola et al., SqueezeNet, arXiv:1602.07360, section 3.2.
    """

    def __init__(self, inputs: int, squeeze: int, expand1x1: int, expand3x3: int, *, batch_norm: bool):
        super().__init__()
        self.squeeze = _conv_block(inputs, squeeze, 1, batch_norm=batch_norm)
        self.expand1x1 = _conv_block(squeeze, expand1x1, 1, batch_norm=batch_norm)
        self.expand3x3 = _conv_block(squeeze, expand3x3, 3, batch_norm=batch_norm)

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
        blocks = {"conv1": _conv_block(3, inputs, kernel, batch_norm=batch_norm, stride=stride, padding=padding)}
        for number, (squeeze, expand) in enumerate(shape.fires, 2):
            if squeeze_ratio is not None:
                squeeze = max(1, round(squeeze_ratio * expand))
            expand3x3 = min(max(1, round(pct3x3 * expand)), expand - 1)
            fire = Fire(inputs, squeeze, expand - expand3x3, expand3x3, batch_norm=batch_norm)
            if bypass != "none" and inputs == expand:
                fire = Bypass(fire, nn.Identity())
            elif bypass == "complex":
                fire = Bypass(fire, _conv_block(inputs, expand, 1, batch_norm=batch_norm))
            blocks[f"fire{number}"] = fire
            inputs = expand
        super().__init__(blocks, nn.MaxPool2d(3, stride=2, ceil_mode=True), shape.pool_after)
        self.attention, self.image_size, self.standardised = shape.attention, shape.image_size, shape.standardised
        last = [nn.ReLU(inplace=True)] if shape.last_relu else []
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Conv2d(inputs, classes, 1), *last, nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(n, 3, image_size, image_size) float` -> logits `(n, classes) float`."""
        return self.classifier(self.features(x))


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


class FullyConnected(nn.Module):
    """Dropout, linear, ReLU and the record point `out`."""

    def __init__(self, inputs: int, outputs: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(inputs, outputs)
        self.relu = nn.ReLU()
        self.out = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.relu(self.linear(self.dropout(x))))


class AlexNet(Blocks):
    """AlexNet for 3x32x32 images: 3,112,266 parameters for ten classes with batch norm, 55.8 M MACs.

    Args:
        classes: number of classes, at least 2.
        batch_norm: batch norm behind each convolution.
        dropout: share of features dropped in training before fc1 and fc2, in [0, 1).

    Source: Krizhevsky et al., NeurIPS 2012, section 3.5, with the kernels and strides usual for small images.
    """

    attention = ("conv3", "conv4", "fc1")
    # name: input channels, output channels, kernel, stride
    convolutions = {
        "conv1": (3, 64, 5, 2),
        "conv2": (64, 192, 5, 1),
        "conv3": (192, 384, 3, 1),
        "conv4": (384, 256, 3, 1),
        "conv5": (256, 256, 3, 1),
    }

    def __init__(self, classes: int = 10, *, batch_norm: bool = True, dropout: float = 0.5):
        blocks = {
            name: _conv_block(inputs, outputs, kernel, batch_norm=batch_norm, stride=stride)
            for name, (inputs, outputs, kernel, stride) in self.convolutions.items()
        }
        super().__init__(blocks, nn.MaxPool2d(2), ("conv1", "conv2", "conv5"))
        self.flatten = nn.Flatten()
        self.classifier = nn.ModuleDict(
            {"fc1": FullyConnected(1024, 512, dropout), "fc2": FullyConnected(512, 256, dropout)}
        )
        self.fc3 = nn.Linear(256, classes)
        self.layers |= {name: f"classifier.{name}.out" for name in self.classifier}
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(n, 3, 32, 32) float` -> logits `(n, classes) float`."""
        x = self.flatten(self.features(x))
        for layer in self.classifier.values():
            x = layer(x)
        return self.fc3(x)


class VGG16(Blocks):
    """VGG16 for 3x32x32 images: 13 3x3 convolutions and one linear layer, 313 M MACs.

    Args: as `AlexNet`.

    Source: Simonyan & Zisserman, ICLR 2015, table 1, column D; the two hidden linear layers are left out, as is usual
    for small images.
    """

    attention = ("conv3_1", "conv4_1", "conv5_1")
    stages = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions

    def __init__(self, classes: int = 10, *, batch_norm: bool = True, dropout: float = 0.5):
        blocks, inputs = {}, 3
        for stage, (outputs, count) in enumerate(self.stages, 1):
            for number in range(1, count + 1):
                blocks[f"conv{stage}_{number}"] = _conv_block(inputs, outputs, 3, batch_norm=batch_norm)
                inputs = outputs
        last = tuple(f"conv{stage}_{count}" for stage, (_, count) in enumerate(self.stages, 1))
        super().__init__(blocks, nn.MaxPool2d(2), last)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(inputs, classes))
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(n, 3, 32, 32) float` -> logits `(n, classes) float`."""
        return self.classifier(self.features(x))


def _initialise(model: nn.Module) -> None:
    """He initialisation for ReLU networks, biases zero. Source: He et al., ICCV 2015, eq. 10."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)


MODELS: dict[str, Callable[..., Blocks]] = {
    "squeezenet": SqueezeNet,
    "squeezenet_simple_bypass": partial(SqueezeNet, bypass="simple"),
    "squeezenet_complex_bypass": partial(SqueezeNet, bypass="complex"),
    "squeezenet_compact": partial(SqueezeNet, layout="compact"),
    "squeezenet_v1_0": partial(SqueezeNet, layout="v1.0"),
    "squeezenet_v1_1": partial(SqueezeNet, layout="v1.1"),
    "alexnet": AlexNet,
    "vgg16": VGG16,
}


def build(name: str, classes: int, **options) -> Blocks:
    """Makes the float network `name` with fresh weights from torch's global generator.

    Args:
        options: of its constructor: `batch_norm`, `dropout`; of SqueezeNets also `squeeze_ratio`, `pct3x3`.

    Raises:
        InputError: an unknown name, an option that this network does not have, or a value out of its range.
    """
    if name not in MODELS:
        raise InputError(f"unknown model '{name}': it must be one of {', '.join(MODELS)}")
    if not name.startswith("squeezenet"):
        flags = {"squeeze_ratio": "--sr", "pct3x3": "--pct3x3"}
        strange = [flag for option, flag in flags.items() if options.pop(option, None) is not None]
        if strange:
            raise InputError(f"{', '.join(strange)}: only SqueezeNets have them, and {name} is none: leave them out")
    return MODELS[name](classes, **options)


def outline(name: str, classes: int = 2, **options) -> Blocks:
    """`build` without weights: for shapes and sizes, and to find bad options, at no cost; errors of `build`."""
    with torch.device("meta"):
        return build(name, classes, **options)
