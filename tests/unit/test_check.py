"""`python -m cluster.check`: the shipped files are without fault once they are filled in, and each fault is named."""

import os
import shutil
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.aws import config as aws

from cluster import check
from tests.command import ROOT

FILES = ("cluster.yaml", "aws.yaml", "gcp.yaml", "rayjob.yaml")
FILLED = {
    "FILL_IN_HEAD": "192.0.2.1",
    "FILL_IN_WORKER_1": "192.0.2.2",
    "FILL_IN_WORKER_2": "192.0.2.3",
    "FILL_IN_AMI": "ami-0123456789abcdef0",
    "FILL_IN_INSTANCE_PROFILE_ARN": "arn:aws:iam::123456789012:instance-profile/tapsearch",
}
WORD = "ours"  # for whatever else is to be filled in


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A checkout's cluster/ and the home of a person with token and key."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, mode in ((".ray/auth_token", 0o600), (".ssh/id_ed25519", 0o600)):
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True)
        path.write_text("secret")
        path.chmod(mode)
    shutil.copytree(ROOT / "cluster", tmp_path / "tapsearch" / "cluster")
    return tmp_path / "tapsearch" / "cluster"


def fill_in(path: Path) -> dict:
    text = path.read_text()
    for word, value in FILLED.items():
        text = text.replace(word, value)
    path.write_text(text.replace("FILL_IN", WORD))
    return yaml.safe_load(path.read_text())


def found(path: Path, config: dict | None = None, crd: Path | None = None) -> list[str]:
    if config is not None:
        path.write_text(yaml.safe_dump(config))
    return check.faults(path, crd)


