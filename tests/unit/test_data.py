from collections import Counter
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from approx_env import data
from approx_env.errors import InputError

SIZES = {"train": 581, "calibration": 512, "search": 256, "validation": 192, "test": 256}


def refusal(name: str, data_dir=None) -> str:
    with pytest.raises(InputError) as caught:
        data.load(name, data_dir)
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_unknown_dataset():
    assert refusal("mnist") == "unknown dataset 'mnist': --dataset must be one of digits, cifar10, imagefolder"


def test_normalise():
    x = data.normalise(np.array([0, 64, 128, 129, 255], np.uint8).reshape(1, 1, 1, 5))
    assert x.dtype == torch.float32
    assert x.reshape(-1).tolist() == [-2.0, -1.0, 0.0, 1 / 64, 127 / 64]


# -- digits


def test_digits_sizes_and_format(digits):
    assert {split: digits.size(split) for split in data.SPLITS} == SIZES
    assert digits.classes == tuple("0123456789")
    assert (digits.name, digits.mirrored) == ("digits", False)
    for split in data.SPLITS:
        images, labels = digits.load(split)
        assert (images.shape, images.dtype) == ((SIZES[split], 3, 32, 32), np.uint8)
        assert (labels.shape, labels.dtype) == ((SIZES[split],), np.int64)
        assert set(labels) == set(range(10))


def test_digits_splits_part_the_dataset(digits):
    """Each of the 1,797 digits is in one split: enlarged or not, as many of them are equal."""
    originals = Counter(image.tobytes() for image in load_digits().images)
    found = Counter(image.tobytes() for split in data.SPLITS for image in digits.load(split)[0])
    assert found.total() == originals.total() == 1797
    assert sorted(found.values()) == sorted(originals.values())


def test_digits_splits_are_fixed(digits):
    again = data.load("digits")
    for split in data.SPLITS:
        for one, other in zip(digits.load(split), again.load(split), strict=True):
            assert np.array_equal(one, other)
    # A change here changes every published number.
    assert {split: digits.labels[split][:8].tolist() for split in data.SPLITS} == {
        "train": [7, 3, 4, 8, 6, 4, 6, 0],
        "calibration": [5, 7, 4, 5, 5, 0, 1, 4],
        "search": [6, 2, 3, 6, 6, 6, 5, 8],
        "validation": [1, 7, 9, 8, 1, 9, 5, 4],
        "test": [2, 7, 2, 6, 9, 5, 5, 2],
    }


def test_load_takes_the_first_images(digits):
    images, labels = digits.load("search", 5)
    everything = digits.load("search")
    assert np.array_equal(images, everything[0][:5])
    assert np.array_equal(labels, everything[1][:5])


@pytest.mark.parametrize("count", [257, 0, -3])
def test_more_images_than_there_are(digits, count):
    with pytest.raises(InputError) as caught:
        digits.load("search", count)
    assert str(caught.value) == (
        f"the search split of digits has 256 images, and {count} were asked for: ask for 1 to 256"
    )


# -- cifar10


def fake_cifar10(total: int, test_total: int):
    """Stands in for torchvision's class; image i has the pixels of the number i."""

    def load(root, train, download):
        count = total if train else test_total
        numbers = np.arange(count, dtype=np.uint32) + (0 if train else 2**31)
        pixels = numbers.view(np.uint8).reshape(count, 1, 1, 4)[..., :3]
        return SimpleNamespace(data=pixels, targets=[i % 10 for i in range(count)], classes=[*"abcdefghij"])

    return load


