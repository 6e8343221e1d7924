import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from approx_env.teachers import augment as module
from approx_env.teachers.augment import augment, flips

NEVER = torch.zeros(64, dtype=torch.bool)


def noise(count: int, side: int = 32) -> torch.Tensor:
    """Random images without a grey pixel."""
    pixels = np.random.default_rng(0).integers(0, 255, (count, 3, side, side), np.uint8)
    return torch.from_numpy(np.where(pixels >= 128, pixels + 1, pixels).astype(np.uint8))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- small images


def test_shifts_over_grey():
    pixels = noise(64)
    shifted = augment(pixels, 32, NEVER, 0, seeded(1))
    assert (shifted.shape, shifted.dtype) == (pixels.shape, torch.uint8)
    grey = torch.full((3, 40, 40), 128, dtype=torch.uint8)
    seen = set()
    for image, original in zip(shifted, pixels, strict=True):
        padded = grey.clone()
        padded[:, 4:36, 4:36] = original
        found = [(y, x) for y in range(9) for x in range(9) if torch.equal(image, padded[:, y : y + 32, x : x + 32])]
        assert len(found) == 1
        seen.add(found[0])
    assert {y for y, _ in seen} == {x for _, x in seen} == set(range(9))


def test_mirrors_where_told():
    pixels = noise(64)
    flip = torch.arange(64) % 3 == 0
    images, straight = augment(pixels, 32, flip, 0, seeded(0)), augment(pixels, 32, NEVER, 0, seeded(0))
    assert torch.equal(images[~flip], straight[~flip])
    assert torch.equal(images[flip], straight[flip].flip(3))


@pytest.mark.parametrize(("side", "images"), [(32, 8), (224, 2)])
def test_follows_its_generator(side, images):
    pixels, flip = noise(images, side), torch.arange(images) % 2 == 0
    one, two, other = (augment(pixels, side, flip, 5, seeded(seed)) for seed in (4, 4, 5))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("side", "images"), [(32, 8), (224, 2)])
def test_leaves_its_input_as_it_was(side, images):
    pixels = noise(images, side)
    before = pixels.clone()
    augment(pixels, side, torch.ones(images, dtype=torch.bool), 9, seeded(0))
    assert torch.equal(pixels, before)


# -- cutout


def test_cutout_covers_one_square_with_grey(monkeypatch):
    monkeypatch.setattr(module, "MAX_SHIFT", 0)
    pixels = noise(64)
    heights, widths = set(), set()
    for seed in range(4):
        for image, original in zip(augment(pixels, 32, NEVER, 6, seeded(seed)), pixels, strict=True):
            covered = (image == 128).all(0)
            assert torch.equal(image[:, ~covered], original[:, ~covered])
            rows, columns = covered.any(1).nonzero().flatten().tolist(), covered.any(0).nonzero().flatten().tolist()
            assert covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            for places in (rows, columns):
                assert len(places) == 6 or (len(places) < 6 and (places[0] == 0 or places[-1] == 31))
            heights.add(len(rows))
            widths.add(len(columns))
    assert heights == widths == set(range(1, 7))


@pytest.mark.parametrize("cutout", [1, 1000])
def test_smallest_and_largest_cutout(monkeypatch, cutout):
    monkeypatch.setattr(module, "MAX_SHIFT", 0)
    covered = (augment(noise(64), 32, NEVER, cutout, seeded(0)) == 128).all(1).sum((1, 2))
    if cutout == 1:
        assert covered.tolist() == [1] * 64
    else:  # the square begins above the image in 999 of 1,031 cases, and left of it as often
        assert (covered == 32 * 32).sum() > 50


def test_cutout_comes_behind_the_shift():
    plain, cut = (augment(noise(64), 32, NEVER, cutout, seeded(3)) for cutout in (0, 5))
    assert torch.equal(cut[cut != 128], plain[cut != 128])
    assert ((cut == 128) >= (plain == 128)).all()


# -- large images


def slope_of(image: torch.Tensor) -> tuple[float, float]:
    """Change a pixel downwards and to the right around the middle of a ramp, codes."""
    part = image[0, 82:142, 82:142].double()
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing="ij")
    design = torch.stack([y.flatten(), x.flatten(), torch.ones(3600)], 1).double()
    down, right, _ = torch.linalg.lstsq(design, part.reshape(-1, 1)).solution.flatten().tolist()
    return down, right


def test_large_images_are_resized_and_turned_together():
    ramp = torch.arange(256, dtype=torch.uint8).expand(2, 3, 256, 256)
    sides, angles = [], []
    for seed in range(8):
        images = augment(ramp, 224, NEVER[:2], 0, seeded(seed))
        assert (images.shape, images.dtype) == ((2, 3, 224, 224), torch.uint8)
        (down, right), other = slope_of(images[0]), slope_of(images[1])
        assert other == pytest.approx((down, right), abs=0.01)  # one draw for the batch
        assert not torch.equal(images[0], images[1])  # each has its own crop
        sides.append(256 / math.hypot(down, right))
        angles.append(math.degrees(math.atan2(down, right)))
    nearest = [min((256, 296, 384), key=lambda side: abs(side - found)) for found in sides]
    assert sides == pytest.approx(nearest, rel=0.02)
    assert set(nearest) == {256, 296, 384}
    assert all(-10.5 < angle < 10.5 for angle in angles)
    assert min(angles) < -5 and max(angles) > 5


def test_turned_images_have_grey_corners():
    black = torch.zeros(2, 3, 256, 256, dtype=torch.uint8)
    images = torch.cat([augment(black, 224, NEVER[:2], 0, seeded(seed)) for seed in range(4)])
    assert images.max() == 128
    assert (images[:, :, 112, 112] == 0).all()
    grey = (images == 128).all(1)
    assert grey.any() and not grey[:, 30:-30, 30:-30].any()


def test_crops_of_large_images_lie_anywhere(monkeypatch):
    monkeypatch.setattr(module, "MAX_TURN", 0)
    monkeypatch.setattr(module, "SIDES", (256,))
    across = torch.arange(256, dtype=torch.uint8).expand(8, 1, 256, 256)
    pixels = torch.cat([across, across.mT, across], 1)
    corners = torch.cat([augment(pixels, 224, NEVER[:8], 0, seeded(seed))[:, :, 0, 0] for seed in range(10)]).int()
    assert torch.equal(corners[:, 0], corners[:, 2])
    for places in (corners[:, 0], corners[:, 1]):
        assert 0 <= places.min() <= 3 and 29 <= places.max() <= 32
    assert not torch.equal(corners[:, 0], corners[:, 1])


# -- mirroring over the epochs


@given(st.integers(0, 300), st.integers(0, 50), st.integers(0, 2**31))
@settings(max_examples=30)
def test_flips_alternate(count, epoch, seed):
    now = flips(count, epoch, seed)
    assert (now.shape, now.dtype) == ((count,), torch.bool)
    assert torch.equal(flips(count, epoch + 1, seed), ~now)
    assert torch.equal(flips(count, epoch + 2, seed), now)


def test_flips_are_a_random_half():
    chosen = [flips(1000, 0, seed) for seed in range(4)]
    assert all(440 < flip.sum() < 560 for flip in chosen)
    assert not torch.equal(chosen[0], chosen[1])
