"""Attention of many heads through a cache: it continues, rows grow apart, and a step that fails leaves it as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compare import same_bits
from test_heads import made, normal

import harken


@pytest.mark.parametrize("layout", ["contiguous", "paged", "ring"])
@pytest.mark.parametrize("rope", [None, 100.0, "tables"])
def test_a_cache_continues(layout: str, rope: Any) -> None:
    """The prompt at once, then in steps, gives what all positions give at once."""
    tables = harken.rope_table(40, 4)
    layer = made(np.float64, 24, 6, num_kv_heads=2, head_dim=8, rope=tables if rope == "tables" else rope)
    x = normal(np.float64, 2, 40, 24)
    window = (9, None) if layout == "ring" else None
    whole, weights = layer(x, causal=True, window=window, return_weights=True)
    cache = layer.cache(2, 20 if layout == "ring" else 40, layout=layout)
    y = [layer(part, window=window, cache=cache) for part in np.split(x, [7, 8, 9, 20, 31, 32], axis=1)]
    np.testing.assert_allclose(np.concatenate(y, axis=1), whole, atol=1e-13)
    if layout != "ring":
        cache.truncate(39)
        last = layer(x[:, 39:], cache=cache, return_weights=True)[1]
        np.testing.assert_allclose(last, weights[..., 39:, :], atol=1e-14)


@pytest.mark.parametrize(("kept", "bound"), [("float16", 2e-3), ("int8", 3e-2)])
def test_a_cache_of_narrow_numbers(kept: str, bound: float) -> None:
    layer = made(np.float32, 32, 4, rope=100.0)
    x = normal(np.float32, 2, 12, 32)
    cache = layer.cache(2, 12, kv_dtype=kept)
    y = np.concatenate([layer(part, cache=cache) for part in np.split(x, [5, 6], axis=1)], axis=1)
    whole = layer(x, causal=True)
    error = np.linalg.norm(y - whole) / np.linalg.norm(whole)
    assert 0 < error < bound


@pytest.mark.parametrize("layout", ["contiguous", "paged", "ring"])
def test_rows_of_a_cache_grow_apart(layout: str) -> None:
    layer = made(np.float64, 16, 4, rope=100.0)
    counts = np.array([[3, 0, 5], [1, 4, 2], [5, 5, 1]])
    x = normal(np.float64, 3, 30, 16)
    window = (6, None)
    whole = layer(x, causal=True, window=window)
    cache = layer.cache(3, 12, layout=layout)
    for step in [*counts, counts[0]] if layout == "ring" else counts[:2]:
        at = cache.starts + cache.lengths
        part = np.full((3, 5, 16), np.nan)
        for row, (first, count) in enumerate(zip(at, step, strict=True)):
            part[row, :count] = x[row, first : first + count]
        y = layer(part, window=window, lengths=step, cache=cache)
        for row, (first, count) in enumerate(zip(at, step, strict=True)):
            np.testing.assert_allclose(y[row, :count], whole[row, first : first + count], atol=1e-13)
            assert not y[row, count:].any()
    assert cache.lengths.max() <= 12


def test_one_sequence_without_a_batch_axis() -> None:
    layer = made(np.float32, 16, 4)
    x = normal(np.float32, 9, 16)
    same_bits(layer(x, lengths=5), layer(x[None], lengths=[5])[0])
    cache, other = layer.cache(1, 9), layer.cache(1, 9)
    y, weights = layer(x, cache=cache, return_weights=True)
    assert (y.shape, weights.shape) == ((9, 16), (4, 9, 9))
    same_bits(y, layer(x[None], cache=other)[0])


@pytest.mark.parametrize("layout", ["contiguous", "paged", "ring"])
def test_a_step_that_fails_leaves_the_cache(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = made(np.float32, 16, 4)
    cache = layer.cache(2, 6 if layout == "ring" else 9, layout=layout)
    x = normal(np.float32, 2, 4, 16)
    layer(x, cache=cache)
    before = cache.lengths, cache.starts, cache.keys().copy()
    wrong: list[tuple[type, dict[str, Any]]] = [
        (ValueError, {"mask": np.ones((3, 5), bool)}),
        (TypeError, {"mask": np.ones((4, 4))}),
        (ValueError, {"window": (-1, 0)}),
        (ValueError, {"lengths": [3, 5]}),
        (ValueError, {"kv_lengths": [3, 3]}),
    ]
    for kind, options in wrong:
        with pytest.raises(kind):
            layer(x, cache=cache, **options)
    if layout != "ring":
        with pytest.raises(ValueError, match="do not fit"):
            layer(normal(np.float32, 2, 6, 16), cache=cache)

        def interrupted(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(harken.KVCache, "attend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            layer(x[:, :1], cache=cache)
    same_bits(cache.lengths, before[0])
    same_bits(cache.starts, before[1])
    same_bits(cache.keys(), before[2])


def test_a_cache_must_fit() -> None:
    layer = made(np.float32, 16, 4, num_kv_heads=2)
    x = normal(np.float32, 2, 3, 16)
    with pytest.raises(TypeError, match="cache is dict: wanted a KVCache"):
        layer(x, cache={})
    with pytest.raises(ValueError, match=r"of 4 heads of 4: wanted 2 heads of 4 channels in float32"):
        layer(x, cache=harken.KVCache(2, 4, 9, 4))
    with pytest.raises(ValueError, match=r"cache has 3 rows, the input \(2,\)"):
        layer(x, cache=layer.cache(3, 9))
    with pytest.raises(ValueError, match="a cache is for self-attention"):
        layer(x, x, cache=layer.cache(2, 9))
    with pytest.raises(ValueError, match="keys have 5 channels: a cache is for self-attention"):
        made(np.float32, 16, 4, kdim=5)(x, cache=layer.cache(2, 9))
    with pytest.raises(ValueError, match="position 3 needs longer ones"):
        made(np.float32, 16, 4, rope=harken.rope_table(3, 4))(normal(np.float32, 4, 16))
