import json

import numpy as np
import pytest

from approx_env.int8.network import Network
from approx_env.int8.nodes import Linear, Site
from approx_env.teachers import catalogue, models, store

ENTRIES = json.loads(catalogue.TEACHERS.read_text())
ENTRY = {
    "model": "alexnet", "dataset": "imagefolder:cifar10-jpeg", "parameters": 1_234_567, "macs": 55_800_000,
    "float_bytes": 4_938_268, "int8_bytes": 1_240_000, "float_accuracy": 88.1, "int8_accuracy": 87.95, "epochs": 9,
    "command": "python -m approx_env.training --model alexnet", "scales": "MSE-optimal",
    "validation_accuracy": {"float": 88.0, "clipped maximum": 87.0, "MSE-optimal": 88.25, "quantisation-aware": 88.0},
}  # fmt: skip


def test_teachers_json_is_what_the_teachers_say():
    assert catalogue.shipped() == ENTRIES


def test_every_entry_is_complete_and_close_to_float():
    fields = "model dataset parameters macs float_bytes int8_bytes float_accuracy int8_accuracy epochs command".split()
    for each in ENTRIES:
        assert set(fields) <= set(each)
        assert each["command"].startswith(f"python -m approx_env.training --model {each['model']}")
        assert each["int8_bytes"] < each["float_bytes"] / 3
        # Of digits' 256 test images two may flip.
        assert each["int8_accuracy"] >= each["float_accuracy"] - (0.8 if each["dataset"] == "digits" else 0.3)
        assert each["validation_accuracy"][each["scales"]] == max(
            share for way, share in each["validation_accuracy"].items() if way != "float"
        )


def test_sizes_of_cifar_teachers():
    limits = {"squeezenet": 1_000_000, "alexnet": 4_000_000}
    found = {each["model"]: each for each in ENTRIES if each["dataset"] == "imagefolder:cifar10-jpeg"}
    for model, limit in limits.items():
        assert found[model]["int8_bytes"] < limit


def test_table_by_hand():
    assert (
        catalogue.table([ENTRY])
        == """\
| network | dataset | parameters | MACs | float / INT8 size | float / INT8 accuracy on test | epochs |
|---|---|---|---|---|---|---|
| alexnet | CIFAR-10 (JPEG) | 1,234,567 | 55.8 M | 4.94 / 1.24 MB | 88.10 / 87.95 % | 9 |

```
python -m approx_env.training --model alexnet
```

| network | dataset | float | clipped maximum | MSE-optimal | quantisation-aware | kept |
|---|---|---|---|---|---|---|
| alexnet | CIFAR-10 (JPEG) | 88.00 % | 87.00 % | 88.25 % | 88.00 % | MSE-optimal |"""
    )


def one_layer(weight: np.ndarray) -> Network:
    count = len(weight)
    linear = Linear("l", ("s",), weight, np.zeros(count, np.int32), np.ones(count, np.int32), False, 1.0, True)
    return Network("one", ("a", "b"), (weight.shape[1],), 1.0, 0, (Site("s", ("input",)), linear), ())


def test_stored_bytes_of_weights_with_one_bit_of_entropy():
    weight = np.resize(np.array([-3, 3], np.int8), (16, 4096))
    found = catalogue.stored(one_layer(weight))
    assert found["raw"] == 16 * 4096 + 16 * 4 + 16 * 4
    assert found["entropy"] == 16 * 4096 / 8 + 16 * 8
    assert found["zstd"] < found["entropy"]  # the pattern repeats, which counts of single weights do not see


def test_stored_bytes_of_noise():
    weight = np.random.default_rng(0).integers(-64, 65, (64, 4096)).astype(np.int8)
    found = catalogue.stored(one_layer(weight))
    bits = np.log2(129)
    assert found["zstd"] / found["raw"] == pytest.approx(bits / 8, rel=0.02)
    assert found["entropy"] / found["raw"] == pytest.approx(bits / 8, rel=0.01)


def test_sizes_lists_every_member():
    lines = catalogue.sizes().splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == list(models.MODELS)
    squeezenet = lines[2].split(" | ")
    assert squeezenet[1:4] == ["32", "734,986", "2,939,944"]
    assert squeezenet[5] == "52,543,488"


def test_compression_compares_with_alexnet_of_the_same_dataset():
    text = catalogue.compression(ENTRIES)
    assert text.count("squeezenet") == sum(each["model"].startswith("squeezenet") for each in ENTRIES)
    assert "alexnet |" not in text


@pytest.mark.parametrize("argv", [[], ["ship"], ["sizes", "now"]])
def test_bad_input(argv, capsys):
    assert catalogue.main(argv) == 2
    assert capsys.readouterr().err == (
        "error: python -m approx_env.catalogue takes shipped, sizes, or convert FILE [DATA_DIR], "
        f"got '{' '.join(argv)}'\n"
    )


def test_entries_lie_in_the_package_or_with_the_results():
    assert {store.SHIPPED, catalogue.ROOT / "results" / "teachers"} >= {
        (catalogue.ROOT / each["file"]).parent for each in ENTRIES
    }
