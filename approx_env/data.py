"""Datasets as uint8 images in five fixed, disjoint splits.

Teachers see *train*, histograms and scales *calibration*, rewards *search*, the final choice *validation*; *test* is
read once, for what was chosen. Every split but *test* is cut from the dataset's own training part by one fixed
permutation, so that the first n images of a split are a random sample of it.

Libraries that only reading a dataset takes are imported there: an env runner, which gets its images, needs none.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from approx_env import images
from approx_env.errors import InputError
from approx_env.images import IMAGE_SIZE

SPLITS = ("train", "calibration", "search", "validation", "test")
SPLIT_SEED = 20_261_122
DATASETS = ("digits", "cifar10", "imagefolder")
# The networks read raw pixels: x = (pixel - 128) / 64. Every pixel is an exact INT8 code, and padding is code 128.
PIXEL_SCALE = 1 / 64
PIXEL_ZERO_POINT = 128
STANDARD_DEVIATION = 40  # of a standardised image, in pixel codes


@dataclass(frozen=True)
class Dataset:
    """A labelled image collection cut into splits; images are decoded when they are asked for."""

    name: str  # 'digits', 'cifar10' or 'imagefolder:<folder>'
    classes: tuple[str, ...]  # class names, in label order
    mirrored: bool  # whether a mirrored image keeps its class
    labels: dict[str, np.ndarray]  # split -> (n,) int64
    digest: str  # SHA-256 of the content: of pixels, or of file names and sizes, and of labels
    _read: Callable[[str, np.ndarray, int, int], np.ndarray]  # (split, positions, shorter side, side) -> images
    image_size: int = IMAGE_SIZE  # side of the images, pixels

    def size(self, split: str) -> int:
        """Number of images in `split`."""
        return len(self.labels[split])

    def sized(self, image_size: int) -> Dataset:
        """The same images for a network that reads `image_size` pixels a side.

        Raises:
            InputError: the dataset cannot be had in that size.
        """
        if self.name == "cifar10" and image_size != IMAGE_SIZE:
            raise InputError(
                f"cifar10 has images of {IMAGE_SIZE}x{IMAGE_SIZE} pixels, and this network reads "
                f"{image_size}x{image_size}: use --dataset imagefolder with larger images, or a network for small ones"
            )
        return replace(self, image_size=image_size)

    def load(self, split: str, count: int | None = None, *, whole: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Reads the first `count` images of `split` (all, if None).

        Images of another size than 32 are resized so that the shorter side is 8/7 of `image_size`, and cropped in the
        middle; `whole` keeps the square of that shorter side, to crop from at random.

        Returns:
            Images `(n, 3, image_size, image_size) uint8` and labels `(n,) int64`.

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
        shorter = self.image_size if self.image_size == IMAGE_SIZE else self.image_size * 8 // 7
        pixels = self._read(split, np.arange(count), shorter, shorter if whole else self.image_size)
        return pixels, self.labels[split][:count]


def load(name: str, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Opens a dataset by name.

    Args:
        name: `digits` (bundled with scikit-learn, offline), `cifar10` (torchvision, downloads once into `data_dir`)
            or `imagefolder` (a folder with `train/` and `test/` or `val/`, one subfolder a class).
        data_dir: the folder of `cifar10` (default `data`) or of `imagefolder` (no default).

    Raises:
        InputError: unknown name; folder missing, empty, or with a class missing; download failed.
    """
    if data_dir is not None and not os.fspath(data_dir):
        raise InputError("--data-dir must be given a value, got '': leave it out where the default will do")
    if name == "digits":
        return _digits()
    if name == "cifar10":
        return _cifar10(Path("data" if data_dir is None else data_dir))
    if name == "imagefolder":
        if data_dir is None:
            raise InputError("--dataset imagefolder needs --data-dir, a folder with train/ and test/ (or val/)")
        return _imagefolder(Path(data_dir))
    raise InputError(f"unknown dataset '{name}': --dataset must be one of {', '.join(DATASETS)}")


def contradictions(dataset: str, given: Collection[str]) -> Iterator[tuple[set[str], str]]:
    """What cannot hold together of --dataset and --data-dir, as `options.parse` wants it."""
    if dataset == "digits" and "data_dir" in given:
        yield {"dataset", "data_dir"}, "--data-dir is for cifar10 and imagefolder; digits is bundled: leave it out"
    if dataset == "imagefolder" and "data_dir" not in given:
        yield {"dataset"}, "--dataset imagefolder needs --data-dir, a folder with train/ and test/ (or val/)"


