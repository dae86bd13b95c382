"""`python -m harken demo`: a real text attends to itself, and tells what its words attend to, how fast, how exactly."""

from __future__ import annotations

import argparse
import difflib
import math
import time
from collections import defaultdict
from functools import partial
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from harken.commands.pieces import Whole
from harken.commands.plain import numpy_attention
from harken.commands.progress import Progress
from harken.commands.timing import medians, spoken
from harken.commands.words import Floats, meanings, vectors, words_of

DIM = 128
SCORES = 1 << 22  # the comparison with NumPy takes as many queries as give this many scores: NumPy holds them all
SHOWN = 144  # words along a side of the picture
WORD = 0.105  # inches that each has there
PICTURE = "harken-demo.png"


def add(commands: Any) -> None:
    """Add the sub-command and its arguments."""
    parser = commands.add_parser("demo", help="what the words of a text attend to", description=__doc__)
    parser.set_defaults(run=run)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("file", nargs="?", metavar="FILE", help="a UTF-8 text (default: a paragraph that comes along)")
    source.add_argument("--text", metavar="TEXT", help="the text itself")
    parser.add_argument("--words", nargs="+", metavar="WORD", help="the words to show (default: four with relatives)")
    parser.add_argument("--image", metavar="OUT.png", help=f"where the heat map goes (default: {PICTURE})")


def run(args: argparse.Namespace) -> None:
    """Read, make vectors, attend, print, draw."""
    name, text = text_of(args)
    words = words_of(text)
    if not words:
        raise ValueError(f"{name} has no words")
    lower = [word.lower() for word in words]
    chosen = {word: place_of(word, lower) for word in args.words or related(lower)}
    x = vectors(words, DIM)
    scale = 4.5 + 0.7 * math.log(len(words))  # sharper for more words: relatives are not drowned in the crowd
    print(f"{name}: {many(len(words), 'word')}, as vectors of {DIM} numbers: hashed character n-grams and positions")
    made = f"attention(q, k, v, scale={scale:.3g}) {x.shape}, from {len(x):,} x {len(x):,} weights"
    print(f"q = k = v {x.shape} {x.dtype} -> {made}\n")
    tell_weights(lower, x, scale, chosen)
    tell_times(x, scale)
    draw(args.image, words, x, scale, chosen)


def text_of(args: argparse.Namespace) -> tuple[str, str]:
    """What the text is called, and the text."""
    if args.text is not None:
        return "the given text", args.text
    if args.file is None:
        return "the paragraph that comes along", resources.files("harken.commands").joinpath("paragraph.txt").read_text(
            "utf-8"
        )
    try:
        return args.file, Path(args.file).read_text("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{args.file} is not UTF-8 text") from None


def place_of(word: str, lower: list[str]) -> int:
    """Where a word first stands."""
    if word.lower() in lower:
        return lower.index(word.lower())
    near = difflib.get_close_matches(word.lower(), sorted(set(lower)), n=3)
    raise ValueError(f"{word!r} is not in the text" + (f"; near it are {', '.join(near)}" if near else ""))


def related(lower: list[str], most: int = 4) -> list[str]:
    """Words of the beginning of the text that have the closest relatives there, no two of one family."""
    vocabulary = list(dict.fromkeys(word for word in lower[:2048] if len(word) > 3)) or lower[:1]
    table = meanings(vocabulary, DIM)
    likeness = table @ table.T
    np.fill_diagonal(likeness, 0)
    picked: list[int] = []
    for i in np.argsort(-np.sort(likeness, axis=1)[:, -3:].sum(axis=1), kind="stable"):
        if len(picked) < most and likeness[i].max() > 0.3 and all(likeness[i, j] < 0.3 for j in picked):
            picked.append(int(i))
    return [vocabulary[i] for i in sorted(picked)] or vocabulary[:most]


