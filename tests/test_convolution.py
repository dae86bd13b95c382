"""Conv1D is the sum that its docstring says, against float64 loops, ONNX, PyTorch, in any chunks, by any threads."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numpy as np
import pytest
from compare import EPSILON, Array, same_bits
from guarded import Place

import harken
from harken.layers import Conv1D, Conv1DState

FLOATS = pytest.mark.parametrize("dtype", ["float32", "float64"])

# in, out, kernel, stride, padding, dilation, groups, L
LAYERS: list[tuple[Any, ...]] = [
    (1, 1, 1, 1, 0, 1, 1, 1),
    (3, 5, 3, 1, "same", 1, 1, 10),
    (16, 64, 3, 1, "same", 1, 1, 40),
    (33, 100, 5, 2, 3, 1, 1, 51),
    (128, 96, 3, 1, (2, 0), 1, 1, 25),  # six chains
    (1, 17, 25, 1, "same", 1, 1, 60),  # frames of sound
    (1, 33, 10, 5, 0, 1, 1, 203),
    (4, 16, 25, 3, (7, 0), 1, 1, 90),
    (2, 7, 2, 3, 1, 1, 1, 20),  # the stride is longer than the window
    (20, 48, 3, 1, "causal", 9, 1, 30),  # reaches past tiles
    (8, 24, 2, 1, "causal", 64, 1, 40),  # no window without padding
    (3, 4, 150, 1, "same", 1, 1, 160),  # chains begin within a channel
    (24, 36, 3, 2, 1, 2, 4, 33),
    (12, 24, 3, 1, 1, 1, 12, 20),  # two outputs a channel
    (64, 96, 3, 1, "same", 1, 1, 150),  # enough for a matrix engine, from here on
    (80, 49, 5, 2, 3, 2, 1, 201),
    (48, 48, 1, 3, (0, 2), 1, 1, 200),
    (160, 130, 4, 1, "causal", 3, 2, 67),
    (3, 3, 3, 1, "same", 1, 3, 9),  # depthwise, from here on
    (80, 80, 5, 1, "same", 1, 80, 40),
    (64, 64, 3, 2, (2, 1), 3, 64, 40),
    (35, 35, 140, 1, "causal", 1, 35, 150),
]


def made(case: tuple[Any, ...], dtype: Any = np.float32, **options: Any) -> tuple[Conv1D, int]:
    *sizes, L = case
    return Conv1D(*sizes, dtype=dtype, rng=1, **options), L


def normal(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def windows(layer: Conv1D, x: Array, dtype: Any) -> Array:
    """(..., L', K, C): what each output sees, zeros included."""
    beside = [(0, 0)] * (x.ndim - 2) + [(layer.left, layer.right), (0, 0)]
    padded = np.pad(x.astype(dtype), beside)
    out = int(layer.output_lengths(x.shape[-2]))
    at = np.arange(out)[:, None] * layer.stride + np.arange(layer.kernel_size) * layer.dilation
    return padded[..., at, :]


def dense(layer: Conv1D, x: Array, dtype: Any) -> Array:
    """Windows side by side times the weights, as one writes it in NumPy."""
    seen, groups = windows(layer, x, dtype), layer.groups
    inputs, outputs = layer.in_channels // groups, layer.out_channels // groups
    parts = []
    for g in range(groups):
        rows = seen[..., g * inputs : (g + 1) * inputs].swapaxes(-1, -2)
        rows = np.ascontiguousarray(rows).reshape(*rows.shape[:-2], inputs * layer.kernel_size)
        parts.append(rows @ layer.weight[g * outputs : (g + 1) * outputs].reshape(outputs, -1).T.astype(dtype))
    y: Array = np.concatenate(parts, -1)
    return y if layer.bias is None else y + layer.bias.astype(dtype)


def close(y: Array, layer: Conv1D, x: Array) -> None:
    """The error is at most twice that of NumPy's product in the same dtype, plus one rounding."""
    exact = dense(layer, x, np.longdouble if x.dtype == np.float64 else np.float64)
    assert y.shape == exact.shape
    assert y.dtype == x.dtype
    if y.size == 0:
        return
    naive = np.abs(dense(layer, x, x.dtype) - exact).max()
    error = np.abs(y - exact).max()
    assert error <= 2 * naive + EPSILON[x.dtype.name] * np.abs(exact).max(), f"{error} where NumPy errs by {naive}"


# --- the sum ---


@FLOATS
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_is_its_equation(case: tuple[Any, ...], dtype: str, backend: str) -> None:
    layer, L = made(case, dtype)
    x = normal((2, L, layer.in_channels), dtype)
    close(layer(x), layer, x)
    alone, _ = made(case, dtype, bias=False)
    alone.weight = layer.weight
    close(alone(x), alone, x)
    same_bits(alone(x[0]), alone(x)[0])


def test_the_equation_in_scalar_loops() -> None:
    layer = Conv1D(6, 4, 3, stride=2, padding=(3, 1), dilation=2, groups=2, dtype=np.float64, rng=0)
    x = normal((9, 6), np.float64)
    y = np.zeros((5, 4))
    assert layer.bias is not None
    for o, l in itertools.product(range(4), range(5)):
        y[l, o] = layer.bias[o]
        for c, k in itertools.product(range(3), range(3)):
            position = l * 2 + k * 2 - 3
            if 0 <= position < 9:
                y[l, o] += x[position, o // 2 * 3 + c] * layer.weight[o, c, k]
    np.testing.assert_allclose(layer(x), y, rtol=1e-13)


@pytest.mark.parametrize("channels", [*range(1, 20), 31, 32, 33, 47, 63, 64, 65, 80, 129])
def test_every_tail_of_channels(channels: int, backend: str) -> None:
    x = normal((3, 14, 10), np.float32)
    layer = Conv1D(10, channels, 3, padding="same", rng=0)
    close(layer(x), layer, x)
    x = normal((3, 14, channels), np.float32)
    layer = Conv1D(channels, channels, 3, padding=(1, 0), groups=channels, rng=0)
    close(layer(x), layer, x)


@pytest.mark.parametrize("L", [*range(3, 30), 63, 257, 511, 513, 1030])
def test_every_number_of_positions(L: int, backend: str) -> None:
    x = normal((2, L, 8), np.float32)
    for groups in (1, 8):
        layer = Conv1D(8, 40 if groups == 1 else 8, 3, padding=(0, 2), groups=groups, rng=0)
        close(layer(x), layer, x)


def test_more_than_the_engine_packs_at_a_time(backend: str) -> None:
    for layer, L in (Conv1D(48, 64, 5, padding=(3, 1), rng=0), 1100), (Conv1D(512, 480, 9, padding=4, rng=0), 72):
        x = normal((2, L, layer.in_channels), np.float32)
        close(layer(x), layer, x)


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_is_what_onnx_says(case: tuple[Any, ...]) -> None:
    helper = pytest.importorskip("onnx.helper")
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator
    layer, L = made(case)
    x = normal((2, layer.in_channels, L), np.float32)
    node = helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], dilations=[layer.dilation], group=layer.groups,
        kernel_shape=[layer.kernel_size], pads=[layer.left, layer.right], strides=[layer.stride],
    )  # fmt: skip
    (y,) = evaluator(node).run(None, {"x": x, "w": layer.weight, "b": layer.bias})
    np.testing.assert_allclose(layer(x.swapaxes(-1, -2)).swapaxes(-1, -2), y, rtol=1e-4, atol=1e-5)


