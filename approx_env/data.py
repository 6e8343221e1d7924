"""Datasets as uint8 images in five fixed, disjoint splits.

Teachers see *train*, histograms and scales *calibration*, rewards *search*, the final choice *validation*; *test* is
read once, for what was chosen. Every split but *test* is cut from the dataset's own training part by one fixed
permutation, so that the first n images of a split are a random sample of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from approx_env.errors import InputError

SPLITS = ("train", "calibration", "search", "validation", "test")
SPLIT_SEED = 20_261_122
DATASETS = ("digits", "cifar10", "imagefolder")
IMAGE_SIZE = 32
# The networks read raw pixels: x = (pixel - 128) / 64. Every pixel is an exact INT8 code, and padding is code 128.
PIXEL_SCALE = 1 / 64
PIXEL_ZERO_POINT = 128


@dataclass(frozen=True)
class Dataset:
    """A labelled image collection cut into splits; images are decoded when they are asked for."""

    name: str  # 'digits', 'cifar10' or 'imagefolder:<folder>'
    classes: tuple[str, ...]  # class names, in label order
    mirrored: bool  # whether a mirrored image keeps its class
    labels: dict[str, np.ndarray]  # split -> (n,) int64
    _read: Callable[[str, np.ndarray], np.ndarray]  # (split, positions in it) -> (n, 3, 32, 32) uint8

    def size(self, split: str) -> int:
        """Number of images in `split`."""
        return len(self.labels[split])

    def load(self, split: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Reads the first `count` images of `split` (all, if None).

        Returns:
            Images `(n, 3, 32, 32) uint8` and labels `(n,) int64`.

        Raises:
            InputError: more images asked for than there are, or an image file that is broken or of another size.
        """
        available = self.size(split)
        count = available if count is None else count
        if not 1 <= count <= available:
            raise InputError(
                f"the {split} split of {self.name} has {available} images, and {count} were asked for: "
                f"ask for 1 to {available}"
            )
        return self._read(split, np.arange(count)), self.labels[split][:count]


