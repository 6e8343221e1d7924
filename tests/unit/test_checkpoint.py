import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from approx_env.errors import InputError
from approx_env.teachers import checkpoint as module
from approx_env.teachers.checkpoint import Checkpoint

IDENTITY = {"model": "m", "seed": 3, "lr": None, "share": 0.25, "norm": True}


def parts(value: float) -> dict:
    """A layer of `value` and an optimizer with momentum that has taken a step of no length."""
    layer = nn.Linear(2, 1)
    nn.init.constant_(layer.weight, value)
    nn.init.constant_(layer.bias, -value)
    optimizer = torch.optim.SGD(layer.parameters(), 0.5, momentum=0.9)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return {"network": layer, "sgd": optimizer}


def step(stateful: dict) -> None:
    stateful["network"](torch.tensor([[1.0, 2.0]])).sum().backward()
    stateful["sgd"].step()
    stateful["sgd"].zero_grad()


def refusal(checkpoint: Checkpoint) -> str:
    before = checkpoint.path.read_bytes()
    with pytest.raises(InputError) as caught:
        checkpoint.resume(parts(0))
    assert len(caught.value.problems) == 1
    assert checkpoint.path.read_bytes() == before
    return str(caught.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.checkpoint"


def test_nothing_to_resume(path, capsys):
    stateful = parts(1.5)
    assert Checkpoint(path, IDENTITY).resume(stateful) == 0
    assert stateful["network"].weight.tolist() == [[1.5, 1.5]]
    assert list(path.parent.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_what_was_saved_comes_back(path, capsys):
    one, other = parts(1.0), parts(7.0)
    step(one)
    Checkpoint(path, IDENTITY).save(4, one)
    assert list(path.parent.iterdir()) == [path]
    assert capsys.readouterr().out == ""
    assert Checkpoint(path, dict(IDENTITY)).resume(other) == 4
    assert capsys.readouterr().out == f"resuming after epoch 4 from {path}\n"
    # w = 1 - 0.5 g; the second step has the momentum 0.9 g + g
    assert other["network"].weight.tolist() == [[0.5, 0.0]]
    step(other)
    assert other["network"].weight.flatten().tolist() == pytest.approx([0.5 - 0.95, 0.0 - 1.9])


def test_notes_come_back(path):
    checkpoint, other = Checkpoint(path, IDENTITY), Checkpoint(path, IDENTITY)
    checkpoint.notes = [{"step": 3, "loss": 0.5}], [0.25]
    checkpoint.save(4, parts(1.0))
    other.resume(parts(0.0))
    assert other.notes == [[{"step": 3, "loss": 0.5}], [0.25]]
    assert Checkpoint(path, IDENTITY).notes is None


def test_a_later_epoch_replaces_an_earlier_one(path):
    checkpoint = Checkpoint(path, IDENTITY)
    checkpoint.save(1, parts(1.0))
    checkpoint.save(2, parts(2.0))
    found = parts(0.0)
    assert checkpoint.resume(found) == 2
    assert found["network"].bias.item() == -2.0


@pytest.mark.parametrize("where", ["while writing", "before replacing"])
def test_a_kill_leaves_the_older_state(path, monkeypatch, where):
    checkpoint = Checkpoint(path, IDENTITY)
    checkpoint.save(1, parts(1.0))

    def die(*arguments):
        if where == "while writing":
            arguments[1].write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*((module, "save_file") if where == "while writing" else (os, "replace")), die)
        checkpoint.save(2, parts(2.0))
    found = parts(0.0)
    assert checkpoint.resume(found) == 1
    assert found["network"].bias.item() == -1.0
    checkpoint.save(2, parts(2.0))  # what is left over does not disturb
    assert checkpoint.resume(found) == 2
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        (IDENTITY | {"seed": 4}, "seed"),
        (IDENTITY | {"lr": 0.1, "model": "n"}, "lr, model"),
        (IDENTITY | {"norm": False}, "norm"),
        (IDENTITY | {"more": None}, "more"),
        ({key: value for key, value in IDENTITY.items() if key != "lr"}, "lr"),
    ],
)
def test_another_training_is_refused_and_kept(path, identity, named):
    Checkpoint(path, IDENTITY).save(1, parts(1.0))
    assert refusal(Checkpoint(path, identity)) == (
        f"{path} is an unfinished training with another {named}: finish it, remove it, or choose another --output"
    )


def test_refused_parts_stay_as_they_were(path):
    Checkpoint(path, IDENTITY).save(1, parts(1.0))
    stateful = parts(5.0)
    with pytest.raises(InputError):
        Checkpoint(path, IDENTITY | {"seed": 4}).resume(stateful)
    assert stateful["network"].weight.tolist() == [[5.0, 5.0]]


def rewritten(path, *, about=None, tensors=None) -> None:
    """Writes other header values or other tensors into a checkpoint; None takes one out."""
    kept = {"identity": json.dumps(IDENTITY), "epoch": "1"} | (about or {})
    arrays = load_file(path) | (tensors or {})
    kept, arrays = ({key: value for key, value in one.items() if value is not None} for one in (kept, arrays))
    save_file(arrays, path, kept)


STRANGE = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("x"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"0"),
    "a header without end": lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
    "pickled": lambda path: torch.save({"identity": IDENTITY, "epoch": 1}, path),
    "code": lambda path: torch.save({"identity": os.getcwd}, path),
    "no identity": lambda path: rewritten(path, about={"identity": None}),
    "no epoch": lambda path: rewritten(path, about={"epoch": None}),
    "broken identity": lambda path: rewritten(path, about={"identity": "{"}),
    "nested identity": lambda path: rewritten(path, about={"identity": "[" * 100_000}),
    "a number as identity": lambda path: rewritten(path, about={"identity": "5"}),
    "a list as identity": lambda path: rewritten(path, about={"identity": '["seed"]'}),
    "a word as epoch": lambda path: rewritten(path, about={"epoch": '"one"'}),
    "half an epoch": lambda path: rewritten(path, about={"epoch": "1.5"}),
    "no epoch at all": lambda path: rewritten(path, about={"epoch": "null"}),
    "no weight": lambda path: rewritten(path, tensors={"network/weight": None}),
    "a weight more": lambda path: rewritten(path, tensors={"network/more": torch.ones(1)}),
    "a weight of another shape": lambda path: rewritten(path, tensors={"network/weight": torch.ones(2, 2)}),
    "no momentum": lambda path: rewritten(path, tensors={f"sgd/{i}.momentum_buffer": None for i in (0, 1)}),
    "a parameter more": lambda path: rewritten(path, tensors={"sgd/9.momentum_buffer": torch.ones(1)}),
    "a name for an index": lambda path: rewritten(path, tensors={"sgd/x.momentum_buffer": torch.ones(1)}),
}


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE)
def test_what_is_no_checkpoint_is_told(path, change):
    checkpoint = Checkpoint(path, IDENTITY)
    checkpoint.save(1, parts(1.0))
    change(path)
    assert refusal(checkpoint) == (f"{path} is no checkpoint of a training: remove it, or choose another --output")


def test_a_folder_is_no_checkpoint(path):
    path.mkdir()
    with pytest.raises(InputError, match="is no checkpoint of a training"):
        Checkpoint(path, IDENTITY).resume(parts(1.0))


def test_a_part_that_is_not_there_is_told(path):
    Checkpoint(path, IDENTITY).save(1, {"network": parts(1.0)["network"]})
    assert "is no checkpoint of a training" in refusal(Checkpoint(path, IDENTITY))