@FLOATS
def test_is_what_pytorch_says(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    for *sizes, L in LAYERS:
        layer = Conv1D(*sizes, dtype=dtype)
        if layer.left != layer.right:
            continue
        theirs = torch.nn.Conv1d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.left, layer.dilation,
            layer.groups, dtype=getattr(torch, dtype),
        )  # fmt: skip
        layer.load({name: value.numpy() for name, value in theirs.state_dict().items()})
        x = normal((2, layer.in_channels, L), dtype)
        y = theirs(torch.from_numpy(x)).detach().numpy()
        tolerance = 1e-5 if dtype == "float32" else 1e-13
        np.testing.assert_allclose(layer(x.swapaxes(-1, -2)).swapaxes(-1, -2), y, rtol=tolerance, atol=tolerance)


# --- arrays ---


def test_any_strides_and_any_batch() -> None:
    layer = Conv1D(6, 5, 3, padding=1, rng=0)
    x = normal((2, 3, 20, 6), np.float32)
    y = layer(x)
    assert y.shape == (2, 3, 20, 5)
    larger = normal((2, 3, 20, 14), np.float32)
    larger[..., 3:9] = x
    views = larger[..., 3:9], x.swapaxes(-1, -2).copy().swapaxes(-1, -2), x.swapaxes(0, 1).copy().swapaxes(0, 1)
    for view in (*views, x[:, :, ::-1].copy()[:, :, ::-1]):
        same_bits(layer(view), y)
    same_bits(layer(np.broadcast_to(x[:1], x.shape)), np.broadcast_to(y[:1], y.shape))
    same_bits(layer(x[1, 2]), y[1, 2])
    same_bits(layer(x[:, :, ::2]), layer(x[:, :, ::2].copy()))
    read_only = x.copy()
    read_only.flags.writeable = False
    same_bits(layer(read_only), y)


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4), (3, 0, 5, 4), (0, 4)])
def test_sizes_of_zero(shape: tuple[int, ...]) -> None:
    layer = Conv1D(4, 3, 3, padding="causal")
    y = layer(np.ones(shape, np.float32))
    assert y.shape == (*shape[:-1], 3)
    assert Conv1D(4, 3, 3)(np.ones((2, 0, 4), np.float32)).shape == (2, 0, 3)
    same_bits(Conv1D(4, 3, 3, padding=2, rng=0)(np.ones((0, 4), np.float32)),
              np.tile(Conv1D(4, 3, 3, padding=2, rng=0).bias, (2, 1)))  # fmt: skip


