"""Labels of queries and keys: as many as there is room for, whenever they are drawn."""

from __future__ import annotations

import math
import unicodedata
import warnings
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator
from numpy.typing import NDArray

LONGEST = 24  # characters of a label
LEADING = 1.2  # from line to line, of the size of the letters
GAP = 4.0  # points between labels side by side
LARGE, SMALL = 9.0, 6.0  # points
NUMBERS = {"x": 1.6, "y": 2.5}  # how far apart numbers are that do not all fit, of the room that they need
STANDS_OUT = "#c2255c"


def shown(label: Any) -> str:
    """A label as it is drawn: what breaks lines spelt out, dollars as they are, not too long."""
    text = str(label)
    text = "".join(repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return text.replace("$", r"\$")


def number(n: int) -> str:
    """9999 is "9999", 10000 is "10,000"."""
    return f"{n:,}" if n >= 10_000 else str(n)


def widest(texts: Sequence[str], size: float) -> float:
    """The width in points of the widest of some labels."""
    font, longest = FontProperties(size=size), sorted(set(texts), key=len)[-24:]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        plain = (text.replace(r"\$", "$") for text in longest)
        return max((text_to_path.get_text_width_height_descent(t, font, False)[0] for t in plain), default=0.0)


def letters(cell: float) -> float:
    """The size of labels whose cells are so many points apart; where not all fit, the others leave room."""
    return min(0.8 * cell, LARGE) if cell >= LEADING * SMALL else 7.0


class Thinned(Locator):
    """Every n-th of the cells, n so large that labels of `needed` points do not meet, and none near a marked one.

    Where `apart` is given and not all have a label, n is round, and labels are so many points apart.
    """

    def __init__(self, count: int, needed: float, marked: Sequence[int], apart: float | None) -> None:
        self.count, self.needed, self.marked, self.apart = count, needed, np.array(marked, int), apart

    def __call__(self) -> list[float]:
        axis = self.axis
        if axis is None:
            return []
        ends = axis.axes.transData.transform([(0, 0), (1, 1)])  # type: ignore[union-attr]
        pixels = abs(ends[1] - ends[0])[0 if axis.axis_name == "x" else 1]  # type: ignore[union-attr]
        cell = pixels * 72 / axis.get_figure(root=True).dpi  # type: ignore[union-attr]
        low, high = sorted(axis.get_view_interval())
        return list(map(float, self.places(cell, math.ceil(max(low, 0)), math.floor(min(high, self.count - 1)) + 1)))

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        return self()

    def places(self, cell: float, first: int, end: int) -> NDArray[np.int64]:
        """Which cells of those in view have labels, where a cell has so many points."""
        least = self.needed if self.apart is None or self.needed <= cell else self.apart
        step = min(max(math.ceil(least / max(cell, 1e-9) - 1e-6), 1), self.count)
        if self.apart is not None:
            ten = 10 ** math.floor(math.log10(step))
            step = next(n * ten for n in (1, 2, 5, 10) if n * ten >= step)
        every = np.arange(-(-first // step) * step, end, step)
        if not self.marked.size:
            return every
        far = np.abs(every[:, None] - self.marked).min(axis=1) * cell >= self.needed
        chosen: NDArray[np.int64] = every[far]
        return chosen


def label(
    ax: Axes,
    side: Literal["x", "y"],
    count: int,
    labels: Sequence[str] | None,
    cell: float,
    marked: Collection[int] = (),
) -> None:
    """Label `count` cells, each of about `cell` points, along one side, by their numbers where there are no labels."""
    axis = ax.xaxis if side == "x" else ax.yaxis
    size = letters(cell)
    upright, flat = LEADING * size, widest(labels or [number(count - 1)], size) + GAP
    turned = side == "x" and labels is not None and flat > cell
    needed = flat if side == "x" and not turned else upright
    special = sorted(i for i in set(marked) if 0 <= i < count)

    def text(x: float, at: int | None = None) -> str:
        n = min(max(round(x), 0), count - 1)
        return labels[n] if labels else number(n)

    axis.set_major_locator(Thinned(count, needed, special, None if labels else NUMBERS[side] * needed))
    axis.set_minor_locator(FixedLocator(special))
    axis.set_major_formatter(FuncFormatter(text))
    axis.set_minor_formatter(FuncFormatter(text))
    axis.set_tick_params(
        which="both", labelsize=size, labelrotation=90 if turned else 0, length=2, width=0.5, pad=2, color="0.4"
    )
    if special:
        axis.set_tick_params(which="minor", labelcolor=STANDS_OUT, color=STANDS_OUT)


def room_beside(labels: Sequence[str] | None, count: int, cell: float, side: Literal["x", "y"]) -> float:
    """How far labels reach from their axis, in points, with the name of the axis."""
    size = letters(cell)
    wide = widest(labels or [number(count - 1)], size)
    flat = side == "x" and (labels is None or wide + GAP <= cell)
    return (LEADING * size if flat else wide) + 22
