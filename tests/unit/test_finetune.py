from dataclasses import replace

import numpy as np
import pytest
import torch

from approx_env import tap
from approx_env.adapt import finetune
from approx_env.adapt.finetune import FineTuning, Recipe
from approx_env.errors import InputError
from approx_env.int8.nodes import Weighted
from approx_env.scoring import calibration, distill
from approx_env.scoring.evaluator import Evaluator, Problem, Reward
from approx_env.teachers.checkpoint import Checkpoint

RECIPE = Recipe(epochs=2, batch_size=16)


@pytest.fixture(scope="module")
def operator(small):
    made = calibration.calibrate(small.network, [small.images])
    return {layer.name: (layer.quintile, layer.tmax) for layer in made.layers}


@pytest.fixture
def begin(small, operator):
    def make(recipe: Recipe = RECIPE, configuration=operator, **changes) -> FineTuning:
        images = (small.images, small.labels)
        return FineTuning(small.network, small.network, configuration, images, recipe, **changes)

    return make


def finished(tuning: FineTuning) -> FineTuning:
    while tuning.done < tuning.steps:
        tuning.advance()
    return tuning


def arrays(network) -> list[np.ndarray]:
    nodes = [node for node in network.nodes if isinstance(node, Weighted)]
    return [getattr(node, name) for node in nodes for name in ("weight", "bias", "multiplier")]


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(arrays(one), arrays(other), strict=True))


@pytest.mark.parametrize("epochs, steps", [(0, 0), (0.001, 1), (0.5, 2), (1, 3), (2.4, 7)])
def test_epochs_may_be_parts(begin, epochs, steps):
    assert begin(replace(RECIPE, epochs=epochs)).steps == steps


def test_a_larger_batch_than_there_are_images(begin):
    assert begin(replace(RECIPE, batch_size=1000)).steps == 2


def test_nothing_trained_is_the_start(begin, small):
    assert same(begin().student(), small.network)


def test_training_brings_the_student_nearer_to_its_teacher(small, monkeypatch):
    """Under codes that shrink all that TAP touches, on the very images that it is scored on."""
    monkeypatch.setattr(finetune, "augment", lambda pixels, *_: pixels)
    made = calibration.calibrate(small.network, [small.images])
    coarse = {layer.name: ((1, 2, 3, 4), layer.tmax) for layer in made.layers}
    images = (small.images, small.labels)
    problem = Problem(small.network, made, *images, Reward())
    tuning = FineTuning(small.network, small.network, coarse, images, Recipe(epochs=60, batch_size=48, rate=0.1))
    codes = [codes for codes, _ in coarse.values()]
    before, after = (
        Evaluator(replace(problem, student=one)).evaluate(codes) for one in (None, finished(tuning).student())
    )
    assert after.kd < 0.8 * before.kd
    for position in range(3):  # weights, biases and multipliers
        pairs = zip(arrays(tuning.student())[position::3], arrays(small.network)[position::3], strict=True)
        assert any(not np.array_equal(one, other) for one, other in pairs)


def test_pasted_images_keep_their_share_of_each_class(begin, small):
    """What CutMix does, in the share of the steps that was asked for, and with no other draw than the step's."""
    recipe = replace(RECIPE, epochs=100, cutmix=0.5)
    tuning, state = begin(recipe), torch.get_rng_state()
    pasted = 0
    for tuning.done in range(100):
        pixels, labels = tuning._drawn()
        assert pixels.dtype == torch.uint8 and labels.shape == (16, len(small.network.classes))
        torch.testing.assert_close(labels.sum(1), torch.ones(16))
        pasted += int((labels.max(1).values < 1).any())
    assert 30 < pasted < 70
    assert torch.equal(torch.get_rng_state(), state)
    assert same(*(finished(begin(replace(recipe, epochs=1, labels=True))).student() for _ in range(2)))


def test_the_same_seed_gives_the_same_student(begin):
    one, other, third = (finished(begin(replace(RECIPE, seed=seed))).student() for seed in (3, 3, 4))
    assert same(one, other)
    assert not same(one, third)


