"""Numbers as tables: `.mem` for $readmemh, Intel HEX, JSON and NumPy; and thresholds as FINN and QONNX take them.

A MultiThreshold counts how many of its ascending thresholds a value reaches. With 255 of them it gives any code that
never falls as the value grows: a requantisation, a TAP, or both at once. Where TAP leaves codes out, thresholds are
equal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from approx_env.export.deployment import Deployment
from approx_env.int8.network import Network
from approx_env.int8.nodes import HALF, SHIFT, Concatenation, MaxPool, ScaledAddition, Site, Weighted
from approx_env.tap import CODE_COUNT, WITH_TMAX

ARRAYS, TABLES = "tables.npz", "tables.json"
NEVER = 2**31 - 1  # a threshold that no sum reaches
RECORD_BYTES = 16  # of a line of Intel HEX
STEPS = np.arange(1, CODE_COUNT)  # the codes that thresholds lead to


def write(deployment: Deployment, folder: Path) -> dict[str, Any]:
    """Writes the tables; reports how many there are."""
    network, files = deployment.network, deployment.files
    arrays: dict[str, np.ndarray] = {}
    layers, weighted, additions = [], [], []
    for node in network.nodes:
        file = files[node.name]
        if isinstance(node, Site):
            table = deployment.table(node.name)
            (folder / f"{file}.tap.mem").write_text(memory(table, 2))
            (folder / f"{file}.tap.hex").write_text(intel_hex(table))
            arrays |= {f"{file}.tap": table, f"{file}.thresholds": of_table(table)[None]}
            layers.append(_layer(deployment, node))
        elif isinstance(node, Weighted):
            for name, digits in (("multiplier", 6), ("bias", 8), ("weight", 2)):
                array = getattr(node, name)
                (folder / f"{file}.{name}.mem").write_text(memory(array, digits))
                arrays[f"{file}.{name}"] = array
            arrays |= {f"{file}.{name}": array for name, array in _thresholds(deployment, node).items()}
            weighted.append(_weighted(network, node, file))
        elif isinstance(node, ScaledAddition):
            additions.append(_addition(node, file))
    np.savez_compressed(folder / ARRAYS, **arrays)
    about = {"shift": SHIFT, "layers": layers, "weighted": weighted, "scaled_additions": additions}
    (folder / TABLES).write_text(json.dumps(about, indent=1) + "\n")
    return {"layers": len(layers), "weighted_nodes": len(weighted), "arrays": len(arrays)}


def memory(values: np.ndarray, digits: int) -> str:
    """A line of `digits` hexadecimal digits for each value, two's complement, in order, as $readmemh reads it.

    >>> memory(np.array([1, -1], np.int8), 2)
    '01\\nff\\n'
    """
    mask = (1 << 4 * digits) - 1
    return "".join(f"{value & mask:0{digits}x}\n" for value in values.reshape(-1).tolist())


def intel_hex(table: np.ndarray) -> str:
    """Bytes from address 0 on as Intel HEX, sixteen a line.

    >>> print(intel_hex(np.array([1, 2], np.uint8)), end="")
    :020000000102FB
    :00000001FF
    """
    lines = []
    for address in range(0, len(table), RECORD_BYTES):
        record = bytes([min(RECORD_BYTES, len(table) - address), address >> 8, address & 255, 0])
        record += table[address : address + RECORD_BYTES].tobytes()
        lines.append(f":{record.hex().upper()}{-sum(record) & 255:02X}\n")
    return "".join(lines) + ":00000001FF\n"


def of_table(table: np.ndarray) -> np.ndarray:
    """The lowest code that becomes at least k, for k in 1..255: `(255,) int32`, 256 where there is none."""
    return np.searchsorted(table, STEPS).astype(np.int32)


def of_requantisation(node: Weighted) -> np.ndarray:
    """The lowest sum of products, without the bias, that gives at least code k: `(out, 255) int32`."""
    products = (STEPS << SHIFT) - HALF
    return (-(-products // node.multiplier.astype(np.int64)[:, None]) - node.bias[:, None]).astype(np.int32)


def _thresholds(deployment: Deployment, node: Weighted) -> dict[str, np.ndarray]:
    """Thresholds of a node that gives codes, and those with TAP in them where its codes go to one layer alone."""
    if node.logits:
        return {}
    found = of_requantisation(node)
    layer = _layer_behind(deployment.network, node.name)
    if layer is None:
        return {"thresholds": found}
    codes = of_table(deployment.table(layer))  # 1..256
    padded = np.concatenate([found, np.full((len(found), 1), NEVER, np.int32)], 1)
    return {"thresholds": found, "thresholds_with_tap": padded[:, codes - 1]}


def _layer_behind(network: Network, tensor: str) -> str | None:
    """The layer that approximates all that is read of a tensor; pools and concatenation may stand between."""
    readers = network.consumers(tensor)
    if len(readers) != 1:
        return None
    if isinstance(readers[0], Site):
        return readers[0].name
    return _layer_behind(network, readers[0].name) if isinstance(readers[0], Concatenation | MaxPool) else None


def _layer(deployment: Deployment, node: Site) -> dict[str, Any]:
    codes, tmax = deployment.configuration[node.name]
    named = dict(zip(WITH_TMAX, (*map(int, codes), int(tmax)), strict=True))
    scale = deployment.network.scales[node.name]
    return {"name": node.name, "file": deployment.files[node.name], "scale": scale, **named}


def _weighted(network: Network, node: Weighted, file: str) -> dict[str, Any]:
    source = node.inputs[0]
    return {
        "name": node.name,
        "file": file,
        "input_scale": network.scales[source],
        "input_zero_point": network.zero_point(source),
        "output_scale": node.scale,
        "logits": node.logits,
        "relu": node.relu,
        "weight_shape": list(node.weight.shape),
        "groups": node.groups,
        "weight_scale": network.weight_scale(node).tolist(),
        "multiplier": node.multiplier.tolist(),
        "bias": node.bias.tolist(),
    }


def _addition(node: ScaledAddition, file: str) -> dict[str, Any]:
    own = {"name": node.name, "file": file, "inputs": list(node.inputs)}
    return own | {"output_scale": node.scale, "multiplier": node.multiplier.tolist()}
