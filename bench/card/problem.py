"""A Problem of csrc/problem.hpp made by ctypes alone: beside a card no compiled module of harken's is needed."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, addressof, c_double, c_int, c_int32, c_int64, c_void_p, sizeof
from typing import Any, NamedTuple

import numpy as np

from card.numbers import TYPES

MOST_AXES, UNBOUNDED = 62, 1 << 48
SCORES = ("dot", "cosine", "additive")
PRECISIONS = ("highest", "high", "medium")


class View(Structure):
    """harken::View."""

    _fields_ = [
        ("data", c_void_p), ("type", c_int32), ("head", c_int64), ("row", c_int64), ("col", c_int64),
        ("batch", c_int64 * MOST_AXES),
    ]  # fmt: skip


class Pages(Structure):
    """harken::Pages."""

    _fields_ = [("table", View), ("origins", View), ("rows", c_int64), ("steps", c_int64 * 4)]


class Lists(Structure):
    """harken::Lists."""

    _fields_ = [("number", View), ("begin", c_void_p), ("intervals", c_void_p)]


class Problem(Structure):
    """harken::Problem."""

    _fields_ = [
        ("type", c_int32), ("score", c_int32), ("precision", c_int32), ("batch_axes", c_int),
        ("batch_shape", c_int64 * MOST_AXES), ("batches", c_int64),
        *((name, c_int64) for name in ("Hq", "Hkv", "Lq", "Lk", "D", "Dv")),
        *((name, View) for name in ("q", "k", "v", "out", "lse", "weights", "w", "k_scale", "v_scale")),
        ("pages", Pages), ("mask", View), ("bias", View), ("lists", Lists),
        ("scales", View), ("slopes", View), ("sinks", View), ("scale", c_double), ("softcap", c_double),
        *((name, View) for name in ("q_starts", "q_lengths", "kv_lengths")), ("left", c_int64), ("right", c_int64),
    ]  # fmt: skip


class Operand(NamedTuple):
    """An array of the host or of a card."""

    address: int
    type: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def of_host(x: Any, type: str | None = None) -> Operand:
    """A NumPy array; of bfloat16 the bits, and the type by its name."""
    return Operand(x.ctypes.data, type or x.dtype.name, x.shape, x.strides)


def of_tensor(x: Any) -> Operand:
    """One of PyTorch's."""
    strides = tuple(n * x.element_size() for n in x.stride())
    return Operand(x.data_ptr(), str(x.dtype).removeprefix("torch."), tuple(x.shape), strides)


def lay(view: View, of: Operand | None, axes: Sequence[int], tail: Sequence[str]) -> None:
    """The view of an operand, broadcast to (*axes, as many as tail names)."""
    view.data = None
    if of is None:
        return
    view.data, view.type = of.address, TYPES.index(of.type)
    names = [None] * len(axes) + list(tail)
    for n, name in enumerate(names):
        own = n - (len(names) - len(of.shape))
        stride = 0 if own < 0 or of.shape[own] == 1 else of.strides[own]
        if name is None:
            view.batch[n] = stride
        else:
            setattr(view, name, stride)


PLACES = {
    **dict.fromkeys(("q", "k", "v", "out", "weights", "k_scale", "v_scale", "mask", "bias"), ("head", "row", "col")),
    "lse": ("head", "row"), "w": ("head", "col"), **dict.fromkeys(("scales", "slopes", "sinks"), ("head",)),
    **dict.fromkeys(("q_starts", "q_lengths", "kv_lengths"), ()),
}  # fmt: skip


def make(
    arrays: dict[str, Operand],
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    score: str = "dot",
    scale: float | None = None,
    softcap: float = 0.0,
    precision: str = "highest",
    lists: tuple[Any, Any, Any] | None = None,
) -> Problem:
    """The Problem over arrays (*batch, H, L, D): q, k, v, out and any others. `lists`: number, begin, intervals."""
    q, k, v = (arrays[name] for name in "qkv")
    batch = np.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
    p = Problem(batch_axes=len(batch), batches=int(np.prod(batch, dtype=np.int64)))
    p.batch_shape[: len(batch)] = batch
    p.type = TYPES.index(min((x.type for x in (q, k, v) if x.type != "int8"), key=TYPES.index))
    if {q.type, k.type, v.type} >= {"float16", "bfloat16"}:
        p.type = TYPES.index("float32")
    p.Hq, p.Lq, p.D = q.shape[-3:]
    p.Hkv, p.Lk, p.Dv = k.shape[-3], k.shape[-2], v.shape[-1]
    p.score, p.softcap, p.precision = SCORES.index(score), softcap, PRECISIONS.index(precision)
    p.scale = scale if scale is not None else p.D**-0.5 if score == "dot" and p.D else 1.0
    p.left, p.right = (UNBOUNDED if side is None else side for side in window)
    p.right = 0 if causal else p.right
    for name, places in PLACES.items():
        lay(getattr(p, name), arrays.get(name), batch, places)
    if lists is not None:
        number, begin, intervals = lists
        lay(p.lists.number, of_host(number), batch, ("head", "row"))
        p.lists.begin, p.lists.intervals = begin.ctypes.data, intervals.ctypes.data
    return p


def call(structure: Any, problem: Problem, kernel: int, card: int = 0, stream: int | None = None) -> Any:
    """harken_cuda_call, with one kernel allowed. The problem must outlive it."""
    return structure(addressof(problem), sizeof(Problem), 1 << kernel, stream, card)
