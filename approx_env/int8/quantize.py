"""Makes the INT8 network from a trained float module.

The module is traced with torch.fx, dropout removed, batch norm folded into the convolution before it, ReLU into the
weighted node before it. Activation scales come from calibration images: the clip that minimises the mean squared
error of the codes. Tensors that are concatenated share one scale, so that the concatenation is exact. So do two
tensors that are added, and their sum: a bypass addition is then the integer sum of two codes, cut at 255, without a
multiplication or a rounding; the scale is fitted on operands and sum together, in which the sum is the widest. Where an
operand has a sign, as a residual branch has, or a ReLU6, operands and sum keep scales of their own (`ScaledAddition`).

A ReLU6 is a ReLU whose scale is at most 6 / 255: the cut at code 255 is then at 6 or below.

Requantisation is integer (see `nodes`): the scales of weights are fitted to its multipliers.

Weights are kept 'pair-safe'. x86 cores with AVX2 but without VNNI multiply uint8 by int8 in pairs and saturate the
sum of a pair at 16 bits (oneDNN developer guide, 'Nuances of int8 computations'): 255 * 127 twice is too much. So
each output channel's scale is large enough that neighbouring input channels' weights of one sign add up to at most
128 in magnitude. Then every x86 core, and any hardware with wider accumulators, computes the same integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from approx_env import data
from approx_env.errors import InputError
from approx_env.int8 import sites
from approx_env.int8.network import Network
from approx_env.int8.nodes import (
    HIGHEST_MULTIPLIER,
    HIGHEST_SUM,
    HIGHEST_WEIGHT,
    INPUT,
    SHIFT,
    Addition,
    Concatenation,
    Flatten,
    GlobalAveragePool,
    Node,
    ScaledAddition,
    weight_pairs,
)
from approx_env.int8.trace import Trace
from approx_env.tap import HIGHEST_CODE

HIGHEST_BIAS = HIGHEST_SUM // 2
FINEST_LOGITS = 2**12  # multiplier of the last layer's widest channel
MARGIN = 1e-6  # that a multiple may be too small: rounding noise must not choose the next one
LOWEST_WEIGHT = 1e-12  # of a layer whose weights are all 0
SAMPLES = 1_000_000  # activations a tensor that its scale is fitted on, at most
CLIPS = np.linspace(0.2, 1.0, 81)  # candidate clips, as shares of the maximum


def quantize_weight(weight: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Rounds `weight (out, in, ...) float` to pair-safe int8 per output channel.

    A channel's scale is the smallest multiple of `step` that keeps its codes in range. With
    `step = scale / (2**16 * input scale)` that multiple is the integer multiplier of the channel's requantisation, and
    nothing is lost by its rounding: the weights are rounded to the scale that it stands for.

    Args:
        step: of the scales, > 0.

    Returns:
        Codes of the same shape, int8 in -127..127, and multiples `(out,) int32` of `step`.
    """
    magnitude = np.abs(weight).reshape(len(weight), -1).max(1)
    # Two roundings add at most 1 to a pair: 127 before them is at most 128 after.
    wanted = np.maximum(magnitude, weight_pairs(weight)) / HIGHEST_WEIGHT / step
    multiples = np.clip(np.ceil(wanted * (1 - MARGIN)), 1, HIGHEST_MULTIPLIER)
    codes = np.rint(weight / (multiples * step).reshape(-1, *[1] * (weight.ndim - 1)))
    return np.ascontiguousarray(np.clip(codes, -HIGHEST_WEIGHT, HIGHEST_WEIGHT), np.int8), multiples.astype(np.int32)


def rounded(
    weight: np.ndarray, bias: np.ndarray, input_scale: float, scale: float | None, wide: bool = False
) -> dict[str, Any]:
    """The fields of a weighted node: weight, bias, multiplier, scale and logits.

    Args:
        weight: `(out, in, ...) float`, batch norm folded in.
        bias: `(out,) float`.
        scale: of its output codes, or of the addition that reads it; None if it gives logits.
        wide: whether an addition reads it.
    """
    logits = scale is None or wide
    scale = logit_scale(weight, input_scale) if scale is None else scale
    step = requantisation_step(scale, input_scale)
    codes, multiplier = quantize_weight(weight, step)
    integers = np.clip(np.rint(bias / (input_scale * step * multiplier)), -HIGHEST_BIAS, HIGHEST_BIAS).astype(np.int32)
    return {"weight": codes, "bias": integers, "multiplier": multiplier, "scale": scale, "logits": logits}


def requantisation_step(scale: float, input_scale: float) -> float:
    """What a multiplier of 1 stands for as a scale of weights, between tensors of codes of these two scales."""
    return scale / (1 << SHIFT) / input_scale


def logit_scale(weight: np.ndarray, input_scale: float) -> float:
    """A scale of logits under which the multipliers of `weight (out, in, ...) float` have FINEST_LOGITS steps."""
    highest = max(np.abs(weight).max(), weight_pairs(weight).max(), LOWEST_WEIGHT) / HIGHEST_WEIGHT
    return float(highest * input_scale * (1 << SHIFT) / FINEST_LOGITS)


