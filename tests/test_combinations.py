"""Any options together, on any shapes, strides and types: every call obeys the rule of accuracy."""

from __future__ import annotations

from typing import Any

import pytest
from compare import DTYPES, check, forced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import calls

import harken

bounded = settings(
    max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
every_backend = pytest.mark.parametrize("name", harken.backends())
dtypes = st.sampled_from(list(DTYPES.values()))

FEW, MANY = st.integers(0, 16), st.integers(17, 300)  # rows that take the decode kernel, rows that take the tiled one
SHORT, LONG = st.integers(0, 70), st.integers(0, 300)  # keys of a tile or less, keys of several tiles
DEPTH = st.integers(1, 40) | st.sampled_from([64, 80, 127, 128, 256])


@every_backend
@bounded
@given(st.data())
def test_few_queries(name: str, data: st.DataObject) -> None:
    run(name, data, FEW, SHORT | LONG)


@every_backend
@bounded
@given(st.data())
def test_many_queries(name: str, data: st.DataObject) -> None:
    run(name, data, MANY, SHORT | LONG)


@every_backend
@settings(bounded, max_examples=50)
@given(st.data())
def test_few_queries_over_split_keys(name: str, data: st.DataObject) -> None:
    run(name, data, st.integers(1, 4), st.integers(1000, 3000), st.integers(1, 40))


@every_backend
@settings(bounded, max_examples=150)
@given(st.data())
def test_nan_and_infinity_anywhere(name: str, data: st.DataObject) -> None:
    run(name, data, FEW | MANY, SHORT | LONG, st.integers(1, 20), special=True)


def run(name: str, data: st.DataObject, Lq: Any, Lk: Any, D: Any = DEPTH, special: bool = False) -> None:
    q, k, v, options = data.draw(calls(data.draw(dtypes), Lq, Lk, D, special))
    with forced(name):
        check(q, k, v, **options)
