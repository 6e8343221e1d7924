"""Looks for faults in a cluster file before anything is started: `python -m cluster.check FILE [--crd FILE]`.

Offline: it asks Ray's own schema and functions, for KubeRay the schema of its custom resource, and the disk.
"""

from __future__ import annotations

import argparse
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from approx_env.errors import InputError, exit_status, run_module

if __name__ == "__main__":  # before the rest is loaded
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sys.exit(run_module("cluster.check"))

import jsonschema
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

LARGEST_BYTES = 2**22  # that a file may have; KubeRay's definition of RayJobs has about a megabyte
LARGEST_NODES = 1_000_000  # values that a file may hold, those that aliases repeat counted each time
UNFILLED = "FILL_IN"
TOKEN = "~/.ray/auth_token"
NICENESS, STARVED = "RAY_worker_niceness", "with Ray's 15 a search gets only what other programs leave"
OWN_NETWORK = {  # what a node must name, by provider, and why
    "aws": ("SecurityGroupIds", "a group that Ray makes, or fills, lets SSH in from everywhere"),
    "gcp": ("networkInterfaces", "the default network lets SSH in from everywhere"),
}


def faults(path: Path, crd: Path | None = None) -> list[str]:
    """Everything that is wrong with a cluster file, a sentence each; none if it can be used.

    Args:
        path: a YAML file for `ray up`, or a RayJob of KubeRay.
        crd: KubeRay's CustomResourceDefinition of RayJobs, which a RayJob is then held against.

    Raises:
        InputError: one of the files cannot be read as YAML.
    """
    config = _read(path)
    found = [f"{place} says {value}: fill it in" for place, value in _walk(config) if UNFILLED in str(value)]
    kuberay = str(config.get("apiVersion", "")).startswith("ray.io/")
    if crd and not kuberay:
        raise InputError(f"--crd is for RayJobs, and {path} is none: leave it out")
    try:
        for fault in _kuberay(config, crd) if kuberay else _ray_up(config, path.resolve().parent):
            found.append(fault)
    except (AttributeError, TypeError) as error:  # a list or a text where a mapping should be, which was told above
        found.append(f"the rest was not looked at: something is not of the kind that it must be ({error})")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no regular file")
        if path.stat().st_size > LARGEST_BYTES:
            raise ValueError(f"it has more than {LARGEST_BYTES} bytes")
        text = path.read_text()
        if _count(yaml.compose(text, yaml.SafeLoader), {}) > LARGEST_NODES:
            raise ValueError(f"with what its aliases repeat it holds more than {LARGEST_NODES} values")
        config = yaml.safe_load(text)
    except RecursionError as error:
        raise InputError(f"{path} cannot be read as YAML (it is nested too deeply, or a value holds itself)") from error
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold a mapping, and holds {type(config).__name__}")
    return config


def _count(node: yaml.Node | None, known: dict[yaml.Node, int]) -> int:
    """How many values a document holds. Aliases make few lines into billions, which YAML itself does not mind."""
    if node not in known:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in pairs for part in pair]
        known[node] = 1 + sum(_count(part, known) for part in parts)
    return known[node]


