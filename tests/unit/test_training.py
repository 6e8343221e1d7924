import contextlib
import io
import json
import math
import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from approx_env import data
from approx_env.engines.vector import convolution
from approx_env.errors import InputError
from approx_env.int8 import quantize
from approx_env.teachers import models, store
from approx_env.teachers.checkpoint import Checkpoint
from approx_env.teachers.models import squeezenet
from approx_env.teachers.training import loop, program
from approx_env.teachers.training.recipe import Recipe

RECIPE = Recipe(epochs=3, batch_size=8)
AVAILABLE = convolution.available
TINY = squeezenet.Layout((4, 3, 1, 1), ((2, 4), (2, 4)), ("conv1", "fire2"), ("fire2",))


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch):
    """'squeezenet_tiny': eight convolutions of few channels; 'squeezenet_even': the same for standardised images."""
    for name, layout in {"tiny": TINY, "even": replace(TINY, standardised=True, last_relu=False)}.items():
        monkeypatch.setitem(squeezenet.LAYOUTS, name, layout)
        monkeypatch.setitem(models.MODELS, f"squeezenet_{name}", partial(models.SqueezeNet, layout=name))


class Killed(BaseException):
    pass


def die_in_epoch(monkeypatch, last: int) -> None:
    """Lets every epoch before `last` finish, and dies in the middle of that one."""
    normalise, train_epoch, now = data.normalise, loop._train_epoch, {}

    def watched(stage, recipe, batches, epoch, average):
        now["epoch"], now["batches"] = epoch, 0
        return train_epoch(stage, recipe, batches, epoch, average)

    def dying(pixels):
        now["batches"] += 1
        if now["epoch"] == last and now["batches"] == 2:
            raise Killed
        return normalise(pixels)

    monkeypatch.setattr(loop, "_train_epoch", watched)
    monkeypatch.setattr(data, "normalise", dying)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def drafted(few) -> quantize.Draft:
    torch.manual_seed(0)
    module = models.build("squeezenet_even", 2).eval()
    return quantize.draft(
        module, few.load("calibration")[0], model="squeezenet_even", classes=few.classes, layers=module.layers,
        attention=module.attention, standardised=True,
    )  # fmt: skip


# -- killed and started again

