"""MobileNet for small images."""

from __future__ import annotations

from torch import nn

from approx_env.teachers.models.blocks import Blocks, conv_block, initialise, pooled_classifier


class MobileNet(Blocks):
    """MobileNetV1 for 3x32x32 images: a convolution, then depthwise and 1x1 ones by turns; ReLU6 behind each.

    3,228,170 parameters for ten classes with batch norm, 46.4 M MACs.

    Args: as `AlexNet`.

    The first convolution has stride 1 in place of 2, as is usual for small images. The last 1x1 convolution is no
    approximated layer: an average pool reads it, and no multiplication.

    Source: Howard et al., arXiv:1704.04861, table 1; ReLU6 as in the authors' code (TensorFlow Slim).
    """

    attention = ("pair5", "pair11", "pair12")
    # Output channels and stride of each pair.
    pairs = (
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
        (1024, 2), (1024, 1),
    )  # fmt: skip

    def __init__(self, classes: int = 10, *, batch_norm: bool = True, dropout: float = 0.0):
        inputs = 32
        blocks: dict[str, nn.Module] = {"conv1": conv_block(3, inputs, 3, batch_norm=batch_norm, relu=nn.ReLU6)}
        for number, (outputs, stride) in enumerate(self.pairs, 1):
            blocks[f"depthwise{number}"] = conv_block(
                inputs, inputs, 3, batch_norm=batch_norm, stride=stride, groups=inputs, relu=nn.ReLU6
            )
            blocks[f"pair{number}"] = conv_block(inputs, outputs, 1, batch_norm=batch_norm, relu=nn.ReLU6)
            inputs = outputs
        super().__init__(blocks)
        del self.layers[f"pair{len(self.pairs)}"]
        self.classifier = pooled_classifier(inputs, classes, dropout)
        initialise(self)
