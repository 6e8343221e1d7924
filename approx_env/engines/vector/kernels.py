"""Fast loops over uint8 codes in channels-last memory; each has a slow twin in `tap.py` or `reference.py`.

The loops are branch-free over the innermost, contiguous axis, so that numba's LLVM turns them into vector
instructions. They release the GIL and run on the calling thread alone.
"""

from __future__ import annotations

import numpy as np

from approx_env.engines.vector import simd
from approx_env.int8.nodes import HALF, SHIFT

_compiled = simd.compiled
HEAD = 4  # numbers of a row of `run` before its arguments


@_compiled
def run(rows, images, together, addresses, sizes):
    """Carries out steps, one after the other, on so many of `images` images together.

    Each row of `rows (n, p) int64` holds the address of a step's code (`simd.step`), the places in `addresses (m,)
    int64` of two inputs and of the output, and the code's arguments. `sizes (m,) int64` are the bytes from one image
    to the next; 0 of memory that all images use in turn.

    Raises:
        MemoryError: a step has raised; steps raise nothing else.
    """
    for first in range(0, images, together):
        count = min(together, images - first)
        for k in range(rows.shape[0]):
            a, b, y = rows[k, 1], rows[k, 2], rows[k, 3]
            done = simd.call(rows[k, 0], rows[k].ctypes.data + 8 * HEAD, count, addresses[a] + first * sizes[a],
                             addresses[b] + first * sizes[b], addresses[y] + first * sizes[y])  # fmt: skip
            if done != 1:
                raise MemoryError("a step of the network has found no memory")


@_compiled
def tap(x, y, t1, v1, t2, v2, tmax):
    """Writes TAP of `x (n,) uint8` into `y (n,) uint8`; the five codes are `np.uint8`."""
    for i in range(x.size):
        code = x[i]
        result = code
        if code <= tmax:
            result = v2
        if code <= t2:
            result = v1
        if code <= t1:
            result = np.uint8(0)
        y[i] = result


@_compiled
def look_up(x, y, values):
    """Writes the entry of `values (256,) uint8` for each code of `x (n,) uint8` into `y (n,) uint8`."""
    for i in range(x.size):
        y[i] = values[x[i]]


@_compiled
def histogram(x, weights, counts):
    """Adds to `counts (256,) int64` how often each code of `x (n, p, c) uint8` comes, times its row's weight."""
    for n in range(x.shape[0]):
        for p in range(x.shape[1]):
            for c in range(x.shape[2]):
                counts[x[n, p, c]] += weights[p]


@_compiled
def add(a, b, y):
    """Writes `a + b`, at most 255, into `y`; all `(n,) uint8`."""
    for i in range(a.size):
        total = np.uint8(a[i] + b[i])
        y[i] = total if total >= a[i] else np.uint8(255)


@_compiled
def add_scaled(a, b, y, first, second):
    """Writes codes of `a * first + b * second` into `y (n,) uint8`; `a` and `b` are uint8 or int64, factors int64."""
    for i in range(a.size):
        code = (np.int64(a[i]) * first + np.int64(b[i]) * second + HALF) >> SHIFT
        y[i] = min(max(code, 0), 255)


@_compiled
def max_pool(x, y, kernel, stride):
    """Writes the maximum of each window of `x (n, h, w, c) uint8` into `y (n, i, j, c) uint8`.

    Windows begin at multiples of `stride` and are cut at the border (that is 'ceil mode' where `y` says so).
    """
    count, height, width, channels = x.shape
    for n in range(count):
        for i in range(y.shape[1]):
            top, rows = i * stride, min(kernel, height - i * stride)
            for j in range(y.shape[2]):
                left, columns = j * stride, min(kernel, width - j * stride)
                if channels >= simd.POOLED:
                    source = x.ctypes.data + ((n * height + top) * width + left) * channels
                    target = y.ctypes.data + ((n * y.shape[1] + i) * y.shape[2] + j) * channels
                    for begin in range(0, channels, simd.POOLED):
                        c = min(begin, channels - simd.POOLED)
                        simd.window_maximum(source + c, rows, width * channels, columns, channels, target + c)
                    continue
                for c in range(channels):
                    highest = np.uint8(0)
                    for row in range(top, top + rows):
                        for column in range(left, left + columns):
                            highest = max(highest, x[n, row, column, c])
                    y[n, i, j, c] = highest


