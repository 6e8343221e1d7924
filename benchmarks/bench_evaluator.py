"""What does one episode cost, and how does that grow?

Question: what does an episode (TAP in every layer, attention maps, multiplications counted, accuracy, KD and AT) cost
beside a bare INT8 forward pass of the same images, and beside the same job written plainly in float32? How does it grow
with images, layers, configurations in lockstep and threads?

Method: SqueezeNet's search problem on digits, repeated to the number of images wanted; one process, and one thread but
for the last series. The episode and what it is compared with run in turn, once in each repetition; a ratio is taken
within a repetition. Each episode has a configuration around quintile that differs from all others in its first layer,
so that no cache helps. The bare pass runs on 1,024 images in the engine's own chunks, from pixels to logits, and takes
no attention maps; the episode leaves out what comes before the first layer's codes, as every episode of a search does.
The float32 student (`float_reference.py`) and its teacher score the 256 digits in batches of 128, in a process of their
own with torch as it comes; the same with freed memory kept, as our evaluator has it, is in the rows.
The engine before its codes were exact (`landed.py`) scores the same problem in a process of its own, side by side;
where the project's history is not at hand, that claim is left out, and a line says so.
Common beginnings: the codes of one layer change from episode to episode, and those of all layers before it stay.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from approx_env.engines import memory
from approx_env.scoring.configuration import Configuration
from approx_env.scoring.evaluator import Evaluator, Problem
from benchmarks import landed, record, timing, workload
from benchmarks.float_reference import BATCH, FloatReference

IMAGES, FLOAT_IMAGES = 1024, 256
GROWING_IMAGES = (128, 256, 512, 1024)
GROWING_MODELS = ("squeezenet_compact", "alexnet", "squeezenet", "vgg16")
MODEL_IMAGES = 256
LOCKSTEP, LOCKSTEP_IMAGES = (1, 2, 4, 8), 256
REPETITIONS = {"pass": 11, "float": 5, "growth": 5}
QUICK_REPETITIONS = {"pass": 3, "float": 1, "growth": 1}


def measure(folder: Path, quick: bool) -> dict[str, np.ndarray]:
    """Writes `evaluator.parquet` and returns the claims' repetitions."""
    record.announce("evaluator", __doc__)
    repetitions = QUICK_REPETITIONS if quick else REPETITIONS
    rows: list[dict[str, Any]] = []
    ratios = {
        "episode_over_pass": _against_pass(repetitions["pass"], rows),
        "episode_speedup_over_float_reference": _against_float(repetitions["float"], rows),
    }
    if landed.available():
        ratios["episode_over_landed"] = _against_landed(repetitions["pass"], rows)
    else:
        print(f"commit {landed.COMMIT[:7]} is not here: what exactness costs is not measured", flush=True)
    _by_beginning(repetitions["growth"], rows)
    _by_images(repetitions["growth"], rows)
    _by_model(repetitions["growth"], rows)
    _by_lockstep(repetitions["growth"], rows)
    _by_threads(repetitions["growth"], rows)
    record.write(folder, "evaluator", __doc__, rows)
    return ratios


def episodes(evaluator: Evaluator) -> Callable[[], object]:
    """Scores another configuration at each call."""
    proposals = workload.configurations(evaluator.calibration)
    return lambda: evaluator.evaluate(next(proposals))


def _against_pass(repetitions: int, rows: list[dict[str, Any]]) -> np.ndarray:
    problem = workload.problem("squeezenet", IMAGES)
    engine = workload.bare_engine(problem.network)
    chunks = np.split(problem.images, range(engine.chunk, IMAGES, engine.chunk))
    runs = {
        "episode": episodes(Evaluator(problem)),
        "bare pass": lambda: [engine.forward(images) for images in chunks],
    }
    seconds = timing.side_by_side(runs, repetitions)
    for what, times in seconds.items():
        _keep(rows, "against pass", what, times, images=IMAGES)
    return seconds["episode"] / seconds["bare pass"]


def _against_landed(repetitions: int, rows: list[dict[str, Any]]) -> np.ndarray:
    with landed.served("squeezenet", IMAGES) as score:
        runs = {"episode": episodes(Evaluator(workload.problem("squeezenet", IMAGES))), "landed episode": score}
        seconds = timing.side_by_side(runs, repetitions)
    for what, times in seconds.items():
        _keep(rows, "against landed", what, times, images=IMAGES)
    return seconds["episode"] / seconds["landed episode"]


def _against_float(repetitions: int, rows: list[dict[str, Any]]) -> np.ndarray:
    problem = workload.problem("squeezenet", FLOAT_IMAGES)
    proposals = workload.configurations(problem.calibration)
    plain, keeping = f"float32 episode, batch {BATCH}", f"float32 episode, batch {BATCH}, freed memory kept"
    with _served(problem, keep=False) as score, _served(problem, keep=True) as score_keeping:
        runs = {
            "episode": episodes(Evaluator(problem)),
            plain: lambda: score(next(proposals)),
            keeping: lambda: score_keeping(next(proposals)),
        }
        seconds = timing.side_by_side(runs, repetitions)
    for what, times in seconds.items():
        _keep(rows, "against float", what, times, images=FLOAT_IMAGES)
    return seconds[plain] / seconds["episode"]


