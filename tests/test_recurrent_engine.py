"""LSTM and GRU over sequences so long that a matrix engine takes their inputs: equations, bits, what its terms lose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compare import forced, same_bits
from guarded import Region
from test_recurrent import KINDS, call, edge, kinds, obey, problem

import harken

WORK = 1 << 24  # multiply-adds of a row's x W_ih^T from which on the engine takes it


def long(kind: str, C: int, H: int, **options: Any) -> tuple[Any, int]:
    """A layer, and the steps from which on the engine takes its inputs, where there is one."""
    layer = KINDS[kind](C, H, rng=C, **options)
    return layer, max(64, -(-WORK // (C * layer.gates * H)))


@kinds
def test_equations(backend: str, kind: str) -> None:
    """Inputs and units that fill no tile, more than are summed at a time; both directions, lengths on either side."""
    for C, H, B, options in ((611, 147, 1, {}), (803, 97, 5, {"bidirectional": True}), (1024, 90, 2, {"bias": False})):
        layer, steps = long(kind, C, H, **options)
        lengths = [steps, 3, 0, steps - 1, steps + 2][:B] if B == 5 else None
        x, h, c = problem(layer, B, steps + 2)
        obey((layer, x, h, c, lengths))


@kinds
def test_it_is_the_engine(kind: str) -> None:
    """From the stated length on, and not before, the last bits are those of another order of sums."""
    if "amx" not in harken.backends():
        pytest.skip("no matrix engine here")
    layer, steps = long(kind, 300, 130)
    x, h, c = problem(layer, 1, steps)
    with forced("avx512"):
        without, shorter = call(layer, x, h, c)[0], call(layer, x[:, 1:], h, c)[0]
    with forced("amx"):
        same_bits(call(layer, x[:, 1:], h, c)[0], shorter)
        found = call(layer, x, h, c)[0]
    assert 0 < np.abs(found - without).max() < 2e-6


@kinds
def test_bits_of_a_row_are_its_own(backend: str, kind: str) -> None:
    """Neither the batch, nor the lengths of others, nor its padding, nor threads change one."""
    layer, steps = long(kind, 500, 150)
    x, h, c = problem(layer, 13, steps + 30)
    lengths = [steps, 3, steps + 30, steps - 1] * 3 + [steps + 9]
    whole = call(layer, x, h, c, lengths=lengths)
    alone = [call(layer, x[[n], : lengths[n]], h[:, [n]], c[:, [n]]) for n in range(4)]
    for n, (y, last, *_) in enumerate(alone):
        same_bits(whole[0][[n], : lengths[n]], y)
        same_bits(whole[1][:, [n]], last)
    for row, count in enumerate(lengths):
        x[row, count:] = np.nan
    for threads in (1, 2, 3, 8):
        harken.set_num_threads(threads)
        try:
            for rows in (slice(0, 13), slice(0, 4), slice(2, 3), [0, 2, 4, 6, 8, 10]):
                again = call(layer, x[rows], h[:, rows], c[:, rows], lengths=np.asarray(lengths)[rows])
                same_bits(again[0], whole[0][rows])
                same_bits(again[1], whole[1][:, rows])
        finally:
            harken.set_num_threads(None)


@kinds
def test_step_by_step(backend: str, kind: str) -> None:
    """The bits of the whole where no engine took it, else within what float32 is accurate to."""
    layer, steps = long(kind, 700, 128)
    x, h, c = problem(layer, 2, steps)
    y = call(layer, x, h, c)[0]
    middle = call(layer, x[:, : steps // 2], h, c)
    rest = call(layer, x[:, steps // 2 :], *middle[1:], *[c] * (kind != "lstm"))
    found = np.concatenate([middle[0], rest[0]], 1)
    if backend == "amx":
        np.testing.assert_allclose(found, y, rtol=0, atol=2e-6)
    else:
        same_bits(found, y)


@kinds
@np.errstate(all="ignore")
def test_what_the_terms_do_not_hold(backend: str, kind: str) -> None:
    """Numbers of 2^64 and more in x and in W_ih are computed without the engine; NaN reaches its row, from its step."""
    layer, steps = long(kind, 500, 150)
    x, h, c = problem(layer, 4, steps)
    clean = call(layer, x, h, c)
    large = x.copy()
    large[1, 5, 7], layer.weight_ih_l0[:, 7] = 2.0**70, layer.weight_ih_l0[:, 7] * 2.0**-70
    large[[0, 2, 3], :, 7] = large[1, :5, 7] = large[1, 6:, 7] = 0
    obey((layer, large[:2], h[:, :2], c[:, :2], None))
    layer.weight_ih_l0[40, 9] = 2.0**80
    large[:, :, 9] *= 2.0**-80
    obey((layer, large[:2], h[:, :2], c[:, :2], None))
    layer, _ = long(kind, 500, 150)
    for bad in (np.nan, np.inf):
        x[2, 11, 3] = bad
        y, last, *_ = call(layer, x, h, c)
        for row in (0, 1, 3):
            same_bits(y[row], clean[0][row])
            same_bits(last[:, row], clean[1][:, row])
        same_bits(y[2, :11], clean[0][2, :11])
    x[2, 11, 3] = np.nan
    assert np.isnan(call(layer, x, h, c)[0][2, 11:]).all()


@kinds
@pytest.mark.parametrize("end", [False, True])
def test_no_byte_beside_an_array(backend: str, kind: str, end: bool) -> None:
    layer, steps = long(kind, 809, 115)
    x, h, c = problem(layer, 2, steps)
    expected = call(layer, x, h, c)
    regions = [Region(2048) for _ in range(7)]
    for region, (name, array) in zip(regions, layer.state().items(), strict=False):
        setattr(layer, name, edge(region, array, end))
    x, h, c = (edge(region, array, end) for region, array in zip(regions[4:], (x, h, c), strict=True))
    for found, right in zip(call(layer, x, h, c), expected, strict=True):
        same_bits(found, right)
