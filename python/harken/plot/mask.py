"""A mask as a picture: the pairs that it shows, and which tiles of them are empty, edges or full."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harken.foreign import view
from harken.masks.mask import Dense, Mask
from harken.plot.given import labels_of
from harken.plot.heads import grid, outer
from harken.plot.heatmap import cells_of, frame, is_square, name_cells, own_axes
from harken.plot.sheet import TEXT, needs_matplotlib, room, several_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]

CELLS = 512  # to a side of the picture
PANELS = 16
LINES = 32  # up to so many queries and keys, there are lines between them
SEEN, HIDDEN = "#31588a", "#eef1f5"
EDGE_SEEN, EDGE_HIDDEN = "#d9822b", "#fae6cf"
KINDS = (("empty", (HIDDEN, HIDDEN)), ("edge", (EDGE_HIDDEN, EDGE_SEEN)), ("full", (SEEN, SEEN)))


def mask(
    mask: Mask | ArrayLike,
    q_length: int | None = None,
    k_length: int | None = None,
    *,
    q_start: ArrayLike | None = None,
    tiles: int | tuple[int, int] | None = None,
    q_labels: Sequence[object] | None = None,
    k_labels: Sequence[object] | None = None,
    ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    title: str | None = None,
) -> Axes | NDArray[Any]:
    """Draw which keys the queries see: queries downwards, keys to the right, blue where they are seen.

    Parameters
    ----------
    mask : array_like of bool, broadcastable to (..., Lq, Lk), or one of `harken.masks`
        True where a query may look.
    q_length, k_length : int, optional
        Lq and Lk, by default those of the array. A mask of `harken.masks` has none of its own: give q_length, and
        k_length if it is another.
    q_start : int or array_like of int, optional
        The position of the first query, as in `harken.attention`.
    tiles : int or (int, int), optional
        Also show what becomes of the tiles of so many queries and keys: the empty ones, which are never computed, the
        edges, orange where they are seen, and the full ones, which cost no look at the mask. Tiles are joined where
        there are more than 512 to a side; the legend says of what size they are.
    q_labels, k_labels : sequence of Lq and of Lk labels, optional
        As in `heatmap`.
    ax : matplotlib.axes.Axes or as many as there are panels, optional
        Where to draw; by default in a figure of its own. One that was made with `layout="constrained"` makes room for
        the legend.
    title : str, optional
        By default the mask as it is written, and the share of all pairs that is seen.

    Returns
    -------
    matplotlib.axes.Axes
        Or an array of them, one for each of the first 16 entries, where the mask or q_start has leading axes that are
        not all 1.

    Raises
    ------
    TypeError, ValueError
        The mask is neither boolean nor of `harken.masks`, does not fit the lengths, or there are none.
    ImportError
        matplotlib is not installed: `pip install 'harken[plot]'`.

    Notes
    -----
    Up to 512 x 512 points, each of which may stand for many pairs: the darker, the more of them are seen. A mask of
    `harken.masks` does not become an array for it: a million queries are drawn in O(Lq x intervals).

    Examples
    --------
    >>> import harken
    >>> from harken.masks import Causal, Window
    >>> ax = harken.plot.mask(Causal() & Window(200), 1000, tiles=128)
    >>> print(ax.get_title())
    Causal() & Window(200, None): 18.1 % seen
    """
    needs_matplotlib()
    shown, Lq, Lk = sized(mask, q_length, k_length)
    rows, columns = labels_of("q_labels", q_labels, Lq, "queries"), labels_of("k_labels", k_labels, Lk, "keys")
    size = None if tiles is None else (joined(pair(tiles)[0], Lq), joined(pair(tiles)[1], Lk))
    fine = (step(Lq, None), step(Lk, None)) if size is None else (step(Lq, size[0]), step(Lk, size[1]))
    seen, area = shown._visible(Lq, Lk, fine, q_start)
    kinds = None if size is None else kinds_of(seen, area, size[0] // fine[0], size[1] // fine[1])
    lead = seen.shape[:-2]
    written = "" if isinstance(shown, Dense) else f"{shown!r}: "
    entries = list(np.ndindex(*lead))[:PANELS]

    if ax is not None:
        panels = several_axes(ax, len(entries), "panels")
        width, height = room(panels[0])
        cell = (min(height / Lq, width / Lk),) * 2 if is_square(Lq, Lk) else (height / Lq, width / Lk)
    elif lead:
        panels, across, cell = grid(len(entries), Lq, Lk, rows, columns, 0 if size is None else 100, 20)
        panels[0].figure.suptitle(repr(shown) if title is None else title, fontsize=TEXT + 1)
    else:
        cell = cells_of(Lq, Lk)
        beside = 24 if size is None else 110
        panels = [own_axes(cell[1] * Lk, cell[0] * Lq, rows, columns, (Lq, Lk), beside)]
    for n, (entry, panel) in enumerate(zip(entries, panels, strict=True)):
        draw(panel, seen[entry] / area, None if kinds is None else kinds[entry], fine, size, (Lq, Lk))
        name_cells(panel, rows, columns, cell)
        share = f"{percent(seen[entry].sum() / area.sum())} seen"
        if lead:
            panel.set_title(f"{entry[0] if len(entry) == 1 else entry}: {share}", fontsize=TEXT)
        else:
            panel.set_title(f"{written}{share}" if title is None else title, fontsize=TEXT + 1)
        if lead and ax is None:
            outer(panel, first=n % across == 0, last=n + across >= len(entries))
        else:
            panel.set_xlabel("key", fontsize=TEXT)
            panel.set_ylabel("query", fontsize=TEXT)
    if kinds is not None and size is not None:
        legend(panels[min(across, len(panels)) - 1 if lead and ax is None else 0], kinds, size)
    return np.array(panels, object) if lead else panels[0]


def sized(mask: Any, Lq: int | None, Lk: int | None) -> tuple[Mask, int, int]:
    """The mask, and how many queries and keys there are."""
    if isinstance(mask, Mask):
        if Lq is None:
            raise TypeError(f"{mask!r} has no size of its own: give q_length, and k_length if it is another")
        Lk = Lq if Lk is None else Lk
    else:
        array = np.asarray(view("mask", mask))
        if array.dtype != bool:
            raise TypeError(f"mask is {array.dtype}: wanted bool, True where a query may look, or one of harken.masks")
        if array.ndim < 2 and (Lq is None or Lk is None):
            raise ValueError(f"mask has shape {array.shape}: wanted (..., Lq, Lk), or give q_length and k_length")
        Lq, Lk = (array.shape[-2] if Lq is None else Lq), (array.shape[-1] if Lk is None else Lk)
        mask = Dense(array)
    for name, L in (("q_length", Lq), ("k_length", Lk)):
        if not hasattr(L, "__index__") or isinstance(L, bool):
            raise TypeError(f"{name} is {L!r}: wanted an integer")
        if L < 1:
            raise ValueError(f"{name} is {L}: wanted 1 or more to draw")
    return mask, int(Lq), int(Lk)


def pair(size: Any) -> tuple[int, int]:
    """The queries and keys of a tile."""
    both = size if isinstance(size, tuple) else (size, size)
    if len(both) != 2 or not all(hasattr(n, "__index__") and not isinstance(n, bool) and n >= 1 for n in both):
        raise ValueError(f"tiles is {size!r}: wanted the queries and the keys of a tile, 1 or more, or one for both")
    return int(both[0]), int(both[1])


def joined(size: int, L: int) -> int:
    """So many tiles as one that there are not more than can be drawn."""
    return size * max(1, -(-L // (size * CELLS)))


def step(L: int, tile: int | None) -> int:
    """How many queries or keys a point stands for: few enough points, and a tile is a whole number of them."""
    least = max(1, -(-L // CELLS))
    if tile is None:
        return least
    return next(n for n in range(least, tile + 1) if tile % n == 0)


def kinds_of(seen: Array, area: Array, rows: int, columns: int) -> Array:
    """Empty (0), edge (1) or full (2) for each tile of so many rows and columns of points."""
    for axis, n in ((-2, rows), (-1, columns)):
        seen, area = (np.add.reduceat(x, np.arange(0, x.shape[axis], n), axis=axis) for x in (seen, area))
    kinds: Array = (seen > 0).astype(np.int8) + (seen == area)
    return kinds


def draw(
    ax: Axes,
    share: Array,
    kinds: Array | None,
    fine: tuple[int, ...],
    size: tuple[int, ...] | None,
    lengths: tuple[int, int],
) -> None:
    """The share of each point that is seen, between the two colours of its tile."""
    from matplotlib.colors import to_rgb

    ends = np.array([[to_rgb(HIDDEN), to_rgb(SEEN)]])
    of = np.zeros(share.shape, int)
    if kinds is not None and size is not None:
        ends = np.array([[to_rgb(color) for color in colors] for _, colors in KINDS])
        tall, wide = (tile // point for tile, point in zip(size, fine, strict=True))
        of = np.repeat(np.repeat(kinds, tall, axis=0), wide, axis=1)[: share.shape[0], : share.shape[1]]
    colors = ends[of, 0] + share[..., None] * (ends[of, 1] - ends[of, 0])
    rows, columns = (n * point for n, point in zip(share.shape, fine, strict=True))
    Lq, Lk = lengths
    width, height = room(ax)
    enough = share.shape[0] <= 2 * height and share.shape[1] <= 2 * width
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    ax.imshow(colors, interpolation="nearest" if enough else "antialiased", extent=extent, aspect="auto")
    frame(ax, Lq, Lk)
    if max(Lq, Lk) <= LINES:
        lines(ax, np.arange(1, Lq), np.arange(1, Lk), 0.5)
    if size is not None and max(math.ceil(L / n) for L, n in zip(lengths, size, strict=True)) <= LINES:
        lines(ax, np.arange(size[0], Lq, size[0]), np.arange(size[1], Lk, size[1]), 1.2)


def lines(ax: Axes, rows: Array, columns: Array, width: float) -> None:
    """White lines above these rows and at the left of these columns."""
    ax.hlines(rows - 0.5, *ax.get_xlim(), colors="white", linewidths=width)
    ax.vlines(columns - 0.5, *ax.get_ylim(), colors="white", linewidths=width)


def legend(ax: Axes, kinds: Array, size: tuple[int, ...]) -> None:
    """What the colours of tiles mean, and how many are of each kind."""
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=colors[1], edgecolor="0.6", linewidth=0.5, label=f"{name}: {percent((kinds == n).mean())}")
        for n, (name, colors) in reversed(list(enumerate(KINDS)))
    ]
    title = f"tiles of {size[0]:,} × {size[1]:,}"
    ax.legend(
        handles=handles,
        title=title,
        loc="upper left",
        bbox_to_anchor=(1.02, 1),
        borderaxespad=0,
        frameon=False,
        fontsize=8,
        title_fontsize=8,
        alignment="left",
    )


def percent(part: float) -> str:
    """Three digits: 0.18123 is "18.1 %"."""
    return f"{100 * part:.3g} %"
