"""How a search is fitted to the cluster that it finds."""

import pytest

from approx_env.errors import InputError
from search import run, session
from search.config import Settings

GPU = {"engine": "portable", "device": "cuda"}


@pytest.fixture(autouse=True)
def cluster(monkeypatch):
    """24 cores and 3 GPUs, of which the head has none."""
    monkeypatch.setattr(
        session, "resources", lambda head=False: {"CPU": 0.0 if head else 24.0, "GPU": 3.0 * (not head)}
    )


@pytest.mark.parametrize(
    ("options", "runners"),
    [
        ({}, 24),
        ({"num_env_runners": 5}, 5),
        (GPU, 3),
        (GPU | {"gpus_per_runner": 0.25}, 12),
        (GPU | {"gpus_per_runner": 4.0}, 1),
    ],
)
def test_runners_of_a_cluster_are_as_many_as_it_has_room_for(options, runners, capsys):
    assert run._on_cluster(Settings(address="auto", **options)).runners == runners
    said = capsys.readouterr().out
    assert said.startswith(f"{runners} env runners, and the cluster has 24 cores and 3 GPUs")
    assert ("note: the search starts when" in said) == (options.get("gpus_per_runner") == 4)


def test_nobody_waits_for_what_this_machine_will_never_have(monkeypatch):
    monkeypatch.setattr(session, "resources", lambda head=False: {"CPU": 2.0, "GPU": 0.0})
    assert run._on_cluster(Settings()).runners <= 2
    with pytest.raises(InputError, match="this machine has 2 cores and 0 GPUs: give a smaller"):
        run._on_cluster(Settings(**GPU))


def test_a_head_without_cores_cannot_score():
    with pytest.raises(InputError, match="--num-env-runners 0 works on the cluster's head"):
        run._on_cluster(Settings(address="auto", num_env_runners=0))
