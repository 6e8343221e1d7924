"""Correction by hand: on a network of one channel, whose codes are pixel - 128."""

from dataclasses import replace

import numpy as np
import pytest

from approx_env.adapt import correction
from approx_env.engines import reference
from approx_env.int8.nodes import Weighted
from approx_env.scoring import calibration

METHODS = pytest.mark.parametrize("method", correction.METHODS)


def pictures(*codes: int) -> np.ndarray:
    """24 images of 1x8 pixels that have these codes, mixed."""
    return np.random.default_rng(0).choice(np.array(codes) + 128, (24, 1, 1, 8)).astype(np.uint8)


def calibrated(network, images, tmax: int = 40) -> calibration.Calibration:
    made = calibration.calibrate(network, [images])
    return replace(made, layers=tuple(replace(layer, tmax=tmax) for layer in made.layers))


def numbers(network) -> list:
    return [(node.multiplier.tolist(), node.bias.tolist()) for node in network.nodes if isinstance(node, Weighted)]


def logits(network, images, codes=None, tmax: int = 40) -> np.ndarray:
    return reference.forward(network, images, {"ramp": (codes, tmax)} if codes else None)["linear"]


@METHODS
def test_a_constant_shift_is_taken_back(ramp, method):
    """Codes 10 and 30 become 12 and 32: eight inputs of weight 1 add 16 too much."""
    images, codes = pictures(10, 30), (5, 12, 20, 32)
    student = correction.correct(ramp, calibrated(ramp, images), [codes], images, method)
    assert numbers(student) == [([2**16], [0]), ([2**19] * 2, [-16] * 2)]
    assert np.array_equal(logits(student, images, codes), logits(ramp, images))


@pytest.mark.parametrize("method", ["deviation", "least-squares"])
def test_a_squeeze_is_taken_back(ramp, method):
    """Codes 10 and 30 become 5 and 15."""
    images, codes = pictures(10, 30), (4, 5, 12, 15)
    student = correction.correct(ramp, calibrated(ramp, images), [codes], images, method)
    assert numbers(student) == [([2**16], [0]), ([2**20] * 2, [0] * 2)]
    assert np.array_equal(logits(student, images, codes), logits(ramp, images))


def test_the_mean_alone_keeps_the_multiplier(ramp):
    images, codes = pictures(10, 30), (4, 5, 12, 15)
    student = correction.correct(ramp, calibrated(ramp, images), [codes], images, "mean")
    _, (multiplier, bias) = numbers(student)
    assert multiplier == [2**19] * 2
    assert bias == [round(float((images.astype(int) - 128).sum((1, 2, 3)).mean()) / 2)] * 2


def test_least_squares_trusts_noise_less_than_the_deviation_does(ramp):
    """Every code but the highest becomes v1 or v2, so that much of what differs is lost."""
    images, codes = pictures(8, 14, 20, 26, 32), (4, 10, 15, 30)
    gains = {}
    for method in ("deviation", "least-squares"):
        student = correction.correct(ramp, calibrated(ramp, images), [codes], images, method)
        gains[method] = numbers(student)[1][0][0] / 2**19
    assert 0 < gains["least-squares"] < gains["deviation"]


@METHODS
@pytest.mark.parametrize("codes", [(2, 4, 60), (0, 40, 41, 90)])
def test_operators_that_change_nothing_change_nothing(ramp, method, codes):
    """Under (1, 2, 3, 4) and tmax 4 the codes 2 and 4 stay; under (10, 11, 12, 40) and tmax 40 the code 40 does."""
    images = pictures(*codes)
    tmax, quadruple = (4, (1, 2, 3, 4)) if 2 in codes else (40, (10, 11, 12, 40))
    student = correction.correct(ramp, calibrated(ramp, images, tmax), [quadruple], images, method)
    assert numbers(student) == numbers(ramp)


@METHODS
def test_a_channel_that_never_varies_keeps_its_numbers(ramp, method):
    images = pictures(10)
    student = correction.correct(ramp, calibrated(ramp, images), [(5, 12, 20, 32)], images, method)
    assert numbers(student) == numbers(ramp)


def test_only_readers_of_approximated_codes_change(small):
    made = calibration.calibrate(small.network, [small.images])
    student = correction.correct(small.network, made, made.quintile, small.images)
    first, *others = zip(numbers(small.network), numbers(student), strict=True)
    assert first[0] == first[1]
    assert all(teacher != corrected for teacher, corrected in others)
    for teacher, corrected in zip(small.network.nodes, student.nodes, strict=True):
        kept = ("name", "inputs", "scale", "logits", "relu")
        assert all(getattr(teacher, part, None) == getattr(corrected, part, None) for part in kept)
        assert isinstance(teacher, Weighted) or corrected is teacher


@METHODS
def test_means_agree_behind_every_layer(small, method):
    """To the rounding of a bias: half a unit of a product."""
    made = calibration.calibrate(small.network, [small.images])
    student = correction.correct(small.network, made, made.quintile, small.images, method)
    configuration = {layer.name: (layer.quintile, layer.tmax) for layer in made.layers}
    exact = reference.forward(small.network, small.images)
    approximated = reference.forward(student, small.images, configuration)
    for teacher, corrected in zip(small.network.nodes, student.nodes, strict=True):
        if isinstance(teacher, Weighted):
            means, spread = [], []
            for node, outputs in ((teacher, exact), (corrected, approximated)):
                plain = replace(node, logits=True, relu=False)
                value = reference.weighted(small.network, plain, outputs[node.inputs[0]])
                axes = tuple(axis for axis in range(value.ndim) if axis != 1)
                means.append(value.mean(axes))
                spread.append(value.std(axes))
            varies = np.minimum(*spread) > 0
            assert (np.abs(means[0] - means[1])[varies] <= corrected.multiplier[varies] * 0.5001).all(), teacher.name


def test_more_images_than_a_chunk_are_seen(small, monkeypatch):
    made = calibration.calibrate(small.network, [small.images])
    whole = correction.correct(small.network, made, made.quintile, small.images)
    monkeypatch.setattr(correction, "CHUNK", 5)
    assert numbers(correction.correct(small.network, made, made.quintile, small.images)) == numbers(whole)


def test_bad_arguments(ramp):
    images = pictures(10, 30)
    made = calibrated(ramp, images)
    with pytest.raises(ValueError, match="^a correction must be one of mean, deviation, least-squares, got 'median'$"):
        correction.correct(ramp, made, [(1, 2, 3, 4)], images, "median")
    with pytest.raises(ValueError, match=r"^there must be tmax and codes for each of \('ramp',\), got 2 codes$"):
        correction.correct(ramp, made, [(1, 2, 3, 4)] * 2, images)
    renamed = replace(made, layers=(replace(made.layers[0], name="other"),))
    with pytest.raises(ValueError, match=r"^there must be tmax and codes for each of \('ramp',\)"):
        correction.correct(ramp, renamed, [(1, 2, 3, 4)], images)
    with pytest.raises(ValueError, match="^codes must satisfy"):
        correction.correct(ramp, made, [(4, 3, 2, 1)], images)


def test_a_convolution_behind_a_pool_reads_what_it_read(networks, digits):
    """TAP goes behind the pool while statistics are taken, and that must not be seen in the student."""
    network = networks["alexnet"]
    images, _ = digits.load("calibration", 16)
    made = calibration.calibrate(network, [images])
    student = correction.correct(network, made, made.quintile, images)
    assert [node.inputs for node in student.nodes] == [node.inputs for node in network.nodes]
    assert student.shapes == network.shapes
