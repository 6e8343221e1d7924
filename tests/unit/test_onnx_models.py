"""ONNX files as float networks: the same outputs as onnx's reference, and refusals by node, operator and attribute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from approx_env.errors import InputError
from approx_env.int8.trace import Trace
from approx_env.teachers.models import onnx as reader

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SIDE = 8


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def node(kind: str, inputs: str, output: str, **attributes) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=f"{output}_node", **attributes)


def written(
    path: Path, nodes: list[onnx.NodeProto], shape: tuple[int, ...] = (5,), opset: int = 17, side=SIDE, **constants
) -> Path:
    """A model from x to y, whose constants are initialisers."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *shape])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def same(path: Path) -> reader.Network:
    """The network of a file, which computes what onnx's reference computes."""
    images = array(2, 3, SIDE, SIDE, seed=1)
    network = reader.read(path).eval()
    (wanted,) = ReferenceEvaluator(str(path)).run(None, {"x": images})
    with torch.no_grad():
        found = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, wanted.reshape(found.shape), rtol=1e-4, atol=1e-5)
    return network


def problems(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        reader.read(path)
    assert all(problem.startswith(f"--model {path}") for problem in caught.value.problems)
    return [problem.removeprefix(f"--model {path}").removeprefix(": ") for problem in caught.value.problems]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "net.onnx"


def test_a_whole_network(path):
    nodes = [
        node("Conv", "x w1 b1", "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("BatchNormalization", "a gain shift mean var", "b", epsilon=1e-3),
        node("Relu", "b", "c"),
        node("MaxPool", "c", "d", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "d w2", "e", kernel_shape=[1, 1]),
        node("Relu", "e", "f"),
        node("Conv", "d w3", "g", pads=[1, 1, 1, 1]),
        node("Relu", "g", "h"),
        node("Concat", "f h", "i", axis=1),
        node("Add", "i i2", "j"),
        node("Dropout", "j", "k"),
        node("Flatten", "k", "l"),
        node("Gemm", "l w4 b4", "m", transB=1, alpha=0.5, beta=2.0),
        node("Relu", "m", "o"),
        node("MatMul", "o w5", "p"),
        node("Add", "p b5", "q"),
        node("Softmax", "q", "y", axis=-1),
    ]
    nodes.insert(9, node("Identity", "i", "i2"))
    constants = {
        "w1": array(4, 3, 3, 3), "b1": array(4), "gain": array(4), "shift": array(4), "mean": array(4),
        "var": abs(array(4)) + 1, "w2": array(2, 4, 1, 1), "w3": array(3, 4, 3, 3), "w4": array(6, 80), "b4": array(6),
        "w5": array(6, 5), "b5": array(5),
    }  # fmt: skip
    network = reader.read(written(path, nodes, **constants))
    assert network.image_size == SIDE
    assert network.note == f"{path}: the Softmax at the end is left out, since a teacher gives logits"
    without = written(path.with_name("logits.onnx"), [*nodes[:-2], node("Add", "p b5", "y")], **constants)
    images = torch.from_numpy(array(2, 3, SIDE, SIDE, seed=1))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), same(without)(images))
    assert {kind.__name__ for kind in map(type, network.children())} == {
        "Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "Flatten", "Linear"
    }  # fmt: skip
    assert len(Trace(network, "net", {}).found) == 9


