"""Vector instructions for numba: the inner loops of `convolution.py` and `kernels.py`, written as LLVM instructions.

Besides, what a step of a plan (`plan.py`) needs: code that has an address, and calls it by that.

Numba has no integer dot products; these functions put them, and the transforms around them, into the code that it
compiles. All arguments are 64-bit integers, most of them addresses, and all steps are in bytes. The first argument of
those that `convolution.py` calls says for which instruction set: its place in `SETS`, a constant of the calling code.

A block of output channels is two registers of int32. Their lanes have the order of `Instructions.order`, which the
instructions that narrow them to bytes undo.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path

import llvmlite.binding
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from approx_env.int8 import nodes

POOLED = 32  # channels that `window_maximum` takes
LONGEST = 8160  # codes that `approximate` counts in bytes
TRANSFORMED = 16  # channels that `transform_input` takes
TILE, OUTPUT_TILE = 6, 4  # sides of a Winograd tile: 6 x 6 inputs give 4 x 4 outputs
INVERSE_OF_9 = 954_437_177  # modulo 2**32


@dataclass(frozen=True)
class Instructions:
    """A set of vector instructions, and how the inner loops use it."""

    name: str
    features: tuple[str, ...]  # that a CPU must have, as LLVM names them
    lanes: int  # int32 in a register
    dot: bool  # whether one instruction adds up products (VNNI); else three do
    rows: int  # of activations that one product of codes takes; two registers of sums each
    tiles: int  # rows of one product in Winograd's form

    @property
    def channels(self) -> int:
        """Output channels in a block."""
        return 2 * self.lanes

    @property
    def order(self) -> tuple[int, ...]:
        """The channel of each int32 of a block whose sums become codes."""
        fours = range(0, self.channels, 4)
        return tuple(first + k for half in (fours[::2], fours[1::2]) for first in half for k in range(4))

    @property
    def available(self) -> bool:
        """Whether this CPU has it."""
        return all(_features().get(feature) for feature in self.features)


SETS = (  # the best first
    Instructions("avx512vnni", ("avx512vnni", "avx512bw", "avx512vl", "avx512f", "avx2"), 16, True, 8, 6),
    Instructions("avxvnni", ("avx512vnni", "avx512vl", "avx2"), 8, True, 6, 6),
    Instructions("avx2", ("avx2",), 8, False, 6, 6),
)


@cache
def _features() -> dict[str, bool]:
    return dict(llvmlite.binding.get_host_cpu_features())


I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
BYTES, MANY_BYTES = ir.VectorType(I8, 16), ir.VectorType(I8, 32)
SHORTS = ir.VectorType(I16, 16)
WORDS = ir.VectorType(I32, 8)
FOUR = ir.VectorType(I64, 4)


def compiled(function: Callable) -> Callable:
    """Compiles a function; on disk its code is kept for this very text of this folder's modules, and of `int8.nodes`.

    numba alone looks at the function's own file. It would go on with older texts of what it calls.
    """
    made = njit(nogil=True)(function)
    made._cache = _Cache(function)
    return made


def step(function: Callable) -> CFunc:
    """Compiles a function so that its code has an address, and keeps it on disk as `compiled` does.

    It takes five 64-bit integers: the address of its arguments, which are int64; how many images; and the addresses of
    one input, of another one if it has two, and of its output. It returns 1. Where it raises, its caller gets 0: numba
    prints what it raised, and goes on.
    """
    made = CFunc(function, ((types.int64,) * 5, types.int64), {}, {})
    made._cache = _Cache(function)
    made.compile()
    return made


class _Cache(FunctionCache):
    _texts = (path.read_bytes() for path in (Path(nodes.__file__), *sorted(Path(__file__).parent.glob("*.py"))))
    digest = hashlib.sha256(b"".join(_texts)).hexdigest()

    def _index_key(self, sig, codegen) -> tuple:
        return (*super()._index_key(sig, codegen), self.digest)


@intrinsic
def call(typingctx, code, arguments, images, a, b, y):
    """Calls what `step` made, whose address is `code`, and returns what it does."""

    def codegen(context, builder, signature, values):
        kind = ir.FunctionType(I64, [I64] * 5)
        return builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])

    return types.int64(*[types.int64] * 6), codegen


@intrinsic(prefer_literal=True)
def arguments(typingctx, address, count):
    """The first `count` int64 at an address, as a tuple; `count` is a constant."""
    if not isinstance(count, types.IntegerLiteral):
        return None  # numba tries again with the constant's value
    result = types.UniTuple(types.int64, count.literal_value)

    def codegen(context, builder, signature, values):
        code = _Code(builder, SETS[-1])
        return context.make_tuple(builder, result, [code.load(I64, values[0], 8 * k) for k in range(len(result))])

    return result(types.int64, count), codegen


@intrinsic
def pointer(typingctx, address):
    """An address as what `numba.carray` takes."""
    return types.voidptr(types.int64), lambda context, builder, signature, values: builder.inttoptr(
        values[0], I8.as_pointer()
    )


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


@intrinsic(prefer_literal=True)
def multiply_shorts(typingctx, instructions, rows, row_step, weight, steps, out):
    """Multiplies `tiles` rows of int16 by int16 weights of a block; writes int32 sums modulo 2**32, a block a row.

    `steps` pairs of inputs are multiplied, two pairs at a time; `weight` holds `(steps, channels, 2)`.
    """
    return _writes(5, _multiply_shorts, instructions)


@intrinsic(prefer_literal=True)
def transform_output(typingctx, instructions, sums, step, bias, multiplier, targets, channel, valid):
    """Turns 36 blocks of int32, `step` apart, into 4 x 4 blocks of codes, `channel` behind the addresses at `targets`.

    Of each block the first `valid` channels are written.
    """
    return _writes(7, _transform_output, instructions)


@intrinsic(prefer_literal=True)
def multiply_codes(typingctx, instructions, sources, steps, offsets, weight, bias, multiplier, targets, channel, valid):
    """Multiplies `rows` rows of uint8 by int8 weights of a block, and writes the codes of the result.

    `sources` and `targets` hold the rows' addresses. Step k multiplies the four inputs at `offsets[k]` (int32) of each
    row; `weight` holds `(steps, channels, 4)`. Of a block the first `valid` channels are written, at `channel`.
    """
    return _writes(9, _multiply_codes, instructions)


@intrinsic(prefer_literal=True)
def add_products(typingctx, instructions, sources, steps, offsets, weight, bias, targets, channel):
    """The same, but writes sum and bias of all channels as int32."""
    return _writes(7, _add_products, instructions)


def _writes(count: int, body: Callable, instructions: types.Type | None = None):
    """What numba asks of an intrinsic: a signature of `count` integers, and a function that writes its code.

    With `instructions`, these come behind the place of an instruction set in `SETS`.
    """
    whole = [types.int64] * count
    if instructions is None:

        def codegen(context, builder, signature, arguments):
            body(_Code(builder, SETS[-1]), *arguments)
            return context.get_dummy_value()

        return types.void(*whole), codegen
    if not isinstance(instructions, types.IntegerLiteral):
        return None  # numba tries again with the constant's value

    def codegen(context, builder, signature, arguments):
        body(_Code(builder, SETS[instructions.literal_value]), *arguments[1:])
        return context.get_dummy_value()

    return types.void(instructions, *whole), codegen


class _Code:
    """An LLVM builder with the few operations that are needed here."""

    def __init__(self, builder: ir.IRBuilder, instructions: Instructions):
        self.builder, self.set = builder, instructions
        self.words = ir.VectorType(I32, instructions.lanes)  # a register, of sums or of what is multiplied
        self.block_bytes = 4 * instructions.channels  # of sums, and of a step's weights

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

    def halves(self, address, offset=0) -> list:
        """The two registers of a block."""
        return [self.load(self.words, self.builder.add(address, _as_constant(offset)), half * self.set.lanes * 4)
                for half in range(2)]  # fmt: skip

    def spread(self, address, offset):
        """Four bytes of memory, again and again, as a register."""
        undefined = ir.Constant(self.words, ir.Undefined)
        first = self.builder.insert_element(undefined, self.load(I32, address, offset), ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, undefined, _constant(self.words, 0))

    def dot_codes(self, total, codes, weights):
        """Adds four products of uint8 and int8 to each int32 of `total`."""
        if self.set.dot:
            return self.call(f"llvm.x86.avx512.vpdpbusd.{32 * self.set.lanes}", self.words, total, codes, weights)
        codes, weights = (self.builder.bitcast(value, MANY_BYTES) for value in (codes, weights))
        pairs = self.call("llvm.x86.avx2.pmadd.ub.sw", SHORTS, codes, weights)
        return self.sum(total, self.call("llvm.x86.avx2.pmadd.wd", WORDS, pairs, _constant(SHORTS, 1)))

    def dot_shorts(self, total, a, b):
        """Adds two products of int16 to each int32 of `total`."""
        if self.set.dot:
            return self.call(f"llvm.x86.avx512.vpdpwssd.{32 * self.set.lanes}", self.words, total, a, b)
        a, b = (self.builder.bitcast(value, SHORTS) for value in (a, b))
        return self.sum(total, self.call("llvm.x86.avx2.pmadd.wd", WORDS, a, b))

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

    def codes(self, blocks: Sequence[Sequence], multiplier: Sequence) -> list:
        """Requantises the sums, bias included, of an even number of blocks, two registers each: each block's codes.

        `int8.nodes` has the integer definition, and explains why this is exact.
        """
        floats = ir.VectorType(ir.FloatType(), self.set.lanes)
        half = ir.Constant(floats, [0.5] * self.set.lanes)
        narrow = []
        for block in blocks:
            rounded = []
            for sums, factor in zip(block, multiplier, strict=True):
                value, factor = self.builder.sitofp(sums, floats), self.builder.bitcast(factor, floats)
                if self.set.lanes == 16:  # one rounding, where two would be one: the product is exact or cut
                    value = self.call("llvm.fma.v16f32", floats, value, factor, half)
                else:
                    value = self.builder.fadd(self.builder.fmul(value, factor), half)
                rounded.append(self.builder.fptosi(value, self.words))  # towards zero: negative ones become 0 anyway
            name = "avx512.packssdw.512" if self.set.lanes == 16 else "avx2.packssdw"
            narrow.append(self.call(f"llvm.x86.{name}", ir.VectorType(I16, self.set.channels), *rounded))
        if self.set.lanes == 16:
            return [codes for pair in zip(narrow[::2], narrow[1::2], strict=True) for codes in self._packed(*pair)]
        return [self.call("llvm.x86.sse2.packuswb.128", BYTES, *self._halves(both)) for both in narrow]

    def _packed(self, first, second) -> list:
        """The codes of two blocks of int16: their quarters of a register come in turns."""
        both = self.call("llvm.x86.avx512.packuswb.512", ir.VectorType(I8, 64), first, second)
        quads = self.builder.bitcast(both, ir.VectorType(I64, 8))
        chosen = [ir.Constant(ir.VectorType(I32, 4), list(range(start, 8, 2))) for start in range(2)]
        return [self.builder.bitcast(self.builder.shuffle_vector(quads, quads, one), MANY_BYTES) for one in chosen]

    def _halves(self, shorts) -> list:
        """16 int16 as twice 8."""
        places = [ir.Constant(ir.VectorType(I32, 8), list(range(k, k + 8))) for k in (0, 8)]
        return [self.builder.shuffle_vector(shorts, shorts, part) for part in places]

    def store_first(self, value, count, address, offset) -> None:
        """Stores the first `count` bytes of a block's codes."""
        size = value.type.count
        whole = self.builder.icmp_signed(">=", count, ir.Constant(I64, size))
        with self.builder.if_else(whole, likely=True) as (then, otherwise):
            with then:
                self.store(value, self.builder.add(address, offset))
            with otherwise:
                kept = cgutils.alloca_once(self.builder, value.type)
                self.builder.store(value, kept)
                bytes_ = self.builder.bitcast(kept, I8.as_pointer())

                def body(i, _):
                    byte = self.builder.load(self.builder.gep(bytes_, [i]))
                    self.store(byte, self.builder.add(self.builder.add(address, offset), i))
                    return []

                self.loop(count, 1, [], body)

    def _pointer(self, kind: ir.Type, address, offset):
        return self.builder.inttoptr(self.builder.add(address, _as_constant(offset)), kind.as_pointer())


