"""Networks of a user's own: where they are, how they are called, and what is told of those that are none."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from approx_env.errors import InputError
from approx_env.teachers import models
from approx_env.teachers.models import own
from approx_env.teachers.models.blocks import Traits, traits

HEAD = "import torch\nfrom torch import nn\n"
SMALL = "nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, {}))"


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "net.py"


def made(file: Path, text: str, name: str = "net", classes: int = 5) -> nn.Module:
    file.write_text(HEAD + text)
    return models.build(f"{file}:{name}", classes)


def refusal(file: Path, text: str, name: str = "net") -> str:
    with pytest.raises(InputError) as caught:
        made(file, text, name)
    (problem,) = caught.value.problems
    assert "\n" not in problem
    return problem.replace(str(file), "net.py")


@pytest.mark.parametrize(
    ("text", "file", "attribute", "name"),
    [
        ("net.py:Net", "net.py", "Net", "Net"),
        ("a:b/net.py:small_net", "a:b/net.py", "small_net", "small_net"),
        ("/a/net.py:Größe", "/a/net.py", "Größe", "Gr_e"),
        ("x/squeezenet1.0-12.onnx", "x/squeezenet1.0-12.onnx", None, "squeezenet1_0_12"),
        ("a:b.onnx", "a:b.onnx", None, "a_b"),
        ("net.py:alexnet", "net.py", "alexnet", "alexnet_own"),
        ("...onnx", "...onnx", None, "network"),
    ],
)
def test_a_reference_and_the_name_that_files_have(text, file, attribute, name):
    assert own.parsed(text) == own.Reference(Path(file), attribute)
    assert models.named(text) == text
    assert models.name_of(text) == name


@pytest.mark.parametrize("text", ["net.py", "net.py:", ":Net", "net.py:a.b", "net.py:a b", "net.pt", "net", ""])
def test_what_is_no_reference(text):
    assert own.parsed(text) is None
    with pytest.raises(ValueError):
        models.named(text)


@pytest.mark.parametrize(
    "head",
    [
        "def net(classes):", "def net(count):", "def net(width=3, *, num_classes=2):", "def net(width=3, classes=2):",
        "def net(count, width=3):", "def net(count, /):", "def net(classes=2, **more):",
    ],
)  # fmt: skip
def test_it_is_called_with_the_number_of_classes(file, head):
    argument = re.search(r"(num_classes|classes|count)", head)[0]
    assert made(file, f"{head}\n    return {SMALL.format(argument)}").get_parameter("4.bias").numel() == 5


@pytest.mark.parametrize("head", ["def net():", "def net(width=3):", "def net(*more, **options):"])
def test_it_is_called_without_arguments(file, head):
    assert made(file, f"{head}\n    return {SMALL.format(5)}").get_parameter("4.bias").numel() == 5


def test_a_class_and_its_neighbours(file):
    """The file may import what lies beside it, and define dataclasses, which look their module up."""
    file.with_name("beside_net.py").write_text("CLASSES = 5")
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Size:\n"
        "    width: int = 4\nclass Net(nn.Sequential):\n    def __init__(self):\n        import beside_net\n"
        f"        super().__init__(*{SMALL.format('beside_net.CLASSES')})\n"
    )
    file.write_text(text.replace("\n@data", f"\n{HEAD}@data"))
    assert len(models.build(f"{file}:Net", 5)) == 5


def test_a_file_runs_once(file, capsys):
    text = f"print('here')\ndef net():\n    return {SMALL.format(5)}"
    first = made(file, text)
    assert models.build(f"{file}:net", 5) is not first
    assert capsys.readouterr().out == "here\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import nowhere_at_all", "net.py, line 3: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("x = (", "net.py, line 3: SyntaxError: '(' was never closed"),
        ("\nraise ValueError('two\\nlines')", "net.py, line 4: ValueError: two lines"),
        ("import sys\nsys.exit(3)", "net.py, line 4: SystemExit: 3"),
        ("def net():\n    return 1 / 0", "net.py, line 4: ZeroDivisionError: division by zero"),
        ("def net(a, b):\n    pass", "net.py: TypeError: net() missing 1 required positional argument: 'b'"),
        ("Net = 3\ndef other(): pass", "net.py:net: there is no such name in it: it has other"),
        ("", "net.py:net: there is no such name in it: it has no class and no function"),
        ("net = 3", "net.py:net: NAME must be a class or a function that gives a module, got int"),
        ("net = nn.ReLU()", "NAME must be a class or a function that gives a module, got ReLU"),
        ("def net():\n    return {}", "net.py:net: NAME must give a torch.nn.Module, and gives dict"),
        ("def net():\n    return nn.Linear(3, 5)", "net.py:net cannot take images of 3x32x32 pixels (RuntimeError: "),
        (f"def net():\n    return {SMALL.format(7)}", "one logit for each of 5 classes of the dataset, (1, 5) for one"),
        ("def net():\n    return nn.ReLU()", "and gives (1, 3, 32, 32)"),
        ("class net(nn.Module):\n    def forward(self, x):\n        return [x]", "and gives list"),
    ],
)  # fmt: skip
def test_what_is_no_network_is_told_in_a_line(file, text, told):
    assert told in refusal(file, text)


@pytest.mark.parametrize("name", ["nowhere.py", "x" * 300 + ".py", "a\0b.py", "."])
def test_a_file_that_is_not_there(tmp_path, name):
    reference = own.Reference(tmp_path / name, "net")
    with pytest.raises(InputError, match="is not a file: name one as FILE.py:NAME or FILE.onnx"):
        own.build(reference, 5)


def test_options_of_our_networks_are_refused(file):
    file.write_text(f"{HEAD}def net():\n    return {SMALL.format(5)}")
    models.build(f"{file}:net", 5, batch_norm=True, dropout=0.0)
    with pytest.raises(InputError, match=r"^--batch-norm, --dropout, --sr: .*net decides that itself: leave it out"):
        models.build(f"{file}:net", 5, batch_norm=False, dropout=0.5, squeeze_ratio=0.5)


def test_traits_of_a_module_that_says_nothing():
    assert traits(nn.ReLU()) == Traits(None, None, 32, False)


def test_traits_that_are_said():
    module = nn.ReLU()
    module.layers, module.attention, module.image_size, module.standardised = {"a": "b"}, ["a"], 64, True
    assert traits(module) == Traits({"a": "b"}, ("a",), 64, True)


def test_submodules_that_bear_these_names_say_nothing():
    module = nn.ReLU()
    module.layers, module.attention = nn.ModuleDict({"a": nn.ReLU()}), nn.Linear(1, 1)
    assert traits(module) == Traits(None, None, 32, False)


def weights(path: Path, module: nn.Module, **changes: torch.Tensor | None) -> str:
    tensors = module.state_dict() | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return str(path)


@pytest.fixture
def module() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))


def test_weights_are_loaded(tmp_path, module):
    other = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    path = weights(tmp_path / "w.safetensors", module, **{"1.num_batches_tracked": None})
    own.load_weights(other, path)
    assert torch.equal(other[0].weight, module[0].weight)
    assert own.origin("net.pth", path).keys() == {"weights_sha256"}


def test_weights_that_do_not_fit_are_told_at_once(tmp_path, module):
    changes = {"0.bias": None, "0.weight": torch.zeros(1, 3, 1, 1), "extra": torch.zeros(1)}
    path = weights(tmp_path / "w.safetensors", module, **changes)
    with pytest.raises(InputError) as caught:
        own.load_weights(module, path)
    assert caught.value.problems == [
        f"--weights {path} lacks 0.bias",
        f"--weights {path} has, and the network has not, extra",
        f"--weights {path} has in another shape 0.weight (1, 3, 1, 1), wanted (2, 3, 1, 1)",
    ]


def test_only_some_of_many_names_are_told(tmp_path):
    deep = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(9)))
    path = weights(tmp_path / "w.safetensors", nn.Linear(1, 1, bias=False), weight=None, x=torch.zeros(1))
    with pytest.raises(InputError, match="lacks 0.weight, 1.weight, 2.weight, 3.weight, 4.weight and 4 more"):
        own.load_weights(deep, path)


@pytest.mark.parametrize("content", [None, b"", b"\x80\x04garbage", b"PK\x03\x04"])
def test_a_file_that_holds_no_weights(tmp_path, module, content):
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"--weights {path} cannot be read .*safetensors.torch.save_file"):
        own.load_weights(module, str(path))


def test_weights_that_are_not_finite(tmp_path, module):
    path = weights(tmp_path / "w.safetensors", module, **{"0.bias": torch.tensor([1.0, float("nan")])})
    with pytest.raises(InputError, match=r"holds numbers that are not finite, in 0\.bias"):
        own.load_weights(module, path)
