"""Decoding through a cache, however it lies, and packed sequences, against those who pad, copy or only read.

    python bench/cache.py [--threads N] [--seconds S] [--json FILE]

Decoding: 32 query heads on 8 key heads, 4096 keys of 128 channels, float32: one query of each head. `attend` is that
alone; `step` also appends its key and value first, and takes it back. PyTorch attends to the same keys and values,
concatenated beforehand; a plain read goes through the same bytes. Packed: 32 sequences of 20 to 512 positions, 12 heads
of 64 channels, (T, H, D), against the same ones padded to the longest with q_lengths and kv_lengths. Each is checked
before it is timed; the time is the median, beside it the shortest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import machine
import numpy as np
import peaks
import timing

import harken

Array = np.ndarray[Any, Any]
Call = Callable[[], Any]

KEYS, SPACE = 4096, 4096 + 64
LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {"capacity": SPACE},
    "ring": {"capacity": KEYS, "layout": "ring"},
    "paged, 64 keys a page": {"capacity": SPACE, "layout": "paged", "page_size": 64},
    "paged, 16 keys a page": {"capacity": SPACE, "layout": "paged", "page_size": 16},
}


def close(name: str, result: Any, exact: Array) -> None:
    error = float(np.abs(np.asarray(result) - exact).max())
    if not error < 1e-5:
        raise SystemExit(f"{name} is wrong by {error}: no time for it")


def decoding(threads: int) -> dict[str, Call]:
    rng = np.random.default_rng(0)
    shapes = (1, 32, 1, 128), (1, 8, KEYS, 128), (1, 8, KEYS, 128), (1, 8, KEYS, 128), (1, 8, KEYS, 128)
    q, k, v, old_k, old_v = (rng.standard_normal(shape, np.float32) for shape in shapes)
    exact = harken.reference(q, k, v, dtype=np.float64)
    calls: dict[str, Call] = {"harken.attention, contiguous arrays": lambda: harken.attention(q, k, v, threads=threads)}
    for name, options in LAYOUTS.items():
        cache = harken.KVCache(1, 8, head_dim=128, **options)
        if options.get("layout") == "ring":  # it has gone round, and begins in its middle
            cache.append(old_k[:, :, : KEYS // 2 + 7], old_v[:, :, : KEYS // 2 + 7])
        if options.get("layout") == "paged":  # pages lie in no order
            cache._storage.pool.free = rng.permutation(cache.pages).tolist()  # type: ignore[union-attr,arg-type]
        cache.append(k, v)
        calls[f"attend, {name}"] = lambda cache=cache: cache.attend(q, threads=threads)

        def step(cache: harken.KVCache = cache) -> Any:
            cache.truncate(KEYS - 1)
            cache.append(k[:, :, -1:], v[:, :, -1:])
            return cache.attend(q, threads=threads)

        calls[f"step, {name}"] = step
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed: no times of it")
    else:
        torch.set_num_threads(threads)
        tensors = [torch.from_numpy(x) for x in (q, k, v)]

        def sdpa() -> Any:
            with torch.inference_mode():
                return torch.nn.functional.scaled_dot_product_attention(*tensors, enable_gqa=True)

        calls["PyTorch SDPA, concatenated tensors"] = sdpa
    for name, call in calls.items():
        close(name, call(), exact)
    peak = peaks.stream(k, v, threads, harken.get_backend(), "a plain read of the same bytes")
    passes = round(peak.amount / (k.nbytes + v.nbytes))
    calls[f"{peak.name}, {passes} times over"] = peak.call
    return calls


def packed(threads: int) -> dict[str, Call]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 513, 32)
    ends = np.cumsum([0, *lengths])
    q, k, v = rng.standard_normal((3, ends[-1], 12, 64), np.float32)
    padded = np.zeros((3, 32, lengths.max(), 12, 64), np.float32)
    for s, (first, end) in enumerate(pairwise(ends)):
        padded[:, s, : end - first] = np.stack([x[first:end] for x in (q, k, v)])
    calls: dict[str, Call] = {}
    for causal in (False, True):
        name = ", causal" if causal else ""
        options: dict[str, Any] = {"causal": causal, "threads": threads}
        calls[f"attention_varlen{name}"] = lambda o=options: harken.attention_varlen(q, k, v, ends, **o)
        calls[f"attention, padded, with lengths{name}"] = lambda o=options: harken.attention(
            *padded, q_lengths=lengths, kv_lengths=lengths, head_axis=-2, **o
        )
        calls[f"attention, one call a sequence{name}"] = lambda o=options: [
            harken.attention(q[a:b], k[a:b], v[a:b], head_axis=-2, **o) for a, b in pairwise(ends)
        ]
        packed_out, padded_out, alone = (calls[n]() for n in list(calls)[-3:])
        for s, (first, end) in enumerate(pairwise(ends)):
            exact = harken.reference(*(x[first:end] for x in (q, k, v)), head_axis=-2, causal=causal, dtype=np.float64)
            close("attention_varlen", packed_out[first:end], exact)
            close("attention, padded", padded_out[s, : end - first], exact)
            close("attention", alone[s], exact)
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=harken.get_num_threads(), metavar="N")
    parser.add_argument("--seconds", type=float, default=20, metavar="S", help="for each table (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    given = parser.parse_args()

    quiet, tables = machine.Quiet(), {}
    for title, calls in (("decode 1, 32, 8, 1, 4096, 128", decoding(given.threads)), ("packed", packed(given.threads))):
        rounds = timing.interleave(calls, given.seconds, lambda text: None)
        print(f"{title}, {given.threads} threads, {harken.get_backend()}")
        rows = []
        for name, measured in rounds.items():
            times = int(name.rsplit(", ", 1)[1].split()[0]) if name.endswith("times over") else 1
            median = timing.middle(measured) / times
            shortest = min(x for samples in measured for x in samples) / times
            rows.append({"name": name.removesuffix(f", {times} times over"), "median": median, "shortest": shortest})
            print(f"  {rows[-1]['name']:<44}{1e3 * median:10.3f} ms {1e3 * shortest:10.3f} ms")
        tables[title] = rows
    others = quiet.others()
    print(f"{others:.0%} of the machine's time went elsewhere")
    if given.json:
        about = {"machine": machine.describe(), "backend": harken.get_backend(), "threads": given.threads}
        given.json.write_text(json.dumps({**about, "others": round(others, 3), "seconds": tables}, indent=1) + "\n")


if __name__ == "__main__":
    main()
