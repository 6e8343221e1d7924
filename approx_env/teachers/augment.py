"""Random changes of training images, on whole batches of `uint8`."""

from __future__ import annotations

import torch
from torchvision.transforms.v2 import functional as transforms

from approx_env import data

MAX_SHIFT = 4  # pixels of a 32-pixel image
LARGE = 224  # from this side on, images are resized and turned as well
SIDES = (256, 296, 384)  # that a 224-pixel crop is taken from
MAX_TURN = 10  # degrees
GREY = data.PIXEL_ZERO_POINT


def augment(pixels: torch.Tensor, side: int, flip: torch.Tensor, cutout: int, draw: torch.Generator) -> torch.Tensor:
    """Makes training images of `pixels (n, 3, h, w) uint8`: `(n, 3, side, side) uint8`.

    Each image is shifted by up to 4 pixels over grey and mirrored where `flip (n,) bool` says so; a grey square of
    `cutout` pixels a side covers a random place of it. Images of 224 pixels are first resized to one of three sides
    and turned by up to 10 degrees, one draw for the batch, and cropped at random instead.
    """
    if side >= LARGE:
        scaled = SIDES[int(torch.randint(len(SIDES), (), generator=draw))] * side // LARGE
        angle = (2 * float(torch.rand((), generator=draw)) - 1) * MAX_TURN
        pixels = transforms.resize(pixels, [scaled, scaled], antialias=True)
        pixels = transforms.rotate(pixels, angle, transforms.InterpolationMode.BILINEAR, fill=[GREY] * 3)
    else:
        pixels = transforms.pad(pixels, [MAX_SHIFT], fill=GREY)
    freedom = pixels.shape[-1] - side + 1
    places = torch.randint(freedom, (2, len(pixels)), generator=draw).tolist()
    images = torch.stack([image[:, y : y + side, x : x + side] for image, y, x in zip(pixels, *places, strict=True)])
    images[flip] = transforms.horizontal_flip(images[flip])
    if cutout:
        corners = torch.randint(1 - cutout, side, (2, len(images)), generator=draw).tolist()
        for image, y, x in zip(images, *corners, strict=True):
            image[:, max(0, y) : y + cutout, max(0, x) : x + cutout] = GREY
    return images


def flips(count: int, epoch: int, seed: int) -> torch.Tensor:
    """Which of `count` images are mirrored in `epoch`: a random half in even epochs, the other half in odd ones.

    Source: K. Jordan, '94% on CIFAR-10 in 3.29 seconds', arXiv:2404.00498, section 3.6.
    """
    first = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    return first ^ (epoch % 2 == 1)
