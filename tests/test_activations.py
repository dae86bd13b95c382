"""Activations are their equations in float64, number by number, on every backend, with a bias and in place."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_environment import MODES, SERIOUS, environment

from harken import layers
from harken.layers import GELU, Linear, ReLU, Sigmoid, SiLU, Tanh

Array = NDArray[Any]
FLOATS = [np.float32, np.float64]

erfc = np.vectorize(math.erfc, otypes=[np.float64])


def exact(name: str, x: Array) -> Array:
    """In the widest type, without cancellation."""
    z = x.astype(np.longdouble)
    with np.errstate(over="ignore", under="ignore"):
        if name == "gelu":
            return z * erfc(-x.astype(np.float64) / math.sqrt(2)) / 2
        if name == "gelu_tanh":
            return z / (1 + np.exp(-2 * np.sqrt(2 / np.longdouble(math.pi)) * (z + np.longdouble(0.044715) * z**3)))
        if name == "relu":
            return np.maximum(z, 0)
        if name == "tanh":
            return np.tanh(z)
        return (z if name == "silu" else 1) / (1 + np.exp(-z))


def compute(name: str, x: Array, **options: Any) -> Array:
    if name == "gelu_tanh":
        return layers.gelu(x, approximate="tanh", **options)
    function = getattr(layers, name)
    result: Array = function(x, **options)
    return result


NAMES = ["gelu", "gelu_tanh", "relu", "sigmoid", "silu", "tanh"]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", NAMES)
def test_values(backend: str, name: str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([np.linspace(-30, 30, 20001), rng.standard_normal(9999), -(10.0 ** np.linspace(-8, 0, 99))])
    x = x.astype(dtype)
    y, right = compute(name, x), exact(name, x)
    eps = np.finfo(dtype).eps
    assert y.dtype == dtype
    assert np.all(np.abs(y - right) <= 1.5 * eps * np.maximum(1, np.abs(x)))
    # relative, where the result is a normal number; math.erfc and tanh's argument carry the digits of their exponents
    spare = {"gelu": 1 + x.astype(np.float64) ** 2 * (dtype == np.float64), "gelu_tanh": 1 + np.abs(x) ** 3}
    seen = np.abs(right) > 1e3 * np.finfo(dtype).tiny
    assert np.all((np.abs(y - right) <= 5 * eps * spare.get(name, 1) * np.abs(right))[seen])


@pytest.mark.parametrize("name", ["sigmoid", "silu"])
def test_far_left_keeps_its_digits(backend: str, name: str) -> None:
    x = np.linspace(-80, -40, 4001, dtype=np.float32)
    np.testing.assert_allclose(compute(name, x), exact(name, x).astype(np.float64), rtol=6e-7)


def test_gelu_keeps_its_digits_where_erf_loses_them(backend: str) -> None:
    x = np.linspace(-12, -4, 4001, dtype=np.float32)
    np.testing.assert_allclose(compute("gelu", x), exact("gelu", x).astype(np.float64), rtol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", NAMES)
def test_special_values(backend: str, name: str, dtype: Any) -> None:
    x = np.array([np.nan, np.inf, 0, 1e30, -1e30, 1e-44, 200, -200] * 5, dtype)
    y = compute(name, x)
    bounded = name in ("sigmoid", "tanh")
    assert np.isnan(y[0])
    assert y[1] == (1 if bounded else np.inf)
    assert y[2] == (0.5 if name == "sigmoid" else 0)
    assert y[3] == (1 if bounded else x[3])
    assert y[4] == (-1 if name == "tanh" else 0)
    assert y[7] == pytest.approx(-1 if name == "tanh" else 0, abs=1e-80)
    np.testing.assert_array_equal(y[8:16], y[:8])
    left = compute(name, np.array([-np.inf], dtype))[0]
    if name in ("relu", "sigmoid", "tanh"):
        assert left == (-1 if name == "tanh" else 0)
    else:
        assert np.isnan(left)  # -inf times 0, as the equation says


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1,), (3,), (7, 5), (2, 3, 19), (70, 513), (3, 17000), (0, 4), (4, 0)])
def test_a_bias_is_a_sum_before(backend: str, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, b = rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape[-1]).astype(dtype)
    wanted = compute(name, x + b)
    np.testing.assert_array_equal(compute(name, x, bias=b), wanted)
    assert compute(name, x, bias=b, out=x) is x
    np.testing.assert_array_equal(x, wanted)


def test_output_may_overlap_the_input() -> None:
    x = np.linspace(-3, 3, 50001, dtype=np.float32)
    wanted = layers.gelu(x[:-1])
    np.testing.assert_array_equal(layers.gelu(x[:-1], out=x[1:]), wanted)
    b = np.float32([1, 2, 3, 4])
    np.testing.assert_array_equal(layers.relu(np.float32([1, -9, 1, 1]), bias=b, out=b), [2, 0, 4, 5])


def test_bits_do_not_depend_on_threads_or_place(backend: str) -> None:
    x = np.random.default_rng(0).standard_normal((700, 384)).astype(np.float32)
    whole = layers.gelu(x)
    np.testing.assert_array_equal(layers.gelu(x[5]), whole[5])
    np.testing.assert_array_equal(layers.gelu(x[:, ::-1])[:, ::-1], whole)
    results: list[Array] = []
    workers = [threading.Thread(target=lambda: results.append(layers.gelu(x))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result in results:
        np.testing.assert_array_equal(result, whole)


def test_modes_and_flags_stay(backend: str) -> None:
    x = np.float32([1e-42, 1e30, np.inf, np.nan, -90, 5] * 7000).reshape(-1, 60)
    w = np.ones((64, 60), np.float32)
    before = environment()
    for name in NAMES:
        compute(name, x)
    layers.layer_norm(x, residual=x)
    layers.Linear(60, 64).load({"weight": w, "bias": w[:, 0]})(x[:50])
    after = environment()
    assert (after[0], after[2] & MODES) == (before[0], before[2] & MODES)
    assert not (after[1] & ~before[1] | after[2] & ~before[2]) & SERIOUS


def test_integers_lists_and_scalars() -> None:
    assert layers.relu([1, -2]).tolist() == [1.0, 0.0]
    assert layers.gelu(0.0).shape == ()
    assert layers.silu(np.arange(3)).dtype == np.float64
    assert layers.tanh(np.ones(3, ">f4")).dtype == np.float32


def test_layers_are_the_functions() -> None:
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    pairs = [(GELU(), layers.gelu), (ReLU(), layers.relu), (SiLU(), layers.silu), (Sigmoid(), layers.sigmoid)]
    for layer, function in [*pairs, (Tanh(), layers.tanh)]:
        np.testing.assert_array_equal(layer(x), function(x))
    np.testing.assert_array_equal(GELU("tanh")(x), layers.gelu(x, approximate="tanh"))
    with pytest.raises(ValueError, match="approximate is 'erf': wanted 'none' or 'tanh'"):
        GELU("erf")


def test_errors() -> None:
    x = np.ones((2, 3), np.float32)
    with pytest.raises(TypeError, match="x is float16: wanted float32 or float64"):
        layers.gelu(x.astype(np.float16))
    with pytest.raises(TypeError, match="bias is float64, x is float32: give both the same dtype"):
        layers.gelu(x, bias=np.ones(3))
    with pytest.raises(ValueError, match=r"bias is \(2,\): wanted \(3,\), the last axis of x"):
        layers.gelu(x, bias=np.ones(2, np.float32))
    with pytest.raises(ValueError, match=r"x is \(\): wanted an axis"):
        layers.gelu(np.float32(1), bias=np.ones(1, np.float32))
    with pytest.raises(ValueError, match=r"out is float32 \(3, 2\): wanted an array of float32 \(2, 3\)"):
        layers.gelu(x, out=np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match="out is read-only or not contiguous"):
        layers.gelu(x, out=np.ones((3, 2), np.float32).T)
    with pytest.raises(ValueError, match="activation is 'softmax': wanted one of gelu"):
        Linear(3, 2)(x, activation="softmax")


def test_pytorch_agrees() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((50, 384)).astype(np.float64) * 3
    F = torch.nn.functional
    for ours, theirs in (
        (layers.gelu(x), F.gelu(torch.from_numpy(x))),
        (layers.gelu(x, approximate="tanh"), F.gelu(torch.from_numpy(x), approximate="tanh")),
        (layers.silu(x), F.silu(torch.from_numpy(x))),
    ):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12, atol=1e-14)
