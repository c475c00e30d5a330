"""Small discrete Fourier transforms as vector code: the steps from which ``transforms.py`` makes large ones.

Each step handles :data:`LANES` transforms side by side. Between steps a number is a vector of real parts followed by
one of imaginary parts (128 bytes); in a wave it is interleaved. The code is written by :func:`_dft` as a graph of
additions and multiplications (Cooley and Tukey, Math. Comput. 19, 297 (1965)), which the compiler maps to whatever
vector registers there are. All take addresses and strides in bytes; forward sign −. Swapping real and imaginary parts
before and after turns a forward transform into a backward one.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

LANES = 16
VECTOR = 4 * LANES
"""Bytes of a vector of real or imaginary parts."""
NUMBER = 2 * VECTOR
RADICES = (4, 5, 6, 8, 16)
WHOLE_ROWS = (4, 8, 16)
"""Radices of the transforms of whole rows, of 16 times as many numbers."""

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_PAIRS = ir.VectorType(ir.DoubleType(), LANES // 2)
_INDEX = ir.IntType(32)
# Products and sums may be fused; nothing is reordered
_FLAGS = ("contract", "nsz")
_EVEN, _ODD = [2 * i for i in range(LANES)], [2 * i + 1 for i in range(LANES)]
_LOW = [i // 2 + LANES * (i % 2) for i in range(LANES)]
_HIGH = [i + LANES // 2 for i in _LOW]

Complex = tuple[Any, Any]


class _Code:
    """Writes vector instructions."""

    def __init__(self, builder: Any) -> None:
        self._b = builder

    def add(self, x: Complex, y: Complex) -> Complex:
        return self._b.fadd(x[0], y[0], _FLAGS), self._b.fadd(x[1], y[1], _FLAGS)

    def sub(self, x: Complex, y: Complex) -> Complex:
        return self._b.fsub(x[0], y[0], _FLAGS), self._b.fsub(x[1], y[1], _FLAGS)

    def scale(self, x: Complex, factor: float) -> Complex:
        c = ir.Constant(_VECTOR, [factor] * LANES)
        return self._b.fmul(x[0], c, _FLAGS), self._b.fmul(x[1], c, _FLAGS)

    def minus_i(self, x: Complex) -> Complex:
        return x[1], self._b.fsub(ir.Constant(_VECTOR, [-0.0] * LANES), x[0], _FLAGS)

    def turn(self, x: Complex, factor: complex) -> Complex:
        """Return x times a constant of modulus 1."""
        quarter = round(-cmath.phase(factor) / (math.pi / 2)) % 4
        if abs(factor - (-1j) ** quarter) < 1e-12:
            for _ in range(quarter % 2):
                x = self.minus_i(x)
            return x if quarter < 2 else self.scale(x, -1.0)
        return self.multiply(x, *(ir.Constant(_VECTOR, [part] * LANES) for part in (factor.real, factor.imag)))

    def multiply(self, x: Complex, re: Any, im: Any) -> Complex:
        b = self._b
        real = b.fsub(b.fmul(x[0], re, _FLAGS), b.fmul(x[1], im, _FLAGS), _FLAGS)
        return real, b.fadd(b.fmul(x[0], im, _FLAGS), b.fmul(x[1], re, _FLAGS), _FLAGS)

    def at(self, address: Any, kind: Any) -> Any:
        return self._b.inttoptr(address, kind.as_pointer())

    def moved(self, address: Any, stride: Any, count: int) -> Any:
        return self._b.add(address, self._b.mul(stride, ir.Constant(address.type, count)))

    def part(self, stride: Any, divisor: int) -> Any:
        return self._b.udiv(stride, ir.Constant(stride.type, divisor))

    def beyond(self, address: Any, n_bytes: int) -> Any:
        return self._b.add(address, ir.Constant(address.type, n_bytes))

    def load(self, address: Any, kind: Any = _VECTOR) -> Any:
        return self._b.load(self.at(address, kind), align=VECTOR)

    def store(self, value: Any, address: Any) -> None:
        self._b.store(value, self.at(address, value.type), align=VECTOR)

    def shuffle(self, x: Any, y: Any, mask: list[int]) -> Any:
        return self._b.shuffle_vector(x, y, ir.Constant(ir.VectorType(_INDEX, len(mask)), mask))

    def cast(self, x: Any, kind: Any) -> Any:
        return self._b.bitcast(x, kind)

    def broadcast(self, address: Any) -> Any:
        number = self._b.load(self.at(address, _FLOAT), align=4)
        one = self._b.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, ir.Constant(_INDEX, 0))
        return self.shuffle(one, ir.Constant(_VECTOR, ir.Undefined), [0] * LANES)

    def load_number(self, address: Any) -> Complex:
        return self.load(address), self.load(self.beyond(address, VECTOR))

    def store_number(self, x: Complex, address: Any) -> None:
        self.store(x[0], address)
        self.store(x[1], self.beyond(address, VECTOR))

    def load_interleaved(self, address: Any) -> Complex:
        first, second = self.load_number(address)
        return self.shuffle(first, second, _EVEN), self.shuffle(first, second, _ODD)

    def store_interleaved(self, x: Complex, address: Any) -> None:
        self.store_number((self.shuffle(*x, _LOW), self.shuffle(*x, _HIGH)), address)

    def transpose(self, rows: list[Any]) -> list[Any]:
        """Return the columns of a square of vectors; their number is a power of two."""
        for step in (1 << i for i in range(len(rows).bit_length() - 1)):
            low = [i if i & step == 0 else i - step + len(rows) for i in range(len(rows))]
            high = [i + step for i in low]
            new = list(rows)
            for i in range(len(rows)):
                if i & step == 0:
                    new[i] = self.shuffle(rows[i], rows[i + step], low)
                    new[i + step] = self.shuffle(rows[i], rows[i + step], high)
            rows = new
        return rows


def _dft(code: _Code, x: list[Complex]) -> list[Complex]:
    """Return the transform of few numbers."""
    n = len(x)
    if n == 2:
        return [code.add(x[0], x[1]), code.sub(x[0], x[1])]
    inner = next((f for f in (4, 2) if n % f == 0 and n > f), n)
    if n == 4:
        inner = 2
    if inner == n:
        return _odd_dft(code, x) if n > 1 else x
    outer = n // inner
    columns = [_dft(code, x[j::outer]) for j in range(outer)]
    out: list[Any] = [None] * n
    for k in range(inner):
        turned = [code.turn(columns[j][k], cmath.exp(-2j * math.pi * j * k / n)) for j in range(outer)]
        out[k::inner] = _dft(code, turned)
    return out


def _odd_dft(code: _Code, x: list[Complex]) -> list[Complex]:
    """Return the transform of an odd number of numbers, from sums and differences of opposite ones."""
    n, half = len(x), len(x) // 2
    sums = [code.add(x[j], x[n - j]) for j in range(1, half + 1)]
    differences = [code.minus_i(code.sub(x[j], x[n - j])) for j in range(1, half + 1)]
    out = [x[0]] * n
    for total in sums:
        out[0] = code.add(out[0], total)
    for k in range(1, half + 1):
        even, odd = x[0], None
        for j in range(1, half + 1):
            angle = 2 * math.pi * j * k / n
            even = code.add(even, code.scale(sums[j - 1], math.cos(angle)))
            part = code.scale(differences[j - 1], math.sin(angle))
            odd = part if odd is None else code.add(odd, part)
        out[k], out[n - k] = code.add(even, odd), code.sub(even, odd)  # type: ignore[arg-type]
    return out


def _swapped(x: Complex, swap: bool) -> Complex:
    return (x[1], x[0]) if swap else x


def _butterfly(radix: int, back: bool, load: str, store: str, *, factors: bool) -> Callable[..., None]:
    """Return a step: numbers at ``source``, ``stride`` apart, transformed, times factors, to ``target``.

    load, store: methods of the code; back: exchange real and imaginary parts where numbers are interleaved; factors:
    (radix − 1) pairs of floats, for all but the first result.
    """

    def emit(code: _Code, source: Any, source_stride: Any, target: Any, stride: Any, table: Any) -> None:
        read, write = getattr(code, load), getattr(code, store)
        x = [_swapped(read(code.moved(source, source_stride, i)), back and "inter" in load) for i in range(radix)]
        for k, y in enumerate(_dft(code, x)):
            if factors and k:
                at = code.beyond(table, 8 * (k - 1))
                y = code.multiply(y, code.broadcast(at), code.broadcast(code.beyond(at, 4)))
            write(_swapped(y, back and "inter" in store), code.moved(target, stride, k))

    return emit


def _filtered(radix: int) -> Callable[..., None]:
    """Return a step whose results are multiplied by factors along both axes, then exchanged for a backward transform.

    Arguments: as :func:`_butterfly`, then a pair of floats for each number, as far apart as results for their place,
    and a vector of numbers for all of them.
    """

    def emit(code: _Code, source: Any, source_stride: Any, target: Any, stride: Any, along: Any, across: Any) -> None:
        lanes, step = code.load_number(across), code.part(stride, NUMBER // 8)
        x = [code.load_number(code.moved(source, source_stride, i)) for i in range(radix)]
        for k, y in enumerate(_dft(code, x)):
            at = code.moved(along, step, k)
            y = code.multiply(y, code.broadcast(at), code.broadcast(code.beyond(at, 4)))
            code.store_number(_swapped(code.multiply(y, *lanes), True), code.moved(target, stride, k))

    return emit


def _gather(back: bool) -> Callable[..., None]:
    """Return a step: 8 numbers of :data:`LANES` rows, ``stride`` apart, to 8 vectors of numbers."""

    def emit(code: _Code, source: Any, stride: Any, target: Any) -> None:
        rows = [code.load(code.moved(source, stride, i), _PAIRS) for i in range(LANES)]
        halves = [code.transpose(rows[:8]), code.transpose(rows[8:])]
        for i in range(8):
            first, second = (code.cast(half[i], _VECTOR) for half in halves)
            x = code.shuffle(first, second, _EVEN), code.shuffle(first, second, _ODD)
            code.store_number(_swapped(x, back), code.beyond(target, i * NUMBER))

    return emit


def _scatter(back: bool) -> Callable[..., None]:
    """Return the opposite step: 8 vectors of numbers at ``source`` to rows, ``stride`` apart, at ``target``."""

    def emit(code: _Code, source: Any, stride: Any, target: Any) -> None:
        halves: list[list[Any]] = [[], []]
        for i in range(8):
            x = _swapped(code.load_number(code.beyond(source, i * NUMBER)), back)
            for half, mask in zip(halves, (_LOW, _HIGH)):
                half.append(code.cast(code.shuffle(*x, mask), _PAIRS))
        for i, row in enumerate(code.transpose(halves[0]) + code.transpose(halves[1])):
            code.store(row, code.moved(target, stride, i))

    return emit


def _whole_rows(radix: int, back: bool) -> Callable[..., None]:
    """Return a step: rows of radix · :data:`LANES` numbers, in place, as many rows as fill a square of lanes.

    Arguments: first row, bytes between rows, factors: :data:`NUMBER` bytes for each k < radix, exp(−2πi b k / n) of the
    lanes b. Numbers n = 16 a + b: a transform over a in each lane, one over b after lanes and vectors change roles.
    """

    def emit(code: _Code, first: Any, stride: Any, table: Any) -> None:
        rows = [code.moved(first, stride, i) for i in range(LANES // radix)]
        inner: list[Complex] = []
        for row in rows:
            x = [_swapped(code.load_interleaved(code.beyond(row, i * NUMBER)), back) for i in range(radix)]
            for k, y in enumerate(_dft(code, x)):
                inner.append(code.multiply(y, *code.load_number(code.beyond(table, k * NUMBER))) if k else y)
        turned = list(zip(*(code.transpose([y[part] for y in inner]) for part in range(2))))
        for k, y in enumerate(_dft(code, turned)):
            for i, row in enumerate(rows):
                lanes = [[lane, lane + LANES] for lane in range(i * radix, (i + 1) * radix)]
                mask = [number for pair in lanes for number in pair]
                for start in range(0, len(mask), LANES):
                    part = code.shuffle(*_swapped(y, back), mask[start : start + LANES])
                    code.store(part, code.beyond(row, 8 * radix * k + 4 * start))

    return emit


def _choice(name: str, steps: dict[int, Callable[..., None]], n_arguments: int) -> Any:
    """Return a function for compiled code of a choice among ``steps`` and so many addresses.

    Steps are functions of their own, which are not copied to where they are called from.
    """

    def function(module: Any, number: int, address: Any) -> Any:
        full_name = f"hpcrec_{name}_{number}"
        if full_name in module.globals:
            return module.globals[full_name]
        made = ir.Function(module, ir.FunctionType(ir.VoidType(), [address] * n_arguments), full_name)
        made.linkage = "linkonce_odr"
        made.attributes.add("noinline")
        builder = ir.IRBuilder(made.append_basic_block())
        steps[number](_Code(builder), *made.args)
        builder.ret_void()
        return made

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        choice, *addresses = arguments
        end = builder.append_basic_block("end")
        switch = builder.switch(choice, end)
        for number in steps:
            block = builder.append_basic_block(f"step{number}")
            switch.add_case(ir.Constant(choice.type, number), block)
            builder.position_at_end(block)
            builder.call(function(builder.module, number, choice.type), addresses)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    signature = types.void(*[types.intp] * (n_arguments + 1))

    def with_three(typing_context: Any, choice: Any, a: Any, b: Any, c: Any) -> Any:
        return signature, emit

    def with_five(typing_context: Any, choice: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
        return signature, emit

    def with_six(typing_context: Any, choice: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
        return signature, emit

    return intrinsic({3: with_three, 5: with_five, 6: with_six}[n_arguments])


_BOTH = [(radix, back) for radix in RADICES for back in (False, True)]

# Choices are 2 · radix, or one more for a backward transform
first_step: Any = _choice(
    "first_step",
    {2 * r + back: _butterfly(r, back, "load_interleaved", "store_number", factors=True) for r, back in _BOTH},
    5,
)
last_step: Any = _choice(
    "last_step",
    {2 * r + back: _butterfly(r, back, "load_number", "store_interleaved", factors=False) for r, back in _BOTH},
    5,
)
turned_step: Any = _choice(
    "turned_step", {2 * r: _butterfly(r, False, "load_number", "store_number", factors=True) for r in RADICES}, 5
)
plain_step: Any = _choice(
    "plain_step", {2 * r: _butterfly(r, False, "load_number", "store_number", factors=False) for r in RADICES}, 5
)
filtered_step: Any = _choice("filtered_step", {2 * r: _filtered(r) for r in RADICES}, 6)
whole_rows: Any = _choice(
    "whole_rows", {2 * r + back: _whole_rows(r, back) for r in WHOLE_ROWS for back in (False, True)}, 3
)
# Choices: 0 forward, 1 backward
gather: Any = _choice("gather", {0: _gather(False), 1: _gather(True)}, 3)
scatter: Any = _choice("scatter", {0: _scatter(False), 1: _scatter(True)}, 3)
