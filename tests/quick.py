"""A library by hand whose arrays also have DLPack's table of functions, through which C code meets them directly."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import ml_dtypes
import numpy as np
from exporter import Exporter, Versioned, api, new

from harken.foreign import view


class Quick(Exporter):
    """An array of this library."""

    requires_grad, fails = False, False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __getitem__(self, where: Any) -> Quick:
        return Quick(self.array[where])

    def is_neg(self) -> bool:
        return False


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(ctypes.c_void_p))
def export_array(quick: Quick, tensor: Any) -> int:
    if quick.fails:
        return -1
    tensor[0] = ctypes.addressof(quick.tensor())
    return 0


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p))
def import_tensor(address: int, made: Any) -> int:
    """A C-ordered array of the library over the tensor, which is released when that is gone."""
    managed = Versioned.from_address(address)
    tensor = managed.tensor
    shape = tuple(tensor.sizes[: tensor.axes])
    dtype = np.dtype(ml_dtypes.bfloat16 if tensor.code == 4 else f"f{tensor.bits // 8}")
    memory = (ctypes.c_char * (int(np.prod(shape)) * dtype.itemsize)).from_address(tensor.data)
    quick = Quick(np.frombuffer(memory, dtype).reshape(shape))
    weakref.finalize(quick, ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(managed.release), address)
    api.Py_IncRef(ctypes.py_object(quick))
    made[0] = id(quick)
    return 0


class Exchange(ctypes.Structure):
    """`DLPackExchangeAPI`, of which harken uses no more."""

    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("older", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p), ("export_array", ctypes.c_void_p), ("import_tensor", ctypes.c_void_p),
    ]  # fmt: skip


table = Exchange(
    major=1,
    minor=2,
    export_array=ctypes.cast(export_array, ctypes.c_void_p),
    import_tensor=ctypes.cast(import_tensor, ctypes.c_void_p),
)
later = Exchange(major=2, older=ctypes.addressof(table))
exchange_api = new(ctypes.addressof(later), b"dlpack_exchange_api", None)
Quick.__dlpack_c_exchange_api__ = exchange_api  # type: ignore[attr-defined]


def from_dlpack(x: Any) -> Quick:
    """What makes arrays of this library where the table does not."""
    return Quick(view("x", x))
