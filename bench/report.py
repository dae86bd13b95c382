"""What was measured, in words: a table for each problem, and the summary over all of them."""

from __future__ import annotations

import math
from typing import Any

import machine

# One entry of the JSON: a problem at a dtype, with one result for each rival. {"status": "ok", "seconds": ..., ...}
Entry = dict[str, Any]


def duration(seconds: float) -> str:
    unit, name = (1, "s ") if seconds >= 1 else (1e-3, "ms") if seconds >= 1e-3 else (1e-6, "us")
    return f"{seconds / unit:7.2f} {name}"


def title(entry: Entry) -> str:
    p = entry["problem"]
    sizes = "  ".join(f"{x} {p[x]}" for x in ("B", "Hq", "Hkv", "Lq", "Lk", "D"))
    return f"{p['name']}  {entry['dtype']}  {sizes}{'  causal' if p['causal'] else ''}"


def rate(entry: Entry, result: dict[str, Any]) -> str:
    """GB/s where reading is the work, else GFLOP/s."""
    return f"{result['gbytes']:6.1f} GB/s   " if entry["kind"] == "stream" else f"{result['gflops']:6.1f} GFLOP/s"


def figure(peak: dict[str, Any]) -> str:
    """A peak in words, or why there is none."""
    return f"{peak['rate']:.1f} {peak['unit']}" if "rate" in peak else f"none: {peak['reason']}"


def lines(entry: Entry) -> list[str]:
    """The table of one problem."""
    rows = [title(entry), f"  {'the peak':<12}{figure(entry['peak'])}  {entry['peak'].get('name', '')}".rstrip()]
    if entry["others"] > machine.QUIET:
        rows.append(f"  not quiet: {100 * entry['others']:.0f} % of the machine's CPU time went to others")
    plain = entry["rivals"].get("numpy", {}).get("error", 0.0)
    for name, result in entry["rivals"].items():
        if result["status"] != "ok":
            rows.append(f"  {name:<12}{result['status']}: {result['reason']}")
            continue
        row = f"  {name:<12}{duration(result['seconds'])} ± {100 * result['spread']:2.0f} %  {rate(entry, result)}"
        row += f"{100 * result['of_peak']:5.0f} % of the peak" if "of_peak" in result else ""
        row += f"   error {result['error']:.1e}"
        if plain:
            row += f" = {result['error'] / plain:4.2f} NumPy's"
        rows.append(row + (f"   harken is {result['ratio']:.2f} x as fast" if "ratio" in result else ""))
    return rows


def summarize(entries: list[Entry]) -> dict[str, dict[str, Any]]:
    """For each dtype and rival the geometric mean of harken's ratios, and the worst of them."""
    summary: dict[str, dict[str, Any]] = {}
    for dtype in dict.fromkeys(entry["dtype"] for entry in entries):
        ratios: dict[str, dict[str, float]] = {}
        for entry in entries:
            for name, result in entry["rivals"].items():
                if entry["dtype"] == dtype and "ratio" in result:
                    ratios.setdefault(name, {})[entry["problem"]["name"]] = result["ratio"]
        for name, by_problem in ratios.items():
            worst = min(by_problem, key=by_problem.__getitem__)
            summary.setdefault(dtype, {})[name] = {
                "geomean": math.exp(sum(map(math.log, by_problem.values())) / len(by_problem)),
                "worst": by_problem[worst],
                "worst_problem": worst,
                "problems": len(by_problem),
            }
    return summary


def summary_lines(summary: dict[str, dict[str, Any]]) -> list[str]:
    rows = []
    for dtype, rivals in summary.items():
        rows.append(f"{dtype}: harken's speed over each rival's, geometric mean")
        for name, x in rivals.items():
            worst = f"worst {x['worst']:.2f} x, {x['worst_problem']}"
            rows.append(f"  {name:<12}{x['geomean']:6.2f} x   over {x['problems']} problems   ({worst})")
    return rows