EVERYTHING = {
    "small_epochs": 2, "cutout": 8, "dropout": 0.5, "optimizer": "sgd", "precision": "bf16", "seed": 2**63 - 1,
    "ema": 0.7, "cutmix": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("last", [1, 2])
@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("squeezenet_tiny", {}),
        ("squeezenet_tiny", {"batch_norm": False}),
        ("squeezenet_tiny", {"optimizer": "sgd"}),
        ("squeezenet_tiny", {"optimizer": "sgd", "batch_norm": False}),
        ("squeezenet_tiny", {"small_epochs": 2}),
        ("squeezenet_tiny", {"cutout": 8, "dropout": 0.5}),
        ("squeezenet_tiny", {"ema": 1.5}),
        ("squeezenet_tiny", {"ema": 1.5, "batch_norm": False, "optimizer": "sgd"}),
        ("squeezenet_tiny", {"cutmix": 0.5}),
        ("squeezenet_even", EVERYTHING),
    ],
)
def test_killed_training_goes_on_as_if_nothing_had_happened(few, tmp_path, monkeypatch, capsys, model, changes, last):
    recipe = replace(RECIPE, **changes)
    mirrored = replace(few, mirrored=True)
    whole = weights(loop.train(model, mirrored, recipe, tmp_path / "whole.checkpoint"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_in_epoch(patch, last)
        loop.train(model, mirrored, recipe, tmp_path / "cut.checkpoint")
    torch.manual_seed(99)  # another process, another state of the global generator
    told = []
    resumed = loop.train(model, mirrored, recipe, tmp_path / "cut.checkpoint", observe=told.append)
    assert f"resuming after epoch {last} from {tmp_path / 'cut.checkpoint'}" in capsys.readouterr().out
    assert [record["epoch"] for record in told] == list(range(last + 1, 4))
    assert_same(whole, weights(resumed))


@pytest.mark.parametrize("last", [1, 2])
def test_killed_quantised_training_goes_on_as_if_nothing_had_happened(few, tmp_path, monkeypatch, last):
    recipe, draft = replace(RECIPE, qat_epochs=3), drafted(few)
    whole = loop.train_quantised(draft, few, recipe, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_in_epoch(patch, last)
        loop.train_quantised(draft, few, recipe, tmp_path / "cut")
    torch.manual_seed(99)
    told = []
    resumed = loop.train_quantised(draft, few, recipe, tmp_path / "cut", observe=told.append)
    assert [(record["stage"], record["epoch"]) for record in told] == [("QAT", i) for i in range(last + 1, 4)]
    assert whole.scales == resumed.scales != draft.scales
    for name, parts in whole.parts.items():
        if "float_weight" in parts:
            for field in ("float_weight", "float_bias"):
                assert np.array_equal(parts[field], resumed.parts[name][field]), name
            assert not np.array_equal(parts["float_weight"], draft.parts[name]["float_weight"]), name


def test_finished_training_is_not_repeated(few, tmp_path):
    """Whatever number of quantisation-aware epochs follows."""
    told = []
    one = loop.train("squeezenet_tiny", few, RECIPE, tmp_path / "c", observe=told.append)
    before = (tmp_path / "c").read_bytes()
    again = loop.train("squeezenet_tiny", few, replace(RECIPE, qat_epochs=2), tmp_path / "c", observe=told.append)
    assert len(told) == 3
    assert not again.training
    assert_same(weights(one), weights(again))
    assert (tmp_path / "c").read_bytes() == before


def left(checkpoint: Path, **changes) -> bytes:
    """Leaves the checkpoint of a training that differs in what is named; returns its bytes."""
    identity = {"model": "squeezenet_tiny", "dataset": "few", "images": "few's digest", **asdict(RECIPE)} | changes
    del identity["qat_epochs"]
    Checkpoint(checkpoint, identity).save(1, {"network": nn.Linear(1, 1)})
    return checkpoint.read_bytes()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 0.1}, "lr"),
        ({"epochs": 5, "seed": 7}, "epochs, seed"),
        ({"batch_norm": False}, "batch_norm"),
        ({"ema": 2.0, "cutmix": 0.5}, "cutmix, ema"),
        ({"small_epochs": 1, "cutout": 4, "qat_epochs": 1}, "cutout, small_epochs"),
    ],
)
def test_checkpoint_of_another_recipe_is_refused(few, tmp_path, changes, named):
    checkpoint = tmp_path / "c.checkpoint"
    before = left(checkpoint)
    with pytest.raises(InputError) as caught:
        loop.train("squeezenet_tiny", few, replace(RECIPE, **changes), checkpoint)
    assert str(caught.value) == (
        f"{checkpoint} is an unfinished training with another {named}: finish it, remove it, or choose another --output"
    )
    assert checkpoint.read_bytes() == before


def test_checkpoint_of_another_model_or_dataset_is_refused(few, tmp_path):
    checkpoint = tmp_path / "c.checkpoint"
    left(checkpoint, model="alexnet", dataset="digits")
    with pytest.raises(InputError, match="is an unfinished training with another dataset, model: finish it"):
        loop.train("squeezenet_tiny", few, RECIPE, checkpoint)


@pytest.mark.parametrize("stage", ["float", "quantised"])
def test_checkpoint_of_other_images_under_the_same_name_is_refused(few, tmp_path, stage):
    """Another folder may have the same name; a training on it must not go on from this one's weights."""
    recipe, checkpoint = Recipe(epochs=1, batch_size=16, qat_epochs=1), tmp_path / "c.checkpoint"

    def train(dataset: data.Dataset) -> None:
        if stage == "float":
            loop.train("squeezenet_tiny", dataset, recipe, checkpoint)
        else:
            loop.train_quantised(drafted(few), dataset, recipe, checkpoint)

    train(few)
    before = checkpoint.read_bytes()
    with pytest.raises(InputError, match="is an unfinished training with another images: finish it"):
        train(replace(few, digest="another digest"))
    assert checkpoint.read_bytes() == before


def test_quantised_training_knows_its_number_of_epochs(few, tmp_path):
    recipe, draft = Recipe(epochs=1, batch_size=16, qat_epochs=1), drafted(few)
    loop.train_quantised(draft, few, recipe, tmp_path / "c")
    with pytest.raises(InputError, match="with another qat_epochs: "):
        loop.train_quantised(draft, few, replace(recipe, qat_epochs=2), tmp_path / "c")


def test_what_is_no_checkpoint_is_told(few, tmp_path):
    checkpoint = tmp_path / "c.checkpoint"
    checkpoint.write_text("x")
    with pytest.raises(InputError, match="is no"):
        loop.train("squeezenet_tiny", few, RECIPE, checkpoint)
    assert checkpoint.read_text() == "x"


