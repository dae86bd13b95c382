"""One head's weights as a heat map: queries downwards, keys to the right, the darker the more."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harken.plot.given import labels_of, marks_of
from harken.plot.sheet import POINTS, TEXT, checked_axes, needs_matplotlib, new_figure, numbers, room

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap, Normalize

    from harken.plot.image import Cells

Array = NDArray[Any]

LARGEST, SMALLEST, SIDE = 30.0, 7.5, 576.0  # points of a cell, and of all of them at most
FIGURES = (17.0, 10.0)  # points that a cell needs for its value
EQUAL = 4.0  # up to this ratio of queries to keys, or of keys to queries, cells are square


def heatmap(
    weights: ArrayLike,
    q_labels: Sequence[object] | None = None,
    k_labels: Sequence[object] | None = None,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    side: float | None = None,
    mark: Collection[int] = (),
    values: bool | None = None,
    power: float = 1.0,
    largest: float | None = None,
    cmap: str | Colormap | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw the weights of one head: cell (i, j) is the darker, the more query i looks at key j.

    Parameters
    ----------
    weights : array_like, (Lq, Lk)
        What `harken.attention` gives with `return_weights=True`, of one head; or any real numbers. NaN and infinities
        are grey.
    q_labels, k_labels : sequence of Lq and of Lk labels, optional
        What stands beside the rows and below the columns, such as tokens; by default their numbers. Where there is
        no room for all, every n-th is shown, and more of them as one zooms in. From the 25th character on, labels are
        cut.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a figure of its own. One that was made with `layout="constrained"` makes room for
        the labels.
    title : str, optional
    side : float, optional
        How many inches the longer side of the map has in a figure of its own; by default what cells need, 8 at most.
    mark : collection of int
        Queries and keys whose labels stand out; they are shown whatever the room.
    values : bool, optional
        Write each weight into its cell, but for those that round to 0.00. By default where there is room.
    power : float
        The colour stands for (weight / largest) ** power: 0.5 shows small weights, too.
    largest : float, optional
        The weight that has the darkest colour, as all above it. By default the largest that there is.
    cmap : str or Colormap, optional
        A colour map of matplotlib's. The default begins with white, and its lightness falls evenly.
    colorbar : bool
        Draw the scale of colours beside the map.

    Returns
    -------
    matplotlib.axes.Axes
        `.figure.savefig("map.png")` writes a figure of its own.

    Raises
    ------
    TypeError, ValueError
        `weights` are not a matrix of real numbers; labels are not as many as cells; `power`, `largest` or `side`
        is not above 0.
    ImportError
        matplotlib is not installed: `pip install 'harken[plot]'`.

    Notes
    -----
    Where cells are smaller than pixels, a pixel shows the largest of its cells: a single key that is looked at does
    not vanish, be there thousands.

    Examples
    --------
    >>> import numpy as np, harken
    >>> words = "the cat sat on the mat".split()
    >>> x = np.random.default_rng(0).standard_normal((6, 64))
    >>> weights = harken.attention(x, x, x, return_weights=True)[1]
    >>> ax = harken.plot.heatmap(weights, words, words, title="who looks at whom")
    >>> ax.figure.savefig("map.png")  # doctest: +SKIP
    """
    needs_matplotlib()
    W = numbers("weights", weights, "Lq, Lk")
    Lq, Lk = W.shape
    rows, columns = labels_of("q_labels", q_labels, Lq, "queries"), labels_of("k_labels", k_labels, Lk, "keys")
    marked = marks_of(mark, max(Lq, Lk))
    norm = scale_of(W, power, largest)
    tall, wide = cells_of(Lq, Lk, side)
    if ax is None:
        ax = own_axes(wide * Lk, tall * Lq, rows, columns, (Lq, Lk), 60 + 0.06 * wide * Lk if colorbar else 0)
    else:
        width, height = room(checked_axes(ax))
        wide, tall = width / Lk, height / Lq
        if is_square(Lq, Lk):
            wide = tall = min(wide, tall)
    image = paint(ax, W, norm, cmap)
    name_cells(ax, rows, columns, (tall, wide), marked)
    ax.set_xlabel("key", fontsize=TEXT)
    ax.set_ylabel("query", fontsize=TEXT)
    if title is not None:
        ax.set_title(title, fontsize=TEXT + 1)
    if values if values is not None else (wide >= FIGURES[0] and tall >= FIGURES[1]):
        write_values(ax, image, W, min(wide / 2.3, tall / 1.2, 8.0))
    if colorbar:
        add_colorbar(ax, image, "weight", beyond=is_beyond(W, norm))
    return ax


def is_square(Lq: int, Lk: int) -> bool:
    return max(Lq, Lk) <= EQUAL * min(Lq, Lk)


def cells_of(Lq: int, Lk: int, side: float | None = None) -> tuple[float, float]:
    """Height and width of a cell in points, in a figure that is large enough to read and small enough to look at."""
    sizes = [min(LARGEST, max(SMALLEST, 300 / L), SIDE / L) for L in (Lq, Lk)]
    if side is not None:
        if not 0 < side < np.inf:
            raise ValueError(f"side is {side}: wanted inches, above 0")
        sizes[int(Lk > Lq)] = cell = POINTS * side / max(Lq, Lk)
        if is_square(Lq, Lk):
            return cell, cell
    return (min(sizes), min(sizes)) if is_square(Lq, Lk) else (sizes[0], sizes[1])


