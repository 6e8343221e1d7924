"""C99 without a library: `network.h` holds all numbers, `network.c` runs them, `main.c` tells the accuracy of images.

`sources/` has what is the same for every network; here the header is written. Tensors share one buffer: a place is used
again once nothing reads what it holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from approx_env.export.deployment import Deployment, identifier
from approx_env.int8.network import Network
from approx_env.int8.nodes import (
    INPUT,
    Addition,
    AveragePool,
    Concatenation,
    Convolution,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    Node,
    ScaledAddition,
    Site,
    Weighted,
)

SOURCES = Path(__file__).parents[1] / "sources"
COPIED = ("network.c", "main.c")
NUMBERS_A_LINE = 24
KINDS = {
    MaxPool: "MAX_POOL", AveragePool: "AVERAGE", GlobalAveragePool: "AVERAGE", Flatten: "FLATTEN",
    Addition: "ADDITION", ScaledAddition: "SCALED_ADDITION", Site: "TABLE",
}  # fmt: skip
TYPES = {"int8": "int8_t", "int32": "int32_t", "uint8": "uint8_t"}
COMPILE = "cc -std=c99 -O3 network.c main.c -o ../network -lm"


def write(deployment: Deployment, folder: Path) -> dict[str, Any]:
    """Writes the C files, golden images, and the images of a split if there is one; reports sizes in bytes."""
    for name in COPIED:
        (folder / name).write_bytes((SOURCES / name).read_bytes())
    plan = Plan(deployment.network)
    (folder / "network.h").write_text("\n".join(_header(deployment, plan)) + "\n")
    _write_images(folder, "golden", deployment.images, deployment.labels)
    (folder / "golden.trace").write_bytes(trace(deployment))
    if deployment.split:
        _write_images(folder, deployment.split.name, deployment.split.images, deployment.split.labels)
    weighted = [node for node in deployment.network.nodes if isinstance(node, Weighted)]
    additions = sum(node.multiplier.nbytes for node in deployment.network.nodes if isinstance(node, ScaledAddition))
    return {
        "compile": COMPILE,
        "weights_bytes": sum(node.weight.nbytes for node in weighted),
        "biases_and_multipliers_bytes": sum(node.bias.nbytes + node.multiplier.nbytes for node in weighted) + additions,
        "tables_bytes": 256 * len(deployment.sites),
        "buffers_bytes": plan.codes + 8 * plan.values + 4 * _channels(deployment.network),
    }


def _write_images(folder: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
    (folder / f"{name}.images").write_bytes(np.ascontiguousarray(images).tobytes())
    (folder / f"{name}.labels").write_text("\n".join(map(str, labels.tolist())) + "\n")


def trace(deployment: Deployment) -> bytes:
    """What the program writes of the golden images: each node's output as (h, w, c), image by image."""
    names = [node.name for node in deployment.network.nodes]
    inner = [np.moveaxis(deployment.golden[name], 1, -1) for name in names]
    arrays = [array.astype("<i8") if array.dtype == np.int64 else array for array in inner]
    return b"".join(array[k].tobytes() for k in range(len(deployment.images)) for array in arrays)


class Plan:
    """Where each tensor lies in the buffer of codes or of logits, and how large the buffers are, in elements."""

    def __init__(self, network: Network):
        self._network = network
        self.places: dict[str, int] = {}
        last = self._last_reads()
        self.codes = self._fill([INPUT, *(node.name for node in network.nodes if node.name in network.scales)], last)
        logits = [node.name for node in network.nodes if node.name not in network.scales]
        self.values = self._fill(logits, last)

    def _last_reads(self) -> dict[str, int]:
        """The place of the last node that reads each tensor; the output is read behind them all."""
        last = {name: place for place, node in enumerate(self._network.nodes) for name in node.inputs}
        return last | {self._network.nodes[-1].name: len(self._network.nodes)}

    def _fill(self, names: Iterable[str], last: Mapping[str, int]) -> int:
        """Gives each tensor the lowest place that is free while it lives; returns where the highest one ends."""
        born = {node.name: place for place, node in enumerate(self._network.nodes)} | {INPUT: -1}
        held: list[tuple[int, int, int]] = []  # begin, end, last read
        for name in names:
            now, size = born[name], int(np.prod(self._network.shapes[name]))
            node = self._network.by_name.get(name)
            # A table reads a code and then writes it, from the first on: it may overwrite an input that nobody reads
            # later. Its place is never behind the input's, whose own room would do.
            frees = now if isinstance(node, Site) else now - 1
            taken = sorted((begin, end) for begin, end, read in held if read > frees)
            place = 0
            for begin, end in taken:
                if place + size <= begin:
                    break
                place = max(place, end)
            self.places[name] = place
            held.append((place, place + size, max(last.get(name, now), now)))
        return max((end for _, end, _ in held), default=0)


def _channels(network: Network) -> int:
    return max(network.shapes[node.name][0] for node in network.nodes if isinstance(node, Weighted))


