from dataclasses import replace

import numpy as np
import pytest

from approx_env.int8 import quantize
from approx_env.int8.network import Network, pool_first
from approx_env.int8.nodes import (
    AveragePool,
    Concatenation,
    Convolution,
    GlobalAveragePool,
    Linear,
    MaxPool,
    ScaledAddition,
    Site,
    Weighted,
)
from approx_env.teachers import models

# name: input channels, squeeze, expand on each side, positions
FIRES = {
    "fire2": (96, 16, 64, 16 * 16), "fire3": (128, 16, 64, 16 * 16), "fire4": (128, 32, 128, 16 * 16),
    "fire5": (256, 32, 128, 8 * 8), "fire6": (256, 48, 192, 8 * 8), "fire7": (384, 48, 192, 8 * 8),
    "fire8": (384, 64, 256, 8 * 8), "fire9": (512, 64, 256, 4 * 4),
}  # fmt: skip


def macs_of(network: Network, block: str) -> int:
    return sum(macs for name, macs in network.macs.items() if f"{block}." in name)


def test_squeezenet_macs(networks):
    network = networks["squeezenet"]
    assert macs_of(network, "conv1") == 32 * 32 * 96 * 3 * 9 == 2_654_208
    for name, (inputs, squeeze, expand, positions) in FIRES.items():
        assert macs_of(network, name) == positions * (inputs * squeeze + squeeze * expand * (1 + 9)), name
    assert macs_of(network, "fire4") == 11_534_336
    assert list(network.macs.values())[-1] == 512 * 10 * 4 * 4
    assert sum(network.macs.values()) == 52_543_488


def test_alexnet_macs(networks):
    network = networks["alexnet"]
    assert list(network.macs.values()) == [
        16 * 16 * 64 * 3 * 25, 8 * 8 * 192 * 64 * 25, 4 * 4 * 384 * 192 * 9, 4 * 4 * 256 * 384 * 9,
        4 * 4 * 256 * 256 * 9, 1024 * 512, 512 * 256, 256 * 10,
    ]  # fmt: skip
    assert sum(network.macs.values()) == 55_757_312


def test_macs_do_not_depend_on_batch_norm(networks, few):
    module = models.build("squeezenet", 10, batch_norm=False)
    images, _ = few.load("calibration", 2)
    plain = quantize.quantize(
        module,
        images,
        model="squeezenet",
        classes=tuple("0123456789"),
        layers=module.layers,
        attention=module.attention,
    )
    assert plain.macs == networks["squeezenet"].macs
    assert plain.shapes == networks["squeezenet"].shapes


def test_squeezenet_layers_shapes_and_codes(networks):
    network = networks["squeezenet"]
    assert network.layers == ("conv1", *FIRES)
    assert network.attention == ("fire4", "fire6", "fire8")
    assert [network.shapes[name] for name in network.layers] == [
        (96, 32, 32), (128, 16, 16), (128, 16, 16), (256, 16, 16),
        (256, 8, 8), (384, 8, 8), (384, 8, 8), (512, 8, 8), (512, 4, 4),
    ]  # fmt: skip
    assert sum(np.prod(network.shapes[name]) for name in network.layers) == 335_872


def test_alexnet_layers_and_shapes(networks):
    network = networks["alexnet"]
    assert network.layers == ("conv1", "conv2", "conv3", "conv4", "conv5", "fc1", "fc2")
    assert network.attention == ("conv3", "conv4", "fc1")
    assert [network.shapes[name] for name in network.layers] == [
        (64, 16, 16), (192, 8, 8), (384, 4, 4), (256, 4, 4), (256, 4, 4), (512,), (256,)
    ]  # fmt: skip


def test_last_classifier_layer_is_quantised_but_not_approximated(network):
    last = [node for node in network.nodes if isinstance(node, Weighted)][-1]
    assert last.weight.dtype == np.int8
    assert last.logits
    assert not any(node.logits for node in network.nodes if isinstance(node, Weighted) and node is not last)
    assert not any(isinstance(node, Site) for node in network.nodes[network.nodes.index(last) :])