def mse_scale(sample: np.ndarray) -> float:
    """Scale of uint8 codes with zero point 0 that minimises the mean squared error on `sample`, values >= 0."""
    values = sample[sample > 0].astype(np.float64)
    if not len(values):
        return 1.0
    counts, edges = np.histogram(values, bins=4096, range=(0, values.max()))
    centres = (edges[:-1] + edges[1:]) / 2
    scales = CLIPS * values.max() / 255
    errors = [(counts * (np.clip(np.rint(centres / s), 0, 255) * s - centres) ** 2).sum() for s in scales]
    return float(scales[int(np.argmin(errors))])


def clipped_maximum_scale(sample: np.ndarray) -> float:
    """Scale of uint8 codes with zero point 0 that leaves one nonzero value in 10,000 of `sample` above code 255."""
    values = sample[sample > 0]
    return float(np.quantile(values, 0.9999)) / 255 if len(values) else 1.0


def quantize(module: nn.Module, images: np.ndarray, **about) -> Network:
    """Turns a float module into an INT8 network: `draft(...).network()`, with the arguments and errors of `draft`."""
    return draft(module, images, **about).network()


def draft(
    module: nn.Module,
    images: np.ndarray,
    *,
    model: str,
    classes: tuple[str, ...],
    layers: Mapping[str, str] | None = None,
    attention: tuple[str, ...] | None = None,
    standardised: bool = False,
    scale_of: Callable[[np.ndarray], float] = mse_scale,
) -> Draft:
    """Reads a float module and fits the scales of its activations.

    Args:
        module: built of convolutions (grouped and depthwise, too), batch norms, linear layers, ReLUs and ReLU6s, max
            pools, average pools, global average pools, flatten, dropout, channel concatenations, and additions, behind
            which a ReLU follows if an operand has a sign; in float32, trained.
        images: calibration images `(n, c, h, w) uint8`.
        model, classes, attention, standardised: as in `Network`; by default attention is what `sites.watched` says.
        layers: for each approximated layer the path of its record point, an `nn.Identity` in `module`. By default
            every tensor that is multiplied gets a layer, as `sites.with_sites` has it.
        scale_of: gives the scale of codes from a sample of the activations that share it.

    Raises:
        InputError: the module does things that the network cannot hold, with each of them.
    """
    trace = Trace(module, model, {path: layer for layer, path in (layers or {}).items()})
    pixels = data.standardise(images) if standardised else images
    sharing = _sharing(trace.found)
    found = sites.with_parts(trace.found) if layers is None else trace.found
    sharing |= {name: sharing[parts["inputs"][0]] for name, parts in found.items() if name not in sharing}
    limits = _limits(trace.found, sharing)
    sources = [name for name, parts in trace.found.items() if _is_source(parts)]
    wanted = {trace.last[name]: sharing[name] for name in sources if sharing[name] is not None}
    samples = _sample(trace.graph, wanted, pixels)
    fitted = {group: min(scale_of(sample), limits.get(group, np.inf)) for group, sample in samples.items()}
    fitted[INPUT] = data.PIXEL_SCALE
    scales = {name: fitted.get(group) for name, group in sharing.items()}
    header = {
        "model": model,
        "classes": classes,
        "input_shape": tuple(images.shape[1:]),
        "input_scale": data.PIXEL_SCALE,
        "input_zero_point": data.PIXEL_ZERO_POINT,
        "attention": attention or (),
        "standardised": standardised,
    }
    made = Draft(header, found, sharing, scales, limits)
    if attention is None:
        header["attention"] = sites.watched(made.network())
    return made


@dataclass
class Draft:
    """A network whose weights are still float, batch norm folded in: `network()` rounds them."""

    header: dict[str, Any]  # the fields of `Network` but its nodes
    # name -> 'kind' and fields of the node; of weighted ones `float_weight`, `float_bias`, and `added_to`, the addition
    # that reads their wide integers; where a ReLU6 ends them, `highest`.
    parts: dict[str, dict]
    sharing: dict[str, str | None]  # each tensor and the input -> a name of those that share its scale; None: float
    scales: dict[str, float | None]  # of each tensor and the input; None: float
    limits: dict[str, float]  # the largest scale that a ReLU6 allows, by a name of those that share it

    def network(self) -> Network:
        """The INT8 network.

        Raises:
            InputError: it would break what engines rely on (see `validity`).
        """
        nodes: list[Node] = []
        for name, parts in self.parts.items():
            known = {part.name for part in fields(parts["kind"])}
            values = {key: value for key, value in parts.items() if key in known}
            scale = self.scales[parts.get("added_to", name)]
            if "float_weight" in parts:
                input_scale = self.scales[parts["inputs"][0]]
                weight, bias = parts["float_weight"], parts["float_bias"]
                values |= rounded(weight, bias, input_scale, scale, "added_to" in parts)
            elif parts["kind"] is ScaledAddition:
                values |= {"multiplier": self._multiplier(name, scale), "scale": scale}
            nodes.append(parts["kind"](name=name, **values))
        try:
            return Network(**self.header, nodes=tuple(nodes))
        except ValueError as error:
            raise InputError(f"{self.header['model']} cannot run in integers: {error}") from error

    def _multiplier(self, name: str, scale: float) -> np.ndarray:
        """The multiplier of each operand of a scaled addition."""
        scales = [self.scales[source] for source in self.parts[name]["inputs"]]
        wanted = [1 if own is None else max(1, round(own / scale * (1 << SHIFT))) for own in scales]
        return np.minimum(wanted, np.iinfo(np.int32).max).astype(np.int32)  # `validity` refuses what is too large


