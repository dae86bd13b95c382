"""Keras' arrays, renamed and turned, give in the layers here, and in PyTorch's equations, what Keras computes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from child import output
from compare import Array

from harken import layers
from harken.layers import from_keras

RNG = np.random.default_rng(2)
State = Mapping[str, Array]

CASES = [
    "Embedding", "Dense", "Dense plain", "Conv1D", "Conv1D plain", "LayerNormalization", "LayerNormalization scale",
    "LayerNormalization center", "RMSNormalization", "LSTM", "LSTM plain", "GRU", "GRU plain", "GRU before",
    "Bidirectional LSTM", "Bidirectional GRU", "MultiHeadAttention", "MultiHeadAttention plain",
    "MultiHeadAttention across", "GroupedQueryAttention", "AdditiveAttention", "AdditiveAttention plain",
]  # fmt: skip


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


# Those whose heads have as many channels together as the queries, and no GRU that resets before its product.
TORCHES = [
    "LSTM", "LSTM plain", "GRU", "GRU plain", "Bidirectional LSTM", "Bidirectional GRU", "MultiHeadAttention plain",
    "MultiHeadAttention across",
]  # fmt: skip


# --- PyTorch's equations, of a state ---


def recurrent(state: State, x: Array, before: bool = False) -> Array:
    """LSTM or GRU, in one or both directions; `before` resets the state before its product."""

    def one(x: Array, suffix: str) -> Array:
        wi, wh = state["weight_ih_l0" + suffix], state["weight_hh_l0" + suffix]
        bi, bh = (state.get(f"bias_{side}_l0{suffix}", np.zeros(len(wi))) for side in ("ih", "hh"))
        H, c, out = wh.shape[1], np.zeros(()), []
        h = np.zeros((len(x), H))
        for t in range(x.shape[1]):
            if len(wi) == 4 * H:
                i, f, g, o = np.split(x[:, t] @ wi.T + bi + h @ wh.T + bh, 4, axis=1)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
            else:
                (ir, iz, i), (hr, hz, n) = (np.split(a, 3, axis=1) for a in (x[:, t] @ wi.T + bi, h @ wh.T + bh))
                r, z = sigmoid(ir + hr), sigmoid(iz + hz)
                n = (r * h) @ wh[2 * H :].T + bh[2 * H :] if before else r * n
                h = (1 - z) * np.tanh(i + n) + z * h
            out.append(h)
        return np.stack(out, axis=1)

    forward = one(x, "")
    if "weight_ih_l0_reverse" not in state:
        return forward
    return np.concatenate([forward, one(x[:, ::-1], "_reverse")[:, ::-1]], axis=-1)


def heads(state: State, x: Array, y: Array, H: int, G: int, D: int) -> Array:
    rows = np.cumsum([H * D, G * D])
    if "in_proj_weight" in state:
        weights = np.split(state["in_proj_weight"], rows)
    else:
        weights = [state[f"{name}_proj_weight"] for name in "qkv"]
    biases = np.split(state["in_proj_bias"], rows) if "in_proj_bias" in state else [np.zeros(())] * 3
    q, k, v = ((a @ w.T + b).reshape(*a.shape[:2], -1, D) for a, w, b in zip((x, y, y), weights, biases, strict=True))
    k, v = (np.repeat(a, H // G, axis=2) for a in (k, v))
    p = np.exp(np.einsum("bihd,bjhd->bhij", q, k) / D**0.5)
    o = np.einsum("bhij,bjhd->bihd", p / p.sum(axis=-1, keepdims=True), v).reshape(*x.shape[:2], H * D)
    return o @ state["out_proj.weight"].T + state.get("out_proj.bias", 0)


def conv(state: State, x: Array, left: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> Array:
    weight = state["weight"]
    O, C, K = weight.shape
    x = np.pad(x, [(0, 0), (left, 0), (0, 0)])
    L = (x.shape[1] - dilation * (K - 1) - 1) // stride + 1
    y = np.zeros((len(x), L, O))
    for o, k in np.ndindex(O, K):
        first = o // (O // groups) * C
        y[:, :, o] += x[:, k * dilation :: stride][:, :L, first : first + C] @ weight[o, :, k]
    return y + state.get("bias", 0)


def ours(make: Callable[[], layers.Layer]) -> Callable[..., Array]:
    return lambda state, *x: make().load(state)(*x)


COMPUTED: dict[str, Callable[..., Array]] = {
    "Embedding": ours(lambda: layers.Embedding(11, 6)),
    "Dense": ours(lambda: layers.Linear(6, 4)),
    "Dense plain": ours(lambda: layers.Linear(6, 4, bias=False)),
    "Conv1D": lambda state, x: conv(state, x, 4, dilation=2, groups=2),
    "Conv1D plain": lambda state, x: conv(state, x, 0, stride=2),
    "LayerNormalization": ours(lambda: layers.LayerNorm(6, eps=1e-3)),
    "LayerNormalization scale": ours(lambda: layers.LayerNorm(6, eps=1e-3, bias=False)),
    "LayerNormalization center": ours(lambda: layers.LayerNorm(6, eps=1e-3)),
    "RMSNormalization": ours(lambda: layers.RMSNorm(6, eps=1e-6)),
    "GRU before": lambda state, x: recurrent(state, x, before=True),
    "MultiHeadAttention": lambda state, x, y: heads(state, x, y, 2, 2, 4),
    "MultiHeadAttention plain": lambda state, x, y: heads(state, x, y, 3, 3, 2),
    "MultiHeadAttention across": lambda state, x, y: heads(state, x, y, 2, 2, 3),
    "GroupedQueryAttention": lambda state, x, y: heads(state, x, y, 4, 2, 4),
    "AdditiveAttention": ours(lambda: layers.AdditiveAttention(6, project=False)),
    "AdditiveAttention plain": ours(lambda: layers.AdditiveAttention(6, project=False, use_scale=False)),
}


# --- against Keras itself ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What keras_models.py leaves, which runs Keras on NumPy in a process of its own."""
    if importlib.util.find_spec("keras") is None:
        pytest.skip("no Keras")
    path: Path = tmp_path_factory.mktemp("keras")
    program = Path(__file__).with_name("keras_models.py")
    code = f"import runpy, sys; sys.argv = ['', {str(path)!r}]; runpy.run_path({str(program)!r}, run_name='__main__')"
    output(code, timeout=120, warn="ignore", env={"KERAS_BACKEND": "numpy"})
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Array]:
    with np.load(folder / "found.npz") as arrays:
        return dict(arrays)


