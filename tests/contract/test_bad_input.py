"""Bad input to the commands: one clear line, status 2, no traceback, and nothing half-written."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import ray
import torchvision
from PIL import Image

from approx_env.teachers import catalogue, store
from approx_env.teachers.training import program
from cluster import check
from search import architecture, run, sensitivity
from search.results import report

TEACHER = store.path_of("squeezenet", "digits")
TWO, TEN = ("cat", "dog"), tuple("0123456789")


def draw_folder(root: Path, classes: Iterable[str] = TWO, test: str = "test") -> Path:
    """An image folder of 16 training and 2 test images a class."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 16), (test, 2)):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{k}.png")
    return root


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Each takes a free path, puts bad data there, and says what the message must name.


def missing(root: Path) -> list[str]:
    return ["--data-dir", str(root)]


def empty(root: Path) -> list[str]:
    root.mkdir()
    return ["--data-dir", str(root), "train/"]


def without_images(root: Path) -> list[str]:
    for part in ("train", "test"):
        (root / part).mkdir(parents=True)
    return ["--data-dir", str(root)]


def without_test(root: Path) -> list[str]:
    shutil.rmtree(draw_folder(root) / "test")
    return ["--data-dir", str(root), "test/"]


def class_without_images(root: Path) -> list[str]:
    for path in (draw_folder(root) / "train" / "dog").iterdir():
        path.unlink()
    return ["--data-dir", str(root), "dog"]


def class_missing_in_test(root: Path) -> list[str]:
    shutil.rmtree(draw_folder(root) / "test" / "dog")
    return [str(root / "train"), "dog"]


def class_missing_in_train(root: Path) -> list[str]:
    shutil.rmtree(draw_folder(root, test="val") / "train" / "cat")
    return [str(root / "val"), "cat"]


def one_class(root: Path) -> list[str]:
    draw_folder(root, ["cat"])
    return [str(root / "train"), "cat"]


def too_few_images(root: Path) -> list[str]:
    for path in (draw_folder(root) / "train").rglob("*.png"):
        if int(path.stem) >= 3:
            path.unlink()
    return [str(root / "train"), "6 images"]


FOLDER_FAULTS = [
    missing, empty, without_images, without_test, class_without_images, class_missing_in_test, class_missing_in_train,
    one_class, too_few_images,
]  # fmt: skip

IMAGE_FAULTS = {
    "no image": lambda path: path.write_bytes(b"this is not an image"),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": truncate,
    "another size": lambda path: Image.new("RGB", (64, 48)).save(path),
}


@pytest.fixture(params=["train", "test"])
def images_to_break(request, tmp_path) -> list[Path]:
    """All training images of a folder of ten classes, whichever splits they end in, or one of its test images."""
    files = sorted((draw_folder(tmp_path / "images", TEN) / request.param).rglob("*.png"))
    return files if request.param == "train" else files[7:8]


@pytest.fixture
def results(tmp_path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def search(results, capsys, monkeypatch):
    """Runs the search command in this process, to its end in bad input, and gives its complaints."""
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray is started in spite of bad input"))

    def call(*arguments: str, folder: Path = results) -> list[str]:
        status = run.main([*arguments, "--results", str(folder), "--run-name", "r"])
        return complaints(status, capsys)

    yield call
    assert not ray.is_initialized()
    assert not results.exists()


@pytest.fixture
def train(tmp_path, capsys):
    """The same for the training command."""
    output = tmp_path / "teachers"

    def call(*arguments: str, folder: Path = output) -> list[str]:
        try:
            status = program.main([*arguments, "--epochs", "1", "--output", str(folder)])
        except SystemExit as exit_:
            status = exit_.code
        return complaints(status, capsys)

    yield call
    assert not output.exists() or not any(output.iterdir())


def complaints(status: int, capsys) -> list[str]:
    printed = capsys.readouterr()
    assert status == 2
    assert "Traceback" not in printed.out + printed.err
    lines = [line for line in printed.err.splitlines() if "error: " in line]
    return [line.split("error: ")[1] for line in lines]


@pytest.fixture
def no_download(monkeypatch):
    def fail(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fail)


# -- python -m search.run


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--layers resnet18", ["--model", "squeezenet", "alexnet", "resnet18"]),
        ("--dataset mnist", ["--dataset", "digits", "cifar10", "imagefolder", "mnist"]),
        ("--dataset imagefolder", ["--dataset imagefolder", "--data-dir"]),
        ("--search-images 257", ["--search-images 257", "search split", "256"]),
        ("--rungs 64,257", ["--rungs 64,257", "search split", "256"]),
        ("--calib-batches 100 --calib-batch-size 10", ["--calib-batches 100", "--calib-batch-size 10", "1000", "512"]),
        ("--num-env-runners 4096", ["--num-env-runners 4096"]),
        ("--episodes ten", ["--episodes", "ten"]),
        ("--episodes -5", ["--episodes", "-5"]),
        ("--algorithm random --lr 0.1", ["--lr", "--algorithm random"]),
        ("--algorithm random --init-from p.safetensors", ["--init-from", "--algorithm random"]),
        ("--algorithm quintile --init-from p.safetensors", ["--init-from", "--algorithm quintile"]),
        ("--init-from nothing", ["--init-from", "nothing/best.json"]),
        ("--init-from nothing.safetensors", ["nothing.safetensors", "search.pretrain"]),
        ("--speed 9", ["--speed"]),
    ],
)
def test_search_names_the_bad_option(search, arguments, names):
    (complaint,) = search(*arguments.split())
    assert all(name in complaint for name in names)


