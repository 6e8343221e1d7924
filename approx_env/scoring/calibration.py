"""Histograms of each layer's codes on calibration images, and what follows from them: tmax, observation, start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from approx_env import tap
from approx_env.errors import InputError
from approx_env.int8.network import Network

LOWEST_TMAX = 15
SPREAD = 0.1  # standard deviation of layers' shares of nonzero codes around the configuration's own, in a random one


@dataclass(frozen=True)
class Layer:
    """What calibration says of one approximated layer."""

    name: str
    histogram: np.ndarray  # (256,) int64: how often each code came
    tmax: int  # highest approximated code, 15..255
    observation: np.ndarray  # (4,) float32: depth, mean / 255, std / 128, p90 / 255

    @property
    def quintile(self) -> tuple[int, int, int, int]:
        """The historical starting codes."""
        return tap.quintile(self.tmax)

    def limit(self, share: float) -> int:
        """The smallest code that at least `share` per cent of the nonzero codes do not exceed."""
        return percentile(np.r_[0, self.histogram[1:]], share)

    def with_tmax(self, share: float, offset: int) -> Layer:
        """The same layer with tmax = clip(p + offset, 15, 255), where p is the percentile of its nonzero codes."""
        return replace(self, tmax=int(np.clip(self.limit(share) + offset, LOWEST_TMAX, tap.HIGHEST_CODE)))

    @property
    def approximated(self) -> float:
        """Share of the nonzero codes that TAP approximates, in [0, 1]."""
        nonzero = self.histogram[1:]
        return float(nonzero[: self.tmax].sum() / max(1, nonzero.sum()))


@dataclass(frozen=True)
class Calibration:
    """The approximated layers in forward order, and how their tmax was fixed."""

    layers: tuple[Layer, ...]
    percentile: float  # of the nonzero codes, in (0, 100]
    offset: int  # added to it
    search_tmax: bool = False  # whether a search chooses tmax as a fifth code of each layer
    proposed: tuple[tuple[int, ...], ...] | None = None  # where searches begin, if not at quintile

    @property
    def tmax(self) -> tuple[int, ...]:
        """tmax of every layer."""
        return tuple(layer.tmax for layer in self.layers)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the codes that a configuration has for a layer."""
        return tap.WITH_TMAX if self.search_tmax else tap.CODES

    @property
    def quintile(self) -> tuple[tuple[int, ...], ...]:
        """The historical configuration; where tmax is searched, with the calibrated one as the fifth code."""
        return tuple((*layer.quintile, layer.tmax)[: len(self.names)] for layer in self.layers)

    @property
    def start(self) -> tuple[tuple[int, ...], ...]:
        """The configuration that searches begin with."""
        return self.quintile if self.proposed is None else self.proposed

    def valid(self, configuration: Sequence[Sequence[int]]) -> bool:
        """Whether each layer has codes, and valid ones."""
        sizes = {len(codes) for codes in configuration}
        if len(configuration) != len(self.layers) or sizes != {len(self.names)}:
            return False
        return not any(tap.problems(codes, tmax) for codes, tmax in zip(configuration, self.tmax, strict=True))

    def random(self, generator: np.random.Generator) -> tuple[tuple[int, ...], ...]:
        """Draws a configuration, each layer's codes uniformly from the valid ones under its tmax.

        Where tmax is searched, a share of nonzero codes is drawn first, uniformly in [0, 1], from which each layer
        strays a little; tmax is the code up to which the share lies. So the shares of exact products spread evenly.
        """
        if not self.search_tmax:
            return tuple(tap.random_codes(tmax, generator) for tmax in self.tmax)
        shares = np.clip(generator.random() + generator.normal(0, SPREAD, len(self.layers)), 0, 1)
        limits = [
            max(tap.LOWEST_TMAX, layer.limit(100 * share)) for layer, share in zip(self.layers, shares, strict=True)
        ]
        return tuple((*tap.random_codes(tmax, generator), tmax) for tmax in limits)

    def table(self) -> str:
        """One line a layer: its starting codes, its tmax, and the share of nonzero codes approximated."""
        width = max(len(layer.name) for layer in self.layers) + 1
        return "\n".join(
            f"{layer.name + ':':{width}} "
            + " ".join(f"{name}={code}" for name, code in zip(tap.CODES, layer.quintile, strict=True))
            + f" tmax={layer.tmax} (p{self.percentile:g}{self.offset:+d}), {100 * layer.approximated:.1f} % of nonzero"
            for layer in self.layers
        )


def uncounted(limits: Mapping[str, int]) -> Calibration:
    """A calibration without images: each layer's tmax is given, and its histogram is empty."""
    empty, nothing = np.zeros(tap.CODE_COUNT, np.int64), np.zeros(4, np.float32)
    return Calibration(tuple(Layer(name, empty, tmax, nothing) for name, tmax in limits.items()), 100.0, 0)


def percentile(histogram: np.ndarray, share: float) -> int:
    """The smallest code that at least `share` per cent of a histogram's codes do not exceed (0 of an empty one)."""
    cumulative = np.cumsum(histogram)
    # The product is rounded so that 90 % of 10 codes is 9 of them, not 9.000000000000002.
    return int(np.searchsorted(cumulative, round(cumulative[-1] * share / 100, 6))) if cumulative[-1] else 0


def observe(histogram: np.ndarray, depth: float) -> np.ndarray:
    """`[depth, mean / 255, std / 128, p90 / 255]` over all codes of `histogram (256,)`: `(4,) float32`."""
    codes, total = np.arange(tap.CODE_COUNT), max(1, histogram.sum())
    mean = (histogram * codes).sum() / total
    std = np.sqrt((histogram * (codes - mean) ** 2).sum() / total)
    return np.array([depth, mean / 255, std / 128, percentile(histogram, 90) / 255], np.float32)


def calibrate(
    network: Network,
    batches: Iterable[np.ndarray],
    *,
    tmax_percentile: float = 90.0,
    tmax_offset: int = 10,
    search_tmax: bool = False,
    engine: str = "vector",
    device: str = "cpu",
) -> Calibration:
    """Counts each layer's codes on calibration images and fixes its tmax.

    Args:
        batches: images `(n, c, h, w) uint8`.
        tmax_percentile: in (0, 100].
        tmax_offset: codes, may be negative.
        search_tmax: whether tmax is only where a search begins.
        engine, device: what to run on, as `engines.build` takes them.

    Raises:
        InputError: a layer never has a nonzero code.
    """
    from approx_env.engines import build as engines  # brings torch, which the process of a search does without

    runner = engines.build(network, engine, device)
    histograms = np.zeros((len(network.layers), tap.CODE_COUNT), np.int64)
    for images in batches:
        state = runner.start(images)
        for histogram in histograms:
            histogram += runner.histogram(state)
            state = runner.advance(state, None)
    layers = []
    for index, (name, histogram) in enumerate(zip(network.layers, histograms, strict=True)):
        if not histogram[1:].any():
            raise InputError(f"layer {name} is zero on every calibration image: the teacher is broken, train another")
        depth = index / max(1, len(network.layers) - 1)
        layers.append(Layer(name, histogram, 0, observe(histogram, depth)).with_tmax(tmax_percentile, tmax_offset))
    return Calibration(tuple(layers), tmax_percentile, tmax_offset, search_tmax)
