"""The ONNX model: ONNX Runtime and ONNX's own reference give every integer of ours."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx.reference import ReferenceEvaluator

from approx_env.export.deployment import Deployment
from approx_env.export.formats import onnx as onnx_format
from approx_env.int8.nodes import INPUT, Flatten, Linear, Weighted
from approx_env.int8.sites import with_sites
from approx_env.teachers import store
from tests import exports
from tests.property.test_engine_twin import extremes

ROOT = Path(__file__).parents[2]


def test_a_small_network(small):
    exports.check_onnx(exports.deployment(small.network, small.images))


def test_additions_concatenations_and_means():
    exports.check_onnx(exports.joined_deployment())


def test_onnx_s_own_reference():
    made = exports.joined_deployment()
    model = exports.observed(made)
    found = ReferenceEvaluator(model).run(None, {INPUT: made.images})
    for (name, expected), array in zip(made.golden.items(), found, strict=True):
        assert np.array_equal(array, expected), name


def test_a_network_by_hand(by_hand):
    images = np.empty((1, 2, 2, 2), np.uint8)
    images[:, 0], images[:, 1] = 148, 132
    made = exports.deployment(by_hand, images, {"first": ((1, 3, 10, 12), 12)})
    exports.check_onnx(made)
    (logits,) = exports.session(onnx_format.convert(made)).run(None, {INPUT: images})
    assert logits.tolist() == [[(3 + 2 * 12) << 15, (-3 + 16) << 14]]


def test_pixels_of_one_colour_are_standardised_alike(digits):
    network = store.read(store.path_of("squeezenet_compact", "digits")).network
    images = np.full((3, 3, 32, 32), 77, np.uint8)
    images[1, 0, 0, 0], images[2] = 78, digits.load("test", 1)[0]
    exports.check_onnx(exports.deployment(network, images))


@pytest.mark.parametrize("sites", ["standard", "all"])
def test_whole_test_split_bit_for_bit(digits, sites):
    network = with_sites(store.read(store.path_of("squeezenet_compact", "digits")).network, sites)
    configuration = exports.codes(network)
    split = exports.split_of(network, configuration, *digits.load("test"))
    made = Deployment(network, configuration, split.images[:16], split.labels[:16])
    exports.check_onnx(made)
    (logits,) = exports.session(onnx_format.convert(made)).run(None, {INPUT: split.images})
    assert np.array_equal(logits, split.logits)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["squeezenet", "alexnet"])
def test_whole_test_split_of_the_large_teachers(model, networks, digits):
    network = networks[model]
    configuration = exports.codes(network)
    split = exports.split_of(network, configuration, *digits.load("test"))
    made = Deployment(network, configuration, split.images[:16], split.labels[:16])
    exports.check_onnx(made)
    session = exports.session(onnx_format.convert(made))
    parts = [session.run(None, {INPUT: split.images[k : k + 64]})[0] for k in range(0, len(split.images), 64)]
    assert np.array_equal(np.concatenate(parts), split.logits)


@settings(max_examples=25)
@given(extremes())
def test_largest_products_do_not_saturate(case):
    """A weighted node whose weights and codes lie at the ends of their ranges; a linear one of ones gives logits."""
    network, images = case
    count = int(np.prod(network.shapes["s"]))
    numbers = {"weight": np.ones((2, count), np.int8), "bias": np.zeros(2, np.int32), "scale": 1.0, "relu": False,
               "multiplier": np.ones(2, np.int32), "logits": True}  # fmt: skip
    nodes = (*network.nodes, Flatten("all", ("s",)), Linear("logits of ones", ("all",), **numbers))
    exports.check_onnx(exports.deployment(replace(network, nodes=nodes), images))


def test_it_is_of_standard_operators_and_says_what_a_logit_is(small):
    model = onnx_format.convert(exports.deployment(small.network, small.images[:1]))
    assert {node.domain for node in model.graph.node} == {""} == {each.domain for each in model.opset_import}
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert float(about["logit_scale"]) == small.network.logit_scale
    assert json.loads(about["classes"]) == list(small.network.classes)
    gathers = [node for node in model.graph.node if node.op_type == "Gather"]
    assert len(gathers) == len(small.network.layers)


def test_negative_logits_become_zero_where_the_network_says_so(small):
    nodes = tuple(
        replace(node, relu=True) if isinstance(node, Weighted) and node.logits else node for node in small.network.nodes
    )
    made = exports.deployment(replace(small.network, nodes=nodes), small.images)
    assert (made.golden[small.network.nodes[-1].name] == 0).any()
    exports.check_onnx(made)


def test_the_report(small, tmp_path):
    folder = tmp_path / "o"
    folder.mkdir()
    told = onnx_format.write(exports.deployment(small.network, small.images[:1]), folder)
    content = (folder / onnx_format.FILE).read_bytes()
    assert told["size_bytes"] == len(content) and "ConvInteger" in told["operators"]
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)


def test_without_onnx_one_is_told_what_to_install():
    program = (
        "import sys; sys.modules['onnx'] = None\n"
        "from approx_env import errors, export\n"
        "try: export.find('onnx')\n"
        "except errors.InputError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "--format onnx needs the onnx package: pip install 'tapsearch[export]'\n", done.stderr
