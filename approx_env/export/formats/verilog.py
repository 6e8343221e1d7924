"""Verilog: a TAP unit for each layer, and a processing element that skips zeros and shares products with v1 and v2.

`testbench.v` proves them in any simulator: each unit on all 256 codes and on the layer's codes of a golden image, the
element and the requantisation on whole windows of the network, down to its own codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from approx_env.export.deployment import Deployment
from approx_env.export.formats.tables import memory
from approx_env.int8.nodes import Convolution, Weighted
from approx_env.tap import CODE_COUNT

SOURCES = Path(__file__).parents[1] / "sources"
COPIED = ("element.v", "total.v", "requantise.v", "mac.v")
SIMULATE = "iverilog -g2005 -o ../testbench *.v && vvp ../testbench"
WINDOWS = 16  # of each node, that the element adds up: one of each golden image
# Words of the element's input: an operation, and 32 bits for it.
START, PRODUCT, CHECK_SUM, CHECK_MULTIPLICATIONS, CHECK_CODE, END = range(6)


def write(deployment: Deployment, folder: Path) -> dict[str, Any]:
    """Writes modules, a testbench with its vectors, and a script that counts cells."""
    for name in COPIED:
        (folder / name).write_bytes((SOURCES / name).read_bytes())
    benches, tops = [], []
    for node in deployment.sites:
        file = deployment.files[node.name]
        (folder / f"tap_{file}.v").write_text(unit(deployment, node.name))
        tops.append(f"tap_{file}")
        benches.append(_tap_bench(deployment, node.name, folder))
    readers = [node for node in deployment.network.nodes
               if isinstance(node, Weighted) and node.inputs[0] in deployment.layer_of]  # fmt: skip
    benches += [_element_bench(deployment, node, folder) for node in readers]
    (folder / "testbench.v").write_text("\n".join(_testbench(benches)) + "\n")
    (folder / "cells.ys").write_text("".join(_count(top) for top in (*tops, "element", "total", "mac")))
    return {"simulate": SIMULATE, "count_cells": "yosys cells.ys", "layers": len(tops), "nodes": len(readers)}


def unit(deployment: Deployment, layer: str) -> str:
    """The module that approximates a layer's codes."""
    (t1, v1, t2, v2), tmax = deployment.configuration[layer]
    return f"""// Three comparators tell the four segments of layer {deployment.files[layer]} apart.
module tap_{deployment.files[layer]} (
    input wire [7:0] code,
    output wire [7:0] value
);
    wire above_t1 = code > 8'd{t1};
    wire above_t2 = code > 8'd{t2};
    wire above_tmax = code > 8'd{tmax};
    assign value = above_tmax ? code : above_t2 ? 8'd{v2} : above_t1 ? 8'd{v1} : 8'd0;
endmodule
"""


def _count(top: str) -> str:
    return f"design -reset\nread_verilog {top}.v\nsynth -flatten -top {top}\n"


def _tap_bench(deployment: Deployment, layer: str, folder: Path) -> str:
    """The layer's part of the testbench; writes codes before and after."""
    file = deployment.files[layer]
    node = deployment.network.by_name[layer]
    every = np.arange(CODE_COUNT, dtype=np.uint8)
    before = np.concatenate([every, deployment.golden[node.inputs[0]][0].reshape(-1)])
    after = np.concatenate([deployment.table(layer), deployment.golden[layer][0].reshape(-1)])
    (folder / f"tap_{file}.before.mem").write_text(memory(before, 2))
    (folder / f"tap_{file}.after.mem").write_text(memory(after, 2))
    count = len(before)
    return f"""    // layer {file}
    reg [7:0] before_{file} [0:{count - 1}], after_{file} [0:{count - 1}];
    reg [7:0] code_{file};
    wire [7:0] value_{file};
    tap_{file} unit_{file} (.code(code_{file}), .value(value_{file}));
    initial begin
        $readmemh("tap_{file}.before.mem", before_{file});
        $readmemh("tap_{file}.after.mem", after_{file});
        wrong_{file} = 0;
        for (k_{file} = 0; k_{file} < {count}; k_{file} = k_{file} + 1) begin
            code_{file} = before_{file}[k_{file}];
            #1 if (value_{file} !== after_{file}[k_{file}]) wrong_{file} = wrong_{file} + 1;
        end
        tell("tap_{file}", {count}, wrong_{file});
    end
    integer k_{file}, wrong_{file};
"""


