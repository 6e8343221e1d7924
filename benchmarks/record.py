"""Says what a benchmark measures and on what, and keeps its rows."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PACKAGES = (
    "tapsearch", "torch", "ray", "gymnasium", "numpy", "numba", "pandas", "pyarrow", "duckdb", "onnx", "onnxruntime",
    "openvino", "cmaes", "optuna",
)  # fmt: skip
INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")


@cache
def machine() -> dict[str, Any]:
    """The machine, and how busy it was when this was first asked."""
    cpu = Path("/proc/cpuinfo").read_text()
    flags = set(_told_of_cpu(cpu, "flags").split())
    return {
        "cpu": _told_of_cpu(cpu, "model name") or platform.machine(),
        "vendor": _told_of_cpu(cpu, "vendor_id"),
        "cores": os.cpu_count(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def kind() -> str:
    """Which kind of CPU this is: claims about speed hold for one kind, not for others."""
    if platform.machine() in ("aarch64", "arm64"):
        return "ARM"
    maker = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}.get(machine()["vendor"], "other x86")
    vnni = "with" if {"avx512_vnni", "avx_vnni"} & set(machine()["instructions"]) else "without"
    return f"{maker} {vnni} VNNI"


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are measured."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def _told_of_cpu(text: str, what: str) -> str:
    """A line of /proc/cpuinfo, which ARM has others of."""
    found = re.search(rf"^{what}\s*: (.*)", text, re.MULTILINE)
    return found[1] if found else ""


def announce(name: str, text: str) -> None:
    """Prints a benchmark's question and method (its docstring), machine and versions."""
    print(f"\n== {name}: {text.strip()}\n")
    for title, facts in (("Machine", machine()), ("Versions", versions())):
        print(f"{title}: " + ", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)


def write(folder: Path, name: str, text: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows to `folder/name.parquet`, with question, method, machine and versions as its metadata."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = pa.table({column: [row.get(column) for row in rows] for column in columns})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(about(text)), folder / f"{name}.parquet")


def about(text: str) -> dict[str, str]:
    """A file's metadata: a benchmark's docstring, machine and versions."""
    return {"question": text.strip(), "machine": json.dumps(machine()), "versions": json.dumps(versions())}
