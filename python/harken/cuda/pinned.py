"""Arrays of the host whose memory stays where it is, so that a card copies it by itself."""

from __future__ import annotations

import weakref
from ctypes import byref, c_uint8, c_void_p
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from harken.cuda.cards import why_not
from harken.cuda.interface import load


def pinned_empty(shape: int | tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """A NumPy array in page-locked memory; what it holds is not set.

    Arrays like that go to a card and come back without a copy on the host, if they have no gaps. Page-locking takes
    long, about a second for a gigabyte or two, and the memory cannot be swapped out: make such arrays once.

    Parameters
    ----------
    shape : int or tuple of int
    dtype : dtype
        float32 unless given.

    Returns
    -------
    ndarray
        In C order. The memory is given back when nothing refers to it any more.

    Raises
    ------
    RuntimeError
        Without a card; the words are those of `why_not`.
    MemoryError
        Where so much cannot be locked.

    Examples
    --------
    >>> import numpy as np
    >>> import harken.cuda
    >>> if harken.cuda.is_available():
    ...     q = harken.cuda.pinned_empty((8, 1000, 64), np.float16)
    """
    if (why := why_not()) is not None:
        raise RuntimeError(f"there is no card to pin memory for: {why}")
    its = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * its.itemsize
    library, at = load(), c_void_p()
    library.call("pin", 0, max(1, size), byref(at))
    assert at.value
    memory: Any = (c_uint8 * size).from_address(at.value)
    weakref.finalize(memory, library.status, "unpin", 0, at)
    return np.frombuffer(memory, np.uint8).view(its).reshape(shape)