@pytest.mark.parametrize("layout", ["end", "begin", "rows end", "rows begin", "backwards"])
def test_no_byte_beside_x_is_read(layout: str, backend: str) -> None:
    place, weights = Place(20, 70), Place(200, 4)
    for case in LAYERS:
        layer, L = made(case)
        if L > 70:
            continue
        x = normal((L, layer.in_channels), np.float32)
        y = layer(x)
        layer.weight = weights.put(layer.weight, "begin" if layout.endswith("begin") else "end")
        same_bits(layer(place.put(x, layout)), y)


# --- lengths ---


@FLOATS
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_lengths_are_sequences_by_themselves(case: tuple[Any, ...], dtype: str, backend: str) -> None:
    layer, L = made(case, dtype)
    lengths = np.array([L, L - L // 3, 1, 0, L // 2])
    x = normal((5, L, layer.in_channels), dtype)
    for row, n in zip(x, lengths, strict=True):
        row[n:] = np.nan
    y, outputs = layer(x, lengths=lengths), layer.output_lengths(lengths)
    assert y.shape[-2] == layer.output_lengths(L)
    for b, (n, out) in enumerate(zip(lengths, outputs, strict=True)):
        assert not y[b, out:].any()
        if out:
            beside = np.zeros((L - n, layer.in_channels), dtype)
            same_bits(y[b, :out], layer(np.concatenate([x[b, :n], beside]))[:out])
            assert np.isfinite(y[b, :out]).all()
            if n and not (backend == "amx" and layer.in_channels >= 48):  # few positions do not go to the engine
                same_bits(y[b, :out], layer(x[b, :n]))


@pytest.mark.parametrize("number", [np.nan, np.inf, -1e30])
def test_a_number_that_no_term_holds(number: float, backend: str) -> None:
    """Whoever meets it gets what float gives; the bits of whoever does not are as without it."""
    layer = Conv1D(64, 70, 3, padding="same", rng=0)
    x = normal((2, 100, 64), np.float32)
    y = layer(x)
    x[1, 50, 7] = number
    with np.errstate(invalid="ignore"):
        after, exact = layer(x), dense(layer, x, np.float64) if np.isfinite(number) else dense(layer, x, np.float32)
    same_bits(np.delete(after[1], [49, 50, 51], 0), np.delete(y[1], [49, 50, 51], 0))
    same_bits(after[0], y[0])
    np.testing.assert_allclose(after[1, 49:52], exact[1, 49:52], rtol=1e-5)
    layer.weight[20, 3, 1] = number
    assert np.isfinite(np.delete(layer(x[0]), 20, -1)).all()
    assert np.isfinite(layer(x[0])[:, 20]).all() == np.isfinite(number)


def test_lengths_of_one_sequence_and_of_many_axes() -> None:
    layer = Conv1D(3, 2, 3, padding=1, rng=0)
    x = normal((2, 2, 9, 3), np.float32)
    y = layer(x, lengths=[[9, 4], [0, 5]])
    same_bits(layer(x[0, 1], lengths=4), y[0, 1])
    same_bits(layer(x, lengths=4)[0, 1], y[0, 1])
    assert layer.output_lengths(4) == 4


# --- a stream ---


@pytest.mark.parametrize(
    "case", [case for case in LAYERS if made(case)[0].right == 0 or case[4] not in (0, "causal")], ids=str
)
def test_chunks_of_any_sizes_give_the_same_bits(case: tuple[Any, ...], backend: str) -> None:
    rng = np.random.default_rng(0)
    sizes = list(case[:-1])
    if made(case)[0].right:
        sizes[4] = (made(case)[0].left, 0)
    layer = Conv1D(*sizes, rng=1)
    for batch in ((), (3,)):
        x = normal((*batch, 170, layer.in_channels), np.float32)
        y, _ = layer.step(x, layer.start(batch))
        if backend == "amx":
            close(layer(x), layer, x)
        else:
            same_bits(layer(x), y)
        for most in (1, 7, 60):
            state, parts, at = layer.start(batch), [], 0
            while at < x.shape[-2]:
                n = int(rng.integers(most == 7, most + 1)) if most > 1 else 1
                part, after = layer.step(x[..., at : at + n, :], state)
                if n == 7:
                    same_bits(layer.step(x[..., at : at + n, :], state)[0], part)  # the old state is as it was
                parts.append(part)
                state, at = after, at + n
            same_bits(np.concatenate(parts, -2), y)


# --- bits ---


@pytest.mark.parametrize("case", [(128, 96, 3, 1, "same", 1, 1, 700), (70, 70, 5, 1, "same", 1, 70, 9000)], ids=str)
def test_bits_do_not_depend_on_threads_or_batch(case: tuple[Any, ...], backend: str) -> None:
    layer, L = made(case)
    x = normal((3, L, layer.in_channels), np.float32)
    results = []
    for threads in (1, 2, 3, 7):
        harken.set_num_threads(threads)
        results.append(layer(x))
    harken.set_num_threads(None)
    for y in results[1:]:
        same_bits(y, results[0])
    for b in range(3):
        same_bits(layer(x[b]), results[0][b])
    begin = 20  # windows begin at other places of a tile
    same_bits(layer(x[:, begin:])[:, 5:], results[0][:, begin + 5 :])


def test_nothing_is_remembered() -> None:
    layer = Conv1D(4, 3, 3, rng=0)
    x = normal((9, 4), np.float32)
    before = layer(x)
    layer.weight *= 2
    layer.bias = np.zeros(3, np.float32)
    np.testing.assert_allclose(layer(x), dense(layer, x, np.float64), rtol=1e-5, atol=1e-6)
    assert not np.array_equal(layer(x), before)


# --- mistakes ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, r"in_channels is 0: wanted 1 or more"),
        ({"kernel_size": 0}, r"kernel_size is 0"),
        ({"stride": 0}, r"stride is 0"),
        ({"dilation": -1}, r"dilation is -1"),
        ({"groups": 3}, r"in_channels is 4, groups is 3: wanted a multiple"),
        ({"groups": 4}, r"out_channels is 6, groups is 4"),
        ({"padding": -1}, r"padding is -1"),
        ({"padding": (1, 2, 3)}, r"padding is \(1, 2, 3\): wanted \(left, right\)"),
        ({"padding": "full"}, r"padding is 'full': wanted \"valid\""),
        ({"padding": "same", "stride": 2}, r"padding is \"same\", stride is 2"),
    ],
)
def test_layers_that_cannot_be(options: dict[str, Any], message: str) -> None:
    sizes: dict[str, Any] = {"in_channels": 4, "out_channels": 6, "kernel_size": 3}
    with pytest.raises(ValueError, match=message):
        Conv1D(**(sizes | options))