def _header(deployment: Deployment, plan: Plan) -> Iterator[str]:
    network = deployment.network
    channels, height, width = _spatial(network.input_shape)
    rows = list(_steps(deployment, plan))
    yield f"/* Numbers of {identifier(network.model)}. Generated: to change codes, export again. */"
    yield "#ifndef NETWORK_H\n#define NETWORK_H\n\n#include <stddef.h>\n#include <stdint.h>\n"
    defined = {
        "IMAGE_CHANNELS": channels, "HEIGHT": height, "WIDTH": width, "PIXELS": channels * height * width,
        "CLASSES": len(network.classes), "LAYERS": len(network.layers), "STEPS": len(rows),
        "CODES": plan.codes, "VALUES": plan.values, "CHANNELS": _channels(network),
        "INPUT": plan.places[INPUT], "LOGITS": plan.places[network.nodes[-1].name],
    }  # fmt: skip
    for name, value in defined.items():
        yield f"#define NETWORK_{name} {value}"
    if network.standardised:
        least = float(channels * height * width) ** 0.5
        yield f"#define NETWORK_STANDARDISED\n#define NETWORK_LEAST_DEVIATION {least.hex()}"
    yield "\n" + (SOURCES / "declarations.h").read_text()
    for node in network.nodes:
        yield from _arrays(deployment, node)
    yield "static const struct step steps[NETWORK_STEPS] = {"
    yield from (f"    {{{row}}}," for row in rows)
    yield "};\n\n#ifdef NETWORK_SHARED\nconst char *const network_layers[NETWORK_LAYERS + 1] = {"
    yield "    " + ", ".join(f'"{deployment.files[name]}"' for name in network.layers) + ', "others"'
    yield "};\n#endif\n#endif /* NETWORK_NUMBERS */\n\n#endif"


def _spatial(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return shape if len(shape) == 3 else (shape[0], 1, 1)


def _arrays(deployment: Deployment, node: Node) -> Iterator[str]:
    """The node's numbers."""
    name = deployment.files[node.name]
    if isinstance(node, Site):
        yield _array(f"table_{name}", deployment.table(node.name))
    if isinstance(node, ScaledAddition):
        yield _array(f"multiplier_{name}", node.multiplier)
    if isinstance(node, Weighted):
        weight = node.weight if isinstance(node, Convolution) else node.weight[:, :, None, None]
        grouped = weight.reshape(node.groups, -1, *weight.shape[1:])  # (group, out, in, height, width)
        yield _array(f"weight_{name}", grouped.transpose(3, 4, 0, 2, 1))
        yield _array(f"bias_{name}", node.bias)
        yield _array(f"multiplier_{name}", node.multiplier)


def _array(name: str, values: np.ndarray) -> str:
    texts = values.reshape(-1).astype(str)
    lines = (",".join(texts[k : k + NUMBERS_A_LINE]) for k in range(0, len(texts), NUMBERS_A_LINE))
    return f"static const {TYPES[str(values.dtype)]} {name}[{values.size}] = {{\n" + ",\n".join(lines) + "\n};\n"


def _steps(deployment: Deployment, plan: Plan) -> Iterator[str]:
    """The designated initialisers of each step; a concatenation is a step for each of its parts."""
    network = deployment.network
    for node in network.nodes:
        shape = _spatial(network.shapes[node.name])
        fields: dict[str, Any] = {
            "to": plan.places[node.name], "size": int(np.prod(shape)), "out": _shape(shape), "last": 1,
            "logits": int(node.name not in network.scales), "layer": "NETWORK_LAYERS",
        }  # fmt: skip
        first = 0
        for position, source in enumerate(node.inputs):
            if isinstance(node, Addition | ScaledAddition) and position:
                continue
            reads = _spatial(network.shapes[source])
            fields |= {"from": plan.places[source], "in": _shape(reads)} | _of_kind(deployment, node, plan)
            if isinstance(node, Concatenation):
                fields |= {"kind": "COPY", "first": first, "last": int(position == len(node.inputs) - 1)}
                first += reads[0]
            yield ", ".join(f".{name} = {value}" for name, value in fields.items())


def _shape(shape: tuple[int, int, int]) -> str:
    return "{" + ", ".join(map(str, shape)) + "}"


def _of_kind(deployment: Deployment, node: Node, plan: Plan) -> dict[str, Any]:
    name = deployment.files[node.name]
    kind: dict[str, Any] = {"kind": KINDS[type(node)]} if type(node) in KINDS else {}
    match node:
        case Weighted():
            return _of_weights(deployment, node)
        case GlobalAveragePool():
            _, height, width = deployment.network.shapes[node.inputs[0]]
            return kind | {"kernel_height": height, "kernel_width": width, "stride": 1}
        case MaxPool() | AveragePool():
            return kind | {"kernel_height": node.kernel, "kernel_width": node.kernel, "stride": node.stride}
        case Addition():
            return kind | {"other": plan.places[node.inputs[1]]}
        case ScaledAddition():
            wide = (int(source not in deployment.network.scales) for source in node.inputs)
            own = {"other": plan.places[node.inputs[1]], "wide": next(wide), "other_wide": next(wide)}
            return kind | own | {"multiplier": f"multiplier_{name}"}
        case Site():
            return kind | {"table": f"table_{name}"}
    return kind


def _of_weights(deployment: Deployment, node: Weighted) -> dict[str, Any]:
    name, source = deployment.files[node.name], node.inputs[0]
    height, width = node.weight.shape[2:] if isinstance(node, Convolution) else (1, 1)
    fields = {
        "kind": "WEIGHTED", "kernel_height": height, "kernel_width": width, "stride": 1, "relu": int(node.relu),
        "groups": node.groups,
        "zero": deployment.network.zero_point(source), "weight": f"weight_{name}", "bias": f"bias_{name}",
        "multiplier": f"multiplier_{name}",
    }  # fmt: skip
    if isinstance(node, Convolution):
        fields |= {"stride": node.stride, "padding": node.padding}
    if source in deployment.layer_of:
        layer = deployment.layer_of[source]
        (_, v1, _, v2), _ = deployment.configuration[layer]
        fields |= {"layer": deployment.network.layers.index(layer), "v1": v1, "v2": v2}
    return fields
