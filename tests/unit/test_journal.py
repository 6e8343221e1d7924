import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from approx_env.teachers.journal import Journal

RECORD = {
    "stage": "float",
    "epoch": 2,
    "epochs": 12,
    "loss": 0.51236,
    "learning_rate": 0.025,
    "input_seconds": 3.0,
    "validation_accuracy": 0.8125,
    "seconds": 120.4,
}


def lines(stem) -> list[dict]:
    return [json.loads(line) for line in stem.with_name("run.jsonl").read_text().splitlines()]


def scalars(folder) -> dict[tuple[str, int], float]:
    """What the TensorBoard files of a folder hold: (tag, step) -> value."""
    found = {}
    for path in folder.iterdir():
        assert path.name.startswith("events.out.tfevents.")
        content = path.read_bytes()
        while content:  # each event: length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return found


@pytest.fixture
def stem(tmp_path):
    return tmp_path / "run"


def test_an_epoch_is_a_json_line(stem):
    later = RECORD | {"epoch": 3, "loss": 0.4}
    with Journal(stem) as journal:
        journal.epoch(RECORD)
        assert lines(stem) == [RECORD]  # at once
        journal.epoch(later)
    assert lines(stem) == [RECORD, later]


def test_lines_of_a_resumed_training_follow(stem):
    for epoch in (1, 2):
        with Journal(stem) as journal:
            journal.epoch(RECORD | {"epoch": epoch})
    assert [line["epoch"] for line in lines(stem)] == [1, 2]


def test_tensorboard_has_the_numbers_of_each_stage(stem):
    with Journal(stem) as journal:
        journal.epoch(RECORD)
        journal.epoch(RECORD | {"stage": "QAT", "epoch": 1, "loss": 0.25})
    names = ("loss", "learning_rate", "input_seconds", "validation_accuracy", "seconds")
    found = scalars(stem.with_name("run.tensorboard"))
    assert found == pytest.approx(
        {(f"float/{name}", 2): RECORD[name] for name in names}
        | {(f"QAT/{name}", 1): RECORD[name] for name in names}
        | {("QAT/loss", 1): 0.25}
    )


def test_an_epoch_is_a_printed_line(stem, capsys):
    with Journal(stem) as journal:
        journal.epoch(RECORD)
        journal.epoch(RECORD | {"epoch": 12, "epochs": 100, "seconds": 1234.5, "stage": "QAT"})
    assert capsys.readouterr().out.splitlines() == [
        "float epoch 2/12: loss 0.5124, validation accuracy 81.25 %, 120 s (2.5 % of it input)",
        "QAT epoch 12/100: loss 0.5124, validation accuracy 81.25 %, 1234 s (0.2 % of it input)",
    ]


def test_without_an_epoch_nothing_is_written(stem, capsys):
    with Journal(stem):
        pass
    assert list(stem.parent.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_names_with_dots_stay_whole(tmp_path):
    with Journal(tmp_path / "run.v1.1") as journal:
        journal.epoch(RECORD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.v1.1.jsonl", "run.v1.1.tensorboard"]
