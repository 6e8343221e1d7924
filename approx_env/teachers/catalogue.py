"""What is shipped, and how large every member of the family is: `python -m approx_env.catalogue --help`.

`shipped` writes `approx_env/teachers/teachers.json` from the teachers' own files and prints the README's table of it;
`sizes` prints parameters, bytes and multiplications of every network, and checks SqueezeNet's compression claim
(Iandola et al., arXiv:1602.07360, table 2: accuracy of AlexNet, 363 to 510 times smaller when stored compressed).
`convert FILE [DATA_DIR]` turns an INT8 teacher of format 1 into one of today's, and measures it anew on its dataset.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from approx_env import data, markdown
from approx_env.engines import build as engines
from approx_env.errors import InputError, exit_status
from approx_env.int8 import quantize
from approx_env.int8.network import Network
from approx_env.int8.nodes import Weighted
from approx_env.teachers import models, store
from approx_env.teachers.training import loop

ROOT = Path(__file__).parents[2]
FOLDERS = (store.SHIPPED, ROOT / "results" / "teachers")
TEACHERS = store.SHIPPED / "teachers.json"
FLOAT_BYTES = 4
WAYS = ("clipped maximum", "MSE-optimal", "quantisation-aware")  # to fit scales


def entry(path: Path) -> dict[str, Any]:
    """What teachers.json says of the INT8 teacher in `path`; accuracies in per cent on test."""
    read = store.read(path)
    network, about = read.network, read.about
    module = models.build(network.model, len(network.classes), **about["architecture"])
    parameters = sum(parameter.numel() for parameter in module.parameters())
    by_scales = about["validation_accuracy_by_scales"]
    return {
        "model": network.model,
        "dataset": about["dataset"],
        "parameters": parameters,
        "macs": sum(network.macs.values()),
        "float_bytes": FLOAT_BYTES * parameters,
        "int8_bytes": path.with_suffix(".safetensors").stat().st_size,
        "float_accuracy": round(100 * about["float_accuracy"]["test"], 2),
        "int8_accuracy": round(100 * about["int8_accuracy"]["test"], 2),
        "epochs": about["epochs"],
        "command": about["command"],
        "file": str(path.relative_to(ROOT)),
        "scales": about["scales"],
        "validation_accuracy": {
            "float": round(100 * about["float_accuracy"]["validation"], 2),
            **{name: round(100 * share, 2) for name, share in by_scales.items()},
        },
    }


def shipped(folders: Iterable[Path] = FOLDERS) -> list[dict[str, Any]]:
    """An entry for each INT8 teacher in `folders`."""
    return [entry(path) for folder in folders for path in sorted(folder.glob("*.int8.json"))]


def table(entries: Sequence[dict[str, Any]]) -> str:
    """The entries as Markdown: the teachers, then how each way to fit scales does on validation."""
    rows = [
        (
            each["model"],
            named(each["dataset"]),
            f"{each['parameters']:,}",
            f"{each['macs'] / 1e6:.1f} M",
            f"{each['float_bytes'] / 1e6:.2f} / {each['int8_bytes'] / 1e6:.2f} MB",
            f"{each['float_accuracy']:.2f} / {each['int8_accuracy']:.2f} %",
            str(each["epochs"]),
        )
        for each in entries
    ]
    heads = ("network", "dataset", "parameters", "MACs", "float / INT8 size", "float / INT8 accuracy on test", "epochs")
    commands = "\n".join(each["command"] for each in entries)
    ways = ("float", *WAYS)
    scales = []
    for each in entries:
        known = each["validation_accuracy"]
        shares = [f"{known[way]:.2f} %" if way in known else "not tried" for way in ways]
        scales.append((each["model"], named(each["dataset"]), *shares, each["scales"]))
    by_scales = markdown.table(("network", "dataset", *ways, "kept"), scales)
    return "\n\n".join((markdown.table(heads, rows), f"```\n{commands}\n```", by_scales))


def named(dataset: str) -> str:
    """A dataset's name as people read it."""
    return {"imagefolder:cifar10-jpeg": "CIFAR-10 (JPEG)"}.get(dataset, dataset)


def int8_bytes(network: Network) -> int:
    """Bytes of a network's arrays: int8 weights, int32 multipliers, int32 biases."""
    return sum(node.weight.nbytes + node.multiplier.nbytes + node.bias.nbytes for node in network.nodes
               if isinstance(node, Weighted))  # fmt: skip


