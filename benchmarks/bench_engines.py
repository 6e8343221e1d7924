"""Is the bare INT8 forward pass as fast as this core allows?

Question: how many images a second do our engine, ONNX Runtime and OpenVINO take through the same quantised SqueezeNet
(32x32, nothing approximated), and how many of the multiply-accumulates a second that one large oneDNN INT8
convolution reaches on this core does ours do?

Method: one thread each, in one process, batches of 1, 32 and 256 digits, uint8 pixels to logits. ONNX Runtime and
OpenVINO run the network as ONNX in QDQ form, compiled for that one batch size, with default optimisations. The
convolution is 3x3, 256 to 256 channels, 16x16 codes, 64 images: 9.7 GMAC. In each repetition all of them run once, in
turn; a ratio is taken within a repetition, against the engine that was the faster one in it. Before, the
share of digits on which each engine agrees with ours is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch

from approx_env.int8.network import Network
from approx_env.int8.nodes import INPUT
from benchmarks import onnx_twin, record, timing, workload

BATCHES = (1, 32, 256)
REPETITIONS, QUICK_REPETITIONS = 15, 3
PEAK_IMAGES, PEAK_CHANNELS, PEAK_SIDE = 64, 256, 16
PEAK_MACS = PEAK_IMAGES * PEAK_SIDE**2 * PEAK_CHANNELS**2 * 9

ONEDNN = torch.ops.onednn

Pass = Callable[[np.ndarray], np.ndarray]  # images (n, c, h, w) uint8 -> logits (n, classes) float32


def onnx_runtime_pass(network: Network, batch: int) -> Pass:
    """The network in ONNX Runtime, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_free_dimension_override_by_name(onnx_twin.BATCH, batch)
    model = onnx_twin.convert(network).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {INPUT: images})[0]


def openvino_pass(network: Network, batch: int) -> Pass:
    """The network in OpenVINO, on one thread."""
    core = openvino.Core()
    model = core.read_model(onnx_twin.convert(network).SerializeToString())
    model.reshape([batch, *network.input_shape])
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda images: request.infer({INPUT: images})[0]


def our_pass(network: Network, batch: int) -> Pass:
    """The network in our engine; any batch will do."""
    engine = workload.bare_engine(network)
    return lambda images: engine.forward(images).numpy()


ENGINES = {"tapsearch": our_pass, "onnxruntime": onnx_runtime_pass, "openvino": openvino_pass}


def large_convolution() -> Callable[[], torch.Tensor]:
    """oneDNN's uint8 x int8 convolution at its best: as many channels and codes as fit the caches."""
    generator = np.random.default_rng(0)
    channels, shape = PEAK_CHANNELS, (PEAK_IMAGES, PEAK_CHANNELS, PEAK_SIDE, PEAK_SIDE)
    weight = torch.from_numpy(generator.integers(-60, 61, (channels, channels, 3, 3)).astype(np.int8))
    x = torch.from_numpy(generator.integers(0, 256, shape, np.uint8)).contiguous(memory_format=torch.channels_last)
    geometry, ones = ([1, 1], [1, 1], [1, 1], 1), torch.ones(channels)
    packed = ONEDNN.qconv_prepack(weight, ones, 1.0, 0, *geometry, list(shape))
    zeros, bias = torch.zeros(channels, dtype=torch.int32), torch.zeros(channels)
    output = (1000.0, 0, torch.uint8, "relu", [], "")
    return lambda: ONEDNN.qconv2d_pointwise(x, 1.0, 0, packed, ones, zeros, bias, *geometry, *output)


def measure(folder: Path, quick: bool) -> dict[str, np.ndarray]:
    """Writes `engines.parquet` and returns the claims' repetitions."""
    record.announce("engines", __doc__)
    repetitions = QUICK_REPETITIONS if quick else REPETITIONS
    network = workload.network("squeezenet")
    rows, seconds, speedups = [], {}, {}
    for batch in BATCHES:
        images, _ = workload.images(batch)
        passes = {name: make(network, batch) for name, make in ENGINES.items()}
        answers = {name: run(images).argmax(1) for name, run in passes.items()}
        runs = {name: lambda run=run, images=images: run(images) for name, run in passes.items()}
        if batch == BATCHES[-1]:
            runs["oneDNN convolution"] = large_convolution()
        seconds = timing.side_by_side(runs, repetitions)
        key = "pass_speedup_over_best_engine" + (f"_{batch}" if batch != BATCHES[-1] else "")
        speedups[key] = np.minimum(seconds["onnxruntime"], seconds["openvino"]) / seconds["tapsearch"]
        for name, times in seconds.items():
            macs = batch * workload.macs(network) if name in passes else PEAK_MACS
            agreement = float((answers[name] == answers["tapsearch"]).mean()) if name in passes else None
            rows += [
                {"engine": name, "batch": batch, "repetition": k, "seconds": s, "gmac_per_second": macs / s / 1e9,
                 "images_per_second": batch / s if name in passes else None, "agreement": agreement}
                for k, s in enumerate(times)
            ]  # fmt: skip
            speed = f"{batch / np.median(times):8.0f} images/s, " if name in passes else " " * 19
            agreeing = f", agrees on {agreement:.2%}" if name in passes else ""
            print(
                f"batch {batch:3d} {name:18s} {speed}{macs / np.median(times) / 1e9:6.1f} GMAC/s{agreeing}", flush=True
            )
    record.write(folder, "engines", __doc__, rows)
    best = PEAK_MACS / seconds["oneDNN convolution"]
    return speedups | {"share_of_peak": BATCHES[-1] * workload.macs(network) / seconds["tapsearch"] / best}
