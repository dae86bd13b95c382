"""The C interface of libharken_cuda.so in Python's words: loaded when it is first needed, its faults as exceptions."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, c_char, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from functools import cache
from pathlib import Path

INTERFACE = 2
OK, NO_CARD, NO_KERNEL, OUT_OF_MEMORY, FAILED, MISUSED = range(6)


class CardFacts(Structure):
    """harken_cuda_card_facts."""

    _fields_ = [
        ("name", c_char * 256), ("major", c_int32), ("minor", c_int32), ("processors", c_int32), ("memory", c_int64),
        ("free", c_int64),
    ]  # fmt: skip


class KernelFacts(Structure):
    """harken_cuda_kernel_facts."""

    _fields_ = [
        ("name", c_char_p),
        ("idea", c_char_p),
        ("source", c_char_p),
        ("capability", c_int32),
        ("newer", c_int32),
    ]


class Call(Structure):
    """harken_cuda_call."""

    _fields_ = [
        ("problem", c_void_p), ("problem_bytes", c_size_t), ("kernels", c_uint64), ("stream", c_void_p),
        ("card", c_int32),
    ]  # fmt: skip


class PlanFacts(Structure):
    """harken_cuda_plan_facts."""

    _fields_ = [
        ("kernel", c_int32), ("threads", c_int32), ("blocks", c_int64), ("shared_bytes", c_int64),
        ("workspace", c_int64), ("why", c_char * 1024),
    ]  # fmt: skip


FUNCTIONS = {
    "cards": [POINTER(c_int32)],
    "capability": [c_int32, POINTER(c_int32)],
    "card": [c_int32, POINTER(CardFacts)],
    "kernel": [c_int32, POINTER(KernelFacts)],
    "plan": [POINTER(Call), POINTER(PlanFacts)],
    "attend": [POINTER(Call)],
    "allocate": [c_int32, c_size_t, c_void_p, POINTER(c_void_p)],
    "release": [c_int32, c_void_p, c_void_p],
    "copy": [c_int32, c_void_p, c_void_p, c_size_t, c_void_p],
    "copy_rows": [c_int32, c_void_p, c_int64, c_void_p, c_int64, c_size_t, c_size_t, c_void_p],
    "clear": [c_int32, c_void_p, c_size_t, c_void_p],
    "wait": [c_int32, c_void_p],
    "pin": [c_int32, c_size_t, POINTER(c_void_p)],
    "unpin": [c_int32, c_void_p],
    "where": [c_void_p, POINTER(c_int32)],
}


class Absent(RuntimeError):
    """There is no library, or none that can be used; the words say why."""


class Library:
    """One loaded libharken_cuda.so."""

    def __init__(self, path: Path) -> None:
        try:
            self.functions = ctypes.CDLL(str(path))  # calls leave the lock
        except OSError as error:
            raise Absent(f"{path.name} cannot be loaded: {error}") from None
        version = self.functions.harken_cuda_interface()
        if version != INTERFACE:
            raise Absent(f"{path} has version {version} of the interface, wanted {INTERFACE}: build both together")
        for name in ("build", "error"):
            getattr(self.functions, f"harken_cuda_{name}").restype = c_char_p
        for name, types in FUNCTIONS.items():
            getattr(self.functions, f"harken_cuda_{name}").argtypes = types
        self.path = path
        self.capabilities: dict[int, str] = {}
        self.build = self.functions.harken_cuda_build().decode()

    def status(self, name: str, *arguments: object) -> tuple[int, str]:
        """What a function answers, and in words what is wrong."""
        status: int = getattr(self.functions, f"harken_cuda_{name}")(*arguments)
        return status, "" if status == OK else self.functions.harken_cuda_error().decode(errors="replace")

    def call(self, name: str, *arguments: object) -> None:
        """Call a function, or raise what went wrong."""
        status, words = self.status(name, *arguments)
        if status == OUT_OF_MEMORY:
            raise MemoryError(words)
        if status != OK:
            raise RuntimeError(words)

    def kernels(self) -> list[KernelFacts]:
        """Of this build, fastest first."""
        found = [KernelFacts() for _ in range(self.functions.harken_cuda_kernels())]
        for n, facts in enumerate(found):
            self.call("kernel", c_int(n), facts)
        return found

    def capability(self, number: int) -> str:
        """9.0; raises for a card that is not there."""
        if number not in self.capabilities:
            found = c_int32()
            self.call("capability", number, found)
            self.capabilities[number] = f"{found.value // 10}.{found.value % 10}"
        return self.capabilities[number]

    def card(self, number: int) -> CardFacts:
        """What a card is."""
        facts = CardFacts()
        self.call("card", number, facts)
        return facts


@cache
def load() -> Library:
    """The library of this build, or the one that HARKEN_CUDA_LIBRARY names."""
    named = os.environ.get("HARKEN_CUDA_LIBRARY")
    path = Path(named) if named else Path(__file__).with_name("libharken_cuda.so")
    if not path.exists():
        raise Absent(f"HARKEN_CUDA_LIBRARY={named} is no file" if named else "this build of harken has no CUDA kernels")
    return Library(path)
