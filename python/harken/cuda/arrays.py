"""Arrays that lie on a card: read there, and answered in kind, in the order of the caller's stream.

What is known of a library is what it says of itself: where an array lies by DLPack or by `__cuda_array_interface__`
(version 3), and `from_dlpack`, by which it takes an array. The binding sees NumPy arrays over the same addresses, which
it describes and never reads.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from ctypes import byref, c_int32, c_void_p
from functools import partial
from typing import Any

import numpy as np

from harken._load import core
from harken.attention import attention as computed_here
from harken.cuda.cards import why_not
from harken.cuda.interface import load
from harken.explain import explain as explained_here
from harken.foreign import library_of

CUDA, MANAGED = 2, 13  # DLPack's numbers of devices
LEGACY = 1  # how DLPack and the array interface write the default stream, which CUDA takes, too
READ_THERE = ("q", "k", "v", "mask", "bias", "w", "out")  # the others are small, and go by way of the host
FLOATING = ("float64", "float32", "float16", "bfloat16")
READABLE = {"mask": ("bool",), "k": (*FLOATING, "int8"), "v": (*FLOATING, "int8")}


def attend(values: tuple[Any, ...]) -> Any:
    """What `harken.attention` does when an array among its arguments lies on a card."""
    return _attend(_named(values), None)


def explain(values: tuple[Any, ...]) -> Any:
    """What `harken.explain` does then."""
    given = _named(values)
    card = _card_of(given)
    given["device"] = f"cuda:{card}"
    return explained_here(**described(given, card, 0))


def attention(q: Any, k: Any, v: Any, *, stream: Any = None, **options: Any) -> Any:
    """`harken.attention` over arrays of a card, in the order of a stream.

    Parameters
    ----------
    q, k, v, **options
        As in `harken.attention`. Arrays of PyTorch, CuPy, JAX, Numba or any other library that exports DLPack or
        `__cuda_array_interface__`, all of one card.
    stream : int or object with `__cuda_stream__`, optional
        The CUDA stream that the work is queued on. By default the current one of q's library, where it has that
        notion, as PyTorch and CuPy do; else the default stream.

    Returns
    -------
    out, or a tuple: out, lse, weights
        Arrays of q's library, which wait for the work in the order of their stream; `harken.cuda.Array` where the
        library takes none.

    Examples
    --------
    >>> import harken.cuda
    >>> if harken.cuda.is_available():
    ...     import torch
    ...     x = torch.randn(8, 1000, 64, device="cuda")
    ...     out = harken.cuda.attention(x, x, x, causal=True)
    """
    given = inspect.signature(computed_here).bind(q, k, v, **options)
    given.apply_defaults()
    return _attend(dict(given.arguments), stream)


class Array:
    """An array on a card that is of no library: `numpy()`, or whatever takes DLPack or the array interface."""

    def __init__(self, described: Any, card: int, stream: int) -> None:
        self._described, self.card, self.stream = described, card, stream
        self.shape: tuple[int, ...] = described.shape
        self.dtype: np.dtype[Any] = described.dtype

    def numpy(self) -> Any:
        """A copy on the host."""
        array = np.empty(self.shape, self.dtype)
        library = load()
        source = self._described.__array_interface__["data"][0]
        if array.size:
            library.call("copy", self.card, array.ctypes.data, source, array.nbytes, self.stream)
        library.call("wait", self.card, self.stream)
        return array

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.card

    def __dlpack__(self, *, stream: Any = None, **wanted: object) -> object:
        if stream != -1 and (stream or LEGACY) != (self.stream or LEGACY):  # the consumer's work comes after this
            load().call("wait", self.card, self.stream)
        return core._capsule(self._described, self.card)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        interface = self._described.__array_interface__
        return {
            "shape": self.shape, "typestr": interface["typestr"], "data": interface["data"], "strides": None,
            "version": 3, "stream": self.stream or LEGACY,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"harken.cuda.Array({self.shape}, {self.dtype}, cuda:{self.card})"


def card_of(x: Any) -> int | None:
    """The number of the card that an object's memory lies on; None: on none, or it is no array."""
    if isinstance(x, np.ndarray):
        return None
    if hasattr(type(x), "__dlpack_device__"):
        device, number = x.__dlpack_device__()
        return int(number) if int(device) in (CUDA, MANAGED) else None
    if hasattr(type(x), "__cuda_array_interface__"):
        number = c_int32(-1)
        if why_not() is None:
            load().call("where", x.__cuda_array_interface__["data"][0], byref(number))
        return max(int(number.value), 0)
    return None


def _named(values: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(inspect.signature(computed_here).parameters, values, strict=True))


def _card_of(given: dict[str, Any]) -> int:
    """The card on which all arrays lie that lie on one."""
    cards = {name: number for name, x in given.items() if (number := card_of(x)) is not None}
    why = why_not()
    first, card = next(iter(cards.items()), ("q", 0))
    if why is not None:
        raise RuntimeError(f"{first} lies on cuda:{card}: {why}; give a copy that lies on the CPU")
    for name, number in cards.items():
        if number != card:
            raise ValueError(f"{first} lies on cuda:{card}, {name} on cuda:{number}: give all arrays on one card")
    for name in ("q", "k", "v"):
        if name not in cards:
            raise TypeError(f"{name} lies on the host, {first} on cuda:{card}: give q, k and v on the card")
    if given["out"] is not None and "out" not in cards:
        raise TypeError(f"out lies on the host, q on cuda:{card}: give an out that lies on the card")
    if given["device"] not in (None, "cuda", f"cuda:{card}"):
        raise ValueError(f"device is {given['device']!r}, q lies on cuda:{card}: leave device=None")
    return card


