"""An INT8 network as an ONNX model in QDQ form, for other engines to run beside ours."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from approx_env.int8.network import Network
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
    Weighted,
)

OPSET = 17
BATCH = "n"  # name of the first dimension
LOGITS = "logits"


def convert(network: Network) -> onnx.ModelProto:
    """Writes `network` as ONNX: `input (n, c, h, w) uint8` -> `logits (n, classes) float32`.

    Every tensor of codes lies between QuantizeLinear and DequantizeLinear, weights are int8 per output channel and
    biases int32: the form from which ONNX Runtime and OpenVINO make their own INT8 kernels.
    """
    return _Writer(network).model()


class _Writer:
    def __init__(self, network: Network):
        self._network = network
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._codes = {INPUT: INPUT}  # by tensor of the network: its codes' name in the model

    def model(self) -> onnx.ModelProto:
        network = self._network
        for node in network.nodes:
            if isinstance(node, Site):
                self._codes[node.name] = self._codes[node.inputs[0]]
            else:
                self._write(node)
        self._add("Identity", [self._value(network.nodes[-1].name)], LOGITS)
        graph = helper.make_graph(
            self._nodes,
            network.model,
            [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [BATCH, *network.input_shape])],
            [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [BATCH, len(network.classes)])],
            list(self._constants.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        onnx.checker.check_model(model)
        return model

    def _write(self, node: Node) -> None:
        match node:
            case Weighted():
                value = self._weighted(node)
            case MaxPool():
                window = {"kernel_shape": [node.kernel] * 2, "strides": [node.stride] * 2, "ceil_mode": int(node.ceil)}
                value = self._add("MaxPool", [self._value(node.inputs[0])], f"{node.name}.value", **window)
            case Concatenation():
                value = self._add("Concat", [self._value(name) for name in node.inputs], f"{node.name}.value", axis=1)
            case Addition() | ScaledAddition():
                value = self._add("Add", [self._value(name) for name in node.inputs], f"{node.name}.value")
            case Flatten():
                value = self._add("Flatten", [self._value(node.inputs[0])], f"{node.name}.value")
            case AveragePool():
                window = {"kernel_shape": [node.kernel] * 2, "strides": [node.stride] * 2}
                value = self._add("AveragePool", [self._value(node.inputs[0])], f"{node.name}.value", **window)
            case GlobalAveragePool():
                mean = self._add("GlobalAveragePool", [self._value(node.inputs[0])], f"{node.name}.mean")
                value = self._add("Flatten", [mean], f"{node.name}.value")
            case _:
                raise NotImplementedError(type(node).__name__)
        scale = self._network.scales.get(node.name)
        if scale is not None:
            value = self._add("QuantizeLinear", [value, *self._grid(node.name)], f"{node.name}.codes")
        self._codes[node.name] = value

    def _weighted(self, node: Weighted) -> str:
        scale = self._network.scales[node.inputs[0]]
        weight = self._add(
            "DequantizeLinear",
            [
                self._constant(f"{node.name}.weight", node.weight),
                self._constant(f"{node.name}.weight_scale", self._network.weight_scale(node).astype(np.float32)),
                self._constant(f"{node.name}.weight_zero", np.zeros(len(node.weight), np.int8)),
            ],
            f"{node.name}.weight_value",
            axis=0,
        )
        bias = self._add(
            "DequantizeLinear",
            [
                self._constant(f"{node.name}.bias", node.bias),
                self._constant(
                    f"{node.name}.bias_scale", (self._network.weight_scale(node) * scale).astype(np.float32)
                ),
            ],
            f"{node.name}.bias_value",
            axis=0,
        )
        inputs = [self._value(node.inputs[0]), weight, bias]
        if isinstance(node, Convolution):
            geometry = {"strides": [node.stride] * 2, "pads": [node.padding] * 4, "group": node.groups}
            value = self._add("Conv", inputs, f"{node.name}.sum", **geometry)
        else:
            assert isinstance(node, Linear)
            value = self._add("Gemm", inputs, f"{node.name}.sum", transB=1)
        return self._add("Relu", [value], f"{node.name}.value") if node.relu else value

    def _value(self, name: str) -> str:
        """The named tensor as floats."""
        if name not in self._network.scales:
            return self._codes[name]
        return self._add("DequantizeLinear", [self._codes[name], *self._grid(name)], f"{name}.{len(self._nodes)}")

    def _grid(self, name: str) -> list[str]:
        """Scale and zero point of the named tensor."""
        return [
            self._constant(f"{name}.scale", np.float32(self._network.scales[name])),
            self._constant(f"{name}.zero", np.uint8(self._network.zero_point(name))),
        ]

    def _constant(self, name: str, value) -> str:
        self._constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **attributes) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output
