"""The emulator as a library: kernels of the card compiled for the processor, in place of libharken_cuda.so."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from harken.cuda import interface

CUDA = Path(__file__).parents[1] / "csrc" / "cuda"
KERNELS = ("decode", "hopper", "portable", "tf32", "simple")
HOST = (
    "emulator.cpp", "emulated_engines.cpp", "emulated_card.cpp", "kernels.cpp", "staging.cpp", "pieces.cpp", "flow.cpp",
    "interface.cpp",
)  # fmt: skip
FLAGS = [
    "-std=gnu++20",
    "-O2",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-U_FORTIFY_SOURCE",
    "-fcf-protection=none",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-missing-field-initializers",
    "-Wno-unknown-pragmas",
]


@cache
def built() -> Path:
    """The library, compiled once a run of the tests."""
    folder = Path(tempfile.mkdtemp(prefix="harken-emulator-"))
    objects, running = [], []
    table = " ".join(f"X({name})" for name in KERNELS)
    for name in (*(f"{kernel}.cu" for kernel in KERNELS), *HOST):
        objects.append(folder / f"{name}.o")
        defined = [f"-DHARKEN_CUDA_KERNELS={table}", '-DHARKEN_SOURCE="emulated"']
        command = ["g++", *FLAGS, *defined, "-x", "c++", "-c", str(CUDA / name), "-o", str(objects[-1])]
        running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, said = process.communicate()
        assert process.returncode == 0, said
    target = folder / "libharken_cuda.so"
    subprocess.run(["g++", "-shared", *map(str, objects), "-o", str(target)], check=True)
    return target


def able() -> bool:
    """Can it be compiled here?"""
    return shutil.which("g++") is not None


needed = pytest.mark.skipif(not able(), reason="no g++ to compile the emulator with")


@contextmanager
def card(kernel: str | None = "simple") -> Iterator[None]:
    """Inside, "cuda" is the emulator, and this kernel computes."""
    wanted = {"HARKEN_CUDA_LIBRARY": str(built()), "HARKEN_CUDA_KERNEL": kernel}
    before = {name: os.environ.get(name) for name in wanted}
    put(wanted)
    interface.load.cache_clear()
    try:
        yield
    finally:
        put(before)
        interface.load.cache_clear()


def throughout(kernel: str) -> Any:
    """A fixture for a module: in each of its tests "cuda" is the emulator, and this kernel computes."""

    @pytest.fixture(autouse=True)
    def forced() -> Iterator[None]:
        with card(kernel):
            yield

    return forced


def put(variables: dict[str, str | None]) -> None:
    """Set environment variables; None unsets."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