def test_shapes_scales_and_macs_by_hand(by_hand):
    assert by_hand.shapes == {
        "input": (2, 2, 2), "conv": (2, 2, 2), "first": (2, 2, 2), "pool": (2, 1, 1), "flat": (2,), "linear": (2,)
    }  # fmt: skip
    assert by_hand.macs == {"conv": 4 * 2 * 2, "linear": 2 * 2}
    assert by_hand.scales == dict.fromkeys(("input", "conv", "first", "pool", "flat"), 1 / 64)
    assert (by_hand.zero_point("input"), by_hand.zero_point("conv")) == (128, 0)
    assert [node.name for node in by_hand.consumers("first")] == ["pool"]
    assert by_hand.by_name["flat"].inputs == ("pool",)


def convolution(name, source, inputs, outputs, kernel, stride=1, padding=0) -> Convolution:
    weight = np.ones((outputs, inputs, kernel, kernel), np.int8)
    zeros = np.zeros(outputs, np.int32)
    return Convolution(name, (source,), weight, zeros, zeros + 1, True, 0.5, False, stride, padding)


def network_of(*nodes, shape=(3, 9, 6), attention=(), zero_point=0) -> Network:
    return Network("test", ("no", "yes"), shape, 1.0, zero_point, nodes, attention)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "sides"),
    [(3, 1, 1, (9, 6)), (3, 2, 1, (5, 3)), (5, 2, 2, (5, 3)), (5, 1, 0, (5, 2)), (1, 2, 0, (5, 3))],
)
def test_convolution_shape(kernel, stride, padding, sides):
    network = network_of(convolution("c", "input", 3, 4, kernel, stride, padding), Site("s", ("c",)))
    assert network.shapes["c"] == network.shapes["s"] == (4, *sides)
    assert network.macs == {"c": sides[0] * sides[1] * 4 * 3 * kernel**2}


@pytest.mark.parametrize(
    ("groups", "fault"),
    [
        (2, "must have groups that part its 3 output channels equally, got 2"),
        (0, "must have groups that part its 3 output channels equally, got 0"),
        (3, "has weights for 9 input channels and reads a tensor (3, 9, 6)"),
    ],
)
def test_groups_part_the_channels(groups, fault):
    with pytest.raises(ValueError) as caught:
        network_of(replace(convolution("c", "input", 3, 3, 1), groups=groups), Site("s", ("c",)))
    assert str(caught.value) == f"node 'c' {fault}"


@pytest.mark.parametrize(
    ("kernel", "stride", "ceil", "sides"),
    [(2, 2, False, (4, 3)), (2, 2, True, (5, 3)), (3, 2, True, (4, 3)), (3, 2, False, (4, 2)),
     # A ceil-mode window must begin inside the input.
     (1, 4, True, (3, 2)), (2, 3, True, (3, 2)), (2, 4, True, (3, 2))],
)  # fmt: skip
def test_max_pool_shape(kernel, stride, ceil, sides):
    network = network_of(MaxPool("p", ("input",), kernel, stride, ceil), Site("s", ("p",)))
    assert network.shapes["p"] == (3, *sides)


def test_average_pool_shape():
    network = network_of(AveragePool("p", ("input",), 3, 2), Site("s", ("p",)))
    assert network.shapes["p"] == (3, 4, 2)
    with pytest.raises(ValueError, match="^node 'p' must have a window no larger than its input .3, 9, 6., got 7$"):
        network_of(AveragePool("p", ("input",), 7, 7))


def test_concatenation_and_average_pool_shapes():
    left, right = convolution("l", "input", 3, 4, 1), convolution("r", "input", 3, 7, 3, padding=1)
    joined = Concatenation("j", ("l", "r"))
    network = network_of(left, right, joined, Site("s", ("j",)), GlobalAveragePool("g", ("s",)))
    assert network.shapes["j"] == (11, 9, 6)
    assert network.shapes["g"] == (11,)
    assert network.scales["j"] == 0.5


