"""Searches that begin elsewhere than at quintile, through the real command."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from approx_env import tap
from approx_env.scoring.calibration import Calibration
from search import config, job, proposal
from search.results import store
from tests.command import Command, Run, node

pytestmark = pytest.mark.slow
PROBLEM = "--model squeezenet_compact --search-images 16 --episodes 9 --num-env-runners 0"


def search(*arguments: str) -> Run:
    finished = Command(*PROBLEM.split(), *arguments, "--address", node()).finish()
    assert finished.status == 0, finished.output + finished.errors
    return finished


def first(run: Run) -> list[tuple[int, ...]]:
    """Codes of the first row."""
    layers = run.json(store.RUN)["layers"]
    return [tuple(int(run.rows[f"{layer}_{name}"][0]) for name in store.CODE_FIELDS[:4]) for layer in layers]


def calibration() -> Calibration:
    return job.prepare(config.parse(PROBLEM.split()), held_out_splits=()).problem.calibration


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    """One that proposes other codes than quintile."""
    made = proposal.Policy()
    with torch.no_grad():
        made.gaps.weight.normal_(generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("policy") / "p.safetensors"
    path.write_bytes(proposal.save(made))
    return path


@pytest.fixture(scope="module")
def proposed(policy) -> Run:
    return search("--init-from", str(policy))


def test_it_begins_with_what_a_policy_proposes(proposed, policy):
    found = proposal.start(str(policy), calibration())
    assert first(proposed) == list(found) != list(calibration().quintile)
    assert [tuple(layer["start"]) for layer in proposed.json(store.RUN)["layers"].values()] == list(found)


def test_it_begins_with_what_a_run_has_chosen_and_goes_on_without_it(proposed, tmp_path):
    source = shutil.copytree(proposed.folder, tmp_path / "source")
    chosen = proposed.json(store.BEST)["layers"]
    run = search("--init-from", str(source))
    assert first(run) == [tuple(layer[f"{name}_code"] for name in tap.CODES) for layer in chosen.values()]
    shutil.rmtree(source)
    (run.folder / store.BEST).unlink()
    resumed = Command("--resume", run.folder.name, "--address", node(), results=run.folder.parent).finish()
    assert resumed.status == 0 and (run.folder / store.BEST).exists(), resumed.errors
    assert resumed.rows.equals(run.rows)


def test_a_start_that_was_spoilt_is_an_error(proposed):
    path = proposed.folder / store.RUN
    told = json.loads(path.read_text())
    (proposed.folder / store.BEST).unlink()
    next(iter(told["layers"].values()))["start"] = [4, 3, 2, 1]
    path.write_text(json.dumps(told))
    resumed = Command("--resume", proposed.folder.name, results=proposed.folder.parent).finish()
    assert resumed.status == 2 and "lacks a valid 'start'" in resumed.errors
