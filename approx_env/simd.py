"""AVX2 vectors for numba: the inner loops of `convolution.py`, written as LLVM instructions.

Numba has no integer dot products; these functions put them, and the transforms around them, into the code that it
compiles. All arguments are 64-bit integers, most of them addresses, and all steps are in bytes. 16 output channels
are two registers of eight int32, in the order of `LANES`, which the instructions that narrow them to bytes undo.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

CHANNELS = 16  # output channels in a block
POOLED = 32  # channels that `window_maximum` takes
LONGEST = 8160  # codes that `approximate` counts in bytes
LANES = (0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15)  # the channel of each int32 of a block
ROWS = 6  # rows of activations that one product takes: 12 registers of sums, out of 16
FEW_ROWS = 4  # the same where rows come in fours
TILE, OUTPUT_TILE = 6, 4  # sides of a Winograd tile: 6 x 6 inputs give 4 x 4 outputs
INVERSE_OF_9 = 954_437_177  # modulo 2**32

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
BYTES, MANY_BYTES = ir.VectorType(I8, 16), ir.VectorType(I8, 32)
SHORTS, FEW_SHORTS = ir.VectorType(I16, 16), ir.VectorType(I16, 8)
WORDS, FLOATS = ir.VectorType(I32, 8), ir.VectorType(ir.FloatType(), 8)
FOUR = ir.VectorType(I64, 4)


@intrinsic
def window_maximum(typingctx, source, rows, row_step, columns, column_step, out):
    """Writes the maximum over a window of `rows` x `columns` places of 32 neighbouring uint8."""
    return _writes(6, _window_maximum)


@intrinsic
def approximate(typingctx, x, y, length, codes, counts):
    """Writes TAP of `length` uint8, a multiple of 32, below 8,192, and how many are at most t1, t2, tmax.

    `codes` points at t1, v1, t2, v2, tmax as uint8, `counts` at four times three int64, whose sums count.
    """
    return _writes(5, lambda *arguments: _approximate(False, *arguments, None))


@intrinsic
def approximate_with_energy(typingctx, x, y, length, codes, counts, energy):
    """The same, and the squares of the results, added up in eight int32 at `energy`."""
    return _writes(6, lambda *arguments: _approximate(True, *arguments))


@intrinsic
def transform_input(typingctx, sources, channel, out, step):
    """Writes B^T d B of 16 channels of a tile: 36 vectors of int16, `step` apart, from the addresses at `sources`."""
    return _writes(4, _transform_input)


@intrinsic
def multiply_shorts(typingctx, rows, row_step, weight, steps, out):
    """Multiplies 6 rows of int16 by int16 weights of 16 channels; writes `(6, 16) int32`, sums modulo 2**32.

    `steps` pairs of inputs are multiplied, two pairs at a time; `weight` holds `(steps, 16, 2)`.
    """
    return _writes(5, _multiply_shorts)


@intrinsic
def transform_output(typingctx, sums, step, bias, multiplier, targets, channel):
    """Turns 36 blocks of int32, `step` apart, into 4 x 4 blocks of codes, at the addresses at `targets`."""
    return _writes(6, _transform_output)


@intrinsic
def multiply_codes(typingctx, rows, row_step, steps, offsets, weight, bias, multiplier, out, out_step):
    """Multiplies 6 rows of uint8 by int8 weights of 16 channels, and writes the codes of the result.

    Step k multiplies the four inputs at `offsets[k]` (int32) of each row; `weight` holds `(steps, 16, 4)`.
    """
    return _writes(9, lambda *arguments: _multiply_codes(ROWS, *arguments))


@intrinsic
def multiply_few_codes(typingctx, rows, row_step, steps, offsets, weight, bias, multiplier, out, out_step):
    """The same as `multiply_codes` for 4 rows."""
    return _writes(9, lambda *arguments: _multiply_codes(FEW_ROWS, *arguments))


def _writes(count: int, body: Callable):
    """What numba asks of an intrinsic: a signature of `count` integers, and a function that writes its code."""

    def codegen(context, builder, signature, arguments):
        body(_Code(builder), *arguments)
        return context.get_dummy_value()

    return types.void(*[types.int64] * count), codegen


class _Code:
    """An LLVM builder with the few operations that are needed here."""

    def __init__(self, builder: ir.IRBuilder):
        self.builder = builder

    def load(self, kind: ir.Type, address, offset=0):
        return self.builder.load(self._pointer(kind, address, offset), align=1)

    def store(self, value, address, offset=0) -> None:
        self.builder.store(value, self._pointer(value.type, address, offset), align=1)

    def times(self, value, factor: int):
        return self.builder.mul(value, _constant(value.type, factor))

    def sum(self, first, *rest):
        for value in rest:
            first = self.builder.add(first, value)
        return first

    def minus(self, a, b):
        return self.builder.sub(a, b)

    def call(self, name: str, result: ir.Type, *arguments):
        """Calls an LLVM intrinsic."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def spread(self, kind: ir.VectorType, address, offset):
        """Four bytes of memory, again and again."""
        undefined = ir.Constant(WORDS, ir.Undefined)
        first = self.builder.insert_element(undefined, self.load(I32, address, offset), ir.Constant(I32, 0))
        return self.builder.bitcast(self.builder.shuffle_vector(first, undefined, _constant(WORDS, 0)), kind)

    def loop(self, count, stride: int, starts: Sequence, body: Callable) -> list:
        """`values = body(i, values)` for i = 0, stride, .. below `count`, which is positive; gives the last values."""
        builder = self.builder
        before, inside, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.branch(inside)
        builder.position_at_end(inside)
        i = builder.phi(I64)
        i.add_incoming(ir.Constant(I64, 0), before)
        values = [builder.phi(start.type) for start in starts]
        results = body(i, values)
        following, last = builder.add(i, ir.Constant(I64, stride)), builder.block  # the body may have had loops
        i.add_incoming(following, last)
        for value, start, result in zip(values, starts, results, strict=True):
            value.add_incoming(start, before)
            value.add_incoming(result, last)
        builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
        builder.position_at_end(after)
        return results

    def codes(self, low, high, bias, multiplier):
        """Requantises 16 sums: round((sum + bias) * multiplier), cut to 0..255."""
        rounded = []
        for part, sums in enumerate((low, high)):
            value = self.builder.sitofp(self.sum(sums, self.load(WORDS, bias, 32 * part)), FLOATS)
            value = self.builder.fmul(value, self.load(FLOATS, multiplier, 32 * part))
            rounded.append(self.call("llvm.x86.avx.cvt.ps2dq.256", WORDS, value))
        narrow = self.call("llvm.x86.avx2.packssdw", SHORTS, *rounded)
        halves = [
            self.builder.shuffle_vector(narrow, narrow, ir.Constant(ir.VectorType(I32, 8), list(range(k, k + 8))))
            for k in (0, 8)
        ]
        return self.call("llvm.x86.sse2.packuswb.128", BYTES, *halves)

    def _pointer(self, kind: ir.Type, address, offset):
        offset = ir.Constant(I64, offset) if isinstance(offset, int) else offset
        return self.builder.inttoptr(self.builder.add(address, offset), kind.as_pointer())


