"""Training a policy over problems: what the problems are, that it learns, and that a seed says what."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from approx_env.scoring.evaluator import Evaluator
from search import pretrain, proposal
from search.pretrain import Source

POLICY = "0c5bdb9f68a19e4574a0a20830c47825ad27b77d7de209eae609bac496d651eb"  # SHA-256 of what 4 iterations leave


@pytest.fixture(scope="module")
def source(problem) -> Source:
    return Source("few", problem.network, problem.calibration, problem.images, problem.labels)


def trained(source, iterations, seed=0):
    return list(pretrain.train([source], iterations, seed))


def test_a_problem_is_some_of_the_images_under_another_tmax(source, monkeypatch):
    monkeypatch.setattr(pretrain, "IMAGES", 16)
    made = [source.problem(np.random.default_rng(seed)) for seed in range(8)]
    assert {len(one.images) for one in made} == {len(one.labels) for one in made} == {16}
    assert len({one.calibration.tmax for one in made}) > 1
    for one in made:
        assert one.calibration.valid(one.calibration.quintile)
        for image, label in zip(one.images, one.labels, strict=True):
            (place,) = [k for k, other in enumerate(source.images) if np.array_equal(image, other)]
            assert label == source.labels[place]


def test_a_seed_says_what_is_learnt(source):
    (first, _), (again, _), (other, _) = (trained(source, 2, seed)[-1] for seed in (0, 0, 1))
    assert proposal.save(first) == proposal.save(again) != proposal.save(other)


def test_it_proposes_better_codes_than_quintile_for_what_it_has_learnt(source, problem):
    (policy, _) = trained(source, 30)[-1]
    evaluator = Evaluator(problem)
    found, quintile = (
        evaluator.evaluate(codes).return_
        for codes in (policy.propose(problem.calibration), problem.calibration.quintile)
    )
    assert found > quintile


def test_the_objective_is_clipped(source):
    """Where a ratio is beyond the clip on the side of its advantage, there is nothing to gain."""
    policy = proposal.Policy()
    seen = proposal.observed(source.calibration)
    with torch.no_grad():
        mean = policy(seen)
    drawn = (mean + 0.3).unsqueeze(0)
    for before, moves in ((mean, True), (mean - 0.3, False)):  # the ratio is 1; it is far above 1
        sample = pretrain.Sample(seen, drawn, before, torch.ones(1, dtype=torch.float64))
        policy.zero_grad()
        pretrain._loss(policy, sample, 0.3).backward()
        assert (policy.gaps.bias.grad.abs().sum() > 0) == moves


def test_a_teacher_is_a_problem_for_each_choice_of_sites_that_differs():
    assert [len(each.calibration.layers) for each in pretrain.sources(["squeezenet_compact"], None)] == [
        len(each.problem.network.layers) for each in pretrain.prepared("squeezenet_compact", None)
    ]
    assert len(pretrain.sources(["alexnet"], None)) == 1
    assert len(pretrain.sources(["squeezenet"], None)) == 2


def test_the_command_writes_a_policy(tmp_path, capsys, source, monkeypatch):
    monkeypatch.setattr(pretrain, "sources", lambda teachers, data_dir: [source])
    output = tmp_path / "p.safetensors"
    assert pretrain.main(["--iterations", "2", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "iteration 2 of 2: losses " in printed and f"policy in {output}" in printed
    assert proposal.save(proposal.read(output)) == proposal.save(trained(source, 2)[-1][0])


def test_the_policy_has_the_same_bits_on_every_cpu(tmp_path):
    """Also where the environment names kernels that round in another way."""
    output = tmp_path / "p.safetensors"
    command = [sys.executable, "-m", "search.pretrain", "--teachers", "squeezenet_compact", "--iterations", "4"]
    kernels = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "OPENBLAS_CORETYPE": "Haswell"}
    subprocess.run([*command, "--output", output], check=True, capture_output=True, env=os.environ | kernels)
    assert hashlib.sha256(output.read_bytes()).hexdigest() == POLICY


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--teachers resnet18", ["resnet18"]),
        ("--teachers alexnet,alexnet", ["--teachers", "different"]),
        ("--teachers none.int8.json", ["none.int8.json"]),
        ("--iterations 0", ["--iterations"]),
        ("--output missing/p.safetensors", ["--output", "missing"]),
    ],
)
def test_bad_input_is_one_clear_error(arguments, names, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pretrain.main(arguments.split()) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert all(name in line for name in names)
    assert list(tmp_path.iterdir()) == []


def test_all_datasets_weigh_the_same(source):
    found = [source, replace(source, dataset="other"), source]
    assert pretrain._weights(found).tolist() == [0.25, 0.5, 0.25]
