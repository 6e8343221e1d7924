"""Where does the time of a pass go, node by node, and what bounds each node: products, or memory?

Question: how long does each node of SqueezeNet and AlexNet (32x32) take, at how many multiply-accumulates a second, and
how many bytes a second does it move? Which share is that of what this core does at its best?

Method: one thread. 64 digits, which pass a segment together, go through the network under quintile codes, as in an
evaluation: products are counted, and attention is measured. Each step of a segment is called alone and timed, and each
call for a site. A node's bytes are its inputs, its weights and its output, each counted once. The best that the core
does are multiply-accumulates of one large oneDNN INT8 convolution, and bytes read and written by a copy of 64 MiB.
"""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from approx_env import markdown
from approx_env.engines.base import Engine
from approx_env.engines.vector import kernels
from approx_env.engines.vector.plan import Plan
from approx_env.int8.network import Network
from approx_env.int8.nodes import INPUT, Node, Weighted
from approx_env.scoring.evaluator import Evaluator, Problem
from benchmarks import record, timing, workload
from benchmarks.bench_engines import PEAK_MACS, large_convolution

MODELS = ("squeezenet", "alexnet")
REPETITIONS, QUICK_REPETITIONS = 101, 5
COPIED_BYTES = 2**26
SHOWN = 12  # nodes of each network that the table shows, the slowest


def measure(folder: Path, quick: bool) -> dict[str, np.ndarray]:
    """Writes `nodes.parquet`; there is no claim about single nodes."""
    record.announce("nodes", __doc__)
    repetitions = QUICK_REPETITIONS if quick else REPETITIONS
    source, target = np.zeros(COPIED_BYTES, np.uint8), np.zeros(COPIED_BYTES, np.uint8)
    best = timing.side_by_side(
        {"convolution": large_convolution(), "copy": lambda: np.copyto(target, source)}, min(repetitions, 15)
    )
    peak = PEAK_MACS / np.median(best["convolution"]) / 1e9
    bandwidth = 2 * COPIED_BYTES / np.median(best["copy"]) / 1e9
    print(f"at best {peak:.0f} GMAC/s, {bandwidth:.1f} GB/s")
    rows = []
    for model in MODELS:
        network, seconds = timed(workload.problem(model, Engine.chunk), repetitions)
        rows += [row | {"model": model} for row in told(network, seconds, peak, bandwidth)]
        print(f"\n{model}, {Engine.chunk} images\n\n{table([row for row in rows if row['model'] == model])}")
    record.write(folder, "nodes", __doc__, rows)
    return {}


def timed(problem: Problem, repetitions: int) -> tuple[Network, dict[str, float]]:
    """The network as the evaluator runs it, and median seconds of each node, sites among them, under quintile codes."""
    engine, images = Evaluator(problem).engine, workload.images(Engine.chunk)[0]
    times: list[dict[str, float]] = []  # of each pass, seconds by node

    def one_by_one(plan: Plan, count: int, together: int, addresses: np.ndarray) -> None:
        for first in range(0, count, together):
            for k, name in enumerate(plan.names):
                begin = time.perf_counter()
                kernels.run(plan.rows[k : k + 1], min(together, count - first), together,
                            addresses + first * plan.sizes, plan.sizes)  # fmt: skip
                times[-1][name] += time.perf_counter() - begin

    for plan in (engine.plans[0], *engine.approximating):
        plan.carry_out = partial(one_by_one, plan)
    for _ in range(repetitions + 1):
        times.append(defaultdict(float))
        state = engine.start(images)
        for layer in problem.calibration.layers:
            state = engine.advance(state, layer.quintile, layer.tmax)
    return engine.network, {name: float(np.median([one[name] for one in times[1:]])) for name in times[0]}


def told(network: Network, seconds: dict[str, float], peak: float, bandwidth: float) -> list[dict[str, Any]]:
    """A row for each node that took time: what it computed and moved, and the shares of the best."""
    rows = []
    for node in network.nodes:
        if node.name not in seconds:
            continue
        macs, took = Engine.chunk * network.macs.get(node.name, 0), seconds[node.name]
        moved = bytes_moved(network, node)
        rows.append({
            "node": node.name, "kind": type(node).__name__, "seconds": took, "share": took / sum(seconds.values()),
            "gmac_per_second": macs / took / 1e9, "share_of_peak": macs / took / 1e9 / peak,
            "megabytes": moved / 1e6, "share_of_bandwidth": moved / took / 1e9 / bandwidth,
        })  # fmt: skip
    return rows


def bytes_moved(network: Network, node: Node) -> int:
    """Codes read and written of a chunk of images, and weights: each counted once."""
    shapes = network.shapes | {INPUT: network.input_shape}
    codes = Engine.chunk * sum(int(np.prod(shapes[name])) for name in (node.name, *node.inputs))
    return codes + (node.weight.nbytes if isinstance(node, Weighted) else 0)


def table(rows: list[dict[str, Any]]) -> str:
    """The slowest nodes, and all of each kind together."""
    lines = []
    for row in sorted(rows, key=lambda row: -row["seconds"])[:SHOWN]:
        lines.append((row["node"], row["kind"], f"{row['seconds'] * 1e3:.3f}", f"{row['share']:.1%}",
                      f"{row['gmac_per_second']:.0f}", f"{row['share_of_peak']:.0%}", f"{row['megabytes']:.2f}",
                      f"{row['share_of_bandwidth']:.0%}"))  # fmt: skip
    for kind in sorted({row["kind"] for row in rows}):
        of_kind = [row for row in rows if row["kind"] == kind]
        total = sum(row["seconds"] for row in of_kind)
        lines.append((f"all {len(of_kind)}", kind, f"{total * 1e3:.3f}", f"{sum(row['share'] for row in of_kind):.1%}",
                      "", "", "", ""))  # fmt: skip
    head = ("node", "kind", "ms", "share", "GMAC/s", "of peak", "MB", "of bandwidth")
    return markdown.table(head, lines)