# -- learning


def test_training_changes_weights_and_follows_its_seed(few, tmp_path):
    recipe = replace(RECIPE, epochs=1)
    runs = [
        weights(loop.train("squeezenet_tiny", few, replace(recipe, seed=seed), tmp_path / f"{i}.checkpoint"))
        for i, seed in enumerate((0, 0, 1))
    ]
    assert_same(runs[0], runs[1])
    assert not torch.equal(runs[0]["classifier.1.weight"], runs[2]["classifier.1.weight"])


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 16},
        {"optimizer": "sgd"},
        {"lr": 0.01},
        {"head_lr": 0.01},
        {"label_smoothing": 0.0},
        {"dropout": 0.5},
        {"cutout": 8},
        {"small_epochs": 1},
        {"precision": "bf16"},
        {"ema": 1.0},
        {"cutmix": 1.0},
    ],
)
def test_every_part_of_the_recipe_tells(few, tmp_path, changes):
    recipe = Recipe(epochs=1, batch_size=8, precision="float32")
    one = loop.train("squeezenet_tiny", few, recipe, tmp_path / "one")
    other = loop.train("squeezenet_tiny", few, replace(recipe, **changes), tmp_path / "other")
    assert not torch.equal(one.blocks["conv1"][0].weight, other.blocks["conv1"][0].weight)


def test_architecture_of_a_recipe(few, tmp_path):
    assert Recipe().architecture == {"batch_norm": True, "dropout": 0.0}
    recipe = Recipe(epochs=1, batch_size=32, batch_norm=False, dropout=0.25, sr=0.5, pct3x3=0.75)
    assert recipe.architecture == {"batch_norm": False, "dropout": 0.25, "squeeze_ratio": 0.5, "pct3x3": 0.75}
    model = loop.train("squeezenet_tiny", few, replace(recipe, sr=0.25), tmp_path / "c")
    fire = model.blocks["fire2"]
    assert [part[0].out_channels for part in (fire.squeeze, fire.expand1x1, fire.expand3x3)] == [1, 1, 3]
    assert model.classifier[0].p == 0.25
    assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
def test_training_learns(few, tmp_path, optimizer):
    """Bright and dark images: a few steps tell them apart."""
    labels = few.labels["train"]
    pixels = np.where(labels[:, None, None, None] == 1, 200, 50).astype(np.uint8) + np.zeros((1, 3, 32, 32), np.uint8)
    easy = replace(
        few, labels=dict.fromkeys(data.SPLITS, labels), _read=lambda split, positions, shorter, side: pixels[positions]
    )
    told = []
    recipe = Recipe(epochs=8, batch_size=8, optimizer=optimizer)
    model = loop.train("squeezenet_tiny", easy, recipe, tmp_path / "c", observe=told.append)
    assert not model.training
    assert loop.accuracy(loop.predictor(model), pixels, labels) == 1.0
    assert told[-1]["validation_accuracy"] == 1.0
    assert told[-1]["loss"] < told[0]["loss"]


def test_quantised_training_lowers_the_loss(few, tmp_path):
    told = []
    recipe = Recipe(batch_size=8, qat_epochs=6, label_smoothing=0.0)
    network = loop.train_quantised(drafted(few), few, recipe, tmp_path / "c", observe=told.append).network()
    assert min(record["loss"] for record in told[3:]) < told[0]["loss"]
    assert network.standardised


def test_kernels_but_the_last_go_to_muon_and_everything_else_to_sgd(few, tmp_path, monkeypatch):
    """Eight convolutions with biases, batch norm behind all but the last."""
    used, fit = {}, loop._fit

    def watched(stage, *others):
        used.clear()
        used.update(stage.optimizers)
        return fit(stage, *others)

    def counts(optimizer) -> list[tuple[float, int]]:
        return [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]

    monkeypatch.setattr(loop, "_fit", watched)
    loop.train("squeezenet_tiny", few, Recipe(epochs=1, batch_size=32), tmp_path / "muon")
    assert counts(used["muon"]) == [(0.01, 7)]
    assert counts(used["sgd"]) == [(5e-4, 1), (0, 8 + 14)]
    loop.train("squeezenet_tiny", few, Recipe(epochs=1, batch_size=32, optimizer="sgd"), tmp_path / "sgd")
    assert list(used) == ["sgd"]
    assert counts(used["sgd"]) == [(5e-4, 8), (0, 8 + 14)]


