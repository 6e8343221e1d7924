"""ONNX of standard integer operators: every code and every logit is ours, whatever runs it.

Weights go through ConvInteger and MatMulInteger, whose sums are int32; requantisation multiplies, adds and divides in
int64; TAP is a Gather from 256 entries. So no rounding is left to a runtime. Only standardised images take float64, in
operations that IEEE 754 fixes.

Weights are uint8 with zero point 128: runtimes for CPUs without VNNI let sums of uint8 x int8 products saturate.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from approx_env.data import PIXEL_ZERO_POINT, STANDARD_DEVIATION
from approx_env.export.deployment import Deployment, identifier
from approx_env.int8.nodes import (
    HALF,
    INPUT,
    SHIFT,
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
    Weighted,
)

FILE = "network.onnx"
OPSET, IR_VERSION = 17, 8
BATCH, LOGITS = "n", "logits"  # names of the first dimension, and of the output
WEIGHT_ZERO = 128
SPACE = [2, 3]  # axes


def write(deployment: Deployment, folder: Path) -> dict[str, Any]:
    """Writes `network.onnx`; reports its size and operators."""
    model = convert(deployment)
    content = model.SerializeToString()
    (folder / FILE).write_bytes(content)
    kinds = sorted({node.op_type for node in model.graph.node})
    return {"opset": OPSET, "size_bytes": len(content), "operators": ", ".join(kinds)}


def convert(deployment: Deployment) -> onnx.ModelProto:
    """`input (n, c, h, w) uint8` -> `logits (n, classes) int64`, whose value is `logit_scale` times the integer.

    A tensor of the network bears the name that `deployment.files` has for it, with an `x` before.
    """
    return _Writer(deployment).model()


class _Writer:
    def __init__(self, deployment: Deployment):
        self._deployment, self._network = deployment, deployment.network
        self._names = {name: f"x{file}" for name, file in deployment.files.items()}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def model(self) -> onnx.ModelProto:
        network = self._network
        pixels = self._standardised() if network.standardised else INPUT
        self._add("Identity", [pixels], self._names[INPUT])
        for node in network.nodes:
            self._write(node, self._names[node.name])
        self._add("Identity", [self._names[network.nodes[-1].name]], LOGITS)
        graph = helper.make_graph(
            self._nodes,
            identifier(network.model),
            [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [BATCH, *network.input_shape])],
            [helper.make_tensor_value_info(LOGITS, TensorProto.INT64, [BATCH, len(network.classes)])],
            list(self._constants.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        helper.set_model_props(
            model, {"logit_scale": repr(network.logit_scale), "classes": json.dumps(network.classes)}
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def _write(self, node: Node, name: str) -> None:
        inputs = [self._names[source] for source in node.inputs]
        match node:
            case Weighted():
                self._weighted(node, inputs[0], name)
            case MaxPool():
                self._add("MaxPool", inputs, name, **self._window(node))
            case Concatenation():
                self._add("Concat", inputs, name, axis=1)
            case Addition():
                wide = [self._cast(source, TensorProto.INT32, f"{name}_{k}") for k, source in enumerate(inputs)]
                total = self._add("Add", wide, f"{name}_sum")
                cut = self._add("Min", [total, self._constant(f"{name}_highest", np.int32(255))], f"{name}_cut")
                self._cast(cut, TensorProto.UINT8, name)
            case ScaledAddition():
                self._add_scaled(node, inputs, name)
            case Flatten():
                self._add("Flatten", inputs, name)
            case AveragePool():
                self._average_pool(node, inputs[0], name)
            case GlobalAveragePool():
                self._average(node, inputs[0], name)
            case Site():
                table = self._constant(f"{name}_table", self._deployment.table(node.name))
                self._add("Gather", [table, self._cast(inputs[0], TensorProto.INT32, f"{name}_index")], name, axis=0)
            case _:
                raise NotImplementedError(type(node).__name__)

    def _add_scaled(self, node: ScaledAddition, inputs: list[str], name: str) -> None:
        products = []
        for k, (source, factor) in enumerate(zip(inputs, node.multiplier, strict=True)):
            wide = self._cast(source, TensorProto.INT64, f"{name}_wide_{k}")
            products.append(self._add("Mul", [wide, self._integer(name, f"multiplier_{k}", factor)], f"{name}_{k}"))
        self._requantised(self._add("Add", products, f"{name}_sum"), name)

    def _weighted(self, node: Weighted, codes: str, name: str) -> None:
        axes = (-1, *[1] * (node.weight.ndim - 2))
        weight = (node.weight.astype(np.int16) + WEIGHT_ZERO).astype(np.uint8)
        zeros = [
            self._constant(f"{name}_zero", np.uint8(self._network.zero_point(node.inputs[0]))),
            self._constant(f"{name}_weight_zero", np.uint8(WEIGHT_ZERO)),
        ]
        if isinstance(node, Convolution):
            geometry = {"strides": [node.stride] * 2, "pads": [node.padding] * 4, "group": node.groups}
            inputs = [codes, self._constant(f"{name}_weight", weight), *zeros]
            total = self._add("ConvInteger", inputs, f"{name}_products", **geometry)
        else:
            assert isinstance(node, Linear)
            inputs = [codes, self._constant(f"{name}_weight", np.ascontiguousarray(weight.T)), *zeros]
            total = self._add("MatMulInteger", inputs, f"{name}_products")
        total = self._add("Add", [total, self._constant(f"{name}_bias", node.bias.reshape(axes))], f"{name}_total")
        multiplier = self._constant(f"{name}_multiplier", node.multiplier.astype(np.int64).reshape(axes))
        value = [self._cast(total, TensorProto.INT64, f"{name}_wide"), multiplier]
        if not node.logits:
            self._requantised(self._add("Mul", value, f"{name}_product"), name)
        elif node.relu:
            self._add("Max", [self._add("Mul", value, f"{name}_value"), self._integer(name, "least", 0)], name)
        else:
            self._add("Mul", value, name)

    def _requantised(self, product: str, name: str) -> None:
        """The product, rounded to a code: what is divided is not negative, so that division rounds down."""
        rounded = self._add("Add", [product, self._integer(name, "half", HALF)], f"{name}_rounded")
        ends = [self._integer(name, "least", 0), self._integer(name, "most", (256 << SHIFT) - 1)]
        cut = self._add("Clip", [rounded, *ends], f"{name}_cut")
        shifted = self._add("Div", [cut, self._integer(name, "step", 1 << SHIFT)], f"{name}_shifted")
        self._cast(shifted, TensorProto.UINT8, name)

    def _window(self, node: MaxPool) -> dict[str, Any]:
        """Attributes of a pool; windows that the border cuts reach into padding at the end."""
        sides = zip(self._network.shapes[node.inputs[0]][1:], self._network.shapes[node.name][1:], strict=True)
        ends = [max(0, (count - 1) * node.stride + node.kernel - side) for side, count in sides]
        return {"kernel_shape": [node.kernel] * 2, "strides": [node.stride] * 2, "pads": [0, 0, *ends]}

    def _average_pool(self, node: AveragePool, source: str, name: str) -> None:
        """A depthwise convolution by ones gives each window's sum as an integer, which AveragePool does not."""
        channels, places = self._network.shapes[node.name][0], node.kernel**2
        ones = self._constant(f"{name}_ones", np.ones((channels, 1, node.kernel, node.kernel), np.uint8))
        total = self._add("ConvInteger", [source, ones], f"{name}_total", strides=[node.stride] * 2, group=channels)
        self._mean(self._cast(total, TensorProto.INT64, f"{name}_wide"), places, name)

    def _average(self, node: GlobalAveragePool, source: str, name: str) -> None:
        axes = self._constant(f"{name}_axes", np.array(SPACE))
        if node.name not in self._network.scales:
            self._add("ReduceSum", [source, axes], name, keepdims=0)
            return
        places = int(np.prod(self._network.shapes[node.inputs[0]][1:]))
        wide = self._cast(source, TensorProto.INT64, f"{name}_wide")
        self._mean(self._add("ReduceSum", [wide, axes], f"{name}_total", keepdims=0), places, name)

    def _mean(self, total: str, places: int, name: str) -> None:
        """The mean of codes, halves rounded up, of their sum in int64."""
        rounded = self._add("Add", [total, self._integer(name, "half", places // 2)], f"{name}_rounded")
        mean = self._add("Div", [rounded, self._integer(name, "places", places)], f"{name}_mean")
        self._cast(mean, TensorProto.UINT8, name)

    def _standardised(self) -> str:
        """Images as `data.standardise` has them."""
        count = int(np.prod(self._network.input_shape))
        axes = self._constant("image_axes", np.arange(1, len(self._network.input_shape) + 1))
        many = self._constant("pixels", np.int64(count))
        pixels = self._cast(INPUT, TensorProto.INT64, "wide_pixels")
        total = self._add("ReduceSum", [pixels, axes], "pixel_sum", keepdims=1)
        squares = self._add("ReduceSum", [self._add("Mul", [pixels, pixels], "squared"), axes], "squares", keepdims=1)
        parts = [self._add("Mul", [squares, many], "scaled_squares"), self._add("Mul", [total, total], "squared_sum")]
        variance = self._cast(self._add("Sub", parts, "variance"), TensorProto.DOUBLE, "variance_value")
        least = self._constant("least_deviation", np.float64(count**0.5))
        deviation = self._add("Max", [self._add("Sqrt", [variance], "root"), least], "deviation")
        centred = self._add("Sub", [self._add("Mul", [pixels, many], "scaled_pixels"), total], "centred")
        ratio = self._add("Div", [self._cast(centred, TensorProto.DOUBLE, "centred_value"), deviation], "ratio")
        scaled = self._add("Mul", [ratio, self._constant("target", np.float64(STANDARD_DEVIATION))], "scaled_ratio")
        moved = self._add("Add", [scaled, self._constant("middle", np.float64(PIXEL_ZERO_POINT))], "moved")
        ends = [self._constant("lowest", np.float64(0)), self._constant("highest", np.float64(255))]
        cut = self._add("Clip", [self._add("Round", [moved], "rounded"), *ends], "cut")
        return self._cast(cut, TensorProto.UINT8, "standardised")

    def _cast(self, source: str, to: int, output: str) -> str:
        return self._add("Cast", [source], output, to=to)

    def _integer(self, name: str, part: str, value: int) -> str:
        return self._constant(f"{name}_{part}", np.int64(value))

    def _constant(self, name: str, value: Any) -> str:
        self._constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **attributes) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output
