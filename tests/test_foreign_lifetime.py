"""The memory of another library's array is held while it is looked at, then let go; so are the results."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from compare import qkv
from exporter import Exporter
from libraries import FLAGS, Library, equal, every_option

import harken
from harken.foreign import view


@pytest.mark.parametrize("versioned", [True, False])
def test_memory_is_held_as_long_as_it_is_seen(versioned: bool) -> None:
    exporter = Exporter(np.ones((2, 3, 4), np.float32), versioned=versioned)
    array = view("q", exporter)
    part = array[1, ::2]
    del array
    gc.collect()
    assert (exporter.exported, exporter.released) == (1, 0)
    assert part.sum() == 8
    del part
    assert (exporter.exported, exporter.released) == (1, 1)


def test_memory_is_given_back_after_every_call() -> None:
    arrays, options = every_option(np.float32)
    exporters = [Exporter(x) for x in (*arrays, *(x for x in options.values() if isinstance(x, np.ndarray)))]
    q, k, v, *rest = exporters
    named: dict[str, Any] = dict(zip(options, rest, strict=False))
    wrong = {**named, "sinks": Exporter(np.zeros(7, np.float32))}
    for n in range(1, 4):
        harken.attention(q, k, v, **named)
        harken.explain(q, k, v, **named)
        harken.reference(q, k, v, **named)
        with pytest.raises(ValueError, match="sinks has shape"):
            harken.attention(q, k, v, **wrong)
        assert [x.released for x in exporters] == [x.exported for x in exporters]
        assert q.exported == 4 * n
    for refused in ({"device": 2}, {"lanes": 2}, {"code": 99}, {"axes": 65}, {"major": 2}):
        exporter = Exporter(arrays[0], **refused)
        with pytest.raises(Exception, match=r"^q "):
            harken.attention(exporter, k, v)
        assert exporter.released == exporter.exported > 0


def test_references_are_given_back(library: Library) -> None:
    q, k, v = (library.of(x) for x in qkv(np.float32, 3, 4))
    mask = library.of(np.ones((3, 4), bool))
    held = [q, k, v, mask]
    before = [sys.getrefcount(x) for x in held]

    def call() -> None:
        harken.attention(q, k, v, mask=mask, **FLAGS)
        harken.explain(q, k, v, mask=mask)
        harken.merge([harken.attention(q, k, v, return_lse=True)] * 2)
        with pytest.raises(ValueError, match="rows"):
            harken.attention(q, k, v[:, :2, :], mask=mask)

    for _ in range(10):
        call()
    assert [sys.getrefcount(x) for x in held] == before
    gc.collect()
    alive = len(gc.get_objects())
    for _ in range(30):
        call()
    gc.collect()
    assert len(gc.get_objects()) - alive < 20


def test_results_outlive_what_they_came_from(library: Library) -> None:
    q = library.of(np.ones((2, 3, 4), np.float32))
    out, lse = harken.attention(q, q, q, return_lse=True)
    if library.name != "strict":  # which has no weak references
        gone = weakref.ref(q)
        del q
        gc.collect()
        assert gone() is None
    assert (library.numpy(out) == 1).all()
    assert np.isfinite(library.numpy(lse)).all()


def test_many_python_threads_at_once(library: Library) -> None:
    arrays = qkv(np.float32, 100, 200, D=64, Hq=4)
    foreign, expected, results = [library.of(x) for x in arrays], harken.attention(*arrays), []
    threads = [
        threading.Thread(target=lambda: results.extend(harken.attention(*foreign) for _ in range(5))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    for result in results:
        equal(library, result, expected)


def test_arithmetic_that_is_still_under_way() -> None:
    jax = pytest.importorskip("jax")
    x = jax.numpy.full((1, 1500, 1500), 1 / 1500)
    y = x
    for _ in range(4):
        y = y @ x  # dispatched, not computed
    assert np.allclose(harken.attention(y[..., :4], y[..., :4], y[..., :4]), 1 / 1500)
