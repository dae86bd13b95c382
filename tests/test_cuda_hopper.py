"""The kernel of compute capability 9.0, its very text run by the emulator, obeys the rule of accuracy."""

from __future__ import annotations

from typing import Any

import emulated
import kernel_cases
import numpy as np
import pytest
from compare import DTYPES, qkv, same_bits
from kernel_cases import attend, obeys, options

import harken

pytestmark = emulated.needed
kernel = emulated.throughout("hopper")


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


@pytest.mark.parametrize(
    "name", ["window", "left", "lengths", "nothing", "mask", "bias", "float bias", "score", "sinks", "all"]
)
def test_options(name: str, half: np.dtype[Any]) -> None:
    q, k, v = qkv(half, 70, 150, 24, 40, Hq=4, Hkv=2, batch=(2,))
    obeys(q, k, v, **options(half, name))


@pytest.mark.parametrize("D", [128, 256])
def test_options_of_wider_rows(D: int) -> None:
    half = DTYPES["bfloat16"]
    q, k, v = qkv(half, 70, 150, D, Hq=4, Hkv=2, batch=(2,))
    obeys(q, k, v, **options(half, "all"))


def test_lists(half: np.dtype[Any]) -> None:
    q, k, v = qkv(half, 100, 300, 16, Hq=1)
    for mask in kernel_cases.lists(100, 300, 65, first=200):
        obeys(q, k, v, mask=mask)


def test_large_logits(half: np.dtype[Any]) -> None:
    obeys(*qkv(half, 20, 275, 24), scale=100.0)


def test_strides(half: np.dtype[Any]) -> None:
    q, k, v = qkv(half, 20, 75, 24, Hq=4, Hkv=2, batch=(3, 2))
    kernel_cases.layouts_do_not_matter(q, k, v, turned=False)
    one = np.broadcast_to(k[:, :, :1], k.shape)
    same_bits(attend(q, one, v), attend(q, one.copy(), v))


@pytest.mark.parametrize("D", [24, 96, 136])
def test_what_is_hidden_is_not_read(D: int, half: np.dtype[Any]) -> None:
    kernel_cases.hidden_is_not_read(*qkv(half, 70, 150, D, batch=(2,)), 80)


@pytest.mark.parametrize("hiding", kernel_cases.HIDING)
def test_special_values_reach_those_who_see_them(hiding: dict[str, Any], half: np.dtype[Any]) -> None:
    kernel_cases.special_values_are_seen(half, 70, 290, hiding)


def test_rows_do_not_know_their_neighbours(half: np.dtype[Any]) -> None:
    kernel_cases.rows_do_not_know_their_neighbours(half)


def test_what_it_lacks_is_said() -> None:
    half = DTYPES["float16"]
    q, k, v = qkv(half, 8, 8, 16, Hq=1)
    many = np.zeros((2, 2, 2, 1, 8, 16), half)
    rows = "takes q, k, v of rows that go on by multiples of 16 bytes"
    own: list[Any] = [
        (qkv(half, 8, 8, 16, 0), {}, "takes channels in multiples of 8"),
        ((q, np.broadcast_to(k[:, :1], k.shape), v), {}, rows),
        ((q, k, v), {"out": np.zeros((1, 8, 20), half)[..., :16]}, "takes rows at multiples of 16 bytes"),
        ((many, many[:, :1], many), {}, "takes two axes of batch rows at most"),
    ]
    kernel_cases.lacks("hopper", kernel_cases.lacks_of_halves() + own)


def test_plan() -> None:
    q, k, v = qkv(DTYPES["bfloat16"], 130, 10, 128, Hq=4, batch=(2,))
    plan = harken.explain(q, k, v, device="cuda")
    assert (plan.kernel, plan.blocks, plan.threads, plan.workspace_bytes) == ("hopper", 3, 384, 4)  # 3 processors
    assert 6 * 128 * 256 <= plan.shared_bytes <= 232448
