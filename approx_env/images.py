"""Image files in folders of classes: which ones there are, and their pixels.

JPEG, PNG, BMP and PPM files (PGM among them) with at most 8 bits a channel are read, and nothing else: Pillow would
start a PostScript interpreter for a file that merely claims to be a PNG, and it clips deeper channels to white.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unicodedata import category

import numpy as np
from PIL import Image, UnidentifiedImageError

from approx_env.errors import InputError

IMAGE_SIZE = 32  # of CIFAR-10; images for larger networks are resized
FORMATS = ("JPEG", "PNG", "BMP", "PPM")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm")
OTHER_EXTENSIONS = (".tif", ".tiff", ".webp")  # of images that are refused: to leave them out would change the splits
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")  # Pillow's names for more than 8 bits
PNG_DEPTH_BYTE = 24  # where a PNG says its bits a channel
UNPRINTABLE = ("Cc", "Cs")  # Unicode's control characters, and the surrogates that stand for bytes that are no UTF-8


class Sample(NamedTuple):
    """An image file of a class."""

    path: str
    label: int
    size_bytes: int
    file: str  # real path: links to one file have the same


def find_classes(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted.

    Raises:
        InputError: there is none, one has a name that is no UTF-8, or `folder` cannot be listed.
    """
    names = sorted(entry.name for entry in _listed(str(folder)) if _is_folder(entry))
    if not names:
        raise InputError(f"{folder} holds no class folder: give each class one, or name another --data-dir")
    for name in names:
        if any(category(character) in UNPRINTABLE for character in name):
            raise InputError(f"{folder} holds a class with a name that cannot be printed ({name!a}): rename the folder")
    return names


def find(folder: Path, classes: Sequence[str]) -> list[Sample]:
    """The images of each class in order of their paths; each file counts once, whatever number of links it has.

    A class folder may be a link. A folder inside a class may not: a link that leads upwards would repeat every image.

    Raises:
        InputError: a class without images, a file in two classes, a link to a folder or to nothing, an image file
            that is not a regular file or of another format, or a folder that cannot be listed.
    """
    found: dict[str, Sample] = {}
    empty = []
    for label, name in enumerate(classes):
        before = len(found)
        for sample in _samples(os.path.join(folder, name), label):
            if found.setdefault(sample.file, sample).label != label:
                raise _twice(sample, found[sample.file], "in one class")
        if len(found) == before:
            empty.append(name)
    if empty:
        raise InputError(
            f"{folder} holds no image of {', '.join(empty)}: each class needs one at least ({', '.join(EXTENSIONS)}), "
            "add one or name another --data-dir"
        )
    return list(found.values())


def check_apart(train: Sequence[Sample], test: Sequence[Sample]) -> None:
    """Raises InputError if a file is among both."""
    known = {sample.file: sample for sample in train}
    for sample in test:
        if sample.file in known:
            raise _twice(sample, known[sample.file], "to train on or to test on")


def _twice(one: Sample, other: Sample, place: str) -> InputError:
    return InputError(f"{other.path} and {one.path} are the same file: an image is {place}, remove one of the two")


def _samples(top: str, label: int) -> Iterator[Sample]:
    """The images below a class folder, folder by folder."""
    real_top = os.path.realpath(top)
    for folder, entries in sorted(_folders(top).items()):
        real = real_top + folder[len(top) :]  # no links below `top`
        for entry in sorted(entries, key=lambda entry: entry.name):
            extension = os.path.splitext(entry.name)[1].lower()
            if extension in OTHER_EXTENSIONS:
                raise InputError(f"{entry.path} is no {_either()}: convert it or remove it")
            if extension in EXTENSIONS:
                file = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
                yield Sample(entry.path, label, _size(entry), file)


def _folders(top: str) -> dict[str, list[os.DirEntry]]:
    """`top` and all folders below it, with what is no folder in them."""
    found: dict[str, list[os.DirEntry]] = {}
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        entries = _listed(folder)
        found[folder] = [entry for entry in entries if not _is_folder(entry)]
        for entry in entries:
            if _is_folder(entry):
                if entry.is_symlink():
                    raise InputError(
                        f"{entry.path} is a link to a folder: put the folder itself there, or remove the link"
                    )
                waiting.append(entry.path)
    return found


def _listed(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror}): make it readable, or remove it") from error


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or through a file
        return False


def _size(entry: os.DirEntry) -> int:
    """Bytes of a regular file."""
    try:
        status = entry.stat()
    except OSError as error:
        raise InputError(f"{entry.path} cannot be read ({error.strerror}): repair or remove it") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{entry.path} is not a regular file, and no image: remove it")
    return status.st_size


def read(paths: Sequence[str], shorter: int, side: int) -> np.ndarray:
    """Reads image files into `(n, 3, side, side) uint8`, from the middle of images whose shorter side is `shorter`.

    Raises:
        InputError: a file is broken, of another format or size, or has more than 8 bits a channel.
    """
    pixels = np.empty((len(paths), 3, side, side), np.uint8)
    for target, path in zip(pixels, paths, strict=True):
        target[:] = _pixels(path, shorter, side)
    return pixels


def _pixels(path: str, shorter: int, side: int) -> np.ndarray:
    """One image as `(3, side, side) uint8`."""
    from torchvision.transforms.v2 import functional as transforms

    try:
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            _check_size(path, *image.size, shorter)
            _check_depth(path, image)
            image = image.convert("RGB")
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is no {_either()}, or its header is broken: convert, repair or remove it") from error
    except Exception as error:  # Pillow has no kind of its own for a broken file: OSError, ValueError, struct.error ...
        told = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is not a readable image ({told}): repair or remove it") from error
    if shorter != IMAGE_SIZE:
        image = transforms.center_crop(transforms.resize(image, [shorter], antialias=True), [side])
    return np.asarray(image).transpose(2, 0, 1)


def _check_size(path: str, width: int, height: int, shorter: int) -> None:
    if shorter == IMAGE_SIZE and (width, height) != (IMAGE_SIZE, IMAGE_SIZE):
        raise InputError(f"{path} has {width}x{height} pixels: it must have {IMAGE_SIZE}x{IMAGE_SIZE}, resize it")
    needed = shorter * 7 // 8
    if shorter != IMAGE_SIZE and min(width, height) * 2 < needed:
        raise InputError(
            f"{path} has {width}x{height} pixels: a network that reads {needed}x{needed} needs half of that at least, "
            "use larger images or a network for small ones"
        )


def _check_depth(path: str, image: Image.Image) -> None:
    """Pillow drops the lower half of 16 bits without a word, or clips them: the file itself must be asked."""
    deep = image.mode in DEEP_MODES
    if image.format == "PNG":
        position = image.fp.tell()
        image.fp.seek(PNG_DEPTH_BYTE)
        deep = deep or image.fp.read(1)[0] > 8
        image.fp.seek(position)
    if image.format == "PPM":
        decoder, _, _, settings = image.tile[0]
        deep = deep or (decoder.startswith("ppm") and settings[1] > 255)  # (mode, highest value)
    if deep:
        raise InputError(f"{path} has more than 8 bits a channel: convert it to 8 bits")


def _either() -> str:
    return f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