def _walk(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with where it is, as 'provider.worker_ips[0]'."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _walk(inner, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _walk(inner, f"{place}[{position}]")
    else:
        yield place, value


# -- files for `ray up`


def _ray_up(config: dict[str, Any], folder: Path) -> Iterator[str]:
    fault = _refused_by_ray(config)
    if fault:
        yield fault
    provider, auth = config.get("provider") or {}, config.get("auth") or {}
    key = auth.get("ssh_private_key")
    if key and not Path(key).expanduser().is_file():
        yield f"auth.ssh_private_key {key} does not exist: make it with ssh-keygen, or name yours"
    yield from _mounts(config.get("file_mounts") or {}, folder)
    yield from _commands(config)
    image = (config.get("docker") or {}).get("image")
    if image and not _of_this_ray(image):
        yield f"docker.image {image} must be of Ray {ray.__version__}, which this package is pinned to"
    if not any(".git" in pattern for pattern in config.get("rsync_exclude") or []):
        yield "rsync_exclude must name .git, which would be copied to every node"
    if provider.get("type") == "local":
        addresses = [provider.get("head_ip"), *(provider.get("worker_ips") or [])]
        if len(set(addresses)) < len(addresses):
            yield "provider.head_ip and provider.worker_ips must all be different hosts"
    else:
        yield from _limits(config)
    yield from _open_to_ssh(config)


def _refused_by_ray(config: dict[str, Any]) -> str | None:
    try:
        validate_config(prepare_config(config))
    except jsonschema.ValidationError as error:
        place = ".".join(map(str, error.absolute_path)) or "the file"
        return f"{place}: Ray refuses it: {error.message}"
    except SystemExit:  # Ray has printed why
        return "Ray refuses the file, for the reason above"
    except Exception as error:  # Ray's functions raise whatever a malformed file leads to
        return f"Ray refuses the file: {type(error).__name__}: {error}"


def _mounts(mounts: dict[str, str], folder: Path) -> Iterator[str]:
    for remote, local in mounts.items():
        if not (folder / Path(local).expanduser()).exists():
            yield f"file_mounts: {local}, which is to be {remote} on every node, does not exist here"
    if TOKEN not in mounts:
        yield f"file_mounts must bring {TOKEN} to every node: without it anyone who reaches the head runs code there"
        return
    token = folder / Path(mounts[TOKEN]).expanduser()
    if token.exists() and stat.S_IMODE(token.stat().st_mode) != 0o600:
        yield f"{mounts[TOKEN]} must be readable by you alone: chmod 600 {mounts[TOKEN]}"
    elif not token.exists():
        yield f"there is no token at {mounts[TOKEN]}: make it with ray get-auth-token --generate"


def _commands(config: dict[str, Any]) -> Iterator[str]:
    if not any("pip install" in command for command in config.get("setup_commands") or []):
        yield "setup_commands must install this package on every node"
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config.get(name) or [] if "ray start" in command]
        if not starts:
            yield f"{name} must start Ray"
        for command in starts:
            yield from _start_command(name, command)


def _start_command(name: str, command: str) -> Iterator[str]:
    if "RAY_AUTH_MODE=token" not in command:
        yield f"{name}: ray start must run with RAY_AUTH_MODE=token"
    if f"{NICENESS}=0" not in command:
        yield f"{name}: ray start must run with {NICENESS}=0: {STARVED}"
    if "--disable-usage-stats" not in command:
        yield f"{name}: ray start must have --disable-usage-stats"
    host = re.search(r"--dashboard-host[= ](\S+)", command)
    if host and host[1] not in ("127.0.0.1", "localhost"):
        yield f"{name}: --dashboard-host {host[1]} opens the dashboard to others: it must be 127.0.0.1"


def _limits(config: dict[str, Any]) -> Iterator[str]:
    if not isinstance(config.get("max_workers"), int):
        yield "max_workers must say how many workers there may be"
    for name, kind in (config.get("available_node_types") or {}).items():
        if name != config.get("head_node_type") and not isinstance(kind.get("max_workers"), int):
            yield f"available_node_types.{name}.max_workers must say how many of these there may be"


def _open_to_ssh(config: dict[str, Any]) -> Iterator[str]:
    provider = config.get("provider") or {}
    if provider.get("security_group"):
        yield "provider.security_group must go: Ray adds SSH from everywhere to its rules; name a group of your own"
    option, reason = OWN_NETWORK.get(provider.get("type"), (None, None))
    for name, kind in (config.get("available_node_types") or {}).items():
        if option and not (kind.get("node_config") or {}).get(option):
            yield f"available_node_types.{name}.node_config must give {option}: {reason}"


# -- KubeRay


