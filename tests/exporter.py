"""An exporter of DLPack by hand, of no library, each field of which can be set, and wrong."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from compare import Array

CODES = {"i": 0, "u": 1, "f": 2, "V": 4, "c": 5, "b": 6}  # V: ml_dtypes' bfloat16


class Tensor(ctypes.Structure):
    """`DLTensor` of dlpack.h."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("device", ctypes.c_int32), ("number", ctypes.c_int32), ("axes", ctypes.c_int32),
        ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("sizes", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


class Managed(ctypes.Structure):
    """`DLManagedTensor`, and `DLManagedTensorVersioned` below."""

    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("release", ctypes.c_void_p)]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p),
        ("release", ctypes.c_void_p), ("flags", ctypes.c_uint64), ("tensor", Tensor),
    ]  # fmt: skip


api = ctypes.pythonapi
new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_New", api))
valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", api))
inside = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", api))

alive: dict[int, Any] = {}  # what a capsule points to, by its address


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def release(tensor: int) -> None:
    alive.pop(tensor)[-1].released += 1


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def destroy(capsule: int) -> None:
    """As every producer's: what nobody has taken over is released."""
    for name in (b"dltensor", b"dltensor_versioned"):
        if valid(capsule, name):
            release(inside(capsule, name))


class Exporter:
    """The memory of an array; keywords are fields of the tensor, or `major` and `flags` of a versioned one."""

    def __init__(self, array: Array, *, versioned: bool = True, **fields: Any) -> None:
        self.array, self.versioned, self.fields = array, versioned, fields
        self.exported = self.released = 0

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.fields.get("device", 1), self.fields.get("number", 0)

    def __dlpack__(self, **wanted: Any) -> Any:
        if wanted and not self.versioned:
            raise TypeError(f"unexpected keywords {wanted}")
        name = b"dltensor_versioned" if self.versioned else b"dltensor"
        return new(ctypes.addressof(self.tensor()), name, ctypes.cast(destroy, ctypes.c_void_p))

    def tensor(self) -> Any:
        """The managed tensor, alive until it is released."""
        x = self.array
        sizes = (ctypes.c_int64 * x.ndim)(*x.shape)
        strides = (ctypes.c_int64 * x.ndim)(*(n // x.itemsize for n in x.strides))
        tensor = Tensor(
            data=x.ctypes.data, device=1, axes=x.ndim, code=CODES[x.dtype.kind], bits=8 * x.itemsize, lanes=1,
            sizes=sizes, strides=strides,
        )  # fmt: skip
        head = {name: self.fields[name] for name in ("major", "flags") if name in self.fields}
        for name, value in self.fields.items():
            if name not in head:
                setattr(tensor, name, value)
        made = Versioned(**{"major": 1, **head}, tensor=tensor) if self.versioned else Managed(tensor=tensor)
        made.release = ctypes.cast(release, ctypes.c_void_p)
        alive[ctypes.addressof(made)] = made, sizes, strides, self
        self.exported += 1
        return made


def contiguous(array: Array) -> Exporter:
    """Without strides, as before version 1.2, and with an offset into the memory."""
    x = np.ascontiguousarray(array)
    return Exporter(x, strides=None, data=x.ctypes.data - 64, byte_offset=64)
