"""The float networks by name: the SqueezeNet family, AlexNet, VGG16, ResNets and MobileNet, a file a family."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from approx_env.errors import InputError
from approx_env.teachers.models.alexnet import AlexNet
from approx_env.teachers.models.blocks import Blocks
from approx_env.teachers.models.mobilenet import MobileNet
from approx_env.teachers.models.resnet import ResNet
from approx_env.teachers.models.squeezenet import SqueezeNet
from approx_env.teachers.models.vgg import VGG16

MODELS: dict[str, Callable[..., Blocks]] = {
    "squeezenet": SqueezeNet,
    "squeezenet_simple_bypass": partial(SqueezeNet, bypass="simple"),
    "squeezenet_complex_bypass": partial(SqueezeNet, bypass="complex"),
    "squeezenet_compact": partial(SqueezeNet, layout="compact"),
    "squeezenet_v1_0": partial(SqueezeNet, layout="v1.0"),
    "squeezenet_v1_1": partial(SqueezeNet, layout="v1.1"),
    "alexnet": AlexNet,
    "vgg16": VGG16,
    "resnet8": ResNet,
    "resnet20": partial(ResNet, blocks=3),
    "mobilenet": MobileNet,
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
