"""What a picture is drawn on: the axes that are given, or a figure of its own that no window knows, and its file."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harken.foreign import view

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]

POINTS = 72  # to the inch
DPI = 150
TEXT = 9.0  # points, of titles and of the names of axes


def needs_matplotlib() -> None:
    """Is it there?"""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("harken.plot draws with matplotlib, which is not here: pip install 'harken[plot]'") from error


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / POINTS, height / POINTS), dpi=DPI, layout="compressed")
    FigureCanvasAgg(figure)
    return figure


def checked_axes(ax: Any) -> Axes:
    """The axes that were given."""
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        raise TypeError(f"ax is a {type(ax).__name__}: wanted the Axes to draw on, or None for a figure of its own")
    return ax


def several_axes(ax: Any, count: int, what: str) -> list[Axes]:
    """As many axes as there are panels, from an array or list of them, or from one."""
    given = [checked_axes(one) for one in np.ravel(np.asarray(ax, object))]
    if len(given) != count:
        raise ValueError(f"ax holds {len(given)} Axes: wanted {count}, one for each of the {what}")
    return given


def room(ax: Axes) -> tuple[float, float]:
    """Width and height of axes in points."""
    box = ax.get_window_extent()
    scale = POINTS / ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    return box.width * scale, box.height * scale


def numbers(name: str, x: Any, axes: str) -> Array:
    """Real numbers with as many axes as `axes` names, as float32 or float64."""
    given = np.asarray(view(name, x))
    wanted = axes.count(",") + 1
    if given.ndim != wanted:
        more = f"; choose from the leading axes, as in {name}[0]" if given.ndim > wanted else ""
        raise ValueError(f"{name} has shape {given.shape}: wanted ({axes}){more}")
    if given.dtype.kind not in "fiub" and given.dtype.name != "bfloat16":
        raise TypeError(f"{name} is {given.dtype}: wanted real numbers")
    if given.size == 0:
        raise ValueError(f"{name} has shape {given.shape}: wanted ({axes}) with at least one of each to draw")
    return given if given.dtype in (np.float32, np.float64) else given.astype(np.float32)


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure into a file of the kind that its name says, which appears when it is complete or not at all."""
    path = Path(path)
    kind = path.suffix[1:].lower()
    kinds = figure.canvas.get_supported_filetypes()
    if kind not in kinds:
        raise ValueError(f"{path}: wanted a name that ends in .png, .pdf, .svg, or one of {', '.join(sorted(kinds))}")
    hidden = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # one that the font lacks is drawn as a box
            figure.savefig(hidden, format=kind)
        hidden.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):
            hidden.unlink()