def _is_source(parts: Mapping[str, Any]) -> bool:
    """Whether a node makes numbers of a scale of their own; the others pass codes on."""
    return "float_weight" in parts or parts["kind"] in (Addition, ScaledAddition)


def _sharing(found: Mapping[str, dict]) -> dict[str, str | None]:
    """For each tensor of codes a name of those that share its scale; None of float tensors, behind the last weights.

    Codes pass unchanged through pools, record points and flattening; concatenated tensors, and those that an `Addition`
    adds with their sum, must have one scale, so that neither needs a multiplication.
    """
    weighted = [name for name, parts in found.items() if "float_weight" in parts]
    if not weighted:
        raise InputError("the network must have convolutions or linear layers, and has none")
    last = weighted[-1]
    shared: dict[str, str | None] = {INPUT: INPUT}
    for name, parts in found.items():
        if "float_weight" in parts:
            shared[name] = None if name == last or "added_to" in parts else name
            continue
        wide = {source for source in parts["inputs"] if "added_to" in found.get(source, {})} - {last}
        joined = {shared[source] for source in parts["inputs"] if source not in wide}
        if None in joined and (joined != {None} or parts["kind"] not in (GlobalAveragePool, Flatten)):
            raise InputError(f"'{name}' follows the last weighted layer, whose output is float: move it before")
        if INPUT in joined and parts["kind"] in (Concatenation, Addition, ScaledAddition):
            raise InputError(f"'{name}' must join outputs of convolutions or linear layers, and reads the input itself")
        if parts["kind"] is ScaledAddition:
            shared[name] = name
            continue
        chosen = shared[parts["inputs"][0]]
        shared[name] = chosen
        shared |= {other: chosen for other, group in shared.items() if group in joined}
    bare = [name for name in weighted[:-1] if not found[name]["relu"] and "added_to" not in found[name]]
    if bare:
        raise InputError([f"'{name}' must be followed by a ReLU: its codes have no sign" for name in bare])
    return shared


def _limits(found: Mapping[str, dict], sharing: Mapping[str, str | None]) -> dict[str, float]:
    """The largest scale under which what is above a ReLU6's 6 is cut, for each set of tensors that share one."""
    groups: dict[str, dict[str, float | None]] = {}
    for name, parts in found.items():
        if _is_source(parts) and sharing[name] is not None:
            groups.setdefault(sharing[name], {})[name] = parts.get("highest")
        elif "highest" in parts:
            raise InputError(f"'{name}' gives the logits, which are not cut: a ReLU6 cannot follow it")
    limits = {}
    for group, highest in groups.items():
        cut = [name for name, value in highest.items() if value is not None]
        whole = [name for name, value in highest.items() if value is None]
        if cut and whole:
            raise InputError(
                f"'{cut[0]}' ends in a ReLU6 and shares its scale with '{whole[0]}', which does not: end both alike"
            )
        if cut:
            limits[group] = min(highest.values()) / HIGHEST_CODE
    return limits


@torch.inference_mode()
def _sample(
    graph: fx.GraphModule, wanted: Mapping[fx.Node, str], pixels: np.ndarray | torch.Tensor
) -> dict[str, np.ndarray]:
    """Runs the float module on calibration images: up to SAMPLES activations of each set that shares a scale."""
    samples: dict[str, list[np.ndarray]] = {group: [] for group in wanted.values()}

    class Recorder(fx.Interpreter):
        def run_node(self, traced):
            value = super().run_node(traced)
            if traced in wanted:
                batch[wanted[traced]].append(value.flatten())
            return value

    recorder = Recorder(graph)
    for start in range(0, len(pixels), 128):
        batch: dict[str, list[torch.Tensor]] = {group: [] for group in samples}
        recorder.run(data.normalise(pixels[start : start + 128]))
        for group, parts in batch.items():
            together = torch.cat(parts)
            # An odd step meets every channel and position.
            step = max(1, len(together) * max(1, len(pixels) // 128) // SAMPLES) | 1
            samples[group].append(together[::step].numpy())
    return {group: np.concatenate(parts) for group, parts in samples.items()}
