"""What docs/own-network.md says works, from a network's file to hardware; and what a person does wrong is told."""

import json
import re
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from approx_env.teachers import store
from approx_env.teachers.training import program
from search import run, sensitivity
from tests import command
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
def teacher(tmp_path_factory) -> Path:
    """A folder with the document's network and the teacher that a short training makes of it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "net.py").write_text(block("net.py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert program.main("--model net.py:Net --epochs 4 --batch-size 32".split()) == 0
        save(folder)
    return folder


def save(folder: Path) -> dict[str, torch.Tensor]:
    """Writes the weights of the trained network as a user's own file has them."""
    tensors = load_file(folder / "teachers/Net-digits.float.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    save_file(tensors, folder / "net.safetensors")
    return tensors


@pytest.fixture
def here(teacher, monkeypatch) -> Path:
    monkeypatch.chdir(teacher)
    return teacher


def refusal(capsys, main, options: str) -> list[str]:
    assert main(options.split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    return [line.removeprefix("error: ") for line in told.err.splitlines()]


def test_weights_that_are_brought_make_the_same_teacher(here, tmp_path):
    made = store.read("teachers/Net-digits.int8.json")
    assert (made.network.model, made.network.layers, made.network.attention) == ("Net", LAYERS, LAYERS)
    assert made.network.shapes["classifier"] == (512,) and made.network.shapes["features_2"] == (32, 8, 8)
    assert program.main(f"--model net.py:Net --weights net.safetensors --epochs 0 --output {tmp_path}".split()) == 0
    brought = store.read(tmp_path / "Net-digits.int8.json")
    assert made.about["float_accuracy"] == brought.about["float_accuracy"]
    assert made.about["sha256"] == brought.about["sha256"]


def test_the_same_network_from_onnx(here, capsys):
    as_onnx(save(here), here / "net.onnx")
    assert program.main("--model net.onnx --epochs 0".split()) == 0
    note = "note: net.onnx: the Softmax at the end is left out, since a teacher gives logits"
    assert capsys.readouterr().out.count(note) == 1
    read, made = (store.read(f"teachers/{name}-digits.int8.json") for name in ("net", "Net"))
    assert read.network.model == "net" and len(read.network.layers) == len(LAYERS)
    assert read.about["float_accuracy"] == made.about["float_accuracy"]
    assert sensitivity.main("--model net.onnx --search-images 32 --run-name onnx".split()) == 0


def test_a_search_without_the_networks_file(teacher):
    done = command.run(f"--teacher {teacher}/teachers/Net-digits.int8.json --algorithm random --episodes 4 --top 2")
    assert done.status == 0, done.errors
    assert (done.json("best.json")["model"], done.json("run.json")["arguments"]["model"]) == ("Net", "Net")
    assert tuple(done.json("best.json")["layers"]) == LAYERS
    assert set(done.rows["model"]) == {"Net"}


def test_a_search_says_which_command_makes_the_teacher(here, capsys):
    (here / "other.py").write_text(block("net.py").replace("Net(", "Other("))
    assert refusal(capsys, run.main, "--model other.py:Other --weights net.safetensors") == [
        "teachers/Other-digits.int8.json is not there: make it by `python -m approx_env.training --model other.py:Other "
        "--weights net.safetensors --epochs 0 --dataset digits`, which quantises trained weights, or name another "
        "teacher with --teacher"
    ]
    assert not list(here.glob("results/*Other*"))


def test_a_network_that_has_changed_since(here, capsys, tmp_path):
    (tmp_path / "net.py").write_text(block("net.py") + "\n# now")
    (told,) = refusal(capsys, sensitivity.main, f"--model {tmp_path}/net.py:Net")
    assert told.startswith("teachers/Net-digits.int8.json was made of another file than --model and --weights name")
    (told,) = refusal(capsys, sensitivity.main, "--model net.py:Net --weights net.safetensors")
    assert told.startswith("teachers/Net-digits.int8.json was made of another weights than")


def test_all_that_is_not_supported_is_named_before_anything_is_written(here, capsys):
    (here / "odd.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Odd(nn.Module):\n    def __init__(self, classes):\n"
        "        super().__init__()\n        self.conv = nn.Conv2d(3, 4, 3, dilation=2)\n        self.act = nn.GELU()\n"
        "        self.last = nn.Linear(4, classes)\n\n    def forward(self, x):\n"
        "        return torch.sigmoid(self.last(self.act(self.conv(x)).mean((2, 3))))\n"
    )
    told = refusal(capsys, program.main, "--model odd.py:Odd --output odd")
    assert [re.match(r"'\w+", line)[0] for line in told] == ["'conv", "'act", "'sigmoid"]
    assert not (here / "odd").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--weights net.safetensors", "--weights is for a network of your own, --model FILE.py:NAME: leave it out"),
        ("--model net.onnx --weights w", "--weights is for a network of your own, --model FILE.py:NAME: leave it out"),
        ("--model net.py:Net --weights w --teacher t", "--teacher holds its weights: leave --weights out"),
        ("--model nowhere.py:Net", "nowhere.py cannot be read ("),
        ("--teacher teachers/Net-digits.int8.json --model alexnet", "is a Net, and --model asks for alexnet"),
    ],
)
def test_what_a_search_refuses(here, capsys, options, said):
    (line,) = refusal(capsys, run.main, options)
    assert said in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--model net.py:Net --initial a", "--initial is for networks of ours: give net.py:Net its weights by --weights"),
        ("--initial a --weights b", "--weights says what weights to begin from, and so does --initial: leave one out"),
        ("--model net.onnx --weights b", "--weights: net.onnx holds its weights itself: leave it out"),
        ("--model net.py:Net --mean 0,0,0", "--mean and --std belong together: give both, or leave both out"),
        ("--mean 0,0,0 --std 1,1,1", "--mean and --std are of given weights, and squeezenet has fresh ones"),
        ("--mean 0,0", "--mean must be three numbers, as 0.5,0.5,0.5, got '0,0'"),
        ("--std 0,1,1", "--std must be above 0 and at most 1, got 0,1,1"),
        ("--model net.py:Net --sr 0.5 --dropout 0.5", "--dropout, --sr: net.py:Net decides that itself: leave it out"),
        ("--model net.py:Net --small-epochs 1", "--small-epochs: net.py:Net reads one image size only, leave it out"),
        ("--model net.py:Nothing", "--model net.py:Nothing: there is no such name in it: it has Net"),
        ("--model net.py:Net --weights net.py", "--weights net.py cannot be read ("),
    ],
)
def test_what_a_training_refuses(here, capsys, options, said):
    (line,) = refusal(capsys, program.main, f"{options} --output none")
    assert line.startswith(said)
    assert not (here / "none").exists()