def test_wrong_calls() -> None:
    layer = Conv1D(4, 6, 3, padding=(2, 0))
    x = np.ones((2, 9, 4), np.float32)
    with pytest.raises(TypeError, match=r"kernel_size is 2\.5: wanted an integer"):
        Conv1D(4, 6, 2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"wanted 4 numbers along the last axis"):
        layer(np.ones((2, 4, 9), np.float32))
    with pytest.raises(ValueError, match=r"wanted 2 or more axes"):
        layer(x[0, 0])
    with pytest.raises(TypeError, match=r"x is float64, the layer is float32"):
        layer(x.astype(np.float64))
    with pytest.raises(ValueError, match=r"x has 2 positions: wanted 3 or more, which a window reaches over"):
        Conv1D(4, 6, 3)(x[:, :2])
    with pytest.raises(ValueError, match=r"x has 3 positions with 1 and 1 zeros beside them: wanted 9 or more"):
        Conv1D(4, 6, 5, dilation=2, padding=1)(x[:, :3])
    with pytest.raises(ValueError, match=r"lengths goes from 3 to 10: wanted 0 to 9"):
        layer(x, lengths=[3, 10])
    with pytest.raises(ValueError, match=r"lengths is \(3,\): wanted \(2,\)"):
        layer(x, lengths=[3, 4, 5])
    with pytest.raises(TypeError, match=r"lengths is float64: wanted integers"):
        layer(x, lengths=[3.0, 4.0])
    with pytest.raises(TypeError, match=r"lengths is float64: wanted integers"):
        layer.output_lengths(3.5)
    with pytest.raises(ValueError, match=r"weight is \(6, 4, 5\), wanted \(6, 4, 3\)"):
        layer.weight = np.ones((6, 4, 5), np.float32)


def test_wrong_streams() -> None:
    layer = Conv1D(4, 6, 3, padding="causal")
    x = np.ones((2, 9, 4), np.float32)
    with pytest.raises(ValueError, match=r"padding after a sequence is 1: a stream has no end"):
        Conv1D(4, 6, 3, padding=1).start()
    with pytest.raises(ValueError, match=r"x is \(2, 9, 4\), the stream was started for \(3,\)"):
        layer.step(x, layer.start(3))
    with pytest.raises(TypeError, match=r"state is tuple: wanted what start\(\)"):
        layer.step(x, (x, 0))  # type: ignore[arg-type]
    assert isinstance(layer.start((2, 1)), Conv1DState)