def _as_constant(offset):
    return ir.Constant(I64, offset) if isinstance(offset, int) else offset


def _constant(kind: ir.Type, value: int):
    """`value`, in each lane of a vector."""
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def _window_maximum(code: _Code, source, rows, row_step, columns, column_step, out, sides=(3, 2)) -> None:
    """Windows of the usual `sides` that no border cuts take no loop, which made them three times as slow."""

    def higher(value, highest):
        return code.builder.select(code.builder.icmp_unsigned(">", value, highest), value, highest)

    def over_columns(row, highest):
        start = code.builder.add(source, code.builder.mul(row, row_step))

        def body(column, highest):
            return [higher(code.load(MANY_BYTES, start, code.builder.mul(column, column_step)), *highest)]

        return code.loop(columns, 1, highest, body)

    if not sides:
        (highest,) = code.loop(rows, 1, [_constant(MANY_BYTES, 0)], over_columns)
        code.store(highest, out)
        return
    whole = [code.builder.icmp_signed("==", given, ir.Constant(I64, sides[0])) for given in (rows, columns)]
    with code.builder.if_else(code.builder.and_(*whole)) as (then, otherwise):
        with then:
            starts = [code.builder.add(source, code.times(row_step, row)) for row in range(sides[0])]
            values = [code.load(MANY_BYTES, at, code.times(column_step, k)) for at in starts for k in range(sides[0])]
            code.store(reduce(higher, values), out)
        with otherwise:
            _window_maximum(code, source, rows, row_step, columns, column_step, out, sides[1:])


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
    unrolled, count = 2, code.set.tiles
    starts = [code.builder.add(rows, code.times(row_step, row)) for row in range(count)]

    def body(i, sums):
        for k in range(unrolled):
            weights = code.halves(
                weight, code.builder.add(code.times(i, code.block_bytes), _as_constant(k * code.block_bytes))
            )
            products = []
            for row, start in enumerate(starts):
                both = code.spread(code.builder.add(start, code.times(i, 4)), 4 * k)
                products += [code.dot_shorts(sums[2 * row + half], both, weights[half]) for half in range(2)]
            sums = products
        return sums

    sums = code.loop(steps, unrolled, [_constant(code.words, 0)] * (2 * count), body)
    for place, total in enumerate(sums):
        code.store(total, out, 4 * code.set.lanes * place)


