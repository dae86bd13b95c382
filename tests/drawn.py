"""Pictures under test: drawn into pixels, and the words in them with the places that they take."""

from __future__ import annotations

from typing import Any

import numpy as np


def pixels(ax: Any) -> Any:
    """The figure of some axes as (height, width, 3), each colour from 0 to 255."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure_of(ax))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def figure_of(ax: Any) -> Any:
    return np.asarray(ax, object).flat[0].figure


def at(ax: Any, picture: Any, i: float, j: float, near: int = 0) -> Any:
    """The pixels around the middle of cell (i, j)."""
    x, y = ax.transData.transform((j, i))
    row, column = int(len(picture) - y), int(x)
    return picture[row - near : row + near + 1, column - near : column + near + 1].reshape(-1, 3)


def words(ax: Any) -> list[tuple[str, Any]]:
    """Every text of a figure that was drawn, and the box that it takes, (left, low, right, high) in pixels."""
    found = []
    figure = figure_of(ax)
    for axes in [part for part in figure.findobj() if hasattr(part, "get_xaxis")]:
        texts = [axes.title, *axes.texts, axes.xaxis.label, axes.yaxis.label]
        legend = axes.get_legend()
        texts += [legend.get_title(), *legend.get_texts()] if legend else []
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            shown = [tick for tick in ticks if low <= tick.get_loc() <= high]
            texts += [label for tick in shown for label in (tick.label1, tick.label2)]
        found += [text for text in texts if text.get_visible() and text.get_text()]
    found += [figure._suptitle] if figure._suptitle else []
    return [(text.get_text(), np.array(text.get_window_extent().extents)) for text in found]


def clashes(ax: Any) -> list[Any]:
    """Pairs of texts that lie on each other, and texts that reach beyond the figure."""
    texts = words(ax)
    boxes = np.array([box for _, box in texts])
    left, low, right, high = (boxes[:, n] for n in range(4))
    wide, tall = figure_of(ax).canvas.get_width_height()
    outside = (left < -1) | (low < -1) | (right > wide + 1) | (high > tall + 1)
    meet = (left[:, None] < right) & (left < right[:, None]) & (low[:, None] < high) & (low < high[:, None])
    pairs = np.argwhere(np.triu(meet, 1))
    return [(texts[i][0], texts[j][0]) for i, j in pairs] + [texts[i][0] for i in np.flatnonzero(outside)]
