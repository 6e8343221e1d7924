"""What formats write: an INT8 network, the codes of its layers, and images to prove copies with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from approx_env import tap
from approx_env.adapt.simulation import Configuration
from approx_env.engines import build as engines
from approx_env.engines import reference
from approx_env.int8 import cost
from approx_env.int8.network import Network
from approx_env.int8.nodes import INPUT, Site

GOLDEN_IMAGES = 16
CHUNK = 64  # images that an engine takes at a time
LONGEST_NAME = 40


@dataclass(frozen=True)
class Split:
    """Images with what our engine makes of them."""

    name: str
    images: np.ndarray  # (n, c, h, w) uint8
    labels: np.ndarray  # (n,) int64
    logits: np.ndarray  # (n, classes) int64, before `Network.logit_scale`

    @property
    def accuracy(self) -> float:
        """Share of the images in [0, 1] whose largest logit is the label's."""
        return int((self.logits.argmax(1) == self.labels).sum()) / len(self.labels)


@dataclass(frozen=True)
class Deployment:
    """A network that runs under codes."""

    network: Network
    configuration: Configuration  # codes and tmax by layer, in forward order
    images: np.ndarray  # (n, c, h, w) uint8, of the golden vectors
    labels: np.ndarray  # (n,) int64
    split: Split | None = None  # whole, for copies that a person runs

    @cached_property
    def golden(self) -> dict[str, np.ndarray]:
        """What every node gives for `images`, by name, as the exact reference has it: uint8 codes, int64 logits."""
        return reference.forward(self.network, self.images, self.configuration)

    @cached_property
    def files(self) -> dict[str, str]:
        """A name for each tensor that any file system and any language takes: its place, and letters of its name."""
        names = [INPUT, *(node.name for node in self.network.nodes)]
        return {name: f"{place:02d}_{identifier(name)}" for place, name in enumerate(names)}

    @cached_property
    def layer_of(self) -> dict[str, str]:
        """The layer whose codes a weighted node multiplies, by the tensor that it reads."""
        return {reader.tensor: reader.layer for reader in cost.readers(self.network)}

    def table(self, layer: str) -> np.ndarray:
        """What each code of a layer becomes: `(256,) uint8`."""
        codes, tmax = self.configuration[layer]
        return tap.tap(np.arange(tap.CODE_COUNT, dtype=np.uint8), codes, tmax)

    @property
    def sites(self) -> list[Site]:
        """The nodes that approximate, in forward order."""
        return [node for node in self.network.nodes if isinstance(node, Site)]


def identifier(name: str) -> str:
    """Letters, digits and underscores of a name.

    >>> identifier("../fire2.squeeze 1")
    'fire2_squeeze_1'
    """
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:LONGEST_NAME] or "x"


def run_split(
    name: str,
    network: Network,
    configuration: Mapping,
    images: np.ndarray,
    labels: np.ndarray,
    engine: str = "vector",
    device: str = "cpu",
) -> Split:
    """Takes images through our engine."""
    runner = engines.build(network, engine, device)
    logits = []
    for start in range(0, len(images), CHUNK):
        state = runner.start(images[start : start + CHUNK])
        for layer in network.layers:
            state = runner.advance(state, *configuration[layer])
        logits.append(state[network.nodes[-1].name].cpu().numpy().astype(np.int64))
    return Split(name, images, labels, np.concatenate(logits))