def part(found: Mapping[str, Array], start: str) -> dict[str, Array]:
    return {name.removeprefix(start): array for name, array in found.items() if name.startswith(start)}


def same(one: Mapping[str, Array], other: Mapping[str, Array]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, other[name], strict=True)


@pytest.mark.parametrize("case", CASES)
def test_what_keras_computes(found: dict[str, Array], case: str) -> None:
    kind, _, option = case.partition(" ")
    config = {"scale": {"center": False}, "center": {"scale": False}}.get(option, {})
    state = from_keras(kind, [*part(found, f"{case}.w").values()], **config)
    same(state, part(found, f"{case}/"))
    computed = COMPUTED.get(case, recurrent)(state, *part(found, f"{case}.x").values())
    np.testing.assert_allclose(computed, found[f"{case}.y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", TORCHES)
def test_pytorch_computes_it_too(found: dict[str, Array], case: str) -> None:
    """Its modules take the states as they are."""
    torch = pytest.importorskip("torch")
    state, (x, *y) = part(found, f"{case}/"), map(torch.from_numpy, part(found, f"{case}.x").values())
    if "Multi" in case:
        made = torch.nn.MultiheadAttention(6, 3 if "plain" in case else 2, bias="plain" not in case, batch_first=True,
                                           kdim=y[0].shape[2], vdim=y[0].shape[2])  # fmt: skip
    else:
        kind = torch.nn.LSTM if "LSTM" in case else torch.nn.GRU
        made = kind(6, state["weight_hh_l0"].shape[1], bias="bias_ih_l0" in state, batch_first=True,
                    bidirectional="Bi" in case)  # fmt: skip
    made.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state.items()})
    with torch.no_grad():
        computed = made(x, y[0], y[0])[0] if y else made(x)[0]
    np.testing.assert_allclose(computed.numpy(), found[f"{case}.y"], rtol=1e-4, atol=1e-4)