def _transform_output(code: _Code, sums, step, bias, multiplier, targets, channel, valid) -> None:
    halves = []
    for half, added in enumerate(code.halves(bias)):
        columns = []
        for column in range(TILE):
            places = [code.builder.add(sums, code.times(step, TILE * row + column)) for row in range(TILE)]
            columns.append(_output_side(code, [code.load(code.words, at, 4 * code.set.lanes * half) for at in places]))
        outputs = []
        for row in range(OUTPUT_TILE):
            outputs += _output_side(code, [columns[column][row] for column in range(TILE)])
        # Both sides were scaled by 24; 576 = 64 * 9.
        halves.append([
            code.sum(code.builder.ashr(code.times(value, INVERSE_OF_9), _constant(code.words, 6)), added)
            for value in outputs
        ])  # fmt: skip
    blocks = list(zip(*halves, strict=True))
    for place, codes in enumerate(code.codes(blocks, code.halves(multiplier))):
        code.store_first(codes, valid, code.load(I64, targets, 8 * place), channel)


def _output_side(code: _Code, m: Sequence) -> list:
    """24 A^T m, for weights that `convolution.Winograd` transformed."""
    p, q = code.times(code.sum(m[1], m[2]), 4), code.times(code.minus(m[1], m[2]), 4)
    r, t = code.sum(m[3], m[4]), code.times(code.minus(m[3], m[4]), 2)
    return [
        code.sum(code.times(m[0], 6), p, r),
        code.sum(q, t),
        code.sum(p, code.times(r, 4)),
        code.sum(q, code.times(t, 4), code.times(m[5], 24)),
    ]


