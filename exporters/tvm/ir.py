"""The words in which the kernels are written: flat buffers, vectors, loops and LLVM intrinsics over TVM's IRBuilder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import tvm
from tvm import tirx
from tvm.script import tirx as T  # pyright: ignore[reportMissingModuleSource]
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as I

Expr = Any  # TVM's expressions and buffers carry no types that a checker could use
Buffer = Any
Function = Any
Shape = int | tuple[int, ...]
C_CALL = 1  # TVM's number for a function that keeps its signature


@dataclass(frozen=True)
class Kernel:
    """Code over buffers, one per (shape, dtype) of `arguments`; `body` writes it and sees the buffers flat."""

    arguments: tuple[tuple[Shape, str], ...]
    body: Callable[..., None]

    def function(self, name: str) -> Function:
        """As TVM's runtime calls it, with tensors that it checks."""

        def flat(tensor: Buffer, size: int, dtype: str) -> Buffer:
            return tensor if len(tensor.shape) == 1 else I.decl_buffer((size,), dtype, data=tensor.data)

        # an image lies where its owner has it; activations and weights are aligned for whole vectors
        align = {"float32": 4}
        return self._build(name, lambda shape, dtype: I.buffer(shape, dtype, align=align.get(dtype, 0)), flat)

    def c_function(self, name: str) -> Function:
        """As C calls it: `void name(pointers...)`."""

        def flat(pointer: Expr, size: int, dtype: str) -> Buffer:
            return I.decl_buffer((size,), dtype, data=pointer)

        function = self._build(name, lambda _, dtype: I.handle(dtype), flat)
        return function.with_attr("calling_conv", C_CALL)

    def _build(
        self,
        name: str,
        declare: Callable[[tuple[int, ...], str], Expr],
        flat: Callable[[Expr, int, str], Buffer],
    ) -> Function:
        shapes = [(shape,) if isinstance(shape, int) else shape for shape, _ in self.arguments]
        dtypes = [dtype for _, dtype in self.arguments]
        with IRBuilder() as builder, I.prim_func(s_tir=True):
            I.func_name(name)
            given = [I.arg(f"b{i}", declare(*entry)) for i, entry in enumerate(zip(shapes, dtypes, strict=True))]
            I.func_attr({"tirx.noalias": True})
            with I.sblock("root"):
                I.reads([])
                I.writes([])
                sizes = [prod(shape) for shape in shapes]
                self.body(*(flat(*entry) for entry in zip(given, sizes, dtypes, strict=True)))
        function: Any = builder.get()
        return function.with_attr("global_symbol", name)


@contextmanager
def loop(extent: int, threads: int = 1) -> Iterator[Expr]:
    """A loop from 0 to `extent`; over TVM's thread pool if there is more than one thread."""
    if extent == 1:
        yield tirx.IntImm("int32", 0)
    else:
        with I.serial(0, extent) if threads == 1 else I.parallel(0, extent) as index:
            yield index


def load(buffer: Buffer, offset: Expr, lanes: int) -> Expr:
    return buffer[offset] if lanes == 1 else buffer[I.ramp(offset, 1, lanes)]


def store(buffer: Buffer, offset: Expr, value: Expr, lanes: int) -> None:
    I.buffer_store(buffer, value, [offset if lanes == 1 else I.ramp(offset, 1, lanes)])


def bind(value: Expr) -> Expr:
    """`value`, computed once here."""
    return I.bind(value)


def vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def splat(value: float, dtype: str, lanes: int) -> Expr:
    """The constant `value` in every lane."""
    scalar = tirx.FloatImm(dtype, float(value)) if dtype.startswith("float") else tirx.IntImm(dtype, int(value))
    return scalar if lanes == 1 else T.broadcast(scalar, lanes)


def cast(value: Expr, dtype: str, lanes: int) -> Expr:
    return T.cast(value, vector(dtype, lanes))


def bits(value: Expr, dtype: str, lanes: int) -> Expr:
    """The same bits, read as `lanes` values of `dtype`."""
    return T.reinterpret(value, dtype=vector(dtype, lanes))


def clip(value: Expr, low: float, high: float, dtype: str, lanes: int) -> Expr:
    return tirx.max(tirx.min(value, splat(high, dtype, lanes)), splat(low, dtype, lanes))


def shuffle(vectors: Sequence[Expr], indices: Iterable[int]) -> Expr:
    """The elements `indices` of the concatenated `vectors`."""
    return tirx.Shuffle(list(vectors), [tirx.IntImm("int32", int(index)) for index in indices])


def unpack(width: int, size: int, high: int, left: Expr, right: Expr) -> Expr:
    """The low or high halves of each 16 bytes of two vectors, `size` bytes of either in turn (x86's punpck)."""
    indices = [
        source * width + lane + 8 * high + element * size + byte
        for lane in range(0, width, 16)
        for element in range(8 // size)
        for source in range(2)
        for byte in range(size)
    ]
    return shuffle([left, right], indices)


@cache
def _intrinsic_id(name: str) -> int:
    return tvm.target.codegen.llvm_lookup_intrinsic_id(name)


def intrinsic(dtype: str, name: str, *arguments: Expr) -> Expr:
    """A call of the LLVM intrinsic `name`, free of side effects."""
    return T.call_llvm_pure_intrin(T.uint32(_intrinsic_id(name)), *arguments, dtype=dtype)


def effect(name: str, *arguments: Expr) -> None:
    """Call the LLVM intrinsic `name`, which returns nothing, for what it does."""
    I.evaluate(tirx.call_llvm_intrin("void", name, *arguments))


def address(buffer: Buffer, offset: Expr) -> Expr:
    return tirx.address_of(buffer[offset])


def vectors_on_stack(count: int, dtype: str, lanes: int) -> Buffer:
    """A buffer of vectors, aligned to their size; unlike the others, it is on the stack whatever its size."""
    return I.alloc_buffer((count,), vector(dtype, lanes), annotations={"disable_lower_builtin": T.bool(True)})


@contextmanager
def share(extent: int, task: Expr, tasks: int) -> Iterator[Expr]:
    """A loop over the part of 0 to `extent` that falls to `task` of `tasks`."""
    size = -(-extent // tasks)
    if tasks == 1:
        with loop(extent) as index:
            yield index
    else:
        with I.serial(0, tirx.max(tirx.min(size, extent - task * size), 0)) as index:
            yield bind(task * size + index)


class Accumulators:
    """Vectors that live in registers through loops.

    One small buffer each: LLVM keeps a stack slot of its own in a register, while TVM turns a buffer of more than
    1,024 bytes, or of scope "local", into a call for workspace memory.
    """

    def __init__(self, count: int, dtype: str, lanes: int) -> None:
        self._lanes = lanes
        self._buffers = [I.alloc_buffer((lanes,), dtype, scope="global") for _ in range(count)]

    def __getitem__(self, index: int) -> Expr:
        return load(self._buffers[index], 0, self._lanes)

    def __setitem__(self, index: int, value: Expr) -> None:
        store(self._buffers[index], 0, value, self._lanes)