def test_labels_change_what_is_learnt(begin):
    assert not same(finished(begin()).student(), finished(begin(replace(RECIPE, labels=True))).student())


def test_learnt_codes_move_and_stay_valid(begin, operator):
    fixed, learnt = (finished(begin(replace(RECIPE, epochs=8, rate=1.0, learn_codes=on))) for on in (False, True))
    assert fixed.configuration() == operator
    assert learnt.configuration() != operator
    for (codes, tmax), (_, before) in zip(learnt.configuration().values(), operator.values(), strict=True):
        tap.check(codes, tmax)
        assert tmax == before


@pytest.mark.parametrize("away", [-20, 20])
def test_tmax_keeps_the_share_of_exact_activations(begin, operator, away):
    """From wherever it is."""
    tuning = begin(Recipe(epochs=1000, batch_size=48, rate=0.5, learn_codes=True, hold_exact=True))
    tuning._simulation.requires_grad_(False).codes.requires_grad_(True)
    before = tuning._simulation.state_dict()["_exact"].clone()
    with torch.no_grad():
        tuning._simulation.codes[:, 4] += away
    for _ in range(100):
        tuning.advance()
    tuning._simulation.hold_exact(tuning._drawn()[0])
    torch.testing.assert_close(tuning._simulation.state_dict()["_exact"], before, atol=0.03, rtol=0)


def test_without_a_tail_tmax_stays(begin, operator):
    without = {name: (codes, 255) for name, (codes, _) in operator.items()}
    recipe = replace(RECIPE, epochs=8, rate=1.0, learn_codes=True, hold_exact=True)
    learnt = finished(begin(recipe, configuration=without))
    assert {tmax for _, tmax in learnt.configuration().values()} == {255}


@pytest.mark.parametrize("learn, hold", [(False, False), (True, False), (True, True)])
def test_a_cut_off_training_ends_like_an_undisturbed_one(begin, tmp_path, capsys, learn, hold):
    checkpoint = Checkpoint(tmp_path / "c", {"whose": "mine"}, "step")
    recipe = replace(RECIPE, learn_codes=learn, hold_exact=hold)
    first = begin(recipe)
    for _ in range(4):
        first.advance()
    first.save(checkpoint)
    second = begin(recipe)
    second.resume(checkpoint)
    assert second.done == 4
    assert capsys.readouterr().out == f"resuming after step 4 from {tmp_path}/c\n"
    one, other = (finished(tuning)._simulation.state_dict() for tuning in (second, begin(recipe)))
    assert all(torch.equal(one[name], other[name]) for name in one)  # before rounding


def test_a_checkpoint_of_another_training_is_refused(begin, tmp_path):
    tuning = begin()
    tuning.advance()
    tuning.save(Checkpoint(tmp_path / "c", {"whose": "mine"}))
    with pytest.raises(InputError, match="an unfinished training with another whose"):
        begin().resume(Checkpoint(tmp_path / "c", {"whose": "yours"}))


def test_each_epoch_sees_each_image_once_and_mirrors_the_other_half(small, operator, monkeypatch):
    labels, flipped = np.arange(len(small.images)), []
    monkeypatch.setattr(finetune, "augment", lambda pixels, side, flip, *_: (flipped.append(flip), pixels)[1])
    tuning = FineTuning(small.network, small.network, operator, (small.images, labels), RECIPE, mirrored=True)
    drawn = []
    for tuning.done in range(6):
        drawn.append(tuning._drawn()[1])
    orders, mirrors = ([torch.cat(parts[k : k + 3]).tolist() for k in (0, 3)] for parts in (drawn, flipped))
    assert all(sorted(order) == labels.tolist() for order in orders)
    assert orders[0] != orders[1]
    first, second = (dict(zip(order, mirror, strict=True)) for order, mirror in zip(orders, mirrors, strict=True))
    assert all(first[image] != second[image] for image in first)


def test_kd_loss_is_the_scores():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 4, dtype=torch.float64, generator=generator)
    for temperature in (1.0, 2.0, 5.0):
        expected = distill.kd_loss(student, teacher, temperature)
        assert finetune.kd_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-12)