def _sums_of_codes(code: _Code, sources, steps, offsets, weight, bias) -> list:
    """The sums of all rows, bias included, two registers each."""
    starts = [code.load(I64, sources, 8 * row) for row in range(code.set.rows)]

    def body(i, sums):
        weights = code.halves(weight, code.times(i, code.block_bytes))
        offset = code.builder.sext(code.load(I32, offsets, code.times(i, 4)), I64)
        results = []
        for row, start in enumerate(starts):
            codes = code.spread(start, offset)
            results += [code.dot_codes(sums[2 * row + half], codes, weights[half]) for half in range(2)]
        return results

    return code.loop(steps, 1, code.halves(bias) * code.set.rows, body)


def _multiply_codes(code: _Code, sources, steps, offsets, weight, bias, multiplier, targets, channel, valid) -> None:
    sums = _sums_of_codes(code, sources, steps, offsets, weight, bias)
    blocks = list(zip(sums[::2], sums[1::2], strict=True))
    for row, codes in enumerate(code.codes(blocks, code.halves(multiplier))):
        code.store_first(codes, valid, code.load(I64, targets, 8 * row), channel)


def _add_products(code: _Code, sources, steps, offsets, weight, bias, targets, channel) -> None:
    sums = _sums_of_codes(code, sources, steps, offsets, weight, bias)
    for row in range(code.set.rows):
        target = code.builder.add(code.load(I64, targets, 8 * row), code.times(channel, 4))
        for half in range(2):
            code.store(sums[2 * row + half], target, 4 * code.set.lanes * half)
