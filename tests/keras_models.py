"""A program for where Keras is installed: its layers with random weights, what they compute, and a model in files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

RNG = np.random.default_rng(11)


def layers(keras: Any) -> dict[str, tuple[Any, list[Any]]]:
    """Each case with its layer and the inputs of a call."""
    L = keras.layers
    x, y = (RNG.standard_normal((2, n, 6)).astype("float32") for n in (7, 5))
    wide = RNG.standard_normal((2, 5, 9)).astype("float32")
    return {
        "Embedding": (L.Embedding(11, 6, name="table"), [RNG.integers(0, 11, (2, 7)).astype("int32")]),
        "Dense": (L.Dense(4, name="dense_of_my_own"), [x]),
        "Dense plain": (L.Dense(4, use_bias=False), [x]),
        "Conv1D": (L.Conv1D(8, 3, padding="causal", dilation_rate=2, groups=2), [x]),
        "Conv1D plain": (L.Conv1D(4, 4, strides=2, use_bias=False), [x]),
        "LayerNormalization": (L.LayerNormalization(), [x]),
        "LayerNormalization scale": (L.LayerNormalization(center=False), [x]),
        "LayerNormalization center": (L.LayerNormalization(scale=False), [x]),
        "RMSNormalization": (L.RMSNormalization(), [x]),
        "LSTM": (L.LSTM(5, return_sequences=True), [x]),
        "LSTM plain": (L.LSTM(5, return_sequences=True, use_bias=False), [x]),
        "GRU": (L.GRU(5, return_sequences=True), [x]),
        "GRU plain": (L.GRU(5, return_sequences=True, use_bias=False), [x]),
        "GRU before": (L.GRU(5, return_sequences=True, reset_after=False), [x]),
        "Bidirectional LSTM": (L.Bidirectional(L.LSTM(5, return_sequences=True)), [x]),
        "Bidirectional GRU": (L.Bidirectional(L.GRU(4, return_sequences=True, use_bias=False)), [x]),
        "MultiHeadAttention": (L.MultiHeadAttention(2, 4), [x, y]),
        "MultiHeadAttention plain": (L.MultiHeadAttention(3, 2, use_bias=False), [x, y]),
        "MultiHeadAttention across": (L.MultiHeadAttention(2, 3), [x, wide]),
        "GroupedQueryAttention": (L.GroupQueryAttention(4, 4, 2), [x, y]),
        "AdditiveAttention": (L.AdditiveAttention(), [x, y]),
        "AdditiveAttention plain": (L.AdditiveAttention(use_scale=False), [x, y]),
    }


def main(folder: Path) -> None:
    """NAME.w0, ...: the weights; NAME.x0, ...: the inputs; NAME.y: what Keras computes; NAME/...: what is read."""
    import keras

    from harken.layers import from_keras

    found: dict[str, Any] = {}
    outputs = []
    made = layers(keras)
    inputs: dict[int, Any] = {}
    for name, (layer, given) in made.items():
        symbols = [inputs.setdefault(id(x), keras.Input(x.shape[1:], dtype=x.dtype.name)) for x in given]
        together = [symbols] if name.startswith("AdditiveAttention") else symbols
        outputs.append(layer(*together))
        layer.set_weights([RNG.standard_normal(w.shape).astype("float32") for w in layer.get_weights()])
        y = layer([*given]) if name.startswith("AdditiveAttention") else layer(*given)
        found |= {f"{name}.w{n}": w for n, w in enumerate(layer.get_weights())}
        found |= {f"{name}.x{n}": x for n, x in enumerate(given)}
        found[f"{name}.y"] = np.asarray(y)
        found |= {f"{name}/{key}": array for key, array in from_keras(layer).items()}
        found[f"{name}.name"] = np.array(layer.name)
    norm = keras.layers.LayerNormalization(center=False, name="norm")
    dense = keras.layers.Dense(3, name="dense_of_my_own")
    inner = keras.Sequential([keras.Input((7, 4)), norm, dense], name="head")
    outputs.append(inner(outputs[1]))
    model = keras.Model(list(inputs.values()), outputs)
    model.compile("adam", "mse")
    found |= {f"model/{key}": array for key, array in from_keras(model).items()}
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    np.savez(folder / "found.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
