"""Attention weights as a heat map in a picture file, each row and column labelled with its word."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

INK, ACCENT = "#3b3b46", "#c2255c"
PAPER = ("#ffffff", "#fdebd8", "#f7a889", "#de4968", "#8c2981", "#3b0f70", "#140e36")  # magma on white
TICKS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


def heat_map(
    path: str, words: Sequence[str], weights: NDArray[np.float32], chosen: Collection[int], title: str
) -> None:
    """Draw `weights` (rows attend to columns) with `words` along both sides; the rows in `chosen` stand out."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.figure import Figure

    count = len(words)
    side = 3.0 + 0.085 * max(count, 24)
    size = float(np.clip(400 / max(count, 1), 5.4, 11))
    figure = Figure(figsize=(side + 0.6, side), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    loudest = max(float(np.quantile(weights, 0.998)), 1e-6)
    norm = PowerNorm(0.5, 0.0, loudest, clip=True)
    image = axes.imshow(
        weights, cmap=LinearSegmentedColormap.from_list("paper", PAPER), norm=norm, interpolation="nearest"
    )
    axes.set_xticks(range(count), words, rotation=90, fontsize=size, color=INK)
    axes.set_yticks(range(count), words, fontsize=size, color=INK)
    axes.tick_params(length=0, pad=2)
    for i, (below, beside) in enumerate(zip(axes.get_xticklabels(), axes.get_yticklabels(), strict=True)):
        if i in chosen:
            for label in (below, beside):
                label.set(color=ACCENT, fontweight="bold")
    axes.spines[:].set_color("#d8d8de")
    axes.set_title(title, fontsize=11, color=INK, loc="left", pad=8)
    axes.set_ylabel("this word ...", color=INK)
    axes.set_xlabel("... attends to this word", color=INK)
    ticks = [tick for tick in TICKS if tick <= loudest]
    bar = figure.colorbar(image, ax=axes, shrink=0.4, aspect=30, pad=0.01, ticks=ticks, format="{x:.0%}")
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a glyph that the font lacks is drawn as a box
        figure.savefig(path, bbox_inches="tight")
