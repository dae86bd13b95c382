"""`python -m harken onnx`: runs an ONNX model whose attention harken computes, from array files to one .npz file."""

from __future__ import annotations

import argparse
import os
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harken.commands.arrays import Array, open_array


def add(commands: Any) -> None:
    """Add the sub-command and its arguments."""
    parser = commands.add_parser(
        "onnx",
        help="run an ONNX model with harken's attention",
        description=__doc__,
        epilog="Attention, RotaryEmbedding, RMSNormalization and TensorScatter are computed by harken, the other "
        "operators by the reference evaluator of the package onnx. A FILE is FILE.npy or FILE.npz:KEY.",
    )
    parser.set_defaults(run=run)
    arg = parser.add_argument
    arg("model", metavar="MODEL.onnx", help="the model; data that it keeps in other files lie beside it")
    arg("--input", nargs="+", action="extend", default=[], metavar="NAME=FILE", help="an input of the model")
    arg("-o", "--output", required=True, metavar="OUT.npz", help="where the outputs of the model go, by their names")
    arg("--backend", metavar="NAME", help="the instruction set to use (see info)")


def run(args: argparse.Namespace) -> None:
    """Load and check, compute, and write a file that appears when it is complete."""
    import harken

    begun = time.perf_counter()
    output = Path(args.output)
    if output.suffix != ".npz":
        raise ValueError(f"{output}: the output is an .npz file, name it so")
    if not output.parent.is_dir():
        raise ValueError(f"{output}: there is no folder {output.parent}")
    if args.backend:
        harken.set_backend(args.backend)
    evaluator = load(args.model)
    feed = inputs(evaluator.proto_.graph, args.model, args.input)
    names = list(evaluator.output_names)
    try:
        results = dict(zip(names, evaluator.run(None, feed), strict=True))
    except MemoryError:
        raise
    except Exception as error:  # any operator's, of any kind
        raise RuntimeError(f"{args.model}: {why(error)}") from error
    for name, result in results.items():
        if not isinstance(result, np.ndarray):
            raise ValueError(f"{args.model}: the output {name!r} is a {type(result).__name__}, which is no array")
    save(output, results)
    print(f"{output}: {len(results)} array{'s' * (len(results) != 1)} in {time.perf_counter() - begun:.3g} s")
    for name, result in results.items():
        print(f"{name}: {result.shape} {result.dtype}")


def load(path: str) -> Any:
    """The evaluator of the model in a file, with harken's operators, also in the functions of the model."""
    try:
        import harken.onnx
    except ModuleNotFoundError as error:
        raise RuntimeError(error) from None
    import onnx
    from onnx.inliner import inline_local_functions
    from onnx.reference import ReferenceEvaluator

    try:
        model = onnx.load(path)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of protobuf, or of onnx about the files beside it
        raise ValueError(f"{path} is no ONNX model that can be read: {error}") from error
    if not model.graph.output:
        raise ValueError(f"{path} is no ONNX model: it has no outputs")
    try:
        return ReferenceEvaluator(inline_local_functions(model), new_ops=harken.onnx.OPS)
    except Exception as error:  # an operator that the evaluator does not have, of a version that it does not know
        raise RuntimeError(f"{path}: {why(error)}") from error


def inputs(graph: Any, path: str, pairs: list[str]) -> dict[str, Array]:
    """The inputs by their names: all that the model needs, each of the type and shape that it wants."""
    wanted = {value.name: value.type.tensor_type for value in graph.input}
    given: dict[str, Array] = {}
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not equals:
            raise ValueError(f"--input takes NAME=FILE, not {pair}")
        if name not in wanted:
            raise ValueError(f"{path} has no input {name!r}, it has {', '.join(map(repr, wanted)) or 'none'}")
        if name in given:
            raise ValueError(f"the input {name!r} is given twice")
        given[name] = fitting(name, open_array(file), wanted[name])
    default = {value.name for value in graph.initializer}
    if missing := [name for name in wanted if name not in given and name not in default]:
        name = missing[0]
        raise ValueError(f"{path} needs the input {name!r}, {described(wanted[name])}: give --input {name}=FILE.npy")
    return given


def fitting(name: str, array: Array, wanted: Any) -> Array:
    """The array, if its type and shape are what the model wants."""
    from onnx.helper import tensor_dtype_to_np_dtype

    dtype = tensor_dtype_to_np_dtype(wanted.elem_type) if wanted.elem_type else array.dtype
    shape = [n.dim_value if n.HasField("dim_value") else None for n in wanted.shape.dim]
    fits = not wanted.HasField("shape") or (
        len(shape) == array.ndim and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    )
    if array.dtype != dtype or not fits:
        raise ValueError(f"the input {name!r} is {array.dtype} {array.shape}, the model wants {described(wanted)}")
    return array


def described(wanted: Any) -> str:
    """The type and shape of an input in words, such as float32 (B, 4, L, 8)."""
    from onnx.helper import tensor_dtype_to_np_dtype

    dtype = str(tensor_dtype_to_np_dtype(wanted.elem_type)) if wanted.elem_type else "an array"
    axes = [str(n.dim_value) if n.HasField("dim_value") else n.dim_param or "?" for n in wanted.shape.dim]
    return f"{dtype} ({', '.join(axes)}{',' * (len(axes) == 1)})" if wanted.HasField("shape") else dtype


def why(error: BaseException) -> str:
    """The message of an error; of one that only says which operator failed, that of its cause, too."""
    cause = f": {why(error.__cause__)}" if error.__cause__ else ""
    return f"{error or type(error).__name__}{cause}"


def save(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an .npz file under another name, which it loses when it is complete."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(hidden, "w") as archive:
            for name, array in arrays.items():  # np.savez has keywords of its own that a name might be
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)
