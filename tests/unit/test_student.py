import json

import numpy as np
import pytest

from approx_env.adapt import student
from approx_env.errors import InputError
from approx_env.int8.nodes import Weighted
from approx_env.teachers import store

TEACHER = {"dataset": "digits", "sha256": "ab", "file": "t.int8.json", "format": 2, "int8_accuracy": {"test": 0.5}}
OPERATOR = {"one": ((1, 2, 3, 4), 15), "two": ((7, 14, 21, 28), 35), "three": ((1, 2, 3, 255), 255)}


@pytest.fixture
def path(small, tmp_path):
    student.write(tmp_path / "student.int8.json", small.network, OPERATOR, TEACHER, {"recipe": {"seed": 3}})
    return tmp_path / "student.int8.json"


def test_a_student_comes_back(path, small):
    found = student.read(path)
    assert found.configuration == OPERATOR
    for one, other in zip(found.network.nodes, small.network.nodes, strict=True):
        assert one.name == other.name
        if isinstance(one, Weighted):
            assert np.array_equal(one.weight, other.weight) and np.array_equal(one.multiplier, other.multiplier)
    assert found.about["dataset"] == "digits"
    assert found.about["student"]["teacher_sha256"] == "ab"
    assert found.about["student"]["recipe"] == {"seed": 3}
    assert found.about["sha256"] != "ab"


def test_a_student_is_read_like_a_teacher(path):
    assert store.read(path).network.layers == ("one", "two", "three")


def test_a_teacher_is_no_student(small, tmp_path):
    store.write(tmp_path / "t.int8.json", small.network, {})
    with pytest.raises(InputError, match="is no student .*: name a .int8.json that search.finetune wrote$"):
        student.read(tmp_path / "t.int8.json")


@pytest.mark.parametrize(
    "layers, told",
    [
        ({}, "there must be codes for the layers one, two, three, got "),
        ({"one": {}, "two": {}, "three": {}}, "t1_code"),
        ({name: dict(t1_code=4, v1_code=3, t2_code=2, v2_code=1, tmax_code=9) for name in OPERATOR}, "codes must sat"),
        ({name: dict(t1_code=1, v1_code=2, t2_code=3, v2_code=4.0, tmax_code=9) for name in OPERATOR}, "whole numbers"),
        (5, "is no student"),
    ],
)
def test_codes_that_are_none(path, layers, told):
    about = json.loads(path.read_text())
    about["student"]["layers"] = layers
    path.write_text(json.dumps(about))
    with pytest.raises(InputError, match=told):
        student.read(path)