def tell_weights(lower: list[str], x: Floats, scale: float, chosen: dict[str, int]) -> None:
    """For each chosen word the five words that it attends to most, the weights of all places of a word added up."""
    from harken import attention

    weights = attention(x[list(chosen.values())], x, x, scale=scale, return_weights=True)[1]
    places: dict[str, list[int]] = defaultdict(list)
    for place, word in enumerate(lower):
        places[word].append(place)
    rows = {}
    for word, row in zip(chosen, weights, strict=True):
        total = {other: float(row[where].sum()) for other, where in places.items()}
        rows[word] = sorted(total.items(), key=lambda item: -item[1])[:5]
    first = max(len("word"), *map(len, rows))
    second = max(len("attends to"), *(len(other) for row in rows.values() for other, _ in row))
    print(f"{'word':<{first}}  {'attends to':<{second}}  weight")
    for word, row in rows.items():
        for i, (other, weight) in enumerate(row):
            named = f"{word if i == 0 else '':<{first}}  {other:<{second}}"
            times = many(len(places[other]), "time") if len(places[other]) > 1 else ""
            print(f"{named}  {weight:6.1%}  {bar(weight):<24}  {times}".rstrip())
        print()


def bar(part: float, cells: int = 24) -> str:
    """A bar of eighths of a cell."""
    eighths = round(part * cells * 8)
    return "\u2588" * (eighths // 8) + " \u258f\u258e\u258d\u258c\u258b\u258a\u2589"[eighths % 8].strip()


def tell_times(x: Floats, scale: float) -> None:
    """Time and error of harken and of plain NumPy on the same queries, all of them unless the text is long."""
    from harken import attention, get_backend, get_num_threads, reference

    count = len(x)
    rows = min(count, max(1, SCORES // count))
    if rows < count:
        spent = spoken(attend_all(x, scale))
        print(f"all {count:,} queries: {spent}, without an array of {count:,} x {count:,} weights")
    q = x[:rows]
    calls = (partial(attention, q, x, x, scale=scale), partial(numpy_attention, q, x, x, scale))
    exact = reference(q, x, x, scale=scale, dtype=np.float64)
    errors = [float(np.abs(call() - exact).max()) for call in calls]
    ours, theirs = medians(calls, 1.0)
    machine = f"{get_backend()}, {many(get_num_threads(), 'thread')}"
    print(f"{many(rows, 'query')} x {many(count, 'key')} x {DIM} numbers, {machine}, median time:")
    print(f"  harken  {spoken(ours):>8}   largest error against float64: {errors[0]:.1e}")
    print(f"  NumPy   {spoken(theirs):>8}   largest error against float64: {errors[1]:.1e}")
    print(f"NumPy takes {theirs / ours:.1f} times harken's time")


def many(count: int, noun: str) -> str:
    """`many(1, "query")` is "1 query", `many(2000, "query")` is "2,000 queries"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def attend_all(x: Floats, scale: float) -> float:
    """Seconds for every word of a long text to attend to every other, in pieces that show progress."""
    from harken import attention, get_num_threads

    whole = Whole(x, x, x, {"scale": scale})
    pieces = whole.pieces(get_num_threads())
    begun = time.perf_counter()
    with Progress("attend", len(pieces)) as progress:
        for piece in pieces:
            q, k, v, options = whole.arguments(piece)
            attention(q, k, v, **options)
            progress.advance(1)
    return time.perf_counter() - begun


def draw(image: str | None, words: list[str], x: Floats, scale: float, chosen: dict[str, int]) -> None:
    """Write the heat map of the text, or of its first words if it is long, and say where it is."""
    from harken import attention, plot
    from harken.plot.sheet import save

    if find_spec("matplotlib") is None:
        if image:
            raise ValueError(f"{image} needs matplotlib: pip install matplotlib")
        print("no picture: matplotlib is not installed (pip install matplotlib)")
        return
    shown = min(len(words), SHOWN)
    weights = attention(x[:shown], x, x, scale=scale, return_weights=True)[1][:, :shown]
    part = "" if shown == len(words) else f", first {shown} of {len(words):,} words"
    ax = plot.heatmap(
        weights,
        words[:shown],
        words[:shown],
        title=f"what each word attends to{part}",
        side=max(4.2, WORD * shown),
        mark=[place for place in chosen.values() if place < shown],
        power=0.5,
        largest=max(float(np.quantile(weights, 0.998)), 1e-6),
        values=False,
    )
    ax.set(ylabel="this word ...", xlabel="... attends to this word")
    try:
        save(ax.figure, image or PICTURE)
    except OSError as error:
        if image:
            raise
        print(f"no picture: {PICTURE}: {error.strerror}")
        return
    print(f"heat map{part}: {image or PICTURE}")
