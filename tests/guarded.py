"""Memory beside which no byte may be touched: arrays that end, or begin, at a page that the processor refuses."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from compare import Array

PAGE = mmap.PAGESIZE
C = ctypes.CDLL(None, use_errno=True)
C.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
NOTHING = 0  # PROT_NONE


def bounds(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """The first byte of an array and the one past its last, from where its first element begins."""
    reach = [s * (n - 1) for s, n in zip(strides, shape, strict=True)]
    return sum(min(0, r) for r in reach), sum(max(0, r) for r in reach) + itemsize


class Region:
    """Pages between two forbidden ones; striped: every second page is forbidden."""

    def __init__(self, pages: int, striped: bool = False) -> None:
        count = 2 * pages + 1 if striped else pages + 2
        self.memory = mmap.mmap(-1, count * PAGE)
        self.at = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for page in range(0, count, 2) if striped else (0, count - 1):
            assert C.mprotect(self.at + page * PAGE, PAGE, NOTHING) == 0
        self.first, self.last = PAGE, (count - 1) * PAGE

    def dense(self, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...], end: bool) -> Array:
        """An array of these strides whose last byte is the last one here, or whose first byte the first."""
        low, high = bounds(shape, strides, np.dtype(dtype).itemsize)
        return np.ndarray(shape, dtype, self.memory, self.last - high if end else self.first - low, strides)

    def rows(self, shape: tuple[int, ...], dtype: Any, end: bool) -> Array:
        """An array, here in stripes, each row of which ends, or begins, at a forbidden page."""
        size = shape[-1] * np.dtype(dtype).itemsize
        assert size <= PAGE
        strides = [np.dtype(dtype).itemsize, 2 * PAGE]
        for n in shape[-2:0:-1]:
            strides.append(strides[-1] * n)
        return np.ndarray(shape, dtype, self.memory, 2 * PAGE - size if end else PAGE, tuple(strides[::-1]))


def contiguous(shape: tuple[int, ...], itemsize: int, step: int = 1) -> tuple[int, ...]:
    strides = [itemsize * step]
    for n in shape[:0:-1]:
        strides.append(strides[-1] * n)
    return tuple(strides[::-1])


LAYOUTS = ("end", "begin", "steps", "backwards", "transposed", "rows end", "rows begin")


class Place:
    """Where one argument of the calls lies, in one of the layouts."""

    def __init__(self, pages: int, rows: int) -> None:
        self.region, self.stripes = Region(pages), Region(rows, striped=True)

    def empty(self, shape: tuple[int, ...], dtype: Any, layout: str) -> Array:
        size = np.dtype(dtype).itemsize
        if layout.startswith("rows"):
            return self.stripes.rows(shape, dtype, layout == "rows end")
        if layout == "transposed":
            swapped = (*shape[:-2], shape[-1], shape[-2])
            return self.region.dense(swapped, dtype, contiguous(swapped, size), True).swapaxes(-1, -2)
        strides = contiguous(shape, size, 3 if layout == "steps" else 1)
        if layout == "backwards":
            return self.region.dense(shape, dtype, tuple(-s for s in strides), True)
        return self.region.dense(shape, dtype, strides, layout != "begin")

    def put(self, array: Array, layout: str) -> Array:
        copy = self.empty(array.shape, array.dtype, layout)
        copy[...] = array
        return copy


# --- NumPy's own new arrays, through its table of allocators (NEP 49) ---

Malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
Calloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
Realloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
Free = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
SET_HANDLER = 304  # its place in NumPy's C API


class Handler(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", ctypes.c_void_p),
        ("malloc", Malloc),
        ("calloc", Calloc),
        ("realloc", Realloc),
        ("free", Free),
    )


def set_handler() -> Callable[[Any], Any]:
    zeros: Any = np.zeros
    umath = zeros.__self__  # the module that the compiled functions live in
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    table = ctypes.cast(pointer(umath._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[SET_HANDLER] or 0)


class Allocator:
    """Inside `with guarded():` every new array ends, or begins, at a forbidden page, and stays until forget()."""

    def __init__(self, end: bool) -> None:
        self.regions: list[Region] = []
        self.sizes: dict[int, int] = {}
        self.end = end
        self.count = 0
        self.handler = Handler(
            b"guarded",
            1,
            None,
            Malloc(lambda _, size: self.take(size)),
            Calloc(lambda _, count, size: self.take(count * size)),
            Realloc(self.move),
            Free(lambda _, at, size: None),
        )
        capsule = ctypes.pythonapi.PyCapsule_New
        capsule.restype, capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        self.capsule = capsule(ctypes.addressof(self.handler), b"mem_handler", None)
        self.set = set_handler()

    def take(self, size: int) -> int:
        region = Region(-(-size // PAGE) or 1)
        self.regions.append(region)
        self.count += 1
        at = region.at + (region.last - size if self.end else region.first)
        self.sizes[at] = size
        return at

    def move(self, _: object, at: int, size: int) -> int:
        new = self.take(size)
        ctypes.memmove(new, at, min(size, self.sizes[at]))
        return new

    @contextmanager
    def guarded(self) -> Iterator[None]:
        before = self.set(self.capsule)
        try:
            yield
        finally:
            self.set(before)

    def forget(self) -> None:
        """Gives back the memory of arrays that are gone."""
        self.regions.clear()
        self.sizes.clear()