def test_search_reports_all_bad_options_at_once(search):
    found = search(*"--episodes ten --lr -1 --kd-weight nan --seeds 1,1 --dataset mnist --data-dir x".split())
    assert sorted(complaint.split()[0] for complaint in found) == [
        "--dataset", "--episodes", "--kd-weight", "--lr", "--seeds"
    ]  # fmt: skip


def test_search_reports_all_that_does_not_fit_at_once(search):
    """Split sizes, the teacher's model and the results folder are looked at together."""
    found = search("--layers", "alexnet", "--teacher", str(TEACHER), "--search-images", "300", "--calib-batches", "17")
    assert len(found) == 3
    assert all(any(name in text for text in found) for name in ("--model", "--search-images", "--calib-batches"))


@pytest.mark.parametrize("fault", FOLDER_FAULTS, ids=lambda fault: fault.__name__)
def test_search_names_what_is_wrong_with_a_data_folder(search, tmp_path, fault):
    names = fault(tmp_path / "images")
    (complaint,) = search("--dataset", "imagefolder", "--data-dir", str(tmp_path / "images"))
    assert all(name in complaint for name in names)


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_search_names_a_broken_image(search, tmp_path, images_to_break, fault):
    for path in images_to_break:
        IMAGE_FAULTS[fault](path)
    arguments = ["--calib-batches", "1", "--calib-batch-size", "8", "--search-images", "4", "--teacher", str(TEACHER)]
    (complaint,) = search("--dataset", "imagefolder", "--data-dir", str(tmp_path / "images"), *arguments)
    assert any(str(path) in complaint for path in images_to_break)


def test_search_says_that_an_own_dataset_needs_an_own_teacher(search, tmp_path):
    (complaint,) = search("--dataset", "imagefolder", "--data-dir", str(draw_folder(tmp_path / "images")))
    assert "--teacher" in complaint and "approx_env.training" in complaint


def test_search_refuses_a_teacher_of_another_number_of_classes(search, tmp_path):
    folder = draw_folder(tmp_path / "images")
    arguments = ["--calib-batches", "1", "--calib-batch-size", "8", "--search-images", "4", "--teacher", str(TEACHER)]
    (complaint,) = search("--dataset", "imagefolder", "--data-dir", str(folder), *arguments)
    assert all(words in complaint for words in (str(TEACHER), "10 classes", "has 2", "--teacher"))


def test_search_refuses_a_teacher_of_another_model(search):
    (complaint,) = search("--layers", "alexnet", "--teacher", str(TEACHER))
    assert all(words in complaint for words in (str(TEACHER), "squeezenet", "--model", "alexnet"))


@pytest.fixture
def copy(tmp_path) -> Path:
    """A teacher that may be damaged."""
    for path in (TEACHER, TEACHER.with_suffix(".safetensors")):
        shutil.copy(path, tmp_path)
    return tmp_path / TEACHER.name


def test_search_names_a_missing_teacher(search, tmp_path):
    (complaint,) = search("--teacher", str(tmp_path / "none.int8.json"))
    assert "--teacher" in complaint and "none.int8.json" in complaint


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_search_names_a_truncated_teacher(search, copy, suffix):
    truncate(copy.with_suffix(suffix))
    (complaint,) = search("--teacher", str(copy))
    assert str(copy.with_suffix(suffix)) in complaint


