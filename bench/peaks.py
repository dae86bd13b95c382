"""How fast this machine can be at all, measured beside what is compared with it: multiply-adds, tile products, reading.

The peaks are the loops of peaks.cpp, compiled when the bench runs, with the flags of the instruction set that harken's
backend uses. Each is a call like a rival's, on as many threads, and takes its turn with them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
import timing
from problems import Array, Problem, element

SOURCE = Path(__file__).with_name("peaks.cpp")
COMPILER = "c++"
CALL = 4e-3  # seconds that a call lasts at least: waking the threads is 1 % of it
STEPS = 1000  # as in peaks.cpp

# What harken's backends compute with: how it is called, bytes of a register, the compiler's flags.
FMA = {
    "baseline": ("SSE2 multiply and add", 16, ()),
    "avx2": ("AVX2 FMA", 32, ("-mavx2", "-mfma")),
    "avx512": ("AVX-512 FMA", 64, ("-mavx512f", "-mfma")),
    "amx": ("AVX-512 FMA", 64, ("-mavx512f", "-mfma")),
}
TILES = "AMX bfloat16 tile products"


class Unknown(Exception):
    """Why there is no peak, or none that can be measured here."""


@dataclass(frozen=True)
class Peak:
    """A loop of peaks.cpp: one call is that many operations, or bytes read."""

    name: str
    call: Callable[[], Any]
    amount: float
    unit: str = "GFLOP/s"

    def rate(self, seconds: float) -> float:
        return self.amount / seconds / 1e9

    def __str__(self) -> str:
        return self.name


def of(problem: Problem, dtype: str, k: Array, v: Array, threads: int, backend: str) -> Peak:
    """What bounds the problem. Small problems are bound by the call itself, which has no peak."""
    if problem.kind == "stream":
        return stream(k, v, threads, backend, "a plain read of K and V")
    if problem.kind == "latency":
        raise Unknown("the call itself is the work")
    if backend == "amx" and element(dtype).itemsize == 2:
        return tile_products(threads, backend)
    return multiply_add("float64" if dtype == "float64" else "float32", threads, backend)


def survey(threads: int, backend: str) -> dict[str, Peak]:
    """Every peak of this machine, by name. Memory is read from a buffer of twice the caches, of 1 GiB at most."""
    half = np.ones(min(machine.cache(), 1 << 29), np.uint8)
    peaks = [
        multiply_add("float32", threads, backend),
        multiply_add("float64", threads, backend),
        stream(half, half.copy(), threads, backend, f"a plain read of {half.nbytes >> 19} MiB"),
    ]
    with contextlib.suppress(Unknown):
        peaks.append(tile_products(threads, backend))
    return {peak.name: peak for peak in peaks}


def multiply_add(dtype: str, threads: int, backend: str) -> Peak:
    name, width, _ = FMA[known(backend)]
    loop = getattr(library(backend), f"multiply_add_{dtype}")
    lanes = width // np.dtype(dtype).itemsize
    return filled(f"{name} {dtype}", lambda chunks: loop(chunks, threads), 24 * STEPS * lanes)


def tile_products(threads: int, backend: str) -> Peak:
    code = library(backend)
    if not hasattr(code, "allow_tiles"):
        raise Unknown("the processor has no AMX")
    if not code.allow_tiles():
        raise Unknown("the system does not allow AMX")
    return filled(TILES, lambda chunks: code.tile_products(chunks, threads), 4 * STEPS * 16384)


def stream(one: Array, other: Array, threads: int, backend: str, name: str) -> Peak:
    """Those very bytes from end to end, a share for each thread, again and again."""
    code, size = library(backend), min(one.nbytes, other.nbytes)
    one, other = np.ascontiguousarray(one), np.ascontiguousarray(other)

    def loop(passes: int) -> None:
        code.stream(one.ctypes.data, other.ctypes.data, size, passes, threads)

    return filled(name, loop, 2 * size, "GB/s")


def filled(name: str, loop: Callable[[int], Any], amount: float, unit: str = "GFLOP/s") -> Peak:
    """The loop with as many turns as last long enough, whatever else the machine does meanwhile."""
    turns = 1
    while (seconds := min(timing.measure(partial(loop, turns), 1) for _ in range(3))) < CALL:
        turns = int(turns * min(10.0, 1.3 * CALL / seconds)) + 1
    return Peak(name, partial(loop, turns), amount * turns, unit)


def known(backend: str) -> str:
    if backend not in FMA:
        raise Unknown(f"nobody has told peaks.py what {backend} computes with")
    return backend


@functools.cache
def library(backend: str) -> ctypes.CDLL:
    """peaks.cpp, compiled for a backend of harken's."""
    _, width, flags = FMA[known(backend)]
    if not (compiler := shutil.which(COMPILER)):
        raise Unknown(f"there is no {COMPILER} to compile it with")
    if "amx_bf16" in machine.describe()["vectors"]:
        flags += ("-mamx-tile", "-mamx-bf16")
    command = [compiler, "-O2", "-std=c++17", "-shared", "-fPIC", "-pthread", f"-DBYTES={width}", *flags]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "peaks.so")
        done = subprocess.run([*command, SOURCE, "-o", target], capture_output=True, text=True)
        if done.returncode:
            reason = [line for line in done.stderr.splitlines() if "error" in line] or ["it cannot be compiled"]
            raise Unknown(reason[0])
        code = ctypes.CDLL(str(target))
    loop = [ctypes.c_long, ctypes.c_int]
    code.multiply_add_float32.argtypes = code.multiply_add_float64.argtypes = loop
    code.stream.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, *loop]
    if hasattr(code, "allow_tiles"):
        code.allow_tiles.restype, code.tile_products.argtypes = ctypes.c_bool, loop
    return code
