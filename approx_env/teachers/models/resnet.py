"""Residual networks for small images."""

from __future__ import annotations

import torch
from torch import nn

from approx_env.teachers.models.blocks import Blocks, conv_block, initialise, pooled_classifier


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut; ReLU behind the first, and behind the sum.

    Where size or number of channels changes, the shortcut is a 1x1 convolution (option B). `inner` is a record point.

    Source: He et al., CVPR 2016, section 3.3 and figure 2.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, batch_norm: bool):
        super().__init__()
        self.first = conv_block(inputs, outputs, 3, batch_norm=batch_norm, stride=stride)
        self.inner = nn.Identity()
        self.second = conv_block(outputs, outputs, 3, batch_norm=batch_norm)[:-1]
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride) if changes else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.second(self.inner(self.first(x))) + self.shortcut(x))


class ResNet(Blocks):
    """Residual blocks in three stages of 16, 32 and 64 channels, for 3x32x32 images.

    Args:
        classes: number of classes, at least 2.
        blocks: in each stage. One makes ResNet-8 of MLPerf Tiny: 78,186 parameters for ten classes with batch norm,
            12.5 M MACs. Three make ResNet-20: 273,066 parameters, 40.8 M MACs.
        batch_norm: batch norm behind each convolution but the shortcuts'.
        dropout: share of features dropped in training before the last layer, in [0, 1).

    The last sum is no approximated layer: an average pool reads it, and no multiplication.

    Source: He et al., CVPR 2016, section 4.2, with option B in place of A; Banbury et al., 'MLPerf Tiny Benchmark',
    NeurIPS 2021, section 4 (image classification).
    """

    channels = (16, 32, 64)

    def __init__(self, classes: int = 10, *, blocks: int = 1, batch_norm: bool = True, dropout: float = 0.0):
        parts: dict[str, nn.Module] = {"conv1": conv_block(3, self.channels[0], 3, batch_norm=batch_norm)}
        inputs = self.channels[0]
        for stage, outputs in enumerate(self.channels, 1):
            for number in range(1, blocks + 1):
                stride = 2 if number == 1 < stage else 1
                parts[f"block{stage}_{number}"] = Residual(inputs, outputs, stride, batch_norm=batch_norm)
                inputs = outputs
        super().__init__(parts)
        last = f"block{len(self.channels)}_{blocks}"
        self.attention = (f"block1_{blocks}", f"block2_{blocks}", f"{last}_inner")
        self.layers = {"conv1": "block_output.conv1"}
        for name in list(parts)[1:]:
            self.layers |= {f"{name}_inner": f"blocks.{name}.inner", name: f"block_output.{name}"}
        del self.layers[last]
        self.classifier = pooled_classifier(inputs, classes, dropout)
        initialise(self)
