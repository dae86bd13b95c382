"""What cannot be read where it lies is refused, with the argument's name and what to do."""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from child import in_child
from exporter import Exporter
from libraries import Library
from quick import Quick

import harken


def zeros(**fields: Any) -> Exporter:
    return Exporter(np.zeros((2, 3, 4), np.float32), **fields)


class Failing(Exporter):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __dlpack__(self, **wanted: Any) -> Any:
        raise self.error


class NoCapsule(Exporter):
    def __dlpack__(self, **wanted: Any) -> Any:
        return 7


WRONG: list[tuple[Exporter, type[Exception], str]] = [
    (zeros(device=2, number=1), RuntimeError,
     f"NAME lies on cuda:1: {harken.cuda.why_not()}; give a copy that lies on the CPU"),
    (zeros(device=10), RuntimeError,
     "NAME lies on rocm:0: harken computes on the CPU and on NVIDIA cards; give a copy that lies on the CPU"),
    (zeros(device=99, number=3), RuntimeError,
     "NAME lies on DLPack's device 99:3: harken computes on the CPU and on NVIDIA cards; "
     "give a copy that lies on the CPU"),
    (zeros(lanes=4), TypeError, "NAME has elements of DLPack's type 2 with 32 bits in 4 lanes, which NumPy has not"),
    (zeros(code=17, bits=4), TypeError,
     "NAME has elements of DLPack's type 17 with 4 bits in 1 lanes, which NumPy has not"),
    (zeros(data=None), TypeError, "NAME has sizes and no memory"),
    (zeros(axes=65), ValueError, "NAME has 65 axes: wanted at most 64"),
    (zeros(major=2), BufferError, "NAME comes by version 2.0 of DLPack: wanted 1.x"),
    (NoCapsule(np.ones(3)), TypeError,
     "NAME is a test_foreign_errors.NoCapsule that gives no DLPack capsule: it gives int"),
    (Failing(BufferError("is elsewhere\nfor long")), TypeError,
     "NAME is a test_foreign_errors.Failing that cannot be read where it lies: is elsewhere"),
    (Exporter(np.zeros((2, 3, 4), complex)), TypeError,
     "NAME is complex128: wanted float64, float32, float16 or bfloat16"),
    (Exporter(np.zeros(4, np.float32)), ValueError,
     "NAME has shape (4,): wanted at least two axes, (length, channels)"),
]  # fmt: skip


@pytest.mark.parametrize("function", [harken.attention, harken.explain], ids=["attention", "explain"])
@pytest.mark.parametrize("name", ["q", "k"])
@pytest.mark.parametrize(("wrong", "error", "text"), WRONG, ids=[text[5:40] for *_, text in WRONG])
def test_text(function: Any, name: str, wrong: Exporter, error: type[Exception], text: str) -> None:
    arguments: dict[str, Any] = dict.fromkeys("qkv", np.zeros((2, 3, 4), np.float32))
    with pytest.raises(error) as caught:
        function(**(arguments | {name: wrong}))
    assert type(caught.value) is error
    assert str(caught.value) == text.replace("NAME", name)


def test_types_that_differ(library: Library) -> None:
    q = library.of(np.ones((3, 4), np.float32))
    with pytest.raises(TypeError, match=r"^q is float32, k is float64: give both the same dtype$"):
        harken.attention(q, library.of(np.ones((3, 4))), q)
    with pytest.raises(
        TypeError, match=r"^mask is float32: wanted bool, True where a query may look; give mask != 0, "
    ):
        harken.attention(q, q, q, mask=q)
    with pytest.raises(ValueError, match=r"^kv_lengths has shape \(2,\): wanted one that broadcasts to \(\), "):
        harken.attention(q, q, q, kv_lengths=library.of(np.ones(2, int)))


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()], ids=repr)
def test_what_is_no_fault_of_the_array_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        harken.attention(Failing(error), np.ones((3, 4)), np.ones((3, 4)))
    assert caught.value is error


def without_ml_dtypes() -> str:
    x = Exporter(np.zeros((3, 4), ml_dtypes.bfloat16))
    sys.modules["ml_dtypes"] = None  # type: ignore[assignment]
    with pytest.raises(ImportError) as caught:
        harken.attention(x, x, x)
    return str(caught.value)


def test_bfloat16_needs_its_package() -> None:
    text = "q is bfloat16, which NumPy knows through ml_dtypes only: pip install ml_dtypes"
    assert in_child(without_ml_dtypes) == text


def test_table_that_fails() -> None:
    x, broken = Quick(np.ones((3, 4))), Quick(np.ones((3, 4)))
    broken.fails = True  # the capsule does not
    assert isinstance(harken.attention(broken, x, x), Quick)
    for name, value in (("requires_grad", True), ("is_neg", lambda: True)):
        wrong = Quick(np.ones((3, 4)))
        setattr(wrong, name, value)
        with pytest.raises(TypeError, match=r"^q (requires a gradient|negates what lies in memory)"):
            harken.attention(wrong, x, x)
        assert wrong.exported == 0
    for refused in ({"device": 2}, {"lanes": 2}, {"axes": 65}, {"data": None}):
        with pytest.raises((RuntimeError, TypeError, ValueError), match=r"^q "):
            harken.attention(wrong := Quick(np.ones((3, 4)), **refused), x, x)
        assert wrong.released == wrong.exported == 1


def test_tensors_that_are_more_than_numbers() -> None:
    torch = pytest.importorskip("torch")
    x = torch.ones(3, 4)
    conjugate = torch.full((3, 4), 1 + 2j).conj()
    unreadable = "q is a torch.Tensor that cannot be read where it lies: "
    gradient = "q requires a gradient, which harken does not compute: give q.detach()"
    for q, text in (
        (x.clone().requires_grad_(), gradient),
        (torch.nn.Parameter(x.clone()), gradient),
        (conjugate.imag, "q negates what lies in memory: give q.resolve_neg()"),
        (conjugate, "q is "),
        (x.to_sparse(), unreadable),
        (x.to("meta"), unreadable + "Cannot pack tensors on meta"),
        (torch._efficientzerotensor(3, 4), "q has sizes and no memory"),
    ):
        for function in (harken.attention, harken.reference, harken.explain):
            with pytest.raises(TypeError) as caught:
                function(q, x, x)
            assert str(caught.value).startswith(text)
    with pytest.raises(TypeError, match=r"^out requires a gradient"):
        harken.attention(x, x, x, out=torch.zeros(3, 4).requires_grad_())
    with pytest.raises(TypeError, match=f"^{unreadable}"):
        torch.func.vmap(harken.attention)(*[torch.ones(2, 3, 4)] * 3)
    assert harken.attention(x.clone().requires_grad_().detach(), x, x).sum() == 12


def test_tracers() -> None:
    jax = pytest.importorskip("jax")
    x = jax.numpy.ones((2, 3, 4))
    for transformed in (jax.jit(harken.attention), jax.vmap(harken.attention)):
        with pytest.raises(
            TypeError, match=r"^q is a jax\.\w+Tracer that cannot be read where it lies: Abstract tracer"
        ):
            transformed(x, x, x)
