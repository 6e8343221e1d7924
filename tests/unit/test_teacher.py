import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from approx_env import data
from approx_env.engines.vector.engine import VectorEngine
from approx_env.errors import InputError
from approx_env.int8 import nodes, quantize
from approx_env.teachers import models, store
from approx_env.teachers.training import loop, program
from approx_env.teachers.training.recipe import Recipe

RECIPE = Recipe(epochs=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory, few):
    """An untrained SqueezeNet of two classes, its network, and the files that hold both."""
    torch.manual_seed(0)
    module = models.build("squeezenet", 2).eval()
    stem = tmp_path_factory.mktemp("made") / "squeezenet-few"
    program.write_teachers(stem, "squeezenet", module, few, RECIPE)
    calibration, _ = few.load("calibration")
    quantised = quantize.quantize(
        module, calibration, model="squeezenet", classes=few.classes, layers=module.layers, attention=module.attention
    )
    return module, quantised, stem


@pytest.fixture
def folder(made, tmp_path):
    """A copy of those files, to be spoilt."""
    return shutil.copytree(made[2].parent, tmp_path / "copy")


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        store.read(path)
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_files(made):
    assert sorted(path.name for path in made[2].parent.iterdir()) == [
        "squeezenet-few.float.json",
        "squeezenet-few.float.safetensors",
        "squeezenet-few.int8.json",
        "squeezenet-few.int8.safetensors",
    ]


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_int8_teacher_returns_as_it_was(made, few, suffix):
    _, quantised, stem = made
    read = store.read(f"{stem}.int8{suffix}")
    assert read.network.layers == quantised.layers
    assert read.network.attention == quantised.attention
    assert read.network.classes == ("even", "odd")
    for one, other in zip(quantised.nodes, read.network.nodes, strict=True):
        assert type(one) is type(other)
        for name, value in vars(one).items():
            assert np.array_equal(value, getattr(other, name)), (one.name, name)
            assert type(value) is type(getattr(other, name)), (one.name, name)
    images, _ = few.load("search")
    assert torch.equal(VectorEngine(quantised).forward(images), VectorEngine(read.network).forward(images))


def test_float_teacher_returns_as_it_was(made, few):
    module, _, stem = made
    read = store.read_float(f"{stem}.float.json")
    assert not read.training
    x = data.normalise(few.load("search")[0])
    with torch.inference_mode():
        assert torch.equal(read(x), module(x))


def test_what_is_known_of_the_making(made, few):
    module, quantised, stem = made
    about = store.read(f"{stem}.int8.json").about
    assert about["dataset"] == "few"
    assert about["recipe"] == vars(RECIPE)
    assert about["file"] == f"{stem}.int8.json"
    runner = VectorEngine(quantised)
    for split in ("validation", "test"):
        images, labels = few.load(split)
        assert about["int8_accuracy"][split] == (runner.forward(images).argmax(1).numpy() == labels).mean()
        with torch.inference_mode():
            predicted = module(data.normalise(images)).argmax(1).numpy()
        assert about["float_accuracy"][split] == (predicted == labels).mean()


def test_accuracies_are_printed(small, few, capsys, tmp_path):
    torch.manual_seed(0)
    program.write_teachers(tmp_path / "t", "squeezenet", models.build("squeezenet", 2).eval(), few, RECIPE)
    lines = capsys.readouterr().out.splitlines()
    kinds = [line.split(":")[0] for line in lines[:3]]
    assert kinds == ["float", "INT8, MSE-optimal scales", "INT8, clipped maximum scales"]
    assert lines[3].split(":")[0] in kinds[1:]  # the one that is kept, on test too
    assert lines[4] == f"wrote {tmp_path / 't.int8.json'}"


def test_accuracy_in_batches(small):
    runner = VectorEngine(small.network)
    whole = loop.accuracy(runner.forward, small.images, small.labels)
    assert whole == loop.accuracy(runner.forward, small.images, small.labels, batch_size=7)
    assert whole == (runner.forward(small.images).argmax(1).numpy() == small.labels).mean()


def test_missing_files(folder):
    absent = folder / "absent.int8.json"
    assert refusal(absent).startswith(f"teacher {absent} cannot be read (")
    assert refusal(absent).endswith("): name a .json that training wrote (--teacher, --initial)")
    assert refusal(folder).startswith(f"teacher {folder} cannot be read (")
    path = folder / "squeezenet-few.int8.json"
    path.with_suffix(".safetensors").unlink()
    assert refusal(path).startswith(f"teacher {path} cannot be read (")


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_truncated_arrays(folder, kept):
    path = folder / "squeezenet-few.int8.json"
    arrays = path.with_suffix(".safetensors")
    arrays.write_bytes(arrays.read_bytes()[:kept])
    assert refusal(path) == (
        f"{arrays} is not what squeezenet-few.int8.json describes (truncated or exchanged): copy both anew"
    )


