"""Keras' layers as states: the arrays of `get_weights()`, named and laid out as the layers here have them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harken.layers.keras_file import SUFFIXES, members, read

Array = NDArray[Any]
State = dict[str, Array]


def from_keras(layer: Any, weights: Sequence[ArrayLike] | None = None, /, **config: Any) -> State:
    """The state of the layer here that computes what a layer of Keras does, for `load`.

    Parameters
    ----------
    layer : a layer or model of Keras, the name of a layer's class, or a path
        Keras itself is not needed for a name, nor for a .keras or .weights.h5 file, which h5py reads.
    weights : sequence of arrays, beside a name
        As `get_weights()` of that layer gives them.
    **config : beside a name
        Keras' own arguments of the layer, where the arrays do not tell: scale=False or center=False of a
        `LayerNormalization` with one array.

    Returns
    -------
    dict of str to array
        In C order, of the types that they had. For a model, and for a file, which is one, every name begins with its
        layer's, and a dot: `load(state, prefix="lstm.")`; `load("model.keras", prefix="lstm.")` does both. Arrays of
        layers that are not in the table keep Keras' numbers: "batch_normalization.vars.0". So do those of which a
        file does not say enough: attributes of a model of one's own, and in .weights.h5 a `LayerNormalization` with
        one array. Give them to this function by the name of their class.

    Raises
    ------
    ValueError
        Arrays of other shapes than the layer's; a layer that computes something else: another activation in an LSTM
        or GRU, a gated attention, heads whose values have another size than their keys.
    ImportError
        A file without the package h5py.

    Notes
    -----
    What is no parameter is told to the layer here, in its own words:

    ================================  =================================================================
    Keras                             harken.layers
    ================================  =================================================================
    Embedding(n, d)                   Embedding(n, d)
    Dense(m)                          Linear(n, m), then the activation
    Conv1D(m, k)                      Conv1D(n, m, k)
    LayerNormalization()              LayerNorm(n, eps=1e-3)
    RMSNormalization()                RMSNorm(n, eps=1e-6)
    LSTM(m), GRU(m)                   LSTM(n, m), GRU(n, m)
    Bidirectional(LSTM(m))            LSTM(n, m, bidirectional=True), the halves beside each other
    MultiHeadAttention(h, d)          MultiHeadAttention(n, h, head_dim=d)
    GroupedQueryAttention(d, h, g)    MultiHeadAttention(n, h, num_kv_heads=g, head_dim=d)
    AdditiveAttention()               AdditiveAttention(n, project=False)
    ================================  =================================================================

    An LSTM of Keras has one bias where PyTorch has two: the second becomes 0. A GRU's `reset_after` is not in its
    state; the gates are put in PyTorch's order, r z n, either way.

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import Linear, from_keras
    >>> kernel, bias = np.ones((3, 2)), np.zeros(2)
    >>> state = from_keras("Dense", [kernel, bias])
    >>> {name: array.shape for name, array in state.items()}
    {'weight': (2, 3), 'bias': (2,)}
    >>> Linear(3, 2).load(state)([1, 2, 3])
    array([6., 6.], dtype=float32)
    """
    named = isinstance(layer, str) and not layer.endswith(SUFFIXES)
    if not named and (weights is not None or config):
        raise TypeError(
            f"weights and arguments are given beside {layer!r}, which has its own: wanted them beside a name"
        )
    if isinstance(layer, str | os.PathLike) and not named:
        return read_keras(layer)
    if named:
        if layer not in READERS:
            raise ValueError(f"layer is {layer!r}: wanted one of {', '.join(READERS)}, or a path")
        if weights is None:
            raise TypeError(f"weights are missing: wanted the arrays of get_weights() of the {layer}")
        return _state(layer, weights, config)
    kind = kind_of(layer)
    if kind is not None:
        return _state(kind, layer.get_weights(), layer.get_config())
    if hasattr(layer, "layers"):
        return _joined(layer.layers)
    raise TypeError(f"layer is {layer!r}: wanted one of {', '.join(READERS)}, a model of them, a name or a path")


def read_keras(path: str | os.PathLike[str]) -> State:
    """All layers of a .keras or .weights.h5 file, each name beginning with its layer's."""
    state: State = {}
    for name, kind, arrays, config in read(path, READERS):
        unclear = kind is None or (kind == "LayerNormalization" and len(arrays) == 1 and not config)
        _add(state, name, members(arrays) if unclear else _state(str(kind), arrays, config, name))
    return state