def _constant(kind: ir.Type, value: int):
    """`value`, in each lane of a vector."""
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def _window_maximum(code: _Code, source, rows, row_step, columns, column_step, out) -> None:
    def over_columns(row, highest):
        start = code.builder.add(source, code.builder.mul(row, row_step))

        def body(column, highest):
            value = code.load(MANY_BYTES, start, code.builder.mul(column, column_step))
            above = code.builder.icmp_unsigned(">", value, highest[0])
            return [code.builder.select(above, value, highest[0])]

        return code.loop(columns, 1, highest, body)

    (highest,) = code.loop(rows, 1, [_constant(MANY_BYTES, 0)], over_columns)
    code.store(highest, out)


def _approximate(squares: bool, code: _Code, x, y, length, codes, counts, energy) -> None:
    def splat(place: int):
        first = code.builder.insert_element(
            ir.Constant(MANY_BYTES, ir.Undefined), code.load(I8, codes, place), ir.Constant(I32, 0)
        )
        return code.builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, 32), [0] * 32))

    t1, v1, t2, v2, tmax = (splat(place) for place in range(5))

    def body(i, values):
        value = code.load(MANY_BYTES, x, i)
        below = [code.builder.icmp_unsigned("<=", value, limit) for limit in (t1, t2, tmax)]
        result = value
        for chosen, other in zip(reversed(below), (v2, v1, _constant(MANY_BYTES, 0)), strict=True):
            result = code.builder.select(chosen, other, result)
        code.store(result, code.builder.add(y, i))
        masks = [code.builder.sext(one, MANY_BYTES) for one in below]  # -1 where true
        values = [code.minus(count, mask) for count, mask in zip(values[:3], masks, strict=True)] + values[3:]
        if squares:
            for half in (0, 16):
                lanes = ir.Constant(ir.VectorType(I32, 16), list(range(half, half + 16)))
                wide = code.builder.zext(code.builder.shuffle_vector(result, result, lanes), SHORTS)
                values[3] = code.sum(values[3], code.call("llvm.x86.avx2.pmadd.wd", WORDS, wide, wide))
        return values

    starts = [_constant(MANY_BYTES, 0)] * 3 + [_constant(WORDS, 0)] * squares
    values = code.loop(length, 32, starts, body)
    for place, count in enumerate(values[:3]):
        code.store(code.call("llvm.x86.avx2.psad.bw", FOUR, count, _constant(MANY_BYTES, 0)), counts, 32 * place)
    if squares:
        code.store(values[3], energy)


