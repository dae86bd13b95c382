"""The card by its library alone: memory with a fence of NaN around every array, and kernels one by one."""

from __future__ import annotations

import importlib.util
import sys
from ctypes import byref, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from card.numbers import Array
from card.problem import Operand, Problem, call

HARKEN = Path(__file__).parents[2] / "python" / "harken"
FENCE = 512  # bytes


def module(path: Path, name: str) -> Any:
    """A module of harken's that needs none of the others."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec
        assert spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


reference = module(HARKEN / "reference.py", "card_reference").reference
interface = module(HARKEN / "cuda" / "interface.py", "card_interface")


class Card:
    """Card 0, and the kernels of the library."""

    def __init__(self) -> None:
        self.interface = interface.load()
        self.facts = self.interface.card(0)
        self.capability = self.interface.capability(0)
        self.kernels = [kernel.name.decode() for kernel in self.interface.kernels()]

    def lacks(self, problem: Problem, kernel: str) -> str | None:
        """Why a kernel does not take a problem; None: it does."""
        plan = interface.PlanFacts()
        status, words = self.interface.status("plan", byref(self.call(problem, kernel)), plan)
        if status not in (interface.OK, interface.NO_KERNEL):
            raise RuntimeError(words)
        return None if status == interface.OK else words

    def attend(self, problem: Problem, kernel: str, stream: int | None = None) -> None:
        """Queue the work, or wait for it where results lie on the host."""
        self.interface.call("attend", byref(self.call(problem, kernel, stream)))

    def call(self, problem: Problem, kernel: str, stream: int | None = None) -> Any:
        return call(interface.Call, problem, self.kernels.index(kernel), 0, stream)

    def wait(self) -> None:
        self.interface.call("wait", 0, None)


class Held:
    """An array on the card between two fences, with the strides that it has on the host."""

    def __init__(self, card: Card, x: Array, type: str, fill: bool = True) -> None:
        self.card, self.type, self.host = card, type, x
        order = np.argsort([-abs(n) for n in x.strides], kind="stable")
        self.packed = np.ascontiguousarray(x.transpose(order))
        self.bytes = np.full(self.packed.nbytes + 2 * FENCE, 0xFF, np.uint8)  # NaN, -1, True
        if fill:
            self.bytes[FENCE : FENCE + self.packed.nbytes] = self.packed.reshape(-1).view(np.uint8)
        self.at = c_void_p()
        card.interface.call("allocate", 0, self.bytes.nbytes, None, byref(self.at))
        card.interface.call("copy", 0, self.at, self.bytes.ctypes.data, self.bytes.nbytes, None)
        strides = np.empty(x.ndim, np.int64)
        strides[order] = self.packed.strides
        assert self.at.value
        self.operand = Operand(self.at.value + FENCE, type, x.shape, tuple(int(n) for n in strides))
        self.order = order

    def read(self) -> Array:
        """What lies there now."""
        now = np.empty_like(self.bytes)
        self.card.interface.call("copy", 0, now.ctypes.data, self.at, now.nbytes, None)
        self.card.wait()
        if (now[:FENCE] != 0xFF).any() or (now[len(now) - FENCE :] != 0xFF).any():
            raise ValueError("written past an array")
        inner = now[FENCE : len(now) - FENCE].view(self.packed.dtype).reshape(self.packed.shape)
        return inner.transpose(np.argsort(self.order))

    def release(self) -> None:
        self.card.interface.call("release", 0, self.at, None)
