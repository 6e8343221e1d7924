"""What every member of the family must do: be quantised, stored, run bit for bit, be a teacher, and be searched."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torchvision.models import resnet

from approx_env import data
from approx_env.engines import build as engines
from approx_env.engines.vector.engine import VectorEngine
from approx_env.env import TapEnv
from approx_env.int8 import quantize
from approx_env.int8.network import Network, pool_first
from approx_env.int8.nodes import Addition, ScaledAddition
from approx_env.int8.sites import with_sites
from approx_env.scoring import calibration
from approx_env.scoring.evaluator import Evaluator, Problem, Reward, Score
from approx_env.teachers import models, store
from approx_env.teachers.training import loop, program
from search import run
from tests import command, twins

SLOW = {"squeezenet_v1_0", "squeezenet_v1_1", "vgg16"}
ODDEST = "squeezenet_complex_bypass"
SIZES = {"train": 64, "calibration": 32, "search": 16, "validation": 16, "test": 16}


@pytest.fixture(scope="module")
def few_digits() -> data.Dataset:
    """The first digits of each split."""
    digits = data.load("digits")
    return replace(digits, labels={split: digits.labels[split][:count] for split, count in SIZES.items()})


def members(slow: set[str]) -> list:
    """All members as parameters, some marked as slow."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in models.MODELS]


@pytest.fixture(scope="module", params=members(SLOW))
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def trained(name, few_digits, tmp_path_factory):
    """Path of an INT8 teacher that the training command has made in one epoch."""
    folder = tmp_path_factory.mktemp(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda *arguments: few_digits)
        argv = ["--model", name, "--epochs", "1", "--batch-size", "16", "--output", str(folder)]
        assert program.main(argv) == 0
    return folder / f"{name}-digits.int8.json"


@pytest.fixture(scope="module")
def network(trained) -> Network:
    return store.read(trained).network


@pytest.fixture(scope="module")
def problem(network, few_digits) -> Problem:
    sized = few_digits.sized(network.input_shape[1])
    calibrated = calibration.calibrate(network, [sized.load("calibration")[0]])
    return Problem(network, calibrated, *sized.load("search", 4), Reward())


@pytest.fixture(scope="module")
def everywhere(network, few_digits) -> Problem:
    """The same with all sites."""
    chosen, sized = with_sites(network, "all"), few_digits.sized(network.input_shape[1])
    calibrated = calibration.calibrate(chosen, [sized.load("calibration")[0]])
    return Problem(chosen, calibrated, *sized.load("search", 4), Reward())


def test_layers_follow_from_the_model(name, network):
    module = models.build(name, 10)
    assert network.layers == tuple(module.layers)
    assert network.attention == module.attention
    assert network.input_shape == (3, module.image_size, module.image_size)
    assert network.standardised == module.standardised
    additions = {"squeezenet_simple_bypass": (4, 0), "squeezenet_complex_bypass": (8, 0), "resnet8": (0, 3),
                 "resnet20": (0, 9)}  # fmt: skip
    kinds = [sum(isinstance(node, kind) for node in network.nodes) for kind in (Addition, ScaledAddition)]
    assert tuple(kinds) == additions.get(name, (0, 0))


def by_layer(problem: Problem) -> dict:
    """The quintile configuration, as the reference takes it."""
    configured = zip(problem.calibration.quintile, problem.calibration.tmax, strict=True)
    return dict(zip(problem.network.layers, configured, strict=True))


@pytest.mark.parametrize("engine", twins.ENGINES)
def test_engines_give_the_integers_of_the_reference(network, problem, engine):
    for configuration in ({}, by_layer(problem)):
        twins.check_every_node(network, problem.images[:2], configuration, twins.ENGINES[engine])


@pytest.mark.parametrize("engine", twins.ENGINES)
def test_engines_give_the_integers_of_the_reference_with_all_sites(everywhere, engine):
    for network in (everywhere.network, pool_first(everywhere.network)):
        twins.check_every_node(network, everywhere.images[:2], by_layer(everywhere), twins.ENGINES[engine])


@pytest.mark.parametrize("sites", ["standard", "all"])
def test_engines_score_alike(problem, everywhere, sites):
    problem = everywhere if sites == "all" else problem
    fast, other = (Evaluator(replace(problem, engine=name)) for name in engines.ENGINES)
    assert torch.equal(fast.teacher_logits, other.teacher_logits)
    one, same = (evaluator.evaluate(problem.calibration.quintile) for evaluator in (fast, other))
    for name in Score.__dataclass_fields__:
        assert np.array_equal(getattr(one, name), getattr(same, name)), name


