"""Exports as folders: whole or not at all, nothing outside, nothing overwritten, and a manifest that holds."""

import hashlib
import json
import os
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from approx_env import export
from approx_env.adapt import student
from approx_env.engines import reference
from approx_env.errors import InputError
from approx_env.export import bundle
from approx_env.export.deployment import Deployment, identifier
from approx_env.int8.network import Network
from approx_env.teachers import store
from search import export as command
from tests import exports

ABOUT = {"command": ["python"], "commit": None, "teacher": None, "student": None, "dataset": None, "notes": []}
HOSTILE = ("../../x", "/etc/passwd", 'a"; } /*', "*/ #error", "a\nb", "\0", "ümläut", "a.b", "a b", ".", "x" * 300)


def renamed(network: Network) -> Network:
    """The network with names that somebody chose who wishes us ill."""
    names = {node.name: HOSTILE[k % len(HOSTILE)] + "!" * (k // len(HOSTILE)) for k, node in enumerate(network.nodes)}
    nodes = tuple(
        replace(node, name=names[node.name], inputs=tuple(names.get(name, name) for name in node.inputs))
        for node in network.nodes
    )
    attention = tuple(names[name] for name in network.attention)
    return replace(network, nodes=nodes, attention=attention, model="*/ ../m", classes=("../no", 'y"es'))


def listed(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def made(small) -> Deployment:
    return exports.deployment(small.network, small.images[:3])


@pytest.mark.parametrize("format", export.NAMES)
def test_names_do_not_leave_the_folder(small, format, tmp_path):
    deployment = exports.deployment(renamed(small.network), small.images[:2])
    (tmp_path / "in").mkdir()
    manifest = bundle.write(tmp_path / "in" / "out", format, deployment, ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["out"]
    files = listed(tmp_path / "in" / "out")
    assert set(files) == {*manifest["files"], bundle.MANIFEST}
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.") for name in files)
    if format == "c":
        exports.check_trace(exports.compiled(tmp_path / "in" / "out"), tmp_path / "in" / "out")
    if format == "onnx":
        exports.check_onnx(deployment)


@pytest.mark.parametrize("format", export.NAMES)
def test_the_manifest(made, small, format, tmp_path):
    about = ABOUT | {"commit": "abc"}
    manifest = bundle.write(tmp_path / "out", format, made, about)
    assert json.loads((tmp_path / "out" / bundle.MANIFEST).read_text()) == json.loads(json.dumps(manifest))
    assert (manifest["schema_version"], manifest["format"], manifest["commit"]) == (1, format, "abc")
    files = listed(tmp_path / "out")
    assert manifest["files"] == {
        name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != bundle.MANIFEST
    }
    layers = student.as_layers(made.configuration)
    assert manifest["codes"]["layers"] == layers
    assert manifest["network"]["logit_scale"] == small.network.logit_scale
    assert manifest["split"] is None


def test_golden_vectors_are_the_references(made, tmp_path):
    golden = bundle.write(tmp_path / "out", "tables", made, ABOUT)["golden"]
    arrays = np.load(tmp_path / "out" / golden["file"])
    expected = reference.forward(made.network, made.images, made.configuration)
    assert set(golden["tensors"]) == set(expected)
    for name, array in expected.items():
        told = golden["tensors"][name]
        assert np.array_equal(arrays[told["key"]], array)
        assert (told["shape"], told["dtype"]) == (list(array.shape), str(array.dtype))
    assert np.array_equal(arrays["labels"], made.labels)
    assert np.array_equal(arrays[golden["logits"]], expected[made.network.nodes[-1].name])


def test_a_split_is_what_our_engine_makes_of_it(made, small, tmp_path):
    split = exports.split_of(made.network, made.configuration, small.images, small.labels)
    logits = reference.forward(made.network, small.images, made.configuration)[made.network.nodes[-1].name]
    assert np.array_equal(split.logits, logits)
    told = bundle.write(tmp_path / "out", "c", replace(made, split=split), ABOUT)["split"]
    right = int((logits.argmax(1) == small.labels).sum())
    crc = zlib.crc32(b"".join(int(each).to_bytes(8, "little", signed=True) for each in logits.reshape(-1)))
    assert told == {"name": "test", "images": 48, "accuracy": right / 48, "logits_crc32": f"{crc:08x}"}


def test_the_same_export_has_the_same_bytes(made, tmp_path):
    for name in ("a", "b"):
        bundle.write(tmp_path / name, "onnx", made, ABOUT)
    assert listed(tmp_path / "a") == listed(tmp_path / "b")


def test_what_fails_leaves_nothing(made, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "_write_golden", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bundle.write(tmp_path / "out", "tables", made, ABOUT)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_what_was_there(made, tmp_path, monkeypatch):
    bundle.write(tmp_path / "out", "tables", made, ABOUT)
    before = listed(tmp_path / "out")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "_write_golden", full)
    with pytest.raises(InputError, match="cannot be written .*No space left"):
        bundle.write(tmp_path / "out", "c", made, ABOUT, force=True)
    assert listed(tmp_path / "out") == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_put_in_place_leaves_what_was_there(made, tmp_path, monkeypatch):
    bundle.write(tmp_path / "out", "tables", made, ABOUT)
    before, rename, calls = listed(tmp_path / "out"), os.rename, []

    def once(*places):
        calls.append(places)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        rename(*places)

    monkeypatch.setattr(os, "rename", once)
    with pytest.raises(InputError, match="Input/output error"):
        bundle.write(tmp_path / "out", "c", made, ABOUT, force=True)
    assert listed(tmp_path / "out") == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_replaces_an_export_and_nothing_else(made, tmp_path):
    out = tmp_path / "out"
    bundle.write(out, "tables", made, ABOUT)
    with pytest.raises(InputError, match="is there: choose another folder, or replace an older export by --force"):
        bundle.write(out, "c", made, ABOUT)
    bundle.write(out, "c", made, ABOUT, force=True)
    assert (out / "network.c").exists() and not (out / "tables.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (out / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds mine.txt, which no export wrote"):
        bundle.write(out, "c", made, ABOUT, force=True)
    for name, text in (("none", None), ("other", "{}"), ("odd", "["), ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
        if text:
            (tmp_path / name / bundle.MANIFEST).write_text(text)
        with pytest.raises(InputError, match="holds no export"):
            bundle.write(tmp_path / name, "c", made, ABOUT, force=True)
        assert (tmp_path / name / "precious").exists()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        for force in (False, True):
            with pytest.raises(InputError):
                bundle.write(tmp_path / name, "c", made, ABOUT, force=force)
    for place in ("/", ".", str(tmp_path / "file" / "x")):
        with pytest.raises(InputError):
            bundle.write(place, "c", made, ABOUT, force=True)


def test_identifiers():
    assert [identifier(name) for name in HOSTILE[:4]] == ["x", "etc_passwd", "a", "error"]
    assert identifier("fire2.squeeze.0") == "fire2_squeeze_0"
    assert len(identifier("x" * 300)) == 40


COMPACT = ("--model", "squeezenet_compact")


@pytest.fixture
def edited(tmp_path) -> Path:
    network = store.read(store.path_of("squeezenet_compact", "digits")).network
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"layers": student.as_layers(exports.codes(network))}))
    return path


def test_the_command(edited, tmp_path, capsys):
    out = tmp_path / "out"
    assert command.main([str(edited), *COMPACT, "--format", "tables", "--output", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f" files and manifest.json in {out}\n")
    manifest = json.loads((out / bundle.MANIFEST).read_text())
    teacher = store.read(store.path_of("squeezenet_compact", "digits")).about
    assert manifest["teacher"] == {"file": teacher["file"], "sha256": teacher["sha256"]}
    assert manifest["student"] is None and manifest["command"][0] == "python"
    assert manifest["golden"]["images"] == 16 and manifest["dataset"]["golden"] == "validation"
    assert manifest["codes"]["layers"] == json.loads(edited.read_text())["layers"]


def test_a_student_is_exported_with_its_own_weights(edited, tmp_path, digits):
    teacher = store.read(store.path_of("squeezenet_compact", "digits"))
    last = teacher.network.nodes[-2]
    other = replace(last, bias=last.bias + np.int32(5))
    network = replace(teacher.network, nodes=(*teacher.network.nodes[:-2], other, teacher.network.nodes[-1]))
    configuration = exports.codes(network)
    student.write(tmp_path / "s.int8.json", network, configuration, teacher.about, {})
    argv = ["--student", str(tmp_path / "s.int8.json"), "--format", "onnx", "--output", str(tmp_path / "out")]
    assert command.main(argv) == 0
    manifest = json.loads((tmp_path / "out" / bundle.MANIFEST).read_text())
    assert manifest["student"]["sha256"] == student.read(tmp_path / "s.int8.json").about["sha256"]
    images, _ = digits.load("validation", 16)
    golden = np.load(tmp_path / "out" / bundle.GOLDEN)[manifest["golden"]["logits"]]
    assert np.array_equal(golden, reference.forward(network, images, configuration)[network.nodes[-1].name])


def test_bad_input(edited, tmp_path, capsys):
    def refusal(*arguments: object) -> str:
        assert command.main([str(each) for each in arguments]) == 2
        return capsys.readouterr().err

    told = refusal()
    assert all(
        word in told for word in ("--codes must name", "--format must be given: c, onnx, ", "--output must name")
    )
    out = ("--output", tmp_path / "out")
    assert "--format must be c, onnx, tables or verilog, got 'pdf'" in refusal(edited, "--format", "pdf", *out)
    assert "--split is for programs that read images" in refusal(edited, "--format", "onnx", "--split", "test", *out)
    assert "leave one out" in refusal(edited, "--codes", edited, "--format", "c", *out)
    assert "is there" in refusal(edited, "--format", "c", "--output", tmp_path)
    assert "holds no run" in refusal(tmp_path, "--format", "c", *out)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]