def normalise(pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """`(n, 3, h, w) uint8` -> the float input of the networks, channels-last: (pixel - 128) / 64."""
    x = torch.as_tensor(pixels).float().sub_(PIXEL_ZERO_POINT).mul_(PIXEL_SCALE)
    return x.contiguous(memory_format=torch.channels_last)


def standardise(pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Brings each image `(n, c, h, w) uint8` to mean 128 and standard deviation 40, over all its pixels and channels.

    Pixels are rounded and cut at 0 and 255, 3.2 deviations away; the deviation is taken as at least 1/sqrt(chw).
    The sums are integers, so that every machine gives the same codes.

    Source: per-image standardisation as in `tf.image.per_image_standardization`, kept in eight bits.
    """
    pixels = torch.as_tensor(pixels)
    values = pixels.long().flatten(1)
    count, total, squares = values.shape[1], values.sum(1, keepdim=True), (values**2).sum(1, keepdim=True)
    # With the mean total / count, and the deviation sqrt(count squares - total^2) / count.
    deviation = (count * squares - total**2).double().sqrt().clamp_min(count**0.5)
    scaled = (count * values - total).double() / deviation
    codes = (PIXEL_ZERO_POINT + STANDARD_DEVIATION * scaled).round_().clamp_(0, 255)
    return codes.to(torch.uint8).reshape(pixels.shape)


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


def _digits() -> Dataset:
    """1,797 real 8x8 digits, enlarged to 3x32x32: test 256, search 256, validation 192, calibration 512, train 581."""
    folder = Path(importlib.util.find_spec("sklearn").origin).parent  # it takes a second to load
    table = np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images, digits = table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    small = torch.from_numpy(images).float()[:, None] * (255 / 16)
    chosen = _split(len(small), {"test": 256, "search": 256, "validation": 192, "calibration": 512})

    def read(split: str, positions: np.ndarray, shorter: int, side: int) -> np.ndarray:
        large = F.interpolate(small[chosen[split][positions]], size=shorter, mode="bilinear", align_corners=False)
        edge = round((shorter - side) / 2)  # no torchvision for that: to load it takes two seconds
        large = large[..., edge : edge + side, edge : edge + side].round().clamp_(0, 255).to(torch.uint8)
        return large.expand(-1, 3, -1, -1).contiguous().numpy()

    labels = {split: digits[index] for split, index in chosen.items()}
    classes, digest = tuple(map(str, range(10))), _digest(images, digits)
    return Dataset("digits", classes, False, labels, digest, read)


def _cifar10(root: Path) -> Dataset:
    from torchvision.datasets import CIFAR10

    try:
        train, test = (CIFAR10(root, train=part, download=True) for part in (True, False))
    except Exception as error:  # urllib, OS, archive and checksum errors alike: nothing was loaded
        raise InputError(
            f"CIFAR-10 could not be downloaded into {root} ({type(error).__name__}: {error}): put the archive "
            "cifar-10-python.tar.gz there and name the folder with --data-dir, or use --dataset imagefolder"
        ) from error
    parts = {
        split: (train, index)
        for split, index in _split(len(train.targets), _held_out_sizes(len(train.targets))).items()
    }
    parts["test"] = (test, np.arange(len(test.targets)))

    def read(split: str, positions: np.ndarray, shorter: int, side: int) -> np.ndarray:
        source, index = parts[split]
        return np.ascontiguousarray(source.data[index[positions]].transpose(0, 3, 1, 2))

    labels = {split: np.asarray(source.targets, np.int64)[index] for split, (source, index) in parts.items()}
    digest = _digest(*(np.asarray(part) for source in (train, test) for part in (source.data, source.targets)))
    return Dataset("cifar10", tuple(train.classes), True, labels, digest, read)


def _imagefolder(root: Path) -> Dataset:
    train_dir, test_dir = _parts(root)
    classes = images.find_classes(train_dir)
    odd = sorted(set(classes) ^ set(images.find_classes(test_dir)))
    if odd:
        raise InputError(f"{train_dir} and {test_dir} must hold the same classes; only one has: {', '.join(odd)}")
    if len(classes) < 2:
        raise InputError(f"{train_dir} holds one class ({classes[0]}): classification needs two or more")
    train, test = images.find(train_dir, classes), images.find(test_dir, classes)
    images.check_apart(train, test)
    chosen = _split(len(train), _held_out_sizes(len(train)))
    if min(len(index) for index in chosen.values()) == 0:
        raise InputError(f"{train_dir} holds {len(train)} images: at least 8 are needed to cut the splits")
    parts = {split: [train[position] for position in index] for split, index in chosen.items()}
    parts["test"] = [test[position] for position in np.random.default_rng(SPLIT_SEED).permutation(len(test))]
    paths = {split: np.array([sample.path for sample in part]) for split, part in parts.items()}
    return Dataset(
        name=f"imagefolder:{root.resolve().name}",
        classes=tuple(classes),
        mirrored=True,
        labels={split: np.array([sample.label for sample in part], np.int64) for split, part in parts.items()},
        digest=_digest(*(_listed(root, sample) for part in (train, test) for sample in part)),
        _read=lambda split, positions, shorter, side: images.read(paths[split][positions], shorter, side),
    )


def _parts(root: Path) -> tuple[Path, Path]:
    """The folders of the images to train on and to test on."""
    if not os.path.isdir(root):  # Path.is_dir would raise for a name that is too long
        raise InputError(f"--data-dir {root} is not a folder: give one that holds train/ and test/ (or val/)")
    test_dir = next((root / part for part in ("test", "val") if os.path.isdir(root / part)), None)
    if not os.path.isdir(root / "train") or test_dir is None:
        raise InputError(f"--data-dir {root} must hold train/ and test/ (or val/), each with one subfolder a class")
    return root / "train", test_dir


def _listed(root: Path, sample: images.Sample) -> bytes:
    line = f"{os.path.relpath(sample.path, root)}\0{sample.size_bytes}\0{sample.label}\n"
    return line.encode(errors="surrogateescape")


def _digest(*parts: np.ndarray | bytes) -> str:
    """SHA-256 of arrays or bytes, one after the other."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return whole.hexdigest()