def test_exchanged_arrays(folder):
    path = folder / "squeezenet-few.int8.json"
    arrays = path.with_suffix(".safetensors")
    shutil.copy(folder / "squeezenet-few.float.safetensors", arrays)
    assert refusal(path) == (
        f"{arrays} is not what squeezenet-few.int8.json describes (truncated or exchanged): copy both anew"
    )


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"PK\x03\x04 pickle"])
def test_not_json(folder, content):
    path = folder / "squeezenet-few.int8.json"
    path.write_bytes(content)
    assert refusal(path).startswith(f"teacher {path} cannot be read (")


@pytest.mark.parametrize("content", [[], {}, {"sha256": None}, "text", 5])
def test_json_of_something_else(folder, content):
    path = folder / "squeezenet-few.int8.json"
    path.write_text(json.dumps(content))
    assert refusal(path).endswith("(truncated or exchanged): copy both anew")


def test_float_teacher_is_no_int8_teacher(folder):
    path = folder / "squeezenet-few.float.json"
    assert refusal(path) == f"{path} is not an INT8 teacher of format 2: name a .int8.json that training wrote"


def test_int8_teacher_is_no_float_teacher(folder):
    path = folder / "squeezenet-few.int8.json"
    with pytest.raises(InputError) as caught:
        store.read_float(path)
    assert str(caught.value) == f"{path} is not a float teacher: name a .float.json that training wrote"


def test_another_format(folder):
    path = folder / "squeezenet-few.int8.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 3}))
    assert refusal(path) == f"{path} is not an INT8 teacher of format 2: name a .int8.json that training wrote"


def spoil_op(description):
    description["nodes"][0]["op"] = "Exec"


def spoil_inputs(description):
    description["nodes"][3]["inputs"] = ["nowhere"]


def spoil_name(description):
    description["nodes"][0]["name"] = "renamed"


def spoil_field(description):
    description["surplus"] = 1


@pytest.mark.parametrize("spoil", [spoil_op, spoil_inputs, spoil_name, spoil_field])
def test_description_of_no_network(folder, spoil):
    path = folder / "squeezenet-few.int8.json"
    about = json.loads(path.read_text())
    spoil(about["network"])
    path.write_text(json.dumps(about))
    message = refusal(path)
    assert message.startswith(f"{path} does not describe a network (")
    assert message.endswith("): write it anew by training")


def test_every_operation_can_be_stored():
    assert set(nodes.OPERATIONS) == {
        "Convolution", "Linear", "MaxPool", "AveragePool", "GlobalAveragePool", "Concatenation", "Addition",
        "ScaledAddition", "Flatten", "Site"
    }  # fmt: skip


# -- shipped teachers


def test_shipped_teachers(model):
    path = store.path_of(model, "digits")
    read = store.read(path)
    assert read.network.model == model
    assert read.network.classes == tuple("0123456789")
    assert read.about["dataset"] == "digits"
    floats, integers = read.about["float_accuracy"], read.about["int8_accuracy"]
    assert integers["validation"] > 0.95
    assert integers["test"] > 0.95
    # Of 192 and 256 images one or two may flip.
    assert all(abs(integers[split] - floats[split]) <= 0.011 for split in integers)


def test_shipped_teachers_keep_what_they_claim(model, networks, digits):
    claimed = store.read(store.path_of(model, "digits")).about["int8_accuracy"]
    found = {split: loop.accuracy(VectorEngine(networks[model]).forward, *digits.load(split)) for split in claimed}
    assert found == claimed


def test_shipped_teachers_are_small():
    assert sum(path.stat().st_size for path in store.SHIPPED.iterdir()) < 7_000_000


def test_no_shipped_teacher():
    with pytest.raises(InputError) as caught:
        store.path_of("squeezenet", "imagefolder:pets")
    assert str(caught.value) == (
        "no teacher of squeezenet on imagefolder:pets is shipped: train one by `python -m approx_env.training "
        "--model squeezenet ...` and name its .int8.json with --teacher"
    )


@pytest.mark.parametrize("value", [5, "x", [], {"nodes": 3}])
def test_network_of_another_shape(folder, value):
    path = folder / "squeezenet-few.int8.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"network": value}))
    fault = "does not describe a network (" if isinstance(value, dict) else "is not an INT8 teacher of format 2"
    assert refusal(path).startswith(f"{path} {fault}")


# -- format 1


