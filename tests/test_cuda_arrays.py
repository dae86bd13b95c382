"""Arrays that lie on a card are computed there and come back as their library's, in the order of a stream."""

from __future__ import annotations

import weakref
from ctypes import byref, c_void_p
from types import SimpleNamespace
from typing import Any

import emulated
import numpy as np
import pytest
from compare import close, qkv
from exporter import Exporter

import harken
import harken.cuda
from harken._load import core
from harken.cuda.interface import load

pytestmark = [emulated.needed, pytest.mark.usefixtures("emulator")]


class Interface:
    """An array of a library that knows `__cuda_array_interface__` alone."""

    def __init__(self, array: Any) -> None:
        self.host, self.at, self.order = np.asarray(array), c_void_p(), None
        base = self.host if self.host.base is None else self.host.base
        assert isinstance(base, np.ndarray)
        load().call("allocate", 0, max(1, base.nbytes), None, byref(self.at))
        load().call("copy", 0, self.at, base.ctypes.data, base.nbytes, None)
        assert self.at.value
        self.address = self.at.value + self.host.ctypes.data - base.ctypes.data
        weakref.finalize(self, load().status, "release", 0, self.at, None)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        interface = dict(self.host.__array_interface__)
        return interface | {"data": (self.address, False), "stream": self.order, "version": 3}

    def numpy(self) -> Any:
        """What lies on the card now."""
        now = np.empty_like(self.host)
        load().call("copy", 0, now.ctypes.data, self.address, now.nbytes, None)
        return now


class Tensor(Exporter):
    """An array of a library that knows DLPack."""

    def __init__(self, array: Any) -> None:
        self.array, self.asked = array, []

    def __dlpack__(self, *, stream: Any = None, **wanted: Any) -> Any:
        self.asked.append(stream)
        return core._capsule(self.array, 0)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __array_namespace__(self) -> Any:
        return SimpleNamespace(from_dlpack=lambda x: Tensor(core._view(x.__dlpack__(stream=1), "x", 0)))

    def numpy(self) -> Any:
        """A copy on the host."""
        return harken.cuda.Array(self.array, 0, 0).numpy()


def tensor(array: Any) -> Tensor:
    """On the card."""
    there = Interface(array)
    interface = SimpleNamespace(__array_interface__={**there.__cuda_array_interface__}, owner=there)
    del interface.__array_interface__["stream"]
    if there.host.dtype.name != "bfloat16":
        return Tensor(np.asarray(interface))
    interface.__array_interface__.update(typestr="<u2", descr=[("", "<u2")])
    return Tensor(np.asarray(interface).view(there.host.dtype))


def test_dlpack(dtype: np.dtype[Any]) -> None:
    q, k, v = qkv(dtype, 20, 45, 24, 40, Hq=4, Hkv=2, batch=(2,))
    mask = np.random.default_rng(0).random((20, 45)) < 0.7
    options: dict[str, Any] = {"causal": True, "kv_lengths": [45, 30], "return_lse": True, "return_weights": True}
    given = [tensor(x) for x in (q, k, v)]
    results = harken.attention(*given, mask=tensor(mask), **options)
    truth = harken.reference(q, k, v, mask=mask, **options, dtype=np.float64)
    naive = harken.reference(q, k, v, mask=mask, **options)
    wanted = harken.attention(q, k, v, mask=mask, **options, device="cuda")
    for n, result in enumerate(results):
        assert isinstance(result, Tensor)
        np.testing.assert_array_equal(result.numpy(), wanted[n])
        close("result", result.numpy(), naive[n], truth[n], 1e-6)
    assert [x.asked for x in given] == [[1], [1], [1]] or all(x.asked[-1] == 1 for x in given)


def test_interface() -> None:
    q, k, v = qkv(np.float32, 20, 45, 24, Hq=4, Hkv=2)
    given = [Interface(x) for x in (q, k[:, ::-1], v[..., ::2])]
    out = harken.attention(*given, scale=Interface(np.full(4, 0.3)), window=(9, 9))
    assert isinstance(out, harken.cuda.Array)
    wanted = harken.attention(q, k[:, ::-1], v[..., ::2], scale=0.3, window=(9, 9), device="cuda")
    np.testing.assert_array_equal(out.numpy(), wanted)
    assert (out.__dlpack_device__(), out.shape) == ((2, 0), (4, 20, 12))
    again = harken.attention(out, out, out)  # what comes back goes in again
    np.testing.assert_array_equal(again.numpy(), harken.attention(wanted, wanted, wanted, device="cuda"))


def test_out() -> None:
    q, k, v = qkv(np.float16, 20, 45, 24)
    out = Interface(np.zeros_like(q))
    assert harken.attention(*map(tensor, (q, k, v)), out=out) is out
    np.testing.assert_array_equal(out.numpy(), harken.attention(q, k, v, device="cuda"))
    with pytest.raises(ValueError, match=r"^out overlaps an input: on a card wanted memory of its own$"):
        harken.attention(out, out, out, out=out)


def test_streams() -> None:
    q = Interface(np.ones((3, 4), np.float32))
    stream = SimpleNamespace(__cuda_stream__=lambda: (0, 7))
    for given, wanted in ((7, 7), (stream, 7), (None, 1)):
        out = harken.cuda.attention(q, q, q, stream=given)
        assert out.__cuda_array_interface__["stream"] == wanted
    x = tensor(np.ones((3, 4), np.float32))
    harken.cuda.attention(x, x, x, stream=7)
    assert 7 in x.asked
    with pytest.raises(TypeError, match=r"^stream is 'main': wanted an integer, or an object with __cuda_stream__$"):
        harken.cuda.attention(q, q, q, stream="main")


def test_the_plan() -> None:
    q, k, v = map(tensor, qkv(np.float32, 20, 45, 24))
    assert isinstance(harken.explain(q, k, v, causal=True), harken.cuda.Plan)


def test_wrong_calls() -> None:
    q = Interface(np.ones((3, 4), np.float32))
    host = np.ones((3, 4), np.float32)
    calls: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"k": host}, TypeError, "k lies on the host, q on cuda:0: give q, k and v on the card"),
        ({"q": host}, TypeError, "q lies on the host, k on cuda:0: give q, k and v on the card"),
        ({"out": host}, TypeError, "out lies on the host, q on cuda:0: give an out that lies on the card"),
        ({"device": "cpu"}, ValueError, "device is 'cpu', q lies on cuda:0: leave device=None"),
        ({"k": Interface(np.ones((3, 4), int))}, TypeError,
         "k is int64 on cuda:0: wanted float64, float32, float16, bfloat16, int8"),
        ({"mask": Interface(host)}, TypeError, "mask is float32 on cuda:0: wanted bool"),
        ({"k": Interface(np.ones((3, 5), np.float32))}, ValueError,
         "q has 4 channels, k has 5: a query and a key need the same number"),
    ]  # fmt: skip
    for changed, error, text in calls:
        with pytest.raises(error) as raised:
            harken.attention(**({"q": q, "k": q, "v": q} | changed))
        assert str(raised.value) == text


def test_other_functions_say_where_they_compute() -> None:
    q = tensor(np.ones((1, 3, 4), np.float32))
    with pytest.raises(RuntimeError, match=r"^q lies on cuda:0: this function computes on the CPU only; give a copy"):
        harken.attention_stats(q, q, top_k=1)