def test_cifar10_splits(monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake_cifar10(50_000, 10_000))
    found = data.load("cifar10")
    assert {split: found.size(split) for split in data.SPLITS} == {
        "train": 40_784, "calibration": 1_024, "search": 4_096, "validation": 4_096, "test": 10_000
    }  # fmt: skip
    assert (found.name, found.classes, found.mirrored) == ("cifar10", tuple("abcdefghij"), True)
    numbers = {}
    for split in data.SPLITS[:-1]:
        images, labels = found.load(split)
        numbers[split] = images[:, 0, 0, 0] + 256 * images[:, 1, 0, 0].astype(int)
        assert np.array_equal(numbers[split] % 10, labels)  # images and labels stay together
    assert sorted(np.concatenate(list(numbers.values()))) == list(range(50_000))


def test_failed_download_names_the_ways_out(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fail)
    assert refusal("cifar10", tmp_path) == (
        f"CIFAR-10 could not be downloaded into {tmp_path} (URLError: <urlopen error no route to host>): put the "
        "archive cifar-10-python.tar.gz there and name the folder with --data-dir, or use --dataset imagefolder"
    )
    assert list(tmp_path.iterdir()) == []


# -- imagefolder


def write_tree(root, classes=("cat", "dog"), train=16, test=4, test_name="test", size=(32, 32)):
    """Grey PNGs: `train` in all for training and `test` a class, each of its own brightness."""
    brightness = 0
    for part, count in (("train", train // max(1, len(classes))), (test_name, test)):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                brightness += 1
                Image.new("RGB", size, (brightness,) * 3).save(root / part / name / f"{i}.png")
    return root


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_imagefolder_splits(tmp_path, test_name):
    found = data.load("imagefolder", write_tree(tmp_path / "pets", train=40, test_name=test_name))
    assert (found.name, found.classes, found.mirrored) == ("imagefolder:pets", ("cat", "dog"), True)
    assert {split: found.size(split) for split in data.SPLITS} == {
        "train": 20, "calibration": 10, "search": 5, "validation": 5, "test": 8
    }  # fmt: skip
    seen = []
    for split in data.SPLITS:
        images, labels = found.load(split)
        assert (images.shape[1:], images.dtype) == ((3, 32, 32), np.uint8)
        values = images[:, 0, 0, 0].astype(int)
        assert np.array_equal(images, np.broadcast_to(values[:, None, None, None], images.shape).astype(np.uint8))
        assert np.array_equal(labels, (values > 20) if split != "test" else (values > 44))
        seen.extend(values)
    assert sorted(seen) == list(range(1, 49))  # disjoint, and nothing left out


def test_imagefolder_splits_are_fixed(tmp_path):
    first, second = (data.load("imagefolder", write_tree(tmp_path / name, train=40)) for name in ("a", "b"))
    for split in data.SPLITS:
        assert np.array_equal(first.load(split)[0], second.load(split)[0])


def test_imagefolder_reads_grey_and_transparent_images_as_rgb(tmp_path):
    root = write_tree(tmp_path)
    for path in (root / "train" / "cat").iterdir():
        Image.new("L", (32, 32), 77).save(path)
    for path in (root / "train" / "dog").iterdir():
        Image.new("RGBA", (32, 32), (1, 2, 3, 128)).save(path)
    images, labels = data.load("imagefolder", root).load("train")
    assert images[labels == 0][0, :, 0, 0].tolist() == [77, 77, 77]
    assert images[labels == 1][0, :, 0, 0].tolist() == [1, 2, 3]


def test_imagefolder_needs_a_folder(tmp_path):
    assert refusal("imagefolder") == (
        "--dataset imagefolder needs --data-dir, a folder with train/ and test/ (or val/)"
    )
    missing, file = tmp_path / "missing", tmp_path / "file"
    file.touch()
    for path in (missing, file):
        assert refusal("imagefolder", path) == (
            f"--data-dir {path} is not a folder: give one that holds train/ and test/ (or val/)"
        )


def test_imagefolder_that_is_empty_or_half_there(tmp_path):
    message = f"--data-dir {tmp_path} must hold train/ and test/ (or val/), each with one subfolder a class"
    assert refusal("imagefolder", tmp_path) == message
    (tmp_path / "train").mkdir()
    assert refusal("imagefolder", tmp_path) == message
    (tmp_path / "test").mkdir()
    message = refusal("imagefolder", tmp_path)
    assert message == f"{tmp_path / 'train'} holds no class folder: give each class one, or name another --data-dir"


def test_imagefolder_with_an_empty_class(tmp_path):
    root = write_tree(tmp_path)
    for path in (root / "train" / "cat").iterdir():
        path.unlink()
    assert refusal("imagefolder", root) == (
        f"{root / 'train'} holds no image of cat: each class needs one at least (.jpg, .jpeg, .png, .bmp, .ppm, .pgm), "
        "add one or name another --data-dir"
    )


def test_imagefolder_with_a_class_missing(tmp_path):
    root = write_tree(tmp_path, classes=("cat", "dog", "emu"))
    for path in (root / "test" / "emu").iterdir():
        path.unlink()
    (root / "test" / "emu").rmdir()
    assert refusal("imagefolder", root) == (
        f"{root / 'train'} and {root / 'test'} must hold the same classes; only one has: emu"
    )


def test_imagefolder_with_one_class(tmp_path):
    root = write_tree(tmp_path, classes=("cat",))
    assert refusal("imagefolder", root) == (f"{root / 'train'} holds one class (cat): classification needs two or more")


def test_imagefolder_with_too_few_images(tmp_path):
    root = write_tree(tmp_path, train=6)
    assert refusal("imagefolder", root) == f"{root / 'train'} holds 6 images: at least 8 are needed to cut the splits"


def unreadable(root, split: str) -> str:
    found = data.load("imagefolder", root)
    with pytest.raises(InputError) as caught:
        found.load(split)
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_imagefolder_with_a_broken_image(tmp_path):
    """`test_bad_images.py` has many more."""
    broken = write_tree(tmp_path) / "test" / "dog" / "0.png"
    broken.write_bytes(b"")
    assert unreadable(tmp_path, "test") == (
        f"{broken} is no JPEG, PNG, BMP or PPM image, or its header is broken: convert, repair or remove it"
    )
    data.load("imagefolder", tmp_path).load("train")  # what is not read is not looked at


def test_imagefolder_with_images_cut_short(tmp_path):
    """Their headers are sound, so that only decoding finds out."""
    root = write_tree(tmp_path)
    for path in (root / "train").rglob("*.png"):
        Image.effect_noise((32, 32), 50).save(path)
        path.write_bytes(path.read_bytes()[:-300])
    assert unreadable(root, "search").endswith("): repair or remove it")


def test_imagefolder_with_images_of_another_size(tmp_path):
    message = unreadable(write_tree(tmp_path, size=(48, 32)), "train")
    assert message.endswith(".png has 48x32 pixels: it must have 32x32, resize it")


# -- larger images


def draw(path, width: int, height: int) -> None:
    """A PNG whose red is the column, green the row and blue 7."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([x, y, np.full_like(x, 7)], 2).astype(np.uint8)).save(path)


@pytest.fixture
def large_folder(tmp_path):
    """Eight training images of many shapes, and two tests of known ones: `cat` 256x256, `dog` 256x128."""
    for i, (width, height) in enumerate([(256, 256), (200, 250), (128, 130), (255, 140)]):
        for name in ("cat", "dog"):
            draw(tmp_path / "train" / name / f"{i}.png", width, height)
    draw(tmp_path / "test" / "cat" / "0.png", 256, 256)
    draw(tmp_path / "test" / "dog" / "0.png", 256, 128)
    return tmp_path


def test_imagefolder_at_another_size(large_folder):
    found = data.load("imagefolder", large_folder).sized(224)
    assert found.image_size == 224
    for split in data.SPLITS:
        for whole, side in ((False, 224), (True, 256)):
            images, labels = found.load(split, whole=whole)
            assert (images.shape, images.dtype) == ((len(labels), 3, side, side), np.uint8)
            assert (images[:, 2] == 7).all()  # nothing is padded
    assert len(found.load("train")[1]) == 8 - found.size("search") - found.size("calibration") - found.size(
        "validation"
    )


def test_larger_images_are_resized_to_their_shorter_side_and_cropped_in_the_middle(large_folder):
    found = data.load("imagefolder", large_folder).sized(224)
    images, labels = found.load("test")
    square, wide = images[np.argmin(labels)].astype(int), images[np.argmax(labels)].astype(int)
    # 256x256 stays as it is: 16 pixels go at each side
    assert np.array_equal(square[0], np.tile(np.arange(16, 240), (224, 1)))
    assert np.array_equal(square[1], square[0].T)
    # 256x128 becomes 512x256, of which columns 144 to 367 and rows 16 to 239 stay: half of that in the file
    assert wide[0][:, [0, 112, 223]] == pytest.approx(np.tile([71.75, 127.75, 183.25], (224, 1)), abs=1)
    assert wide[1][[0, 112, 223]] == pytest.approx(np.tile([[7.75], [63.75], [119.25]], (1, 224)), abs=1)


@pytest.mark.parametrize("name", ["imagefolder", "digits"])
def test_the_middle_of_a_whole_image_is_the_image(name, large_folder, digits):
    found = (digits if name == "digits" else data.load("imagefolder", large_folder)).sized(224)
    (images, labels), (whole, same) = found.load("test", 2), found.load("test", 2, whole=True)
    assert np.array_equal(labels, same)
    assert np.array_equal(images, whole[:, :, 16:240, 16:240])


@pytest.mark.parametrize("whole", [False, True])
def test_images_of_half_the_side_are_enough(tmp_path, whole):
    root = write_tree(tmp_path, size=(130, 112))
    images, _ = data.load("imagefolder", root).sized(224).load("test", whole=whole)
    assert images.shape == (8, 3, *[256 if whole else 224] * 2)


@pytest.mark.parametrize("whole", [False, True])
def test_images_that_are_too_small_are_refused(tmp_path, whole):
    root = write_tree(tmp_path, size=(300, 111))
    with pytest.raises(InputError) as caught:
        data.load("imagefolder", root).sized(224).load("test", 1, whole=whole)
    (problem,) = caught.value.problems
    path, rest = problem.split(" has ")
    assert path.startswith(str(root / "test"))
    assert rest == (
        "300x111 pixels: a network that reads 224x224 needs half of that at least, use larger images or a network for "
        "small ones"
    )


def test_images_for_small_networks_must_still_be_small(large_folder):
    message = unreadable(large_folder, "test")
    assert message.endswith("pixels: it must have 32x32, resize it")


def test_digits_at_another_size(digits):
    found = digits.sized(224)
    assert (found.image_size, digits.image_size) == (224, 32)
    images, labels = found.load("search", 3)
    assert (images.shape, images.dtype) == ((3, 3, 224, 224), np.uint8)
    assert found.load("search", 3, whole=True)[0].shape == (3, 3, 256, 256)
    # the same digits, 7 times as large
    small, same = digits.load("search", 3)
    assert np.array_equal(labels, same)
    for one, other in zip(images, small, strict=True):
        means = one.reshape(3, 32, 7, 32, 7).mean((2, 4)).flatten()
        assert np.corrcoef(means, other.flatten())[0, 1] > 0.9


@pytest.mark.parametrize("whole", [False, True])
def test_small_images_are_read_as_they_are(digits, tmp_path, whole):
    for found in (digits, data.load("imagefolder", write_tree(tmp_path))):
        assert np.array_equal(found.sized(32).load("test", 4, whole=whole)[0], found.load("test", 4)[0])


def test_cifar10_has_one_size(monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake_cifar10(80, 10))
    found = data.load("cifar10")
    assert found.sized(32).load("test")[0].shape == (10, 3, 1, 1)
    with pytest.raises(InputError) as caught:
        found.sized(224)
    assert str(caught.value) == (
        "cifar10 has images of 32x32 pixels, and this network reads 224x224: use --dataset imagefolder with larger "
        "images, or a network for small ones"
    )


# -- standardised images


def test_standardise_by_hand():
    """Mean 3, deviation 2: the codes are 128 + 20 (p - 3)."""
    pixels = np.array([[1, 1, 5, 5], [13, 13, 17, 17]], np.uint8).reshape(2, 1, 2, 2)
    codes = data.standardise(pixels)
    assert (codes.shape, codes.dtype) == ((2, 1, 2, 2), torch.uint8)
    assert codes.reshape(2, 4).tolist() == [[88, 88, 168, 168]] * 2
    assert pixels.max() == 17
    assert torch.equal(data.standardise(torch.from_numpy(pixels)), codes)


def test_standardise_cuts_at_both_ends():
    """One pixel of 100 lies 9.9 deviations away, the others 0.1: 128 -+ 4.02, and far outside."""
    pixels = np.full((2, 1, 10, 10), 100, np.uint8)
    pixels[:, 0, 0, 0] = 0, 255
    codes = data.standardise(pixels)
    assert codes[:, 0, 0, 0].tolist() == [0, 255]
    assert codes[:, 0, 1, 1].tolist() == [132, 124]


@pytest.mark.parametrize("value", [0, 77, 255])
def test_standardise_of_one_colour_is_grey(value):
    assert (data.standardise(np.full((1, 3, 4, 4), value, np.uint8)) == 128).all()


def test_standardise_takes_a_least_deviation():
    """One pixel of 10,000 is 1 brighter: a deviation of 0.009999 counts as 0.01, 1 / sqrt(10,000)."""
    pixels = np.full((1, 1, 100, 100), 9, np.uint8)
    pixels[0, 0, 0, 0] = 10
    assert data.standardise(pixels).flatten()[:2].tolist() == [255, 128]
    pixels = np.array([[0, 0, 0, 1]], np.uint8).reshape(1, 1, 2, 2)  # deviation 0.433 counts as 0.5
    assert data.standardise(pixels).flatten().tolist() == [108, 108, 108, 188]


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 12), st.integers(0, 100))
@settings(max_examples=30)
def test_standardise_sees_one_image_at_a_time(images, channels, side, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (images, channels, side, side), np.uint8)
    codes = data.standardise(pixels)
    assert torch.equal(codes, torch.cat([data.standardise(image[None]) for image in pixels]))


def test_standardise_takes_brightness_and_contrast_away():
    pixels = np.random.default_rng(0).integers(0, 64, (4, 3, 32, 32), np.uint8)
    assert torch.equal(data.standardise(2 * pixels + 50), data.standardise(pixels))


def test_standardised_images_have_one_mean_and_deviation():
    generator = np.random.default_rng(0)
    for low, high in ((0, 256), (200, 240), (3, 90)):
        codes = data.standardise(generator.integers(low, high, (2, 3, 32, 32), np.uint8)).double().flatten(1)
        assert codes.mean(1).tolist() == pytest.approx([128, 128], abs=0.1)
        assert codes.std(1).tolist() == pytest.approx([40, 40], abs=0.2)


# -- options


@pytest.mark.parametrize(
    ("dataset", "given_names", "expected"),
    [
        ("digits", set(), []),
        ("digits", {"data_dir", "dataset"}, [{"dataset", "data_dir"}]),
        ("cifar10", set(), []),
        ("cifar10", {"data_dir"}, []),
        ("imagefolder", {"dataset"}, [{"dataset"}]),
        ("imagefolder", {"dataset", "data_dir"}, []),
    ],
)
def test_contradictions(dataset, given_names, expected):
    found = list(data.contradictions(dataset, given_names))
    assert [involved for involved, _ in found] == expected
    assert all("--data-dir" in text and dataset in text for _, text in found)
