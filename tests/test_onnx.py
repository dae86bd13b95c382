"""Every case that ONNX has for Attention and the operators around it passes, and harken computes it."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
from compare import EPSILON, Array, forced

import harken

onnx = pytest.importorskip("onnx", "1.23")  # before it, softcap and mask came in another order

from onnx import TensorProto, helper  # noqa: E402
from onnx.backend.test.loader import load_node_model_tests  # noqa: E402
from onnx.backend.test.runner import Runner  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

import harken.onnx  # noqa: E402

NAMES = [op.__name__ for op in harken.onnx.OPS]
TYPES = {
    "float64": TensorProto.DOUBLE,
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "bool": TensorProto.BOOL,
    "int64": TensorProto.INT64,
}


def cases() -> dict[str, tuple[str, Any]]:
    """The node cases of this onnx with one of the operators, by name; the expanded ones have none of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other operators' cases overflow while they are made
        loaded = load_node_model_tests()
    found = {}
    for case in loaded:
        for node in case.model.graph.node:
            if node.op_type in NAMES and node.domain == "":
                found[case.name] = node.op_type, case
    return found


CASES = cases()


@pytest.mark.skipif(not onnx.__version__.startswith("1.23."), reason="other versions have other cases")
def test_how_many_cases_there_are() -> None:
    count = Counter(op for op, _ in CASES.values())
    assert count == {"Attention": 93, "RotaryEmbedding": 8, "RMSNormalization": 19, "TensorScatter": 3}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the tolerances of the case, compared as ONNX's own runner does, on every backend."""
    op, case = CASES[name]
    calls: Counter[str] = Counter()
    for function in ("attention", "rope"):
        original = getattr(harken, function)

        def counted(*args: Any, function: str = function, original: Any = original, **options: Any) -> Any:
            calls[function] += 1
            return original(*args, **options)

        monkeypatch.setattr(harken, function, counted)
    evaluator = ReferenceEvaluator(case.model, new_ops=harken.onnx.OPS)
    backends = harken.backends() if op == "Attention" else harken.backends()[:1]
    for backend in backends:
        with forced(backend):
            for given, wanted in case.data_sets:
                feed = {value.name: array for value, array in zip(case.model.graph.input, given, strict=True)}
                Runner.assert_similar_outputs(wanted, evaluator.run(None, feed), case.rtol, case.atol)
    count = len(backends) * len(case.data_sets)
    assert calls == {"Attention": {"attention": count}, "RotaryEmbedding": {"rope": count}}.get(op, {})


