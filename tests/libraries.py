"""Libraries of arrays beside NumPy, and how their arrays meet NumPy's without harken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from compare import DTYPES, Array, qkv, same_bits
from quick import Quick

BFLOAT16 = DTYPES["bfloat16"]
FLAGS: dict[str, Any] = {"return_lse": True, "return_weights": True}


@dataclass(frozen=True)
class Library:
    """A library of arrays, and how its arrays meet NumPy's without harken."""

    name: str
    kind: type
    of: Callable[[Array], Any]
    numpy: Callable[[Any], Array]
    address: Callable[[Any], int]
    dtypes: tuple[str, ...] = tuple(DTYPES)
    immutable: bool = False

    def has(self, dtype: Any) -> bool:
        return np.dtype(dtype).name in self.dtypes

    def all_of(self, options: dict[str, Any]) -> dict[str, Any]:
        return {name: self.of(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}


def quick() -> Library:
    return Library("quick", Quick, Quick, lambda x: x.array, lambda x: x.array.ctypes.data)


def strict() -> Library:
    xp = pytest.importorskip("array_api_strict")

    def numpy(x: Any) -> Array:
        return np.from_dlpack(x)

    return Library(
        "strict", type(xp.ones(1)), xp.asarray, numpy, lambda x: numpy(x).ctypes.data, ("float64", "float32")
    )


def torch() -> Library:
    torch = pytest.importorskip("torch")

    def of(x: Array) -> Any:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype == BFLOAT16 else torch.from_numpy(x)

    def numpy(x: Any) -> Array:
        return x.view(torch.int16).numpy().view(BFLOAT16) if x.dtype == torch.bfloat16 else x.numpy()

    return Library("torch", torch.Tensor, of, numpy, lambda x: x.data_ptr())


def jax() -> Library:
    jax = pytest.importorskip("jax")
    return Library("jax", jax.Array, jax.numpy.asarray, np.asarray, lambda x: x.unsafe_buffer_pointer(), immutable=True)


def equal(library: Library, ours: Any, numpys: Any) -> None:
    """The same bits, in arrays of the library."""
    for a, b in zip(ours, numpys, strict=True) if isinstance(numpys, tuple) else [(ours, numpys)]:
        assert isinstance(a, library.kind)
        same_bits(library.numpy(a), b)


def every_option(dtype: Any) -> tuple[list[Array], dict[str, Any]]:
    """A call with an array in every place that takes one."""
    q, k, v = qkv(dtype, 12, 20, Hq=4, Hkv=2, batch=(3,))
    rng = np.random.default_rng(0)
    arrays = {
        "mask": rng.random((3, 1, 12, 20)) < 0.7,
        "bias": rng.standard_normal((4, 1, 20)).astype(dtype),
        "q_start": np.array([8, 0, -2]),
        "q_lengths": np.array([12, 5, 11], np.int32),
        "kv_lengths": np.array([20, 9, 0], np.int32),
        "scale": np.array([0.25, 0.5, 1.0, 0.0]),
        "alibi": rng.random((3, 4)).astype(np.float32),
        "sinks": np.array(-0.5, np.float32),
    }
    return [q, k, v], {**arrays, "window": (9, None), "softcap": 5.0, **FLAGS}
