"""What is asked of each kernel of the card that works in tiles: options, lists, layouts, what is hidden or special."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compare import DTYPES, Array, check, poisoned, qkv, same_bits

import harken
from harken import masks

Arrays = tuple[Array, Array, Array]
HIDING: list[dict[str, Any]] = [{"causal": True}, {"window": (5, 30)}, {"mask": True}, {}]


def obeys(q: Array, k: Array, v: Array, **options: Any) -> None:
    check(q, k, v, device="cuda", weights=False, **options)


def attend(q: Array, k: Array, v: Array, **options: Any) -> Any:
    return harken.attention(q, k, v, device="cuda", **options)


def options(dtype: Any, name: str) -> dict[str, Any]:
    """One set of options for 4 query heads, 2 key heads, 2 batch rows, 70 queries and 150 keys."""
    rng = np.random.default_rng(1)
    mask = rng.random((2, 1, 70, 150)) < 0.5
    mask[0, 0, 3] = False
    bias = rng.standard_normal((4, 70, 150)).astype(dtype)
    return {
        "window": {"window": (20, 3), "q_start": [0, -7]},
        "left": {"window": (70, None), "q_start": [60, 200]},
        "lengths": {"q_lengths": [70, 11], "kv_lengths": [150, 40], "causal": True},
        "nothing": {"q_lengths": [0, 70], "kv_lengths": [150, 0], "sinks": [0.5, -1.0, 3.0, 0.0]},
        "mask": {"mask": mask},
        "bias": {"bias": bias, "causal": True},
        "float bias": {"bias": bias.astype(np.float32).swapaxes(-1, -2).copy().swapaxes(-1, -2), "window": (90, 5)},
        "one bias": {"bias": bias[:1, :, :1]},
        "one bias in a window": {"bias": bias[:1, :, :1], "window": (90, 5)},
        "score": {"softcap": 3.0, "alibi": harken.alibi_slopes(4), "scale": [0.1, -0.2, 0.0, 0.4]},
        "alibi": {"alibi": harken.alibi_slopes(4), "causal": True},
        "sinks": {"sinks": [0.5, -1.0, 3.0, 0.0], "kv_lengths": [150, 70]},
        "all": {
            "mask": mask, "bias": bias, "causal": True, "window": (100, None), "kv_lengths": [140, 150],
            "softcap": 4.0, "alibi": harken.alibi_slopes(4), "sinks": 0.25, "scale": 0.3,
        },
    }[name]  # fmt: skip


def lists(Lq: int, Lk: int, length: int, first: int) -> list[masks.Mask]:
    """Masks that are lists of intervals; documents of so many keys, the queries from position `first`."""
    ids = np.arange(Lk) // length
    dense = np.random.default_rng(0).random((Lq, Lk)) < 0.7
    return [
        masks.Documents(ids, ids[first : first + Lq]),
        masks.Causal() & (masks.Window(9) | masks.Prefix(4)),
        ~masks.Window(20, 20),
        (masks.Window(40) | masks.Prefix(3)) & masks.Dense(dense),
    ]


def layouts_do_not_matter(q: Array, k: Array, v: Array, *, turned: bool = True) -> None:
    """Views whose rows begin at multiples of 16 bytes, in either order of axes, repeated, and out likewise."""
    plain, lse = attend(q, k, v, return_lse=True)
    swapped = attend(*(x.swapaxes(-2, -3) for x in (q, k, v)), head_axis=-2)
    same_bits(swapped.swapaxes(-2, -3), plain)
    if turned:
        same_bits(attend(*(x[..., ::-1, :].copy()[..., ::-1, :] for x in (q, k, v))), plain)
    one = np.broadcast_to(k[:1], k.shape)
    same_bits(attend(q, one, v), attend(q, one.copy(), v))
    room = np.full((*plain.shape[:-1], 32), np.nan, q.dtype)
    out = room[..., : plain.shape[-1]]
    assert attend(q, k, v, out=out) is out
    same_bits(out, plain)
    assert np.isnan(room[..., plain.shape[-1] :].astype(np.float64)).all()
    same_bits(attend(q, k, v, return_lse=True)[1], lse)


def hidden_is_not_read(q: Array, k: Array, v: Array, length: int, **more: Any) -> None:
    """NaN and Inf where a causal mask and the second row's length, or else an array, hide them."""
    Lq, Lk = q.shape[-2], k.shape[-2]
    hiding: dict[str, Any] = {"causal": True, "kv_lengths": [Lk, length], "return_lse": True, **more}
    clean = attend(q, k, v, **hiding)
    k[1, :, length:], v[1, :, length:] = np.nan, np.inf
    for actual, expected in zip(attend(q, k, v, **hiding), clean, strict=True):
        same_bits(actual, expected)
    mask, bias = np.ones((Lq, Lk), bool), np.zeros((Lq, Lk), q.dtype)
    mask[:, 7] = mask[3] = False
    hiding = {"mask": mask, "bias": bias, **more}
    hidden = attend(q[0], k[0], v[0], **hiding)
    k[0, :, 7], v[0, :, 7], bias[:, 7] = np.inf, np.nan, np.nan
    same_bits(attend(q[0], k[0], v[0], **hiding), hidden)
    assert not hidden[:, 3].any()
    assert np.isnan(attend(q[0], k[0], v[0]).astype(np.float64)).all()


def special_values_are_seen(dtype: Any, Lq: int, Lk: int, hiding: dict[str, Any]) -> None:
    """NaN and Inf among the values, in the last tile of keys and in the first."""
    q, k, v = qkv(dtype, Lq, Lk, 16, 24, Hq=1)
    if "mask" in hiding:
        hiding = {"mask": np.random.default_rng(2).random((Lq, Lk)) < 0.5}
    late = v[0, Lk - 30 :]
    late[0, 3], late[1, 3], late[10, 5], late[25, 20], v[0, 40, 9] = np.nan, 1, np.inf, -np.inf, np.inf
    late[12, 5] = -np.inf
    obeys(q, k, v, **hiding)


def rows_do_not_know_their_neighbours(dtype: Any) -> None:
    q, k, v = qkv(dtype, 80, 150, 24, Hq=4, Hkv=2, batch=(2,))
    whole = attend(q, k, v, causal=True)
    alone = attend(q[1:, 2:3, 40:], k[1:, 1:], v[1:, 1:], causal=True)
    same_bits(whole[1:, 2:3, 40:], alone)


def lacks_of_halves() -> list[tuple[Arrays, dict[str, Any], str]]:
    """What no kernel of float16 and bfloat16 takes, and how it says so."""
    half = DTYPES["float16"]
    q, k, v = qkv(half, 8, 8, 16, Hq=1)
    return [
        (qkv(np.float32, 8, 8, 16), {}, "takes float16 and bfloat16 alone"),
        ((q, k, v), {"score": "cosine"}, "takes dot products alone"),
        ((q, k, v), {"return_weights": True}, "gives no weights"),
        (qkv(half, 8, 8, 264), {}, "takes at most 256 channels"),
        (qkv(half, 8, 8, 20), {}, "takes channels in multiples of 8"),
        ((q, k, v), {"bias": np.zeros((8, 8))}, "takes a bias of q's type or of float32"),
        ((poisoned(q, 3), k, v), {}, "takes rows at multiples of 16 bytes"),
    ]


def lacks(kernel: str, cases: list[tuple[Arrays, dict[str, Any], str]]) -> None:
    """The kernel does not take these arguments, and says what of them."""
    for arguments, more, words in cases:
        with pytest.raises(RuntimeError, match=f"{kernel}: {words}"):
            attend(*arguments, **more)
