"""The arrays of a .keras or .weights.h5 file, layer by layer, each with its name and what the file says of it."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Found = tuple[str, str | None, list[Array], Mapping[str, Any]]

SUFFIXES = (".keras", ".h5")

HEADS = ("query_dense", "key_dense", "gate_dense", "value_dense", "output_dense")
PARTS = ("cell", "forward_layer", "backward_layer", *HEADS, *(f"_{part}" for part in HEADS))
SKIPPED = ("optimizer", "seed_generator")


def read(path: str | os.PathLike[str], kinds: Collection[str]) -> Iterator[Found]:
    """(name, class or None, arrays as `get_weights()` orders them, arguments) of each layer that has arrays.

    A group of the file with a member "vars" is a layer, whose other members are its attributes; one without is a list,
    whose members are named by their class and a number: "layers/dense_1/vars/0". A layer's own name is an attribute of
    "vars". Arguments are those of config.json in a .keras file; a .weights.h5 file has none.
    """
    file = Path(path)
    try:
        h5py = importlib.import_module("h5py")
    except ImportError:
        raise ImportError(f"{file.name} needs the package h5py: pip install h5py") from None
    source: Any = file
    configs: dict[str, Mapping[str, Any]] = {}
    if file.suffix == ".keras":
        with zipfile.ZipFile(file) as archive:
            configs = dict(_configs(json.loads(archive.read("config.json"))))
            source = io.BytesIO(archive.read("model.weights.h5"))
    by_key = {_key(kind): kind for kind in kinds}
    with h5py.File(source, "r") as root:
        if "layer_names" in root.attrs or "model_weights" in root:
            raise ValueError(f"{file.name} is of Keras 2: wanted a .keras or .weights.h5 file, as Keras 3 saves them")
        yield from _layers(_inside(root, h5py), "", by_key, configs)


def members(arrays: list[Array]) -> dict[str, Array]:
    """The arrays of a layer of an unknown class, under the names that they have in a file."""
    return {f"vars.{n}": array for n, array in enumerate(arrays)}


def _inside(group: Any, h5py: Any) -> dict[str, Any]:
    """A group as dictionaries: "vars" is (its layer's name, its arrays)."""
    inside: dict[str, Any] = {}
    for key, member in _members(group, h5py):
        if key == "vars":
            numbered = sorted(_members(member, h5py), key=lambda item: int(item[0]))
            inside[key] = member.attrs.get("name"), [_array(dataset) for _, dataset in numbered]
        elif isinstance(member, h5py.Group) and key not in SKIPPED:
            inside[key] = _inside(member, h5py)
    return inside


def _members(group: Any, h5py: Any) -> Iterator[tuple[str, Any]]:
    """What lies in the group itself; links that lead elsewhere are a mistake."""
    for key in group:
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise ValueError(f"{group.name}/{key} is a link to something else: wanted it in the file itself")
        yield key, group[key]


def _array(dataset: Any) -> Array:
    if dataset.external:
        raise ValueError(f"{dataset.name} lies in another file: wanted it in the file itself")
    if dataset.attrs.get("dtype") == "bfloat16":  # the upper halves of float32
        wide: Array = dataset[()].view(np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32)
    return np.asarray(dataset[()])


def _layers(
    group: dict[str, Any], prefix: str, kinds: Mapping[str, str], configs: Mapping[str, Mapping[str, Any]]
) -> Iterator[Found]:
    """The layers among the members of a group."""
    listed = "vars" not in group
    for key, member in group.items():
        if key == "vars":
            continue
        if "vars" not in member:  # a list, of which `layers` is that of a model
            yield from _layers(member, prefix if key == "layers" else f"{prefix}{key}.", kinds, configs)
            continue
        own, arrays = member["vars"]
        name = prefix + (own or key if listed else key)
        kind = kinds.get(re.sub(r"_\d+$", "", key)) if listed else None
        if kind is not None:
            yield name, kind, _gathered(member), configs.get(name, {})
            continue
        if arrays:
            yield name, None, arrays, {}
        yield from _layers(member, f"{name}.", kinds, configs)


def _gathered(layer: dict[str, Any]) -> list[Array]:
    """The arrays of a layer and of those that it consists of, in the order of `get_weights()`."""
    arrays = list(layer["vars"][1])
    for part in PARTS:
        if part in layer:
            arrays += _gathered(layer[part])
    return arrays


def _key(kind: str) -> str:
    """The name that Keras makes of a class: GroupedQueryAttention is grouped_query_attention, LSTM is lstm."""
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", kind)).lower()


def _configs(model: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The arguments of each layer of a model, by the names that they have in the file."""
    for layer in model.get("config", {}).get("layers", ()):
        config = layer.get("config", {})
        name = prefix + str(config.get("name", layer.get("name")))
        yield name, config
        yield from _configs(layer, f"{name}.")
