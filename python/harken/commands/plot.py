"""`python -m harken plot`: attention weights, or a boolean mask, from an array file into a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from harken.commands.arrays import Array, open_array


def add(commands: Any) -> None:
    """Add the sub-command and its arguments."""
    parser = commands.add_parser(
        "plot",
        help="a picture of attention weights or of a mask",
        description=__doc__,
        epilog="A matrix is one map, (H, Lq, Lk) a map for each head. A file of labels has one on each line.",
    )
    parser.set_defaults(run=run)
    arg = parser.add_argument
    arg("file", metavar="FILE", help="weights or a boolean mask, (..., H, Lq, Lk): FILE.npy or FILE.npz:KEY")
    arg("-o", "--output", required=True, metavar="OUT.png", help="where the picture goes: .png, .pdf, .svg and others")
    arg("--batch", nargs="+", type=int, metavar="N", help="which entry, a number for each axis before the heads")
    arg("--heads", nargs="+", type=int, metavar="H", help="which heads to draw (default: all)")
    arg("--q-labels", metavar="FILE", help="what stands beside the queries")
    arg("--k-labels", metavar="FILE", help="what stands below the keys")
    arg("--title", metavar="TEXT", help="what stands above")
    arg("--power", type=float, metavar="P", help="colours stand for weight ** P: 0.5 shows small weights (default: 1)")
    arg("--tiles", nargs="+", type=int, metavar="N", help="of a mask: mark tiles of N queries and keys, or of N x M")


def run(args: argparse.Namespace) -> None:
    """Read, choose, draw, and write a file that appears when it is complete."""
    try:
        from harken import plot
        from harken.plot.sheet import needs_matplotlib, save

        needs_matplotlib()
    except ImportError as error:
        raise RuntimeError(error) from None
    array, heads = chosen(open_array(args.file), args.file, args.batch, args.heads)
    labels: dict[str, Any] = {"q_labels": lines_of(args.q_labels), "k_labels": lines_of(args.k_labels)}
    options: dict[str, Any] = {**labels, "title": args.title}
    if array.dtype == bool:
        if args.power is not None:
            raise ValueError(f"{args.file} is a mask, which has no --power")
        if args.tiles and len(args.tiles) > 2:
            raise ValueError(f"--tiles takes one size or two, not {len(args.tiles)}")
        tiles = None if not args.tiles else (args.tiles[0], args.tiles[-1])
        axes = plot.mask(array, tiles=tiles, **options)
    else:
        if args.tiles:
            raise ValueError(f"{args.file} is {array.dtype}: --tiles are those of a boolean mask")
        options["power"] = 1.0 if args.power is None else args.power
        if heads is None:
            axes = plot.heatmap(array, **options)
        else:
            axes = plot.heads(array, names=[f"head {h}" for h in heads], **options)
    save(np.asarray(axes, object).flat[0].figure, args.output)
    print(f"{args.output}: {' x '.join(map(str, array.shape))} {'pairs' if array.dtype == bool else 'weights'}")


def chosen(array: Array, name: str, batch: list[int] | None, heads: list[int] | None) -> tuple[Array, list[int] | None]:
    """(Lq, Lk), or (H, Lq, Lk) and the numbers of its heads: what is to be drawn of (..., H, Lq, Lk)."""
    if array.ndim < 2:
        raise ValueError(f"{name} has shape {array.shape}: wanted (Lq, Lk), (H, Lq, Lk) or (..., H, Lq, Lk)")
    lead = array.shape[:-3]
    entry = [0] * len(lead) if batch is None and all(n == 1 for n in lead) else batch or []
    if len(entry) != len(lead):
        raise ValueError(f"{name} has shape {array.shape}: wanted --batch with {len(lead)} numbers, not {len(entry)}")
    for option, n, count in [("--batch", n, count) for n, count in zip(entry, lead, strict=True)] + [
        ("--heads", h, array.shape[-3] if array.ndim > 2 else 0) for h in heads or []
    ]:
        if not 0 <= n < count:
            raise ValueError(f"{option} has {n}: {name} has shape {array.shape}")
    array = array[tuple(entry)]
    if array.ndim == 2:
        return array, None
    numbers = list(range(len(array))) if heads is None else heads
    array = array if heads is None else array[heads]
    return (array[0], None) if len(numbers) == 1 else (array, numbers)


def lines_of(path: str | None) -> list[str] | None:
    """The lines of a text file."""
    if path is None:
        return None
    try:
        return Path(path).read_text("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
