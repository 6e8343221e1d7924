"""Shared by all tests: the shipped teachers over few images, and networks small enough to follow by hand."""

import signal
from collections import OrderedDict
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest
import torch
from torch import nn
from xdist.scheduler import LoadScopeScheduling

from approx_env import data
from approx_env.int8 import quantize
from approx_env.int8.network import Network
from approx_env.int8.nodes import Convolution, Flatten, Linear, MaxPool, Site
from approx_env.scoring import calibration
from approx_env.scoring.evaluator import Evaluator, Problem, Reward
from approx_env.teachers import store

MODELS = ("squeezenet", "alexnet")
SEARCHES = ("tests/e2e/", "tests/cluster/")
CALIBRATION_IMAGES, SEARCH_IMAGES = 64, 24

# The same examples on every run; `--hypothesis-profile explore` looks for new ones.
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile("fixed")


class Scheduling(LoadScopeScheduling):
    """Tests of a folder that runs searches get one worker, one after another.

    They share a node of Ray, and runs that have ended.
    """

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in SEARCHES if nodeid.startswith(folder)), nodeid)


def pytest_xdist_make_scheduler(config, log):
    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """What tests start hears Ctrl-C, though a shell that starts tests in the background has them ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.fixture(scope="session")
def networks() -> dict[str, Network]:
    """The shipped INT8 digits teachers by model."""
    return {model: store.read(store.path_of(model, "digits")).network for model in MODELS}


@pytest.fixture(scope="session")
def evaluators(networks, digits) -> dict[str, Evaluator]:
    """An evaluator of each shipped teacher, on few images."""
    images, _ = digits.load("calibration", CALIBRATION_IMAGES)
    search = digits.load("search", SEARCH_IMAGES)
    return {
        model: Evaluator(Problem(network, calibration.calibrate(network, [images]), *search, Reward()))
        for model, network in networks.items()
    }


@pytest.fixture(params=MODELS)
def model(request) -> str:
    return request.param


@pytest.fixture
def network(model, networks) -> Network:
    return networks[model]


@pytest.fixture
def evaluator(model, evaluators) -> Evaluator:
    return evaluators[model]


@pytest.fixture
def quintile(evaluator):
    """The quintile configuration by layer, as the reference takes it."""
    return {layer.name: (layer.quintile, layer.tmax) for layer in evaluator.calibration.layers}


@pytest.fixture(scope="session")
def by_hand() -> Network:
    """Two channels of 2x2 pixels, a 1x1 convolution, the layer 'first', a 2x2 pool, and a linear layer.

    With p = pixel - 128, the codes of 'first' are clamp((p0 - p1 + 4) / 2) and clamp((2 p0 + 3 p1 - 8) / 4), halves
    rounded up, and the logits are 0.5 (c0 + 2 c1) / 64 and 0.25 (-c0 + 16) / 64.
    """
    conv = Convolution(
        "conv", ("input",),
        weight=np.array([[1, -1], [2, 3]], np.int8)[:, :, None, None],
        bias=np.array([4, -8], np.int32),
        multiplier=np.array([2**15, 2**14], np.int32),
        relu=True, scale=1 / 64, logits=False, stride=1, padding=0,
    )  # fmt: skip
    linear = Linear(
        "linear", ("flat",),
        weight=np.array([[1, 2], [-1, 0]], np.int8),
        bias=np.array([0, 16], np.int32),
        multiplier=np.array([2**15, 2**14], np.int32),
        relu=False, scale=1 / 64, logits=True,
    )  # fmt: skip
    site, pool = Site("first", ("conv",)), MaxPool("pool", ("first",), kernel=2, stride=2, ceil=False)
    nodes = (conv, site, pool, Flatten("flat", ("pool",)), linear)
    return Network("by hand", ("no", "yes"), (2, 2, 2), 1 / 64, 128, nodes, ())


@pytest.fixture(scope="session")
def ramp() -> Network:
    """One channel of 1x8 pixels; the codes of its layer 'ramp' are pixel - 128, its logit their mean."""
    conv = Convolution(
        "conv", ("input",),
        weight=np.ones((1, 1, 1, 1), np.int8), bias=np.zeros(1, np.int32), multiplier=np.full(1, 2**16, np.int32),
        relu=True, scale=1 / 64, logits=False, stride=1, padding=0,
    )  # fmt: skip
    linear = Linear(
        "linear", ("flat",),
        weight=np.ones((2, 8), np.int8), bias=np.zeros(2, np.int32), multiplier=np.full(2, 2**19, np.int32),
        relu=False, scale=1 / 64, logits=True,
    )  # fmt: skip
    nodes = (conv, Site("ramp", ("conv",)), Flatten("flat", ("ramp",)), linear)
    return Network("ramp", ("no", "yes"), (1, 1, 8), 1 / 64, 128, nodes, ("ramp",))


class SmallModule(nn.Sequential):
    """Three approximated layers: behind a strided convolution, before a ceil-mode pool, and a linear one."""

    layers = {"one": "one.point", "two": "two.point", "three": "three.point"}
    attention = ("one", "three")

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)

        def block(*parts):
            return nn.Sequential(OrderedDict([*((str(i), part) for i, part in enumerate(parts))], point=nn.Identity()))

        super().__init__(
            OrderedDict(
                one=block(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.BatchNorm2d(5), nn.ReLU()),
                two=block(nn.Conv2d(5, 7, 3, padding=1, bias=False), nn.ReLU()),
                pool=nn.MaxPool2d(3, stride=2, ceil_mode=True),
                flatten=nn.Flatten(),
                three=block(nn.Dropout(0.5), nn.Linear(7 * 4, 11), nn.ReLU()),
                last=nn.Linear(11, 2),
            )
        )


@pytest.fixture(scope="session")
def small() -> SimpleNamespace:
    """A small float `module`, its INT8 `network`, and the 3x10x10 `images` and `labels` that it is scored on."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (48, 3, 10, 10), np.uint8)
    module = SmallModule().eval()
    network = quantize.quantize(
        module, images, model="small", classes=("no", "yes"), layers=module.layers, attention=module.attention
    )
    return SimpleNamespace(module=module, network=network, images=images, labels=generator.integers(0, 2, 48))


@pytest.fixture(scope="session")
def problem(small) -> Problem:
    """The search problem of `small`, with the return as it is typed."""
    calibrated = calibration.calibrate(small.network, [small.images])
    return Problem(small.network, calibrated, small.images, small.labels, Reward())


@pytest.fixture(scope="session")
def few() -> data.Dataset:
    """96 random 3x32x32 images of two classes, 32 of them to train on."""
    generator = np.random.default_rng(1)
    sizes = {"train": 32, "calibration": 16, "search": 16, "validation": 16, "test": 16}
    pixels = {split: generator.integers(0, 256, (count, 3, 32, 32), np.uint8) for split, count in sizes.items()}
    labels = {split: np.arange(count) % 2 for split, count in sizes.items()}
    return data.Dataset(
        "few",
        ("even", "odd"),
        False,
        labels,
        "few's digest",
        lambda split, positions, shorter, side: pixels[split][positions],
    )