def test_nodes_come_after_their_inputs():
    with pytest.raises(ValueError) as caught:
        network_of(Site("s", ("c",)), convolution("c", "input", 3, 4, 1))
    assert str(caught.value) == "node 's' reads unknown ['c']: nodes must be named once and come after their inputs"


def test_nodes_have_names_of_their_own():
    with pytest.raises(ValueError) as caught:
        network_of(Site("s", ("input",)), Site("s", ("input",)))
    assert str(caught.value) == (
        "node 's' has a name already taken: nodes must be named once and come after their inputs"
    )
    with pytest.raises(ValueError, match="node 'input' has a name already taken"):
        network_of(Site("input", ("input",)))


def test_attention_layers_are_approximated_layers():
    with pytest.raises(ValueError) as caught:
        network_of(Site("s", ("input",)), attention=("t",))
    assert str(caught.value) == "attention layers must be approximated layers ('s',), got ('t',)"
    with pytest.raises(ValueError, match="attention layers must be approximated layers"):
        network_of(convolution("c", "input", 3, 4, 1))


def test_pool_first_changes_places(by_hand):
    moved = pool_first(by_hand)
    assert [(node.name, node.inputs) for node in moved.nodes] == [
        ("conv", ("input",)), ("pool", ("conv",)), ("first", ("pool",)), ("flat", ("first",)), ("linear", ("flat",))
    ]  # fmt: skip
    assert moved.shapes["first"] == (2, 1, 1)
    assert moved.macs == by_hand.macs


def test_pool_first_leaves_attention_layers(by_hand):
    watched = replace(by_hand, attention=("first",))
    assert [node.name for node in pool_first(watched).nodes] == [node.name for node in by_hand.nodes]


def test_pool_first_leaves_sites_with_two_readers():
    conv, site = convolution("c", "input", 3, 4, 1), Site("s", ("c",))
    pool, other = MaxPool("p", ("s",), 2, 2, False), convolution("d", "s", 4, 2, 1)
    network = network_of(conv, site, pool, other)
    assert [node.inputs for node in pool_first(network).nodes] == [node.inputs for node in network.nodes]


def test_pool_first_moves_conv1_but_not_attention_layers(networks):
    before, after = networks["squeezenet"], pool_first(networks["squeezenet"])
    assert after.layers == before.layers
    moved = {name for name in before.layers if before.shapes[name] != after.shapes[name]}
    assert moved == {"conv1"}  # fire4 and fire8 have attention maps
    assert after.shapes["conv1"] == (96, 16, 16)
    assert sum(np.prod(pool_first(networks["alexnet"]).shapes[name]) for name in ("conv1", "conv2", "conv5")) == (
        64 * 8 * 8 + 192 * 4 * 4 + 256 * 2 * 2
    )


def test_linear_shape():
    weight = np.ones((4, 6), np.int8)
    linear = Linear("l", ("input",), weight, np.zeros(4, np.int32), np.ones(4, np.int32), True, 0.5, False)
    network = network_of(linear, Site("s", ("l",)), shape=(6,))
    assert network.shapes["l"] == (4,)
    assert network.macs == {"l": 24}


def test_pool_first_keeps_the_order_of_layers():
    """Two branches: the pool behind 'one' comes after 'two'."""
    one, two = convolution("a", "input", 3, 4, 1), convolution("b", "input", 3, 4, 1)
    network = network_of(
        one, Site("one", ("a",)), two, Site("two", ("b",)), MaxPool("p", ("one",), 2, 2, False),
        MaxPool("q", ("two",), 2, 2, False), Concatenation("j", ("p", "q")),
    )  # fmt: skip
    moved = pool_first(network)
    assert moved.layers == network.layers == ("one", "two")
    assert {name for name in network.layers if moved.shapes[name] != network.shapes[name]} == {"two"}


