"""The options of a search: names, types, defaults, bounds and help in one table; all problems reported at once."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from approx_env import data, models
from approx_env.errors import InputError

ALGORITHMS = ("ppo", "random", "quintile")
ACCURACIES = ("hard", "soft")
DEFAULT_SEARCH_IMAGES = 1024


def _seeds(text: str) -> tuple[int, ...]:
    seeds = tuple(int(part) for part in text.split(","))
    if len(set(seeds)) < len(seeds) or not 0 <= min(seeds) <= max(seeds) < 2**31:
        raise ValueError
    return seeds


def _option(
    default: Any,
    help: str,
    *,
    type: Callable[[str], Any] = str,
    kind: str = "",
    choices: tuple[str, ...] = (),
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    metavar: str | None = None,
) -> Any:
    rules = {"help": help, "type": type, "kind": kind, "choices": choices, "low": low, "high": high, "above": above}
    return field(default=default, metadata=rules | {"metavar": metavar})


def _integer(default: int | None, help: str, low: int, **rules) -> Any:
    return _option(default, help, type=int, kind="a whole number", low=low, metavar="N", **rules)


def _number(default: float, help: str, **rules) -> Any:
    return _option(default, help, type=float, kind="a number", metavar="X", **rules)


@dataclass(frozen=True)
class Settings:
    """Everything that the command line decides. A field's flag is its name with dashes."""

    layers: str = _option("squeezenet", "network whose layers are approximated", choices=tuple(models.MODELS))
    dataset: str = _option("digits", "images to calibrate, search and test on", choices=data.DATASETS)
    data_dir: str | None = _option(None, "folder of cifar10 (default data) or imagefolder", metavar="DIR")
    teacher: str | None = _option(None, ".int8.json that approx_env.training wrote (default: shipped)", metavar="FILE")
    algorithm: str = _option("ppo", "how to search", choices=ALGORITHMS)
    episodes: int | None = _integer(None, "configurations to score in each search (default 320; quintile: 1)", 1)
    seeds: tuple[int, ...] = _option(
        (0,),
        "seeds, one search each",
        type=_seeds,
        kind="different whole numbers in 0..2147483647, as 0,1,2",
        metavar="LIST",
    )
    search_images: int | None = _integer(
        None, f"images a configuration is scored on (default {DEFAULT_SEARCH_IMAGES}, or all if fewer)", 1
    )
    calib_batches: int = _integer(16, "batches of calibration images", 1)
    batch_size: int = _integer(32, "images in a calibration batch", 1)
    lr: float = _number(1e-3, "PPO's learning rate", above=0, high=1)
    accuracy: str = _option("hard", "accuracy that the return rewards", choices=ACCURACIES)
    kd_temperature: float = _number(2.0, "temperature of the KD loss, logits", above=0, high=1000)
    kd_weight: float = _number(1.0, "weight of the KD loss in the return", low=0, high=1e6)
    at_weight: float = _number(1.0, "weight of the AT loss in the return", low=0, high=1e6)
    tmax_percentile: float = _number(90.0, "percentile of nonzero codes that tmax starts from, %", above=0, high=100)
    tmax_offset: int = _integer(10, "codes added to it", -255, high=255)
    max_acc_drop: float = _number(2.0, "highest validation accuracy drop to choose from, points", low=0, high=100)
    top: int = _integer(30, "best configurations to keep and validate", 1)
    num_env_runners: int | None = _integer(
        None, "processes that score, a core each; 0: in the search's own (default: one a core, at most 8)", 0
    )
    address: str = _option("local", "Ray cluster: local (start one), auto, or HOST:PORT", metavar="ADDRESS")
    results: str = _option("results", "folder that holds the runs", metavar="DIR")
    run_name: str | None = _option(
        None, "name of this run's folder (default: model-dataset-algorithm-time)", metavar="NAME"
    )

    @property
    def budget(self) -> int:
        """Configurations to score in each search."""
        return self.episodes or (1 if self.algorithm == "quintile" else 320)

    @property
    def runners(self) -> int:
        """Processes that score."""
        return min(8, os.cpu_count() or 1) if self.num_env_runners is None else self.num_env_runners


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