def test_one_step_without_batch_norm_has_a_gradient_of_norm_one(few, tmp_path):
    """SGD's first step with Nesterov momentum 0.9 is 1.9 lr; the only step of a training has 5/8 of the highest lr."""
    recipe = Recipe(epochs=1, batch_size=32, batch_norm=False, optimizer="sgd", lr=8.0)
    torch.manual_seed(0)
    before = models.build("squeezenet_tiny", 2, batch_norm=False)
    for parameter in before.parameters():
        assert parameter.dim() > 1 or not parameter.any()
    after = loop.train("squeezenet_tiny", few, recipe, tmp_path / "c")
    squares = 0.0
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        decay = 5e-4 if old.dim() > 1 else 0.0
        gradient = (old - new).detach() / (1.9 * 5.0) - decay * old.detach()
        squares += gradient.square().sum().item()
    assert squares == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
def test_every_epoch_is_told(few, tmp_path, optimizer):
    told = []
    recipe = Recipe(epochs=2, batch_size=20, optimizer=optimizer, lr=0.03)  # one batch of 20, the rest is left out
    model = loop.train("squeezenet_tiny", few, recipe, tmp_path / "c", observe=told.append)
    assert [(record["stage"], record["epoch"], record["epochs"]) for record in told] == [
        ("float", 1, 2),
        ("float", 2, 2),
    ]
    for record in told:
        assert set(record) - {"stage", "epoch", "epochs"} == {
            "loss", "validation_accuracy", "learning_rate", "seconds", "input_seconds"
        }  # fmt: skip
        assert 0 < record["input_seconds"] < record["seconds"]
        assert record["loss"] > 0
    share = loop.accuracy(loop.predictor(model), *few.load("validation"))
    assert told[-1]["validation_accuracy"] == share
    # steps 1 and 2 of 2 lie at 1/3 and 2/3 of the schedule
    assert [record["learning_rate"] for record in told] == pytest.approx([0.03 * 2 / 3 / 0.8, 0.03 / 3 / 0.8])


# -- the average of the weights


def test_average_of_weights_and_of_batch_norms_statistics_by_hand(few, tmp_path, monkeypatch):
    """Each step the average keeps exp(-1 / (epochs * steps an epoch)) of itself; the training goes on beside it."""
    seen, update = [], loop.AveragedModel.update_parameters

    def watched(average, module):
        seen.append(weights(module))
        update(average, module)

    monkeypatch.setattr(loop.AveragedModel, "update_parameters", watched)
    told = []
    recipe = replace(RECIPE, ema=1.5)
    found = loop.train("squeezenet_tiny", few, recipe, tmp_path / "average", observe=told.append)
    assert len(seen) == 3 * 4
    expected, kept = seen[0], math.exp(-1 / (1.5 * 4))
    for state in seen[1:]:
        expected = {name: kept * mean + (1 - kept) * state[name] for name, mean in expected.items()}
    assert any("running_var" in name for name in expected)
    for name, tensor in weights(found).items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, expected[name], rtol=1e-4, atol=1e-6), name
    assert not found.training
    share = loop.accuracy(loop.predictor(found), *few.load("validation"))
    assert told[-1]["validation_accuracy"] == share
    plain = loop.train("squeezenet_tiny", few, RECIPE, tmp_path / "plain")
    assert_same(weights(plain), seen[-1])


def test_no_average_unless_told(few, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "AveragedModel", None)
    loop.train("squeezenet_tiny", few, replace(RECIPE, epochs=1), tmp_path / "c")


def test_a_finished_average_is_read_again(few, tmp_path):
    recipe = replace(RECIPE, ema=0.5)
    one, again = (loop.train("squeezenet_tiny", few, recipe, tmp_path / "c") for _ in range(2))
    assert_same(weights(one), weights(again))


# -- the schedule