SINGLE = {
    "grouped": (node("Conv", "x w", "y", group=3), {"w": array(6, 1, 3, 3)}, nn.Conv2d),
    "strides": (node("Conv", "x w", "y", strides=[2, 1], dilations=[1, 2]), {"w": array(2, 3, 3, 3)}, nn.Conv2d),
    "unequal kernel": (node("Conv", "x w", "y", pads=[0, 1, 0, 1]), {"w": array(2, 3, 1, 3)}, nn.Conv2d),
    "SAME": (node("Conv", "x w", "y", auto_pad="SAME_UPPER"), {"w": array(2, 3, 3, 3)}, nn.Conv2d),
    "VALID": (node("Conv", "x w", "y", auto_pad="VALID"), {"w": array(2, 3, 3, 3)}, nn.Conv2d),
    "ceil": (node("MaxPool", "x", "y", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), {}, nn.MaxPool2d),
    "pads that cut": (
        node("MaxPool", "x", "y", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]), {}, nn.MaxPool2d
    ),
    "max pads": (node("MaxPool", "x", "y", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), {}, nn.MaxPool2d),
    "average": (node("AveragePool", "x", "y", kernel_shape=[2, 2], strides=[2, 2]), {}, nn.AvgPool2d),
    "average pads": (node("AveragePool", "x", "y", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), {}, nn.AvgPool2d),
    "average pads count": (
        node("AveragePool", "x", "y", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1), {}, nn.AvgPool2d
    ),
    "average ceil": (
        node("AveragePool", "x", "y", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), {}, nn.AvgPool2d
    ),
    "average of all": (node("AveragePool", "x", "y", kernel_shape=[SIDE] * 2), {}, nn.AdaptiveAvgPool2d),
    "global": (node("GlobalAveragePool", "x", "y"), {}, nn.AdaptiveAvgPool2d),
    "relu6": (node("Clip", "x low high", "y"), {"low": np.float32(0), "high": np.float32(6)}, nn.ReLU6),
    "clip below": (node("Clip", "x low", "y"), {"low": np.float32(0)}, nn.ReLU),
}  # fmt: skip


@pytest.mark.parametrize(("single", "constants", "kind"), SINGLE.values(), ids=SINGLE)
def test_an_operator(path, single, constants, kind):
    network = same(written(path, [single], ("c", "h", "w"), **constants))
    assert [type(module) for module in network.children()] == [kind, nn.Flatten]


@pytest.mark.parametrize("value", [array(4), array(1, 4, 1, 1), array(4, 1, 1), array(1)])
def test_a_constant_behind_a_convolution_is_its_bias(path, value):
    if value.shape == (4,):  # along the width
        told = problems(written(path, [node("Conv", "x w", "a"), node("Add", "a c", "y")], (4, 6, 6),
                                w=array(4, 3, 3, 5), c=value))  # fmt: skip
        assert told == ["Add of a constant is not supported, but as the bias of a convolution or a linear layer before "
                        "it: in y_node"]  # fmt: skip
        return
    network = same(
        written(path, [node("Conv", "x w b", "a"), node("Add", "c a", "y")], (4, 6, 6), w=array(4, 3, 3, 3),
                b=array(4, seed=2), c=value)
    )  # fmt: skip
    assert [type(module) for module in network.children()] == [nn.Conv2d, nn.Flatten]


@pytest.mark.parametrize("shape", [[0, -1], [-1, 192], [0, 192]])
def test_a_reshape_that_flattens(path, shape):
    same(written(path, [node("Reshape", "x s", "a"), node("MatMul", "a w", "y")], s=np.array(shape),
                 w=array(192, 5)))  # fmt: skip


def test_constants_that_nodes_compute(path):
    nodes = [
        node("ConstantOfShape", "s", "w", value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.25])),
        node("Constant", "", "b", value=numpy_helper.from_array(array(1, 5))),
        node("Unsqueeze", "b axes", "b1"),
        node("Reshape", "b1 five", "b2"),
        node("Conv", "x w b2", "y"),
    ]
    nodes[1].input.clear()
    network = same(written(path, nodes, (5, 6, 6), s=np.array([5, 3, 3, 3]), axes=np.array([0]), five=np.array([5])))
    assert (network.y_node.weight == 0.25).all()


def test_older_attributes(path):
    nodes = [node("Clip", "x", "a", min=0.0, max=6.0), node("Unsqueeze", "w0", "w", axes=[3]),
             node("Conv", "a w", "y", kernel_shape=[1, 1])]  # fmt: skip
    network = same(written(path, nodes, (2, 8, 8), opset=9, w0=array(2, 3, 1)))
    assert [type(module) for module in network.children()] == [nn.ReLU6, nn.Conv2d, nn.Flatten]


