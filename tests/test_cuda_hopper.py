"""The kernel of compute capability 9.0, its very text run by the emulator, obeys the rule of accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import emulated
import numpy as np
import pytest
from compare import DTYPES, check, poisoned, qkv

import harken
from harken import masks

pytestmark = pytest.mark.skipif(not emulated.able(), reason="no g++ to compile the emulator with")

HALVES = [DTYPES["float16"], DTYPES["bfloat16"]]


@pytest.fixture(autouse=True)
def kernel() -> Iterator[None]:
    """Every call with device="cuda" is forced to run on this kernel."""
    with emulated.card("hopper"):
        yield


@pytest.fixture(params=HALVES, ids=str)
def half(request: pytest.FixtureRequest) -> np.dtype[Any]:
    """Each type that it takes."""
    return request.param


def obeys(q: Any, k: Any, v: Any, **options: Any) -> None:
    check(q, k, v, device="cuda", weights=False, **options)


@pytest.mark.parametrize(
    ("Lq", "Lk", "D", "Dv"),
    [
        (1, 1, 16, 16), (128, 128, 64, 64), (129, 257, 64, 64), (20, 75, 24, 40), (3, 300, 80, 8), (63, 140, 96, 128),
        (130, 260, 128, 128), (64, 500, 128, 128), (5, 100, 8, 200), (70, 133, 192, 256), (130, 65, 256, 256),
    ],
)  # fmt: skip
def test_shapes(Lq: int, Lk: int, D: int, Dv: int, half: np.dtype[Any]) -> None:
    q, k, v = qkv(half, Lq, Lk, D, Dv, Hq=1)
    obeys(q, k, v)
    obeys(q, k, v, causal=True)


def test_many_tiles(half: np.dtype[Any]) -> None:
    """Blocks that take tile after tile: phases of barriers go on, of tiles without keys, too."""
    q, k, v = qkv(half, 150, 270, 16, Hq=4, Hkv=2, batch=(2,))
    obeys(q, k, v, causal=True, kv_lengths=[270, 0])
    q, k, v = qkv(half, 10, 400, 136, Hq=7, Hkv=1)
    obeys(q, k, v)


@pytest.mark.parametrize("shape", [(0, 3, 16, 16), (3, 0, 16, 16)])
def test_empty(shape: tuple[int, int, int, int], half: np.dtype[Any]) -> None:
    obeys(*qkv(half, *shape))


def options(dtype: np.dtype[Any], name: str) -> dict[str, Any]:
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
        "score": {"softcap": 3.0, "alibi": harken.alibi_slopes(4), "scale": [0.1, -0.2, 0.0, 0.4]},
        "sinks": {"sinks": [0.5, -1.0, 3.0, 0.0], "kv_lengths": [150, 70]},
        "all": {
            "mask": mask, "bias": bias, "causal": True, "window": (100, None), "kv_lengths": [140, 150],
            "softcap": 4.0, "alibi": harken.alibi_slopes(4), "sinks": 0.25, "scale": 0.3,
        },
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["window", "left", "lengths", "nothing", "mask", "bias", "float bias", "score", "sinks", "all"]
)
def test_options(name: str, half: np.dtype[Any]) -> None:
    q, k, v = qkv(half, 70, 150, 24, 40, Hq=4, Hkv=2, batch=(2,))
    obeys(q, k, v, **options(half, name))


@pytest.mark.parametrize("D", [128, 256])
def test_options_of_wider_rows(D: int) -> None:
    half = HALVES[1]
    q, k, v = qkv(half, 70, 150, D, Hq=4, Hkv=2, batch=(2,))
    obeys(q, k, v, **options(half, "all"))


def test_lists(half: np.dtype[Any]) -> None:
    q, k, v = qkv(half, 100, 300, 16, Hq=1)
    ids = np.arange(300) // 65
    dense = np.random.default_rng(0).random((100, 300)) < 0.7
    for mask in (
        masks.Documents(ids, ids[200:]),
        masks.Causal() & (masks.Window(9) | masks.Prefix(4)),
        ~masks.Window(20, 20),
        (masks.Window(40) | masks.Prefix(3)) & masks.Dense(dense),
    ):
        obeys(q, k, v, mask=mask)


def test_large_logits(half: np.dtype[Any]) -> None:
    obeys(*qkv(half, 20, 275, 24), scale=100.0)


def test_strides(half: np.dtype[Any]) -> None:
    """Views whose rows begin at multiples of 16 bytes, in either order of axes, repeated, and out likewise."""
    q, k, v = qkv(half, 20, 75, 24, Hq=4, Hkv=2, batch=(3, 2))
    plain = harken.attention(q, k, v, device="cuda")
    swapped = harken.attention(*(x.swapaxes(-2, -3) for x in (q, k, v)), device="cuda", head_axis=-2)
    np.testing.assert_array_equal(swapped.swapaxes(-2, -3), plain)
    for one in (np.broadcast_to(k[:1], k.shape), np.broadcast_to(k[:, :, :1], k.shape)):
        np.testing.assert_array_equal(
            harken.attention(q, one, v, device="cuda"), harken.attention(q, one.copy(), v, device="cuda")
        )
    out = np.zeros((*plain.shape[:-1], 32), half)[..., :24]
    assert harken.attention(q, k, v, device="cuda", out=out) is out
    np.testing.assert_array_equal(out, plain)


@pytest.mark.parametrize("D", [24, 96, 136])
def test_what_is_hidden_is_not_read(D: int, half: np.dtype[Any]) -> None:
    q, k, v = qkv(half, 70, 150, D, batch=(2,))
    hiding: dict[str, Any] = {"device": "cuda", "causal": True, "kv_lengths": [150, 80], "return_lse": True}
    clean = harken.attention(q, k, v, **hiding)
    k[1, :, 80:], v[1, :, 80:] = np.nan, np.inf
    for actual, expected in zip(harken.attention(q, k, v, **hiding), clean, strict=True):
        np.testing.assert_array_equal(actual, expected)
    mask, bias = np.ones((70, 150), bool), np.zeros((70, 150), half)
    mask[:, 7] = mask[3] = False
    hidden = harken.attention(q[0], k[0], v[0], device="cuda", mask=mask, bias=bias)
    k[0, :, 7], v[0, :, 7], bias[:, 7] = np.inf, np.nan, np.nan
    np.testing.assert_array_equal(harken.attention(q[0], k[0], v[0], device="cuda", mask=mask, bias=bias), hidden)
    assert not hidden[:, 3].any()
    assert np.isnan(harken.attention(q[0], k[0], v[0], device="cuda").astype(np.float64)).all()


@pytest.mark.parametrize("hiding", [{"causal": True}, {"window": (5, 30)}, {"mask": True}, {}])
def test_special_values_reach_those_who_see_them(hiding: dict[str, Any], half: np.dtype[Any]) -> None:
    q, k, v = qkv(half, 70, 290, 16, 24, Hq=1)
    if "mask" in hiding:
        hiding = {"mask": np.random.default_rng(2).random((70, 290)) < 0.5}
    v[0, 260, 3], v[0, 261, 3], v[0, 270, 5], v[0, 285, 20], v[0, 40, 9] = np.nan, 1, np.inf, -np.inf, np.inf
    v[0, 272, 5] = -np.inf
    obeys(q, k, v, **hiding)


def test_rows_do_not_know_their_neighbours(half: np.dtype[Any]) -> None:
    q, k, v = qkv(half, 80, 150, 24, Hq=4, Hkv=2, batch=(2,))
    whole = harken.attention(q, k, v, device="cuda", causal=True)
    alone = harken.attention(q[1:, 2:3, 40:], k[1:, 1:], v[1:, 1:], device="cuda", causal=True)
    np.testing.assert_array_equal(whole[1:, 2:3, 40:], alone)


def test_what_it_lacks_is_said() -> None:
    half = DTYPES["float16"]
    q, k, v = qkv(half, 8, 8, 16, Hq=1)
    cosine: dict[str, Any] = {"score": "cosine"}
    many = np.zeros((2, 2, 2, 1, 8, 16), half)
    rows = "takes q, k, v of rows that go on by multiples of 16 bytes"
    for arguments, more, words in [
        (qkv(np.float32, 8, 8, 16), {}, "takes float16 and bfloat16 alone"),
        ((q, k, v), cosine, "takes dot products alone"),
        ((q, k, v), {"return_weights": True}, "gives no weights"),
        (qkv(half, 8, 8, 264), {}, "takes at most 256 channels"),
        (qkv(half, 8, 8, 20), {}, "takes channels in multiples of 8"),
        (qkv(half, 8, 8, 16, 0), {}, "takes channels in multiples of 8"),
        ((q, k, v), {"bias": np.zeros((8, 8))}, "takes a bias of q's type or of float32"),
        ((poisoned(q, 3), k, v), {}, "takes rows at multiples of 16 bytes"),
        ((q, np.broadcast_to(k[:, :1], k.shape), v), {}, rows),
        ((q, k, v), {"out": np.zeros((1, 8, 20), half)[..., :16]}, "takes rows at multiples of 16 bytes"),
        ((many, many[:, :1], many), {}, "takes two axes of batch rows at most"),
    ]:
        with pytest.raises(RuntimeError, match=f"hopper: {words}"):
            harken.attention(*arguments, device="cuda", **more)


def test_plan() -> None:
    q, k, v = qkv(DTYPES["bfloat16"], 130, 10, 128, Hq=4, batch=(2,))
    plan = harken.explain(q, k, v, device="cuda")
    assert (plan.kernel, plan.blocks, plan.threads, plan.workspace_bytes) == ("hopper", 3, 384, 4)  # 3 processors
    assert 6 * 128 * 256 <= plan.shared_bytes <= 232448
