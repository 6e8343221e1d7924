from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from approx_env.engines import reference
from approx_env.int8 import cost
from approx_env.int8.network import Network
from approx_env.int8.nodes import Concatenation, Convolution, Linear, MaxPool, Site
from approx_env.scoring import calibration
from approx_env.scoring.evaluator import Evaluator, Problem, Reward


def convolution(name, source, inputs, outputs, kernel, stride=1, padding=0) -> Convolution:
    weight = np.ones((outputs, inputs, kernel, kernel), np.int8)
    zeros = np.zeros(outputs, np.int32)
    return Convolution(name, (source,), weight, zeros, zeros + 1, True, 1.0, False, stride, padding)


def network_of(*nodes, shape) -> Network:
    return Network("test", ("no", "yes"), shape, 1.0, 0, nodes, ())


def uses(side: tuple[int, int], outputs: int, **geometry) -> list[list[int]]:
    nodes = Site("s", ("input",)), convolution("c", "s", 2, outputs, **geometry)
    (reader,) = cost.readers(network_of(*nodes, shape=(2, *side)))
    assert (reader.layer, reader.tensor) == ("s", "s")
    return reader.weights.reshape(side).tolist()


def test_products_of_a_padded_convolution():
    assert uses((3, 4), 2, kernel=3, padding=1) == [[8, 12, 12, 8], [12, 18, 18, 12], [8, 12, 12, 8]]


def test_products_of_an_unpadded_convolution():
    assert uses((3, 3), 1, kernel=3) == [[1] * 3] * 3
    assert uses((1, 4), 5, kernel=1) == [[5] * 4]


def test_products_of_a_strided_convolution():
    # Windows of 3 begin at -1, 1, 3: the fourth of five positions meets two of them only at the seams.
    assert uses((1, 5), 1, kernel=3, stride=2, padding=1) == [[1, 2, 1, 2, 1]]
    assert uses((1, 4), 1, kernel=1, stride=2) == [[1, 0, 1, 0]]  # every other code is never read


def test_only_its_group_reads_a_code():
    weight, zeros = np.ones((6, 1, 3, 3), np.int8), np.zeros(6, np.int32)
    nodes = Site("s", ("input",)), Convolution("c", ("s",), weight, zeros, zeros + 1, True, 1.0, False, 1, 0, groups=2)
    network = network_of(*nodes, shape=(2, 3, 3))
    (reader,) = cost.readers(network)
    assert reader.weights.tolist() == [3] * 9  # three outputs of each group
    assert cost.total(network) == network.macs["c"] == 6 * 9


def test_linear_layers_read_each_code_once_an_output():
    linear = Linear(
        "l", ("s",), np.ones((7, 5), np.int8), np.zeros(7, np.int32), np.ones(7, np.int32), False, 1.0, True
    )
    (reader,) = cost.readers(network_of(Site("s", ("input",)), linear, shape=(5,)))
    assert reader.weights.tolist() == [7]


def test_readers_of_one_tensor_add_up():
    nodes = Site("s", ("input",)), convolution("a", "s", 2, 3, 1), convolution("b", "s", 2, 4, 1)
    (reader,) = cost.readers(network_of(*nodes, shape=(2, 2, 2)))
    assert reader.weights.tolist() == [7] * 4


def test_codes_are_followed_through_pools_and_flatten(small):
    found = [(reader.layer, reader.tensor, reader.weights.tolist()) for reader in cost.readers(small.network)]
    assert [(layer, tensor) for layer, tensor, _ in found] == [("one", "one"), ("two", "flatten"), ("three", "three")]
    assert found[1][2] == [11]
    assert found[2][2] == [2]


def test_a_layer_read_directly_and_behind_a_pool_has_two_readers():
    pool = MaxPool("p", ("s",), 2, 2, False)
    nodes = Site("s", ("input",)), pool, convolution("a", "s", 2, 3, 1), convolution("b", "p", 2, 4, 1)
    found = cost.readers(network_of(*nodes, shape=(2, 2, 2)))
    assert [(reader.layer, reader.tensor, reader.weights.tolist()) for reader in found] == [
        ("s", "s", [3] * 4), ("s", "p", [4])
    ]  # fmt: skip


def test_codes_that_are_mixed_with_others_have_no_reader():
    other, joined = convolution("o", "input", 2, 2, 1), Concatenation("j", ("s", "o"))
    nodes = other, Site("s", ("input",)), joined, convolution("c", "j", 4, 1, 1)
    assert cost.readers(network_of(*nodes, shape=(2, 2, 2))) == []


