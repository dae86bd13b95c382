"""Arrays on disk: opened as memory maps, written under a temporary name, renamed when they are complete."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def open_array(text: str) -> Array:
    """The array named by `FILE.npy`, or by `FILE.npz:KEY`."""
    path, key = split_name(text)
    if not is_npz(path):
        if key is not None:
            raise ValueError(f"{path} is not an .npz file, so {key!r} cannot be chosen from it")
        return ready(_map_file(path), text)
    names = keys_of(path)
    if key is None and len(names) == 1:
        key = names[0]
    if key is None:
        raise ValueError(f"{path} holds several arrays ({', '.join(names)}): choose one, as in {path}:{names[0]}")
    if key not in names:
        raise ValueError(f"{path} has no array {key!r}, it has {', '.join(names)}")
    return ready(_map_member(path, f"{key}.npy"), text)


def split_name(text: str) -> tuple[Path, str | None]:
    """`FILE:KEY` as (FILE, KEY), `FILE` as (FILE, None); the file must exist."""
    head, colon, key = text.rpartition(":")
    if colon and not os.path.exists(text) and os.path.exists(head):
        text, chosen = head, key
    else:
        chosen = None
    if os.path.isdir(text):
        raise ValueError(f"{text} is a folder, not an array")
    if not os.path.exists(text):
        raise ValueError(f"{text}: no such file")
    return Path(text), chosen or None


def is_npz(path: Path) -> bool:
    """Whether the file begins as a zip archive does."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def keys_of(path: Path) -> list[str]:
    """The names of the arrays in an .npz file."""
    with _archive(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if not names:
        raise ValueError(f"{path} holds no array")
    return names


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is not a whole .npz file: {error}") from None


def _map_file(path: Path) -> Array:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a whole .npy file of numbers: {error}") from None


def _map_member(path: Path, name: str) -> Array:
    """A stored member of an .npz file is mapped where it lies in the file; a compressed one is read."""
    with _archive(path) as archive:
        member = archive.getinfo(name)
        with archive.open(member) as file:
            try:
                version = np.lib.format.read_magic(file)
                old, new = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
                shape, fortran, dtype = (old if version == (1, 0) else new)(file)
            except ValueError as error:
                raise ValueError(f"{path}:{name.removesuffix('.npy')} is not an array of numbers: {error}") from None
            begin = file.tell()
        if member.compress_type != zipfile.ZIP_STORED or 0 in shape or dtype.hasobject:
            with archive.open(member) as file:
                array: Array = np.lib.format.read_array(file, allow_pickle=False)
            return array
    with path.open(
        "rb"
    ) as raw:  # a local header is 30 bytes, a name and an extra field; its last four bytes are their lengths
        raw.seek(member.header_offset)
        extra = sum(struct.unpack("<26xHH", raw.read(30)))
    offset = member.header_offset + 30 + extra + begin
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")


def ready(array: Array, name: str) -> Array:
    """A plain view in the processor's byte order; two nameless bytes are bfloat16, the way `numpy.save` writes it."""
    if array.dtype == np.dtype("V2"):
        try:
            import ml_dtypes
        except ImportError:
            raise ValueError(f"{name} looks like bfloat16, which needs ml_dtypes: pip install ml_dtypes") from None
        array = array.view(ml_dtypes.bfloat16)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.asarray(array)


class Outputs:
    """New .npy files, mapped for writing; they get their names when the block ends well, and vanish if it does not."""

    def __init__(self) -> None:
        self.made: list[tuple[Path, Path]] = []

    def __enter__(self) -> Outputs:
        return self

    def new(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A zero-filled array of this shape and type, to become the file `name`."""
        path = Path(name)
        if path.suffix != ".npy":
            raise ValueError(f"{name}: the output is an .npy file, name it so")
        if not path.parent.is_dir():
            raise ValueError(f"{name}: there is no folder {path.parent}")
        if any(path.resolve() == other.resolve() for other, _ in self.made):
            raise ValueError(f"{name} is asked for twice")
        hidden = path.with_name(f".{path.name}.{os.getpid()}.part")
        self.made.append((path, hidden))
        array = np.lib.format.open_memmap(hidden, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a bus error in the middle of the work
            with hidden.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, hidden.stat().st_size)
        return np.asarray(array)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            for path, hidden in self.made:
                hidden.replace(path)
        for _, hidden in self.made:
            hidden.unlink(missing_ok=True)
