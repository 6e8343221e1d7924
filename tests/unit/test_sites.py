"""Which tensors get a site of their own, under which name, and what stays as it was."""

from dataclasses import replace

import numpy as np
import pytest

from approx_env.engines.vector.engine import VectorEngine
from approx_env.int8 import cost, quantize
from approx_env.int8.network import Network, pool_first
from approx_env.int8.nodes import (
    INPUT,
    Addition,
    Concatenation,
    Convolution,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Site,
    Weighted,
)
from approx_env.int8.sites import watched, with_sites
from approx_env.teachers import models

FIRES = [f"fire{number}" for number in range(2, 10)]


def made(model: str, few) -> Network:
    """The INT8 network of a model with random weights."""
    module = models.build(model, 2)
    images, _ = few.sized(module.image_size).load("calibration", 2)
    return quantize.quantize(
        module, images, model=model, classes=("a", "b"), layers=module.layers, attention=module.attention
    )


def sites_before(network: Network, node: Weighted) -> list[str]:
    """The sites that a weighted node's codes have passed since the last weighted node, sum or concatenation."""
    found, name = [], node.inputs[0]
    while name != INPUT:
        source = network.by_name[name]
        if isinstance(source, Site):
            found.append(name)
        elif not isinstance(source, MaxPool | Flatten | GlobalAveragePool):
            break
        name = source.inputs[0]
    return found


def test_squeezenet(networks):
    standard = networks["squeezenet"]
    network = with_sites(standard, "all")
    assert network.layers == ("conv1", *(name for fire in FIRES for name in (f"{fire}_squeeze", fire)))
    for fire in FIRES:
        path = f"blocks.{fire}"
        assert network.by_name[f"{fire}_squeeze"].inputs == (f"{path}.squeeze.0",)
        assert [node.name for node in network.consumers(f"{fire}_squeeze")] == [
            f"{path}.expand1x1.0", f"{path}.expand3x3.0"
        ]  # fmt: skip
        assert [node.name for node in network.consumers(f"{path}.squeeze.0")] == [f"{fire}_squeeze"]
    assert (network.attention, network.macs) == (standard.attention, standard.macs)
    assert {name: network.shapes[name] for name in standard.shapes} == standard.shapes
    assert with_sites(standard, "standard") is standard
    assert with_sites(network, "all").layers == network.layers


def test_shares_of_all_multiplications(networks):
    found = {}
    for model, network in networks.items():
        for sites in ("standard", "all"):
            moved = pool_first(with_sites(network, sites))
            found[model, sites] = round(100 * cost.covered(moved, cost.readers(moved)), 1)
    assert found == {
        ("squeezenet", "standard"): 14.1, ("squeezenet", "all"): 94.6,
        ("alexnet", "standard"): 97.1, ("alexnet", "all"): 97.1,
    }  # fmt: skip


@pytest.mark.parametrize("model", ["alexnet", "vgg16"])
def test_networks_whose_layers_are_all_that_is_multiplied(model, few):
    network = made(model, few)
    assert with_sites(network, "all").layers == network.layers


@pytest.mark.parametrize(
    ("model", "squeezes"),
    [
        ("squeezenet_simple_bypass", [f"{fire}{'' if int(fire[4:]) % 2 == 0 else '_fire'}_squeeze" for fire in FIRES]),
        ("squeezenet_complex_bypass", [f"{fire}_fire_squeeze" for fire in FIRES]),
        ("squeezenet_compact", [f"{fire}_squeeze" for fire in FIRES[:4]]),
    ],
)
def test_the_family(model, squeezes, few):
    """Sums and shortcuts go on reading what they did; where they are multiplied, there is a site already."""
    standard = made(model, few)
    network = with_sites(standard, "all")
    assert [name for name in network.layers if name not in standard.layers] == squeezes
    first, *others = (node for node in network.nodes if isinstance(node, Weighted))
    assert sites_before(network, first) == []
    assert all(len(sites_before(network, node)) == 1 for node in others)
    kept = [node for node in network.nodes if isinstance(node, Addition | Concatenation)]
    assert [node.inputs for node in kept] == [standard.by_name[node.name].inputs for node in kept]


def test_exact_codes_are_the_same(networks, digits):
    images, _ = digits.load("search", 8)
    standard = networks["squeezenet"]
    expected = VectorEngine(standard).forward(images)
    assert VectorEngine(with_sites(standard, "all")).forward(images).equal(expected)


# -- by hand


def conv(name: str, source: str, inputs: int = 4, outputs: int = 4) -> Convolution:
    weight, zeros = np.ones((outputs, inputs, 1, 1), np.int8), np.zeros(outputs, np.int32)
    return Convolution(name, (source,), weight, zeros, zeros + 1, True, 1.0, False, 1, 0)


def linear(name: str, source: str, inputs: int) -> Linear:
    return Linear(
        name, (source,), np.ones((2, inputs), np.int8), np.zeros(2, np.int32), np.ones(2, np.int32), False, 1.0, True
    )


