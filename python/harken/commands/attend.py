"""`python -m harken attend`: attention from files to a file, memory-mapped on both sides, however long they are."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from harken.commands.arrays import Array, Outputs, is_npz, keys_of, open_array, split_name
from harken.commands.pieces import Whole
from harken.commands.progress import Progress


def add(commands: Any) -> None:
    """Add the sub-command and its arguments."""
    parser = commands.add_parser(
        "attend",
        help="attention from .npy or .npz files to an .npy file",
        description=__doc__,
        epilog="NUMBERS are numbers, or one file. A file is FILE.npy or FILE.npz:KEY.",
    )
    parser.set_defaults(run=run)
    arg = parser.add_argument
    arg("files", nargs="+", metavar="FILE", help="three files, for q, k and v; or one .npz file with q, k and v in it")
    arg("-o", "--output", required=True, metavar="OUT.npy", help="where the result goes")
    arg("--lse", metavar="LSE.npy", help="where the log-sum-exp of every row goes")
    arg("--mask", metavar="FILE", help="boolean, true where a query may look, broadcastable to (..., Hq, Lq, Lk)")
    arg("--bias", metavar="FILE", help="added to the scores, broadcastable to (..., Hq, Lq, Lk)")
    arg("--causal", action="store_true", help="a query sees no key after its own position")
    arg("--window", nargs=2, type=side, metavar=("LEFT", "RIGHT"), help="keys seen on each side, an integer or none")
    arg("--scale", nargs="+", metavar="NUMBERS", help="factor of the scores, for all heads or for each")
    arg("--softcap", type=float, metavar="S", help="squash the scores into (-S, S)")
    arg("--score", choices=("dot", "cosine"), default="dot", help="how a query meets a key (default: dot)")
    arg("--alibi", nargs="+", metavar="NUMBERS", help="a slope for each head: distant keys score less")
    arg("--sinks", nargs="+", metavar="NUMBERS", help="a logit for each head that takes weight and gives nothing")
    arg(
        "--q-start",
        nargs="+",
        metavar="NUMBERS",
        help="position of the first query (default: the last sees the last key)",
    )
    arg("--q-lengths", nargs="+", metavar="NUMBERS", help="how many queries each batch entry has")
    arg("--kv-lengths", nargs="+", metavar="NUMBERS", help="how many keys each batch entry has")
    arg("--head-axis", type=int, choices=(-3, -2), default=-3, help="-3 for (..., H, L, D), -2 for (..., L, H, D)")
    arg("--backend", metavar="NAME", help="the instruction set to use (see info)")
    arg("--threads", type=int, metavar="N", help="how many threads to use")


def side(text: str) -> int | None:
    """One side of a window."""
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither an integer nor none") from None


def numbers(option: str, texts: list[str] | None, kind: type[int] | type[float]) -> Any:
    """The value of an option that takes numbers or one file: None, a number, or an array."""
    if texts is None:
        return None
    if len(texts) == 1 and (".npy" in texts[0] or ".npz" in texts[0]):
        return open_array(texts[0])
    try:
        values = [kind(text) for text in texts]
    except ValueError:
        what = "integers" if kind is int else "numbers"
        raise ValueError(f"{option} takes {what} or one .npy file, not {' '.join(texts)}") from None
    return values[0] if len(values) == 1 else np.array(values)


def inputs(files: list[str]) -> tuple[Array, Array, Array]:
    """q, k and v: from three files, or from the three members of one."""
    if len(files) == 1:
        path, key = split_name(files[0])
        if key is not None or not is_npz(path):
            raise ValueError(
                f"{files[0]} is one array: give three files, for q, k and v, or one .npz that holds all three"
            )
        if missing := [name for name in "qkv" if name not in keys_of(path)]:
            raise ValueError(f"{path} has no {' and no '.join(missing)}, it has {', '.join(keys_of(path))}")
        files = [f"{path}:{name}" for name in "qkv"]
    if len(files) != 3:
        raise ValueError(f"give three files, for q, k and v, or one .npz that holds all three; these are {len(files)}")
    q, k, v = (open_array(name) for name in files)
    return q, k, v


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `harken.attention` that the command line asks for."""
    given = {
        "mask": open_array(args.mask) if args.mask else None,
        "bias": open_array(args.bias) if args.bias else None,
        "causal": args.causal,
        "window": tuple(args.window) if args.window else None,
        "q_start": numbers("--q-start", args.q_start, int),
        "q_lengths": numbers("--q-lengths", args.q_lengths, int),
        "kv_lengths": numbers("--kv-lengths", args.kv_lengths, int),
        "scale": numbers("--scale", args.scale, float),
        "score": args.score,
        "softcap": args.softcap,
        "alibi": numbers("--alibi", args.alibi, float),
        "sinks": numbers("--sinks", args.sinks, float),
        "head_axis": args.head_axis,
        "threads": args.threads,
    }
    return {name: value for name, value in given.items() if value is not None}


def run(args: argparse.Namespace) -> None:
    """Check the whole problem, then compute it piece by piece into files that appear when they are complete."""
    import harken

    begun = time.perf_counter()
    if args.backend:
        harken.set_backend(args.backend)
    whole = Whole(*inputs(args.files), options_of(args))
    harken.explain(whole.q, whole.k, whole.v, **whole.options)  # raises what the call would raise
    shape, dtype, lse_shape, lse_dtype = answer_of(whole)
    pieces = whole.pieces(args.threads or harken.get_num_threads())
    with Outputs() as outputs:
        out = outputs.new(args.output, shape, dtype)
        lse = outputs.new(args.lse, lse_shape, lse_dtype) if args.lse else None
        with Progress("attend", len(pieces)) as progress:
            for piece in pieces:
                q, k, v, options = whole.arguments(piece)
                part = piece.take(out, 3, whole.row_axis(out))
                if lse is None:
                    harken.attention(q, k, v, **options, out=part)
                else:
                    piece.take(lse, 2, -1)[...] = harken.attention(q, k, v, **options, out=part, return_lse=True)[1]
                progress.advance(1)
    print(f"{args.output}: {shape} {dtype} in {time.perf_counter() - begun:.3g} s")
    if args.lse:
        print(f"{args.lse}: {lse_shape} {lse_dtype}")


def answer_of(whole: Whole) -> tuple[tuple[int, ...], np.dtype[Any], tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the result and of its lse, from a call without queries and without keys."""
    import harken

    def none_of(array: Array) -> Array:
        index: list[Any] = [slice(None)] * array.ndim
        index[whole.row_axis(array)] = slice(0, 0)
        nothing: Array = array[tuple(index)]
        return nothing

    head_axis = whole.options["head_axis"]
    out, lse = harken.attention(
        none_of(whole.q), none_of(whole.k), none_of(whole.v), head_axis=head_axis, return_lse=True
    )
    shape = list(out.shape)
    shape[whole.row_axis(out)] = whole.queries
    return tuple(shape), out.dtype, (*lse.shape[:-1], whole.queries), lse.dtype