def _transform_input(code: _Code, sources, channel, out, step) -> None:
    tile = [
        [
            code.builder.zext(
                code.load(BYTES, code.load(I64, sources, 8 * (TILE * row + column)), channel),
                SHORTS,
            )
            for row in range(TILE)
        ]
        for column in range(TILE)
    ]
    columns = [_input_side(code, column) for column in tile]
    for row in range(TILE):
        for column, value in enumerate(_input_side(code, [columns[k][row] for k in range(TILE)])):
            code.store(value, out, code.times(step, TILE * row + column))


def _input_side(code: _Code, d: Sequence) -> list:
    """B^T d (Lavin & Gray, arXiv:1509.09308, section 4.2)."""
    even, odd = code.minus(d[4], code.times(d[2], 4)), code.minus(d[3], code.times(d[1], 4))
    even2, odd2 = code.minus(d[4], d[2]), code.times(code.minus(d[3], d[1]), 2)
    return [
        code.sum(code.minus(code.times(d[0], 4), code.times(d[2], 5)), d[4]),
        code.sum(even, odd),
        code.minus(even, odd),
        code.sum(even2, odd2),
        code.minus(even2, odd2),
        code.sum(code.minus(code.times(d[1], 4), code.times(d[3], 5)), d[5]),
    ]


def _multiply_shorts(code: _Code, rows, row_step, weight, steps, out) -> None:
    unrolled, pair = 2, 4 * CHANNELS
    starts = [code.builder.add(rows, code.times(row_step, row)) for row in range(ROWS)]

    def body(i, sums):
        for k in range(unrolled):
            at = code.builder.add(weight, code.times(i, pair))
            weights = [code.load(SHORTS, at, k * pair + 32 * half) for half in range(2)]
            products = []
            for start in starts:
                both = code.spread(SHORTS, code.builder.add(start, code.times(i, 4)), 4 * k)
                products += [code.call("llvm.x86.avx2.pmadd.wd", WORDS, both, half) for half in weights]
            sums = [code.sum(total, product) for total, product in zip(sums, products, strict=True)]
        return sums

    sums = code.loop(steps, unrolled, [_constant(WORDS, 0)] * (2 * ROWS), body)
    for place, total in enumerate(sums):
        code.store(total, out, 32 * place)


def _transform_output(code: _Code, sums, step, bias, multiplier, targets, channel) -> None:
    halves = []
    for half in range(2):
        columns = []
        for column in range(TILE):
            places = [code.times(step, TILE * row + column) for row in range(TILE)]
            columns.append(
                _output_side(code, [code.load(WORDS, code.builder.add(sums, at), 32 * half) for at in places])
            )
        outputs = []
        for row in range(OUTPUT_TILE):
            outputs += _output_side(code, [columns[column][row] for column in range(TILE)])
        # Both sides were scaled by 24; 576 = 64 * 9.
        halves.append([
            code.builder.ashr(code.times(value, INVERSE_OF_9), _constant(WORDS, 6)) for value in outputs
        ])  # fmt: skip
    for place, (low, high) in enumerate(zip(*halves, strict=True)):
        code.store(code.codes(low, high, bias, multiplier), code.load(I64, targets, 8 * place), channel)


def _output_side(code: _Code, m: Sequence) -> list:
    """24 A^T m, for weights that `convolution.winograd_weight` transformed."""
    p, q = code.times(code.sum(m[1], m[2]), 4), code.times(code.minus(m[1], m[2]), 4)
    r, t = code.sum(m[3], m[4]), code.times(code.minus(m[3], m[4]), 2)
    return [
        code.sum(code.times(m[0], 6), p, r),
        code.sum(q, t),
        code.sum(p, code.times(r, 4)),
        code.sum(q, code.times(t, 4), code.times(m[5], 24)),
    ]


def _multiply_codes(count, code: _Code, rows, row_step, steps, offsets, weight, bias, multiplier, out, out_step):
    four = 4 * CHANNELS
    starts = [code.builder.add(rows, code.times(row_step, row)) for row in range(count)]
    ones = _constant(SHORTS, 1)

    def body(i, sums):
        at = code.builder.add(weight, code.times(i, four))
        weights = [code.load(MANY_BYTES, at, 32 * half) for half in range(2)]
        offset = code.builder.sext(code.load(I32, offsets, code.times(i, 4)), I64)
        products = []
        for start in starts:
            codes = code.spread(MANY_BYTES, start, offset)
            for half in weights:
                pairs = code.call("llvm.x86.avx2.pmadd.ub.sw", SHORTS, codes, half)
                products.append(code.call("llvm.x86.avx2.pmadd.wd", WORDS, pairs, ones))
        return [code.sum(total, product) for total, product in zip(sums, products, strict=True)]

    sums = code.loop(steps, 1, [_constant(WORDS, 0)] * (2 * count), body)
    for row in range(count):
        result = code.codes(sums[2 * row], sums[2 * row + 1], bias, multiplier)
        code.store(result, out, code.times(out_step, row))