def test_names_that_python_or_a_module_has(path):
    nodes = [node("Conv", "x w", "a"), node("Relu", "a", "b"), node("Conv", "b v", "y")]
    for made, name in zip(nodes, ("training", "training", "class/2.conv 1"), strict=True):
        made.name = name
    network = same(written(path, nodes, (2, 4, 4), w=array(2, 3, 3, 3), v=array(2, 2, 3, 3)))
    assert [name for name, _ in network.named_children()] == ["xtraining", "xxtraining", "class_2_conv_1", "logits"]


REFUSED = {
    "operators": (
        [node("Sigmoid", "x", "a"), node("LRN", "a", "b", size=3), node("Sigmoid", "b", "y")],
        {},
        ["Sigmoid is not supported: in a_node, y_node", "LRN is not supported: in b_node"],
    ),
    "what follows is not blamed": (
        [node("Mul", "x m", "a"), node("Add", "a c", "y")], {"m": array(1), "c": array(3, 1, 1)},
        ["Mul is not supported: in a_node"],
    ),
    "pads": (
        [node("Conv", "x w", "a", pads=[0, 0, 1, 1]), node("AveragePool", "a", "b", kernel_shape=[2, 2],
                                                          pads=[1, 1, 0, 0]),
         node("MaxPool", "b", "y", kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 0, 0])],
        {"w": array(2, 3, 3, 3)},
        ["Conv with pads=[0, 0, 1, 1] is not supported: they must be the same on both sides: in a_node",
         "AveragePool with pads=[1, 1, 0, 0] is not supported: they must be the same on both sides: in b_node",
         "MaxPool with pads=[1, 1, 0, 0] is not supported: they must be the same on both sides: in y_node"],
    ),
    "auto_pad": (
        [node("Conv", "x w", "y", auto_pad="SAME_LOWER")], {"w": array(2, 3, 2, 2)},
        ["Conv with pads=[1, 1, 0, 0] is not supported: they must be the same on both sides: in y_node"],
    ),
    "ceil": (
        [node("MaxPool", "x", "a", kernel_shape=[1, 1], strides=[3, 3], ceil_mode=1),
         node("AveragePool", "x", "b", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), node("Concat", "a b", "y",
                                                                                              axis=1)],
        {},
        ["MaxPool with ceil_mode=1 and strides above the kernel is not supported: in a_node",
         "AveragePool with ceil_mode=1 is not supported where the border cuts windows: in b_node"],
    ),
    "axes": (
        [node("Concat", "x x", "a", axis=2), node("Flatten", "a", "b", axis=2), node("Softmax", "b", "c", axis=0),
         node("Relu", "c", "y")],
        {},
        ["Concat with axis=2 is not supported: in a_node", "Flatten with axis=2 is not supported: in b_node",
         "Softmax is not supported, but as what gives the output: in c_node"],
    ),
    "reshape": (
        [node("Reshape", "x s", "a"), node("Reshape", "x t", "y")], {"s": np.array([-1, 96]), "t": np.array([0, 3, 64])},
        ["Reshape to [-1, 96] is not supported, to all features of each image it is: in a_node",
         "Reshape to [0, 3, 64] is not supported, to all features of each image it is: in y_node"],
    ),
    "clip": (
        [node("Clip", "x low high", "y")], {"low": np.float32(-1), "high": np.float32(6)},
        ["Clip from -1.0 to 6.0 is not supported, from 0 to 6 it is: in y_node"],
    ),
    "computed weights": (
        [node("Conv", "x x", "y")], {},
        ["Conv whose input 'x' is computed is not supported: it must be a constant: in y_node"],
    ),
    "shapes": (
        [node("GlobalAveragePool", "x", "a"), node("Add", "x a", "b"), node("Gemm", "w v", "y", transA=1)],
        {"w": array(3, 5), "v": array(3, 5)},
        ["Add of shapes (None, 3, 8, 8) and (None, 3, 1, 1) is not supported: in b_node",
         "Gemm with transA=1 is not supported: in y_node"],
    ),
    "malformed": (
        [node("Conv", "x w b", "a"), node("Conv", "a w b", "y", strides=[2])], {"w": array(2, 3, 3, 3), "b": array(3)},
        ["Conv is malformed (The size of tensor a (2) must match the size of tensor b (3) at non-singleton dimension 0): "
         "in a_node, y_node"],
    ),
    "too large": (
        [node("ConstantOfShape", "s", "a"), node("Relu", "x", "y")], {"s": np.array([2**20, 2**20])},
        ["ConstantOfShape of more than 268435456 numbers is not supported: in a_node"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "constants", "told"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_supported_is_named_at_once(path, nodes, constants, told):
    assert problems(written(path, nodes, ("c", "h", "w"), **constants)) == told


@pytest.mark.parametrize("side", ["s", 0])
def test_images_must_have_a_size(path, side):
    (problem,) = problems(written(path, [node("Relu", "x", "y")], (3, 8, 8), side=side))
    assert "must have one input of shape (n, 3, side, side), side a number, got x (" in problem


def test_an_output_before_the_last_node(path):
    nodes = [node("Conv", "x w", "y"), node("Relu", "y", "z")]
    assert problems(written(path, nodes, (2, 6, 6), w=array(2, 3, 3, 3))) == [
        "its output 'y' must be what it computes last from the images: export it anew"
    ]


@pytest.mark.parametrize("content", [None, b"", b"garbage", bytes(1000), b"\x08\x08"])
def test_a_file_that_is_no_model(path, content):
    if content is not None:
        path.write_bytes(content)
    (problem,) = problems(path)
    assert problem.startswith("cannot be read as an ONNX model (") or problem.startswith(" cannot be read")
    assert "\n" not in problem


def external(path: Path, location: str) -> Path:
    """A model whose weights are in another file."""
    written(path, [node("Conv", "x w", "y")], (2, 6, 6), w=array(2, 3, 3, 3))
    model = onnx.load(path)
    (tensor,) = model.graph.initializer
    onnx.external_data_helper.set_external_data(tensor, location)
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    (path.parent / location).write_bytes(data)
    return path


def test_weights_beside_the_model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    network = reader.read(external(folder / "net.onnx", "w.bin"))
    np.testing.assert_array_equal(network.y_node.weight.detach(), array(2, 3, 3, 3))


def test_weights_elsewhere_are_not_read(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (problem,) = problems(external(folder / "net.onnx", "../w.bin"))
    assert problem == "the data of 'w' must lie in the model's folder, got '../w.bin'"
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    (problem,) = problems(external(folder / "net.onnx", "link.bin"))
    assert problem == "the data of 'w' must lie in the model's folder, got 'link.bin'"


# The light topologies that onnx has for the tests of backends. What is refused, by its first reason; None: it is read.
TOPOLOGIES = {
    "light_bvlc_alexnet": "LRN is not supported: in n2, n6",
    "light_densenet121": "Mul is not supported: in n3, ",
    "light_inception_v1": "LRN is not supported: in n3, n8",
    "light_inception_v2": "Mul is not supported: in n3, ",
    "light_resnet50": None,
    "light_shufflenet": "Reshape to [1, 4, 28, 56, 56] is not supported, to all features of each image it is: in n7",
    "light_squeezenet": None,
    "light_vgg19": None,
    "light_zfnet512": "LRN is not supported: in n2, n6",
}


def test_every_light_topology_is_known():
    assert {path.stem for path in LIGHT.glob("*.onnx")} == set(TOPOLOGIES)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_light_topology_is_read_or_refused_by_name(name):
    path = LIGHT / f"{name}.onnx"
    if TOPOLOGIES[name]:
        assert problems(path)[0].startswith(TOPOLOGIES[name])
    else:
        network = reader.read(path)
        with torch.device("meta"):
            assert network.to("meta")(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


def test_the_light_squeezenet_has_an_int8_counterpart():
    network = reader.read(LIGHT / "light_squeezenet.onnx")
    assert len([parts for parts in Trace(network, "net", {}).found.values() if "float_weight" in parts]) == 26