def kind_of(layer: Any) -> str | None:
    """The class of a layer that can be read, or that it is derived from."""
    if not (hasattr(layer, "get_weights") and hasattr(layer, "get_config")):
        return None
    return next((kind.__name__ for kind in type(layer).__mro__ if kind.__name__ in READERS), None)


def _joined(layers: Sequence[Any]) -> State:
    state: State = {}
    for layer in layers:
        known = kind_of(layer) is not None or hasattr(layer, "layers")
        _add(state, layer.name, from_keras(layer) if known else members(layer.get_weights()))
    return state


def _add(state: State, name: str, more: State) -> None:
    named = {f"{name}.{key}": array for key, array in more.items()}
    if named.keys() & state:
        raise ValueError(f"two layers are named {name!r}: wanted each name once")
    state.update(named)


def _state(kind: str, weights: Sequence[ArrayLike], config: Mapping[str, Any], name: str | None = None) -> State:
    arrays = [np.asarray(array) for array in weights]
    called = kind if name is None else f"{name} ({kind})"
    for option, wanted in ONLY.get(kind, {}).items():
        if (other := config.get(option, wanted)) != wanted:
            raise ValueError(f"{called} has {option}={other!r}: wanted {wanted!r}, no other is computed here")
    reader, shapes = READERS[kind]
    try:
        state = reader(arrays, config)
    except _Misfit as misfit:
        given = ", ".join(str(array.shape) for array in arrays) or "none"
        raise ValueError(f"{called} has arrays {given}: {str(misfit) or f'wanted {shapes}'}") from None
    return {key: np.ascontiguousarray(array) for key, array in state.items()}


class _Misfit(Exception):
    """Arrays that are not a layer's: why, where its shapes alone do not say."""


def _axes(arrays: list[Array], *wanted: tuple[int, ...]) -> None:
    if tuple(array.ndim for array in arrays) not in wanted:
        raise _Misfit


def _embedding(arrays: list[Array], config: Mapping[str, Any]) -> State:
    _axes(arrays, (2,))
    return {"weight": arrays[0]}


def _dense(arrays: list[Array], config: Mapping[str, Any]) -> State:
    _axes(arrays, (2, 1), (2,))
    return {"weight": arrays[0].T} | _bias(arrays)


def _conv(arrays: list[Array], config: Mapping[str, Any]) -> State:
    _axes(arrays, (3, 1), (3,))
    return {"weight": arrays[0].transpose(2, 1, 0)} | _bias(arrays)


def _bias(arrays: list[Array]) -> State:
    if arrays[1:] and arrays[1].shape != arrays[0].shape[-1:]:
        raise _Misfit
    return {"bias": arrays[1]} if arrays[1:] else {}


def _layer_norm(arrays: list[Array], config: Mapping[str, Any]) -> State:
    names = [name for name in ("scale", "center") if config.get(name, True)]
    if len(arrays) == 1 and len(names) == 2:
        raise _Misfit("wanted center=False beside gamma alone, scale=False beside beta alone")
    if len(arrays) != len(names) or len({array.shape for array in arrays}) > 1:
        raise _Misfit
    given = dict(zip(names, arrays, strict=True))
    if list(given) == ["center"]:  # a bias without a weight, which PyTorch has not
        given = {"scale": np.ones_like(arrays[0]), **given}
    return {{"scale": "weight", "center": "bias"}[name]: array for name, array in given.items()}


def _rms_norm(arrays: list[Array], config: Mapping[str, Any]) -> State:
    if len(arrays) != 1:
        raise _Misfit
    return {"weight": arrays[0]}


def _additive(arrays: list[Array], config: Mapping[str, Any]) -> State:
    _axes(arrays, (1,), ())
    return {"w": arrays[0]} if arrays else {}


def _lstm(arrays: list[Array], config: Mapping[str, Any]) -> State:
    """Gates i f c o, which are PyTorch's i f g o."""
    _axes(arrays, (2, 2, 1), (2, 2))
    return _recurrent(arrays, [0, 1, 2, 3])


def _gru(arrays: list[Array], config: Mapping[str, Any]) -> State:
    """Gates z r h, where PyTorch has r z n."""
    _axes(arrays, (2, 2, 2), (2, 2, 1), (2, 2))
    return _recurrent(arrays, [1, 0, 2])