def test_weights_of_other_pixels(here, tmp_path):
    """Its accuracy is that of wrong pixels unless they are told: mean 128 / 255 and deviation 64 / 255 are our own."""
    own = f"--mean {','.join(['0.50196'] * 3)} --std {','.join(['0.25098'] * 3)}"
    found = {}
    for name, options in (("ours", own), ("others", "--mean 0.1,0.1,0.1 --std 0.9,0.9,0.9")):
        command = f"--model net.py:Net --weights net.safetensors --epochs 0 --output {tmp_path}/{name} {options}"
        assert program.main(command.split()) == 0
        found[name] = store.read(tmp_path / name / "Net-digits.int8.json").about["float_accuracy"]["test"]
    assert found["others"] < found["ours"] - 0.2
    assert found["ours"] == store.read("teachers/Net-digits.int8.json").about["float_accuracy"]["test"]


def test_a_training_goes_on_with_the_same_files_alone(here, capsys, tmp_path):
    """The path is the same; what lies there is not."""
    (tmp_path / "net.py").write_text(block("net.py"))
    tensors = load_file(here / "net.safetensors")
    save_file(tensors, tmp_path / "w.safetensors")
    begin = f"--model {tmp_path}/net.py:Net --weights {tmp_path}/w.safetensors --epochs 1 --qat-epochs 1 --output "
    assert program.main(f"{begin}{tmp_path}/t".split()) == 0
    assert program.main(f"{begin}{tmp_path}/t".split()) == 0
    assert "resuming after epoch 1" in capsys.readouterr().out
    save_file(tensors | {"features.0.bias": tensors["features.0.bias"] + 1}, tmp_path / "w.safetensors")
    unfinished = f"{tmp_path}/t/Net-digits.checkpoint is an unfinished training with another "
    assert program.main(f"{begin}{tmp_path}/t".split()) == 2
    assert f"{unfinished}weights: finish it" in capsys.readouterr().err
    (tmp_path / "net.py").write_text(block("net.py") + "# now")
    assert program.main(f"{begin}{tmp_path}/t".split()) == 2
    assert f"{unfinished}file, weights: finish it" in capsys.readouterr().err
    (tmp_path / "t/Net-digits.checkpoint").unlink()
    quantised = begin.replace("--epochs 1", "--epochs 0", 1)
    assert program.main(f"{quantised}{tmp_path}/u".split()) == 0
    save_file(tensors, tmp_path / "w.safetensors")
    capsys.readouterr()
    assert program.main(f"{quantised}{tmp_path}/u".split()) == 2
    assert "u/Net-digits.qat.checkpoint is an unfinished training with another weights in float" in capsys.readouterr().err


@pytest.mark.slow
def test_the_documents_commands(tmp_path):
    (tmp_path / "net.py").write_text(block("net.py"))
    shell(block("trained here"), tmp_path)
    as_onnx(save(tmp_path), tmp_path / "net.onnx")
    shell(block("trained elsewhere"), tmp_path)
    for name, model in (("mine", "Net"), ("brought", "Net"), ("from-onnx", "net")):
        assert json.loads((tmp_path / f"results/{name}/best.json").read_text())["model"] == model
    assert (tmp_path / "results/mine/student.int8.json").exists()
    assert {path.name for path in (tmp_path / "mine-c").iterdir()} >= {"network.c", "manifest.json"}
    shell(f"{sys.executable} -m search.run --resume mine", tmp_path)
    asked = ["--codes results/mine", "--codes results/mine/best.json", "--codes quintile --model net.py:Net",
             "--codes results/mine --model net.py:Net"]  # fmt: skip
    for options in asked:
        found = json.loads(shell(f"{sys.executable} -m search.evaluate {options} --json", tmp_path))
        assert found["model"] == "Net"