BROKEN = {
    "weights of at least -127": {"weight": np.array([[-128, 0], [1, 1]], np.int8)[:, :, None, None]},
    "neighbouring weights of one sign that add up to at most 128": {"weight": np.full((2, 2, 1, 1), 65, np.int8)},
    "multipliers in 1..16777215": {"multiplier": np.array([0, 1], np.int32)},
    "sums below 1073741824": {"bias": np.full(2, 2**30, np.int32)},
    "requantised sums below 1073741824": {"bias": np.full(2, 2**29, np.int32), "multiplier": np.full(2, 2**17, np.int32)},
    "logits below 1099511627776": {
        "logits": True, "bias": np.full(2, 2**29, np.int32), "multiplier": np.full(2, 2**12, np.int32)
    },
    "a positive, finite scale": {"scale": float("nan")},
}  # fmt: skip


@pytest.mark.parametrize("bound", BROKEN)
def test_bounds_that_engines_rely_on(bound):
    node = replace(convolution("c", "input", 2, 2, 1), **BROKEN[bound])
    with pytest.raises(ValueError) as caught:
        network_of(node, Site("s", ("c",)), shape=(2, 3, 3))
    assert str(caught.value) == f"node 'c' must have {bound}: quantise its module by approx_env.int8.quantize"


def scaled(zero_point: int = 0, **changes) -> Network:
    """A residual block: codes of scale 0.5 and wide integers are added."""
    wide = replace(convolution("c", "s", 3, 3, 1), logits=True, relu=False, scale=0.25)
    added = ScaledAddition("sum", ("s", "c"), np.array([2**18, 1], np.int32), 0.25)
    first = replace(convolution("a", "input", 3, 3, 1), scale=1.0)
    return network_of(first, Site("s", ("a",)), wide, replace(added, **changes), Site("t", ("sum",)), zero_point=zero_point)


def test_a_scaled_addition_has_a_scale_of_its_own():
    network = scaled()
    assert network.scales == {"input": 1.0, "a": 1.0, "s": 1.0, "sum": 0.25, "t": 0.25}
    assert network.shapes["sum"] == (3, 9, 6) and network.zero_point("t") == 0


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"multiplier": np.array([2**18, 2], np.int32)}, "must add wide integers of its own scale, straight from a "
         "weighted node, with multiplier 1"),
        ({"scale": 0.5}, "must add wide integers of its own scale, straight from a weighted node, with multiplier 1"),
        ({"multiplier": np.ones(2)}, "must have a multiplier of 2 int32"),
        ({"multiplier": np.array([0, 1], np.int32)}, "must have multipliers in 1..16777215 and a positive, finite scale, "
         "got [0, 1], 0.25"),
        ({"scale": -1.0}, "must have multipliers in 1..16777215 and a positive, finite scale, got [262144, 1], -1.0"),
        ({"inputs": ("s", "input")}, "must add tensors of one shape, whose zero points are 0"),
        ({"inputs": ("s",)}, "must read 2 tensors, got 1"),
    ],
)  # fmt: skip
def test_scaled_additions_that_would_be_wrong(changes, fault):
    with pytest.raises(ValueError) as caught:
        scaled(3, **changes)
    assert str(caught.value) == f"node 'sum' {fault}"


def test_only_an_addition_reads_wide_integers():
    wide = replace(convolution("c", "s", 3, 3, 1), logits=True)
    with pytest.raises(ValueError) as caught:
        network_of(Site("s", ("input",)), wide, AveragePool("p", ("c",), 2, 2))
    assert str(caught.value) == (
        "node 'p' reads logits: only a global average pool, a flattening or a scaled addition may"
    )
    with pytest.raises(ValueError, match="^only one node may give logits, got 'c', 'd'$"):
        network_of(Site("s", ("input",)), wide, replace(wide, name="d"))


def test_weight_scales_follow_from_multipliers(by_hand):
    assert by_hand.weight_scale(by_hand.by_name["conv"]).tolist() == [0.5, 0.25]
    assert by_hand.weight_scale(by_hand.by_name["linear"]).tolist() == [0.5, 0.25]


def test_logit_scale_is_divided_by_what_is_pooled():
    top = replace(convolution("c", "s", 3, 2, 1), logits=True, scale=2.0)
    network = network_of(Site("s", ("input",)), top, GlobalAveragePool("g", ("c",)))
    assert network.logit_scale == 2.0 / 2**16 / (9 * 6)
    assert "c" not in network.scales
