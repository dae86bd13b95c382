"""What `attention_stats` found as pictures: where queries look, how widely, and what each key receives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harken.foreign import view
from harken.plot.given import labels_of
from harken.plot.heatmap import add_colorbar, frame, name_cells, paint, scale_of
from harken.plot.sheet import TEXT, needs_matplotlib, new_figure, room, several_axes
from harken.stats import AttentionStats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]

WIDE, FLAT = 560.0, 110.0  # points of a panel, and its height where one head is drawn
LINE = "#31588a"
PANELS = ("top_weights", "entropy", "per_key_mass", "row_weights", "lse")
TITLES = {
    "top_weights": "the largest weights of each query",
    "entropy": "entropy of each query, in nats",
    "per_key_mass": "weight that each key receives",
    "row_weights": "all weights of the chosen queries",
    "lse": "log-sum-exp of each query",
}


def stats(
    stats: AttentionStats,
    labels: Sequence[object] | None = None,
    *,
    ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    show: Sequence[str] | None = None,
    title: str | None = None,
) -> NDArray[Any]:
    """Draw what `harken.attention_stats` found, a panel for each answer that it holds.

    The top keys are points, query downwards and key to the right, the darker the more; of all heads the largest lies on
    top. Entropies, masses and lse are a line for one head, and for more a map with a row for each head. The chosen
    queries are a map with a row for each, those of the first head first.

    Parameters
    ----------
    stats : AttentionStats
    labels : sequence of labels, optional
        What stands along each axis of queries or keys that is as long as this; by default numbers.
    ax : matplotlib.axes.Axes or as many as there are panels, optional
        Where to draw; by default one below the other in a figure of its own.
    show : sequence of str, optional
        Which panels, of "top_weights", "entropy", "per_key_mass", "row_weights" and "lse"; by default all that `stats`
        holds, and lse only where it holds nothing else.
    title : str, optional

    Returns
    -------
    ndarray of matplotlib.axes.Axes
        One for each panel, in the order of `show`.

    Raises
    ------
    TypeError, ValueError
        `stats` is something else or does not hold what is to be shown; no axis is as long as `labels`.
    ImportError
        matplotlib is not installed: `pip install 'harken[plot]'`.

    Examples
    --------
    >>> import numpy as np, harken
    >>> q, k = np.random.default_rng(0).standard_normal((2, 4, 300, 64))
    >>> found = harken.attention_stats(q, k, causal=True, top_k=3, entropy=True)
    >>> [ax.get_title() for ax in harken.plot.stats(found)]
    ['the largest weights of each query, of 4 heads', 'entropy of each query, in nats']
    """
    needs_matplotlib()
    if not isinstance(stats, AttentionStats):
        raise TypeError(f"stats is a {type(stats).__name__}: wanted what harken.attention_stats gives")
    held = [name for name in PANELS if getattr(stats, name) is not None]
    names = chosen(show, held)
    arrays = {name: rows_of(stats, name) for name in names}
    keys = keys_of(stats)
    long = {name: spans(name, array, keys) for name, array in arrays.items()}
    if labels is not None:
        labels = list(labels) if not isinstance(labels, (str, bytes)) else labels
        if len(labels) not in {n for both in long.values() for n in both}:
            lengths = " or ".join(str(n) for n in sorted({n for _, n in long.values()}))
            raise ValueError(f"labels are {len(labels)}: wanted {lengths}, as many as there are queries or keys")
    heights = {name: height_of(name, array, long[name]) for name, array in arrays.items()}
    if ax is None:
        panels = stacked(list(heights.values()), 0 if title is None else 20)
        if title is not None:
            panels[0].figure.suptitle(title, fontsize=TEXT + 2)
    else:
        panels = several_axes(ax, len(names), "panels")
    count = 1 if stats.row_weights is None else int(stats.row_weights.shape[-2])
    for name, panel in zip(names, panels, strict=True):
        if name == "top_weights":
            points(panel, arrays[name], flattened(stats.top_indices, 2), long[name], labels)
        elif len(arrays[name]) == 1 and name != "row_weights":
            line(panel, arrays[name][0], labels)
        else:
            field(panel, name, arrays[name], labels, count)
        panel.set_xlabel("query" if name in ("entropy", "lse") else "key", fontsize=TEXT)
        panel.set_title(heading(name, arrays[name], title if ax is not None else None), fontsize=TEXT + 1)
    return np.array(panels, object)


def chosen(show: Any, held: list[str]) -> list[str]:
    """The panels to draw."""
    if show is None:
        return [name for name in held if name != "lse"] or ["lse"]
    names = [show] if isinstance(show, str) else list(show)
    for name in names:
        if name not in PANELS:
            raise ValueError(f"show holds {name!r}: wanted some of {', '.join(PANELS)}")
        if name not in held:
            raise ValueError(f"show holds {name!r}, which stats does not: it holds {', '.join(held)}")
    if not names:
        raise ValueError(f"show is empty: wanted some of {', '.join(held)}")
    return names


def flattened(x: Any, own: int) -> Array:
    """(..., own axes) as (heads, own axes)."""
    array = np.asarray(view("stats", x))
    return array.reshape(-1, *array.shape[array.ndim - own :])


def rows_of(stats: AttentionStats, name: str) -> Array:
    """(heads, L), for the top keys (heads, Lq, top_k), for chosen queries (heads x queries, Lk)."""
    array = flattened(getattr(stats, name), 2 if name == "top_weights" else 1)
    if array.size == 0:
        raise ValueError(f"{name} has shape {np.shape(getattr(stats, name))}: wanted at least one of each to draw")
    return array


def keys_of(stats: AttentionStats) -> int:
    """How many keys there are, as far as can be told."""
    if stats.per_key_mass is not None:
        return int(stats.per_key_mass.shape[-1])
    if stats.row_weights is not None:
        return int(stats.row_weights.shape[-1])
    if stats.top_indices is None:
        return 0
    return max(int(np.max(np.asarray(view("stats", stats.top_indices)), initial=0)) + 1, 1)


def spans(name: str, array: Array, keys: int) -> tuple[int, int]:
    """How many cells are drawn downwards, and how many to the right."""
    return (array.shape[1], keys) if name == "top_weights" else (array.shape[0], array.shape[1])


def height_of(name: str, array: Array, long: tuple[int, int]) -> float:
    """Of a panel, in points."""
    if name == "top_weights":
        return min(max(WIDE * long[0] / long[1], FLAT), WIDE)
    return FLAT if len(array) == 1 and name != "row_weights" else min(max(11.0 * len(array), 40), 360)


def stacked(heights: list[float], above: float) -> list[Axes]:
    """Axes one below the other, each of about its height."""
    figure = new_figure(WIDE + 110, sum(heights) + 56 * len(heights) + above)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    return [figure.add_subplot(grid[n, 0]) for n in range(len(heights))]


def heading(name: str, array: Array, title: str | None) -> str:
    several = f", of {len(array)} heads" if name == "top_weights" and len(array) > 1 else ""
    return f"{f'{title}: ' if title else ''}{TITLES[name]}{several}"


def fitting(labels: Any, count: int, what: str) -> list[str] | None:
    """The labels, if they are for an axis of this length."""
    return labels_of("labels", labels, count, what) if labels is not None and len(labels) == count else None


def points(ax: Axes, weights: Array, keys: Array, long: tuple[int, int], labels: Any) -> None:
    """The top keys of each query, the largest weights on top."""
    from matplotlib.colors import LinearSegmentedColormap

    from harken.plot.image import PAPER

    Lq, Lk = long
    frame(ax, Lq, Lk)
    ax.set_aspect("auto")
    name_both(ax, fitting(labels, Lq, "queries"), fitting(labels, Lk, "keys"))
    there = (keys >= 0) & np.isfinite(weights)
    i = np.broadcast_to(np.arange(Lq)[:, None], keys.shape)[there]
    j, w = keys[there], weights[there]
    order = np.argsort(w, kind="stable")
    width, height = room(ax)
    side = min(max(0.8 * min(width / Lk, height / Lq), 1.4), 9.0)
    visible = LinearSegmentedColormap.from_list("ink", PAPER[2:])  # a white point on white is none
    norm = scale_of(w[None] if w.size else np.zeros((1, 1)), 1.0, None)
    dots = ax.scatter(j[order], i[order], s=side**2, c=w[order], marker="s", cmap=visible, norm=norm, linewidths=0)
    dots.set_rasterized(len(w) > 20_000)
    ax.set_ylabel("query", fontsize=TEXT)
    add_colorbar(ax, dots, "weight")


def line(ax: Axes, y: Array, labels: Any) -> None:
    """A number for each query or key, as steps up from 0."""
    from harken.plot.ticks import label

    L = len(y)
    known = np.where(np.isfinite(y), y, np.nan)
    ax.stairs(known, np.arange(L + 1) - 0.5, baseline=0, fill=True, color=LINE)
    ax.set_xlim(-0.5, L - 0.5)
    label(ax, "x", L, fitting(labels, L, "queries or keys"), room(ax)[0] / L)
    ax.tick_params(axis="y", labelsize=8, length=2, width=0.5, color="0.4")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color="0.6", linewidth=0.5)


def field(ax: Axes, name: str, array: Array, labels: Any, chosen: int) -> None:
    """A row of cells for each head, or for each of the `chosen` queries of each head."""
    from matplotlib.colors import Normalize

    finite = array[np.isfinite(array)]
    span = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    norm = Normalize(*span) if name == "lse" else scale_of(array, 1.0, None)
    image = paint(ax, array, norm, None)
    ax.set_aspect("auto")
    rows: list[str] | None = None
    ax.set_ylabel("head", fontsize=TEXT)
    if name == "row_weights":
        several = len(array) > chosen
        rows = [f"{n // chosen}, {n % chosen}" if several else str(n) for n in range(len(array))]
        ax.set_ylabel("head, query" if several else "query", fontsize=TEXT)
    name_both(ax, rows, fitting(labels, array.shape[1], "queries or keys"))
    add_colorbar(ax, image, {"entropy": "nats", "lse": "lse"}.get(name, "weight"))


def name_both(ax: Axes, rows: list[str] | None, columns: list[str] | None) -> None:
    """Label both sides of framed axes."""
    width, height = room(ax)
    Lk, Lq = round(ax.get_xlim()[1] + 0.5), round(ax.get_ylim()[0] + 0.5)
    name_cells(ax, rows, columns, (height / Lq, width / Lk))
