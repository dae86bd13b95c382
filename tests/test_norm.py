"""LayerNorm and RMSNorm are their equations in float64, whatever the offset, with a residual and in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from harken.layers import LayerNorm, RMSNorm, layer_norm, rms_norm

Array = NDArray[Any]
FLOATS = [np.float32, np.float64]


def exact(x: Array, w: Array | None, b: Array | None, eps: float, centered: bool) -> Array:
    z = x.astype(np.longdouble)
    d = z - z.mean(-1, keepdims=True) if centered else z
    y = d / np.sqrt(np.square(d).mean(-1, keepdims=True) + eps)
    y = y if w is None else y * w
    return y if b is None else y + b


def naive(x: Array, w: Array, b: Array | None, eps: float, centered: bool) -> Array:
    d = x - x.mean(-1, keepdims=True) if centered else x
    y = d / np.sqrt(np.square(d).mean(-1, keepdims=True) + x.dtype.type(eps)) * w
    return y if b is None else y + b


def numbers(shape: tuple[int, ...], dtype: Any, offset: float = 0) -> tuple[Array, Array, Array, Array]:
    rng = np.random.default_rng(0)
    x, r = ((rng.standard_normal(shape) + offset).astype(dtype) for _ in range(2))
    w, b = (rng.standard_normal(shape[-1]).astype(dtype) for _ in range(2))
    return x, r, w, b


SHAPES = [(1, 1), (3, 7), (2, 3, 16), (5, 65), (40, 384), (2, 70001), (9, 1023)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0, 1e4])
def test_no_worse_than_numpy(backend: str, dtype: Any, shape: tuple[int, ...], offset: float) -> None:
    x, r, w, b = numbers(shape, dtype, offset)
    for centered, bias in ((True, b), (False, None)):
        for residual in (None, r):
            s = x if residual is None else x + residual
            ours = (
                layer_norm(x, w, bias, 1e-5, residual=residual) if centered else rms_norm(x, w, 1e-5, residual=residual)
            )
            right = exact(s, w, bias, 1e-5, centered)
            wrong, theirs = np.abs(ours - right).max(), np.abs(naive(s, w, bias, 1e-5, centered) - right).max()
            assert ours.dtype == dtype
            assert wrong <= 2 * theirs + np.finfo(dtype).eps * np.abs(right).max()


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_offset_costs_nothing(backend: str, dtype: Any) -> None:
    """x itself is rounded by its offset; that beside, the result is as exact as without, where NumPy errs by 3e-4."""
    x, _, w, b = numbers((50, 384), dtype, 1e4)
    right = exact(x, w, b, 1e-5, True)
    error = np.abs(layer_norm(x, w, b) - right) / np.maximum(1, np.abs(right))
    assert error.max() < 12 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", FLOATS)
def test_residual_total_and_in_place(backend: str, dtype: Any) -> None:
    for norm in (layer_norm, rms_norm):
        for shape in ((6, 37), (100, 384)):
            x, r, w, _ = numbers(shape, dtype)
            wanted = norm(x + r, w)
            np.testing.assert_array_equal(norm(x, w, residual=r), wanted)
            total = np.empty_like(x)
            np.testing.assert_array_equal(norm(x, w, residual=r, total=total), wanted)
            np.testing.assert_array_equal(total, x + r)
            for case in range(4):
                a, c = x.copy(), r.copy()
                out, held = [(a, None), (c, None), (a, c), (c, a)][case]
                assert norm(a, w, residual=c, out=out, total=held) is out
                np.testing.assert_array_equal(out, wanted)
                if held is not None:
                    np.testing.assert_array_equal(held, x + r)
            wide = np.empty((x.size + 1,), dtype)
            wide[:-1] = x.ravel()
            shifted = norm(wide[:-1].reshape(shape), w, residual=r, out=wide[1:].reshape(shape))
            np.testing.assert_array_equal(shifted, wanted)
            same = w.copy()
            np.testing.assert_array_equal(norm(x[0], same, out=same), norm(x[0], w))


def test_rows_know_nothing_of_each_other(backend: str) -> None:
    x, r, w, b = numbers((300, 384), np.float32)
    whole = layer_norm(x, w, b, residual=r)
    np.testing.assert_array_equal(layer_norm(x[7], w, b, residual=r[7]), whole[7])
    np.testing.assert_array_equal(layer_norm(x[::-1], w, b, residual=r[::-1])[::-1], whole)
    x[3, 5], x[4, 6], x[5] = np.nan, np.inf, 0
    again = layer_norm(x, w, b, residual=r)
    assert np.isnan(again[3:5]).all()
    np.testing.assert_array_equal(again[6:], whole[6:])
    np.testing.assert_array_equal(layer_norm(np.full((2, 9), 3, np.float32)), np.zeros((2, 9)))
    assert np.isnan(rms_norm(x)[3]).all()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0,), (2, 0, 3)])
def test_sizes_of_zero(backend: str, shape: tuple[int, ...]) -> None:
    x = np.empty(shape, np.float32)
    assert layer_norm(x).shape == rms_norm(x).shape == shape
    assert layer_norm(x, residual=x, total=np.empty(shape, np.float32)).shape == shape


def test_layers_take_the_last_axes_together() -> None:
    x, r, _, _ = numbers((5, 4, 6), np.float32)
    layer = LayerNorm((4, 6))
    layer.weight = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    wanted = exact(x.reshape(5, 24), layer.weight.ravel(), None, 1e-5, True).reshape(x.shape)
    np.testing.assert_allclose(layer(x), wanted.astype(np.float64), atol=1e-6)
    np.testing.assert_array_equal(layer(x, residual=r), layer(x + r))
    assert {name: array.shape for name, array in layer.state().items()} == {"weight": (4, 6), "bias": (4, 6)}
    assert list(LayerNorm(3, bias=False).state()) == list(RMSNorm(3).state()) == ["weight"]
    assert not LayerNorm(3, elementwise_affine=False).state()
    assert LayerNorm(6, dtype=np.float64)(x.astype(np.float64)).dtype == np.float64


def test_pytorch_agrees() -> None:
    torch = pytest.importorskip("torch")
    x, _, w, b = numbers((5, 4, 6), np.float32)
    for shape in ((6,), (4, 6)):
        for affine in (True, False):
            theirs = torch.nn.LayerNorm(shape, elementwise_affine=affine)(torch.from_numpy(x))
            ours = LayerNorm(shape, elementwise_affine=affine)(x)
            np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-6)
            theirs = torch.nn.RMSNorm(shape, elementwise_affine=affine)(torch.from_numpy(x))
            np.testing.assert_allclose(RMSNorm(shape, elementwise_affine=affine)(x), theirs.detach().numpy(), atol=1e-6)
    theirs = torch.nn.functional.layer_norm(*map(torch.from_numpy, (x,)), (6,), *map(torch.from_numpy, (w, b)))
    np.testing.assert_allclose(layer_norm(x, w, b), theirs.numpy(), atol=1e-6)


def test_onnx_agrees() -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    x, _, w, b = numbers((5, 4, 6), np.float32)
    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xwby"]
    node = onnx.helper.make_node("LayerNormalization", ["x", "w", "b"], ["y"], axis=-1, epsilon=1e-5)
    graph = onnx.helper.make_graph([node], "norm", info[:3], info[3:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    (theirs,) = ReferenceEvaluator(model).run(None, {"x": x, "w": w, "b": b})
    np.testing.assert_allclose(layer_norm(x, w, b), theirs, atol=1e-6)


def test_errors() -> None:
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"weight is \(2,\): wanted \(3,\), the last axis of x"):
        layer_norm(x, np.ones(2, np.float32))
    with pytest.raises(TypeError, match="residual is float64, x is float32"):
        layer_norm(x, residual=x.astype(np.float64))
    with pytest.raises(ValueError, match=r"residual is \(3,\): wanted \(2, 3\), as x is"):
        layer_norm(x, residual=x[0])
    with pytest.raises(ValueError, match="total is given without residual"):
        layer_norm(x, total=x)
    with pytest.raises(ValueError, match="total overlaps out"):
        layer_norm(x, residual=x, out=x, total=x)
    with pytest.raises(ValueError, match="eps is -1: wanted a number of at least 0"):
        rms_norm(x, eps=-1)
    with pytest.raises(ValueError, match=r"x is \(\): wanted 1 or more axes"):
        layer_norm(np.float32(1))
    with pytest.raises(ValueError, match=r"x is \(2, 3\): wanted \(4,\) along the last axes"):
        LayerNorm(4)(x)
    with pytest.raises(ValueError, match=r"normalized_shape is \(\): wanted"):
        LayerNorm(())
    with pytest.raises(ValueError, match=r"out is float32 \(3,\)"):
        LayerNorm(3)(x, out=x[0])
