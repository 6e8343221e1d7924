"""Networks that were trained on other pixels than ours."""

from __future__ import annotations

import torch
from torch import nn

from approx_env.data import PIXEL_SCALE, PIXEL_ZERO_POINT
from approx_env.errors import InputError
from approx_env.int8.nodes import INPUT, Convolution
from approx_env.int8.trace import Trace

HIGHEST = 255  # of a pixel


def absorb(module: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Turns a network that reads `(pixel / 255 - mean) / std` into one that reads our `(pixel - 128) / 64`.

    The first convolutions take the difference into their weights and biases. All products are the same, but for those
    with padding: it is a pixel of 128 in our networks, and was the mean.

    Args:
        mean, std: of each channel; std > 0.

    Raises:
        InputError: something else than a convolution of one group reads the images, or the module cannot be traced.
    """
    gain = 1 / (HIGHEST * PIXEL_SCALE) / torch.tensor(std)
    offset = (PIXEL_ZERO_POINT / HIGHEST - torch.tensor(mean)) / torch.tensor(std)
    trace = Trace(module, "the network", {})
    for name, parts in trace.found.items():
        if "float_weight" not in parts or not _reads_pixels(trace, name):
            continue
        reader = trace.modules.get(name.partition(":")[0])
        if parts["kind"] is not Convolution or reader.groups != 1:
            raise InputError(f"--mean, --std: '{name}' reads the images, and must be a convolution of one group")
        with torch.no_grad():
            bias = (reader.weight * offset[:, None, None]).sum((1, 2, 3))
            reader.bias = nn.Parameter(bias if reader.bias is None else reader.bias + bias)
            reader.weight.mul_(gain[:, None, None])


def _reads_pixels(trace: Trace, name: str) -> bool:
    """Whether a tensor is made of the images by one weighted node, and nothing but pools before it."""
    source = trace.found[name]["inputs"][0]
    while source != INPUT and "float_weight" not in trace.found[source]:
        source = trace.found[source]["inputs"][0]
    return source == INPUT
