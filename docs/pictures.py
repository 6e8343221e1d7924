"""Draws the pictures of `how-it-works.md` from shipped teachers and committed runs: `python docs/pictures.py`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from approx_env import data, tap
from approx_env.scoring import calibration
from approx_env.teachers import store

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "results" / "reference"
LAYER = "fire3"  # of squeezenet_compact, on digits
STUDENTS = {"alexnet-hill/fine-tuned": "AlexNet", "squeezenet-all-hill/held": "SqueezeNet, all sites, tmax follows"}
MARKS = ("o", "s", "^")  # of the seeds


def operator() -> plt.Figure:
    """What TAP makes of each code of a layer, above how often the code comes."""
    network = store.read(store.path_of("squeezenet_compact", "digits")).network
    images, _ = data.load("digits").load("calibration", 512)
    layer = next(one for one in calibration.calibrate(network, [images]).layers if one.name == LAYER)
    shown = np.arange(layer.tmax * 3 // 2)
    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(7, 5), layout="constrained", height_ratios=(2, 1))
    above.plot(shown, shown, "--", color="0.6", label="exact")
    above.step(shown, tap.tap(shown, layer.quintile, layer.tmax), where="mid", label="under TAP")
    above.set_ylabel("code that is multiplied")
    above.legend()
    below.bar(shown[1:], layer.histogram[1 : len(shown)], width=1, color="0.5")
    below.set(xlabel=f"code of layer {LAYER} (squeezenet_compact on digits)", ylabel="how often\n(zeros left out)")
    for name, code in zip(tap.WITH_TMAX, (*layer.quintile, layer.tmax), strict=True):
        for axes in (above, below):
            axes.axvline(code, linewidth=0.8, linestyle=":" if name.startswith("v") else "-", color="tab:red")
        above.annotate(name, (code, 1.02), xycoords=("data", "axes fraction"), ha="center", color="tab:red")
    return figure


def selection() -> plt.Figure:
    """What the best configurations of the search images lose on validation images."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for run, mark in (("alexnet-hill", "o"), ("squeezenet-hill", "s")):
        top = pd.read_parquet(REFERENCE / run / "top.parquet")
        chosen = json.loads((REFERENCE / run / "best.json").read_text())["selection"]["episode_id"]
        best = top[top["episode_id"] == chosen].iloc[0]
        axes.plot(top["drop_points"], top["validation_drop_points"], mark, fillstyle="none", label=run)
        axes.plot(best["drop_points"], best["validation_drop_points"], "*", markersize=14, color="black")
    low, high = axes.get_xlim()
    axes.axline((low, low), slope=1, color="0.6", linestyle="--", label="equal")
    axes.plot([], [], "*", color="black", label="chosen")
    axes.set(xlabel="drop on search images, points", ylabel="drop on validation images, points", xlim=(low, high))
    axes.legend()
    return figure


def adaptation() -> plt.Figure:
    """What students lose on validation images while they are trained."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for colour, (student, label) in zip(("tab:blue", "tab:orange"), STUDENTS.items(), strict=True):
        for seed, mark in enumerate(MARKS):
            told = json.loads((REFERENCE / f"{student}-{seed}" / "finetune.json").read_text())
            points = [(0, told["validation"]["corrected"]["drop_points"])]
            points += [(point["step"], point["drop_points"]) for point in told["curve"]]
            axes.plot(*zip(*points, strict=True), marker=mark, color=colour, label=f"{label}, seed {seed}")
    axes.axhline(0, color="0.6", linestyle="--", label="exact teacher")
    axes.set(xlabel="steps of fine-tuning, 128 images each", ylabel="drop on validation, points")
    axes.legend(fontsize="small")
    return figure


def main() -> None:
    """Writes one SVG for each function above, the same bytes each time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("pictures"), metavar="DIR")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams.update({"svg.hashsalt": "tapsearch", "svg.fonttype": "none"})
    for draw in (operator, selection, adaptation):
        draw().savefig(output / f"{draw.__name__}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
