import numpy as np
from numba.core import caching


import pytest

from approx_env.engines.vector import kernels, simd


def test_tap():
    x = np.array([0, 7, 8, 21, 22, 35, 36, 255], np.uint8)
    y = np.full_like(x, 99)
    kernels.tap(x, y, *(np.uint8(code) for code in (7, 14, 21, 28, 35)))
    assert y.tolist() == [0, 0, 14, 14, 28, 28, 36, 255]


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_scaled_additions_round_halves_up_and_cut(kind):
    a, b = np.array([1, 1, 3, 200, 0], kind), np.array([0, -(2**15), 2**15, 60 * 2**16, -(2**40)])
    y = np.empty(5, np.uint8)
    kernels.add_scaled(a, b, y, 2**16, 1)
    assert y.tolist() == [1, 1, 4, 255, 0]  # 1, 0.5, 3.5, 260 and below 0


def test_max_pool_cuts_windows_at_the_border():
    x = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    y = np.empty((1, 2, 2, 1), np.uint8)
    kernels.max_pool(x, y, 3, 2)
    assert y[0, :, :, 0].tolist() == [[10, 11], [14, 15]]


def test_max_pool_keeps_channels_apart():
    x = np.array([[[1, 200], [2, 0]], [[3, 5], [0, 7]]], np.uint8)[None]
    y = np.empty((1, 1, 1, 2), np.uint8)
    kernels.max_pool(x, y, 2, 2)
    assert y.reshape(-1).tolist() == [3, 200]


def test_energy_is_the_sum_of_squares_of_each_row():
    q = np.empty(3, np.float32)
    kernels.energy(np.array([[3, 4], [0, 0], [255, 255]], np.uint8), q)
    assert q.tolist() == [25, 0, 130050]


def test_tally_weighs_positions_and_adds_to_what_is_there():
    x = np.array([[[0, 5, 9], [10, 20, 21]]], np.uint8)  # two positions of three channels
    counts = np.array([1, 0, 0, 0], np.int64)
    kernels.tally(x, np.uint8(0), np.uint8(9), np.uint8(20), np.array([1, 10], np.int64), counts)
    assert counts.tolist() == [1 + 1, 2, 20, 10]


def test_tally_counts_more_channels_than_a_byte_holds():
    x = np.zeros((1, 1, 1000), np.uint8)
    counts = np.zeros(4, np.int64)
    kernels.tally(x, np.uint8(0), np.uint8(1), np.uint8(2), np.array([3], np.int64), counts)
    assert counts.tolist() == [3000, 0, 0, 0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_step_that_raises_ends_the_run():
    def no_memory(arguments, images, a, b, y):
        if images > 1:
            raise MemoryError
        return 1

    row = np.array([[simd.step(no_memory).address, 0, 0, 0]], np.int64)
    kernels.run(row, 2, 1, np.zeros(1, np.int64), np.zeros(1, np.int64))
    with pytest.raises(MemoryError, match="a step of the network has found no memory"):
        kernels.run(row, 2, 2, np.zeros(1, np.int64), np.zeros(1, np.int64))


def test_code_on_disk_is_that_of_this_text_of_the_vector_instructions(monkeypatch, tmp_path):
    """numba keeps compiled code beside the function's file, and knows that file alone."""
    monkeypatch.setattr(caching.config, "CACHE_DIR", str(tmp_path))

    def double(x):
        return 2 * x

    assert simd.compiled(double)(4) == 8
    hits = []
    for digest in (simd._Cache.digest, "another", "another"):
        monkeypatch.setattr(simd._Cache, "digest", digest)
        again = simd.compiled(double)
        assert again(4) == 8
        hits.append(sum(again.stats.cache_hits.values()))
    assert hits == [1, 0, 1]