def _recurrent(arrays: list[Array], order: list[int]) -> State:
    kernel, recurrent = arrays[:2]
    H = len(recurrent)
    halves = [len(bias) for bias in arrays[2:] if bias.ndim == 2]
    if halves not in ([], [2]) or any(array.shape[-1] != len(order) * H for array in arrays):
        raise _Misfit
    at = np.concatenate([np.arange(gate * H, (gate + 1) * H) for gate in order])
    state = {"weight_ih_l0": kernel.T[at], "weight_hh_l0": recurrent.T[at]}
    for bias in arrays[2:]:
        both = bias if bias.ndim == 2 else np.stack([bias, np.zeros_like(bias)])
        state |= {"bias_ih_l0": both[0][at], "bias_hh_l0": both[1][at]}
    return state


def _bidirectional(arrays: list[Array], config: Mapping[str, Any]) -> State:
    half = len(arrays) // 2
    if len(arrays) % 2 or half < 2 or arrays[1].ndim != 2 or len(arrays[1]) == 0:
        raise _Misfit
    kind = {4: "LSTM", 3: "GRU"}.get(arrays[1].shape[1] // len(arrays[1]))
    if kind is None:
        raise _Misfit
    inner = config.get("layer")
    inside = inner.get("config", {}) if isinstance(inner, Mapping) else {}
    forward, backward = (_state(kind, part, inside) for part in (arrays[:half], arrays[half:]))
    return forward | {f"{name}_reverse": array for name, array in backward.items()}


def _heads(arrays: list[Array], config: Mapping[str, Any]) -> State:
    """Kernels (E, H, D) of queries, keys and values, (H, D, E) of the result."""
    _axes(arrays, (3, 2, 3, 2, 3, 2, 3, 1), (3, 3, 3, 3))
    step = len(arrays) // 4
    q, k, v, o = arrays[::step]
    if not (q.shape[2] == k.shape[2] == v.shape[2] == o.shape[1] and k.shape[1] == v.shape[1]):
        raise _Misfit(f"the heads of keys have {k.shape[2]} channels, of values {v.shape[2]}; wanted as many of both")
    if o.shape[2] != q.shape[0]:
        raise _Misfit(f"the result has {o.shape[2]} channels, the queries {q.shape[0]}; wanted as many of both")
    rows = [kernel.reshape(len(kernel), -1).T for kernel in (q, k, v)]
    if len(q) == len(k) == len(v):
        state = {"in_proj_weight": np.concatenate(rows)}
    else:
        state = dict(zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), rows, strict=True))
    if step == 2:
        state["in_proj_bias"] = np.concatenate([bias.ravel() for bias in arrays[1:6:2]])
    state["out_proj.weight"] = o.reshape(-1, o.shape[2]).T
    if step == 2:
        state["out_proj.bias"] = arrays[7]
    return state


Reader = Callable[[list[Array], Mapping[str, Any]], State]

HEADS = "kernels (n, h, d), (n, g, d), (n, g, d) and (h, d, n), each with its bias or none"

READERS: dict[str, tuple[Reader, str]] = {
    "Embedding": (_embedding, "(n, d)"),
    "Dense": (_dense, "(n, m) and, for a bias, (m,)"),
    "Conv1D": (_conv, "(k, n, m) and, for a bias, (m,)"),
    "LayerNormalization": (_layer_norm, "gamma and beta of one shape, or one of them for center=False or scale=False"),
    "RMSNormalization": (_rms_norm, "one"),
    "LSTM": (_lstm, "(n, 4 m), (m, 4 m) and, for a bias, (4 m,)"),
    "GRU": (_gru, "(n, 3 m), (m, 3 m) and, for a bias, (2, 3 m), or (3 m,) of reset_after=False"),
    "Bidirectional": (_bidirectional, "those of an LSTM or GRU, twice"),
    "MultiHeadAttention": (_heads, HEADS),
    "GroupedQueryAttention": (_heads, HEADS),
    "GroupQueryAttention": (_heads, HEADS),
    "AdditiveAttention": (_additive, "(n,), or none for use_scale=False"),
}
"""What can be read: how, and which arrays it has."""

TANH = {"activation": "tanh", "recurrent_activation": "sigmoid"}
ONLY: dict[str, dict[str, Any]] = {
    "LSTM": TANH,
    "GRU": TANH,
    "LayerNormalization": {"rms_scaling": False},
    "MultiHeadAttention": {"use_gate": False},
    "GroupedQueryAttention": {"use_gate": False},
    "GroupQueryAttention": {"use_gate": False},
}
"""Options that make another function of the same parameters, with the only value that is computed here."""
