"""Broken and odd image folders: each ends in one clear sentence, or is read as what it is. Nothing hangs or is run."""

import os
import shutil
import signal
import socket
import struct
import subprocess
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from approx_env import data, images
from approx_env.errors import InputError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
NO_IMAGE = "is no JPEG, PNG, BMP or PPM image, or its header is broken: convert, repair or remove it"
BROKEN = ("is not a readable image (", NO_IMAGE)  # Pillow decides which, and another release otherwise
DEEP = "has more than 8 bits a channel: convert it to 8 bits"
IRREGULAR = "is not a regular file, and no image: remove it"
LINKED = "is a link to a folder: put the folder itself there, or remove the link"
LOST = "cannot be read ("


@pytest.fixture(autouse=True)
def neither_hangs_nor_starts_programs(monkeypatch):
    """Opening a FIFO would wait for ever; Pillow would start Ghostscript."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def root(tmp_path) -> Path:
    """`train/` with ten images and `test/` with four for each of two classes."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 4)):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pets" / part / name / f"{k}.png")
    return tmp_path / "pets"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int = 32, height: int = 32, depth: int = 8, colour: int = 2, before: bytes = b"", pixels=None) -> bytes:
    """A PNG of one colour, with chunks in front of its pixels."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = b"\0" + b"\x40" * (width * channels * depth // 8) if width < 1000 else b"\0"
    pixels = zlib.compress(row * min(height, 1000)) if pixels is None else pixels
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return SIGNATURE + header + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def saved(format: str, mode: str = "RGB", **options) -> bytes:
    content = BytesIO()
    Image.effect_noise((32, 32), 50).convert(mode).save(content, format, **options)
    return content.getvalue()


def patched(content: bytes, marker: bytes, offset: int, replacement: bytes) -> bytes:
    """`content` with other bytes `offset` behind its first `marker`."""
    place = content.index(marker) + offset
    return content[:place] + replacement + content[place + len(replacement) :]


JPEG, BMP = saved("JPEG"), saved("BMP")
START_OF_FRAME = b"\xff\xc0"  # then two bytes of length, bits a channel, height, width
MEBIBYTES = zlib.compress(b"a" * 2**22)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"

# A file's name, its content, and what is said of it. The name decides nothing but whether it is looked at.
FILES = {
    "empty": ("x.png", b"", BROKEN),
    "empty JPEG": ("x.jpg", b"", BROKEN),
    "text": ("x.png", b"no image", BROKEN),
    "zeros": ("x.jpeg", bytes(4000), BROKEN),
    "PNG signature alone": ("x.png", SIGNATURE, BROKEN),
    "PNG header cut in its length": ("x.png", png()[:10], BROKEN),
    "PNG header cut in its sides": ("x.png", png()[:20], BROKEN),
    "PNG header cut in its checksum": ("x.png", png()[:31], BROKEN),
    "PNG header with a wrong checksum": ("x.png", patched(png(), b"IHDR", 17, b"abcd"), BROKEN),
    "PNG cut in its pixels": ("x.png", saved("PNG")[:-300], BROKEN),
    "PNG with a wrong checksum of pixels": ("x.png", patched(saved("PNG"), b"IDAT", 30, b"abcdefgh"), BROKEN),
    "PNG with pixels that do not unpack": ("x.png", png(pixels=b"abcdefgh"), BROKEN),
    "PNG without pixels": ("x.png", png()[:33] + chunk(b"IEND", b""), BROKEN),
    "PNG with a large packed text": ("x.png", png(before=chunk(b"zTXt", b"k\0\0" + MEBIBYTES)), BROKEN),
    "PNG with a large international text": ("x.png", png(before=chunk(b"iTXt", b"k\0\1\0\0\0" + MEBIBYTES)), BROKEN),
    "PNG with large texts behind its pixels": ("x.png", png()[:-12] + chunk(b"zTXt", b"k\0\0" + MEBIBYTES), BROKEN),
    "PNG with an unknown filter": ("x.png", patched(png(), b"IHDR", 15, b"\7"), BROKEN),
    "PNG of no width": ("x.png", png(width=0), BROKEN),
    "PNG of 400 million pixels": ("x.png", png(20_000, 20_000), BROKEN),
    "PNG of the largest size": ("x.png", png(2**31 - 1, 2**31 - 1), BROKEN),
    "PNG one pixel short": ("x.png", png(31), "has 31x32 pixels: it must have 32x32, resize it"),
    "PNG with 16 bits, grey": ("x.png", png(depth=16, colour=0), DEEP),
    "PNG with 16 bits, grey and alpha": ("x.png", png(depth=16, colour=4), DEEP),
    "PNG with 16 bits, colours": ("x.png", png(depth=16, colour=2), DEEP),
    "PNG with 16 bits, colours and alpha": ("x.png", png(depth=16, colour=6), DEEP),
    "JPEG cut in its pixels": ("x.jpg", JPEG[:-200], BROKEN),
    "JPEG of two bytes": ("x.jpg", JPEG[:2], BROKEN),
    "JPEG cut in its header": ("x.jpg", JPEG[:30], BROKEN),
    "JPEG with 12 bits": ("x.jpg", patched(JPEG, START_OF_FRAME, 4, b"\x0c"), BROKEN),
    "JPEG of no height": ("x.jpg", patched(JPEG, START_OF_FRAME, 5, b"\0\0"), BROKEN),
    "BMP cut in its pixels": ("x.bmp", BMP[:-200], BROKEN),
    "BMP cut in its header": ("x.bmp", BMP[:20], BROKEN),
    "BMP with 7 bits": ("x.bmp", patched(BMP, b"BM", 28, b"\7\0"), BROKEN),
    "BMP with an unknown compression": ("x.bmp", patched(BMP, b"BM", 30, b"\x63\0\0\0"), BROKEN),
    "PPM cut in its header": ("x.ppm", b"P6\n32", BROKEN),
    "PPM without pixels": ("x.ppm", b"P6 32 32 255\n", BROKEN),
    "PPM with too few pixels of few bits": ("x.ppm", b"P6 32 32 100\n" + bytes(99), BROKEN),
    "PPM with a negative side": ("x.ppm", b"P6 -32 32 255\n" + bytes(3072), BROKEN),
    "PPM with a long number": ("x.ppm", b"P6 " + b"3" * 99 + b" 32 255\n" + bytes(3072), BROKEN),
    "PPM with no highest value": ("x.ppm", b"P6 32 32 0\n" + bytes(3072), BROKEN),
    "PPM with a comment without end": ("x.ppm", b"P6 #" + b"a" * 9999, BROKEN),
    "PPM with letters for pixels": ("x.ppm", b"P3 32 32 255\n" + b"x " * 3072, BROKEN),
    "PPM with 16 bits": ("x.ppm", b"P6 32 32 65535\n" + bytes(6144), DEEP),
    "PPM with 10 bits": ("x.ppm", b"P6 32 32 1023\n" + bytes(6144), DEEP),
    "PPM with 9 bits, as text": ("x.ppm", b"P3 32 32 511\n" + b"0 " * 3072, DEEP),
    "PGM with 16 bits": ("x.pgm", b"P5 32 32 65535\n" + bytes(2048), DEEP),
    "PGM with 10 bits": ("x.pgm", b"P5 32 32 1023\n" + bytes(2048), DEEP),
    "PFM": ("x.ppm", b"Pf 32 32 -1.0\n" + bytes(4096), DEEP),
    "EPS as PNG": ("x.png", EPS, NO_IMAGE),
    "EPS as JPEG": ("x.jpg", EPS, NO_IMAGE),
    "GIF as PNG": ("x.png", saved("GIF"), NO_IMAGE),
    "TIFF as PNG": ("x.png", saved("TIFF"), NO_IMAGE),
    "WebP as JPEG": ("x.jpg", saved("WEBP"), NO_IMAGE),
    "PDF as JPEG": ("x.jpg", b"%PDF-1.4\n%%EOF\n", NO_IMAGE),
    "SVG as PNG": ("x.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", NO_IMAGE),
}  # fmt: skip


def refusal(root: Path, *, read: bool) -> str:
    """The one sentence in which opening the folder ends, or reading it."""
    found = data.load("imagefolder", root) if read else None
    with pytest.raises(InputError) as caught:
        for split in data.SPLITS:
            found.load(split) if read else data.load("imagefolder", root)
    (problem,) = caught.value.problems
    assert "\n" not in problem
    return problem


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(("name", "content", "said"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_image_is_named(root, part, name, content, said):
    broken = root / part / "dog" / name
    broken.write_bytes(content)
    problem = refusal(root, read=True)
    assert problem.startswith(f"{broken} ")
    assert any(text in problem for text in ([said] if isinstance(said, str) else said))


def fifo(root: Path) -> tuple[Path, str]:
    os.mkfifo(root / "test" / "dog" / "x.png")
    return root / "test" / "dog" / "x.png", IRREGULAR


def unix_socket(root: Path) -> tuple[Path, str]:
    before = os.getcwd()
    os.chdir(root / "test" / "dog")  # a socket's path has 107 characters at most
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("x.jpg")
    os.chdir(before)
    return root / "test" / "dog" / "x.jpg", IRREGULAR


def link(target: str, said: str, at: str = "test/dog/x.png"):
    """A fault: a link at a place of the folder."""

    def make(root: Path) -> tuple[Path, str]:
        (root / at).symlink_to(target)
        return root / at, said

    return make


def link_to_a_link(root: Path) -> tuple[Path, str]:
    (root / "train" / "cat" / "y.png").symlink_to("x.png")
    return link("y.png", LOST, "train/cat/x.png")(root)[0], LOST


def other_format(name: str):
    def make(root: Path) -> tuple[Path, str]:
        (root / "train" / "cat" / name).write_bytes(b"")
        return root / "train" / "cat" / name, "is no JPEG, PNG, BMP or PPM image: convert it or remove it"

    return make


def class_name(name: bytes):
    def make(root: Path) -> tuple[Path, str]:
        for part in ("train", "test"):
            shutil.copytree(root / part / "cat", root / part / os.fsdecode(name))
        return root / "train", "holds a class with a name that cannot be printed ("

    return make


def class_of_a_link_to_all(root: Path) -> tuple[Path, str]:
    """The class `all` holds what the others hold."""
    for part in ("train", "test"):
        (root / part / "all").symlink_to(".")
    return root / "train" / "all" / "all", LINKED


def class_twice(root: Path) -> tuple[Path, str]:
    for part in ("train", "test"):
        (root / part / "tom").symlink_to("cat")
    return root / "train" / "cat" / "0.png", f"and {root}/train/tom/0.png are the same file: an image is in one class"


def image_of_two_classes(root: Path) -> tuple[Path, str]:
    (root / "train" / "dog" / "x.png").symlink_to("../cat/3.png")
    return root / "train" / "cat" / "3.png", f"and {root}/train/dog/x.png are the same file: an image is in one class"


def image_of_both_parts(root: Path) -> tuple[Path, str]:
    (root / "train" / "dog" / "x.png").symlink_to("../../test/dog/2.png")
    return root / "train" / "dog" / "x.png", f"and {root}/test/dog/2.png are the same file: an image is to train on or"


def one_folder_for_both_parts(root: Path) -> tuple[Path, str]:
    shutil.rmtree(root / "test")
    (root / "test").symlink_to("train")
    return root / "train" / "cat" / "0.png", f"and {root}/test/cat/0.png are the same file: an image is to train on or"


def class_without_images(root: Path) -> tuple[Path, str]:
    for path in (root / "test" / "cat").iterdir():
        path.rename(path.with_suffix(".txt"))
    return root / "test", "holds no image of cat: each class needs one at least (.jpg, .jpeg, .png, .bmp, .ppm, .pgm)"


def files_for_classes(root: Path) -> tuple[Path, str]:
    for name in ("cat", "dog"):
        shutil.rmtree(root / "train" / name)
        (root / "train" / name).touch()
    return root / "train", "holds no class folder: give each class one, or name another --data-dir"


def train_is_a_file(root: Path) -> tuple[Path, str]:
    shutil.rmtree(root / "train")
    (root / "train").touch()
    return Path(f"--data-dir {root}"), "must hold train/ and test/ (or val/), each with one subfolder a class"


TREES = {
    "FIFO": fifo,
    "socket": unix_socket,
    "link to a device": link("/dev/zero", IRREGULAR),
    "link to nothing": link("nowhere.png", LOST),
    "link to itself": link("x.png", LOST),
    "link to a link to itself": link_to_a_link,
    "link through a file": link("0.png/x.png", LOST),
    "link to the class": link(".", LINKED, "train/cat/again"),
    "link to all classes": link("..", LINKED, "train/cat/up"),
    "link to the whole folder": link("../..", LINKED, "test/dog/up"),
    "link to the root": link("/", LINKED, "train/dog/root"),
    "link to a folder with an image's name": link("../cat", LINKED),
    "TIFF": other_format("x.tif"),
    "TIFF in capitals": other_format("x.TIFF"),
    "WebP": other_format("x.webp"),
    "class with a line break": class_name(b"c\nt"),
    "class with an escape": class_name(b"c\x1b[31mt"),
    "class that is no UTF-8": class_name(b"c\xfft"),
    "class of a link to all": class_of_a_link_to_all,
    "class twice": class_twice,
    "image of two classes": image_of_two_classes,
    "test image to train on": image_of_both_parts,
    "test on what was trained on": one_folder_for_both_parts,
    "class without images": class_without_images,
    "files for classes": files_for_classes,
    "train is a file": train_is_a_file,
}  # fmt: skip


@pytest.mark.parametrize("fault", TREES.values(), ids=TREES)
def test_a_bad_folder_is_told_when_it_is_opened(root, fault):
    path, said = fault(root)
    problem = refusal(root, read=False)
    assert problem.startswith(f"{path} ")
    assert said in problem


@pytest.mark.parametrize("name", ["", "missing", "x" * 300, "x/" * 5000, "a\0b", "\udcff"])
def test_a_folder_that_is_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^--data-dir (must be given a value, got ''|.* is not a folder): "):
        data.load("imagefolder", name)


def test_a_class_that_cannot_be_listed(root, monkeypatch):
    """As without permission, which the tests may have everywhere."""
    scandir = os.scandir

    def scan(folder):
        if os.fspath(folder).endswith("train/dog"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scan)
    problem = refusal(root, read=False)
    assert problem == f"{root}/train/dog cannot be listed (Permission denied): make it readable, or remove it"


# -- odd, and right


ODD = {
    "grey JPEG": ("x.jpg", saved("JPEG", "L")),
    "CMYK JPEG": ("x.jpg", saved("JPEG", "CMYK")),
    "progressive JPEG": ("x.jpg", saved("JPEG", progressive=True)),
    "JPEG with several pictures": ("x.jpg", saved("MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))])),
    "JPEG as PNG": ("x.png", JPEG),
    "capitals": ("X.JPG", JPEG),
    "PNG of two colours": ("x.png", saved("PNG", "1")),
    "PNG of 4 greys": ("x.png", png(depth=2, colour=0)),
    "PNG of 16 greys": ("x.png", png(depth=4, colour=0)),
    "PNG with a palette": ("x.png", saved("PNG", "P")),
    "PNG with grey and alpha": ("x.png", saved("PNG", "LA")),
    "PNG with a short text": ("x.png", png(before=chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 999)))),
    "BMP of two colours": ("x.bmp", saved("BMP", "1")),
    "BMP with a palette": ("x.bmp", saved("BMP", "P")),
    "PPM": ("x.ppm", saved("PPM")),
    "PPM as text": ("x.ppm", b"P3 32 32 255 " + b"64 " * 3072),
    "PGM of few bits": ("x.pgm", b"P5 32 32 15\n" + b"\4" * 1024),
}


@pytest.mark.parametrize(("name", "content"), ODD.values(), ids=ODD)
def test_an_odd_image_is_read_as_what_it_is(root, name, content):
    (root / "test" / "dog" / name).write_bytes(content)
    found = data.load("imagefolder", root)
    expected = np.asarray(Image.open(BytesIO(content)).convert("RGB")).transpose(2, 0, 1)
    assert found.size("test") == 9
    assert any(np.array_equal(image, expected) for image in found.load("test")[0])


def as_before(root: Path) -> None:
    pass


def beside(root: Path) -> None:
    for name in ("notes.txt", ".DS_Store", "x.gif", "png"):
        (root / "train" / "cat" / name).write_text("no image")
    (root / "train" / "notes.txt").touch()


def loop_of_files(root: Path) -> None:
    for k in range(9):
        (root / "train" / "cat" / f"link{k}.png").symlink_to(f"{k}.png")
        (root / "test" / "dog" / f"link{k}.png").symlink_to(root / "test" / "dog" / "1.png")


def class_elsewhere(root: Path) -> None:
    (root / "train" / "cat").rename(root.parent / "cats")
    (root / "train" / "cat").symlink_to(root.parent / "cats")


def files_elsewhere(root: Path) -> None:
    for path in list((root / "train").rglob("*.png")):
        kept = root.parent / f"{path.parent.name}-{path.stem}"
        path.rename(kept)
        path.symlink_to(kept)


def not_utf8(root: Path) -> None:
    name = os.fsencode(root / "train" / "cat" / "0.png")
    os.rename(name, name.replace(b"0.png", b"0\xff.png"))


@pytest.mark.parametrize("change", [as_before, beside, loop_of_files, class_elsewhere, files_elsewhere, not_utf8])
def test_each_image_counts_once(root, change):
    before = data.load("imagefolder", root)
    pixels = {split: before.load(split)[0] for split in data.SPLITS}
    change(root)
    found = data.load("imagefolder", root)
    assert (found.classes, found.size("test")) == (("cat", "dog"), 8)
    assert sum(found.size(split) for split in data.SPLITS) == 28
    for split in data.SPLITS:
        assert np.array_equal(found.load(split)[0], pixels[split])
        assert np.array_equal(found.labels[split], before.labels[split])


def test_a_folder_is_listed_as_torchvision_lists_it(root):
    """The order decides the splits: folders by their whole path, so that 'a-b' comes before 'a/b'."""
    from torchvision.datasets import ImageFolder

    for name in ("a", "a-b", "a/b", "B", "a/b/c", "a.d"):
        folder = root / "train" / "dog" / name
        folder.mkdir(parents=True)
        for file in ("z.png", "Z.png", "1.png", "10.png", "2.PNG"):
            shutil.copy(root / "train" / "dog" / "0.png", folder / file)
    classes = images.find_classes(root / "train")
    found = [(sample.path, sample.label) for sample in images.find(root / "train", classes)]
    theirs = ImageFolder(root / "train")
    assert (classes, found) == (theirs.classes, theirs.samples)
    assert len(found) == 50
