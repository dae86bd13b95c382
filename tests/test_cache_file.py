"""A cache comes back from its file as it was; a file that holds none is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from twin import LAYOUTS, NAMES, Twin

import harken


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_save_and_load(tmp_path: Path, dtype: np.dtype[Any], layout: dict[str, Any]) -> None:
    more = {"pages": 20} if layout["layout"] == "paged" else {}
    twin = Twin(3, 20, dtype, 8, **layout, **more)
    path = tmp_path / "cache"
    twin.cache.save(path)
    assert not harken.KVCache.load(path).lengths.any()
    twin.append(17, [17, 0, 9])
    twin.append(3, [3, 0, 2])
    if layout["layout"] == "ring":
        twin.append(4)
    if layout["layout"] == "paged":
        twin.cache.fork(0)
        twin.k.append(twin.k[0])
        twin.v.append(twin.v[0])
        twin.dropped.append(0)
    twin.cache.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["cache"]
    before, twin.cache = twin.cache, harken.KVCache.load(path)
    for name in (
        "batch",
        "kv_heads",
        "capacity",
        "head_dim",
        "value_dim",
        "dtype",
        "layout",
        "page_size",
        "free_pages",
    ):
        assert getattr(twin.cache, name) == getattr(before, name), name
    twin.check(3)
    if layout["layout"] != "ring":
        twin.truncate(twin.cache.lengths // 2)
    twin.append(2)
    twin.check(2)


def test_files_that_hold_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, k=np.zeros(3))
    with pytest.raises(ValueError, match=r"x\.npz holds no cache that KVCache\.save wrote"):
        harken.KVCache.load(path)
    cache = Twin(2, 20, layout="paged", page_size=4)
    cache.append(9)
    cache.cache.save(path)
    with np.load(path) as file:
        found = dict(file)
    for name, wrong in (("table", found["table"] + 100), ("lengths", found["lengths"] * 5), ("format", np.array(7))):
        np.savez(path, **{**found, name: wrong})
        with pytest.raises(ValueError, match="holds no cache"):
            harken.KVCache.load(path)
    with pytest.raises(FileNotFoundError):
        harken.KVCache.load(tmp_path / "nothing")
