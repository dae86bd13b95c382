"""LSTM and GRU against their equations in float64, ONNX's reference evaluator and PyTorch; bits, lengths, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compare import EPSILON, Array, same_bits
from guarded import Region, contiguous

import harken
from harken.layers import GRU, LSTM

KINDS: dict[str, Any] = {
    "lstm": LSTM,
    "gru": GRU,
    "gru, reset before": lambda *args, **options: GRU(*args, **options, reset_after=False),
}
kinds = pytest.mark.parametrize("kind", KINDS)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def logistic(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


@np.errstate(invalid="ignore")  # OpenBLAS computes with what lies beside a short row, too
def step(layer: Any, weights: list[Array], x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """One step of the equations, in the type of its arguments."""
    W, U, b, d = weights
    H = h.shape[-1]
    if isinstance(layer, LSTM):
        i, f, g, o = np.split(W @ x + b + U @ h + d, 4)
        c = logistic(f) * c + logistic(i) * np.tanh(g)
        return logistic(o) * np.tanh(c), c
    a, u = W @ x + b, U @ h + d
    r, z = logistic(a[:H] + u[:H]), logistic(a[H : 2 * H] + u[H : 2 * H])
    n = np.tanh(a[2 * H :] + (r * u[2 * H :] if layer.reset_after else U[2 * H :] @ (r * h) + d[2 * H :]))
    return (1 - z) * n + z * h, c


def plain(
    layer: Any, x: Array, h0: Array, c0: Array, dtype: Any, lengths: list[int] | None = None
) -> tuple[Array, Array, Array]:
    """A loop over layers, directions, sequences and steps; x (B, L, C)."""
    x, h, c = x.astype(dtype), h0.astype(dtype), c0.astype(dtype)
    B, L, _ = x.shape
    H, D = layer.hidden_size, layer.directions
    for n in range(layer.num_layers):
        y = np.zeros((B, L, D * H), dtype)
        for d in range(D):
            suffix = f"_l{n}" + "_reverse" * d
            names = [name + suffix for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            weights = [np.asarray(getattr(layer, name, np.zeros(layer.gates * H)), dtype) for name in names]
            for b in range(B):
                count = L if lengths is None else lengths[b]
                for t in range(count)[:: -1 if d else 1]:
                    h[n * D + d, b], c[n * D + d, b] = step(layer, weights, x[b, t], h[n * D + d, b], c[n * D + d, b])
                    y[b, t, d * H : (d + 1) * H] = h[n * D + d, b]
        x = y
    return x, h, c


def problem(layer: Any, B: int, L: int, seed: int = 0) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    states = layer.num_layers * layer.directions, B, layer.hidden_size
    x, h, c = (rng.standard_normal(shape) for shape in ((B, L, layer.input_size), states, states))
    return x.astype(layer.dtype), h.astype(layer.dtype), c.astype(layer.dtype)


def call(layer: Any, x: Array, h: Array, c: Array, **options: Any) -> tuple[Array, ...]:
    if isinstance(layer, LSTM):
        y, (h, c) = layer(x, (h, c), **options)
        return y, h, c
    return layer(x, h, **options)


Case = tuple[Any, Array, Array, Array, list[int] | None]


def obey(*cases: Case) -> None:
    """The rule of accuracy: at most twice the error of the loop in the same type, and a rounding of numbers up to 1.

    The errors are the largest of all cases: that of the loop in one of a few numbers may happen to be 0.
    """
    ours, rough = [0.0] * 3, [0.0] * 3
    for layer, x, h, c, lengths in cases:
        exact = plain(layer, x, h, c, np.float64, lengths)
        naive = plain(layer, x, h, c, layer.dtype, lengths) if layer.dtype == np.float32 else exact
        for n, found in enumerate(call(layer, x, h, c, lengths=lengths)):
            assert (found.dtype, found.shape) == (layer.dtype, exact[n].shape)
            assert not np.isnan(found).any()
            ours[n] = max(ours[n], np.abs(found - exact[n]).max(initial=0))
            rough[n] = max(rough[n], np.abs(naive[n] - exact[n]).max(initial=0))
    dtype = cases[0][0].dtype
    rounding = EPSILON[dtype.name] * (1 if dtype == np.float32 else 30)
    for error, least in zip(ours, rough, strict=True):
        assert error <= 2 * least + rounding


@kinds
@dtypes
@pytest.mark.parametrize("H", [1, 3, 17, 65])
def test_equations(backend: str, kind: str, dtype: str, H: int) -> None:
    cases: list[Case] = []
    for B, L, C in ((1, 5, 1), (2, 3, 7), (5, 4, 19), (13, 2, 3)):
        layer = KINDS[kind](C, H, dtype=dtype, rng=H)
        cases.append((layer, *problem(layer, B, L), None))
    obey(*cases)


@kinds
def test_long_sums(backend: str, kind: str) -> None:
    """More terms than a chain holds, weights so large that gates are far from their middle, and many rows."""
    for B, H, C, times in ((1, 300, 150, 1), (1, 140, 513, 20), (20, 130, 5, 3)):
        layer = KINDS[kind](C, H, rng=1)
        for array in layer.state().values():
            array *= times
        obey((layer, *problem(layer, B, 3), None))


@kinds
@dtypes
def test_layers_directions_lengths(backend: str, kind: str, dtype: str) -> None:
    """Sequences of all lengths, NaN past them; with two layers in both directions, and without a bias."""
    L, lengths = 6, [6, 0, 3, 1, 6, 5, 2]
    for options in ({"num_layers": 2, "bidirectional": True}, {"bias": False}):
        layer = KINDS[kind](5, 18, **options, dtype=dtype, rng=2)
        x, h, c = problem(layer, len(lengths), L)
        obey((layer, x, h, c, None), (layer, x, h, c, lengths))
        expected = call(layer, x, h, c, lengths=lengths)
        for row, count in enumerate(lengths):
            x[row, count:] = np.nan
            assert not expected[0][row, count:].any()
        for found, right in zip(call(layer, x, h, c, lengths=lengths), expected, strict=True):
            same_bits(found, right)


@kinds
@pytest.mark.parametrize("linear_before_reset", [0, 1])
def test_onnx(kind: str, linear_before_reset: int) -> None:
    """Its gates come in another order: i o f c, and z r h."""
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    if kind != "gru" and linear_before_reset == 0:
        pytest.skip("GRU alone has two conventions")
    name = "LSTM" if kind == "lstm" else "GRU"
    if kind == "gru, reset before":
        linear_before_reset = 0
    layer: Any = LSTM(4, 9, rng=3) if name == "LSTM" else GRU(4, 9, reset_after=bool(linear_before_reset), rng=3)
    x, h, c = problem(layer, 3, 7)
    order = (0, 3, 1, 2) if name == "LSTM" else (1, 0, 2)

    def sorted_gates(array: Array) -> Array:
        parts = np.split(array, len(order))
        return np.concatenate([parts[n] for n in order])

    state = {key: sorted_gates(value) for key, value in layer.state().items()}
    inputs = {
        "X": x.transpose(1, 0, 2),
        "W": state["weight_ih_l0"][None],
        "R": state["weight_hh_l0"][None],
        "B": np.concatenate([state["bias_ih_l0"], state["bias_hh_l0"]])[None],
        "h0": h,
    }
    if name == "LSTM":
        inputs["c0"] = c
    node = onnx.helper.make_node(
        name,
        ["X", "W", "R", "B", "", *list(inputs)[4:]],
        ["Y", "Y_h"],
        hidden_size=9,
        **({} if name == "LSTM" else {"linear_before_reset": linear_before_reset}),
    )
    values = [onnx.helper.make_tensor_value_info(key, 1, value.shape) for key, value in inputs.items()]
    graph = onnx.helper.make_graph(
        [node], "g", values, [onnx.helper.make_tensor_value_info(key, 1, None) for key in ("Y", "Y_h")]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)])
    Y, Y_h = reference.ReferenceEvaluator(model).run(None, inputs)
    found = call(layer, x, h, c)
    np.testing.assert_allclose(found[0], Y[:, 0].transpose(1, 0, 2), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[1], Y_h, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_torch(name: str, bidirectional: bool) -> None:
    torch = pytest.importorskip("torch")
    options = {"num_layers": 2, "bidirectional": bidirectional}
    theirs = getattr(torch.nn, name)(6, 20, batch_first=True, **options).double().eval()
    ours = {"LSTM": LSTM, "GRU": GRU}[name](6, 20, **options, dtype=np.float64)
    ours.load({key: value.numpy() for key, value in theirs.state_dict().items()})
    x, h, c = problem(ours, 4, 8)
    lengths = [8, 3, 5, 1]
    state = (torch.from_numpy(h), torch.from_numpy(c)) if name == "LSTM" else torch.from_numpy(h)
    pack, unpack = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence
    with torch.inference_mode():
        packed = pack(torch.from_numpy(x), lengths, batch_first=True, enforce_sorted=False)
        y, last = theirs(packed, state)
        right = [unpack(y, batch_first=True)[0], *(last if name == "LSTM" else [last])]
    for found, wanted in zip(call(ours, x, h, c, lengths=lengths), right, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-13)


# --- bits ---


@kinds
@dtypes
def test_bits_of_a_row_are_its_own(backend: str, kind: str, dtype: str) -> None:
    """Neither the batch, nor the lengths of others, nor threads, nor cutting the time change one."""
    layer = KINDS[kind](40, 150, dtype=dtype, rng=4)
    x, h, c = problem(layer, 15, 9)
    whole = call(layer, x, h, c)
    for rows in ([3], [3, 9], [0, 14, 7, 3, 2, 1, 8]):
        part = call(layer, x[rows], h[:, rows], c[:, rows])
        for found, right in zip(part, whole, strict=True):
            same_bits(found, right[rows] if found.ndim == 3 and found is part[0] else right[:, rows])
    ragged = call(layer, x, h, c, lengths=[9, 1, 2] * 5)
    same_bits(ragged[0][::3], whole[0][::3])
    for count in (1, 2, 3, 8):
        harken.set_num_threads(count)
        try:
            for batch in (slice(0, 15), slice(3, 4)):
                again = call(layer, x[batch], h[:, batch], c[:, batch])
                same_bits(again[0], whole[0][batch])
                same_bits(again[1], whole[1][:, batch])
        finally:
            harken.set_num_threads(None)


@kinds
@dtypes
def test_step_by_step(backend: str, kind: str, dtype: str) -> None:
    for B, H in ((1, 70), (3, 33), (1, 300)):
        layer = KINDS[kind](12, H, num_layers=2, dtype=dtype, rng=5)
        x = problem(layer, B, 6)[0]
        y, last = layer(x)
        state: Any = None
        for t in range(6):
            out, state = layer.step(x[:, t], state)
            same_bits(out, y[:, t])
        for found, right in zip(np.atleast_3d(state), np.atleast_3d(last), strict=True):
            same_bits(np.asarray(found), np.asarray(right))
        middle, state = layer(x[:, :4])
        rest, _ = layer(x[:, 4:], state)
        same_bits(np.concatenate([middle, rest], 1), y)


@kinds
def test_shapes(kind: str) -> None:
    layer = KINDS[kind](4, 6, num_layers=2, bidirectional=True, rng=6)
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4), np.float32)
    y, state = layer(x, lengths=[[5, 1, 2], [0, 3, 4]])
    h = state[0] if kind == "lstm" else state
    assert (y.shape, h.shape) == ((2, 3, 5, 12), (4, 2, 3, 6))
    alone, state = layer(x[1, 2], lengths=4)
    same_bits(alone, y[1, 2])
    same_bits(state[0] if kind == "lstm" else state, h[:, 1, 2])
    for shape in ((0, 5, 4), (3, 0, 4), (0, 0, 4), (0, 4)):
        y, state = layer(np.zeros(shape, np.float32))
        assert y.shape == (*shape[:-1], 12)
        assert not np.any(state)
    same_bits(layer(x[:, ::-1].transpose(1, 0, 2, 3))[0], layer(x)[0][:, ::-1].transpose(1, 0, 2, 3))
    nothing = KINDS[kind](0, 6, rng=6)
    assert nothing(np.zeros((3, 5, 0), np.float32))[0].any()


def test_parameters() -> None:
    layer = LSTM(4, 6, 2, bidirectional=True)
    assert {name: value.shape for name, value in layer.state().items()}["weight_ih_l1_reverse"] == (24, 12)
    assert list(GRU(4, 6, bias=False).state()) == ["weight_ih_l0", "weight_hh_l0"]
    x = np.ones((3, 4), np.float32)
    gru = GRU(4, 6)
    y = gru(x)[0]
    gru.bias_hh_l0 = gru.bias_hh_l0 + 1  # seen by the next call, as every parameter
    assert not np.array_equal(gru(x)[0], y)


def edge(region: Region, array: Array, end: bool) -> Array:
    view = region.dense(array.shape, array.dtype, contiguous(array.shape, array.itemsize), end)
    view[...] = array
    return view


@kinds
@pytest.mark.parametrize("end", [False, True])
def test_no_byte_beside_an_array(backend: str, kind: str, end: bool) -> None:
    """Weights, x and states at the edge of memory that ends the process when touched."""
    for C, H, B in ((1, 1, 1), (17, 19, 1), (5, 33, 7), (31, 16, 2)):
        layer = KINDS[kind](C, H, rng=7)
        x, h, c = problem(layer, B, 4)
        expected = call(layer, x, h, c)
        regions = [Region(8) for _ in range(7)]
        for region, (name, array) in zip(regions, layer.state().items(), strict=False):
            setattr(layer, name, edge(region, array, end))
        x, h, c = (edge(region, array, end) for region, array in zip(regions[4:], (x, h, c), strict=True))
        for found, right in zip(call(layer, x, h, c), expected, strict=True):
            same_bits(found, right)


# --- errors ---


@kinds
def test_errors(kind: str) -> None:
    layer = KINDS[kind](4, 6)
    x = np.zeros((2, 5, 4), np.float32)
    with pytest.raises(ValueError, match=r"x is \(2, 5, 3\): wanted 4 numbers along the last axis"):
        layer(x[..., :3])
    with pytest.raises(TypeError, match="x is float64, the layer is float32"):
        layer(x.astype(np.float64))
    with pytest.raises(ValueError, match=r"x is \(4,\): wanted 2 or more axes"):
        layer(x[0, 0])
    with pytest.raises(ValueError, match=r"lengths go from 1 to 6: wanted 0 to 5"):
        layer(x, lengths=[1, 6])
    with pytest.raises(ValueError, match=r"lengths is \(3,\): wanted \(2,\)"):
        layer(x, lengths=[1, 2, 3])
    with pytest.raises(TypeError, match="lengths is float64: wanted integers"):
        layer(x, lengths=[1.0, 2.0])
    h = np.zeros((1, 3, 6), np.float32)
    with pytest.raises(ValueError, match=r"h0 is \(1, 3, 6\): wanted \(1, 2, 6\)"):
        layer(x, (h, h) if kind == "lstm" else h)
    with pytest.raises(ValueError, match="step goes forwards"):
        KINDS[kind](4, 6, bidirectional=True).step(x[:, 0])
    with pytest.raises(ValueError, match="hidden_size is 0: wanted 1 or more"):
        KINDS[kind](4, 0)
    with pytest.raises(ValueError, match=r"weight_hh_l0 is \(2, 2\), wanted"):
        layer.weight_hh_l0 = np.zeros((2, 2), np.float32)


def test_errors_of_the_state() -> None:
    with pytest.raises(TypeError, match=r"state is ndarray: wanted \(h0, c0\)"):
        LSTM(4, 6)(np.zeros((5, 4), np.float32), np.zeros((1, 6), np.float32))  # type: ignore[arg-type]