def test_search_names_a_teacher_without_its_arrays(search, copy):
    copy.with_suffix(".safetensors").unlink()
    (complaint,) = search("--teacher", str(copy))
    assert str(copy.with_suffix(".safetensors")) in complaint


@pytest.mark.parametrize("content", ["[]", "{}", "null", json.dumps({"format": 1})])
def test_search_names_a_json_that_is_no_teacher(search, copy, content):
    copy.write_text(content)
    (complaint,) = search("--teacher", str(copy))
    assert copy.name in complaint


def test_search_names_a_binary_file_that_is_no_teacher(search, tmp_path):
    (tmp_path / "weights.pth").write_bytes(bytes(range(256)))
    (complaint,) = search("--teacher", str(tmp_path / "weights.pth"))
    assert "--teacher" in complaint and "weights.pth" in complaint


def test_search_leaves_an_existing_run_as_it_is(search, tmp_path):
    kept = tmp_path / "old" / "r" / "best.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    (complaint,) = search(folder=tmp_path / "old")
    assert str(kept.parent) in complaint and "--run-name" in complaint
    assert [path for path in (tmp_path / "old").rglob("*") if path.is_file()] == [kept]
    assert kept.read_text() == "mine"


def test_search_names_results_that_cannot_be_written(search, tmp_path):
    (tmp_path / "file").write_text("mine")
    (complaint,) = search(folder=tmp_path / "file" / "results")
    assert "--results" in complaint and str(tmp_path / "file") in complaint
    assert (tmp_path / "file").read_text() == "mine"


def test_search_explains_a_failed_download(search, tmp_path, no_download):
    (complaint,) = search("--dataset", "cifar10", "--data-dir", str(tmp_path))
    assert all(words in complaint for words in ("CIFAR-10", str(tmp_path), "--data-dir", "--dataset imagefolder"))


def test_the_search_command_itself_ends_with_status_2_and_clear_lines(tmp_path):
    arguments = ["--layers", "resnet", "--top", "0", "--results", str(tmp_path / "results")]
    ended = subprocess.run([sys.executable, "-m", "search.run", *arguments], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert [line.split(" must ")[0] for line in ended.stderr.splitlines()] == ["error: --model", "error: --top"]
    assert not (tmp_path / "results").exists()


# -- python -m approx_env.training


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--model resnet18", ["--model", "squeezenet", "alexnet", "resnet18"]),
        ("--dataset mnist", ["--dataset", "digits", "cifar10", "imagefolder", "mnist"]),
        ("--dataset imagefolder", ["--dataset imagefolder", "--data-dir"]),
        ("--batch-size 0", ["--batch-size", "0"]),
        ("--batch-size many", ["--batch-size", "many"]),
        ("--lr -1", ["--lr", "-1"]),
        ("--lr nan", ["--lr", "nan"]),
        ("--seed -1", ["--seed", "-1"]),
        ("--speed 9", ["--speed"]),
        ("--sr 0", ["--sr", "above 0 and at most 1", "got 0"]),
        ("--sr 1.5", ["--sr", "above 0 and at most 1", "got 1.5"]),
        ("--model alexnet --sr 0.5", ["--sr", "only SqueezeNets", "alexnet"]),
        ("--model vgg16 --small-epochs 1", ["--small-epochs", "vgg16"]),
    ],
)
def test_training_names_the_bad_option(train, arguments, names):
    (complaint,) = train(*arguments.split())
    assert all(name in complaint for name in names)


def test_training_reports_all_negative_options_at_once(train):
    found = train(*"--model resnet --batch-size -1 --lr 0 --seed -1".split())
    assert len(found) == 4


@pytest.mark.parametrize("fault", FOLDER_FAULTS, ids=lambda fault: fault.__name__)
def test_training_names_what_is_wrong_with_a_data_folder(train, tmp_path, fault):
    names = fault(tmp_path / "images")
    (complaint,) = train("--dataset", "imagefolder", "--data-dir", str(tmp_path / "images"))
    assert all(name in complaint for name in names)


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_training_names_a_broken_image(train, tmp_path, images_to_break, fault):
    for path in images_to_break:
        IMAGE_FAULTS[fault](path)
    (complaint,) = train("--dataset", "imagefolder", "--data-dir", str(tmp_path / "images"))
    assert any(str(path) in complaint for path in images_to_break)


def test_training_refuses_images_too_small_for_a_large_network(train, tmp_path):
    folder = draw_folder(tmp_path / "images")
    (complaint,) = train("--model", "squeezenet_v1_1", "--dataset", "imagefolder", "--data-dir", str(folder))
    assert all(words in complaint for words in (str(folder), "32x32", "224x224"))


