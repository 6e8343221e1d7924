"""Makes exports, and runs them with the tools that they are for."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from approx_env import export, tap
from approx_env.export import bundle
from approx_env.export.deployment import Deployment, Split, run_split
from approx_env.export.formats import onnx as onnx_format
from approx_env.int8.network import Network
from approx_env.int8.nodes import (
    INPUT,
    Addition,
    AveragePool,
    Concatenation,
    Convolution,
    GlobalAveragePool,
    Linear,
    ScaledAddition,
    Site,
)

STRICT = "-std=c99 -O3 -Wall -Wextra -pedantic -Werror".split()
SANITISED = "-fsanitize=undefined -fno-sanitize-recover=all".split()
PACKAGES = {
    "gcc": "gcc",
    "clang": "clang",
    "iverilog": "iverilog",
    "vvp": "iverilog",
    "yosys": "yosys",
    "nm": "binutils",
    "chromium": "chromium",
}
TMAX = 120


def tool(name: str) -> str:
    """Path of a program; the test fails where there is none, for a test that is skipped proves nothing."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed: apt-get install {PACKAGES[name]} (README lists what the tests want)")
    return found


def run(*command: object, folder: Path | None = None) -> str:
    """What a command prints; it must end well, and say nothing on stderr."""
    done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def codes(network: Network, seed: int = 0, tmax: int = TMAX) -> dict[str, tuple[tuple[int, ...], int]]:
    """Valid codes for each layer, low ones, so that some codes stay exact."""
    generator = np.random.default_rng(seed)
    limits = {name: int(generator.integers(tmax // 3, tmax)) for name in network.layers}
    return {name: (tap.random_codes(limit, generator), limit) for name, limit in limits.items()}


def deployment(
    network: Network, images: np.ndarray, configuration: Mapping | None = None, split: Split | None = None
) -> Deployment:
    labels = np.arange(len(images)) % len(network.classes)
    return Deployment(network, configuration or codes(network), images, labels, split)


def joined() -> Network:
    """Additions of one scale and of two, a concatenation of three, groups, windows' means, and logits of a mean."""
    generator = np.random.default_rng(0)

    def numbers(*shape: int, multiplier: int, logits: bool = False) -> dict:
        weight, bias = generator.integers(-60, 61, shape), generator.integers(0, 5000, shape[0])
        own = {"weight": weight.astype(np.int8), "bias": bias.astype(np.int32), "relu": True, "scale": 1.0}
        return own | {"multiplier": np.full(shape[0], multiplier, np.int32), "logits": logits}

    wide = Convolution("deep", ("two",), stride=1, padding=1, groups=9,
                       **numbers(18, 2, 3, 3, multiplier=200, logits=True) | {"relu": False})  # fmt: skip
    nodes = (
        Convolution("a", (INPUT,), stride=1, padding=1, **numbers(6, 2, 3, 3, multiplier=4000)),
        Site("one", ("a",)),
        Convolution("b", ("one",), stride=1, padding=0, **numbers(6, 6, 1, 1, multiplier=4000)),
        Addition("sum", ("one", "b")),
        Addition("twice", ("sum", "sum")),
        Concatenation("all", ("sum", "b", "twice")),
        Site("two", ("all",)),
        wide,
        ScaledAddition("residual", ("all", "deep"), np.array([2**15, 1], np.int32), 1.0),
        AveragePool("windows", ("residual",), 2, 1),
        GlobalAveragePool("mean", ("windows",)),
        Linear("last", ("mean",), **numbers(3, 18, multiplier=77, logits=True)),
    )
    return Network("joined", ("0", "1", "2"), (2, 5, 4), 1.0, 9, nodes, ())


def joined_deployment() -> Deployment:
    """It on images of all pixels."""
    images = np.random.default_rng(1).integers(0, 256, (12, 2, 5, 4)).astype(np.uint8)
    made = deployment(joined(), images)
    assert (made.golden["twice"] == 255).any() and (made.golden["mean"] > 0).any()
    assert (made.golden["deep"] < 0).any() and set(made.golden["residual"].flat) > {0, 255}
    return made


def written(format: str, made: Deployment, folder: Path) -> Path:
    """The files of a format alone."""
    folder.mkdir(parents=True)
    export.find(format).write(made, folder)
    return folder


def compiled(folder: Path, *more: str, compiler: str = "gcc", sanitised: bool = True) -> Path:
    """The program of a C export, built by a compiler that objects to nothing."""
    program = folder.parent / f"{folder.name}-{compiler}{''.join(more)}{sanitised}"
    more = (*more, *SANITISED) if sanitised else more
    assert run(tool(compiler), *STRICT, *more, folder / "network.c", folder / "main.c", "-o", program, "-lm") == ""
    return program


def check_trace(program: Path, folder: Path) -> str:
    """The program gives every code and logit of the golden images; returns what it prints."""
    found = program.with_suffix(".trace")
    told = run(program, folder / "golden.images", folder / "golden.labels", found)
    assert found.read_bytes() == (folder / "golden.trace").read_bytes()
    return told


def counts(told: str) -> dict[str, list[int]]:
    """Products by kind of each layer, as a program built with NETWORK_SHARED prints them."""
    lines = [line.split(": ") for line in told.splitlines() if ": zero " in line]
    return {name: [int(number) for number in numbers.split()[1::2]] for name, numbers in lines}


def check_accuracy(told: str, split: Split) -> None:
    """The program has found our engine's accuracy and logits."""
    right = round(split.accuracy * len(split.labels))
    lines = told.splitlines()
    assert lines[:2] == [
        f"accuracy {split.accuracy:.16g}".replace("accuracy 1.0", "accuracy 1") + f" ({right} of {len(split.labels)})",
        f"logits crc32 {bundle.crc32(split.logits)}",
    ]


def split_of(network: Network, configuration: Mapping, images: np.ndarray, labels: Sequence[int]) -> Split:
    return run_split("test", network, configuration, images, np.asarray(labels))


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def observed(made: Deployment) -> onnx.ModelProto:
    """The ONNX model with every tensor of the network as an output, under its name in the network."""
    model = onnx_format.convert(made)
    kinds = {np.dtype(np.uint8): onnx.TensorProto.UINT8, np.dtype(np.int64): onnx.TensorProto.INT64}
    del model.graph.output[:]
    for name, array in made.golden.items():
        info = onnx.helper.make_tensor_value_info(f"x{made.files[name]}", kinds[array.dtype], ["n", *array.shape[1:]])
        model.graph.output.append(info)
    onnx.checker.check_model(model, full_check=True)
    return model


def check_onnx(made: Deployment) -> None:
    """ONNX Runtime gives the reference's integers at every node."""
    found = session(observed(made)).run(None, {INPUT: made.images})
    for (name, expected), array in zip(made.golden.items(), found, strict=True):
        assert array.dtype == expected.dtype and np.array_equal(array, expected), name