def everywhere(*nodes, **about) -> Network:
    """All sites of a network of 3x4x4 pixels whose zero point is 0."""
    return with_sites(replace(Network("n", ("a", "b"), (3, 4, 4), 1.0, 0, nodes, ()), **about), "all")


def edges(network: Network) -> dict[str, tuple[str, ...]]:
    return {node.name: node.inputs for node in network.nodes}


def test_pixels_are_left_alone():
    found = everywhere(MaxPool("p", (INPUT,), 2, 2, False), conv("c", "p", 3), Site("s", ("c",)), conv("d", "s"))
    assert found.layers == ("s",)


def test_a_site_stands_behind_pools_and_flattening():
    found = everywhere(
        conv("c", INPUT, 3), Site("s", ("c",)), conv("d", "s"), MaxPool("p", ("d",), 2, 2, False), Flatten("f", ("p",)),
        linear("l", "f", 16),
    )  # fmt: skip
    assert edges(found) == {
        "c": (INPUT,), "s": ("c",), "d": ("s",), "p": ("d",), "f": ("p",), "f_2": ("f",), "l": ("f_2",)
    }  # fmt: skip


def test_a_tensor_before_and_behind_a_pool_has_two():
    found = everywhere(
        conv("x.c", INPUT, 3), Site("s", ("x.c",)), conv("x.d", "s"), MaxPool("x.p", ("x.d",), 2, 2, False),
        conv("e", "x.d"), conv("f", "x.p"), conv("g", "x.p"),
    )  # fmt: skip
    assert edges(found) == {
        "x.c": (INPUT,), "s": ("x.c",), "x.d": ("s",), "x_d": ("x.d",), "x.p": ("x.d",), "x_p": ("x.p",),
        "e": ("x_d",), "f": ("x_p",), "g": ("x_p",),
    }  # fmt: skip


def test_what_is_added_stays_exact_until_the_sum_is_multiplied():
    found = everywhere(
        conv("a.0", INPUT, 3), Site("s", ("a.0",)), conv("b.0", "s"), conv("c.0", "b.0"),
        Addition("sum", ("b.0", "c.0")), conv("d.0", "sum"),
    )  # fmt: skip
    assert edges(found) == {
        "a.0": (INPUT,), "s": ("a.0",), "b.0": ("s",), "b": ("b.0",), "c.0": ("b",), "sum": ("b.0", "c.0"),
        "sum_2": ("sum",), "d.0": ("sum_2",),
    }  # fmt: skip


def test_a_concatenation_has_one_unless_a_part_of_it_has():
    parts = conv("a", INPUT, 3), Site("s", ("a",)), conv("b", "s"), conv("c", "s")
    bare = everywhere(*parts, Concatenation("j", ("b", "c")), conv("d", "j", 8))
    assert bare.layers == ("s", "j_2") and bare.by_name["d"].inputs == ("j_2",)
    partly = everywhere(*parts, Concatenation("j", ("s", "c")), conv("d", "j", 8))
    assert partly.layers == ("s",)


def test_names_are_free_and_begin_with_their_layer():
    found = everywhere(
        conv("0.0", INPUT, 3), Site("net", ("0.0",)), conv("1", "net"), conv("2", "1"), conv("old.net.new-2.x", "2"),
        conv("net_new_x", "old.net.new-2.x"),
    )  # fmt: skip
    assert found.layers == ("net", "site", "site_2", "net_new_x_2")
    numbers = everywhere(
        conv("a.x", INPUT, 3), conv("a.b.0", "a.x"), conv("a_b", "a.b.0"), Site("s", ("a_b",)), conv("z", "s")
    )
    assert numbers.layers == ("a_x", "a_b_2", "s")


# -- networks that name nothing


def watching(*layers: tuple[str, int, int]) -> tuple[str, ...]:
    """`watched` of a chain of 1x1 convolutions with pools between: for each layer its channels and its side."""
    nodes, last, inputs, side = [], INPUT, 3, layers[0][2]
    for name, channels, wanted in layers:
        if wanted < side:
            nodes.append(MaxPool(f"{name}/p", (last,), side // wanted, side // wanted, False))
            last, side = f"{name}/p", wanted
        nodes += [conv(f"{name}/c", last, inputs, channels), Site(name, (f"{name}/c",))]
        last, inputs = name, channels
    shape = (3, layers[0][2], layers[0][2])
    return watched(Network("n", ("a", "b"), shape, 1.0, 0, tuple(nodes), ()))


def test_the_last_layer_of_each_resolution_is_watched():
    assert watching(("a", 4, 8), ("b", 4, 8), ("c", 4, 4), ("d", 4, 4)) == ("b", "d")


def test_the_last_four_resolutions_are_watched():
    assert watching(*((f"s{side}", 2, side) for side in (32, 16, 8, 4, 2))) == ("s16", "s8", "s4", "s2")


def test_maps_that_are_too_large_are_not_watched():
    """64 places of 8,192 channels squared are above 2^31; 64 of 1,024 are below."""
    assert watching(("a", 1024, 8), ("b", 8192, 8), ("c", 4, 4)) == ("a", "c")
    assert watching(("b", 8192, 8)) == ()