def test_training_names_an_output_that_cannot_be_written(train, tmp_path):
    (tmp_path / "file").write_text("mine")
    (complaint,) = train(folder=tmp_path / "file" / "teachers")
    assert "--output" in complaint and str(tmp_path / "file") in complaint
    assert (tmp_path / "file").read_text() == "mine"


def test_training_explains_a_failed_download(train, tmp_path, no_download):
    (complaint,) = train("--dataset", "cifar10", "--data-dir", str(tmp_path))
    assert all(words in complaint for words in ("CIFAR-10", str(tmp_path), "--data-dir", "--dataset imagefolder"))


# -- one line of every kind, for every command

LONG = str(2**63)
NO_TEXT = "\udcff\udcfe"  # what bytes become that are no UTF-8
TEXTS = ("--data-dir", "--teacher", "--sites", "--address", "--results", "--resume", "--run-name", "--model",
         "--dataset", "--init-from")  # fmt: skip
NUMBERS = ("--episodes", "--search-images", "--calib-batches", "--calib-batch-size", "--iteration-episodes", "--top",
           "--num-env-runners", "--envs-per-runner")  # fmt: skip
SEARCH = [
    # What goes for every option of a kind.
    *(((name, ""), [name]) for name in (*TEXTS, *NUMBERS, "--device", "--seeds", "--rungs", "--engine")),
    *(
        ((name, NO_TEXT), [name])
        for name in ("--data-dir", "--teacher", "--results", "--resume", "--run-name", "--init-from")
    ),
    *(((name, LONG), [name]) for name in NUMBERS),
    *(((name, value), [name]) for name in NUMBERS for value in ("-1", "1.5", "1e3", "nan", "x")),
    # Where results go.
    (("--results", "s3://"), ["--results", "s3://bucket/path"]),
    (("--results", "s3:///runs"), ["--results", "s3://bucket/path"]),
    (("--results", "s3://?scheme=http"), ["--results", "s3://bucket/path"]),
    (("--results", "gs://"), ["--results", "gs://"]),
    (("--results", "gs://bucket/runs"), ["--results", "gs://bucket/runs"]),
    (("--results", "gcs://bucket/runs"), ["--results", "gcs://"]),
    (("--results", "hdfs://host/runs"), ["--results", "hdfs://"]),
    (("--results", "http://host/runs"), ["--results", "http://"]),
    (("--results", "abfs://host/runs"), ["--results", "abfs://"]),
    (("--results", "file://host/runs"), ["--results", "file://"]),
    (("--results", "://"), ["--results", "://"]),
    # Devices.
    *(
        (("--engine", "portable", "--device", device), ["--device", device])
        for device in ("meta", "cpu:0", "gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA", "vulkan", "cuda:1000")
    ),
    (("--device", "cuda"), ["--engine portable"]),
    # Sites.
    *((("--sites", sites), ["--sites", "standard or all"]) for sites in ("none", "ALL", "standard,all", "9")),
    *((("--sensitivity", value), ["--sensitivity"]) for value in ("", "yes", "1")),
    (("--resume", "none", "--sites", "all"), ["--sites"]),
    (("--resume", "none", "--sensitivity"), ["--sensitivity"]),
    (("--init-from", "none"), ["--init-from", "none/best.json"]),
    (("--init-from", "README.md"), ["--init-from"]),
    (("--init-from", "s3://"), ["s3://"]),
    (("--resume", "none", "--init-from", "none"), ["--init-from"]),
    # Clusters.
    *((("--address", address), ["--address", address]) for address in ("here", "host", "host:", ":1", "host:123456")),
    (("--address", "127.0.0.1:1"), ["--address 127.0.0.1:1", "no Ray cluster"]),
    # Names.
    *((("--run-name", name), ["--run-name"]) for name in (".", "..", "a/b", "/", ".x", "x" * 101)),
    *((("--resume", name), ["--resume"]) for name in (".", "..", "a/b", "/", ".x", "x" * 101, "none")),
    # Lists and other numbers.
    *((("--seeds", seeds), ["--seeds"]) for seeds in ("1,1", ",", "1,", "-1", LONG, "2147483648", "0..3", "1;2")),
    *((("--rungs", rungs), ["--rungs"]) for rungs in ("64", "64,64", "256,64", "0,64", "64,", f"64,{LONG}")),
    *((("--lr", lr), ["--lr"]) for lr in ("0", "-1", "inf", "nan", "2", "1,5")),
    *((("--tmax-percentile", value), ["--tmax-percentile"]) for value in ("0", "101", "-inf", "90%")),
    # The command line itself.
    (("--batch-size", "8"), ["--batch-size"]),
    (("--layer", "squeezenet"), ["--layer"]),
    (("squeezenet",), ["squeezenet"]),
    (("--model",), ["--model"]),
    (("--layers",), ["--model"]),
    (("--", "--model"), ["--model"]),
]
OTHERS = {
    report: [
        ([], ["search.report"]),
        ([""], ["no place for results"]),
        (["none"], ["none"]),
        (["/dev/null"], ["/dev/null"]),
        (["s3://"], ["s3://"]),
        (["ftp://host/x"], ["ftp://host/x"]),
        ([NO_TEXT], ["no place for results"]),
        (["--speed"], ["--speed"]),
        (["x" * 5000], ["no finished run"]),
        (["a\0b"], ["no place for results"]),
    ],
    architecture: [
        (["--sr", ""], ["--sr"]),
        (["--sr", "0"], ["--sr"]),
        (["--sr", "0.5,0.5"], ["--sr"]),
        (["--pct3x3", "1"], ["--pct3x3"]),
        (["--model", "alexnet"], ["--model"]),
        (["--model", ""], ["--model"]),
        (["--epochs", "0"], ["--epochs"]),
        (["--batch-size", "1"], ["--batch-size"]),
        (["--seed", LONG], ["--seed"]),
        (["--run-name", "a/b"], ["--run-name"]),
        (["--run-name", ""], ["--run-name"]),
        (["--results", ""], ["--results"]),
        (["--address", "here"], ["--address"]),
        (["--layers", "squeezenet"], ["--layers"]),
    ],
    sensitivity: [
        (["--sites", "none"], ["--sites", "standard or all"]),
        (["--model", "resnet"], ["--model"]),
        (["--layers", ""], ["--model"]),
        (["--teacher", "none.json"], ["--teacher", "none.json"]),
        (["--teacher", NO_TEXT], ["--teacher"]),
        (["--dataset", "imagefolder"], ["--data-dir"]),
        (["--data-dir", "x"], ["--data-dir"]),
        (["--search-images", "0"], ["--search-images"]),
        (["--search-images", "257"], ["--search-images 257", "256"]),
        (["--calib-batches", "17"], ["--calib-batches 17"]),
        (["--device", "cuda"], ["--engine portable"]),
        (["--results", "gs://bucket"], ["--results"]),
        (["--results", "/dev/null"], ["--results", "/dev/null"]),
        (["--run-name", "a/b"], ["--run-name"]),
        (["--episodes", "3"], ["--episodes"]),
        (["--resume", "r"], ["--resume"]),
        (["--sensitivity"], ["--sensitivity"]),
    ],
    program: [
        (["--output", ""], ["--output"]),
        (["--initial", ""], ["--initial"]),
        (["--model", ""], ["--model"]),
        (["--data-dir", "", "--dataset", "imagefolder"], ["--data-dir"]),
        (["--seed", LONG], ["--seed"]),
        (["--epochs", LONG], ["--epochs"]),
        (["--output", NO_TEXT], ["--output"]),
    ],
    catalogue: [([], ["shipped"]), (["none"], ["none"]), (["convert"], ["convert"])],
    check: [(["none.yaml"], ["none.yaml"]), (["/dev/null"], ["/dev/null"]), (["."], ["regular file"])],
}
TABLE = [
    pytest.param(module, argv, names, id=f"{module.__name__}-{' '.join(argv)[:60]}".encode("ascii", "replace").decode())
    for module, cases in {run: SEARCH, **OTHERS}.items()
    for argv, names in cases
]


@pytest.mark.parametrize(("module", "argv", "names"), TABLE)
def test_a_bad_command_line_is_named_in_one_line(module, argv, names, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray is started in spite of bad input"))
    monkeypatch.setattr(program, "train", lambda *args, **kwargs: pytest.fail("a training is begun"))
    (complaint,) = complaints(module.main(list(argv)), capsys)
    assert all(name in complaint for name in names)
    assert len(complaint) < 2000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", [run, architecture])
def test_a_tmpdir_too_long_for_sockets_is_named(module, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    (complaint,) = complaints(module.main([]), capsys)
    assert "TMPDIR must be at most" in complaint and "x" * 100 in complaint


def test_report_explains_itself(capsys):
    assert report.main(["--help"]) == 0
    assert "search.report" in capsys.readouterr().out