def as_format_1(path) -> None:
    """Rewrites an INT8 teacher as it was before: float32 scales of weights, none of logits."""
    arrays, about = load(path.with_suffix(".safetensors").read_bytes()), json.loads(path.read_text())
    quantised = store.read(path).network
    for entry in about["network"]["nodes"]:
        if "relu" in entry:
            node = quantised.by_name[entry["name"]]
            del arrays[f"{node.name}/multiplier"]
            arrays[f"{node.name}/weight_scale"] = quantised.weight_scale(node).astype(np.float32)
            if entry.pop("logits"):
                entry["scale"] = None
    content = save(arrays)
    path.with_suffix(".safetensors").write_bytes(content)
    path.write_text(json.dumps(about | {"format": 1, "sha256": hashlib.sha256(content).hexdigest()}))


def test_format_1_is_told_how_to_be_converted(folder):
    path = folder / "squeezenet-few.int8.json"
    as_format_1(path)
    assert refusal(path) == (
        f"{path} is an INT8 teacher of format 1, whose codes differ from CPU to CPU: convert it by `python -m "
        f"approx_env.catalogue convert {path}`"
    )


def test_a_converted_teacher_has_the_weights_that_it_had(folder):
    path = folder / "squeezenet-few.int8.json"
    before = store.read(path).network
    as_format_1(path)
    after, about = store.read_format_1(path)
    assert about["dataset"] == store.about_float(str(path).replace("int8", "float"))["dataset"]
    for node in before.nodes:
        if isinstance(node, nodes.Weighted):
            same = after.by_name[node.name]
            values, others = (
                part.weight * whole.weight_scale(part).reshape(-1, *[1] * (part.weight.ndim - 1))
                for part, whole in ((node, before), (same, after))
            )
            assert np.abs(values - others).max() <= 0.51 * after.weight_scale(same).max()
            assert same.logits == node.logits


def test_only_format_1_is_converted(folder):
    path = folder / "squeezenet-few.int8.json"
    with pytest.raises(InputError, match="is not an INT8 teacher of format 1: there is nothing to convert"):
        store.read_format_1(path)


# -- mutated files


def changed(node: str, **fields):
    """A change of one node's entry; a value of `...` removes the field."""

    def change(description, arrays):
        entry = next(entry for entry in description["nodes"] if entry["name"] == node)
        for name, value in fields.items():
            if value is ...:
                del entry[name]
            else:
                entry[name] = value

    return change


def array(name: str, make):
    """A change of one array; None removes it."""

    def change(description, arrays):
        value = make(arrays.pop(name))
        if value is not None:
            arrays[name] = np.ascontiguousarray(value)

    return change


def header(**fields):
    def change(description, arrays):
        for name, value in fields.items():
            if value is ...:
                del description[name]
            else:
                description[name] = value

    return change


def lists(change):
    return lambda description, arrays: description.update(nodes=change(description["nodes"]))