def _element_bench(deployment: Deployment, node: Weighted, folder: Path) -> str:
    """A node's part of the testbench; writes the words that the element is fed with."""
    file, layer = deployment.files[node.name], deployment.layer_of[node.inputs[0]]
    (_, v1, _, v2), _ = deployment.configuration[layer]
    words = np.array([*_words(deployment, node, v1, v2), (END, 0)], np.int64)
    packed = (words[:, 0] << 32) + (words[:, 1] & 0xFFFFFFFF)
    (folder / f"element_{file}.mem").write_text(memory(packed, 10))
    return f"""    // node {file} reads layer {deployment.files[layer]}
    driver #(.V1(8'd{v1}), .V2(8'd{v2}), .WORDS({len(words)})) drive_{file} (.clock(clock));
    initial begin
        $readmemh("element_{file}.mem", drive_{file}.words);
        wait (drive_{file}.done);
        tell("element_{file}", drive_{file}.checks, drive_{file}.wrong);
    end
"""


def _words(deployment: Deployment, node: Weighted, v1: int, v2: int) -> Iterator[tuple[int, int]]:
    """A window of each golden image: the products that reach one output, and what must come of them."""
    generator = np.random.default_rng(0)
    outputs = deployment.golden[node.name]
    for image in range(min(WINDOWS, len(outputs))):
        place = tuple(int(generator.integers(side)) for side in outputs.shape[1:])
        codes, weights = _window(node, deployment.golden[node.inputs[0]][image], place)
        yield START, int(node.bias[place[0]])
        yield from ((PRODUCT, (code << 8) | (weight & 255)) for code, weight in zip(codes, weights, strict=True))
        yield (
            CHECK_SUM,
            sum(code * weight for code, weight in zip(codes, weights, strict=True)) + int(node.bias[place[0]]),
        )
        yield CHECK_MULTIPLICATIONS, sum(code not in (0, v1, v2) for code in codes)
        if not node.logits:
            yield CHECK_CODE, (int(outputs[(image, *place)]) << 24) | int(node.multiplier[place[0]])


def _window(node: Weighted, codes: np.ndarray, place: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """The codes that an output at `place` reads, and the weights that they meet; none of padding."""
    if not isinstance(node, Convolution):
        return codes.tolist(), node.weight[place[0]].tolist()
    pairs, channels = [], node.weight.shape[1]
    first = place[0] // (len(node.weight) // node.groups) * channels  # of the output's group
    for ky, kx in np.ndindex(node.weight.shape[2:]):
        y, x = place[1] * node.stride - node.padding + ky, place[2] * node.stride - node.padding + kx
        if 0 <= y < codes.shape[1] and 0 <= x < codes.shape[2]:
            pairs.append((codes[first : first + channels, y, x], node.weight[place[0], :, ky, kx]))
    read, met = (np.concatenate(part).tolist() for part in zip(*pairs, strict=True))
    return read, met


def _testbench(benches: list[str]) -> Iterator[str]:
    yield (SOURCES / "driver.v").read_text()
    yield f"""module testbench;
    reg clock = 0;
    always #2 clock = ~clock;
    integer told = 0, failed = 0;
    task tell(input [8*80-1:0] name, input integer checks, input integer wrong);
        begin
            told = told + 1;
            if (wrong == 0) $display("PASS %0s: %0d checks", name, checks);
            else begin
                failed = failed + 1;
                $display("FAIL %0s: %0d of %0d checks", name, wrong, checks);
            end
            if (told == {len(benches)}) begin
                if (failed == 0) $display("ALL {len(benches)} PASS");
                else $display("%0d OF {len(benches)} FAIL", failed);
                $finish;
            end
        end
    endtask
"""
    yield from benches
    yield "endmodule"
