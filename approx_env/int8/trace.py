"""Reads a float module by torch.fx: what its nodes are, with dropout removed, batch norm and ReLU folded in.

A ReLU follows its convolution, linear layer or addition. An addition whose operands are codes of one scale is exact as
it is (`Addition`); where one is signed, or ends in a ReLU6, operands have scales of their own (`ScaledAddition`).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from approx_env.errors import InputError
from approx_env.int8.nodes import (
    INPUT,
    Addition,
    AveragePool,
    Concatenation,
    Convolution,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Node,
    ScaledAddition,
    Site,
)

HIGHEST_RELU6 = 6.0
WEIGHTED = {"convolution": Convolution, "linear layer": Linear}


class Trace:
    """What one forward pass of a module does: walks its graph once and gathers what the nodes will be made of.

    Args:
        module: in eval mode; `model` is its name, for errors.
        record_points: the layer's name by the path of its `nn.Identity`.

    Raises:
        InputError: the module does things that a network cannot hold, with each of them.
    """

    def __init__(self, module: nn.Module, model: str, record_points: Mapping[str, str]):
        try:
            graph = self.graph = fx.symbolic_trace(module.eval())
        except Exception as error:  # torch.fx raises what the traced code runs into
            told = " ".join(str(error).split())
            raise InputError(
                f"{model} cannot be traced by torch.fx ({told}): its forward must have no control flow"
            ) from error
        self.modules = dict(graph.named_modules())
        self.record_points = record_points
        self.tensor: dict[fx.Node, str] = {}  # traced node -> name of the tensor that it gives
        self.last: dict[str, fx.Node] = {}  # name of a tensor -> the traced node whose value it finally has
        self.found: dict[str, dict] = {}  # name -> 'kind' and fields of the node
        problems = [problem for traced in graph.graph.nodes for problem in self._problems(traced)]
        if not problems:
            found = (problem for name in self.found for problem in self._settle_addition(name))
            problems = list(dict.fromkeys(found))  # a tensor that two additions read is told of once
        missing = set(record_points.values()) - set(self.found)
        if missing and not problems:
            problems = [f"record points must be nn.Identity modules that the forward pass runs: {sorted(missing)}"]
        if problems:
            raise InputError(problems)

    def _problems(self, traced: fx.Node) -> list[str]:
        """Visits a node and returns what is wrong with it."""
        try:
            self._visit(traced)
            return []
        except InputError as error:
            problems = error.problems
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # arguments of another form
            problems = [f"{_called(traced)} has no INT8 counterpart with these arguments"]
        # Whatever follows finds a convolution there, so that it is not blamed for this one.
        name = f"{traced.name} (refused)"
        stand_in = {"relu": False, "float_weight": np.ones((1, 1, 1, 1)), "float_bias": np.zeros(1)}
        self.found[name] = {"kind": Convolution, "inputs": (INPUT,), **stand_in}
        self._bind(traced, name)
        return problems

    def _visit(self, traced: fx.Node) -> None:
        if traced.op == "placeholder":
            if INPUT in self.last:
                raise InputError(f"forward takes '{traced.target}', too: it must take the images alone")
            self._bind(traced, INPUT)
        elif traced.op == "output":
            self._check_output(traced.args[0])
        elif traced.op == "call_module":
            self._visit_module(traced, self.modules[traced.target])
        elif traced.target in (torch.cat, torch.concat):
            axis = traced.args[1] if len(traced.args) > 1 else traced.kwargs.get("dim", 0)
            if axis != 1:
                raise InputError(f"'{traced.name}' concatenates over axis {axis}: only channels (1) can be")
            self._add(traced, traced.name, Concatenation, inputs=tuple(self.tensor[part] for part in traced.args[0]))
        elif traced.target in (torch.relu, F.relu) or traced.target == "relu":
            self._fold_relu(traced)
        elif traced.target is F.relu6:
            self._fold_relu(traced, HIGHEST_RELU6)
        elif traced.target is F.max_pool2d:
            self._visit_max_pool(traced, traced.name, *traced.args[1:], **traced.kwargs)
        elif traced.target is F.avg_pool2d:
            self._visit_average_pool(traced, traced.name, *traced.args[1:], **traced.kwargs)
        elif traced.target is F.adaptive_avg_pool2d and [*traced.args[1:], *traced.kwargs.values()] in ([1], [(1, 1)]):
            self._add(traced, traced.name, GlobalAveragePool)
        elif traced.target is torch.mean or traced.target == "mean":
            self._visit_mean(traced, *traced.args[1:], **traced.kwargs)
        elif traced.target is torch.flatten or traced.target == "flatten":
            axes = [*traced.args[1:], *traced.kwargs.values()]
            self._visit_flatten(traced, traced.name, *(axes or [0]))
        elif traced.target in (operator.add, operator.iadd, torch.add):
            self._visit_addition(traced)
        else:
            raise InputError(f"{_called(traced)} has no INT8 counterpart")

    def _check_output(self, given: fx.Node | tuple | None) -> None:
        """What runs last gives the logits, in whatever order forward returns it."""
        last = next(reversed(self.found), INPUT)
        if not isinstance(given, fx.Node) or self.tensor[given] != last:
            raise InputError(f"forward returns {given}: it must return one tensor, that of '{last}', which runs last")

    def _visit_addition(self, traced: fx.Node) -> None:
        operands = [self.tensor.get(part) if isinstance(part, fx.Node) else None for part in traced.args]
        if len(operands) != 2 or None in operands or traced.kwargs:
            raise InputError(f"'{traced.name}' must add two tensors")
        self._add(traced, traced.name, Addition, inputs=tuple(operands))

    def _settle_addition(self, name: str) -> Iterator[str]:
        """Makes an addition a scaled one, and weighted operands wide, where codes of one scale will not do.

        Yields what is wrong with it.
        """
        parts = self.found[name]
        if parts["kind"] is not Addition:
            return
        relu = parts.pop("relu", False)
        signed = [source for source in parts["inputs"] if not self.found.get(source, {}).get("relu", True)]
        if not signed and "highest" not in parts and not any(map(self._ends_in_relu6, parts["inputs"])):
            return
        if signed and not relu:
            yield f"'{name}' must be followed by a ReLU: its codes have no sign"
        parts["kind"] = ScaledAddition
        for source in signed:
            if sum(source in other["inputs"] for other in self.found.values()) > 1:
                yield f"'{source}' must be followed by a ReLU, or read by one addition alone"
            self.found[source]["added_to"] = name

    def _ends_in_relu6(self, name: str) -> bool:
        """Whether the codes of a tensor are cut by a ReLU6, whatever they have passed since."""
        parts = self.found.get(name, {"inputs": ()})
        if "float_weight" in parts or parts.get("kind") in (Addition, ScaledAddition):
            return "highest" in parts
        return any(map(self._ends_in_relu6, parts["inputs"]))

    def _visit_module(self, traced: fx.Node, module: nn.Module) -> None:
        path = str(traced.target)
        if path in self.record_points:
            self._add(traced, self.record_points[path], Site)
        elif isinstance(module, nn.Identity | nn.Dropout):
            self._bind(traced, self.tensor[traced.args[0]])
        elif isinstance(module, nn.Conv2d):
            self._visit_convolution(traced, path, module)
        elif isinstance(module, nn.Linear):
            self._add(traced, path, Linear, relu=False, float_weight=_array(module.weight), float_bias=_bias(module))
        elif isinstance(module, nn.BatchNorm2d):
            self._fold_batch_norm(traced, module)
        elif isinstance(module, nn.ReLU):
            self._fold_relu(traced)
        elif isinstance(module, nn.ReLU6):
            self._fold_relu(traced, HIGHEST_RELU6)
        elif isinstance(module, nn.MaxPool2d):
            geometry = module.kernel_size, module.stride, module.padding, module.dilation
            self._visit_max_pool(traced, path, *geometry, module.ceil_mode)
        elif isinstance(module, nn.AvgPool2d):
            geometry = module.kernel_size, module.stride, module.padding, module.ceil_mode
            self._visit_average_pool(traced, path, *geometry, divisor_override=module.divisor_override)
        elif isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            self._add(traced, path, GlobalAveragePool)
        elif isinstance(module, nn.Flatten):
            self._visit_flatten(traced, path, module.start_dim, module.end_dim)
        else:
            raise InputError(f"'{path}' ({type(module).__name__}) has no INT8 counterpart")

    def _visit_max_pool(self, traced: fx.Node, name: str, kernel_size, stride=None, padding=0, dilation=1,
                        ceil_mode=False, return_indices=False) -> None:  # fmt: skip
        kernel, step, border, spread = map(_square, (kernel_size, stride or kernel_size, padding, dilation))
        if kernel is None or step is None or border != 0 or spread != 1 or return_indices:
            raise InputError(f"'{name}': max pools must have square windows, no padding and no dilation")
        self._add(traced, name, MaxPool, kernel=kernel, stride=step, ceil=ceil_mode)

    def _visit_average_pool(self, traced: fx.Node, name: str, kernel_size, stride=None, padding=0, ceil_mode=False,
                            count_include_pad=True, divisor_override=None) -> None:  # fmt: skip
        kernel, step, border = map(_square, (kernel_size, stride or kernel_size, padding))
        if kernel is None or step is None or border != 0 or ceil_mode or divisor_override is not None:
            raise InputError(
                f"'{name}': average pools must have square windows, no padding, no ceil_mode and no divisor_override"
            )
        self._add(traced, name, AveragePool, kernel=kernel, stride=step)

    def _visit_mean(self, traced: fx.Node, dim=None, keepdim=False) -> None:
        if not isinstance(dim, tuple | list) or sorted(axis % 4 for axis in dim) != [2, 3]:
            raise InputError(f"'{traced.name}' is a mean over {dim}: only height and width (2, 3) can be")
        self._add(traced, traced.name, GlobalAveragePool)

    def _visit_flatten(self, traced: fx.Node, name: str, start: int, end: int = -1) -> None:
        if (start, end) not in ((1, -1), (1, 3)):
            raise InputError(
                f"'{name}' flattens from dimension {start} to {end}: only all but the first (1 to -1) can be"
            )
        source = self.tensor[traced.args[0]]
        if self.found.get(source, {}).get("kind") is GlobalAveragePool:  # gives (n, c) already
            self._bind(traced, source)
        else:
            self._add(traced, name, Flatten)

    def _visit_convolution(self, traced: fx.Node, path: str, module: nn.Conv2d) -> None:
        stride, padding = module.stride[0], module.padding[0] if isinstance(module.padding, tuple) else None
        same = module.stride == (stride, stride) and module.padding == (padding, padding)
        if not same or module.dilation != (1, 1) or module.padding_mode != "zeros":
            raise InputError(f"'{path}': convolutions must have no dilation, equal strides and zero padding")
        self._add(traced, path, Convolution, stride=stride, padding=padding, groups=module.groups, relu=False,
                  float_weight=_array(module.weight), float_bias=_bias(module))  # fmt: skip

    def _add(self, traced: fx.Node, name: str, kind: type[Node], **parts) -> None:
        if kind is not Site and (name in self.found or name in self.record_points.values()):
            name = f"{name}:{traced.name}"  # a module that runs twice, or has a layer's name
        if not self.record_points and name.isidentifier():
            name += ":0"  # the layer that `sites` puts there has the name alone
        if name in self.found:
            raise InputError(f"record point '{name}' runs twice in one forward pass: each must have one place")
        inputs = parts.pop("inputs", None) or (self.tensor[traced.args[0]],)
        self.found[name] = {"kind": kind, "inputs": inputs, **parts}
        self._bind(traced, name)

    def _bind(self, traced: fx.Node, name: str) -> None:
        self.tensor[traced] = name
        self.last[name] = traced

    def _producer(self, traced: fx.Node, what: str, places: Mapping[str, type[Node]]) -> dict:
        """The node right before `traced`, which alone may read it, and must be of one of these kinds."""
        name = self.tensor[traced.args[0]]
        parts = self.found.get(name, {})
        alone = all(len(alias.users) == 1 for alias, bound in self.tensor.items() if bound == name)
        if parts.get("kind") not in places.values() or parts.get("relu") or not alone:
            raise InputError(f"'{traced.target}': {what} must follow its {' or '.join(places)} directly")
        return parts

    def _fold_batch_norm(self, traced: fx.Node, norm: nn.BatchNorm2d) -> None:
        parts = self._producer(traced, "batch norm", WEIGHTED)
        if norm.running_var is None or norm.weight is None:
            raise InputError(f"'{traced.target}': batch norm must be affine and track running statistics")
        gain = _array(norm.weight) / np.sqrt(_array(norm.running_var) + norm.eps)
        parts["float_weight"] = parts["float_weight"] * gain[:, None, None, None]
        parts["float_bias"] = (parts["float_bias"] - _array(norm.running_mean)) * gain + _array(norm.bias)
        self._bind(traced, self.tensor[traced.args[0]])

    def _fold_relu(self, traced: fx.Node, highest: float | None = None) -> None:
        parts = self._producer(traced, "ReLU", WEIGHTED | {"addition": Addition})
        parts |= {"relu": True} | ({} if highest is None else {"highest": highest})
        self._bind(traced, self.tensor[traced.args[0]])


def _called(traced: fx.Node) -> str:
    """A traced node by its own name and that of what it calls."""
    return f"'{traced.name}' ({traced.op} {getattr(traced.target, '__name__', traced.target)})"


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def _bias(module: nn.Module) -> np.ndarray:
    return np.zeros(len(module.weight)) if module.bias is None else _array(module.bias)


def _square(value: int | tuple[int, ...]) -> int | None:
    """The one number of a square setting; None where the sides differ."""
    sides = {value} if isinstance(value, int) else set(value)
    return sides.pop() if len(sides) == 1 else None
