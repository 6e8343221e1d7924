"""Tables: what simulators, programmers, NumPy and QONNX read is what the network computes."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.custom_op.general.multithreshold import multithreshold

from approx_env import tap
from approx_env.engines import reference
from approx_env.export.deployment import Deployment
from approx_env.export.formats import tables
from approx_env.int8.nodes import SHIFT, Site, Weighted
from approx_env.teachers import store
from tests import exports

CODES = np.arange(256, dtype=np.uint8)


@pytest.fixture(scope="module")
def made(digits) -> Deployment:
    network = store.read(store.path_of("squeezenet_compact", "digits")).network
    return Deployment(network, exports.codes(network), *digits.load("validation", 4))


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    return exports.written("tables", made, tmp_path_factory.mktemp("t") / "tables")


@pytest.fixture(scope="module")
def arrays(folder) -> dict[str, np.ndarray]:
    return dict(np.load(folder / tables.ARRAYS))


@st.composite
def taps(draw) -> np.ndarray:
    tmax = draw(st.integers(4, 255))
    return tap.tap(CODES, sorted(draw(st.sets(st.integers(1, tmax), min_size=4, max_size=4))), tmax)


def test_every_layer_has_its_table_in_every_form(made, folder, arrays):
    for layer in made.network.layers:
        codes, tmax = made.configuration[layer]
        expected = tap.tap(CODES, codes, tmax)
        file = made.files[layer]
        assert np.array_equal(arrays[f"{file}.tap"], expected)
        lines = (folder / f"{file}.tap.mem").read_text().splitlines()
        assert [int(line, 16) for line in lines] == expected.tolist() and {len(line) for line in lines} == {2}
        assert from_intel_hex((folder / f"{file}.tap.hex").read_text()) == expected.tobytes()


def from_intel_hex(text: str) -> bytes:
    """What a programmer reads; checksums must be right."""
    *records, end = text.splitlines()
    assert end == ":00000001FF"
    found = b""
    for record in records:
        content = bytes.fromhex(record.removeprefix(":"))
        count, address, kind = content[0], int.from_bytes(content[1:3], "big"), content[3]
        assert sum(content) % 256 == 0 and kind == 0 and address == len(found) and len(content) == count + 5
        found += content[4:-1]
    return found


def test_numbers_of_weighted_nodes(made, folder, arrays):
    about = json.loads((folder / tables.TABLES).read_text())
    assert about["shift"] == 16
    weighted = {node.name: node for node in made.network.nodes if isinstance(node, Weighted)}
    assert [entry["name"] for entry in about["weighted"]] == list(weighted)
    for entry in about["weighted"]:
        node, file = weighted[entry["name"]], entry["file"]
        assert entry["multiplier"] == node.multiplier.tolist() and entry["bias"] == node.bias.tolist()
        assert entry["weight_scale"] == made.network.weight_scale(node).tolist()
        assert entry["input_zero_point"] == made.network.zero_point(node.inputs[0])
        for name, kind in (("multiplier", np.int64), ("bias", np.int32), ("weight", np.int8)):
            assert np.array_equal(arrays[f"{file}.{name}"], getattr(node, name))
            words = [int(line, 16) for line in (folder / f"{file}.{name}.mem").read_text().splitlines()]
            signed = np.array(words, np.uint64).astype(kind)
            assert np.array_equal(signed, getattr(node, name).reshape(-1)), name
    for entry, layer in zip(about["layers"], made.network.layers, strict=True):
        codes, tmax = made.configuration[layer]
        assert [entry[name] for name in ("t1", "v1", "t2", "v2", "tmax")] == [*codes, tmax]
        assert (entry["name"], entry["scale"]) == (layer, made.network.scales[layer])


def test_numbers_of_groups_and_scaled_additions(tmp_path):
    made = exports.joined_deployment()
    folder = exports.written("tables", made, tmp_path / "tables")
    about = json.loads((folder / tables.TABLES).read_text())
    assert {entry["name"]: entry["groups"] for entry in about["weighted"]} == {"a": 1, "b": 1, "deep": 9, "last": 1}
    assert about["scaled_additions"] == [
        {"name": "residual", "file": made.files["residual"], "inputs": ["all", "deep"], "output_scale": 1.0,
         "multiplier": [2**15, 1]}
    ]  # fmt: skip


@given(taps())
def test_thresholds_of_a_table(table):
    thresholds = tables.of_table(table)
    assert thresholds.shape == (255,) and (np.diff(thresholds) >= 0).all()
    assert np.array_equal(multithreshold(CODES[None].astype(np.int64).T, thresholds[None])[:, 0], table)


@given(st.integers(1, 2**24 - 1), st.integers(-(2**20), 2**20), st.data())
def test_thresholds_of_a_requantisation(multiplier, bias, data):
    """By its definition, on sums anywhere and around each threshold."""
    node = type("Node", (), {"multiplier": np.array([multiplier], np.int32), "bias": np.array([bias], np.int32)})
    thresholds = tables.of_requantisation(node)
    assert thresholds.dtype == np.int32 and (np.diff(thresholds) >= 0).all()
    near = thresholds[0].astype(np.int64)[:, None] + np.array([-1, 0, 1])
    sums = np.r_[near.reshape(-1), data.draw(st.lists(st.integers(-(2**29), 2**29)))].astype(np.int64)
    expected = np.clip(((sums + bias) * multiplier + 2**15) >> SHIFT, 0, 255)
    assert np.array_equal(multithreshold(sums[:, None], thresholds)[:, 0], expected)


def sums_of(made: Deployment, node: Weighted) -> np.ndarray:
    """Sums of products on the golden images, without the bias."""
    codes = made.golden[node.inputs[0]].astype(np.float64) - made.network.zero_point(node.inputs[0])
    return reference.products(node, torch.from_numpy(codes), torch.from_numpy(node.weight.astype(np.float64))).numpy()


def test_multithresholds_give_the_networks_codes(made, arrays):
    """Of each layer on codes; of each node on sums; and of both at once, where a layer is all that reads them."""
    network, fused = made.network, 0
    for node in network.nodes:
        file = made.files[node.name]
        if isinstance(node, Site):
            found = multithreshold(made.golden[node.inputs[0]].astype(np.int64), arrays[f"{file}.thresholds"])
            assert np.array_equal(found, made.golden[node.name])
        if isinstance(node, Weighted) and not node.logits:
            sums = sums_of(made, node)
            found = multithreshold(sums, arrays[f"{file}.thresholds"])
            assert np.array_equal(found, made.golden[node.name])
            layer = tables._layer_behind(network, node.name)
            assert (f"{file}.thresholds_with_tap" in arrays) == (layer is not None)
            if layer is not None:
                fused += 1
                found = multithreshold(sums, arrays[f"{file}.thresholds_with_tap"])
                assert np.array_equal(found, made.table(layer)[made.golden[node.name]])
    assert fused == 9  # conv1, and both expansions of each of four Fire modules
    assert "25_classifier_1.thresholds" not in arrays  # logits


def test_qonnx_runs_them_as_a_node(made, arrays):
    """As QONNX's own executor has MultiThreshold, in float32, where sums of real images are exact."""
    node = made.network.by_name["blocks.conv1.0"]
    sums, file = sums_of(made, node).astype(np.float32), made.files[node.name]
    thresholds = arrays[f"{file}.thresholds_with_tap"].astype(np.float32)
    assert np.abs(sums).max() < 2**24
    multi = helper.make_node(
        "MultiThreshold", ["sums", "thresholds"], ["codes"], domain="qonnx.custom_op.general", out_dtype="UINT8"
    )
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sums.shape) for name in ("sums", "codes")]
    model = ModelWrapper(helper.make_model(helper.make_graph([multi], "g", ends[:1], ends[1:])))
    model.set_initializer("thresholds", thresholds)
    found = execute_onnx(model, {"sums": sums})["codes"]
    layer = tables._layer_behind(made.network, node.name)
    assert np.array_equal(found, made.table(layer)[made.golden[node.name]])