def own_axes(
    width: float, height: float, rows: Any, columns: Any, shape: tuple[int, int], beside: float, above: float = 24
) -> Axes:
    """Axes of about this size in points in a figure of their own, with room for labels, title and colour bar."""
    from harken.plot.ticks import room_beside

    Lq, Lk = shape
    left = room_beside(rows, Lq, height / Lq, "y")
    below = room_beside(columns, Lk, width / Lk, "x")
    return new_figure(max(width, 110) + left + beside + 12, max(height, 60) + below + above + 6).add_subplot()


def scale_of(W: Array, power: float, largest: float | None) -> Normalize:
    """From 0, or the least number below it, to the largest."""
    from matplotlib.colors import Normalize, PowerNorm

    if not 0 < power < np.inf:
        raise ValueError(f"power is {power}: wanted a number above 0; 1 is a linear scale, 0.5 shows small weights")
    if largest is not None and not 0 < largest < np.inf:
        raise ValueError(f"largest is {largest}: wanted a number above 0, the weight of the darkest colour")
    low, high = 0.0, 0.0
    for part in np.array_split(W, max(1, W.size >> 22)):  # so that no second matrix is made of a large one
        finite = np.isfinite(part)
        low = min(low, float(np.min(part, where=finite, initial=0)))
        high = max(high, float(np.max(part, where=finite, initial=low)))
    high = high if largest is None else largest
    high = high if high > low else low + 1
    return Normalize(low, high) if power == 1 else PowerNorm(power, low, high, clip=False)


def is_beyond(W: Array, norm: Normalize) -> bool:
    """Are there numbers above the end of the scale?"""
    return norm.vmax is not None and bool(np.max(W, where=np.isfinite(W), initial=-np.inf) > norm.vmax)


def paint(ax: Axes, W: Array, norm: Normalize, cmap: str | Colormap | None) -> Cells:
    """The matrix as an image that fills the axes."""
    from harken.plot.image import Cells, colours

    image = Cells(ax, W, colours(cmap), norm)
    ax.add_image(image)
    image.set_clip_path(ax.patch)
    frame(ax, *W.shape)
    return image


def frame(ax: Axes, Lq: int, Lk: int) -> None:
    """Axes for cells (i, j) around x = j, y = i, the first query on top."""
    ax.set(xlim=(-0.5, Lk - 0.5), ylim=(Lq - 0.5, -0.5))
    ax.set_aspect("equal" if is_square(Lq, Lk) else "auto")
    ax.spines[:].set(color="0.6", linewidth=0.5)


def name_cells(
    ax: Axes,
    rows: Sequence[str] | None,
    columns: Sequence[str] | None,
    cell: tuple[float, float],
    marked: Collection[int] = (),
) -> None:
    """Label the rows and the columns of framed axes, whose cells have this height and width in points."""
    from harken.plot.ticks import label

    Lk, Lq = round(ax.get_xlim()[1] + 0.5), round(ax.get_ylim()[0] + 0.5)
    label(ax, "x", Lk, columns, cell[1], marked)
    label(ax, "y", Lq, rows, cell[0], marked)


def write_values(ax: Axes, image: Cells, W: Array, size: float) -> None:
    """Each number in its cell, white on dark colours."""
    colors = np.asarray(image.cmap(np.asarray(image.norm(W))))
    light = colors[..., :3] @ (0.299, 0.587, 0.114) > 0.55
    for (i, j), x in np.ndenumerate(W):
        if abs(x) >= 0.005 and np.isfinite(x):
            text = f"{x:.2f}" if abs(x) < 9.995 else f"{x:.3g}"
            color = "0.15" if light[i, j] else "white"
            ax.text(j, i, text, ha="center", va="center", fontsize=size, color=color, clip_on=True)


def add_colorbar(ax: Axes | list[Axes], image: ScalarMappable, name: str, beyond: bool = False) -> None:
    """The scale beside one or several axes, pointed where there are numbers `beyond` its end."""
    from matplotlib.ticker import MaxNLocator
    from mpl_toolkits.axes_grid1 import make_axes_locatable  # type: ignore[import-untyped]

    first = ax[0] if isinstance(ax, list) else ax
    count = min(max(int(room(first)[1] / 24), 1), 5)
    place: dict[str, Any] = {"ax": ax, "pad": 0.02, "aspect": 30}
    if not isinstance(ax, list):  # as high as the axes, whatever becomes of their shape
        free = first.get_figure(root=True).get_layout_engine() is None  # type: ignore[union-attr]
        beside = make_axes_locatable(ax).append_axes("right", "3%", "2%") if free else None
        place = {"cax": ax.inset_axes((1.02, 0, 0.03, 1)) if beside is None else beside}
    extend: Literal["max", "neither"] = "max" if beyond else "neither"
    bar = first.figure.colorbar(image, ticks=MaxNLocator(count), extend=extend, extendfrac=0.02, **place)
    bar.set_label(name, fontsize=TEXT)
    bar.ax.tick_params(labelsize=8, length=2, width=0.5)
    bar.outline.set_visible(False)