def parse(argv: list[str] | None = None) -> Settings:
    """Reads the command line.

    Raises:
        InputError: with every problem there is.
    """
    parser = _Parser(prog="python -m search.run", description="Searches TAP codes for an INT8 CNN.", allow_abbrev=False)
    for option in fields(Settings):
        rules = option.metadata
        text = rules["help"]
        if option.default not in (None, MISSING):
            shown = ",".join(map(str, option.default)) if isinstance(option.default, tuple) else option.default
            text += f" (default {shown})"
        metavar = rules["metavar"] or "{" + ",".join(rules["choices"]) + "}"
        parser.add_argument(flag(option.name), metavar=metavar, help=text.replace("%", "%%"))
    given = {name: text for name, text in vars(parser.parse_args(argv)).items() if text is not None}
    problems: dict[str, str] = {}
    values = {}
    for option in fields(Settings):
        if option.name in given:
            value, problem = _convert(option, given[option.name])
            if problem:
                problems[option.name] = problem
            else:
                values[option.name] = value
    settings = Settings(**values)
    contradictions = [text for involved, text in _contradictions(settings, set(given)) if not involved & set(problems)]
    if problems or contradictions:
        raise InputError([*problems.values(), *contradictions])
    return settings


def _convert(option, text: str) -> tuple[Any, str | None]:
    rules, name = option.metadata, flag(option.name)
    if rules["choices"]:
        return text, None if text in rules["choices"] else f"{name} must be {_either(rules['choices'])}, got '{text}'"
    try:
        value = rules["type"](text)
    except ValueError:
        return None, f"{name} must be {rules['kind']}, got '{text}'"
    if isinstance(value, int | float) and not _within(value, rules):
        return None, f"{name} must be {_bounds(rules)}, got {text}"
    return value, None


def _within(value: float, rules) -> bool:
    return rules["low"] <= value <= rules["high"] and value > rules["above"]  # false for NaN


def _bounds(rules) -> str:
    parts = [f"above {rules['above']:g}"] if rules["above"] > -math.inf else []
    parts += [f"at least {rules['low']:g}"] if rules["low"] > -math.inf else []
    parts += [f"at most {rules['high']:g}"] if rules["high"] < math.inf else []
    return " and ".join(parts)


def _either(choices: tuple[str, ...]) -> str:
    return ", ".join(choices[:-1]) + f" or {choices[-1]}"


def _contradictions(settings: Settings, given: set[str]) -> Iterator[tuple[set[str], str]]:
    """What cannot hold together: the options involved, and the sentence that says so."""
    cores = os.cpu_count() or 1
    if settings.dataset == "digits" and "data_dir" in given:
        yield {"dataset", "data_dir"}, "--data-dir is for cifar10 and imagefolder; digits is bundled: leave it out"
    if settings.dataset == "imagefolder" and "data_dir" not in given:
        yield {"dataset"}, "--dataset imagefolder needs --data-dir, a folder with train/ and test/ (or val/)"
    if settings.algorithm != "ppo" and "lr" in given:
        text = f"--lr is PPO's learning rate; --algorithm {settings.algorithm} has none: leave it out"
        yield {"algorithm", "lr"}, text
    if settings.algorithm == "quintile" and (settings.budget != 1 or len(settings.seeds) != 1):
        text = "--algorithm quintile is one fixed configuration: --episodes must be 1 and --seeds one seed"
        yield {"algorithm", "episodes", "seeds"}, text
    if settings.address == "local" and settings.runners > cores:
        text = f"--num-env-runners {settings.runners} needs as many cores, and this machine has {cores}: ask for fewer"
        yield {"num_env_runners", "address"}, text
    if settings.address not in ("local", "auto") and not re.fullmatch(r".+:\d{1,5}", settings.address):
        yield {"address"}, f"--address must be local, auto or HOST:PORT, got '{settings.address}'"
    name = settings.run_name
    if name is not None and (not name or name.startswith(".") or "/" in name or len(name) > 100):
        yield {"run_name"}, f"--run-name must be one folder name of at most 100 characters, got '{name}'"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise InputError(f"{message} (python -m search.run --help explains the options)")