CONV, FIRE, LAST, JOINED = "blocks.conv1.0", "blocks.fire2.squeeze.0", "classifier.1", "cat"
NUMBERS = ("text", None, [], {}, -1, 1.5, float("nan"), float("inf"), 2**40)
MUTATIONS = {
    **{f"stride {value!r}": changed(CONV, stride=value) for value in (*NUMBERS, 0, True)},
    **{f"padding {value!r}": changed(CONV, padding=value) for value in NUMBERS},
    **{f"scale {value!r}": changed(CONV, scale=value) for value in ("text", None, [], -1.0, 0.0, float("nan"), float("inf"))},
    **{f"relu {value!r}": changed(CONV, relu=value) for value in ("yes", None, 1)},
    **{f"logits {value!r}": changed(CONV, logits=value) for value in ("yes", None, 1, True)},
    **{f"kernel {value!r}": changed("pool", kernel=value) for value in (*NUMBERS, 0, True, 1000)},
    **{f"pool's stride {value!r}": changed("pool", stride=value) for value in (*NUMBERS, 0)},
    **{f"ceil {value!r}": changed("pool", ceil=value) for value in ("yes", None, 2)},
    **{f"inputs {value!r}": changed(FIRE, inputs=value)
       for value in ([], ["nowhere"], [LAST], [FIRE], ["pool", "pool"], [["pool"]], [5], [None], 5, None, "")},
    **{f"concatenation of {value!r}": changed(JOINED, inputs=value) for value in ([], ["input"], ["pool", FIRE], [5])},
    **{f"name {value!r}": changed(CONV, name=value) for value in ("input", "", None, 5, FIRE, ["a"])},
    **{f"operation {value!r}": changed(CONV, op=value) for value in ("Exec", "", None, 5, "Site", "Linear", "Node", [])},
    **{f"no {field}": changed(CONV, **{field: ...}) for field in ("op", "name", "inputs", "stride", "padding", "relu",
                                                                 "scale", "logits")},
    "a field too many": changed(CONV, colour="red"),
    "an unequal scale in a concatenation": changed("blocks.fire2.expand1x1.0", scale=0.123),
    "two nodes of logits": changed("blocks.fire9.squeeze.0", logits=True),
    "logits that are codes": changed(LAST, logits=False),
    **{f"{name} {what}": array(f"{CONV}/{name}", make) for name in ("weight", "bias", "multiplier") for what, make in {
        "missing": lambda a: None, "in float": lambda a: a.astype(np.float32), "in int64": lambda a: a.astype(np.int64),
        "of no elements": lambda a: a[:0], "of one dimension more": lambda a: a[None], "flat": lambda a: a.reshape(-1)[:7],
    }.items()},
    "a weight of -128": array(f"{CONV}/weight", lambda a: np.where(np.arange(a.size).reshape(a.shape) == 5, -128, a).astype(np.int8)),
    "weights that saturate": array(f"{CONV}/weight", lambda a: np.full_like(a, 127)),
    "fewer outputs": array(f"{CONV}/weight", lambda a: a[:-1]),
    "fewer inputs": array(f"{CONV}/weight", lambda a: a[:, :-1]),
    "a multiplier of 0": array(f"{CONV}/multiplier", np.zeros_like),
    "a negative multiplier": array(f"{CONV}/multiplier", lambda a: -a),
    "a huge multiplier": array(f"{CONV}/multiplier", lambda a: np.full_like(a, 2**31 - 1)),
    "a huge bias": array(f"{CONV}/bias", lambda a: np.full_like(a, -(2**31))),
    **{f"input scale {value!r}": header(input_scale=value) for value in ("1", None, 0, -1.0, float("nan"), float("inf"))},
    **{f"zero point {value!r}": header(input_zero_point=value) for value in ("1", None, -1, 256, 1.5, True)},
    **{f"input shape {value!r}": header(input_shape=value)
       for value in ([], [3, 32], [3, 0, 32], [3, -1, 32], [1, 32, 32], [3, 32, "32"], [2**20] * 3, [3, 2, 2], 5, None)},
    **{f"classes {value!r}": header(classes=value) for value in ([], ["a"], ["a", "a"], [1, 2], ["a", "b", "c"], "ab", None)},
    **{f"attention {value!r}": header(attention=value) for value in (["nowhere"], [5], "fire4", None)},
    **{f"model {value!r}": header(model=value) for value in ("", None, 5)},
    **{f"standardised {value!r}": header(standardised=value) for value in ("no", None, 1)},
    **{f"no {field} at all": header(**{field: ...}) for field in ("model", "classes", "input_shape", "input_scale",
                                                                 "input_zero_point", "attention", "nodes")},
    "nodes that are none": header(nodes=[1, 2]), "no nodes": header(nodes=[]), "nodes of text": header(nodes="x"),
    "a surplus header": header(surplus=1),
    "nodes turned round": lists(lambda nodes: nodes[::-1]), "a node twice": lists(lambda nodes: [*nodes, nodes[0]]),
    "the first node missing": lists(lambda nodes: nodes[1:]), "the last nodes missing": lists(lambda nodes: nodes[:-2]),
}  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutated_teachers_are_refused(folder, mutation):
    path = folder / "squeezenet-few.int8.json"
    arrays, about = load(path.with_suffix(".safetensors").read_bytes()), json.loads(path.read_text())
    MUTATIONS[mutation](about["network"], arrays)
    content = save(arrays)
    path.with_suffix(".safetensors").write_bytes(content)
    path.write_text(json.dumps(about | {"sha256": hashlib.sha256(content).hexdigest()}))
    message = refusal(path)
    assert (
        message.startswith(f"{path} does not describe a network (") or " is not an INT8 teacher of format 2" in message
    )
    assert len(message) < 700


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{}", b"\x03\0\0\0\0\0\0\0{x}"])
def test_arrays_that_are_none(folder, content):
    path = folder / "squeezenet-few.int8.json"
    path.with_suffix(".safetensors").write_bytes(content)
    about = json.loads(path.read_text()) | {"sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(about))
    refusal(path)


@pytest.mark.parametrize(
    "change", [{"model": "nowhere"}, {"model": 5}, {"architecture": None}, {"architecture": {"colour": 1}}, {"classes": 5},
               {"model": "alexnet"}, {"classes": ["a", "b", "c"]}]
)  # fmt: skip
def test_mutated_float_teachers_are_refused(folder, change):
    path = folder / "squeezenet-few.float.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match="does not hold a float teacher"):
        store.read_float(path)