def run(op: str, inputs: list[Array | None], outputs: int = 1, opset: int = 24, **attributes: Any) -> Any:
    """The first and the last output of one operator; what is None and what is between them has no name."""
    names = [f"x{n}" if x is not None else "" for n, x in enumerate(inputs)]
    asked = [f"y{n}" if n in (0, outputs - 1) else "" for n in range(outputs)]
    feed = {name: x for name, x in zip(names, inputs, strict=True) if x is not None}
    graph = helper.make_graph(
        [helper.make_node(op, names, asked, **attributes)],
        "one",
        [helper.make_tensor_value_info(name, TYPES[x.dtype.name], x.shape) for name, x in feed.items()],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in asked if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    results = ReferenceEvaluator(model, new_ops=harken.onnx.OPS).run(None, feed)
    return results[0] if len(results) == 1 else results


def arrays(dtype: Any = np.float32, Lq: int = 5, Lk: int = 9) -> list[Any]:
    rng = np.random.default_rng(0)
    shapes = (2, 4, Lq, 8), (2, 2, Lk, 8), (2, 2, Lk, 6)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def test_attention_is_harken_s(dtype: np.dtype[Any]) -> None:
    """With no cache the first query stands at the first key; a (B, L, H D) input is the same numbers."""
    q, k, v = arrays(dtype)
    wanted = harken.attention(q, k, v, causal=True, q_start=0, scale=0.25, softcap=2.0)
    options = {"is_causal": 1, "scale": 0.25, "softcap": 2.0}
    got = run("Attention", [q, k, v], **options)
    assert got.dtype == dtype
    assert (got == wanted).all()
    flat = [x.swapaxes(1, 2).reshape(2, x.shape[2], -1) for x in (q, k, v)]
    got = run("Attention", flat, q_num_heads=4, kv_num_heads=2, **options)
    assert (got == wanted.swapaxes(1, 2).reshape(2, 5, -1)).all()


@pytest.mark.parametrize("cache", ["none", "past", "length"])
@pytest.mark.parametrize("kind", ["none", "bool", "float", "int"])
@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_scores_and_masks_that_end_early(causal: bool, mode: int, kind: str, cache: str) -> None:
    """What qk_matmul_output says in each mode leads to the same Y, and is the definition's in float64."""
    q, k, v = arrays(np.float64)
    reach, Lk, start, lengths = 7, 9, np.array([0, 0]), np.array([9, 9])
    rng = np.random.default_rng(1)
    past: list[Any] = [None, None, None]
    if cache == "past":
        past[:2] = rng.standard_normal((2, 2, 3, 8)), rng.standard_normal((2, 2, 3, 6))
        start, Lk, reach, lengths = np.array([3, 3]), 12, 10, np.array([12, 12])
    if cache == "length":
        past[2] = lengths = np.array([8, 3])
        start = lengths - 5
    mask, bias, seen = None, np.zeros((2, 4, 5, Lk)), np.ones((2, 4, 5, Lk), bool)
    if kind == "bool":
        mask = rng.random((2, 1, 5, reach)) < 0.7
        seen[..., :reach] &= mask
    elif kind == "float":
        mask = rng.standard_normal((4, 5, reach))
        bias[..., :reach] += mask
    elif kind == "int":
        mask = rng.integers(-3, 3, (5, reach))
        bias[..., :reach] += mask
    if mask is not None:
        seen[..., reach:] = False
    j, p = np.arange(Lk), np.arange(5)[:, None] + start.reshape(2, 1, 1, 1)
    seen &= ((j <= p) | (not causal)) & (j >= p - 4) & (j <= p + 6) & (j < lengths.reshape(2, 1, 1, 1))
    keys, values = (
        np.repeat(x if old is None else np.concatenate([old, x], 2), 2, 1) for x, old in ((k, past[0]), (v, past[1]))
    )
    S = q @ keys.swapaxes(2, 3) / np.sqrt(8)
    capped = 1.5 * np.tanh(S / 1.5)
    logits = np.where(seen, capped + bias, -np.inf)
    P = np.where(seen, np.exp(logits), 0)
    P /= np.maximum(P.sum(axis=-1, keepdims=True), 1e-300)
    sides = {"left_window_size": 4, "right_window_size": 6}
    options = {"is_causal": int(causal), "softcap": 1.5, "qk_matmul_output_mode": mode, **sides}
    Y, scores = run("Attention", [q, k, v, mask, *past], 4, 25, **options)
    np.testing.assert_allclose(Y, P @ values, atol=1e-12)
    np.testing.assert_allclose(scores, (S, capped, logits, P)[mode], atol=1e-12)


def test_softmax_precision_and_types_that_differ() -> None:
    q, k, v = arrays(np.float32)
    exact = harken.attention(*(x.astype(np.float64) for x in (q, k, v)))
    got = run("Attention", [q, k, v], softmax_precision=TensorProto.DOUBLE)
    assert got.dtype == np.float32
    assert (got == exact.astype(np.float32)).all()
    mixed = run("Attention", [q.astype(np.float16), k.astype(np.float16), v])
    assert mixed.dtype == np.float16
    wanted = harken.attention(*(x.astype(np.float16).astype(np.float32) for x in (q, k)), v)
    assert (mixed == wanted.astype(np.float16)).all()


def test_an_output_without_a_name_is_none() -> None:
    """The evaluator keeps it under the name '', which is also that of an input that is not given."""
    nodes = [
        helper.make_node("Attention", ["q", "k", "v"], ["y", "", "w"]),
        helper.make_node("Attention", ["q", "k", "w", "", "", ""], ["z"]),
    ]
    q, k, v = arrays()
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape) for n, x in zip("qkv", (q, k, v), strict=True)]
    graph = helper.make_graph(nodes, "two", info, [helper.make_tensor_value_info("z", TensorProto.UNDEFINED, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    [z] = ReferenceEvaluator(model, new_ops=harken.onnx.OPS).run(None, {"q": q, "k": k, "v": v})
    assert (z == harken.attention(q, k, v)).all()


def test_rms_normalization(dtype: np.dtype[Any]) -> None:
    x, scale = (np.random.default_rng(0).standard_normal(n).astype(dtype) for n in ((3, 4, 5), (4, 5)))
    exact = x.astype(np.longdouble)
    exact /= np.sqrt((exact**2).mean(axis=(1, 2), keepdims=True) + np.float32(1e-5))
    got = run("RMSNormalization", [x, scale], axis=1)
    assert got.dtype == dtype
    exact *= scale.astype(np.longdouble)
    error = np.abs(got.astype(np.longdouble) - exact)  # two roundings to the dtype, as ONNX defines it
    assert (
        error <= 1.5 * max(EPSILON[dtype.name], 4 * 2.0**-52) * np.abs(exact) + 2.0**-24 * (dtype != np.float64)
    ).all()


@pytest.mark.parametrize("axis", [1, 2, -2, 3])
@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_tensor_scatter(axis: int, mode: str) -> None:
    rng = np.random.default_rng(0)
    cache, at = rng.standard_normal((3, 6, 6, 6)), np.array([0, 4, 2])
    shape = [3, 6, 6, 6]
    shape[axis] = 2
    update, wanted = rng.standard_normal(shape), cache.copy()
    if mode == "circular":
        at[1] = 5
    for b in range(3):
        for n in range(2):
            np.moveaxis(wanted[b], axis - 1 if axis > 0 else axis, 0)[(at[b] + n) % 6] = np.moveaxis(
                update[b], axis - 1 if axis > 0 else axis, 0
            )[n]
    before = cache.copy()
    assert (run("TensorScatter", [cache, update, at], axis=axis, mode=mode) == wanted).all()
    assert (cache == before).all()


MISTAKES: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("Attention", [np.zeros((2, 5, 12)), *arrays()[1:]], {"q_num_heads": 5},
     "Q has shape (2, 5, 12) and q_num_heads is 5: wanted a divisor of 12"),
    ("Attention", [np.zeros((2, 5)), *arrays()[1:]], {}, "Q has shape (2, 5): wanted (B, H, L, D) or (B, L, H D)"),
    ("Attention", [*arrays(), None, np.zeros((2, 2, 3, 8), np.float32)], {},
     "past_key and past_value belong together: one of them is missing"),
    ("Attention", [*arrays(), None, *arrays()[1:], np.array([9, 9])], {},
     "nonpad_kv_seqlen and past_key are two ways to keep a cache: give one of them"),
    ("RotaryEmbedding", [np.zeros((2, 4, 5, 8), np.float32), *[np.zeros((9, 3), np.float32)] * 2], {},
     "cos_cache has 3 columns for 8 channels that turn: wanted 4"),
    ("TensorScatter", [np.zeros((2, 5, 3)), np.zeros((2, 6, 3))], {},
     "update has shape (2, 6, 3), past_cache (2, 5, 3): they may differ in axis 1 alone, where update is not the "
     "longer one"),
    ("TensorScatter", [np.zeros((2, 5, 3)), np.zeros((2, 2, 3)), np.array([0, 4])], {},
     "write_indices reach from 0 to 5: past_cache has places 0 to 4"),
    ("TensorScatter", [np.zeros((2, 5, 3)), np.zeros((2, 2, 3))], {"axis": 0},
     "axis is 0, which counts the batch: wanted the axis of the sequence"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "inputs", "attributes", "text"), MISTAKES, ids=[text[:40] for *_, text in MISTAKES])
def test_mistakes(op: str, inputs: list[Any], attributes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        run(op, inputs, **attributes)
