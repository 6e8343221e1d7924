"""The training command's options: bad ones end it with status 2, a clear line each, before anything is written."""

import shutil
from dataclasses import fields

import pytest
import torch

from approx_env import options
from approx_env.teachers import store
from approx_env.teachers.training import loop, program
from approx_env.teachers.training.recipe import Recipe

LONG = "9" * 30
ALL = [options.flag(entry.name) for entry in fields(program.Command)]


def told_by(capsys, *argv: str) -> list[str]:
    assert program.main(list(argv)) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    assert captured.out == ""
    return [line.removeprefix("error: ") for line in lines]


@pytest.fixture
def nothing_written(monkeypatch, tmp_path):
    """Runs in an empty folder that must stay empty."""
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


BAD = [
    (
        "--epochs 0",
        "--epochs 0 trains nothing, and squeezenet has fresh weights: name others by --weights or --initial",
    ),
    ("--epochs x", "--epochs must be a whole number, got 'x'"),
    ("--small-epochs -1", "--small-epochs must be at least 0, got -1"),
    ("--qat-epochs 0.5", "--qat-epochs must be a whole number, got '0.5'"),
    ("--batch-size 1", "--batch-size must be at least 2, got 1"),
    ("--optimizer adam", "--optimizer must be muon or sgd, got 'adam'"),
    ("--lr 0", "--lr must be above 0 and at most 10, got 0"),
    ("--lr -1", "--lr must be above 0 and at most 10, got -1"),
    ("--lr nan", "--lr must be above 0 and at most 10, got nan"),
    ("--head-lr 0", "--head-lr must be above 0 and at most 10, got 0"),
    ("--label-smoothing 1", "--label-smoothing must be at least 0 and below 1, got 1"),
    ("--dropout 1", "--dropout must be at least 0 and below 1, got 1"),
    ("--cutout -1", "--cutout must be at least 0 and at most 1000, got -1"),
    ("--batch-norm yes", "--batch-norm must be on or off, got 'yes'"),
    ("--sr 0", "--sr must be above 0 and at most 1, got 0"),
    ("--sr 1.5", "--sr must be above 0 and at most 1, got 1.5"),
    ("--sr half", "--sr must be a number, got 'half'"),
    ("--pct3x3 1", "--pct3x3 must be above 0 and below 1, got 1"),
    ("--pct3x3 0", "--pct3x3 must be above 0 and below 1, got 0"),
    ("--precision int8", "--precision must be auto, float32 or bf16, got 'int8'"),
    ("--seed -1", "--seed must be at least 0, got -1"),
    ("--dataset mnist", "--dataset must be digits, cifar10 or imagefolder, got 'mnist'"),
    ("--device tpu", "--device must be auto, cpu or cuda, got 'tpu'"),
    ("--epochs -3", "--epochs must be at least 0, got -3"),
    ("--epochs 1e3", "--epochs must be a whole number, got '1e3'"),
    (f"--epochs {LONG}", f"--epochs must be a whole number of at most 63 bits, got {LONG}"),
    (f"--batch-size {2**63}", f"--batch-size must be a whole number of at most 63 bits, got {2**63}"),
    (f"--seed {2**63}", f"--seed must be a whole number of at most 63 bits, got {2**63}"),
    (f"--seed -{LONG}", f"--seed must be a whole number of at most 63 bits, got -{LONG}"),
    ("--seed 0x10", "--seed must be a whole number, got '0x10'"),
    ("--seed 1.0", "--seed must be a whole number, got '1.0'"),
    ("--optimizer Muon", "--optimizer must be muon or sgd, got 'Muon'"),
    ("--lr inf", "--lr must be above 0 and at most 10, got inf"),
    ("--lr 10.5", "--lr must be above 0 and at most 10, got 10.5"),
    ("--lr 1e-400", "--lr must be above 0 and at most 10, got 1e-400"),
    ("--lr 0,1", "--lr must be a number, got '0,1'"),
    ("--head-lr nan", "--head-lr must be above 0 and at most 10, got nan"),
    ("--head-lr 11", "--head-lr must be above 0 and at most 10, got 11"),
    ("--label-smoothing -0.1", "--label-smoothing must be at least 0 and below 1, got -0.1"),
    ("--label-smoothing nan", "--label-smoothing must be at least 0 and below 1, got nan"),
    ("--dropout -1", "--dropout must be at least 0 and below 1, got -1"),
    ("--dropout 50%", "--dropout must be a number, got '50%'"),
    ("--cutout 1001", "--cutout must be at least 0 and at most 1000, got 1001"),
    ("--cutout 8.5", "--cutout must be a whole number, got '8.5'"),
    ("--cutmix -0.1", "--cutmix must be at least 0 and at most 1, got -0.1"),
    ("--cutmix 1.1", "--cutmix must be at least 0 and at most 1, got 1.1"),
    ("--cutmix nan", "--cutmix must be at least 0 and at most 1, got nan"),
    ("--cutmix on", "--cutmix must be a number, got 'on'"),
    ("--ema -1", "--ema must be at least 0 and at most 1000, got -1"),
    ("--ema 1001", "--ema must be at least 0 and at most 1000, got 1001"),
    ("--ema inf", "--ema must be at least 0 and at most 1000, got inf"),
    ("--ema on", "--ema must be a number, got 'on'"),
    ("--batch-norm On", "--batch-norm must be on or off, got 'On'"),
    ("--batch-norm 1", "--batch-norm must be on or off, got '1'"),
    ("--precision bf32", "--precision must be auto, float32 or bf16, got 'bf32'"),
    ("--device cuda:0", "--device must be auto, cpu or cuda, got 'cuda:0'"),
    ("--device meta", "--device must be auto, cpu or cuda, got 'meta'"),
    ("--dataset CIFAR10", "--dataset must be digits, cifar10 or imagefolder, got 'CIFAR10'"),
    ("--epoch 3", "unrecognized arguments: --epoch 3 (python -m approx_env.training --help explains the options)"),
    ("digits", "unrecognized arguments: digits (python -m approx_env.training --help explains the options)"),
    (
        "--seed",
        "argument --seed: expected one argument (python -m approx_env.training --help explains the options)",
    ),
]


