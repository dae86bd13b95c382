"""Keys and values in pages: every form reads them, wherever a page lies, and no byte beside it."""

from __future__ import annotations

import numpy as np
import pytest
from child import in_child
from compare import DTYPES, qkv, same_bits
from guarded import Place

import harken
from harken._load import core


def guard(backend: str, name: str) -> None:
    """Pages at the edge of memory, in orders of their own."""
    harken.set_backend(backend)
    dtype, rng = DTYPES[name], np.random.default_rng(0)
    places = [Place(300, 320) for _ in range(2)]
    for size, pages, D, Dv in ((5, 16, 16, 7), (64, 3, 64, 64), (100, 2, 33, 32), (13, 24, 128, 1)):
        q, k, v = qkv(dtype, 9, size, D, Dv, Hq=2, Hkv=1, batch=(pages,))
        for layout in ("end", "begin") + (("rows end", "rows begin") if size * pages <= 320 else ()):
            K, V = (place.put(x, layout) for place, x in zip(places, (k, v), strict=True))
            for Lq in (1, 9):
                print(name, size, layout, Lq, flush=True)
                table = np.array([rng.permutation(pages) for _ in range(2)])
                origins = np.array([0, size - 2])
                lengths = np.array([size * pages, size * (pages - 1)])
                out = core.attend_stored(
                    harken.attention, q[:2, :, :Lq], K, V, table, origins, lengths, {"causal": True}
                )
                for b in range(2):
                    own = [x[table[b], 0].reshape(-1, x.shape[-1])[origins[b] :][: lengths[b]] for x in (k, v)]
                    same_bits(out[b], harken.attention(q[b, :, :Lq], own[0][None], own[1][None], causal=True))


def many(backend: str) -> None:
    """A call beyond the L2 cache brings the next head near, in pages too."""
    harken.set_backend(backend)
    core._set_form("brief")
    rng, place = np.random.default_rng(0), [Place(800, 4) for _ in range(2)]
    q, k, v = qkv(np.float32, 64, 8, 64, 64, Hq=8, Hkv=1, batch=(17,))
    table, lengths = np.array([rng.permutation(17) for _ in range(17)]), np.full(17, 130)
    for layout in ("end", "begin"):
        K, V = (p.put(x, layout) for p, x in zip(place, (k, v), strict=True))
        out = core.attend_stored(harken.attention, q, K, V, table, np.full(17, 3), lengths, {"threads": 1})
        for b in range(17):
            own = [x[table[b], 0].reshape(1, -1, 64)[:, 3:133] for x in (k, v)]
            same_bits(out[b], harken.attention(q[b], *own))


def test_what_is_brought_near_is_there(backend: str) -> None:
    in_child(many, backend)


@pytest.mark.parametrize("name", DTYPES)
def test_nothing_beside_a_page_is_touched(backend: str, name: str) -> None:
    in_child(guard, backend, name)


def test_tables_that_lead_nowhere() -> None:
    q, k, v = qkv(np.float32, 1, 4, D=8, batch=(2,))
    for table, origins, text in (
        ([[0], [2]], [0, 0], "the table names page 2 of row 1: there are 2"),
        ([[0], [1]], [0, 1], "row 1 begins at 1 and has 4 keys: more than 1 pages of 4 hold"),
        ([[0], [1]], [-1, 0], "row 0 begins at -1"),
    ):
        with pytest.raises(ValueError, match=text):
            core.attend_stored(harken.attention, q, k, v, np.array(table), np.array(origins), np.array([4, 4]), {})
