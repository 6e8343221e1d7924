import math

import numpy as np
import pytest
import torch

from approx_env.scoring import distill


def test_kd_of_equal_logits_is_zero():
    logits = torch.tensor([[1.0, -2.0, 3.5], [0.0, 0.0, 0.0]])
    assert distill.kd_loss(logits, logits.clone()) == 0.0


def test_kd_by_hand():
    # Teacher / 2: (ln 3, 0), softmax (3/4, 1/4); student: even.
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]).double(), torch.zeros(1, 2)
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert distill.kd_loss(student, teacher) == pytest.approx(expected)
    swapped = 4 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert distill.kd_loss(teacher, student) == pytest.approx(swapped)


def test_kd_takes_its_temperature_and_the_mean_over_images():
    teacher = torch.tensor([[math.log(3), 0.0], [5.0, 5.0]]).double()
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert distill.kd_loss(torch.zeros(2, 2), teacher, temperature=1.0) == pytest.approx(expected)


def test_error_of_a_drop_by_hand():
    """Of 8 images the teacher alone gets 2, the student alone 1: with half an image more of each kind 2.5, 1.5, 10."""
    labels = np.zeros(8, int)
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    teacher = np.array([right, right, right, right, right, wrong, wrong, wrong])
    student = np.array([right, right, right, wrong, wrong, right, wrong, wrong])
    assert distill.drop_error_points(student, teacher, labels) == 100 * math.sqrt(4 - 1 / 10) / 10
    assert distill.drop_error_points(teacher, student, labels) == distill.drop_error_points(student, teacher, labels)


def test_error_of_no_drop_is_not_nothing():
    logits = torch.eye(2).repeat(50, 1)
    error = distill.drop_error_points(logits, logits, np.zeros(100, int))
    assert error == 100 * math.sqrt(1) / 102


def test_attention_distance_by_hand():
    student = torch.tensor([[5, 0], [6, 8], [0, 0], [0, 0], [3, 4]])
    teacher = torch.tensor([[0, 7], [3, 4], [9, 0], [0, 0], [4, 3]])
    # Maps (1, 0) and (0, 1); the same map twice; one of zeros; both; and (0.6, 0.8) with (0.8, 0.6).
    expected = [2.0, 0.0, 1.0, 0.0, pytest.approx(2 - 2 * 0.96)]
    assert distill.attention_distances(student, teacher).tolist() == expected


def test_energies_of_any_size_are_exact():
    huge = torch.full((1, 1000), 2**25)
    other = huge.clone()
    other[0, 0] += 1
    assert distill.attention_distances(huge, huge.clone()).tolist() == [0.0]
    assert distill.attention_distances(huge, other)[0] < 1e-15


def test_order_and_chunks_do_not_matter():
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(0, 9, (2, 501, 10))
    order = generator.permutation(501)
    assert distill.kd_loss(student, teacher) == distill.kd_loss(student[order], teacher[order])
    labels = generator.integers(0, 10, 501)
    assert distill.soft_accuracy(student, labels) == distill.soft_accuracy(student[order], labels[order])


def test_hard_accuracy_counts_the_first_of_equal_logits():
    logits = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 5.0], [5.0, 5.0]])
    assert distill.hard_accuracy(logits, torch.tensor([1, 1, 0, 1])) == 0.5


def test_soft_accuracy_by_hand():
    logits = torch.tensor([[math.log(3) / 8, 0.0], [0.0, 0.0]]).double()
    assert distill.soft_accuracy(logits, torch.tensor([0, 1])) == pytest.approx((0.75 + 0.5) / 2)
    assert distill.soft_accuracy(logits, torch.tensor([1, 1])) == pytest.approx((0.25 + 0.5) / 2)
