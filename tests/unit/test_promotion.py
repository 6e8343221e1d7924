"""From rung to rung, with a sink and runners that are no actors."""

from types import SimpleNamespace

import pytest

from search.results import store
from search.stages import promotion
from search.stages.live import Stage
from search.workers.processes import Needs
from tests.unit.test_inspection import LAYERS, ROWS


class Recorder:
    sent: list[tuple] = []

    def __init__(self, run: str, algorithm: str, seed: int):
        self.seed = seed

    def add(self, name, episode, outcome, search_images) -> None:
        Recorder.sent.append((self.seed, name, episode, outcome["codes"], search_images))

    def wait(self) -> None:
        Recorder.sent.append((self.seed, "waited"))


class Runners:
    made: list[tuple] = []

    def __init__(self, problem, count: int, needs: Needs):
        self.images, self.count = len(problem.labels), count
        Runners.made.append((self.images, count, needs))

    def evaluate(self, configurations):
        return ({"codes": codes} for codes in configurations)

    def close(self) -> None:
        Runners.made.append(("closed", self.images))


class Watch:
    stages: list[Stage] = []

    def __init__(self, handle, stage: Stage):
        Watch.stages.append(stage)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        pass


@pytest.fixture
def promote(monkeypatch):
    """Runs promotion with so many images a rung; gives what was sent and which runners there were."""
    Recorder.sent, Runners.made, Watch.stages = [], [], []
    monkeypatch.setattr(promotion.sink, "Recorder", Recorder)
    monkeypatch.setattr(promotion, "Runners", Runners)
    monkeypatch.setattr(promotion, "Watch", Watch)
    monkeypatch.setattr(promotion, "patiently", lambda handle, answer: answer)
    monkeypatch.setattr(promotion.ray, "get", lambda answer: answer)

    def run(rungs: list[int], promoted: dict[tuple, list[dict]], written: set[str] = frozenset()):
        problems = tuple(
            SimpleNamespace(labels=[0] * images, network=SimpleNamespace(layers=LAYERS)) for images in rungs
        )
        settings = SimpleNamespace(algorithm="ppo", seeds=(0, 1), runners=2, needs=Needs())
        handle = SimpleNamespace(
            promoted=SimpleNamespace(remote=lambda images, more: (promoted[images, more], 8)),
            written=SimpleNamespace(remote=lambda names: written.intersection(names)),
        )
        job = SimpleNamespace(name="r", settings=settings, rungs=problems, problem=problems[0])
        promotion.run(job, handle)
        return Recorder.sent, Runners.made

    return run


def test_without_rungs_nothing_is_promoted(promote, capsys):
    assert promote([32], {}) == ([], []) and capsys.readouterr().out == ""


def test_a_promoted_row_keeps_seed_and_episode(promote, capsys):
    rows = [ROWS[3], ROWS[5]]
    sent, made = promote([32, 64], {(32, 64): rows})
    assert sent[:2] == [
        (0, "ppo-seed0-3@64", 3, store.codes_of(ROWS[3], LAYERS), 64),
        (1, "ppo-seed1-1@64", 1, store.codes_of(ROWS[5], LAYERS), 64),
    ]
    assert sent[2:] == [(0, "waited"), (1, "waited")]
    assert made == [(64, 2, Needs()), ("closed", 64)]
    assert Watch.stages == [Stage("promotion", 64, {"ppo-seed0": 1, "ppo-seed1": 1})]
    assert capsys.readouterr().out.startswith("2 of 8 configurations promoted to 64 images, scored in ")


def test_a_row_of_a_higher_rung_is_named_by_its_last_rung_alone(promote):
    higher = ROWS[3] | {"episode_id": "ppo-seed0-3@64", "search_images": 64}
    sent, made = promote([32, 64, 128], {(32, 64): [ROWS[3]], (64, 128): [higher]})
    assert [entry[1] for entry in sent if len(entry) > 2] == ["ppo-seed0-3@64", "ppo-seed0-3@128"]
    assert made == [(64, 1, Needs()), ("closed", 64), (128, 1, Needs()), ("closed", 128)]


def test_what_was_scored_before_the_run_was_cut_off_is_not_scored_again(promote):
    sent, made = promote([32, 64], {(32, 64): [ROWS[3], ROWS[5]]}, written={"ppo-seed0-3@64"})
    assert [entry[1] for entry in sent if len(entry) > 2] == ["ppo-seed1-1@64"]
    assert made[0] == (64, 1, Needs())


def test_runners_end_when_scoring_fails(promote, monkeypatch):
    def fail(self, configurations):
        raise RuntimeError("lost")

    monkeypatch.setattr(Runners, "evaluate", fail)
    with pytest.raises(RuntimeError, match="lost"):
        promote([32, 64], {(32, 64): [ROWS[3]]})
    assert Runners.made[-1] == ("closed", 64)
