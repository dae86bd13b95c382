"""Linear is x Wᵀ + b and what follows it, on every backend, however many rows there are and whatever stands in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from harken import layers
from harken.layers import Linear
from harken.layers.linear import product

Array = NDArray[Any]
FLOATS = [np.float32, np.float64]


def numbers(rows: int, inputs: int, outputs: int, dtype: Any) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape).astype(dtype) for shape in ((rows, inputs), (outputs, inputs), outputs))
    return x, w, b


def exact(x: Array, w: Array, b: Array) -> Array:
    wide = np.float64 if x.dtype == np.float32 else np.longdouble
    y: Array = x.astype(wide) @ w.T.astype(wide) + b
    return y


SIZES = [(1, 3, 2), (7, 19, 21), (10, 384, 96), (33, 1537, 66), (5, 1, 1), (64, 100, 37)]
MANY = [(40, 32, 5), (65, 64, 33), (130, 1024, 40), (300, 416, 100), (1100, 64, 7)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sizes", SIZES + MANY)
def test_no_worse_than_numpy(backend: str, dtype: Any, sizes: tuple[int, int, int]) -> None:
    x, w, b = numbers(*sizes, dtype)
    ours, right = product(x, w, b), exact(x, w, b)
    theirs = np.abs(x @ w.T + b - right).max()
    assert ours.dtype == dtype
    assert np.abs(ours - right).max() <= 2 * theirs + np.finfo(dtype).eps * np.abs(right).max()


@pytest.mark.parametrize("sizes", SIZES[2:4] + MANY[:3])
@pytest.mark.parametrize("name", ["gelu", "relu", "tanh"])
def test_an_activation_comes_after_the_bias(backend: str, name: str, sizes: tuple[int, int, int]) -> None:
    x, w, b = numbers(*sizes, np.float32)
    plain = product(x, w, None)
    np.testing.assert_array_equal(product(x, w, b), plain + b)
    np.testing.assert_array_equal(product(x, w, b, name), getattr(layers, name)(plain + b))
    np.testing.assert_array_equal(product(x, w, None, name), getattr(layers, name)(plain))


@pytest.mark.parametrize("rows", [3, 50, 200, 300])
def test_what_is_not_finite_stays_in_its_row(backend: str, rows: int) -> None:
    x, w, b = numbers(rows, 64, 70, np.float32)
    before = product(x, w, b)
    x[0, 5], x[1, 6], x[2] = np.nan, np.inf, 1e25
    after = product(x, w, b)
    assert np.isnan(after[0]).all()
    assert np.isinf(after[1]).all()
    np.testing.assert_allclose(after[2], exact(x[2:3], w, b)[0], rtol=2e-4)
    np.testing.assert_array_equal(after[3:], before[3:])
    w[9, 3] = np.nan
    after = product(x, w, b)
    assert np.isnan(after[:, 9]).all()
    np.testing.assert_allclose(after[3:, [8, 10]], before[3:, [8, 10]], rtol=1e-3, atol=1e-5)
    w[9], w[40] = np.inf, np.float32(1e25) * w[40]
    with np.errstate(all="ignore"):  # NumPy's product, where there is no engine
        after = product(x, w, b)
    assert not np.isfinite(after[:, 9]).any()
    np.testing.assert_allclose(after[3:, 40], exact(x[3:], w[40:41], b[40:41])[:, 0], rtol=1e-3)
    np.testing.assert_allclose(after[3:, 41:], before[3:, 41:], rtol=1e-3, atol=1e-5)


def test_bits_of_a_row_do_not_depend_on_the_others(backend: str) -> None:
    for rows in (9, 20, 150, 300):
        x, w, b = numbers(rows, 384, 100, np.float32)
        whole = product(x, w, b, "gelu")
        np.testing.assert_array_equal(product(x[::-1], w, b, "gelu")[::-1], whole)
    x, w, b = numbers(20, 384, 100, np.float32)
    np.testing.assert_array_equal(product(x[3:4], w, b), product(x[:9], w, b)[3:4])
    np.testing.assert_array_equal(product(x[3:15], w, b), product(x, w, b)[3:15])
    np.testing.assert_array_equal(product(x, w[3:4], b[3:4]), product(x, w, b)[:, 3:4])


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8), (2, 0)])
def test_sizes_of_zero(backend: str, shape: tuple[int, ...]) -> None:
    layer = Linear(shape[-1], 5)
    assert layer(np.ones(shape, np.float32)).shape == (*shape[:-1], 5)
    if shape == (2, 0):
        np.testing.assert_array_equal(layer(np.ones(shape, np.float32)), np.tile(layer.bias, (2, 1)))
    assert Linear(4, 0)(np.ones((3, 4), np.float32)).shape == (3, 0)


def test_layer_takes_any_layout_and_fills_out() -> None:
    layer, x = Linear(6, 4, rng=0), np.random.default_rng(0).standard_normal((5, 6, 3)).astype(np.float32)
    view = x.swapaxes(1, 2)
    wanted = layer(view.copy())
    np.testing.assert_array_equal(layer(view), wanted)
    out = np.empty((5, 3, 4), np.float32)
    assert layer(view, out=out) is out
    np.testing.assert_array_equal(out, wanted)
    np.testing.assert_array_equal(layer(view, activation="gelu"), layers.gelu(wanted))
    square = Linear(6, 6, rng=0)
    y = square(view)
    rows = view.copy()
    assert square(rows, out=rows) is rows
    np.testing.assert_array_equal(rows, y)
    with pytest.raises(ValueError, match=r"out is float32 \(4,\): wanted an array of float32 \(5, 3, 4\)"):
        layer(view, out=out[0, 0])
