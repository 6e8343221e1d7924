"""The float networks by name, a file a family: SqueezeNets, AlexNet, VGG16, ResNets, MobileNet; and one's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from approx_env.errors import InputError
from approx_env.teachers.models import own
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


NAMES = f"{', '.join(MODELS)}, {own.FORM}"  # what `named` takes
FLAGS = {"batch_norm": "--batch-norm", "dropout": "--dropout", "squeeze_ratio": "--sr", "pct3x3": "--pct3x3"}


def named(text: str) -> str:
    """A text that `build` takes, as a type of options.

    Raises:
        ValueError: it is neither the name of a network nor the form of a reference to one's own.
    """
    if text not in MODELS and own.parsed(text) is None:
        raise ValueError
    return text


def name_of(text: str) -> str:
    """What files and rows call the network that a text names: `Net` for `net.py:Net`."""
    reference = own.parsed(text)
    if reference is None:
        return text
    return f"{reference.name}_own" if reference.name in MODELS else reference.name


def build(name: str, classes: int, **options) -> nn.Module:
    """Makes the float network `name` with fresh weights from torch's global generator.

    Args:
        name: one of `MODELS`, or a reference to a network of one's own, which may bring weights along.
        options: of its constructor: `batch_norm`, `dropout`; of SqueezeNets also `squeeze_ratio`, `pct3x3`. One's own
            network has none, and takes only the usual `batch_norm=True` and `dropout=0.0`.

    Raises:
        InputError: an unknown name, an option that this network does not have, a value out of its range, or a
            reference to what is no network (see `own`).
    """
    if reference := own.parsed(name):
        check_options(name, **options)
        return own.build(reference, classes)
    if name not in MODELS:
        raise InputError(f"unknown model '{name}': it must be one of {', '.join(MODELS)}")
    if not name.startswith("squeezenet"):
        strange = [FLAGS[option] for option in ("squeeze_ratio", "pct3x3") if options.pop(option, None) is not None]
        if strange:
            raise InputError(f"{', '.join(strange)}: only SqueezeNets have them, and {name} is none: leave them out")
    return MODELS[name](classes, **options)


def outline(name: str, classes: int = 2, **options) -> Blocks:
    """`build` of a name in `MODELS`, without weights: for shapes and sizes, and to find bad options, at no cost."""
    with torch.device("meta"):
        return build(name, classes, **options)


def check_options(name: str, **options) -> None:
    """Finds bad options of `build`, and makes nothing; errors of `build`."""
    if own.parsed(name) is None:
        outline(name, **options)
        return
    usual = {"batch_norm": True, "dropout": 0.0}
    strange = [FLAGS[option] for option, value in options.items() if value != usual.get(option)]
    if strange:
        raise InputError(f"{', '.join(strange)}: {name} decides that itself: leave it out")