def test_one_cycle_by_hand():
    assert [loop._one_cycle(step, 9) for step in range(9)] == pytest.approx(
        [0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    )


@given(st.integers(1, 300))
def test_one_cycle_goes_up_and_then_down(total):
    shares = [loop._one_cycle(step, total) for step in range(total)]
    top = shares.index(max(shares))
    assert all(0 < share <= 1 + 1e-12 for share in shares)
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert top <= total * 0.2


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_any_number_of_steps_has_a_schedule(few, tmp_path, steps):
    recipe = Recipe(epochs=steps, batch_size=32)  # one step an epoch
    loop.train("squeezenet_tiny", few, recipe, tmp_path / "c.checkpoint")


# -- batches


def batches_of(few, recipe: Recipe, epoch: int = 0, *, small: bool = False, standardised: bool = False):
    return list(loop._Batches(recipe, few, few.load("train"), standardised).of(epoch, small=small))


def test_an_epoch_sees_each_image_once(few):
    """Images of one brightness each, which neither shifts nor mirrors change in the middle."""
    pixels = np.arange(32, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 3, 32, 32), np.uint8)
    told = replace(few, _read=lambda split, positions, shorter, side: pixels[positions], mirrored=True)
    orders = []
    for epoch in (0, 1):
        found = batches_of(told, Recipe(batch_size=8), epoch)
        assert [(x.shape, x.dtype) for x, _ in found] == [((8, 3, 32, 32), torch.float32)] * 4
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in found)
        values = torch.cat([x[:, 0, 16, 16] for x, _ in found]) * 64 + 128
        assert sorted(values.tolist()) == list(range(32))
        assert torch.equal(torch.cat([labels for _, labels in found]), values.long() % 2)
        orders.append(values.tolist())
    assert orders[0] != orders[1] != list(range(32))


def test_small_batches_are_three_quarters(few):
    recipe = Recipe(batch_size=16)
    (small, labels), *_ = batches_of(few, recipe, small=True)
    (large, same), *_ = batches_of(few, recipe)
    assert small.shape == (16, 3, 24, 24) and large.shape == (16, 3, 32, 32)
    assert torch.equal(labels, same)
    assert small.mean((1, 2, 3)).tolist() == pytest.approx(large.mean((1, 2, 3)).tolist(), abs=0.1)


@pytest.mark.parametrize("small", [False, True])
def test_standardised_batches(few, small):
    x = batches_of(few, Recipe(batch_size=32), small=small, standardised=True)[0][0].flatten(1)
    assert x.mean(1).abs().max() < 0.01
    assert x.std(1, correction=0).tolist() == pytest.approx([40 / 64] * 32, abs=0.01)


@pytest.mark.parametrize("mirrored", [False, True])
def test_images_are_mirrored_where_the_dataset_allows(few, mirrored):
    pixels = np.full((32, 3, 32, 32), 128, np.uint8)
    pixels[:, :, :, :16] = 0  # dark on the left, wherever it is shifted to
    told = replace(few, _read=lambda split, positions, shorter, side: pixels[positions], mirrored=mirrored)
    counts = []
    for epoch in (0, 1):
        x = torch.cat([x for x, _ in batches_of(told, Recipe(batch_size=8), epoch)])
        counts.append(int((x[..., 16:].mean((1, 2, 3)) < x[..., :16].mean((1, 2, 3))).sum()))
    assert sum(counts) == (32 if mirrored else 0)  # each image in one of two epochs
    assert not mirrored or 6 <= counts[0] <= 26


@pytest.fixture
def pasted(monkeypatch):
    """What CutMix was given and what it made of it, batch by batch, of images that are not shifted."""
    seen = []

    class Watched(loop.CutMix):
        def forward(self, *inputs):
            seen.append((inputs, super().forward(*inputs)))
            return seen[-1][1]

    monkeypatch.setattr(loop, "CutMix", Watched)
    monkeypatch.setattr(loop, "augment", lambda pixels, side, flip, cutout, draw: pixels)
    return seen


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.5, 10, 30), (1.0, 40, 40)])
def test_cutmix_takes_its_share_of_the_batches(few, tmp_path, pasted, share, low, high):
    loop.train("squeezenet_tiny", few, Recipe(epochs=10, batch_size=8, cutmix=share), tmp_path / "c")
    assert low <= len(pasted) <= high  # of 40


def test_cutmix_pastes_images_and_blends_their_labels(few, tmp_path, pasted):
    """A rectangle of each image is another's of the batch; the label's share is that of the area."""
    loop.train("squeezenet_tiny", few, Recipe(epochs=2, batch_size=8, cutmix=1.0), tmp_path / "c")
    areas = []
    for (x, labels), (mixed, targets) in pasted:
        own = (mixed == x).all(1).float().mean((1, 2))
        areas.extend(own.tolist())
        others = labels.roll(1)
        expected = F.one_hot(labels, 2) * own[:, None] + F.one_hot(others, 2) * (1 - own)[:, None]
        assert torch.allclose(targets, expected, atol=1e-5)
        assert torch.equal(torch.where(mixed == x, mixed, x.roll(1, 0)), mixed)
    assert min(areas) < 0.5 < max(areas)