def test_covered_share_of_alexnet(networks):
    """All but conv1's products: 5x5 windows at stride 2 on 32x32 have 77^2, 5x5 on 8x8 34^2, 3x3 on 4x4 10^2."""
    network = networks["alexnet"]
    reads = 34**2 * 64 * 192 + 10**2 * (192 * 384 + 384 * 256 + 256 * 256) + 1024 * 512 + 512 * 256 + 256 * 10
    assert cost.covered(network, cost.readers(network)) == reads / (77**2 * 3 * 64 + reads)


def test_covered_share_of_squeezenet(networks):
    """The squeezes and conv10: the expands read squeeze outputs, which are exact."""
    network = networks["squeezenet"]
    squeezes = {
        16: [(96, 16), (128, 16), (128, 32)],
        8: [(256, 32), (256, 48), (384, 48), (384, 64)],
        4: [(512, 64)],
    }
    expands = {16: [(16, 64), (16, 64), (32, 128)], 8: [(32, 128), (48, 192), (48, 192), (64, 256)], 4: [(64, 256)]}
    reads = 4**2 * 512 * 10 + sum(side**2 * i * o for side, fires in squeezes.items() for i, o in fires)
    # A 3x3 window has 3 products a side, less one at each border.
    unread = (3 * 32 - 2) ** 2 * 3 * 96
    unread += sum((side**2 + (3 * side - 2) ** 2) * i * o for side, fires in expands.items() for i, o in fires)
    assert cost.covered(network, cost.readers(network)) == reads / (reads + unread)


def test_shares():
    counts = np.array([[1, 1, 2, 0], [0, 0, 0, 0]])
    assert cost.shares(counts).tolist() == [[0.25, 0.25, 0.5, 0], [0, 0, 0, 0]]
    assert cost.shares(counts[0]).tolist() == [0.25, 0.25, 0.5, 0]


# -- every product of a small network, one by one


def brute_force(network: Network, images: np.ndarray, configuration) -> dict[str, np.ndarray]:
    """Walks all products of each weighted node behind a layer, and counts their activations by kind."""
    outputs = reference.forward(network, images, configuration)
    counts = {}
    for name, layer in (("two.0", "one"), ("three.1", "two"), ("last", "three")):
        node, (codes, tmax) = network.by_name[name], configuration[layer]
        kinds = {codes[3]: 2, codes[1]: 1, 0: 0}
        tally = counts[layer] = np.zeros(4, np.int64)

        def add(activation, times, tally=tally, kinds=kinds, tmax=tmax):
            tally[3 if activation > tmax else kinds[activation]] += times

        x = outputs[node.inputs[0]]
        if isinstance(node, Linear):
            for activation in x.reshape(-1).tolist():
                add(activation, len(node.weight))
            continue
        _, channels, height, width = x.shape
        _, rows, columns = network.shapes[name]
        kernel = range(node.weight.shape[2])
        for i, j, k, m in product(range(rows), range(columns), kernel, kernel):
            y, z = i * node.stride + k - node.padding, j * node.stride + m - node.padding
            if 0 <= y < height and 0 <= z < width:
                for n, c in product(range(len(x)), range(channels)):
                    add(int(x[n, c, y, z]), len(node.weight))
    return counts


@pytest.mark.parametrize("stride", [1, 2])
def test_shares_are_those_of_brute_force(small, stride, monkeypatch):
    images, labels = small.images[:6], small.labels[:6]
    nodes = tuple(replace(n, stride=stride) if n.name == "two.0" else n for n in small.network.nodes)
    if stride == 2:  # 3x3 codes, that the pool takes to 1x1
        linear = small.network.by_name["three.1"]
        nodes = tuple(replace(n, weight=linear.weight[:, :7].copy()) if n.name == "three.1" else n for n in nodes)
    network = replace(small.network, nodes=nodes)
    calibrated = calibration.calibrate(network, [images])
    score = Evaluator(Problem(network, calibrated, images, labels, Reward())).evaluate(calibrated.quintile)
    configuration = {layer.name: (layer.quintile, layer.tmax) for layer in calibrated.layers}
    counts = np.array(list(brute_force(network, images, configuration).values()))
    assert (counts > 0).sum() >= 9  # the kinds do occur
    assert np.array_equal(score.layer_shares, counts / counts.sum(1, keepdims=True))
    assert np.array_equal(score.shares, counts.sum(0) / counts.sum())
    exact = {layer.name: ((0, 0, 0, 0), 0) for layer in calibrated.layers}  # only tells brute force what is not zero
    monkeypatch.setattr(reference, "approximate", lambda codes, *how: codes)
    natural = np.array(list(brute_force(network, images, exact).values()))
    assert np.array_equal(score.layer_zero_natural, natural[:, 0] / natural.sum(1))
    assert score.zero_natural == natural[:, 0].sum() / natural.sum()