def test_pools_move_in_front_of_layers_without_a_change(network, problem):
    def logits(chosen: Network) -> torch.Tensor:
        runner = VectorEngine(chosen)
        state = runner.start(problem.images)
        for codes, tmax in zip(problem.calibration.quintile, problem.calibration.tmax, strict=True):
            state = runner.advance(state, codes, tmax)
        return runner.logits(state)

    assert torch.equal(logits(network), logits(pool_first(network)))


def test_int8_follows_the_float_network(trained, network, few_digits):
    module = store.read_float(str(trained).replace(".int8.", ".float."))
    images, _ = few_digits.sized(module.image_size).load("validation")
    exact = loop.predictor(module, module.standardised)(images)
    found = VectorEngine(network).forward(images)
    assert (found - exact).abs().mean() < 0.1 * exact.std()


def test_shared_scales(network):
    """What is added or concatenated has one scale, and so has the sum, but where operands have multipliers."""
    for node in network.nodes:
        if len(node.inputs) > 1 and not isinstance(node, ScaledAddition):
            assert {network.scales[source] for source in node.inputs} == {network.scales[node.name]}


def test_environment(problem):
    check_env(TapEnv(Evaluator(problem)), skip_render_check=True)


@pytest.mark.parametrize("name", members(set(models.MODELS) - {ODDEST}), indirect=True)
def test_search(name, trained, few_digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", lambda *arguments: few_digits)
    argv = f"""--layers {name} --teacher {trained} --algorithm random --episodes 3 --search-images 4 --calib-batches 2
        --calib-batch-size 16 --num-env-runners 0 --top 2 --address {command.node()} --results {tmp_path}
        --run-name r"""
    assert run.main(argv.split()) == 0, capsys.readouterr().err
    layers = models.build(name, 10).layers
    rows = pd.read_parquet(tmp_path / "r" / "episodes")
    assert len(rows) == 3
    assert all(f"{layer}_t1" in rows for layer in layers)
    assert list(json.loads((tmp_path / "r" / "best.json").read_text())["layers"]) == list(layers)


@pytest.mark.parametrize("block", [resnet.BasicBlock, resnet.Bottleneck])
def test_residual_blocks_of_torchvision(block, few_digits):
    """Which add in place, and run one ReLU module several times."""
    torch.manual_seed(0)
    wide = 16 * block.expansion
    shortcut = torch.nn.Sequential(torch.nn.Conv2d(16, wide, 1, 2), torch.nn.BatchNorm2d(wide))
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), block(16, 16, 2, shortcut), block(wide, 16),
        torch.nn.Identity(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(wide, 10),
    ).eval()  # fmt: skip
    images, _ = few_digits.load("calibration")
    made = quantize.quantize(module, images, model="own", classes=few_digits.classes, layers={"a": "4"}, attention=())
    assert sum(isinstance(node, ScaledAddition) for node in made.nodes) == 2
    exact = loop.predictor(module)(images)
    assert (VectorEngine(made).forward(images) - exact).abs().max() < 0.05 * exact.abs().max()
    for engine in twins.ENGINES.values():
        twins.check_every_node(made, images[:3], {"a": ((3, 20, 50, 90), 120)}, engine)


def test_quantising_needs_no_model_class(few_digits):
    """A bypass of one's own, with the input added before the pool that follows."""

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1)
            self.one, self.two, self.pool = torch.nn.Identity(), torch.nn.Identity(), torch.nn.MaxPool2d(2)
            self.last = torch.nn.Linear(8 * 16 * 16, 10)

        def forward(self, x):
            x = self.one(torch.relu(self.first(x)))
            x = self.pool(self.two(x + torch.relu(self.second(x))))
            return self.last(torch.flatten(x, 1))

    module = Own().eval()
    images, _ = few_digits.load("calibration")
    made = quantize.quantize(
        module, images, model="own", classes=few_digits.classes, layers={"a": "one", "b": "two"}, attention=("b",)
    )
    assert len({made.scales[layer] for layer in ("a", "b", "first", "second")}) == 1
    exact = loop.predictor(module)(images)
    assert (VectorEngine(made).forward(images) - exact).abs().max() < 0.05 * exact.abs().max()