# -- scores


class Mean(nn.Module):
    """Calls an image 1 if it is brighter than 128 on average."""

    def __init__(self):
        super().__init__()
        self.sign = nn.Parameter(torch.ones(()))

    def forward(self, x):
        mean = self.sign * x.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1)


def test_accuracy_by_hand():
    pixels = np.array([0, 255, 129, 127], np.uint8)[:, None, None, None].repeat(3, 1)
    labels = np.array([0, 1, 0, 0])
    assert loop.accuracy(loop.predictor(Mean()), pixels, labels) == 0.75
    assert loop.accuracy(loop.predictor(Mean()), pixels, labels, batch_size=3) == 0.75


def test_predictor_standardises_where_told():
    """Pixels 1, 1, 5, 5 become 88, 88, 168, 168."""
    pixels = np.array([1, 1, 5, 5], np.uint8).reshape(1, 1, 2, 2)
    seen = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten())
    nn.init.ones_(seen[0].weight)
    nn.init.zeros_(seen[0].bias)
    seen.train()
    assert loop.predictor(seen, standardised=True)(pixels).tolist() == [[-0.625, -0.625, 0.625, 0.625]]
    assert not seen.training
    assert loop.predictor(seen)(pixels)[0, 0] == -127 / 64


# -- the command


def test_device():
    with pytest.MonkeyPatch.context() as patch:
        for there, found in ((False, "cpu"), (True, "cuda")):
            patch.setattr(torch.cuda, "is_available", lambda there=there: there)
            assert program._device("auto") == found
            assert program._device("cpu") == "cpu"
        assert program._device("cuda") == "cuda"