def described(given: dict[str, Any], card: int, stream: int) -> dict[str, Any]:
    """Arrays of the card as NumPy sees them: over the same addresses, or as copies where they are small."""
    described = {}
    for name, x in given.items():
        if card_of(x) is None:
            described[name] = x
            continue
        array = view(name, x, card, stream)
        if name in READ_THERE:
            wanted = READABLE.get(name, FLOATING)
            if array.dtype.name not in wanted:
                raise TypeError(f"{name} is {array.dtype.name} on cuda:{card}: wanted {', '.join(wanted)}")
            described[name] = array
        else:
            described[name] = _copy(array, card, stream)
    return described


def view(name: str, x: Any, card: int, stream: int) -> Any:
    """A NumPy array over memory of the card, which keeps it alive. Work on `stream` finds it as it was left."""
    if getattr(x, "requires_grad", False):
        raise TypeError(f"{name} requires a gradient, which harken does not compute: give {name}.detach()")
    old = name == "out" and hasattr(type(x), "__cuda_array_interface__")  # which says what may be written to
    if old or not hasattr(type(x), "__dlpack__"):
        return _by_interface(x, card, stream)
    try:
        capsule = x.__dlpack__(stream=stream or LEGACY, max_version=(1, 0))
    except TypeError:  # from before version 1
        capsule = x.__dlpack__(stream=stream or LEGACY)
    return core._view(capsule, name, card)


class _Interface:
    """The array interface of the host, over memory of the card."""

    def __init__(self, interface: dict[str, Any], owner: Any) -> None:
        self.__array_interface__, self.owner = interface, owner


def _by_interface(x: Any, card: int, stream: int) -> Any:
    interface = dict(x.__cuda_array_interface__)
    of_producer = interface.pop("stream", None)
    if of_producer is not None and of_producer != (stream or LEGACY):
        load().call("wait", card, of_producer)
    interface["version"] = 3
    return np.asarray(_Interface(interface, x))


def _copy(array: Any, card: int, stream: int) -> Any:
    """The elements on the host, one by one where they lie apart: there are few."""
    library = load()
    copy = np.empty(array.shape, array.dtype)
    for at in np.ndindex(array.shape):
        place = array[at[:-1]][at[-1] :] if at else array
        source, target = place.__array_interface__["data"][0], copy[at[:-1]][at[-1] :] if at else copy
        library.call("copy", card, target.ctypes.data, source, array.itemsize, stream)
    library.call("wait", card, stream)
    return copy


def stream_of(stream: Any, like: Any, card: int) -> int:
    """The address of a stream; 0 is the default one."""
    if isinstance(stream, int):
        return stream
    if stream is not None:
        if not hasattr(stream, "__cuda_stream__"):
            raise TypeError(f"stream is {stream!r}: wanted an integer, or an object with __cuda_stream__")
        protocol = stream.__cuda_stream__
        return int((protocol() if callable(protocol) else protocol)[1])
    package = type(like).__module__.partition(".")[0]
    if package == "torch":
        return int(sys.modules["torch"].cuda.current_stream(card).cuda_stream)
    if package == "cupy":
        return int(sys.modules["cupy"].cuda.get_current_stream().ptr)
    return 0


def _attend(given: dict[str, Any], stream: Any) -> Any:
    card = _card_of(given)
    address = stream_of(stream, given["q"], card)
    return run(given, described(given, card, address), card, address)


def run(given: dict[str, Any], described: dict[str, Any], card: int, stream: int) -> Any:
    """The call, and its results where q lies and of its kind."""
    on_host = card_of(given["q"]) is None
    described["device"] = f"cuda:{card}"
    q, k, v = (described.pop(name) for name in "qkv")
    make = _make_here if on_host else partial(make_there, card, stream)
    results = core.attend_on_card(computed_here, q, k, v, make, stream, described)

    def given_back(array: Any) -> Any:
        if array is described["out"]:
            return given["out"]
        return array if on_host else _give(given["q"], Array(array, card, stream))

    return tuple(map(given_back, results)) if isinstance(results, tuple) else given_back(results)


def make_there(card: int, stream: int, shape: tuple[int, ...], dtype: np.dtype[Any], zero: bool) -> Any:
    """A NumPy array over new memory of the card, which is given back in the order of the stream."""
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    size, library, at = max(1, count), load(), c_void_p()
    library.call("allocate", card, size, stream, byref(at))
    if zero:
        library.call("clear", card, at, size, stream)
    where = {"shape": (size,), "typestr": "|u1", "data": (at.value, False), "version": 3}
    owner = _Interface(where, None)
    weakref.finalize(owner, library.status, "release", card, at, stream)
    return np.asarray(owner)[:count].view(dtype).reshape(shape)


def _make_here(shape: tuple[int, ...], dtype: np.dtype[Any], zero: bool) -> Any:
    return (np.zeros if zero else np.empty)(shape, dtype)


def _give(like: Any, array: Array) -> Any:
    """The array as one of the library of `like`."""
    library = library_of(like)
    if library is not None:
        return library.from_dlpack(array)
    if type(like).__module__.partition(".")[0] in ("numba", "numba_cuda"):
        return sys.modules["numba"].cuda.as_cuda_array(array)
    return array
