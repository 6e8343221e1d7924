"""The Verilog: Icarus runs the testbench, and Yosys counts cells."""

import re

import numpy as np
import pytest

from approx_env import data
from approx_env.export.deployment import Deployment
from approx_env.export.formats import verilog
from approx_env.int8.nodes import Convolution
from approx_env.int8.sites import with_sites
from approx_env.teachers import store
from tests import exports


def simulated(folder) -> list[str]:
    """The lines that the testbench prints."""
    sources = sorted(folder.glob("*.v"))
    exports.run(exports.tool("iverilog"), "-g2005", "-o", folder.parent / "testbench", *sources)
    return exports.run(exports.tool("vvp"), folder.parent / "testbench", folder=folder).splitlines()


def shipped(model: str, digits: data.Dataset) -> Deployment:
    network = with_sites(store.read(store.path_of(model, "digits")).network, "all")
    return Deployment(network, exports.codes(network), *digits.load("validation", 16))


@pytest.fixture(scope="module")
def compact(digits) -> Deployment:
    return shipped("squeezenet_compact", digits)


def test_windows_by_hand(by_hand):
    """The layer's codes 10 and 11 become 3 and 12; the linear layer reads both."""
    images = np.empty((1, 2, 2, 2), np.uint8)
    images[:, 0], images[:, 1] = 148, 132
    made = exports.deployment(by_hand, images, {"first": ((1, 3, 10, 12), 12)})
    words = list(verilog._words(made, by_hand.by_name["linear"], 3, 12))
    channel = 0 if words[0][1] == 0 else 1
    bias, (one, two), total = ((0, (1, 2), 27), (16, (-1, 0), 13))[channel]
    assert words == [(verilog.START, bias), (verilog.PRODUCT, (3 << 8) + (one & 255)),
                     (verilog.PRODUCT, (12 << 8) + two), (verilog.CHECK_SUM, total),
                     (verilog.CHECK_MULTIPLICATIONS, 0)]  # fmt: skip


def test_windows_leave_padding_out(small):
    made = exports.deployment(small.network, small.images[:1])
    node = small.network.by_name["two.0"]
    codes = made.golden[node.inputs[0]][0]
    read, met = verilog._window(node, codes, (3, 0, 0))
    assert read == codes[:, :2, :2].transpose(1, 2, 0).reshape(-1).tolist()
    assert met == node.weight[3, :, 1:, 1:].transpose(1, 2, 0).reshape(-1).tolist()
    total = np.dot(read, met) + node.bias[3]
    code = np.clip((total * int(node.multiplier[3]) + 2**15) >> 16, 0, 255)
    assert code == made.golden[node.name][0, 3, 0, 0]


def test_windows_hold_the_channels_of_a_group():
    weight = np.arange(8, dtype=np.int8).reshape(4, 2, 1, 1)
    node = Convolution("c", ("s",), weight, None, None, True, 1.0, False, 1, 0, groups=2)
    codes = np.arange(10, 14, dtype=np.uint8).reshape(4, 1, 1)
    assert verilog._window(node, codes, (1, 0, 0)) == ([10, 11], [2, 3])
    assert verilog._window(node, codes, (2, 0, 0)) == ([12, 13], [4, 5])


@pytest.mark.slow
def test_icarus_gives_every_code(compact, small, digits, tmp_path):
    """Units on all codes and on real ones; the element down to the network's codes, and what it multiplies."""
    others = exports.deployment(small.network, small.images[:16]), shipped("resnet8", digits)
    for made in (compact, *others, exports.joined_deployment()):
        folder = exports.written("verilog", made, tmp_path / made.network.model)
        lines = simulated(folder)
        readers = set(made.layer_of)
        nodes = [node for node in made.network.nodes if hasattr(node, "weight") and node.inputs[0] in readers]
        assert lines[-1] == f"ALL {len(made.sites) + len(nodes)} PASS"
        for layer in made.network.layers:
            count = 256 + int(np.prod(made.network.shapes[layer]))
            assert f"PASS tap_{made.files[layer]}: {count} checks" in lines
        for node in nodes:
            windows = min(16, len(made.images))
            assert f"PASS element_{made.files[node.name]}: {(2 if node.logits else 3) * windows} checks" in lines


@pytest.mark.slow
@pytest.mark.parametrize("name, what", [("tap_02_conv1.after.mem", "tap_02_conv1"), ("element_*", "element_")])
def test_a_wrong_bit_is_told(compact, name, what, tmp_path):
    folder = exports.written("verilog", compact, tmp_path / "v")
    path = min(folder.glob(name))
    lines = path.read_text().splitlines()
    place = 100 if name.startswith("tap") else next(k for k, line in enumerate(lines) if line.startswith("02"))
    lines[place] = f"{int(lines[place], 16) ^ 1:0{len(lines[place])}x}"
    path.write_text("\n".join(lines) + "\n")
    told = simulated(folder)
    assert next(line for line in told if line.startswith("FAIL")).startswith(f"FAIL {what}")
    assert told[-1].endswith("FAIL") and told[-1].startswith("1 OF ")


@pytest.mark.slow
def test_yosys_makes_cells_of_it(compact, tmp_path):
    """A TAP unit is a small part of a multiplier-accumulator; the element is one with two more sums."""
    folder = exports.written("verilog", compact, tmp_path / "v")
    told = exports.run(exports.tool("yosys"), "cells.ys", folder=folder)
    cells = {name: int(count) for name, count in re.findall(r"=== (\w+) ===.*?Number of cells: +(\d+)", told, re.S)}
    taps = {name: count for name, count in cells.items() if name.startswith("tap_")}
    assert set(cells) == {*taps, "element", "total", "mac"} and len(taps) == len(compact.network.layers)
    assert max(taps.values()) < cells["mac"] / 8
    assert cells["mac"] < cells["element"] < 2 * cells["mac"]
    assert "Found and reported 0 problems" in told and "Latch inferred" not in told and "_DLATCH_" not in told
