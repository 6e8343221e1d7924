"""VGG16 for small images."""

from __future__ import annotations

from torch import nn

from approx_env.teachers.models.blocks import Blocks, conv_block, initialise


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
                blocks[f"conv{stage}_{number}"] = conv_block(inputs, outputs, 3, batch_norm=batch_norm)
                inputs = outputs
        last = tuple(f"conv{stage}_{count}" for stage, (_, count) in enumerate(self.stages, 1))
        super().__init__(blocks, nn.MaxPool2d(2), last)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(inputs, classes))
        initialise(self)
