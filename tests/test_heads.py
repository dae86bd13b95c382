"""Attention of many heads between its projections: the formula, PyTorch's numbers, caches, padding, no copies."""

from __future__ import annotations

import tracemalloc
from typing import Any

import formulas
import numpy as np
import pytest
from compare import Array, close, poisoned, same_bits, ulp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import harken
from harken import masks
from harken.layers import MultiHeadAttention
from harken.layers import heads as module

TYPES = [np.float32, np.float64]


def made(dtype: Any, E: int, H: int, seed: int = 0, **options: Any) -> MultiHeadAttention:
    """A layer whose biases are not 0."""
    rng = np.random.default_rng((seed, E, H))
    layer = MultiHeadAttention(E, H, dtype=dtype, rng=rng, **options)
    return layer.load({name: x + rng.normal(size=x.shape) / 4 for name, x in layer.state().items()})


def normal(dtype: Any, *shape: int, seed: int = 1) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)


def agree(name: str, actual: Array, function: Any, layer: Any, *arrays: Array, valid: Any = True) -> None:
    """`function(state, *arrays)` in float64 (long double), against itself in the layer's own type; 0 past lengths."""
    state, above = layer.state(), np.longdouble if layer.dtype == np.float64 else np.float64
    naive = function(state, *arrays)
    truth = function({key: x.astype(above) for key, x in state.items()}, *(x.astype(above) for x in arrays))
    naive, truth = np.where(valid, naive, 0).astype(layer.dtype), np.where(valid, truth, 0)
    largest = float(np.abs(truth).max(initial=0))
    close(name, actual, naive, truth, 8 * ulp(layer.dtype, max(largest, 1.0)))


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Any legal layer and call: sizes and options."""
    lead = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    G, group, D = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([2, 4, 8]))
    H, L, cross = G * group, draw(st.integers(1, 9)), draw(st.booleans())
    Lk = draw(st.integers(1, 9)) if cross else L
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    flag = st.booleans()
    which = draw(st.sampled_from([None, "mask", "masks"]))
    shape = (*lead, 1 if draw(flag) else H, L, Lk)[draw(st.integers(0, len(lead))) :]
    build: dict[str, Any] = {"num_kv_heads": G, "head_dim": D, "bias": draw(flag), "add_zero_attn": draw(flag)}
    build |= {"kdim": 7, "vdim": draw(st.sampled_from([None, 5]))} if cross and draw(flag) else {}
    build |= {"rope": 100.0, "rope_interleaved": draw(flag)} if draw(flag) else {}
    build |= {"scale": 0.3} if draw(flag) else {}
    build |= {"score": "cosine"} if draw(flag) else {}
    build |= {"softcap": 2.0} if draw(flag) else {}
    build |= {"alibi": rng.random(H)} if draw(flag) else {}
    call: dict[str, Any] = {"causal": draw(flag)}
    call |= {"window": (draw(st.sampled_from([None, 0, 3])), draw(st.sampled_from([None, 2])))} if draw(flag) else {}
    call |= {"mask": rng.random(shape) < 0.7} if which == "mask" else {}
    call |= {"mask": masks.Causal() | masks.Prefix(2)} if which == "masks" else {}
    call |= {"bias": rng.standard_normal(shape)} if draw(flag) else {}
    call |= {"lengths": rng.integers(0, L + 1, lead)} if draw(flag) else {}
    call |= {"kv_lengths": rng.integers(0, Lk + 1, lead)} if draw(flag) else {}
    return {
        "lead": lead, "H": H, "G": G, "L": L, "Lk": Lk, "cross": cross, "build": build, "call": call,
        "dtype": draw(st.sampled_from(TYPES)), "weights": draw(flag), "seed": int(rng.integers(2**32)),
    }  # fmt: skip


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(calls())
def test_any_options_together(drawn: dict[str, Any]) -> None:
    """Every option beside every other, and NaN in all that does not exist."""
    H, G, L, Lk, lead, build, call = (drawn[name] for name in ("H", "G", "L", "Lk", "lead", "build", "call"))
    E = 6
    layer = made(drawn["dtype"], E, H, drawn["seed"], **build)
    x = normal(layer.dtype, *lead, L, E, seed=2)
    key = normal(layer.dtype, *lead, Lk, layer.kdim, seed=3)
    value = normal(layer.dtype, *lead, Lk, layer.vdim, seed=4)
    lengths = np.broadcast_to(call.get("lengths", L), lead)
    its = call.get("kv_lengths", Lk if drawn["cross"] else lengths)
    valid = (np.arange(L) < lengths[..., None])[..., None]
    exists = (np.arange(Lk) < np.broadcast_to(its, lead)[..., None])[..., None]
    if drawn["cross"]:
        given_ = [np.where(valid, x, np.nan), np.where(exists, key, np.nan), np.where(exists, value, np.nan)]
        given_ = given_[:2] if layer.vdim == layer.kdim and drawn["seed"] % 2 else given_
        value = key if len(given_) == 2 else value
    else:
        given_, key, value = [np.where(valid | exists, x, np.nan)], x, x
    mask = call.get("mask", True)
    mask = mask.dense(L, Lk, q_start=0) if isinstance(mask, masks.Mask) else mask
    who = formulas.seen(L, Lk, call["causal"], call.get("window"), its, mask)
    more = {name: build[name] for name in ("scale", "softcap", "alibi", "rope", "score") if name in build}
    more |= {"zero": build["add_zero_attn"], "interleaved": build.get("rope_interleaved", False)}

    def formula(state: Any, *arrays: Array) -> tuple[Array, Array]:
        return formulas.heads(state, *arrays, H, G, who, bias=call.get("bias", 0.0), **more)

    result = layer(*given_, **call, return_weights=drawn["weights"])
    y, weights = result if drawn["weights"] else (result, None)
    agree("y", y, lambda *a: formula(*a)[0], layer, x, key, value, valid=valid)
    if weights is not None:
        agree("weights", weights, lambda *a: formula(*a)[1], layer, x, key, value, valid=valid[..., None, :, :])


@pytest.mark.parametrize("dtype", TYPES)
def test_on_every_backend(backend: str, dtype: Any) -> None:
    layer = made(dtype, 48, 6, num_kv_heads=2, rope=1e4)
    x = normal(dtype, 2, 70, 48)
    who = formulas.seen(70, 70, True, None, [70, 33])
    y = layer(x, causal=True, lengths=[70, 33])
    valid = (np.arange(70) < np.array([[70], [33]]))[..., None]
    agree("y", y, lambda s, a: formulas.heads(s, a, a, a, 6, 2, who, rope=1e4)[0], layer, x, valid=valid)


# --- the names and numbers of PyTorch ---


def test_names_of_the_state() -> None:
    shapes = {name: x.shape for name, x in MultiHeadAttention(8, 2).state().items()}
    assert shapes == {
        "in_proj_weight": (24, 8), "in_proj_bias": (24,), "out_proj.weight": (8, 8), "out_proj.bias": (8,),
    }  # fmt: skip
    assert list(MultiHeadAttention(8, 2, bias=False).state()) == ["in_proj_weight", "out_proj.weight"]
    shapes = {name: x.shape for name, x in MultiHeadAttention(8, 2, kdim=5, vdim=6).state().items()}
    assert list(shapes)[:3] == ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    assert [shapes[name] for name in list(shapes)[:4]] == [(8, 8), (8, 5), (8, 6), (24,)]
    assert MultiHeadAttention(8, 4, num_kv_heads=2).state()["in_proj_weight"].shape == (16, 8)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(
    "build", [{}, {"bias": False}, {"kdim": 20, "vdim": 24}, {"kdim": 20}, {"add_zero_attn": True}], ids=str
)
def test_torch(build: dict[str, Any], double: bool) -> None:
    torch = pytest.importorskip("torch")
    dtype = np.float64 if double else np.float32
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True, **build).to(getattr(torch, np.dtype(dtype).name))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = MultiHeadAttention(16, 4, dtype=dtype, **build).load(theirs.state_dict())
    assert list(ours.state()) == list(theirs.state_dict())
    x, key = normal(dtype, 3, 5, 16), normal(dtype, 3, 7, build.get("kdim", 16))
    value = normal(dtype, 3, 7, build.get("vdim", 16), seed=2)
    hidden = np.random.default_rng(0).random((3, 4, 5, 7)) < 0.2
    padding = np.arange(7) >= np.array([[7], [4], [6]])
    with torch.no_grad():
        their_y, their_weights = theirs(
            *map(torch.from_numpy, (x, key, value)), attn_mask=torch.from_numpy(hidden.reshape(12, 5, 7)),
            key_padding_mask=torch.from_numpy(padding), average_attn_weights=False,
        )  # fmt: skip
    y, weights = ours(x, key, value, mask=~hidden, kv_lengths=[7, 4, 6], return_weights=True)
    same = ours(x, key, value, mask=~hidden & ~padding[:, None, None])
    bound = 1e-13 if double else 2e-6
    np.testing.assert_allclose(y, their_y.numpy(), atol=bound)
    np.testing.assert_allclose(same, y, atol=bound)
    np.testing.assert_allclose(weights, their_weights.numpy()[..., :7], atol=bound)


def test_keys_of_their_own_are_refused() -> None:
    layer = MultiHeadAttention(8, 2)
    before = {name: x.copy() for name, x in layer.state().items()}
    with pytest.raises(ValueError, match=r"unknown: bias_k, bias_v") as caught:
        layer.load({name: x + 1 for name, x in before.items()} | {n: np.ones((1, 1, 8)) for n in ("bias_k", "bias_v")})
    assert "add_bias_kv=True" in caught.value.__notes__[0]
    for name, x in layer.state().items():
        same_bits(x, before[name])


# --- what is read, and where ---


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -3e38])
def test_padding_reaches_nothing(garbage: float) -> None:
    layer = made(np.float32, 24, 4, rope=100.0)
    x, key = normal(np.float32, 3, 30, 24), normal(np.float32, 3, 20, 24)
    lengths, kv = np.array([30, 11, 0]), np.array([5, 20, 1])
    dirty, other = x.copy(), key.copy()
    dirty[np.arange(30) >= lengths[:, None]] = garbage
    other[np.arange(20) >= kv[:, None]] = garbage
    mask = np.random.default_rng(0).random((3, 1, 30, 30)) < 0.5
    for options in ({}, {"causal": True, "return_weights": True}, {"mask": mask}):
        one, two = layer(x, lengths=lengths, **options), layer(dirty, lengths=lengths, **options)
        for a, b in zip(one, two, strict=True) if isinstance(one, tuple) else [(one, two)]:
            same_bits(a, b)
    same_bits(layer(x, key, lengths=lengths, kv_lengths=kv), layer(dirty, other, lengths=lengths, kv_lengths=kv))
    assert not layer(dirty, lengths=lengths)[2].any()


def test_queries_and_keys_are_views_of_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Array] = []

    def spy(q: Array, k: Array, v: Array, **options: Any) -> Any:
        taken[:] = q, k, v
        return harken.attention(q, k, v, **options)

    monkeypatch.setattr(module, "attention", spy)
    layer = made(np.float32, 64, 8, num_kv_heads=2, rope=1e4)
    layer(normal(np.float32, 4, 100, 64), causal=True)
    q, k, v = taken
    row = (8 + 2 + 2) * 8 * 4
    assert q.strides == k.strides == v.strides == (100 * row, row, 32, 4)
    assert [x.ctypes.data - q.ctypes.data for x in (k, v)] == [64 * 4, 80 * 4]
    assert q.base is not None
    assert q.base.base is k.base.base is v.base.base or np.shares_memory(q.base, k.base)


def test_memory_of_a_call() -> None:
    """The product, what attention finds, and the result: nothing else of their size."""
    layer = made(np.float32, 64, 8)
    x = normal(np.float32, 4, 256, 64)
    layer(x)
    tracemalloc.start()
    try:
        layer(x)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes * (3 + 1 + 1) + 2**16


def test_any_layout_of_the_input() -> None:
    layer = made(np.float32, 16, 4)
    x = normal(np.float32, 3, 6, 16)
    before = x.copy()
    y = layer(x, lengths=[6, 2, 3])
    same_bits(x, before)
    same_bits(layer(poisoned(x), lengths=[6, 2, 3]), y)
    same_bits(layer(poisoned(x, step=2)), layer(x))
    x.flags.writeable = False
    same_bits(layer(x, lengths=[6, 2, 3]), y)


@pytest.mark.parametrize("shape", [(0, 3, 16), (2, 0, 16), (0, 16)])
def test_nothing_in_nothing_out(shape: tuple[int, ...]) -> None:
    layer = made(np.float32, 16, 4, rope=100.0)
    x = np.zeros(shape, np.float32)
    assert layer(x).shape == shape
    assert layer(x, lengths=np.zeros(shape[:-2], int)).shape == shape
    full = np.ones((*shape[:-2], 3, 16), np.float32)
    assert layer(full, x).shape == full.shape


def test_other_leading_axes_of_keys_broadcast() -> None:
    layer = made(np.float64, 16, 4)
    x, key = normal(np.float64, 2, 3, 5, 16), normal(np.float64, 3, 7, 16)
    wide = np.broadcast_to(key, (2, 3, 7, 16))
    np.testing.assert_allclose(layer(x, key), layer(x, wide), atol=1e-14)
    kv, q = np.array([7, 3, 0]), np.array([[5, 1, 2], [0, 5, 5]])
    np.testing.assert_allclose(
        layer(x, key, kv_lengths=kv, lengths=q), layer(x, wide, kv_lengths=kv, lengths=q), atol=1e-14
    )


WRONG: list[tuple[type, str, dict[str, Any]]] = [
    (ValueError, r"query is \(2, 3, 5\): wanted 16 numbers", {"query": np.ones((2, 3, 5), np.float32)}),
    (TypeError, "query is float64, the layer is float32", {"query": np.ones((2, 3, 16))}),
    (ValueError, "value is given without key", {"value": np.ones((2, 3, 16), np.float32)}),
    (ValueError, r"value is \(2, 4, 16\), key \(2, 3, 16\): wanted a value for each key",
     {"key": np.ones((2, 3, 16), np.float32), "value": np.ones((2, 4, 16), np.float32)}),
    (ValueError, r"leading axes that broadcast to \(2,\)", {"key": np.ones((3, 3, 16), np.float32)}),
    (TypeError, "lengths is float64: wanted integers", {"lengths": [1.0, 2.0]}),
    (ValueError, r"lengths holds 4: wanted 0 to 3", {"lengths": [1, 4]}),
    (ValueError, r"lengths has shape \(3,\): wanted one integer for each sequence, \(2,\)", {"lengths": [1, 2, 3]}),
    (ValueError, r"kv_lengths holds -1: wanted 0 to 3", {"kv_lengths": -1}),
    (ValueError, r"mask has shape \(2, 2, 3, 3\): wanted one that broadcasts to \(2, 4, 3, 3\)",
     {"mask": np.ones((2, 2, 3, 3), bool), "lengths": [3, 1]}),
    (TypeError, "mask", {"mask": np.ones((3, 3)), "lengths": [3, 1]}),
    (ValueError, "mask", {"mask": np.ones((2, 3), bool)}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "match", "wrong"), WRONG, ids=[match for _, match, _ in WRONG])
def test_wrong_calls(kind: type, match: str, wrong: dict[str, Any]) -> None:
    call = {"query": normal(np.float32, 2, 3, 16)} | wrong
    with pytest.raises(kind, match=match):
        made(np.float32, 16, 4)(**call)


def test_wrong_layers() -> None:
    with pytest.raises(ValueError, match="embed_dim is 10, num_heads 4"):
        MultiHeadAttention(10, 4)
    with pytest.raises(ValueError, match="num_kv_heads is 3, num_heads 4"):
        MultiHeadAttention(16, 4, num_kv_heads=3)
    with pytest.raises(ValueError, match=r"rope holds \(9, 4\) and \(9, 4\): wanted two tables \(positions, up to 2\)"):
        MultiHeadAttention(16, 4, rope=harken.rope_table(9, 8))
    with pytest.raises(TypeError, match="rope is str"):
        MultiHeadAttention(16, 4, rope="llama")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="3 channels: they turn in pairs"):
        MultiHeadAttention(12, 4, rope=1e4)
    with pytest.raises(ValueError, match=r"query, the keys too, is \(2, 16\): wanted 5 numbers"):
        MultiHeadAttention(16, 4, kdim=5)(np.ones((2, 16), np.float32))