@pytest.mark.parametrize("name", FILES)
def test_shipped_files_only_want_to_be_filled_in(folder, name, capsys):
    assert check.main([str(folder / name)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told and all("FILL_IN" in line and line.endswith(": fill it in") for line in told)
    fill_in(folder / name)
    assert check.main([str(folder / name)]) == 0
    assert "no fault found" in capsys.readouterr().out


def set_in(config: dict, place: str, value: object) -> None:
    """Sets what 'a.b.0' names; None removes it."""
    *path, last = (int(part) if part.isdigit() else part for part in place.split("."))
    for part in path:
        config = config[part]
    if value is None:
        del config[last]
    else:
        config[last] = value


@pytest.mark.parametrize(
    ("name", "place", "value", "said"),
    [
        ("cluster.yaml", "max_wrkers", 3, "max_wrkers"),
        ("cluster.yaml", "provider.worker_ips", None, "Ray refuses the file"),
        ("cluster.yaml", "provider.worker_ips.0", "192.0.2.1", "must all be different"),
        ("cluster.yaml", "auth.ssh_private_key", "~/.ssh/none", "~/.ssh/none does not exist"),
        ("cluster.yaml", "file_mounts.~/tapsearch", "../none", "../none"),
        ("cluster.yaml", "file_mounts.~/~ray", "no such file", "no such file"),
        ("cluster.yaml", "file_mounts", {"~/tapsearch": ".."}, "must bring ~/.ray/auth_token"),
        ("cluster.yaml", "rsync_exclude", ["data/"], ".git"),
        ("cluster.yaml", "setup_commands", ["true"], "setup_commands must install"),
        ("cluster.yaml", "head_start_ray_commands", ["true"], "head_start_ray_commands must start Ray"),
        (
            "cluster.yaml",
            "head_start_ray_commands.1",
            "ray start --head --disable-usage-stats --dashboard-host=127.0.0.1",
            "RAY_AUTH_MODE=token",
        ),
        (
            "cluster.yaml",
            "worker_start_ray_commands.1",
            "RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379",
            "--disable-usage-stats",
        ),
        (
            "aws.yaml",
            "head_start_ray_commands.1",
            "RAY_AUTH_MODE=token ray start --head --dashboard-host=0.0.0.0 --disable-usage-stats",
            "--dashboard-host 0.0.0.0",
        ),
        (
            "gcp.yaml",
            "worker_start_ray_commands.1",
            "RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379 --disable-usage-stats",
            "worker_start_ray_commands: ray start must run with RAY_worker_niceness=0",
        ),
        ("aws.yaml", "docker.image", "rayproject/ray:latest", "rayproject/ray:latest"),
        ("aws.yaml", "max_workers", None, "max_workers must say"),
        ("aws.yaml", "available_node_types.worker.max_workers", None, "worker.max_workers"),
        ("aws.yaml", "available_node_types.head.node_config.SecurityGroupIds", None, "head.node_config must give Sec"),
        ("aws.yaml", "provider.security_group", {"GroupName": "ours"}, "provider.security_group must go"),
        ("gcp.yaml", "available_node_types.worker.node_config.networkInterfaces", None, "networkInterfaces"),
        ("rayjob.yaml", "kind", "RayCluster", "kind must be RayJob"),
        ("rayjob.yaml", "spec.rayClusterSpec.rayVersion", "2.9.0", "rayVersion must be"),
        ("rayjob.yaml", "spec.rayClusterSpec.authOptions", None, "authOptions.mode must be token"),
        ("rayjob.yaml", "spec.rayClusterSpec.workerGroupSpecs.0.maxReplicas", None, "maxReplicas"),
        (
            "rayjob.yaml",
            "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.image",
            "ours/tapsearch",
            "ours/tapsearch must be tagged",
        ),
        (
            "rayjob.yaml",
            "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.env",
            [],
            "RAY_USAGE_STATS_ENABLED=0",
        ),
        (
            "rayjob.yaml",
            "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.env",
            [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],
            "workerGroupSpecs[0]: the environment must have RAY_worker_niceness=0",
        ),
    ],
)
def test_each_fault_is_named(folder, name, place, value, said):
    config = fill_in(folder / name)
    set_in(config, place, value)
    assert any(said in fault for fault in found(folder / name, config)), found(folder / name)


def test_ray_leaves_the_security_groups_of_the_aws_file_alone(monkeypatch):
    """It would open them to SSH from everywhere; this asks the function that does, and no cloud."""
    monkeypatch.setattr(aws, "_upsert_security_groups", lambda *_: pytest.fail("Ray makes or fills a group"))
    config = yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text())
    assert aws._configure_security_group(config) is config
    everywhere = [{"CidrIp": "0.0.0.0/0"}]
    assert [rule["IpRanges"] for rule in aws._create_default_ssh_inbound_rules()] == [everywhere]


def test_a_token_that_others_may_read_or_that_is_missing(folder, tmp_path):
    fill_in(folder / "cluster.yaml")
    token = tmp_path / "home" / ".ray" / "auth_token"
    token.chmod(0o644)
    assert any("chmod 600" in fault for fault in found(folder / "cluster.yaml"))
    token.unlink()
    assert any("get-auth-token" in fault for fault in found(folder / "cluster.yaml"))


def test_all_faults_are_named_at_once(folder, capsys):
    config = fill_in(folder / "aws.yaml")
    config["docker"]["image"] = "rayproject/ray"
    del config["max_workers"], config["head_start_ray_commands"]
    del config["available_node_types"]["worker"]["node_config"]["SecurityGroupIds"]
    (folder / "aws.yaml").write_text(yaml.safe_dump(config))
    assert check.main([str(folder / "aws.yaml")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 4


@pytest.mark.parametrize("content", ["a: [", "- a list", "", "\x00"])
def test_what_is_no_cluster_file(folder, content, capsys):
    (folder / "x.yaml").write_text(content)
    assert check.main([str(folder / "x.yaml")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "x.yaml" in line


def test_a_missing_file(tmp_path, capsys):
    assert check.main([str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml cannot be read" in capsys.readouterr().err


def definition(folder: Path) -> Path:
    """A small definition of RayJobs, with what makes Kubernetes schemas special."""
    resources = {"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": True}}
    spec = {
        "type": "object",
        "properties": {
            "entrypoint": {"type": "string"},
            "backoffLimit": {"type": "integer", "format": "int32"},
            "resources": resources,
            "anything": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
        "required": ["entrypoint"],
    }
    schema = {
        "type": "object",
        "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "spec": spec},
    }
    made = {"spec": {"group": "ray.io", "versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}}
    path = folder / "crd.yaml"
    path.write_text(yaml.safe_dump(made))
    return path


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"entrypoint": "x", "backoffLimit": 0, "resources": {"cpu": 2, "memory": "1Gi"}, "anything": {"a": 1}}, None),
        ({"backoffLimit": 0}, "'entrypoint' is a required property"),
        ({"entrypoint": "x", "backoffLimit": "none"}, "'none' is not of type 'integer'"),
        ({"entrypoint": "x", "entrypont": "y"}, "'entrypont' was unexpected"),
        ({"entrypoint": "x", "resources": {"cpu": [2]}}, "is not of type 'integer', 'string'"),
    ],
)
def test_a_definition_of_kuberay_is_held_against_the_job(folder, spec, said):
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "spec": spec}
    schema_faults = [fault for fault in found(folder / "j.yaml", job, definition(folder)) if fault.startswith("spec")]
    assert len(schema_faults) == (said is not None)
    assert said is None or said in schema_faults[0]


def test_a_definition_of_something_else(folder, capsys):
    crd = definition(folder)
    fill_in(folder / "cluster.yaml")
    assert check.main([str(folder / "cluster.yaml"), "--crd", str(crd)]) == 2
    assert "--crd is for RayJobs" in capsys.readouterr().err
    crd.write_text("spec: {group: other.io, versions: [{name: v1}]}")
    assert check.main([str(folder / "rayjob.yaml"), "--crd", str(crd)]) == 2
    assert "knows no ray.io/v1" in capsys.readouterr().err


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12)
)
UNREADABLE = {
    "alias bomb": BOMB,
    "self-reference": "a: &a [*a]",
    "mapping in itself": "a: &a {b: *a}",
    "too deep": "[" * 5000 + "]" * 5000,
    "not UTF-8": b"a: \xff\xfe",
    "NUL": b"a: \x00",
    "unknown alias": "a: *b",
    "unknown tag": "!!python/object/apply:os.system [id]",
    "unhashable key": "? [a]\n: b",
    "two documents": "a: 1\n---\nb: 2",
    "empty": "",
    "a list": "[1, 2]",
    "tab": "a:\n\t- b",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, capsys):
    text = UNREADABLE[name]
    (tmp_path / "bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert check.main([str(tmp_path / "bad.yaml")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "bad.yaml" in line


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: os.mkfifo(path), lambda path: None])
def test_what_is_no_file_is_named(tmp_path, make, capsys):
    make(tmp_path / "bad.yaml")
    assert check.main([str(tmp_path / "bad.yaml")]) == 2
    assert "bad.yaml cannot be read" in capsys.readouterr().err


SPEC = "spec: {group: ray.io, versions: [{name: v1, schema: {openAPIV3Schema: %s}}]}"
DEFINITIONS = {
    **UNREADABLE,
    "nothing in it": "{}",
    "spec is a list": "spec: [1]",
    "versions is a number": "spec: {group: ray.io, versions: 3}",
    "versions hold texts": "spec: {group: ray.io, versions: [v1]}",
    "no schema": "spec: {group: ray.io, versions: [{name: v1}]}",
    "schema is a text": SPEC % "text",
    "unknown type": SPEC % "{type: thing}",
    "type is a list in a list": SPEC % "{type: [[string]]}",
    "nullable without a type": SPEC % "{nullable: true}",
    "properties is a list": SPEC % "{type: object, properties: [1]}",
    "broken pattern": SPEC % "{properties: {kind: {pattern: '['}}}",
    "reference to nothing": SPEC % "{$ref: '#/nowhere'}",
    "reference to itself": SPEC % "{$ref: '#'}",
    "another version": "spec: {group: ray.io, versions: [{name: v7, schema: {openAPIV3Schema: {}}}]}",
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_malformed_definition_is_named(folder, tmp_path, name, capsys):
    fill_in(folder / "rayjob.yaml")
    text = DEFINITIONS[name]
    (tmp_path / "crd.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert check.main([str(folder / "rayjob.yaml"), "--crd", str(tmp_path / "crd.yaml")]) == 2
    assert "error: " in (told := capsys.readouterr().err) and ("crd" in told)