@pytest.mark.parametrize(("argv", "said"), BAD)
def test_bad_value_ends_with_status_2(capsys, nothing_written, argv, said):
    assert told_by(capsys, *argv.split()) == [said]


@pytest.mark.parametrize("flag", ALL)
@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
def test_an_empty_value_is_never_the_default(capsys, nothing_written, flag, blank):
    said = f"{flag} must be given a value, got {blank!r}: leave it out where the default will do"
    assert told_by(capsys, flag, blank) == told_by(capsys, f"{flag}={blank}") == [said]


@pytest.mark.parametrize("flag", ALL)
def test_bytes_that_are_no_utf8(capsys, nothing_written, flag):
    """Python hands them on as surrogates."""
    value = b"a\xffb".decode(errors="surrogateescape")
    assert told_by(capsys, flag, value) == [f"{flag} must be UTF-8 text, got 'a\\udcffb'"]


@pytest.mark.parametrize("seed", [0, 2**31, 2**47, 2**63 - 1])
def test_any_seed_of_63_bits_will_do(seed):
    """Of the weights, and of each epoch."""
    torch.manual_seed(seed)
    seeds = [loop._seed(Recipe(seed=seed), epoch) for epoch in (0, 1, 2**40)]
    assert len(set(seeds)) == 3
    for each in seeds:
        torch.Generator().manual_seed(each)


def test_the_seeds_of_epochs_are_those_of_old():
    assert loop._seed(Recipe(seed=3), 7) == 300_016