def test_images_that_the_network_cannot_read(capsys, tmp_path, monkeypatch, few):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", lambda name, data_dir: replace(few, name="cifar10"))
    assert program.main(["--model", "squeezenet_v1_1", "--dataset", "cifar10"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cifar10 has images of 32x32 pixels, and this network reads 224x224: ")
    assert list(tmp_path.iterdir()) == []


def test_interrupt_ends_with_status_130_and_no_traceback(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "_run", interrupt)
    assert program.main([]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("interrupted")


STEM = "squeezenet_compact-imagefolder-few"
ARGV = (
    "--model squeezenet_compact --sr 0.05 --epochs 2 --small-epochs 1 --batch-size 16 --lr 0.01 --precision float32 "
    "--device cpu"
).split()


@pytest.fixture(scope="module")
def commanded(few, tmp_path_factory):
    """The command's folder and output after a float training, after QAT on top of it, and after that once more."""
    folder = tmp_path_factory.mktemp("teachers")
    left = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda name, data_dir: replace(few, name="imagefolder:few"))
        for name, more in (("float", []), ("QAT", ["--qat-epochs", "1"]), ("again", ["--qat-epochs", "1"])):
            with contextlib.redirect_stdout(io.StringIO()) as output:
                assert program.main([*ARGV, *more, "--output", str(folder)]) == 0
            files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
            boards = list((folder / f"{STEM}.tensorboard").iterdir())
            left[name] = SimpleNamespace(output=output.getvalue().splitlines(), files=files, boards=boards)
    return folder / STEM, left


def records(files: dict[str, bytes]) -> list[dict]:
    return [json.loads(line) for line in files[f"{STEM}.jsonl"].splitlines()]


def test_command_writes_both_teachers(commanded):
    stem, left = commanded
    assert sorted(left["float"].files) == [
        f"{STEM}.checkpoint",
        f"{STEM}.float.json",
        f"{STEM}.float.safetensors",
        f"{STEM}.int8.json",
        f"{STEM}.int8.safetensors",
        f"{STEM}.jsonl",
    ]
    assert store.read(f"{stem}.int8.json").network.model == "squeezenet_compact"
    module = store.read_float(f"{stem}.float.json")
    assert isinstance(module, models.SqueezeNet) and module.standardised
    assert module.blocks["fire2"].squeeze[0].out_channels == round(0.05 * 128)
    for kind in ("float", "int8"):
        about = json.loads(left["float"].files[f"{STEM}.{kind}.json"])
        assert about["recipe"] == {
            "epochs": 2, "small_epochs": 1, "qat_epochs": 0, "batch_size": 16, "optimizer": "muon", "lr": 0.01,
            "head_lr": 0.1, "label_smoothing": 0.1, "dropout": 0.0, "cutout": 0, "cutmix": 0.0, "batch_norm": True,
            "sr": 0.05, "pct3x3": None, "ema": 0.0, "initial": None, "weights": None, "mean": None,
            "std": None, "precision": "float32", "seed": 0,
        }  # fmt: skip
        assert (about["dataset"], about["images"], about["classes"]) == (
            "imagefolder:few", "few's digest", ["even", "odd"]
        )  # fmt: skip
        assert about["architecture"] == {"batch_norm": True, "dropout": 0.0, "squeeze_ratio": 0.05}
        assert about["command"] == f"python -m approx_env.training {' '.join(ARGV)} --output {stem.parent}"


def test_command_tells_what_it_does(commanded):
    stem, left = commanded
    output = left["float"].output
    assert output[0] == f"training on cpu, {torch.get_num_threads()} threads, float32"
    assert [line.split(":")[0] for line in output[1:3]] == ["float epoch 1/2", "float epoch 2/2"]
    assert output[-1] == f"wrote {stem}.int8.json"


def test_command_writes_json_lines_and_tensorboard(commanded):
    _, left = commanded
    (one, two), (*same, third) = records(left["float"].files), records(left["QAT"].files)
    assert [one, two] == same
    stages = [(record["stage"], record["epoch"], record["epochs"]) for record in (one, two, third)]
    assert stages == [("float", 1, 2), ("float", 2, 2), ("QAT", 1, 1)]
    assert set(one) == set(third) == {
        "stage", "epoch", "epochs", "loss", "learning_rate", "input_seconds", "validation_accuracy", "seconds"
    }  # fmt: skip
    assert left["again"].files[f"{STEM}.jsonl"] == left["QAT"].files[f"{STEM}.jsonl"]
    assert left["float"].boards and all(path.stat().st_size > 0 for path in left["float"].boards)


def test_quantised_training_goes_on_from_the_finished_float_one(commanded):
    stem, left = commanded
    before, after = left["float"], left["QAT"]
    assert f"resuming after epoch 2 from {stem}.checkpoint" in after.output
    assert [line.split(":")[0] for line in after.output if " epoch " in line and line[0] != "r"] == ["QAT epoch 1/1"]
    for suffix in ("checkpoint", "float.safetensors"):
        assert after.files[f"{STEM}.{suffix}"] == before.files[f"{STEM}.{suffix}"]
    assert set(after.files) - set(before.files) == {f"{STEM}.qat.checkpoint"}
    one, two = (json.loads(run.files[f"{STEM}.int8.json"])["validation_accuracy_by_scales"] for run in (before, after))
    assert list(one) == ["MSE-optimal", "clipped maximum"]
    assert list(two) == [*one, "quantisation-aware"]
    assert {way: two[way] for way in one} == one


def test_a_finished_command_writes_the_same_again(commanded):
    _, left = commanded
    assert left["again"].files == left["QAT"].files
    assert not any(line.startswith(("float epoch", "QAT epoch")) for line in left["again"].output)


def test_begins_from_a_float_teacher(few, tmp_path, monkeypatch):
    """The weights are taken over, epochs and commands add up."""
    monkeypatch.setattr(data, "load", lambda name, data_dir: few)
    first = ["--model", "squeezenet_compact", "--epochs", "2", "--batch-size", "16", "--output", str(tmp_path / "a")]
    assert program.main(first) == 0
    path = tmp_path / "a" / "squeezenet_compact-few.float.json"
    argv = [*first[:2], "--epochs", "1", "--lr", "1e-9", "--head-lr", "1e-9", "--initial", str(path)]
    assert program.main([*argv, "--output", str(tmp_path / "b")]) == 0
    one, other = (store.read_float(tmp_path / part / path.name) for part in "ab")
    for name, parameter in one.named_parameters():
        assert torch.allclose(parameter, other.get_parameter(name), atol=1e-6), name
    about = store.about_float(tmp_path / "b" / path.name)
    assert about["epochs"] == 3
    assert about["command"].count("python -m approx_env.training --model squeezenet_compact --epochs") == 2


def test_another_networks_weights_are_refused(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", lambda name, data_dir: few)
    argv = ["--epochs", "1", "--batch-size", "16", "--output", str(tmp_path)]
    assert program.main(["--model", "squeezenet_compact", *argv]) == 0
    path = tmp_path / "squeezenet_compact-few.float.json"
    capsys.readouterr()
    assert program.main(["--model", "squeezenet", "--initial", str(path), *argv]) == 2
    assert capsys.readouterr().err == (
        f"error: --initial {path} holds another network: name a float teacher of the same one\n"
    )


# -- another dataset of the same name


@pytest.fixture
def run_again(commanded, monkeypatch, capsys, few):
    """Runs the same command on other images of the same name; says what it told, and that it changed nothing."""
    stem, _ = commanded

    def run(folder: Path = stem.parent, **changes) -> str:
        monkeypatch.setattr(data, "load", lambda name, data_dir: replace(few, name="imagefolder:few", **changes))
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert program.main([*ARGV, "--output", str(folder)]) == 2
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("error: ")

    return run


def test_a_teacher_of_other_classes_is_not_replaced(commanded, run_again):
    stem, _ = commanded
    assert run_again(classes=("cat", "dog"), digest="other") == (
        f"{stem}.float.json is a teacher of other classes (even, odd): move it, or choose another --output"
    )


def test_a_teacher_of_classes_in_another_order_is_not_replaced(run_again):
    assert "is a teacher of other classes (even, odd)" in run_again(classes=("odd", "even"))


def test_a_teacher_of_other_images_is_not_replaced(commanded, run_again):
    stem, _ = commanded
    assert run_again(digest="other") == (
        f"{stem}.float.json was trained on other images, of a dataset that is called imagefolder:few as well: move it, "
        "or choose another --output"
    )


def test_a_checkpoint_of_other_images_is_not_taken(commanded, run_again, tmp_path):
    stem, _ = commanded
    shutil.copy(f"{stem}.checkpoint", tmp_path)
    assert run_again(tmp_path, digest="other") == (
        f"{tmp_path / stem.name}.checkpoint is an unfinished training with another images: finish it, remove it, or "
        "choose another --output"
    )


@pytest.mark.parametrize("kind", ["float", "int8"])
@pytest.mark.parametrize("content", [b"", b"x", b"[]", b"5", b'{"a":', b"\xff", b"[" * 100_000, None])
def test_what_is_no_teacher_is_not_replaced(run_again, tmp_path, kind, content):
    path = tmp_path / f"{STEM}.{kind}.json"
    path.mkdir() if content is None else path.write_bytes(content)
    assert run_again(tmp_path) == f"{path} is in the way and no teacher: move it, or choose another --output"


@pytest.mark.parametrize(
    "about", [{"classes": ["even", "odd"]}, {"classes": ["even", "odd"], "images": "few's digest", "more": 1}]
)
def test_an_old_teacher_of_the_same_classes_is_replaced(few, tmp_path, about):
    """Teachers of old do not know their images."""
    path = tmp_path / "t.float.json"
    program._check_replaceable(path, few)
    path.write_text(json.dumps(about))
    program._check_replaceable(path, few)


# -- what this machine cannot do


@pytest.fixture
def no_vectors(monkeypatch):
    """As on a CPU that is no x86 with AVX2."""
    monkeypatch.setattr(convolution, "available", lambda: ())


def test_the_same_teacher_without_the_fast_engine(few, tmp_path, no_vectors):
    torch.manual_seed(0)
    module = models.build("squeezenet_tiny", 2).eval()
    for name in ("portable", "vector"):
        with pytest.MonkeyPatch.context() as patch:
            if name == "vector":
                patch.setattr(convolution, "available", AVAILABLE)
            program.write_teachers(tmp_path / name, "squeezenet_tiny", module, few, RECIPE)
    for suffix in ("float.json", "float.safetensors", "int8.json", "int8.safetensors"):
        assert (tmp_path / f"portable.{suffix}").read_bytes() == (tmp_path / f"vector.{suffix}").read_bytes()


@pytest.mark.parametrize("there", [True, False])
def test_the_command_says_at_its_start_what_is_slow_here(few, tmp_path, monkeypatch, capsys, there):
    monkeypatch.setattr(convolution, "available", lambda: ("AVX2",) if there else ())
    monkeypatch.setattr(data, "load", lambda name, data_dir: few)
    monkeypatch.setattr(program, "train", lambda *_, **__: print("epochs"))
    monkeypatch.setattr(program, "write_teachers", lambda *_, **__: print("teachers"))
    assert program.main(["--output", str(tmp_path)]) == 0
    note = "this CPU has no AVX2: INT8 accuracies are measured by the portable engine, slowly"
    assert capsys.readouterr().out.splitlines()[1:] == [*([] if there else [note]), "epochs", "teachers"]
