"""The weights of many heads side by side, in one scale of colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harken.plot.given import labels_of
from harken.plot.heatmap import add_colorbar, is_beyond, is_square, name_cells, paint, scale_of
from harken.plot.sheet import TEXT, needs_matplotlib, new_figure, numbers, room, several_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

SIDE, LEAST, MOST = 600.0, 72.0, 190.0  # points of all panels of a row, and of one
APART = 12.0  # points


def heads(
    weights: ArrayLike,
    q_labels: Sequence[object] | None = None,
    k_labels: Sequence[object] | None = None,
    *,
    ax: Sequence[Axes] | NDArray[Any] | None = None,
    names: Sequence[object] | None = None,
    title: str | None = None,
    power: float = 1.0,
    largest: float | None = None,
    cmap: str | Colormap | None = None,
    colorbar: bool = True,
) -> NDArray[Any]:
    """Draw the weights of some heads, a panel each, all in one scale of colours.

    Parameters
    ----------
    weights : array_like, (H, Lq, Lk)
        What `harken.attention` gives with `return_weights=True`, of one entry of the batch.
    q_labels, k_labels, power, largest, cmap, colorbar
        As in `heatmap`. Labels stand at the outer panels only.
    ax : sequence of H Axes, optional
        Where to draw; by default in a figure of its own, in rows.
    names : sequence of H labels, optional
        What stands above the panels; by default "head 0", "head 1" and so on.
    title : str, optional
        What stands above all of them, in a figure of its own or over the first panel of axes that were given.

    Returns
    -------
    ndarray of matplotlib.axes.Axes, (H,)
        One for each head.

    Raises
    ------
    TypeError, ValueError, ImportError
        As in `heatmap`; `names` or `ax` are not as many as there are heads.

    Examples
    --------
    >>> import numpy as np, harken
    >>> q, k = np.random.default_rng(0).standard_normal((2, 12, 20, 64))
    >>> weights = harken.attention(q, k, k, causal=True, return_weights=True)[1]
    >>> axes = harken.plot.heads(weights, title="layer 0")
    >>> len(axes), axes[11].get_title()
    (12, 'head 11')
    """
    needs_matplotlib()
    W = numbers("weights", weights, "H, Lq, Lk")
    H, Lq, Lk = W.shape
    rows, columns = labels_of("q_labels", q_labels, Lq, "queries"), labels_of("k_labels", k_labels, Lk, "keys")
    over = labels_of("names", names, H, "heads") or [f"head {h}" for h in range(H)]
    norm = scale_of(W.reshape(-1, Lk), power, largest)
    if ax is None:
        panels, across, cell = grid(H, Lq, Lk, rows, columns, 60 if colorbar else 0, 26 if title else 0)
        if title is not None:
            panels[0].figure.suptitle(title, fontsize=TEXT + 2)
    else:
        panels, across = several_axes(ax, H, "heads"), 1
        width, height = room(panels[0])
        cell = (min(height / Lq, width / Lk),) * 2 if is_square(Lq, Lk) else (height / Lq, width / Lk)
    for h, panel in enumerate(panels):
        image = paint(panel, W[h], norm, cmap)
        name_cells(panel, rows, columns, cell)
        head = f"{title}: {over[h]}" if title is not None and ax is not None and h == 0 else over[h]
        panel.set_title(head, fontsize=TEXT)
        if ax is None:
            outer(panel, first=h % across == 0, last=h + across >= H)
    if colorbar:
        add_colorbar(panels, image, "weight", beyond=is_beyond(W, norm))
    return np.array(panels, object)


def outer(panel: Axes, first: bool, last: bool) -> None:
    """Labels at the left and below, where no other panel is."""
    panel.tick_params(which="both", labelleft=first, left=first, labelbottom=last, bottom=last)
    if last:
        panel.set_xlabel("key", fontsize=TEXT)
    if first:
        panel.set_ylabel("query", fontsize=TEXT)


def columns_for(count: int) -> int:
    """Of how many columns a grid is that is about square and leaves few places empty."""
    least = math.isqrt(count - 1) + 1
    return min(range(least, min(count, least + 2) + 1), key=lambda n: (-(-count // n) * n - count, n))


def grid(
    count: int, Lq: int, Lk: int, rows: Any, columns: Any, beside: float = 0, above: float = 0
) -> tuple[list[Axes], int, tuple[float, float]]:
    """Axes for panels of Lq x Lk cells in rows, how many are in a row, and height and width of a cell in points."""
    from harken.plot.ticks import room_beside

    across = columns_for(count)
    down = -(-count // across)
    wide = min(max(SIDE / across - APART, LEAST), MOST)
    tall = wide * min(max(Lq / Lk, 1 / 3), 3)
    if is_square(Lq, Lk):
        tall = wide * Lq / Lk
    cell = (tall / Lq, wide / Lk)
    left, below = room_beside(rows, Lq, cell[0], "y"), room_beside(columns, Lk, cell[1], "x")
    width = across * (wide + APART) + left + beside
    if across * down > count:  # then keys are named at two rows
        below *= 2
    height = down * (tall + APART + 1.4 * TEXT) + below + above
    figure = new_figure(width, height)
    return [figure.add_subplot(down, across, n + 1) for n in range(count)], across, cell
