"""Float networks: SqueezeNet and AlexNet for 3x32x32 images, with the record points that TAP approximates.

A record point is an `nn.Identity` behind the activation that it names; `layers` maps each approximated layer to the
path of its record point, in forward order, and `attention` names the layers whose attention maps are compared.
Nothing else in the project knows a model class.
"""

from __future__ import annotations

import torch
from torch import nn

from approx_env.errors import InputError


def _conv_block(inputs: int, outputs: int, kernel: int, *, batch_norm: bool, stride: int = 1) -> nn.Sequential:
    """Convolution with 'same' padding, batch norm where asked for, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
    return nn.Sequential(conv, *([nn.BatchNorm2d(outputs)] if batch_norm else []), nn.ReLU())


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


class SqueezeNet(nn.Module):
    """SqueezeNet for 3x32x32 images: 729,034 parameters for ten classes (734,986 with batch norm), 52.5 M MACs.

    Args:
        classes: number of classes, at least 2.
        batch_norm: batch norm behind each convolution but the last.

    Source: Iandola et al., arXiv:1602.07360, table 1, with a 3x3 stride-1 first convolution for small images.
    """

    attention = ("fire4", "fire6", "fire8")
    # name: input channels, squeeze, expand 1x1, expand 3x3
    fires = {
        "fire2": (96, 16, 64, 64),
        "fire3": (128, 16, 64, 64),
        "fire4": (128, 32, 128, 128),
        "fire5": (256, 32, 128, 128),
        "fire6": (256, 48, 192, 192),
        "fire7": (384, 48, 192, 192),
        "fire8": (384, 64, 256, 256),
        "fire9": (512, 64, 256, 256),
    }
    pool_after = ("conv1", "fire4", "fire8")

    def __init__(self, classes: int = 10, *, batch_norm: bool = True):
        super().__init__()
        blocks: dict[str, nn.Module] = {"conv1": _conv_block(3, 96, 3, batch_norm=batch_norm)}
        blocks |= {name: Fire(*widths, batch_norm=batch_norm) for name, widths in self.fires.items()}
        self.blocks = nn.ModuleDict(blocks)
        self.block_output = nn.ModuleDict({name: nn.Identity() for name in blocks})
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(512, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.layers = {name: f"block_output.{name}" for name in blocks}
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(n, 3, 32, 32) float` -> logits `(n, classes) float`."""
        for name, block in self.blocks.items():
            x = self.block_output[name](block(x))
            if name in self.pool_after:
                x = self.pool(x)
        return self.classifier(x)


class FullyConnected(nn.Module):
    """Dropout, linear, ReLU and the record point `out`."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(inputs, outputs)
        self.relu = nn.ReLU()
        self.out = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.relu(self.linear(self.dropout(x))))


class AlexNet(nn.Module):
    """AlexNet for 3x32x32 images: 3,112,266 parameters for ten classes with batch norm, 55.8 M MACs.

    Args:
        classes: number of classes, at least 2.
        batch_norm: batch norm behind each convolution.

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
    pool_after = ("conv1", "conv2", "conv5")

    def __init__(self, classes: int = 10, *, batch_norm: bool = True):
        super().__init__()
        self.blocks = nn.ModuleDict(
            {
                name: _conv_block(inputs, outputs, kernel, batch_norm=batch_norm, stride=stride)
                for name, (inputs, outputs, kernel, stride) in self.convolutions.items()
            }
        )
        self.block_output = nn.ModuleDict({name: nn.Identity() for name in self.blocks})
        self.pool = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.classifier = nn.ModuleDict({"fc1": FullyConnected(1024, 512), "fc2": FullyConnected(512, 256)})
        self.fc3 = nn.Linear(256, classes)
        self.layers = {name: f"block_output.{name}" for name in self.blocks}
        self.layers |= {name: f"classifier.{name}.out" for name in self.classifier}
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(n, 3, 32, 32) float` -> logits `(n, classes) float`."""
        for name, block in self.blocks.items():
            x = self.block_output[name](block(x))
            if name in self.pool_after:
                x = self.pool(x)
        x = self.flatten(x)
        for layer in self.classifier.values():
            x = layer(x)
        return self.fc3(x)


def _initialise(model: nn.Module) -> None:
    """He initialisation for ReLU networks, biases zero. Source: He et al., ICCV 2015, eq. 10."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)


MODELS: dict[str, type[SqueezeNet] | type[AlexNet]] = {"squeezenet": SqueezeNet, "alexnet": AlexNet}


def build(name: str, classes: int, *, batch_norm: bool = True) -> SqueezeNet | AlexNet:
    """Makes the float network `name` with fresh weights from torch's global generator.

    Raises:
        InputError: an unknown name.
    """
    if name not in MODELS:
        raise InputError(f"unknown model '{name}': it must be one of {', '.join(MODELS)}")
    return MODELS[name](classes, batch_norm=batch_norm)
