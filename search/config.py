"""The options of a search: names, types, defaults, bounds and help in one table; all problems reported at once."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from approx_env import data, options
from approx_env.engines import build as engines
from approx_env.int8 import energy
from approx_env.int8.sites import CHOICES as SITES
from approx_env.options import integer, number, option, switch
from approx_env.teachers import models
from search import algorithms
from search.algorithms import ppo
from search.objectives import OBJECTIVES
from search.workers import processes
from search.workers.processes import Needs

ALGORITHMS = (algorithms.AUTO, *algorithms.NAMES)
ACCURACIES = ("hard", "soft")
DEFAULT_SEARCH_IMAGES = 1024
ALONE = 8  # most runners of a search on one machine, unless more are asked for; by default no generation is smaller


def _seeds(text: str) -> tuple[int, ...]:
    seeds = tuple(int(part) for part in text.split(","))
    if len(set(seeds)) < len(seeds) or not 0 <= min(seeds) <= max(seeds) < 2**31:
        raise ValueError
    return seeds


def _rungs(text: str) -> tuple[int, ...]:
    rungs = tuple(int(part) for part in text.split(","))
    if len(rungs) < 2 or rungs[0] < 1 or any(more <= images for images, more in pairwise(rungs)):
        raise ValueError
    return rungs


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d{1,3})?", text):
        raise ValueError
    return text


def _place(text: str) -> str:
    """An object store other than S3 is refused here: pyarrow looks for credentials for minutes before it answers."""
    scheme, mark, rest = text.partition("://")
    if mark and (scheme not in ("s3", "file") or not rest or rest.startswith(("/", "?")) != (scheme == "file")):
        raise ValueError
    return text


@dataclass(frozen=True)
class Settings:
    """Everything that the command line decides. A field's flag is its name with dashes."""

    model: str | None = option(
        None,
        f"network whose layers are approximated: {models.NAMES} (default: the teacher's, or squeezenet); also --layers",
        type=models.named,
        kind=models.NAMES,
        metavar="MODEL",
    )
    weights: str | None = option(
        None, ".safetensors that the teacher of FILE.py:NAME was made of (default: any)", metavar="FILE"
    )
    dataset: str = option("digits", "images to calibrate, search and test on", choices=data.DATASETS)
    data_dir: str | None = option(None, "folder of cifar10 (default data) or imagefolder", metavar="DIR")
    teacher: str | None = option(None, ".int8.json that approx_env.training wrote (default: shipped)", metavar="FILE")
    sites: str = option("standard", "what is approximated: the usual layers, or all that is multiplied", choices=SITES)
    algorithm: str = option(algorithms.AUTO, "how to search; auto: what did best for what is asked", choices=ALGORITHMS)
    episodes: int | None = integer(
        None, "configurations to score in each search (default 320; 1 if the algorithm proposes no more)", 1
    )
    seeds: tuple[int, ...] = option(
        (0,),
        "seeds, one search each",
        type=_seeds,
        kind="different whole numbers in 0..2147483647, as 0,1,2",
        metavar="LIST",
    )
    search_images: int | None = integer(
        None, f"images a configuration is scored on (default {DEFAULT_SEARCH_IMAGES}, or all if fewer)", 1
    )
    rungs: tuple[int, ...] | None = option(
        None,
        "images, in place of --search-images: search on the first number, score the best again on each next one",
        type=_rungs,
        kind="two or more growing positive whole numbers, as 256,1024,4096",
        metavar="LIST",
    )
    calib_batches: int = integer(16, "batches of calibration images", 1)
    calib_batch_size: int = integer(32, "images in a calibration batch", 1)
    init_from: str | None = option(
        None,
        "where searches begin, in place of quintile: at what a run has chosen, or at what a policy of search.pretrain "
        "proposes, a .safetensors",
        metavar="RUN",
    )
    lr: float = number(ppo.Options.lr, "PPO's learning rate", above=0, high=1)
    iteration_episodes: int = integer(
        ppo.Options.iteration_episodes, "episodes that PPO learns from at a time; no more runners than these work", 1
    )
    objective: str = option(
        "return",
        "what to maximise; kd, kd+at: the losses alone, so that no label can be learnt by heart; pareto: the return, "
        "and as few exact multiplications as possible",
        choices=tuple(OBJECTIVES),
    )
    budget_exact: float | None = number(
        None,
        "highest share of all multiplications that may stay exact, those counted that no layer feeds (default: any)",
        low=0,
        high=1,
    )
    accuracy: str = option("hard", "accuracy that the return rewards", choices=ACCURACIES)
    kd_temperature: float = number(2.0, "temperature of the KD loss, logits", above=0, high=1000)
    kd_weight: float = number(1.0, "weight of the KD loss in the return", low=0, high=1e6)
    at_weight: float = number(1.0, "weight of the AT loss in the return", low=0, high=1e6)
    cost: str = option(
        energy.SHIPPED[0], f"energy of multiplications: {', '.join(energy.SHIPPED)} or a TOML file", metavar="FILE"
    )
    tmax_percentile: float = number(90.0, "percentile of nonzero codes that tmax starts from, %", above=0, high=100)
    tmax_offset: int = integer(10, "codes added to it", -255, high=255)
    search_tmax: bool = switch(False, "choose tmax of each layer, too: percentile and offset are where it starts")
    max_acc_drop: float = number(2.0, "highest validation accuracy drop to choose from, points", low=0, high=100)
    top: int = integer(30, "best configurations to keep and validate", 1)
    finetune_epochs: float | None = number(
        None,
        "makes a student in the end, as search.finetune does, by so many passes over train images (0: corrects only)",
        low=0,
        high=1000,
    )
    sensitivity: bool = switch(False, "measure first what each layer alone costs, as search.sensitivity does")
    num_env_runners: int | None = integer(
        None,
        "processes that score; 0: in the search's own (default: as many as there are cores, at most 8 on one machine, "
        "on a cluster at most what the algorithm keeps busy)",
        0,
    )
    threads_per_runner: int | None = integer(
        None, "threads, a core each, on which a runner scores a configuration (default: 1)", 1
    )
    envs_per_runner: int = integer(
        ppo.Options.envs_per_runner, "configurations that a runner takes through the network in lockstep (PPO)", 1
    )
    engine: str = option("vector", "what runs the network: vector (x86 CPUs) or portable", choices=engines.ENGINES)
    device: str = option(
        "cpu",
        "device of the portable engine, as torch names it",
        type=_device,
        kind="cpu, mps, cuda, xpu or one of several as cuda:1",
        metavar="DEVICE",
    )
    gpus_per_runner: float | None = number(
        None, "GPUs, or the part of one, that a runner asks of Ray (default: 0 on the cpu, else 1)", low=0, high=64
    )
    address: str = option("local", "Ray cluster: local (start one), auto, or HOST:PORT", metavar="ADDRESS")
    results: str = option(
        "results",
        "folder that holds the runs: a path, or s3://bucket/path",
        type=_place,
        kind="a path or s3://bucket/path",
        metavar="DIR",
    )
    resume: str | None = option(
        None, "go on with this run of --results, which was cut off; only where it runs may be given anew", metavar="RUN"
    )
    run_name: str | None = option(
        None, "name of this run's folder (default: model-dataset-algorithm-time)", metavar="NAME"
    )
    quiet: bool = switch(False, "print errors, and of all else the last line alone")
    json: bool = switch(False, "print events alone, a line of JSON each; results/README.md has their schema")

    @property
    def budget(self) -> int:
        """Configurations to score in each search."""
        return self.episodes or (1 if algorithms.is_fixed(self.works) else 320)

    @property
    def works(self) -> str:
        """Name of the algorithm that searches: what `auto` stands for here, or what is asked for."""
        if self.algorithm != algorithms.AUTO:
            return self.algorithm
        return algorithms.chosen(self.objective, self.search_tmax)

    @property
    def runners(self) -> int:
        """Processes that score."""
        if self.num_env_runners is not None:
            return self.num_env_runners
        return min(ALONE, max(1, (os.cpu_count() or 1) // self.needs.cores))

    @property
    def needs(self) -> Needs:
        """What a runner asks of Ray."""
        gpus = float(self.device != "cpu") if self.gpus_per_runner is None else self.gpus_per_runner
        return Needs(self.threads_per_runner or 1, gpus)


def parse(
    argv: list[str] | None = None,
    command: str = "search.run",
    description: str = "Searches TAP codes for an INT8 CNN.",
    only: Collection[str] | None = None,
    table: type[options.Table] = Settings,
    more: options.Contradictions | None = None,
) -> options.Table:
    """Reads the command line.

    Args:
        only: names of the settings that the command takes.
        table: what they are read into.
        more: what else cannot hold together.

    Raises:
        InputError: with every problem there is.
    """
    given = sys.argv[1:] if argv is None else argv
    argv = [re.sub(r"^--layers(?==|$)", "--model", part) for part in given]

    def contradictions(settings: Settings, given: set[str]) -> Iterator[tuple[set[str], str]]:
        yield from (each for each in _contradictions(settings, given) if only is None or each[0] <= set(only))
        yield from more(settings, given) if more else ()

    return options.parse(table, f"python -m {command}", description, argv, contradictions, only)


# What may be given with --resume: where things are, and what has no influence on what is found.
RESUMABLE = (
    "resume", "results", "address", "num_env_runners", "threads_per_runner", "gpus_per_runner", "data_dir", "teacher",
    "quiet", "json",
)  # fmt: skip


def resumed(given: Settings, arguments: Mapping[str, Any]) -> Settings:
    """The settings of a run that goes on: its own `arguments`, but for what is `given` now.

    Raises:
        TypeError: they are not those of a search.
    """
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    now = {name: getattr(given, name) for name in RESUMABLE}
    where = ("data_dir", "teacher", "threads_per_runner", "gpus_per_runner")
    kept = {name: own[name] for name in where if now[name] is None and name in own}
    return Settings(**own | now | kept)


def _contradictions(settings: Settings, given: set[str]) -> Iterator[tuple[set[str], str]]:
    """What cannot hold together: the options involved, and the sentence that says so."""
    cores = os.cpu_count() or 1
    runners, threads = settings.runners, settings.needs.cores
    if settings.address == "local" and (wanted := max(1, runners) * threads) > cores:
        text = (
            f"--num-env-runners {runners} with --threads-per-runner {threads} needs {wanted} cores, and this machine "
            f"has {cores}: ask for fewer"
        )
        yield {"num_env_runners", "threads_per_runner", "address"}, text
    if settings.quiet and settings.json:
        yield {"quiet", "json"}, "--quiet prints the last line alone, and --json prints events: leave one out"
    if settings.resume is not None:
        for name in sorted(given.difference(RESUMABLE)):
            yield {name}, f"{options.flag(name)} is what run {settings.resume} was started with: leave it out"
        yield from session_contradictions(settings.address, settings.resume, "resume")
        return
    yield from data.contradictions(settings.dataset, given)
    yield from weights_contradictions(settings)
    if settings.algorithm != "ppo" and "lr" in given:
        text = f"--lr is PPO's learning rate; --algorithm {settings.algorithm} has none: leave it out"
        yield {"algorithm", "lr"}, text
    if settings.algorithm != "ppo" and "iteration_episodes" in given:
        text = f"--iteration-episodes is PPO's; --algorithm {settings.algorithm} has no iterations: leave it out"
        yield {"algorithm", "iteration_episodes"}, text
    if settings.algorithm != "ppo" and settings.envs_per_runner > 1:
        text = f"--envs-per-runner is PPO's; --algorithm {settings.algorithm} scores one at a time: leave it out"
        yield {"algorithm", "envs_per_runner"}, text
    for name in sorted(given.intersection(OBJECTIVES[settings.objective].unread)):
        text = f"--objective {settings.objective} does not read {options.flag(name)}: leave one out"
        yield {"objective", name}, text
    if settings.objective == "pareto" and not hasattr(algorithms.find(settings.works), "FRONT"):
        able = ", ".join(name for name in algorithms.NAMES if hasattr(algorithms.find(name), "FRONT"))
        text = f"--objective pareto wants an algorithm that searches fronts ({able}), got {settings.algorithm}"
        yield {"objective", "algorithm"}, text
    if settings.engine == "vector" and settings.device != "cpu":
        text = f"--engine vector runs on the cpu, and --device {settings.device} came: use --engine portable"
        yield {"engine", "device"}, text
    if settings.device != "cpu" and settings.needs.cores > 1:
        text = f"--threads-per-runner is for the cpu, and --device {settings.device} came: leave one out"
        yield {"threads_per_runner", "device"}, text
    if settings.init_from is not None and (algorithms.is_fixed(settings.works) or settings.works == "random"):
        text = f"--init-from says where a search begins; --algorithm {settings.algorithm} begins nowhere: leave it out"
        yield {"algorithm", "init_from"}, text
    if algorithms.is_fixed(settings.works) and (settings.budget != 1 or len(settings.seeds) != 1):
        text = f"--algorithm {settings.algorithm} is one fixed configuration: --episodes must be 1 and --seeds one seed"
        yield {"algorithm", "episodes", "seeds"}, text
    if settings.finetune_epochs is not None and "://" in settings.results:
        text = (
            "--finetune-epochs writes to a folder of this machine, and --results is none: use search.finetune --output"
        )
        yield {"finetune_epochs", "results"}, text
    if {"rungs", "search_images"} <= given:
        text = "--rungs says on how many images configurations are scored, and so does --search-images: leave one out"
        yield {"rungs", "search_images"}, text
    yield from session_contradictions(settings.address, settings.run_name)


def weights_contradictions(settings: Settings) -> Iterator[tuple[set[str], str]]:
    """What is wrong with --weights, as `options.parse` wants it."""
    if settings.weights is not None and (settings.model is None or not re.search(r"\.py:\w+$", settings.model)):
        yield {"weights", "model"}, "--weights is for a network of your own, --model FILE.py:NAME: leave it out"
    if settings.weights is not None and settings.teacher is not None:
        yield {"weights", "teacher"}, "--teacher holds its weights: leave --weights out"


def session_contradictions(
    address: str, run_name: str | None, option: str = "run_name"
) -> Iterator[tuple[set[str], str]]:
    """What is wrong with --address and with the `option` that names a run, as `options.parse` wants it."""
    if address not in ("local", "auto") and not re.fullmatch(r".+:\d{1,5}", address):
        yield {"address"}, f"--address must be local, auto or HOST:PORT, got '{address}'"
    if address == "local" and (crowded := processes.crowded()):
        yield {"address"}, crowded
    if run_name is not None and (not run_name or run_name.startswith(".") or "/" in run_name or len(run_name) > 100):
        text = f"{options.flag(option)} must be one folder name of at most 100 characters, got '{run_name}'"
        yield {option}, text
