"""AlexNet for small images."""

from __future__ import annotations

import torch
from torch import nn

from approx_env.teachers.models.blocks import Blocks, conv_block, initialise


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
            name: conv_block(inputs, outputs, kernel, batch_norm=batch_norm, stride=stride)
            for name, (inputs, outputs, kernel, stride) in self.convolutions.items()
        }
        super().__init__(blocks, nn.MaxPool2d(2), ("conv1", "conv2", "conv5"))
        self.flatten = nn.Flatten()
        self.classifier = nn.ModuleDict(
            {"fc1": FullyConnected(1024, 512, dropout), "fc2": FullyConnected(512, 256, dropout)}
        )
        self.fc3 = nn.Linear(256, classes)
        self.layers |= {name: f"classifier.{name}.out" for name in self.classifier}
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(n, 3, 32, 32) float` -> logits `(n, classes) float`."""
        x = self.flatten(self.features(x))
        for layer in self.classifier.values():
            x = layer(x)
        return self.fc3(x)
