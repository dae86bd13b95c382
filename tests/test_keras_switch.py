"""harken enters Keras and leaves it without a trace, and says what keeps it out."""

from __future__ import annotations

import doctest
import itertools
import re
import sys
from typing import Any

import pytest
from child import output
from with_keras import keras

import harken.keras


def places() -> list[Any]:
    """What stands where harken would be."""
    layers = keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention
    nn = sys.modules["keras.src.backend.numpy.nn"]
    return [vars(nn)["dot_product_attention"], *(vars(layer)["_compute_attention"] for layer in layers)]


def same(a: list[Any], b: list[Any]) -> bool:
    return [id(x) for x in a] == [id(x) for x in b]


def test_switch() -> None:
    before = places()
    harken.keras.disable()
    assert same(places(), before)
    harken.keras.enable()
    during = places()
    assert not any(x is y for x, y in itertools.product(before, during))
    assert [x.__name__ for x in during] == [x.__name__ for x in before]
    harken.keras.enable()
    assert same(places(), during)
    with harken.keras.enable() as inner:
        assert isinstance(inner, harken.keras.Enabled)
    assert same(places(), during)  # as it was before the with
    harken.keras.disable()
    assert same(places(), before)
    harken.keras.disable()
    assert same(places(), before)
    with pytest.raises(ZeroDivisionError), harken.keras.enable():
        _ = 1 / 0
    assert same(places(), before)


def test_disable_takes_nothing_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    before = places()
    harken.keras.enable()
    with monkeypatch.context() as patch:
        patch.setattr(keras.layers.MultiHeadAttention, "_compute_attention", len)
        now = places()
        with pytest.raises(RuntimeError, match=r"MultiHeadAttention._compute_attention was harken's .* function len"):
            harken.keras.disable()
        assert same(places(), now)
    harken.keras.disable()
    assert same(places(), before)


def test_another_keras_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = places()[:2]
    monkeypatch.setattr(keras.layers.GroupQueryAttention, "_compute_attention", lambda self, q, k, v: None)
    with pytest.raises(RuntimeError, match=r"GroupedQueryAttention._compute_attention of Keras .* Keras 3\.15"):
        harken.keras.enable()
    assert same(places()[:2], before)


ENABLE = """
import sys
sys.modules[{missing!r}] = None
import harken.keras
try:
    harken.keras.enable()
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("missing", "backend", "says"),
    [
        ("keras", "numpy", r"ImportError harken.keras needs Keras: pip install 'harken\[keras\]'"),
        ("jax", "numpy", r"ImportError Keras could not be imported, .* jax: .* and pip install 'harken\[keras\]'"),
        ("tensorflow", "tensorflow", r"ImportError .*, for want of tensorflow: set KERAS_BACKEND=numpy before .*"),
        ("torch", "jax", r"RuntimeError Keras runs on its backend jax, .* set KERAS_BACKEND=numpy in the .*"),
    ],
)
def test_what_is_missing_is_named(missing: str, backend: str, says: str) -> None:
    if backend == "jax":
        pytest.importorskip("jax")
    said = output(ENABLE.format(missing=missing), warn="default", env={"KERAS_BACKEND": backend}).strip()
    assert re.fullmatch(says, said), said


def test_import_is_light() -> None:
    code = "import sys, harken, harken.keras; print('keras' in sys.modules)"
    assert output(code).strip() == "False"


def test_examples_run() -> None:
    assert doctest.testmod(sys.modules["harken.keras.calls"]) == (0, 6)
