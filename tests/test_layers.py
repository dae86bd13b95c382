"""The simple layers compute their equations, in both types, at every size and batch, and name what they cannot take."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child import output
from compare import Array

from harken import layers
from harken.layers import Layer, Sequential

BOTH = pytest.mark.parametrize("dtype", ["float32", "float64"])
SHAPES = [(), (1,), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)]


def normal(*shape: int, dtype: Any = np.float64, seed: int = 3) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def near(actual: Array, exact: Array, ulps: float = 8) -> None:
    """Within some roundings of the largest number."""
    assert actual.shape == exact.shape
    assert actual.flags.c_contiguous
    largest = max(1.0, float(np.abs(exact).max(initial=0)))
    np.testing.assert_allclose(actual, exact, rtol=0, atol=ulps * float(np.finfo(actual.dtype).eps) * largest)


# --- Linear, Embedding ---


@BOTH
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear(dtype: str, bias: bool, shape: tuple[int, ...]) -> None:
    for inputs, outputs in itertools.product([0, 1, 5], [0, 1, 4]):
        layer = layers.Linear(inputs, outputs, bias, dtype=dtype, rng=0)
        x = normal(*shape, inputs, dtype=dtype)
        exact = np.einsum("...i,oi->...o", x.astype(float), layer.weight.astype(float))
        near(layer(x), exact + (0 if layer.bias is None else layer.bias.astype(float)))
        assert layer(x).dtype == dtype
    wide = normal(3, 10, dtype=dtype)
    layer = layers.Linear(5, 4, dtype=dtype)
    assert np.array_equal(layer(wide[:, ::2]), layer(wide[:, ::2].copy()))


@pytest.mark.parametrize("make", [layers.Linear, layers.Embedding, layers.LearnedPositions])
def test_first_values_follow_rng(make: Callable[..., Layer]) -> None:
    first, second, third = (make(30, 20, rng=seed).state()["weight"] for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)
    assert np.array_equal(make(30, 20, rng=np.random.default_rng(1)).state()["weight"], first)
    widest = 1 / math.sqrt(30) if make is layers.Linear else 5
    assert widest / 2 < np.abs(first).max() <= widest


@BOTH
@pytest.mark.parametrize("kind", ["int64", "int8", "uint8", "uint64", ">i4", "list"])
def test_embedding(dtype: str, kind: str) -> None:
    layer = layers.Embedding(7, 3, dtype=dtype)
    tokens = np.arange(14).reshape(2, 7) % 7
    given = tokens.tolist() if kind == "list" else tokens.astype(kind)
    assert np.array_equal(layer(given), layer.weight[tokens])
    assert layer(given).dtype == dtype
    assert np.array_equal(layer(3), layer.weight[3])
    assert layer([]).shape == (0, 3)
    assert layer(np.zeros((2, 0, 4), int)).shape == (2, 0, 4, 3)
    assert layers.Embedding(0, 3)(np.zeros((0,), int)).shape == (0, 3)
    assert layers.Embedding(7, 0)([1, 2]).shape == (2, 0)


def test_embedding_of_padding() -> None:
    for given, row in ((2, 2), (-1, 6)):
        zero = (layers.Embedding(7, 3, given).weight == 0).all(axis=1)
        assert zero.tolist() == [n == row for n in range(7)]
    layer = layers.Embedding(2, 2, 0).load({"weight": np.ones((2, 2))})
    assert layer([0]).tolist() == [[1, 1]]


def test_answer_is_not_the_parameter() -> None:
    layer = layers.Embedding(2, 2)
    layer(1)[:] = 5
    layer([0, 1])[:] = 5
    assert (layer.weight != 5).all()


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([[0, 7], [1, -1]], IndexError, "tokens holds 7 at (0, 1), -1 at (1, 1): wanted 0 to 6"),
        (np.uint64(2**64 - 1), IndexError, f"tokens holds {2**64 - 1} at (): wanted 0 to 6"),
        (np.full(9, 300, np.int16), IndexError,
         "tokens holds 300 at (0,), 300 at (1,), 300 at (2,), 300 at (3,), 300 at (4,), and 4 more: wanted 0 to 6"),
        ([0.5], TypeError, "tokens is float64: wanted integers"),
        (np.zeros(0), TypeError, "tokens is float64: wanted integers"),
        ([True], TypeError, "tokens is bool: wanted integers"),
        ("the", TypeError, "tokens is <U3: wanted integers"),
        ([10**30], TypeError, "tokens is object: wanted integers"),
    ],
)  # fmt: skip
def test_tokens_that_are_none(tokens: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        layers.Embedding(7, 3)(tokens)
    assert str(caught.value) == message


# --- positions ---


@pytest.mark.parametrize("dim", [0, 1, 2, 5, 6, 64])
def test_sines(dim: int) -> None:
    table = layers.sinusoidal_positions(9, dim, dtype=np.float64)
    for p, channel in itertools.product(range(9), range(dim)):
        angle = p / 10000 ** ((channel - channel % 2) / dim)
        assert table[p, channel] == pytest.approx(math.cos(angle) if channel % 2 else math.sin(angle), abs=1e-14)
    assert np.array_equal(layers.sinusoidal_positions(4, dim, offset=5, dtype=np.float64), table[5:])
    both = layers.sinusoidal_positions(4, dim, offset=[[0], [5]], dtype=np.float64)
    assert np.array_equal(both, np.stack([table[:4], table[5:]])[:, None])
    assert np.array_equal(layers.sinusoidal_positions(9, dim), table.astype(np.float32))
    assert layers.sinusoidal_positions(0, dim).shape == (0, dim)


@BOTH
@pytest.mark.parametrize("learned", [False, True])
def test_positions(dtype: str, learned: bool) -> None:
    layer: Any = (
        layers.LearnedPositions(20000, 5, dtype=dtype) if learned else layers.SinusoidalPositions(5, dtype=dtype)
    )
    table = layer.weight if learned else layers.sinusoidal_positions(20000, 5, dtype=dtype)
    for offset, L in ((0, 3), (0, 0), (7, 4), (8191, 1), (8190, 9), (3, 0), (19000, 1000), (0, 8192)):
        x = normal(2, L, 5, dtype=dtype)
        assert np.array_equal(layer(x, offset=offset), x + table[offset : offset + L])
    x = normal(2, 3, 4, 5, dtype=dtype)
    kept = x.copy()
    offset = np.uint16([[0, 3, 9000], [1, 1, 4]])
    exact = x + np.stack([[table[p : p + 4] for p in row] for row in offset])
    assert np.array_equal(layer(x, offset=offset), exact)
    assert np.array_equal(layer(x, offset=offset[0]), x + np.stack([table[p : p + 4] for p in offset[0]]))
    assert np.array_equal(layer(x[0, 0], offset=2), x[0, 0] + table[2:6])
    assert np.array_equal(x, kept)
    frames = [layer(x[..., t : t + 1, :], offset=offset + t) for t in range(4)]
    assert np.array_equal(np.concatenate(frames, axis=-2), exact)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: layers.LearnedPositions(4, 2)(np.zeros((2, 3, 2), np.float32), offset=[0, 2]), IndexError,
         "positions holds 4 at (1, 2): wanted 0 to 3"),
        (lambda: layers.LearnedPositions(4, 2)(np.zeros((1, 2), np.float32), offset=-1), IndexError,
         "positions holds -1 at (0,): wanted 0 to 3"),
        (lambda: layers.LearnedPositions(4, 2)(np.zeros((2, 3, 2), np.float32), offset=[0, 1, 2]), ValueError,
         "offset is (3,): wanted one number, or (2,), one for each row"),
        (lambda: layers.SinusoidalPositions(2)(np.zeros((3, 2), np.float32), offset=0.5), TypeError,
         "offset is float64: wanted integers"),
        (lambda: layers.SinusoidalPositions(2)(np.zeros((3, 3), np.float32)), ValueError,
         "x is (3, 3): wanted 2 numbers along the last axis"),
        (lambda: layers.sinusoidal_positions(-1, 2), ValueError, "length is -1: wanted 0 or more"),
    ],
)  # fmt: skip
def test_positions_that_are_none(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


# --- norms ---


@BOTH
@pytest.mark.parametrize("kind", [layers.LayerNorm, layers.RMSNorm])
@pytest.mark.parametrize("shape", [1, 5, (5,), (2, 5), (2, 1, 5), 0, (0, 5)])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"elementwise_affine": False}, {"eps": 0.25}])
def test_norms(dtype: str, kind: Any, shape: Any, options: dict[str, Any]) -> None:
    if kind is layers.RMSNorm:
        options = {name: value for name, value in options.items() if name != "bias"}
    layer = kind(shape, dtype=dtype, **options)
    layer.load({name: normal(*x.shape, seed=len(name)) for name, x in layer.state().items()})
    own = (shape,) if isinstance(shape, int) else shape
    over = tuple(range(-len(own), 0))
    default = 1e-5 if kind is layers.LayerNorm else np.finfo(dtype).eps
    for batch in SHAPES:
        x = normal(*batch, *own, dtype=dtype) * 3 + 1
        x, exact = x.astype(dtype), x.astype(np.longdouble)
        if exact.size:
            exact = exact - exact.mean(over, keepdims=True) if kind is layers.LayerNorm else exact
            exact = exact / np.sqrt(np.mean(exact**2, over, keepdims=True) + options.get("eps", default))
        exact = exact * (1 if layer.weight is None else layer.weight)
        exact = exact + (0 if layer.bias is None else layer.bias)
        kept = x.copy()
        near(layer(x), exact.astype(np.float64), ulps=16)
        assert np.array_equal(x, kept)
        assert layer(x).dtype == dtype


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
def test_norms_are_those_of_pytorch(kind: str) -> None:
    torch = pytest.importorskip("torch")
    for shape, options in itertools.product([(6,), (4, 6)], [{}, {"eps": 0.1}, {"elementwise_affine": False}]):
        ours, theirs = getattr(layers, kind)(shape, **options), getattr(torch.nn, kind)(shape, **options)
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter)
        ours.load(theirs.state_dict())
        for spread in (1e-4, 1, 1e4):
            x = (normal(3, 4, 6) * spread).astype(np.float32)
            near(ours(x), theirs(torch.from_numpy(x)).detach().double().numpy())


def test_norms_of_what_is_not_finite() -> None:
    for kind in (layers.LayerNorm, layers.RMSNorm):
        x = normal(4, 5, dtype=np.float32)
        plain = kind(5)(x)
        x[1, 2], x[2, 3] = np.nan, np.inf
        y = kind(5)(x)
        assert np.array_equal(y[[0, 3]], plain[[0, 3]])
        assert np.isnan(y[1]).all()
        assert not np.isfinite(y[2]).all()
    with pytest.raises(ValueError, match=re.escape("x is (3, 5): wanted (2, 5) along the last axes")):
        layers.LayerNorm((2, 5))(np.zeros((3, 5), np.float32))


# --- Sequential ---


class Halves(Layer):
    """Every second position, of as many as there are; the rest of x, too, as a second answer."""

    def output_lengths(self, lengths: Any) -> Any:
        return (np.asarray(lengths) + 1) // 2

    def __call__(self, x: Any) -> tuple[Array, Array]:
        return x[..., ::2, :], x[..., 1::2, :]


class Told(Layer):
    """Remembers the lengths that it was told."""

    def __call__(self, x: Any, *, lengths: Any = None) -> Array:
        self.lengths = lengths
        return np.asarray(x)


def test_sequential() -> None:
    a, b, c = layers.Linear(3, 4), layers.SiLU(), layers.Linear(4, 2)
    model, x = Sequential(a, b, c), normal(2, 5, 3, dtype=np.float32)
    assert np.array_equal(model(x), c(b(a(x))))
    assert [*model] == [model[0], model["1"], model[-1]] == [a, b, c]
    assert len(model) == 3
    assert [*model[1:]] == [b, c]
    assert list(model[1:].state()) == ["2.weight", "2.bias"]
    assert np.array_equal(model[1:](model[:1](x)), model(x))
    assert np.array_equal(Sequential({"a": a, 7: c}).state()["7.bias"], c.bias)
    assert np.array_equal(Sequential()(x), x)
    with pytest.raises(IndexError):
        model[3]
    with pytest.raises(KeyError, match="no layer is named '3': there are '0', '1', '2'"):
        model["3"]
    assert Sequential(layers.Tanh(dtype=np.float64)).dtype == np.float64
    assert list(Sequential(Sequential(a), model).state())[:3] == ["0.0.weight", "0.0.bias", "1.0.weight"]


def test_sequential_hands_on_lengths_and_first_answers() -> None:
    before, after = Told(), Told()
    model, x = Sequential(before, Halves(), Sequential(layers.ReLU(), after)), np.ones((2, 7, 3), np.float32)
    assert model(x, lengths=[7, 4]).shape == (2, 4, 3)
    assert (before.lengths, after.lengths.tolist()) == ([7, 4], [4, 2])
    assert np.array_equal(model.output_lengths([7, 4]), [4, 2])
    model(x)
    assert before.lengths is after.lengths is None
    assert np.array_equal(Sequential(Halves())(x), x[:, ::2])


# --- what goes in ---


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ones(3), TypeError, "x is float64, the layer is float32: give x.astype(np.float32), or make the layer with "
                                "dtype=float64"),
        (np.ones(3, np.float16), TypeError, "x is float16: give x.astype(np.float32)"),
        (np.ones(3, bool), TypeError, "x is bool: give x.astype(np.float32)"),
        (np.ones(3, complex), TypeError, "x is complex128: give x.astype(np.float32)"),
        ([1j], TypeError, "x is complex128: wanted floating numbers"),
        (None, TypeError, "x is object: wanted floating numbers"),
        (np.ma.masked_array(np.ones(3, np.float32)), TypeError,
         "x is a masked array, whose mask would be lost: give np.asarray(x)"),
        ([[1, 2, 3], [1]], ValueError, "x cannot be read as an array: setting an array element with a sequence."),
        (5, ValueError, "x is (): wanted 1 or more axes"),
        (np.ones((3, 2), np.float32), ValueError, "x is (3, 2): wanted 3 numbers along the last axis"),
    ],
)  # fmt: skip
def test_what_a_layer_does_not_take(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        layers.Linear(3, 2)(x)


def test_what_a_layer_takes() -> None:
    layer = layers.Linear(3, 2)
    y = layer(np.float32([1, 2, 3]))
    for x in (
        [1, 2, 3],
        (1.0, 2.0, 3.0),
        np.array([1, 2, 3]),
        np.float32([1, 2, 3]).astype(">f4"),
        np.uint8([1, 2, 3]),
    ):
        assert np.array_equal(layer(x), y)


def test_arrays_of_other_libraries() -> None:
    torch = pytest.importorskip("torch")
    layer, x = layers.Linear(3, 2), torch.ones(4, 3)
    assert np.array_equal(layer(x), layer(x.numpy()))
    assert isinstance(layer(x), np.ndarray)
    assert np.array_equal(layers.Embedding(5, 2, rng=0)(torch.tensor([1, 2])), layers.Embedding(5, 2, rng=0)([1, 2]))
    with pytest.raises(TypeError, match="x is float64, the layer is float32"):
        layer(x.double())
    with pytest.raises(TypeError, match="x requires a gradient"):
        layer(x.requires_grad_())


def test_the_example_of_the_readme_runs() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    found = re.search(r"^## Layers\n.*?^```python\n(.*?)^```$", readme, re.M | re.S)
    assert found
    names: dict[str, Any] = {"np": np}
    exec(compile(found[1], "README.md", "exec"), names)
    assert names["scores"].shape == (2, 12, 5)
    assert (names["model"][-1].bias == 1).all()


def test_layers_are_imported_only_when_asked_for() -> None:
    code = "import sys, harken; print([name for name in sys.modules if name.startswith('harken.layers')])"
    assert output(code).strip() == "[]"