def test_files_of_keras(folder: Path, found: dict[str, Array]) -> None:
    pytest.importorskip("h5py")
    model = part(found, "model/")
    for case in CASES:
        same(part(model, f"{found[f'{case}.name']}."), part(found, f"{case}/"))
    same(from_keras(folder / "model.keras"), model)
    weights = from_keras(str(folder / "model.weights.h5"))
    for case in ("LayerNormalization scale", "LayerNormalization center"):
        name = found[f"{case}.name"]
        assert np.array_equal(weights.pop(f"{name}.vars.0"), found[f"{case}.w0"])
        weights |= {f"{name}.{key}": array for key, array in part(found, f"{case}/").items()}
    weights["head.norm.weight"] = weights.pop("head.norm.vars.0")
    same(weights, model)
    assert model["head.dense_of_my_own.weight"].shape == (3, 4)
    for file in ("model.keras", "model.weights.h5"):
        layer = layers.Linear(4, 3).load(folder / file, prefix="head.dense_of_my_own.")
        assert np.array_equal(layer.weight, model["head.dense_of_my_own.weight"])


# --- without Keras ---


def lstm(kernel: Array, kept: Array, bias: Array, x: Array) -> Array:
    """Keras' equations: z = x K + h R + b, cut into i, f, c and o."""
    h = c = np.zeros((len(x), len(kept)))
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ kept + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return h


def gru(kernel: Array, kept: Array, bias: Array, x: Array) -> Array:
    """Keras' equations: gates z, r and h; two rows of bias are those of reset_after."""
    h = np.zeros((len(x), len(kept)))
    H = len(kept)
    after = bias.ndim == 2
    for t in range(x.shape[1]):
        xz, xr, xh = np.split(x[:, t] @ kernel + (bias[0] if after else bias), 3, axis=1)
        hz, hr, hh = np.split(h @ kept + (bias[1] if after else 0), 3, axis=1)
        z, r = sigmoid(xz + hz), sigmoid(xr + hr)
        h = z * h + (1 - z) * np.tanh(xh + (r * hh if after else (r * h) @ kept[:, 2 * H :]))
    return h


def test_equations_of_keras() -> None:
    x, m = normal(2, 5, 3), 4
    weights = normal(3, 4 * m), normal(m, 4 * m), normal(4 * m)
    np.testing.assert_allclose(recurrent(from_keras("LSTM", weights), x)[:, -1], lstm(*weights, x), rtol=1e-12)
    for shape in ((2, 3 * m), (3 * m,)):
        weights = normal(3, 3 * m), normal(m, 3 * m), normal(*shape)
        state = from_keras("GRU", weights)
        np.testing.assert_allclose(recurrent(state, x, len(shape) == 1)[:, -1], gru(*weights, x), rtol=1e-12)
    both = [normal(*w.shape) for w in (*weights, *weights)]
    y = recurrent(from_keras("Bidirectional", both), x, before=True)
    np.testing.assert_allclose(y[:, -1, :m], gru(*both[:3], x), rtol=1e-12)
    np.testing.assert_allclose(y[:, 0, m:], gru(*both[3:], x[:, ::-1]), rtol=1e-12)
    kernel, bias = normal(3, 3, 8), normal(8)
    y = np.einsum("blkc,kco->blo", np.stack([x[:, k : k + 3] for k in range(3)], axis=2), kernel) + bias
    np.testing.assert_allclose(conv(from_keras("Conv1D", [kernel, bias]), x, 0), y, rtol=1e-12)
    q, k, v, o = normal(3, 2, 4), normal(3, 2, 4), normal(3, 2, 4), normal(2, 4, 3)
    a, b, c, d = normal(2, 4), normal(2, 4), normal(2, 4), normal(3)
    scores = np.einsum("bihd,bjhd->bhij", *(np.einsum("bln,nhd->blhd", x, w) + e for w, e in ((q, a), (k, b)))) / 2
    p = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    y = np.einsum("bhij,bjhd,hdn->bin", p, np.einsum("bln,nhd->blhd", x, v) + c, o) + d
    state = from_keras("MultiHeadAttention", [q, a, k, b, v, c, o, d])
    np.testing.assert_allclose(heads(state, x, x, 2, 2, 4), y, rtol=1e-10)
    assert list(state) == ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