def _kuberay(config: dict[str, Any], crd: Path | None) -> Iterator[str]:
    if config.get("kind") != "RayJob":
        yield f"kind must be RayJob, got {config.get('kind')}"
    if crd:
        yield from _against(crd, config)
    spec = config.get("spec") or {}
    cluster = spec.get("rayClusterSpec") or {}
    if cluster.get("rayVersion") != ray.__version__:
        yield f"rayClusterSpec.rayVersion must be {ray.__version__}, which this package is pinned to"
    if (cluster.get("authOptions") or {}).get("mode") != "token":
        yield "rayClusterSpec.authOptions.mode must be token: without it anyone who reaches the head runs code there"
    head, workers = cluster.get("headGroupSpec") or {}, cluster.get("workerGroupSpecs") or []
    for name, group in [("headGroupSpec", head), *((f"workerGroupSpecs[{k}]", w) for k, w in enumerate(workers))]:
        for container in ((group.get("template") or {}).get("spec") or {}).get("containers") or []:
            if not _of_this_ray(container.get("image", "")):
                yield f"{name}: image {container.get('image')} must be tagged with Ray's version, {ray.__version__}"
            told = {entry.get("name"): entry.get("value") for entry in container.get("env") or []}
            if told.get("RAY_USAGE_STATS_ENABLED") != "0":
                yield f"{name}: the environment must have RAY_USAGE_STATS_ENABLED=0"
            if told.get(NICENESS) != "0":
                yield f"{name}: the environment must have {NICENESS}=0: {STARVED}"
    for number, group in enumerate(workers):
        if not isinstance(group.get("maxReplicas"), int):
            yield f"workerGroupSpecs[{number}].maxReplicas must say how many workers there may be"


def _against(crd: Path, config: dict[str, Any]) -> list[str]:
    definition = _read(crd)
    try:
        schema = _closed(_crd_schema(definition, config.get("apiVersion", "")))
        jsonschema.Draft202012Validator.check_schema(schema)
        found = list(jsonschema.Draft202012Validator(schema).iter_errors(config))
    except InputError:
        raise
    except Exception as error:  # whatever a malformed schema leads to
        told = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise InputError(f"--crd {crd} is no definition of a resource ({told}): give KubeRay's of RayJobs") from error
    return [f"{'.'.join(map(str, error.absolute_path)) or 'the file'}: {error.message}" for error in found]


def _crd_schema(definition: dict[str, Any], version: str) -> dict[str, Any]:
    for one in definition["spec"]["versions"]:
        if version == f"{definition['spec']['group']}/{one['name']}":
            return one["schema"]["openAPIV3Schema"]
    raise InputError(f"--crd: this definition knows no {version}: give KubeRay's of rayjobs.ray.io")


def _closed(schema: Any) -> Any:
    """A Kubernetes schema as JSON Schema: names that it does not know are faults, as the API server warns of them."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    closed = {name: _closed(part) for name, part in schema.items() if not name.startswith("x-") and name != "format"}
    kept = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    if isinstance(schema.get("properties"), dict) and schema["properties"] and not kept:
        closed.setdefault("additionalProperties", False)
    if schema.get("nullable"):
        closed["type"] = [schema["type"], "null"]
    return closed


def _of_this_ray(image: str) -> bool:
    tag = image.rpartition(":")[2] if ":" in image.rpartition("/")[2] else ""
    return re.fullmatch(rf"{re.escape(ray.__version__)}(-.+)?", tag) is not None


def main(argv: list[str] | None = None) -> int:
    """Prints every fault; returns 0 if there is none, else 2."""
    parser = argparse.ArgumentParser(prog="python -m cluster.check", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="a file for ray up, or a RayJob")
    parser.add_argument("--crd", type=Path, help="KubeRay's definition of RayJobs, to hold a RayJob against")
    arguments = parser.parse_args(argv)

    def check() -> None:
        found = faults(arguments.file, arguments.crd)
        if found:
            raise InputError(found)
        print(f"{arguments.file}: no fault found; relative paths in it hold for {arguments.file.resolve().parent}")

    return exit_status(check)
