import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from approx_env import data, models, teacher, training
from approx_env.errors import InputError
from approx_env.training import Recipe

RECIPE = Recipe(epochs=3, batch_size=8, learning_rate=0.02)


class Killed(BaseException):
    pass


def die_in_epoch(monkeypatch, last: int) -> None:
    """Lets every epoch before `last` finish, and dies in the middle of that one."""
    normalise, train_epoch, now = data.normalise, training._train_epoch, {}

    def watched(*arguments):
        now["epoch"], now["batches"] = arguments[7], 0
        return train_epoch(*arguments)

    def dying(pixels):
        now["batches"] += 1
        if now["epoch"] == last and now["batches"] == 2:
            raise Killed
        return normalise(pixels)

    monkeypatch.setattr(training, "_train_epoch", watched)
    monkeypatch.setattr(data, "normalise", dying)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("batch_norm", [True, False])
def test_killed_training_goes_on_as_if_nothing_had_happened(few, tmp_path, monkeypatch, capsys, batch_norm):
    recipe = replace(RECIPE, batch_norm=batch_norm)
    whole = weights(training.train("squeezenet", few, recipe, tmp_path / "whole.checkpoint"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_in_epoch(patch, last=1)
        training.train("squeezenet", few, recipe, tmp_path / "cut.checkpoint")
    torch.manual_seed(99)  # another process, another state of the global generator
    resumed = weights(training.train("squeezenet", few, recipe, tmp_path / "cut.checkpoint"))
    assert f"resuming after epoch 1 from {tmp_path / 'cut.checkpoint'}" in capsys.readouterr().out
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name


def test_training_changes_weights_and_follows_its_seed(few, tmp_path):
    recipe = replace(RECIPE, epochs=1)
    runs = [
        weights(training.train("squeezenet", few, replace(recipe, seed=seed), tmp_path / f"{i}.checkpoint"))
        for i, seed in enumerate((0, 0, 1))
    ]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.equal(runs[0]["classifier.1.weight"], runs[2]["classifier.1.weight"])


def test_training_learns(few, tmp_path):
    """Bright and dark images: a few steps tell them apart."""
    labels = few.labels["train"]
    pixels = np.where(labels[:, None, None, None] == 1, 200, 50).astype(np.uint8) + np.zeros((1, 3, 32, 32), np.uint8)
    easy = replace(few, labels=dict.fromkeys(data.SPLITS, labels), _read=lambda split, positions: pixels[positions])
    model = training.train("alexnet", easy, Recipe(epochs=4, batch_size=8, learning_rate=0.02), tmp_path / "c")
    assert not model.training
    assert training.accuracy(training.predictor(model), pixels, labels) == 1.0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 0.1}, "learning_rate"),
        ({"epochs": 5, "seed": 7}, "epochs, seed"),
        ({"batch_norm": False}, "batch_norm"),
    ],
)
def test_checkpoint_of_another_recipe_is_refused(few, tmp_path, changes, named):
    checkpoint = tmp_path / "c.checkpoint"
    torch.save({"identity": {"model": "squeezenet", "dataset": "few", **vars(RECIPE)}, "epoch": 1}, checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(InputError) as caught:
        training.train("squeezenet", few, replace(RECIPE, **changes), checkpoint)
    assert str(caught.value) == (
        f"{checkpoint} is an unfinished training with another {named}: finish it, remove it, or choose another --output"
    )
    assert checkpoint.read_bytes() == before


def test_checkpoint_of_another_model_or_dataset_is_refused(few, tmp_path):
    checkpoint = tmp_path / "c.checkpoint"
    torch.save({"identity": {"model": "alexnet", "dataset": "digits", **vars(RECIPE)}, "epoch": 1}, checkpoint)
    with pytest.raises(InputError, match="is an unfinished training with another model, dataset: finish it"):
        training.train("squeezenet", few, RECIPE, checkpoint)


def test_accuracy_by_hand():
    class Mean(nn.Module):
        def forward(self, x):
            mean = x.mean((1, 2, 3))
            return torch.stack([-mean, mean], 1)

    pixels = np.array([0, 255, 129, 127], np.uint8)[:, None, None, None].repeat(3, 1)
    labels = np.array([0, 1, 0, 0])
    assert training.accuracy(training.predictor(Mean()), pixels, labels) == 0.75
    assert training.accuracy(training.predictor(Mean()), pixels, labels, batch_size=3) == 0.75


# -- augmentation


def test_augment_shifts_over_grey():
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shifted = training.augment(pixels, False, torch.Generator().manual_seed(1))
    assert (shifted.shape, shifted.dtype) == (pixels.shape, torch.uint8)
    grey = torch.full((3, 40, 40), 128, dtype=torch.uint8)
    seen = set()
    for image, original in zip(shifted, pixels, strict=True):
        padded = grey.clone()
        padded[:, 4:36, 4:36] = original
        found = [(y, x) for y in range(9) for x in range(9) if torch.equal(image, padded[:, y : y + 32, x : x + 32])]
        assert len(found) == 1
        seen.add(found[0])
    assert {y for y, _ in seen} == {x for _, x in seen} == set(range(9))


def test_augment_mirrors_half_of_the_images_where_allowed():
    pixels = torch.full((400, 3, 32, 32), 128, dtype=torch.uint8)
    pixels[:, :, :, :16] = 0  # dark on the left, wherever it is shifted to
    for mirrored, low, high in ((False, 0, 0), (True, 150, 250)):
        images = training.augment(pixels, mirrored, torch.Generator().manual_seed(0)).float()
        flipped = (images[..., 16:].mean((1, 2, 3)) < images[..., :16].mean((1, 2, 3))).sum()
        assert low <= flipped <= high


def test_augment_follows_its_generator():
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    one, two = (training.augment(pixels, True, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one, two)


# -- the command


def test_problems_of_a_recipe_name_their_flags():
    assert Recipe().problems() == []
    assert Recipe(0, 1, 0.0, True, -1).problems() == [
        "--epochs must be at least 1, got 0",
        "--batch-size must be at least 2, got 1",
        "--lr must lie in (0, 10], got 0.0",
        "--seed must be at least 0, got -1",
    ]
    assert Recipe(learning_rate=float("nan")).problems() == ["--lr must lie in (0, 10], got nan"]


def test_bad_input_ends_with_status_2_and_every_problem(capsys, tmp_path):
    argv = ["--model", "vgg99", "--epochs", "0", "--lr", "-1", "--output", str(tmp_path / "out")]
    assert training.main(argv) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --epochs must be at least 1, got 0",
        "error: --lr must lie in (0, 10], got -1.0",
        "error: unknown model 'vgg99': --model must be one of squeezenet, alexnet",
    ]
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert training.main(["--output", str(tmp_path / "file" / "below")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --output {tmp_path / 'file' / 'below'} cannot be written (")


def test_unknown_dataset_ends_with_status_2(capsys):
    assert training.main(["--dataset", "mnist"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown dataset 'mnist'")


def test_interrupt_ends_with_status_130_and_no_traceback(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_run", interrupt)
    assert training.main([]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("interrupted")


def test_command_writes_both_teachers(few, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(data, "load", lambda name, data_dir: replace(few, name="imagefolder:few"))
    argv = ["--model", "alexnet", "--epochs", "1", "--batch-size", "16", "--lr", "0.01", "--output", str(tmp_path)]
    assert training.main(argv) == 0
    stem = tmp_path / "alexnet-imagefolder-few"
    assert teacher.read(f"{stem}.int8.json").network.model == "alexnet"
    assert isinstance(teacher.read_float(f"{stem}.float.json"), models.AlexNet)
    recipe = json.loads(stem.with_name(f"{stem.name}.int8.json").read_text())["recipe"]
    assert recipe == {"epochs": 1, "batch_size": 16, "learning_rate": 0.01, "batch_norm": True, "seed": 0}
    output = capsys.readouterr().out
    assert "epoch 1/1: loss " in output
    assert f"wrote {stem}.int8.json" in output


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_any_number_of_steps_has_a_schedule(few, tmp_path, steps):
    recipe = Recipe(epochs=steps, batch_size=32)  # one step an epoch; OneCycleLR cannot divide 5 by itself
    training.train("squeezenet", few, recipe, tmp_path / "c.checkpoint")


def test_what_is_no_checkpoint_is_told(few, tmp_path):
    checkpoint = tmp_path / "c.checkpoint"
    checkpoint.write_text("x")
    with pytest.raises(InputError, match="is no"):
        training.train("squeezenet", few, RECIPE, checkpoint)
    assert checkpoint.read_text() == "x"