def load(name: str, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Opens a dataset by name.

    Args:
        name: `digits` (bundled with scikit-learn, offline), `cifar10` (torchvision, downloads once into `data_dir`)
            or `imagefolder` (a folder with `train/` and `test/` or `val/`, one subfolder a class).
        data_dir: the folder of `cifar10` (default `data`) or of `imagefolder` (no default).

    Raises:
        InputError: unknown name; folder missing, empty, or with a class missing; download failed.
    """
    if name == "digits":
        return _digits()
    if name == "cifar10":
        return _cifar10(Path(data_dir or "data"))
    if name == "imagefolder":
        if data_dir is None:
            raise InputError("--dataset imagefolder needs --data-dir, a folder with train/ and test/ (or val/)")
        return _imagefolder(Path(data_dir))
    raise InputError(f"unknown dataset '{name}': --dataset must be one of {', '.join(DATASETS)}")


def normalise(pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """`(n, 3, h, w) uint8` -> the float input of the networks, channels-last: (pixel - 128) / 64."""
    x = torch.as_tensor(pixels).float().sub_(PIXEL_ZERO_POINT).mul_(PIXEL_SCALE)
    return x.contiguous(memory_format=torch.channels_last)


def _split(total: int, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Cuts `range(total)` into named disjoint index sets by the fixed permutation; *train* takes the rest."""
    order = np.random.default_rng(SPLIT_SEED).permutation(total)
    cuts = np.split(order, np.cumsum(list(sizes.values())))
    return dict(zip([*sizes, "train"], cuts, strict=True))


def _held_out_sizes(total: int) -> dict[str, int]:
    """How many of `total` training images each held-out split takes: at most half of them together."""
    return {
        "calibration": min(1024, total // 4),
        "search": min(4096, total // 8),
        "validation": min(4096, total // 8),
    }


def _in_memory(
    name: str,
    classes: Sequence[str],
    mirrored: bool,
    parts: dict[str, tuple[np.ndarray, np.ndarray]],
) -> Dataset:
    return Dataset(
        name=name,
        classes=tuple(classes),
        mirrored=mirrored,
        labels={split: labels.astype(np.int64) for split, (_, labels) in parts.items()},
        _read=lambda split, positions: parts[split][0][positions],
    )


def _digits() -> Dataset:
    """1,797 real 8x8 digits, enlarged to 3x32x32: test 256, search 256, validation 192, calibration 512, train 581."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)
    large = torch.nn.functional.interpolate(small, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
    pixels = large.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous().numpy()
    chosen = _split(len(pixels), {"test": 256, "search": 256, "validation": 192, "calibration": 512})
    parts = {split: (pixels[index], bunch.target[index]) for split, index in chosen.items()}
    return _in_memory("digits", [str(digit) for digit in bunch.target_names], False, parts)


def _cifar10(root: Path) -> Dataset:
    from torchvision.datasets import CIFAR10

    try:
        train, test = (CIFAR10(root, train=part, download=True) for part in (True, False))
    except Exception as error:  # urllib, OS, archive and checksum errors alike: nothing was loaded
        raise InputError(
            f"CIFAR-10 could not be downloaded into {root} ({type(error).__name__}: {error}): put the archive "
            "cifar-10-python.tar.gz there and name the folder with --data-dir, or use --dataset imagefolder"
        ) from error
    pixels = np.ascontiguousarray(train.data.transpose(0, 3, 1, 2))
    labels = np.asarray(train.targets)
    chosen = _split(len(pixels), _held_out_sizes(len(pixels)))
    parts = {split: (pixels[index], labels[index]) for split, index in chosen.items()}
    parts["test"] = (np.ascontiguousarray(test.data.transpose(0, 3, 1, 2)), np.asarray(test.targets))
    return _in_memory("cifar10", train.classes, True, parts)


def _imagefolder(root: Path) -> Dataset:
    from torchvision.datasets import ImageFolder

    if not root.is_dir():
        raise InputError(f"--data-dir {root} is not a folder: give one that holds train/ and test/ (or val/)")
    test_dir = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if not (root / "train").is_dir() or test_dir is None:
        raise InputError(f"--data-dir {root} must hold train/ and test/ (or val/), each with one subfolder a class")
    try:
        train, test = ImageFolder(root / "train"), ImageFolder(test_dir)
    except FileNotFoundError as error:  # no classes, or a class without an image
        raise InputError(f"--data-dir {root}: {' '.join(str(error).split())}") from error
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise InputError(f"{root / 'train'} and {test_dir} must hold the same classes; only one has: {', '.join(odd)}")
    if len(train.classes) < 2:
        raise InputError(f"{root / 'train'} holds one class ({train.classes[0]}): classification needs two or more")
    files = np.array([path for path, _ in train.samples])
    labels = np.array(train.targets, np.int64)
    chosen = _split(len(files), _held_out_sizes(len(files)))
    if min(len(index) for index in chosen.values()) == 0:
        raise InputError(f"{root / 'train'} holds {len(files)} images: at least 8 are needed to cut the splits")
    paths = {split: files[index] for split, index in chosen.items()}
    order = np.random.default_rng(SPLIT_SEED).permutation(len(test.samples))
    paths["test"] = np.array([path for path, _ in test.samples])[order]
    split_labels = {split: labels[index] for split, index in chosen.items()}
    split_labels["test"] = np.array(test.targets, np.int64)[order]
    return Dataset(
        name=f"imagefolder:{root.resolve().name}",
        classes=tuple(train.classes),
        mirrored=True,
        labels=split_labels,
        _read=lambda split, positions: _decode(paths[split][positions]),
    )


def _decode(paths: Sequence[str]) -> np.ndarray:
    """Reads image files into `(n, 3, 32, 32) uint8`."""
    pixels = np.empty((len(paths), 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for target, path in zip(pixels, paths, strict=True):
        with _opened(path) as image:
            if image.size != (IMAGE_SIZE, IMAGE_SIZE):
                width, height = image.size
                raise InputError(
                    f"{path} has {width}x{height} pixels: it must have {IMAGE_SIZE}x{IMAGE_SIZE}, resize it"
                )
            target[:] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    return pixels


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not a readable image ({error}): repair or remove it") from error
