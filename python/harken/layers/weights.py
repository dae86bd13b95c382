"""Parameters from a file: a dictionary of arrays by name, from .safetensors, .npz, .keras or .weights.h5."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """All arrays of a file by name; nothing in it is executed."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"state is a {type(path).__name__}: wanted a mapping of names to arrays, or a path")
    file = Path(path)
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    if file.suffix == ".safetensors":
        return _safetensors(file)
    if file.suffix in (".keras", ".h5"):
        from harken.layers.keras import read_keras

        return read_keras(file)
    raise ValueError(f"{file.name}: wanted a file that ends in .safetensors, .npz, .keras or .weights.h5")


def _safetensors(file: Path) -> dict[str, NDArray[Any]]:
    try:
        from safetensors.numpy import load_file
    except ImportError:
        raise ImportError(f"{file.name} needs the package safetensors: pip install safetensors") from None
    try:
        return dict(load_file(file))
    except TypeError as error:  # which is how NumPy answers to the word bfloat16
        if "bfloat16" not in str(error):
            raise
        raise ImportError(
            f"{file.name} holds bfloat16, which needs the package ml_dtypes: pip install ml_dtypes"
        ) from error