INITIAL = {
    "nowhere": None,
    "a folder": lambda path: path.mkdir(),
    "empty": lambda path: path.write_text(""),
    "no JSON": lambda path: path.write_text("{"),
    "no UTF-8": lambda path: path.write_bytes(b"\xff"),
    "no teacher": lambda path: path.write_text("{}"),
    "no weights": lambda path: shutil.copy(store.path_of("squeezenet", "digits"), path),
}


@pytest.mark.parametrize("make", INITIAL.values(), ids=INITIAL)
def test_a_teacher_to_begin_from_that_is_none(capsys, tmp_path, make):
    path, output = tmp_path / "a.float.json", tmp_path / "output"
    if make:
        make(path)
    (problem,) = told_by(capsys, "--initial", str(path), "--output", str(output))
    assert str(path) in problem
    assert not output.exists()


def test_an_int8_teacher_to_begin_from(capsys, nothing_written):
    path = store.path_of("squeezenet", "digits")
    (problem,) = told_by(capsys, "--initial", str(path))
    assert problem == f"{path} is not a float teacher: name a .float.json that training wrote"


@pytest.mark.parametrize("output", ["file", "file/below", "x" * 300, "/proc", "/proc/nowhere", "a\0b"])
def test_an_output_that_cannot_be_written(capsys, tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (problem,) = told_by(capsys, "--output", output)
    assert problem.startswith(f"--output {output} cannot be written (")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_unknown_model_ends_with_status_2(capsys, nothing_written):
    (problem,) = told_by(capsys, "--model", "vgg99")
    assert problem.startswith("--model must be squeezenet, ") and problem.endswith(", got 'vgg99'")


def test_all_bad_values_are_reported_at_once(capsys, nothing_written):
    argv = "--model vgg99 --epochs -1 --lr -1 --sr 1.5 --pct3x3 1 --seed x --data-dir here"
    assert [problem.split(" must ")[0] for problem in told_by(capsys, *argv.split())] == [
        "--epochs",
        "--lr",
        "--sr",
        "--pct3x3",
        "--seed",
        "--model",
        "--data-dir is for cifar10 and imagefolder; digits is bundled: leave it out",
    ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--small-epochs 13", "--small-epochs must be at most --epochs, got 13 of 12"),
        ("--epochs 3 --small-epochs 4", "--small-epochs must be at most --epochs, got 4 of 3"),
        ("--model alexnet --small-epochs 1", "--small-epochs: alexnet reads one image size only, leave it out"),
        ("--model vgg16 --small-epochs 1", "--small-epochs: vgg16 reads one image size only, leave it out"),
        (
            "--dataset imagefolder",
            "--dataset imagefolder needs --data-dir, a folder with train/ and test/ (or val/)",
        ),
    ],
)
def test_contradiction_ends_with_status_2(capsys, nothing_written, argv, said):
    assert told_by(capsys, *argv.split()) == [said]


@pytest.mark.parametrize("flag", ["--sr", "--pct3x3"])
@pytest.mark.parametrize("model", ["alexnet", "vgg16"])
def test_metaparameters_are_for_squeezenets(capsys, nothing_written, flag, model):
    (problem,) = told_by(capsys, "--model", model, flag, "0.5")
    assert f"only SqueezeNets have them, and {model} is none: leave them out" in problem
    assert flag in problem


def test_all_contradictions_are_reported_at_once(capsys, nothing_written):
    argv = "--model alexnet --sr 0.5 --epochs 2 --small-epochs 3 --data-dir here"
    found = told_by(capsys, *argv.split())
    assert len(found) == 4
    for problem, words in zip(found, ("--data-dir is for", "only SqueezeNets", "one image size", "got 3"), strict=True):
        assert words in problem


def test_cuda_without_a_gpu(capsys, nothing_written, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = "--device cuda: torch sees no GPU here, use --device cpu"
    assert told_by(capsys, "--device", "cuda") == [said]


def test_cuda_without_a_gpu_is_reported_with_the_rest(capsys, nothing_written, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = told_by(capsys, "--device", "cuda", "--epochs", "-1")
    assert [problem.split()[0] for problem in found] == ["--epochs", "--device"]
