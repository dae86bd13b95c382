"""Parameters from a file: a dictionary of arrays by name, from .safetensors or .npz."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """All arrays of a .safetensors or .npz file by name; nothing in either is executed."""
    file = Path(path)
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    if file.suffix == ".safetensors":
        try:
            from safetensors.numpy import load_file
        except ImportError:
            raise ImportError(f"{file.name} needs the package safetensors: pip install safetensors") from None
        return dict(load_file(file))
    raise ValueError(f"{file.name}: wanted a file that ends in .safetensors or .npz")
