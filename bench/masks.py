"""What a mask costs for each pair that it shows: windows in a long sequence, documents packed in one, and their rivals.

    python bench/masks.py [--backend NAME] [--json OUT.json]

The ideal is the time of the same sequence without a mask, times the share of its pairs that is visible. It leaves out
what every query costs however few keys it sees, to read it and to write its row; what documents cost one by one, in
calls of their own, does not. Every result is compared with that of the dense array before it is timed. Times are of the
processor, on one thread: the least of several, in turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np

import harken
from harken.masks import Blocks, Causal, Documents, Mask, Prefix, Window

HEADS, D, ROUNDS = 1, 64, 9
SLOW = 1.0  # seconds: what takes longer is timed once
LONG, WIDE = 16384, 256
PACKED = 8192


def inputs(L: int) -> Any:
    return np.random.default_rng(L).standard_normal((3, HEADS, L, D), np.float32)


def torch_call(q: Any, k: Any, v: Any, dense: Any) -> Callable[[], Any] | None:
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    Q, K, V, seen = (torch.from_numpy(x) for x in (q[None], k[None], v[None], dense))

    def call() -> Any:
        with torch.inference_mode():
            return torch.nn.functional.scaled_dot_product_attention(Q, K, V, attn_mask=seen)[0]

    return call


def windows() -> tuple[Mask, dict[str, Callable[[], Any]]]:
    """A causal window, as wide for every query, by all that can say it; `Blocks` alone shows a few more pairs."""
    q, k, v = inputs(LONG)
    window = Window(WIDE - 1, 0)
    near = np.tri(LONG // 128, dtype=bool) & ~np.tri(LONG // 128, k=-3, dtype=bool)
    masks = {
        "mask=Window": window,
        "mask=Window | Window": window | Window(3, 0),
        "mask=Causal & (Window | Prefix(4))": Causal() & (window | Prefix(4)),
        "mask=Blocks & Window": Blocks(near, 128) & window,
        "mask=Blocks": Blocks(near, 128),
    }
    calls = attending(q, k, v, masks)
    out = np.empty_like(q)
    calls["window="] = lambda: harken.attention(q, k, v, window=(WIDE - 1, 0), threads=1, out=out)
    calls["no mask"] = lambda: harken.attention(q, k, v, threads=1, out=out)
    return window, finish(q, k, v, window, masks, calls)


def documents() -> tuple[Mask, dict[str, Callable[[], Any]]]:
    """Documents of 40 to 500 tokens, causal each, packed in one sequence, and one by one."""
    q, k, v = inputs(PACKED)
    ends = np.cumsum(np.random.default_rng(1).integers(40, 500, 60))
    ends = np.append(ends[ends < PACKED], PACKED)
    mask = Causal() & Documents(np.searchsorted(ends, np.arange(PACKED), side="right"))
    masks = {"mask=Causal & Documents": mask}
    calls = attending(q, k, v, masks)
    out = np.empty_like(q)

    def apart() -> Any:
        for first, end in zip(np.append(0, ends[:-1]), ends, strict=True):
            part = slice(first, end)
            harken.attention(q[:, part], k[:, part], v[:, part], causal=True, threads=1, out=out[:, part])
        return out

    calls["one by one"] = apart
    calls["no mask"] = lambda: harken.attention(q, k, v, threads=1, out=out)
    return mask, finish(q, k, v, mask, masks, calls)


def attending(q: Any, k: Any, v: Any, masks: dict[str, Mask]) -> dict[str, Callable[[], Any]]:
    out = np.empty_like(q)

    def of(mask: Mask) -> Callable[[], Any]:
        return lambda: harken.attention(q, k, v, mask=mask, threads=1, out=out)

    return {name: of(mask) for name, mask in masks.items()}


def finish(
    q: Any, k: Any, v: Any, mask: Mask, masks: dict[str, Mask], calls: dict[str, Callable[[], Any]]
) -> dict[str, Callable[[], Any]]:
    """With the rivals that read a dense array, and without any whose result is wrong."""
    dense = mask.dense(q.shape[-2], k.shape[-2])
    calls["mask=array"] = lambda: harken.attention(q, k, v, mask=dense, threads=1)
    torch = torch_call(q, k, v, dense)
    if torch is not None:
        calls["torch, dense mask"] = torch
    truth = harken.attention(q, k, v, mask=dense)
    for name in list(calls):
        same = masks.get(name, mask).density(*dense.shape) == mask.density(*dense.shape) and name != "no mask"
        if same and not np.allclose(np.asarray(calls[name]()), truth, atol=1e-5):
            print(f"{name}: wrong, not timed")
            del calls[name]
    return calls


def least(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    times = dict.fromkeys(calls, 1e9)
    for _, (name, call) in itertools.product(range(ROUNDS), calls.items()):
        if SLOW < times[name] < 1e9:
            continue
        began = time.process_time()
        call()
        times[name] = min(times[name], time.process_time() - began)
    return times


def measure(name: str, mask: Mask, calls: dict[str, Callable[[], Any]], L: int) -> dict[str, Any]:
    times = least(calls)
    share, pairs = mask.density(L, L), HEADS * L * L
    whole = times["no mask"]
    rows = []
    print(f"\n{name}: {L} x {L}, {HEADS} heads of {D}, {share:.2%} visible\n")
    print(f"{'':36} {'ms':>9} {'ps a visible pair':>18} {'x ideal':>8}")
    for call, each in times.items():
        seen = 1.0 if call == "no mask" else density(call, share, L)
        rows.append({"call": call, "seconds": each, "share": seen, "of_ideal": each / (whole * seen)})
        print(f"{call:36} {each * 1e3:9.2f} {each / (pairs * seen) * 1e12:18.1f} {each / (whole * seen):8.2f}")
    return {"problem": name, "L": L, "heads": HEADS, "D": D, "dtype": "float32", "rows": rows}


def density(call: str, share: float, L: int) -> float:
    """`Blocks` shows whole blocks; what else is timed shows what its problem does, or four keys more."""
    if call == "mask=Blocks":
        n = L // 128
        return (3 * n - 3) / n**2
    return share


def compile_time(mask: Mask, L: int) -> float:
    """Milliseconds from an expression to lists, for a call that has not been made before."""
    q = np.zeros((1, L, 8), np.float32)
    times = []
    for _ in range(5):
        mask._compiled = None
        began = time.process_time()
        harken.explain(q, q, q, mask=mask)
        times.append(time.process_time() - began)
    return min(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    harken.set_backend(options.backend)
    quiet = machine.Quiet()
    results = [
        measure("window of 256", *windows(), LONG),
        measure("packed documents", *documents(), PACKED),
    ]
    L = 100_000
    ids = np.sort(np.random.default_rng(0).integers(0, 50, L))
    made = {
        repr(mask): compile_time(mask, L)
        for mask in (
            Causal() | Prefix(L // 2),
            (Window(256, 0) | Prefix(4)) & Documents(ids),
            Blocks(np.random.default_rng(1).random((200, 200)) < 0.05, 500) | Window(64, 0),
        )
    }
    print(f"\nfrom an expression to lists, {L} queries and keys:")
    for text, milliseconds in made.items():
        print(f"{milliseconds:8.1f} ms  {text}")
    others = quiet.others()
    if others > machine.QUIET:
        print(f"\nnot a quiet machine: {others:.0%} of its time went to others")
    if options.json:
        report = {
            "machine": machine.describe(),
            "backend": harken.get_backend(),
            "threads": 1,
            "others": others,
            "results": results,
            "compile_ms": made,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
