"""What the benchmarks run: INT8 networks, digits repeated to any number, and configurations that never begin alike."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from approx_env import data
from approx_env.engines import build as engines
from approx_env.engines.base import Engine
from approx_env.env import CALIBRATION_BATCH_SIZE, CALIBRATION_BATCHES
from approx_env.int8 import quantize
from approx_env.int8.network import Network, pool_first
from approx_env.scoring import calibration
from approx_env.scoring.calibration import Calibration
from approx_env.scoring.configuration import Configuration
from approx_env.scoring.evaluator import Problem, Reward
from approx_env.teachers import models, store

SHIPPED = ("squeezenet_compact", "alexnet", "squeezenet")
CALIBRATION_IMAGES = CALIBRATION_BATCHES * CALIBRATION_BATCH_SIZE


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits of the search split, repeated: `(count, 3, 32, 32) uint8` and labels `(count,) int64`."""
    pixels, labels = data.load("digits").load("search")
    order = np.arange(count) % len(pixels)
    return pixels[order], labels[order]


def network(model: str) -> Network:
    """The shipped digits teacher of `model`; of a model without one, an untrained network, which is as fast."""
    if model in SHIPPED:
        return store.read(store.path_of(model, "digits")).network
    torch.manual_seed(0)
    dataset = data.load("digits")
    module = models.build(model, len(dataset.classes))
    pixels, _ = dataset.load("calibration", CALIBRATION_BATCH_SIZE)
    return quantize.quantize(
        module, pixels, model=model, classes=dataset.classes, layers=module.layers, attention=module.attention
    )


def problem(model: str, count: int) -> Problem:
    """The search problem of `model` on `count` images, calibrated as a search is."""
    int8 = network(model)
    pixels, _ = data.load("digits").load("calibration", CALIBRATION_IMAGES)
    calibrated = calibration.calibrate(int8, np.split(pixels, CALIBRATION_BATCHES))
    return Problem(int8, calibrated, *images(count), Reward())


def bare_engine(int8: Network) -> Engine:
    """An engine for bare passes, of the network as the evaluator has it."""
    return engines.build(pool_first(int8))


def macs(int8: Network) -> int:
    """Multiply-accumulates an image."""
    return sum(int8.macs.values())


def configurations(calibrated: Calibration, seed: int = 0) -> Iterator[Configuration]:
    """Yields configurations around quintile; no two have the same codes in their first layer.

    So none can start from what another one has left behind.
    """
    generator = np.random.default_rng(seed)
    spreads = [max(1, (tmax // 5 - 1) // 2) for tmax in calibrated.tmax]  # fifths stay in order
    seen = set()
    while True:
        configuration = tuple(
            tuple(int(code) for code in codes + generator.integers(-spread, spread + 1, len(codes)))
            for codes, spread in zip(np.array(calibrated.quintile), spreads, strict=True)
        )
        if configuration[0] not in seen:
            seen.add(configuration[0])
            yield configuration
