"""Cells as an image in which the largest of those that share a pixel is seen, at whatever size it is drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.image import AxesImage
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

Array = NDArray[Any]

# From white, so that paper stays paper, to the dark end of magma: CIE lightness falls evenly, from 100 to 8.
PAPER = (
    "#ffffff", "#f1e9d3", "#f3cda3", "#ffab75", "#fc8a62", "#f4695b", "#e04c67",
    "#c03a76", "#9b2e7f", "#772181", "#55147d", "#321067", "#180f3d",
)  # fmt: skip
NOTHING = "#d5d8dc"  # NaN and infinities

FIRST = 1024  # blocks to a side until the size is known
LEAST = 1.05  # pixels of a block, so that each holds the middle of one


def colours(cmap: str | Colormap | None) -> Colormap:
    """A colour map whose bad numbers are grey."""
    from matplotlib import colormaps

    if cmap is None:
        found: Colormap = LinearSegmentedColormap.from_list("paper", PAPER, N=512)
    else:
        found = colormaps.get_cmap(cmap)
    return found.with_extremes(bad=NOTHING)


def largest(x: Array, rows: int, columns: int) -> Array:
    """The largest numbers of so many rows x columns of blocks as equal as can be; NaN where there is none but NaN."""
    for axis, count in ((0, rows), (1, columns)):
        if count < x.shape[axis]:
            x = np.fmax.reduceat(x, np.arange(count) * x.shape[axis] // count, axis=axis)
    return x


class Cells(AxesImage):
    """An (Lq, Lk) matrix, cell (i, j) around the point x = j, y = i."""

    def __init__(self, ax: Axes, whole: Array, cmap: Colormap, norm: Normalize) -> None:
        super().__init__(ax, cmap=cmap, norm=norm, interpolation="nearest", origin="upper")
        self.whole = whole
        self.part = ((0, 0, 0), (0, 0, 0))
        Lq, Lk = whole.shape
        self._show((0, Lq, min(Lq, FIRST)), (0, Lk, min(Lk, FIRST)))

    def _show(self, rows: tuple[int, int, int], columns: tuple[int, int, int]) -> None:
        """Show the cells from the first up to an end, as so many."""
        if self.part != (rows, columns):
            self.part = (rows, columns)
            self.set_data(largest(self.whole[slice(*rows[:2]), slice(*columns[:2])], rows[2], columns[2]))

    def get_extent(self) -> tuple[float, float, float, float]:
        """Of the cells that are shown."""
        (top, bottom, _), (left, right, _) = self.part
        return left - 0.5, right - 0.5, bottom - 0.5, top - 0.5

    def get_window_extent(self, renderer: RendererBase | None = None) -> Bbox:
        """Where the cells are, in pixels."""
        Lq, Lk = self.whole.shape
        return Bbox([(-0.5, Lq - 0.5), (Lk - 0.5, -0.5)]).transformed(self.axes.transData)

    def draw(self, renderer: RendererBase) -> None:
        corners: Array = self.axes.transData.transform([(0, 0), (1, 1)])
        wide, tall = np.abs(corners[1] - corners[0]) * renderer.get_image_magnification()
        Lq, Lk = self.whole.shape
        self._show(inside(self.axes.get_ylim(), tall, Lq), inside(self.axes.get_xlim(), wide, Lk))
        super().draw(renderer)


def inside(limits: tuple[float, float], pixels: float, count: int) -> tuple[int, int, int]:
    """The cells between two limits, from the first up to an end, and as how many they fit where one has `pixels`."""
    low, high = (min(max(x + 0.5, 0), count) for x in sorted(limits))
    first = min(int(low), count - 1)
    end = max(math.ceil(high), first + 1)
    return first, end, max(min(int((end - first) * pixels / LEAST), end - first), 1)