@contextmanager
def _served(problem: Problem, keep: bool) -> Iterator[Callable[[Configuration], None]]:
    """The float32 student in a process of its own: gives a function that has it score a configuration."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(problem, keep, there))
    process.start()

    def score(configuration: Configuration) -> None:
        here.send(configuration)
        here.recv()

    try:
        yield score
    finally:
        here.send(None)
        process.join()


def _serve(problem: Problem, keep: bool, connection: Connection) -> None:
    torch.set_num_threads(1)
    if keep:
        memory.keep_freed_memory()
    reference = FloatReference(problem)
    while configuration := connection.recv():
        connection.send(reference.evaluate(configuration))


def _by_beginning(repetitions: int, rows: list[dict[str, Any]]) -> None:
    """What an episode costs when only one layer's codes are new, with the cache as it is by default."""
    evaluator = Evaluator(workload.problem("squeezenet", IMAGES))
    proposals = workload.configurations(evaluator.calibration)
    last = list(next(proposals))

    def change(layer: int) -> None:
        last[layer] = next(codes for proposal in proposals if (codes := proposal[layer]) != last[layer])
        evaluator.evaluate(last)

    runs = {layer: lambda layer=layer: change(layer) for layer in range(len(evaluator.layers))}
    for layer in runs:  # one after the other: a search by coordinates changes a layer several times
        evaluator.evaluate(last)
        times = timing.side_by_side({layer: runs[layer]}, repetitions)[layer]
        _keep(rows, "by beginning", f"episode, new codes in {evaluator.layers[layer]}", times, images=IMAGES)


def _by_images(repetitions: int, rows: list[dict[str, Any]]) -> None:
    runs = {count: episodes(Evaluator(workload.problem("squeezenet", count))) for count in GROWING_IMAGES}
    for count, times in timing.side_by_side(runs, repetitions).items():
        _keep(rows, "by images", "episode", times, images=count)


def _by_model(repetitions: int, rows: list[dict[str, Any]]) -> None:
    problems = {model: workload.problem(model, MODEL_IMAGES) for model in GROWING_MODELS}
    runs = {model: episodes(Evaluator(problem)) for model, problem in problems.items()}
    for model, times in timing.side_by_side(runs, repetitions).items():
        network = problems[model].network
        _keep(rows, "by model", "episode", times, model=model, layers=len(network.layers), images=MODEL_IMAGES,
              macs=workload.macs(network))  # fmt: skip


def _by_lockstep(repetitions: int, rows: list[dict[str, Any]]) -> None:
    evaluator = Evaluator(workload.problem("squeezenet", LOCKSTEP_IMAGES))
    proposals = workload.configurations(evaluator.calibration)
    runs = {count: lambda count=count: score_in_lockstep(evaluator, _take(proposals, count)) for count in LOCKSTEP}
    for count, times in timing.side_by_side(runs, repetitions).items():
        _keep(rows, "by lockstep", "episode", times / count, images=LOCKSTEP_IMAGES, configurations=count)


def _by_threads(repetitions: int, rows: list[dict[str, Any]]) -> None:
    problem, cores = workload.problem("squeezenet", IMAGES), os.cpu_count() or 1
    runs = {threads: episodes(Evaluator(problem, threads=threads)) for threads in sorted({1, min(2, cores), cores})}
    for threads, times in timing.side_by_side(runs, repetitions).items():
        _keep(rows, "by threads", "episode", times, images=IMAGES, threads=threads)


def score_in_lockstep(evaluator: Evaluator, configurations: Sequence[Configuration]) -> None:
    """Scores configurations together, layer by layer."""
    evaluation = evaluator.begin(len(configurations))
    for codes in zip(*configurations, strict=True):
        evaluation.advance(np.array(codes))


def _take(proposals: Iterator[Configuration], count: int) -> list[Configuration]:
    return [next(proposals) for _ in range(count)]


def _keep(rows: list[dict[str, Any]], series: str, what: str, times: np.ndarray, **about) -> None:
    """Adds a row for each repetition: its seconds an episode or pass; prints their median."""
    about = {"model": "squeezenet", "layers": 9, "configurations": 1, "threads": 1} | about
    rows += [{"series": series, "what": what, **about, "repetition": k, "seconds": s} for k, s in enumerate(times)]
    facts = ", ".join(f"{key} {value}" for key, value in about.items())
    rate = about["images"] / np.median(times)
    print(f"{series:13s} {what}: {np.median(times):.4f} s, {rate:.0f} images/s ({facts})", flush=True)
