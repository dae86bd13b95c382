"""The chart: for each problem, how many times as fast as each rival harken is; left of 1 the rival wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import machine

COLORS = {"numpy": "#4c72b0", "torch": "#dd5f32", "onnxruntime": "#7a7a7a", "jax": "#8f63b8", "openvino": "#2a9d8f"}
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100)


def draw(path: Path, report: dict[str, Any]) -> None:
    """One panel for each dtype; the last row of a panel is the geometric mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = list(report["summary"])
    rows = max(sum(entry["dtype"] == dtype for entry in report["results"]) for dtype in panels) + 1
    high, wide = (len(panels) + 1) // 2, min(2, len(panels))
    size = (1.0 + 5.0 * wide, 0.6 + high * (1.2 + 0.36 * rows))
    figure, axes = plt.subplots(high, wide, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, dtype in zip(axes.flat, panels, strict=False):
        fill(axis, dtype, report)

    shown = {label: dots for axis in axes.flat for dots, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    style: dict[str, Any] = {"ncols": len(shown), "frameon": False, "handletextpad": 0.1}
    figure.legend(shown.values(), shown, loc="outside lower center", **style)
    title = f"harken {report['versions']['harken']}  ·  {report['machine']['cpu']}  ·  {report['threads']} threads"
    if report["others"] > machine.QUIET:
        title += f"  ·  not a quiet machine: {100 * report['others']:.0f} % of its time went to others"
    figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def fill(axis: Any, dtype: str, report: dict[str, Any]) -> None:
    entries = [entry for entry in report["results"] if entry["dtype"] == dtype]
    names = [name for name in report["versions"] if name != "harken"]
    reach = [1.0]
    for i, name in enumerate(names):
        lift = 0.24 * (2 * i / max(1, len(names) - 1) - 1)  # one above the other, so that equals stay apart
        dots = [(e["rivals"][name]["ratio"], y) for y, e in enumerate(entries) if "ratio" in e["rivals"].get(name, {})]
        if dots:
            dots.append((report["summary"][dtype][name]["geomean"], len(entries)))
            reach += [x for x, _ in dots]
            color = COLORS.get(name)
            axis.scatter(*zip(*((x, y + lift) for x, y in dots), strict=True), s=36, color=color, label=name, zorder=3)
    low, high = min(reach) / 1.25, max(reach) * 1.25
    ticks = [x for x in TICKS if low <= x <= high]
    axis.set(xscale="log", xlim=(low, high), ylim=(len(entries) + 0.5, -0.5))
    axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axis.set_xticks([], minor=True)
    axis.set_yticks(range(len(entries) + 1), [*(entry["problem"]["name"] for entry in entries), "geometric mean"])
    axis.set_xlabel("time of the rival / time of harken\nshaded: the rival is faster", fontsize=9)
    axis.set_title(dtype, loc="left", fontweight="bold")
    axis.axvspan(low, 1, color="#f4e9e6", zorder=0)
    axis.axvline(1, color="#555555", linewidth=1, zorder=1)
    axis.axhline(len(entries) - 0.5, color="#aaaaaa", linewidth=0.8, zorder=1)
    axis.grid(color="#e3e3e3", linewidth=0.7, zorder=0)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
