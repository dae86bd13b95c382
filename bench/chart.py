"""The chart: for each problem, how many times as fast as each rival harken is; left of 1 the rival wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import machine

COLORS = {"numpy": "#4c72b0", "torch": "#dd5f32", "onnxruntime": "#7a7a7a", "jax": "#8f63b8", "openvino": "#2a9d8f"}
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100)


MEAN = 0.9  # how much room the geometric mean has more than a problem


def draw(path: Path, report: dict[str, Any]) -> None:
    """One panel for each dtype, all of one scale; the last row of a panel is the geometric mean, in figures as well."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = list(report["summary"])
    wide = min(2, len(panels))
    rows = [sum(entry["dtype"] == dtype for entry in report["results"]) + 1 + MEAN for dtype in panels]
    heights = [1.2 + 0.36 * max(rows[i : i + wide]) for i in range(0, len(rows), wide)]
    size = (1.0 + 5.4 * wide, 0.6 + sum(heights))
    grid = {"height_ratios": heights}
    figure, axes = plt.subplots(len(heights), wide, figsize=size, squeeze=False, layout="constrained", gridspec_kw=grid)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    ratios = [r["ratio"] for entry in report["results"] for r in entry["rivals"].values() if "ratio" in r]
    span = min([1.0, *ratios]) / 1.25, max([1.0, *ratios]) * 1.35
    for axis, dtype in zip(axes.flat, panels, strict=False):
        fill(axis, dtype, report, span)

    shown = {label: dots for axis in axes.flat for dots, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    style: dict[str, Any] = {"ncols": len(shown), "frameon": False, "handletextpad": 0.1}
    figure.legend(shown.values(), shown, loc="outside lower center", **style)
    title = f"harken {report['versions']['harken']}  ·  {report['machine']['cpu']}  ·  {report['threads']} threads"
    if report["others"] > machine.QUIET:
        title += f"  ·  not a quiet machine: {100 * report['others']:.0f} % of its time went to others"
    figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def fill(axis: Any, dtype: str, report: dict[str, Any], span: tuple[float, float]) -> None:
    entries = [entry for entry in report["results"] if entry["dtype"] == dtype]
    means = report["summary"][dtype]
    last = len(entries) + MEAN / 2
    for i, name in enumerate(means):
        lift = 0.5 * (i + 0.5) / len(means) - 0.25  # one above the other, so that equals stay apart
        dots = [(e["rivals"][name]["ratio"], y) for y, e in enumerate(entries) if "ratio" in e["rivals"].get(name, {})]
        color = COLORS.get(name)
        axis.scatter(*zip(*((x, y + lift) for x, y in dots), strict=True), s=30, color=color, label=name, zorder=3)
        x, y = means[name]["geomean"], last + (1.2 + MEAN) * lift
        axis.scatter([x], [y], s=60, marker="D", color=color, zorder=3)
        axis.annotate(f"{x:.2g}", (x, y), (7, 0), textcoords="offset points", va="center", fontsize=8, zorder=4)
    for y, entry in enumerate(entries):
        if "of_peak" in entry["rivals"]["harken"]:
            text = f"{100 * entry['rivals']['harken']['of_peak']:.0f} % of {limit(entry)}"
            axis.annotate(
                text, (1.01, y), xycoords=axis.get_yaxis_transform(), va="center", fontsize=8, color="#555555"
            )
    ticks = [x for x in TICKS if span[0] <= x <= span[1]]
    axis.set(xscale="log", xlim=span, ylim=(len(entries) + MEAN + 0.5, -0.5))
    axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axis.set_xticks([], minor=True)
    names = [entry["problem"]["name"] for entry in entries]
    axis.set_yticks([*range(len(entries)), last], [*names, "geometric mean"])
    note = "shaded: the rival is faster"
    if any("of_peak" in entry["rivals"]["harken"] for entry in entries):
        note += "; right: what harken reaches of the machine's peak"
    axis.set_xlabel(f"time of the rival / time of harken\n{note}", fontsize=9)
    axis.set_title(dtype, loc="left", fontweight="bold")
    axis.axvspan(span[0], 1, color="#f4e9e6", zorder=0)
    axis.axvline(1, color="#555555", linewidth=1, zorder=1)
    axis.axhline(len(entries) - 0.5, color="#aaaaaa", linewidth=0.8, zorder=1)
    axis.grid(color="#e3e3e3", linewidth=0.7, zorder=0)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def limit(entry: dict[str, Any]) -> str:
    """The peak that harken's share is of, in a word."""
    return "reading" if entry["kind"] == "stream" else "AMX" if "AMX" in entry["peak"]["name"] else "FMA"
