"""The kernel in tiles of a matrix engine, its very text run by the emulator, obeys the rule of accuracy."""

from __future__ import annotations

from typing import Any

import emulated
import kernel_cases
import numpy as np
import pytest
from compare import DTYPES, qkv
from kernel_cases import obeys, options

import harken

pytestmark = emulated.needed
kernel = emulated.throughout("portable")


@pytest.mark.parametrize(
    ("Lq", "Lk", "D", "Dv"),
    [
        (1, 1, 16, 16), (64, 64, 64, 64), (65, 129, 64, 64), (20, 75, 24, 40), (3, 70, 80, 8), (63, 40, 96, 128),
        (130, 130, 128, 128), (128, 64, 64, 64), (5, 100, 8, 200), (70, 33, 192, 256), (65, 65, 256, 256),
    ],
)  # fmt: skip
def test_shapes(Lq: int, Lk: int, D: int, Dv: int, half: np.dtype[Any]) -> None:
    q, k, v = qkv(half, Lq, Lk, D, Dv, Hq=1)
    obeys(q, k, v)
    obeys(q, k, v, causal=True)


@pytest.mark.parametrize("shape", [(0, 3, 16, 16), (3, 0, 16, 16), (3, 4, 16, 0)])
def test_empty(shape: tuple[int, int, int, int], half: np.dtype[Any]) -> None:
    obeys(*qkv(half, *shape))


@pytest.mark.parametrize(
    "name",
    [
        "window", "left", "lengths", "nothing", "mask", "bias", "float bias", "one bias", "score", "alibi", "sinks",
        "all",
    ],
)  # fmt: skip
def test_options(name: str, half: np.dtype[Any]) -> None:
    q, k, v = qkv(half, 70, 150, 24, 40, Hq=4, Hkv=2, batch=(2,))
    obeys(q, k, v, **options(half, name))


def test_lists(half: np.dtype[Any]) -> None:
    q, k, v = qkv(half, 100, 200, 16, Hq=1)
    for mask in kernel_cases.lists(100, 200, 45, first=100):
        obeys(q, k, v, mask=mask)


def test_large_logits(half: np.dtype[Any]) -> None:
    obeys(*qkv(half, 20, 75, 24), scale=100.0)


def test_strides(half: np.dtype[Any]) -> None:
    kernel_cases.layouts_do_not_matter(*qkv(half, 20, 75, 24, Hq=4, Hkv=2, batch=(3,)))


def test_what_is_hidden_is_not_read(half: np.dtype[Any]) -> None:
    kernel_cases.hidden_is_not_read(*qkv(half, 70, 150, 24, batch=(2,)), 80)


@pytest.mark.parametrize("hiding", kernel_cases.HIDING)
def test_special_values_reach_those_who_see_them(hiding: dict[str, Any], half: np.dtype[Any]) -> None:
    kernel_cases.special_values_are_seen(half, 70, 90, hiding)


def test_rows_do_not_know_their_neighbours(half: np.dtype[Any]) -> None:
    kernel_cases.rows_do_not_know_their_neighbours(half)


def test_what_it_lacks_is_said() -> None:
    kernel_cases.lacks("portable", kernel_cases.lacks_of_halves())


def test_plan() -> None:
    q, k, v = qkv(DTYPES["bfloat16"], 130, 10, 128, Hq=4, batch=(2,))
    plan = harken.explain(q, k, v, device="cuda")
    assert (plan.kernel, plan.blocks, plan.threads, plan.workspace_bytes) == ("portable", 16, 128, 0)
    assert plan.shared_bytes >= (128 + 4 * 32) * 256
