"""What docs/own-network.md says works, from a network's file to hardware; and what a person does wrong is told."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from approx_env.teachers import models, store
from tests.e2e.test_export import ROOT, shell

DOCUMENT = (ROOT / "docs" / "own-network.md").read_text()
LAYERS = ("features", "features_2", "classifier")


def block(name: str) -> str:
    """What stands below a mark in the document, with this Python."""
    (text,) = re.findall(rf"<!-- {re.escape(name)} -->\n```\n(.*?)```", DOCUMENT, re.DOTALL)
    return text.replace(".venv/bin/python", sys.executable)


def as_onnx(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Writes the document's network with these weights: batch norm in nodes of its own, a Softmax at the end."""
    nodes, source = [], "images"
    for place, stride in ((0, 2), (3, 1), (7, 1)):
        name = f"conv{place}"
        parts = " ".join(f"features.{place + 1}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
        weights = [f"features.{place}.weight", f"features.{place}.bias"]
        nodes += [
            helper.make_node("Conv", [source, *weights], [f"{name}_c"], name, strides=[stride] * 2, pads=[1] * 4),
            helper.make_node("BatchNormalization", [f"{name}_c", *parts.split()], [f"{name}_b"]),
            helper.make_node("Relu", [f"{name}_b"], [f"{name}_r"]),
        ]
        source = f"{name}_r"
        if place:
            nodes.append(helper.make_node("MaxPool", [source], [f"{name}_p"], kernel_shape=[2, 2], strides=[2, 2]))
            source = f"{name}_p"
    last = ["classifier.2.weight", "classifier.2.bias"]
    nodes += [helper.make_node("Flatten", [source], ["flat"]),
              helper.make_node("Gemm", ["flat", *last], ["logits"], "classifier", transB=1),
              helper.make_node("Softmax", ["logits"], ["shares"])]  # fmt: skip
    images, shares = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])
                      for name, shape in (("images", (3, 32, 32)), ("shares", (10,))))  # fmt: skip
    constants = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in tensors.items()]
    graph = helper.make_graph(nodes, "net", [images], [shares], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder in which the document's first commands have run, with the weights that they made in other forms."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "net.py").write_text(block("net.py"))
    shell(block("trained here"), folder)
    tensors = load_file(folder / "teachers/Net-digits.float.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    save_file(tensors, folder / "net.safetensors")
    as_onnx(tensors, folder / "net.onnx")
    return folder


@pytest.fixture(scope="module")
def told(place) -> str:
    """What the document's other commands print."""
    return shell(block("trained elsewhere"), place)


def test_a_network_that_is_trained_here(place):
    best, about = (json.loads((place / f"results/mine/{name}.json").read_text()) for name in ("best", "run"))
    assert (best["model"], about["arguments"]["model"]) == ("Net", "Net")
    assert tuple(best["layers"]) == LAYERS
    assert best["metrics"]["acc_teacher"] > 0.9
    assert (place / "results/mine/student.int8.json").exists()
    assert {path.name for path in (place / "mine-c").iterdir()} >= {"network.c", "manifest.json"}
    network = store.read(place / "teachers/Net-digits.int8.json").network
    assert (network.layers, network.attention) == (LAYERS, LAYERS)
    assert network.shapes["classifier"] == (512,) and network.shapes["features_2"] == (32, 8, 8)


def test_weights_that_are_brought_make_the_same_teacher(place, told):
    made, brought = (store.read(place / folder / "Net-digits.int8.json") for folder in ("teachers", "brought"))
    assert made.about["float_accuracy"] == brought.about["float_accuracy"]
    assert made.about["sha256"] == brought.about["sha256"]
    assert (place / "results/brought/best.json").exists()


def test_the_same_network_from_onnx(place, told):
    assert told.count("note: net.onnx: the Softmax at the end is left out, since a teacher gives logits") == 1
    found = store.read(place / "teachers/net-digits.int8.json")
    assert found.about["float_accuracy"] == store.read(place / "teachers/Net-digits.int8.json").about["float_accuracy"]
    assert json.loads((place / "results/from-onnx/best.json").read_text())["model"] == "net"


def test_a_finished_run_is_resumed_and_evaluated(place):
    shell(f"{sys.executable} -m search.run --resume mine", place)
    asked = ["--codes results/mine", "--codes results/mine/best.json", "--codes quintile --model net.py:Net",
             "--codes results/mine --model net.py:Net"]  # fmt: skip
    for options in asked:
        found = json.loads(shell(f"{sys.executable} -m search.evaluate {options} --json", place))
        assert found["model"] == "Net"


def refusal(place: Path, *command: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=place, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    return [line.removeprefix("error: ") for line in done.stderr.splitlines()]


def test_a_search_says_which_command_makes_the_teacher(place):
    (place / "other.py").write_text(block("net.py").replace("Net(", "Other("))
    told = refusal(place, "search.run", "--model", "other.py:Other", "--weights", "net.safetensors")
    assert told == [
        "teachers/Other-digits.int8.json is not there: make it by `python -m approx_env.training --model other.py:Other "
        "--weights net.safetensors --epochs 0 --dataset digits`, which quantises trained weights, or name another "
        "teacher with --teacher"
    ]
    assert sorted(path.name for path in (place / "results").iterdir() if path.name.startswith("Other")) == []


def test_a_network_that_has_changed_since(place):
    changed = place / "changed" / "net.py"
    changed.parent.mkdir()
    changed.write_text(block("net.py") + "\n# now")
    (told,) = refusal(place, "search.sensitivity", "--model", f"{changed}:Net")
    assert told.startswith("teachers/Net-digits.int8.json was made of another file than --model and --weights name")
    (told,) = refusal(place, "search.sensitivity", "--model", "net.py:Net", "--weights", "net.safetensors")
    assert told.startswith("teachers/Net-digits.int8.json was made of another weights than")


def test_all_that_is_not_supported_is_named_before_anything_is_written(place):
    (place / "odd.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Odd(nn.Module):\n    def __init__(self, classes):\n"
        "        super().__init__()\n        self.conv = nn.Conv2d(3, 4, 3, dilation=2)\n        self.act = nn.GELU()\n"
        "        self.last = nn.Linear(4, classes)\n\n    def forward(self, x):\n"
        "        return torch.sigmoid(self.last(self.act(self.conv(x)).mean((2, 3))))\n"
    )
    told = refusal(place, "approx_env.training", "--model", "odd.py:Odd", "--output", "odd")
    assert [re.match(r"'\w+", line)[0] for line in told] == ["'conv", "'act", "'mean", "'sigmoid"]
    assert not (place / "odd").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--weights net.safetensors", "--weights is for a network of your own, --model FILE.py:NAME: leave it out"),
        ("--model net.onnx --weights w", "--weights is for a network of your own, --model FILE.py:NAME: leave it out"),
        ("--model net.py:Net --weights w --teacher t", "--teacher holds its weights: leave --weights out"),
        ("--model nowhere.py:Net", "nowhere.py cannot be read ("),
        ("--teacher brought/Net-digits.int8.json --model alexnet", "is a Net, and --model asks for alexnet"),
    ],
)
def test_what_a_search_refuses(place, told, options, said):
    (line,) = refusal(place, "search.run", *options.split())
    assert said in line


def test_the_documents_network_is_one_of_32_pixels(place):
    module = models.build(f"{place / 'net.py'}:Net", 10)
    assert np.prod(module(torch.zeros(2, 3, 32, 32)).shape) == 20
