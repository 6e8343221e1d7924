"""An ONNX file as data: its nodes, the shapes of its tensors, and its constants. Nothing in it is run.

Constants are initialisers, and what a few harmless operators make of constants: some exporters compute weights so.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import external_data_helper, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from approx_env.errors import InputError

FOLDED = ("Constant", "ConstantOfShape", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Cast")
LARGEST_CONSTANT = 2**28  # numbers in a tensor that a node makes up: a small file must not fill the memory
DOMAINS = ("", "ai.onnx")


class Refusal(Exception):
    """What of a node is not supported, as a sentence that begins with its operator goes on."""


class File:
    """A model that onnx's checker has passed.

    Raises:
        InputError: the file cannot be read or is no valid model; its data lies elsewhere.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            model = onnx.load(path, load_external_data=False)
            self._check_places(model)
            onnx.checker.check_model(str(path))
            inferred = shape_inference.infer_shapes(model).graph
            external_data_helper.load_external_data_for_model(model, str(path.parent))
            self.constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        except InputError:
            raise
        except Exception as error:  # what protobuf, onnx and NumPy raise for a damaged file has no common name
            text = " ".join(str(error).split())[:300]
            raise InputError(f"--model {path} cannot be read as an ONNX model ({text}): export it anew") from error
        self.graph, self._opsets = model.graph, model.opset_import
        self._shapes = {
            each.name: _dimensions(each) for each in (*inferred.value_info, *inferred.input, *inferred.output)
        }

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return max(each.version for each in self._opsets if each.domain in DOMAINS)

    def shape(self, name: str) -> tuple[int | None, ...]:
        """Of a tensor; None where a size is open, and () if nothing is known."""
        return self._shapes.get(name) or ()

    def constant(self, node: onnx.NodeProto, position: int) -> np.ndarray:
        """An input of a node.

        Raises:
            Refusal: it is no constant.
        """
        name = node.input[position]
        if name not in self.constants:
            raise Refusal(f"whose input '{name}' is computed is not supported: it must be a constant")
        return self.constants[name]

    def fold(self, node: onnx.NodeProto) -> bool:
        """Adds what a node computes to the constants, if it depends on constants alone.

        Raises:
            Refusal: it is too large.
        """
        names = [name for name in node.input if name]
        if node.op_type not in FOLDED or any(name not in self.constants for name in names):
            return False
        if node.op_type == "ConstantOfShape" and math.prod(map(int, self.constants[names[0]])) > LARGEST_CONSTANT:
            raise Refusal(f"of more than {LARGEST_CONSTANT} numbers is not supported")
        inputs, outputs = (list(map(helper.make_empty_tensor_value_info, part)) for part in (names, node.output))
        model = helper.make_model(helper.make_graph([node], "constant", inputs, outputs), opset_imports=self._opsets)
        values = ReferenceEvaluator(model).run(None, {name: self.constants[name] for name in names})
        self.constants |= dict(zip(node.output, values, strict=True))
        return True

    def _check_places(self, model: onnx.ModelProto) -> None:
        """Raises InputError if data lies outside of the model's folder."""
        folder = self.path.parent.resolve()
        for tensor in filter(external_data_helper.uses_external_data, model.graph.initializer):
            place = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
            if not (folder / place).resolve().is_relative_to(folder):
                raise InputError(
                    f"--model {self.path}: the data of '{tensor.name}' must lie in the model's folder, got {place!r}"
                )


def _dimensions(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    tensor = value.type.tensor_type
    return tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
