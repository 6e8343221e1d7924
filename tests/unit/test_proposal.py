"""The policy that proposes codes: always valid ones, quintile if it has learnt nothing, and what a file of it holds."""

import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from approx_env import tap
from approx_env.errors import InputError
from search import proposal
from search.results import store
from tests.calibrated import calibrated

LOGITS = st.lists(st.floats(-50, 50), min_size=5, max_size=5)


@pytest.fixture
def policy():
    """One whose last layer is no longer empty."""
    torch.manual_seed(0)
    made = proposal.Policy()
    with torch.no_grad():
        made.gaps.weight.normal_()
    return made


@given(st.integers(5, 255), st.booleans())
def test_without_training_it_proposes_quintile(tmax, search_tmax):
    calibration = calibrated(tmax, 15, search_tmax=search_tmax)
    assert proposal.Policy().propose(calibration) == calibration.quintile


@settings(max_examples=50)
@given(LOGITS, st.integers(4, 255))
def test_whatever_the_logits_codes_are_valid(logits, tmax):
    calibration = calibrated(tmax)
    assert calibration.valid(proposal.configuration(np.array([logits]), calibration))


@settings(max_examples=50)
@given(LOGITS, st.floats(-100, 100))
def test_a_constant_beside_the_logits_changes_nothing(logits, constant):
    calibration = calibrated(200)
    codes, moved = (proposal.configuration(np.array([logits]) + more, calibration) for more in (0, constant))
    assert np.abs(np.subtract(codes, moved)).max() <= 1  # rounding


def test_gaps_are_shares_of_tmax():
    logits = np.log([[0.1, 0.1, 0.2, 0.3, 0.3]])
    assert proposal.configuration(logits, calibrated(100)) == ((10, 20, 40, 70),)
    assert proposal.configuration(logits, calibrated(50, search_tmax=True)) == ((5, 10, 20, 35, 50),)


def test_it_sees_depth_and_the_rest_in_units_of_tmax():
    calibration = calibrated(50, 100)
    seen = proposal.observed(calibration).numpy()
    depth, mean, std, p90 = np.array([layer.observation for layer in calibration.layers], np.float64).T
    tmax = np.array([50, 100])
    assert seen == pytest.approx(np.stack([depth, mean * 255 / tmax, std * 128 / tmax, p90 * 255 / tmax], 1))


def test_a_file_gives_back_the_policy(policy, tmp_path):
    (tmp_path / "p.safetensors").write_bytes(proposal.save(policy))
    calibration = calibrated(35, 110)
    assert proposal.start(str(tmp_path / "p.safetensors"), calibration) == policy.propose(calibration)
    assert policy.propose(calibration) != calibration.quintile


@pytest.mark.parametrize("content", [None, b"", b"x" * 100, "other", "infinite"])
def test_what_is_no_policy_is_an_error(tmp_path, content):
    path = tmp_path / "p.safetensors"
    if content == "other":
        content = proposal.safetensors.torch.save({"weight": torch.zeros(2)})
    elif content == "infinite":
        odd = proposal.Policy()
        odd.gaps.bias.data[0] = math.nan
        content = proposal.save(odd)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"p\.safetensors holds no policy .*search\.pretrain"):
        proposal.read(path)


def ended(folder, layers):
    """The folder of a run that has chosen these codes."""
    told = {
        name: {f"{code}_code": value for code, value in zip(tap.WITH_TMAX, codes, strict=True)}
        for name, codes in layers.items()
    }
    folder.mkdir()
    (folder / store.BEST).write_text(json.dumps({"layers": told}))
    return str(folder)


def test_a_run_s_codes_keep_their_shares_of_tmax(tmp_path):
    run = ended(tmp_path / "r", {"layer0": (7, 14, 21, 28, 35), "layer1": (1, 2, 3, 4, 110)})
    assert proposal.start(run, calibrated(35, 110)) == ((7, 14, 21, 28), (1, 2, 3, 4))
    assert proposal.start(run, calibrated(70, 55)) == ((14, 28, 42, 56), (1, 2, 3, 4))
    assert proposal.start(run, calibrated(70, 55, search_tmax=True)) == ((7, 14, 21, 28, 35), (1, 2, 3, 4, 110))


def test_a_run_of_other_layers_or_none_is_an_error(tmp_path):
    run = ended(tmp_path / "r", {"conv1": (7, 14, 21, 28, 35)})
    for place in (run, str(tmp_path / "nothing")):
        with pytest.raises(InputError, match=r"--init-from: .*best\.json holds no codes .*name a run"):
            proposal.start(place, calibrated(35))