def sizes() -> str:
    """Parameters, bytes and multiply-accumulates of every network, for ten classes with batch norm, as Markdown."""
    rows = []
    for name in models.MODELS:
        torch.manual_seed(0)
        module = models.build(name, 10).eval()
        images = np.random.default_rng(0).integers(0, 256, (1, 3, module.image_size, module.image_size), np.uint8)
        network = quantize.quantize(module, images, model=name, classes=tuple("0123456789"), layers=module.layers,
                                    attention=module.attention, standardised=module.standardised)  # fmt: skip
        count = sum(parameter.numel() for parameter in module.parameters())
        macs = sum(network.macs.values())
        rows.append((name, str(module.image_size), f"{count:,}", f"{FLOAT_BYTES * count:,}",
                     f"{int8_bytes(network):,}", f"{macs:,}", str(len(network.layers))))  # fmt: skip
    heads = ("network", "image side", "parameters", "float bytes", "INT8 bytes", "MACs an image", "layers")
    return markdown.table(heads, rows)


def stored(network: Network) -> dict[str, float]:
    """Bytes of a network's arrays when stored: as they are, by zstd, and at the entropy of each node's weights.

    The last is what an ideal entropy coder with one code table for each node would need.
    """
    weighted = [node for node in network.nodes if isinstance(node, Weighted)]
    content = b"".join(array.tobytes() for node in weighted for array in (node.weight, node.multiplier, node.bias))
    bits = 0.0
    for node in weighted:
        counts = np.bincount(node.weight.reshape(-1).astype(np.int64) + 128, minlength=256)
        present = counts[counts > 0]
        bits -= (present * np.log2(present / present.sum())).sum()
    rest = len(content) - sum(node.weight.nbytes for node in weighted)
    zstd = len(pa.Codec("zstd", compression_level=19).compress(content, asbytes=True))
    return {"raw": len(content), "zstd": zstd, "entropy": bits / 8 + rest}


def compression(entries: Sequence[dict[str, Any]]) -> str:
    """How much smaller each stored INT8 SqueezeNet is than AlexNet in float on the same dataset, as Markdown."""
    rows = []
    for each in entries:
        rivals = [other for other in entries if other["model"] == "alexnet" and other["dataset"] == each["dataset"]]
        if not each["model"].startswith("squeezenet") or not rivals:
            continue
        whole, found = rivals[0]["float_bytes"], stored(store.read(ROOT / each["file"]).network)
        rows.append((each["model"], named(each["dataset"]), f"{whole:,.0f}",
                     *(f"{found[way]:,.0f} ({whole / found[way]:.1f}x)" for way in ("raw", "zstd", "entropy")),
                     f"{each['int8_accuracy']:.2f} / {rivals[0]['float_accuracy']:.2f} %"))  # fmt: skip
    heads = ("network", "dataset", "AlexNet float, bytes", "INT8", "INT8, zstd", "INT8, entropy coded",
             "accuracy on test, this in INT8 / AlexNet in float")  # fmt: skip
    return markdown.table(heads, rows)


def convert(path: Path, data_dir: str | None) -> None:
    """Writes an INT8 teacher of format 1 anew, with integer requantisation, and its accuracies on validation and test.

    Raises:
        InputError: it is none, or its dataset is not there; nothing is written then.
    """
    network, about = store.read_format_1(path)
    dataset = data.load(about["dataset"].partition(":")[0], data_dir).sized(network.input_shape[1])
    if dataset.name != about["dataset"]:
        raise InputError(f"{path} was trained on {about['dataset']}, and {dataset.name} came: name its folder")
    runner = engines.build(network)
    shares = {split: loop.accuracy(runner.forward, *dataset.load(split)) for split in ("validation", "test")}
    about["validation_accuracy_by_scales"] = {about["scales"]: shares["validation"]}  # the others were of format 1
    for key in ("format", "sha256"):
        about.pop(key)
    store.write(path, network, about | {"int8_accuracy": shares})
    print(f"wrote {path}: {shares['validation']:.2%} on validation, {shares['test']:.2%} on test")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return exit_status(lambda: _run(list(sys.argv[1:] if argv is None else argv)))


def _run(argv: list[str]) -> None:
    match argv:
        case ["shipped"]:
            entries = shipped()
            TEACHERS.write_text(json.dumps(entries, indent=1) + "\n")
            print(table(entries))
        case ["sizes"]:
            print(f"{sizes()}\n\n{compression(json.loads(TEACHERS.read_text()))}")
        case ["convert", path]:
            convert(Path(path), None)
        case ["convert", path, data_dir]:
            convert(Path(path), data_dir)
        case ["--help"] | ["-h"]:
            print(__doc__)
        case _:
            raise InputError(
                "python -m approx_env.catalogue takes shipped, sizes, or convert FILE [DATA_DIR], "
                f"got '{' '.join(argv)}'"
            )