@_compiled
def average_pool(x, y, kernel, stride):
    """Writes the mean of each window of `x (n, h, w, c) uint8`, halves rounded up, into `y (n, i, j, c) uint8`."""
    places = kernel * kernel
    sums = np.empty(x.shape[3], np.int64)
    for n in range(x.shape[0]):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                sums[:] = places // 2
                for row in range(i * stride, i * stride + kernel):
                    for column in range(j * stride, j * stride + kernel):
                        for c in range(sums.size):
                            sums[c] += x[n, row, column, c]
                for c in range(sums.size):
                    y[n, i, j, c] = sums[c] // places


@_compiled
def average(x, y, rounded):
    """Writes the sum over places of `x (n, p, c)` into `y (n, c)`; `rounded` asks for the mean, halves rounded up."""
    images, places, channels = x.shape
    sums = np.empty(channels, np.int64)
    for n in range(images):
        sums[:] = places // 2 if rounded else 0
        for p in range(places):
            for c in range(channels):
                sums[c] += x[n, p, c]
        for c in range(channels):
            y[n, c] = sums[c] // places if rounded else sums[c]


@_compiled
def energy(x, q):
    """Writes the sum over channels of the squared codes of `x (n, c) uint8` into `q (n,) int64`."""
    for i in range(x.shape[0]):
        total = np.int32(0)
        for c in range(x.shape[1]):
            code = np.int32(x[i, c])
            total += code * code
        q[i] = total


@_compiled
def tally(x, low, middle, high, weights, counts):
    """Adds to `counts (4,) int64` how many codes are 0..low, ..middle, ..high and above, times their row's weight.

    `x (n, p, c) uint8` are codes, `weights (p,) int64` the multiplications in which each code of a position takes
    part. Partial sums over 128 channels fit a byte, so that the compiler counts 32 codes at a time.
    """
    one, zero = np.uint8(1), np.uint8(0)
    for n in range(x.shape[0]):
        for p in range(x.shape[1]):
            row = x[n, p]
            in_low, in_middle, in_high = 0, 0, 0
            for start in range(0, row.size, 128):
                part = row[start : min(start + 128, row.size)]
                a, b, d = zero, zero, zero
                for c in range(part.size):
                    code = part[c]
                    a = np.uint8(a + (one if code <= low else zero))
                    b = np.uint8(b + (one if code <= middle else zero))
                    d = np.uint8(d + (one if code <= high else zero))
                in_low += np.int64(a)
                in_middle += np.int64(b)
                in_high += np.int64(d)
            weight = weights[p]
            counts[0] += weight * in_low
            counts[1] += weight * (in_middle - in_low)
            counts[2] += weight * (in_high - in_middle)
            counts[3] += weight * (row.size - in_high)


@_compiled
def approximate(x, y, codes, weights, counts, q):
    """Writes TAP of `x (n, p, c) uint8` into `y`, and takes its `tally` and `energy` while it is in the cache.

    `codes` are t1, v1, t2, v2, tmax as uint8. `weights` is empty where nothing is counted, and `q (n, p) int64`
    where no energy is asked for.
    """
    t1, v1, t2, v2, tmax = codes
    for n in range(x.shape[0]):
        tap(x[n].reshape(-1), y[n].reshape(-1), t1, v1, t2, v2, tmax)
        if weights.size:
            tally(y[n : n + 1], np.uint8(0), v1, tmax, weights, counts)
        if q.size:
            energy(y[n], q[n])


@_compiled
def approximate_avx2(x, y, codes, weights, counts, q):
    """The same as `approximate`, where channels come in 32s, for CPUs with AVX2."""
    places, channels = x.shape[1:]
    counted, squares = np.empty(12, np.int64), np.empty(8, np.int32)
    most = 1 if q.size else simd.LONGEST // channels  # rows that are counted together, if their weights are the same
    for n in range(x.shape[0]):
        end = 0
        while end < places:
            p, end = end, end + 1
            while end < min(p + most, places) and (weights.size == 0 or weights[end] == weights[p]):
                end += 1
            source, target, length = x[n, p].ctypes.data, y[n, p].ctypes.data, (end - p) * channels
            if q.size:
                simd.approximate_with_energy(
                    source, target, length, codes.ctypes.data, counted.ctypes.data, squares.ctypes.data
                )
                total = 0
                for part in squares:
                    total += part
                q[n, p] = total
            else:
                simd.approximate(source, target, length, codes.ctypes.data, counted.ctypes.data)
            if weights.size:
                before = 0
                for kind in range(3):
                    up_to = counted[4 * kind] + counted[4 * kind + 1] + counted[4 * kind + 2] + counted[4 * kind + 3]
                    counts[kind] += weights[p] * (up_to - before)
                    before = up_to
                counts[3] += weights[p] * (length - before)
