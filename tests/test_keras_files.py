"""Keras' layers by name and by file, made here without Keras: what is found where, and what is refused, by name."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child import output
from compare import Array
from test_keras_weights import normal, same

from harken import layers
from harken.layers import from_keras, keras


def test_types_stay() -> None:
    for dtype in (np.float16, np.float64):
        state = from_keras("GRU", [np.ones((3, 6), dtype), np.ones((2, 6), dtype), np.ones(6, dtype)])
        assert {array.dtype for array in state.values()} == {np.dtype(dtype)}
        assert list(state) == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]


GIVEN = [normal(3, 8), normal(2, 8), normal(8)]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: from_keras("Dense", [normal(3)]), ValueError,
         "Dense has arrays (3,): wanted (n, m) and, for a bias, (m,)"),
        (lambda: from_keras("Dense", [normal(3, 2), normal(3)]), ValueError, "Dense has arrays (3, 2), (3,): wanted"),
        (lambda: from_keras("Embedding", []), ValueError, "Embedding has arrays none: wanted (n, d)"),
        (lambda: from_keras("GRU", GIVEN), ValueError,
         "GRU has arrays (3, 8), (2, 8), (8,): wanted (n, 3 m), (m, 3 m) and, for a bias, (2, 3 m), or (3 m,) of "
         "reset_after=False"),
        (lambda: from_keras("LSTM", [*GIVEN[:2], normal(1, 8)]), ValueError, "LSTM has arrays (3, 8), (2, 8), (1, 8)"),
        (lambda: from_keras("GRU", [normal(3, 6), normal(2, 6), normal(3, 6)]), ValueError, "GRU has arrays"),
        (lambda: from_keras("LSTM", GIVEN, activation="relu"), ValueError,
         "LSTM has activation='relu': wanted 'tanh', no other is computed here"),
        (lambda: from_keras("GRU", GIVEN, recurrent_activation="hard_sigmoid"), ValueError,
         "GRU has recurrent_activation='hard_sigmoid': wanted 'sigmoid'"),
        (lambda: from_keras("Bidirectional", GIVEN), ValueError,
         "Bidirectional has arrays (3, 8), (2, 8), (8,): wanted those of an LSTM or GRU, twice"),
        (lambda: from_keras("Bidirectional", [normal(3, 2), normal(2, 2)] * 2), ValueError, "Bidirectional has arrays"),
        (lambda: from_keras("Bidirectional", [*GIVEN, *GIVEN], layer={"config": {"activation": "relu"}}), ValueError,
         "LSTM has activation='relu': wanted 'tanh'"),
        (lambda: from_keras("LayerNormalization", [normal(3)]), ValueError,
         "LayerNormalization has arrays (3,): wanted center=False beside gamma alone, scale=False beside beta alone"),
        (lambda: from_keras("LayerNormalization", [normal(3), normal(2)]), ValueError, "wanted gamma and beta of one"),
        (lambda: from_keras("MultiHeadAttention", [normal(6, 2, 4)] * 2 + [normal(6, 2, 3), normal(2, 3, 6)]),
         ValueError, "the heads of keys have 4 channels, of values 3; wanted as many of both"),
        (lambda: from_keras("MultiHeadAttention", [normal(6, 2, 4)] * 3 + [normal(2, 4, 5)]), ValueError,
         "the result has 5 channels, the queries 6; wanted as many of both"),
        (lambda: from_keras("MultiHeadAttention", [normal(6, 2, 4)] * 4, use_gate=True), ValueError,
         "MultiHeadAttention has use_gate=True: wanted False"),
        (lambda: from_keras("SimpleRNN", []), ValueError, "layer is 'SimpleRNN': wanted one of Embedding, Dense, "),
        (lambda: from_keras("Dense"), TypeError, "weights are missing: wanted the arrays of get_weights()"),
        (lambda: from_keras("a.keras", GIVEN), TypeError, "weights and arguments are given beside 'a.keras'"),
        (lambda: from_keras(Path("a.h5"), scale=False), TypeError, "which has its own: wanted them beside a name"),
        (lambda: from_keras(np.ones(3)), TypeError, "wanted one of Embedding, Dense, "),
    ],
)  # fmt: skip
def test_arrays_that_are_no_layers(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def written(file: Path, groups: Mapping[str, tuple[str, list[Array]]]) -> Path:
    """A file as Keras lays it out: the layer's path, its name, its arrays."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(file, "w") as root:
        for path, (name, arrays) in {"": ("model", []), **groups}.items():
            group = root.require_group(f"{path}/vars")
            group.attrs["name"] = name
            for n, array in enumerate(arrays):
                group[str(n)] = array
    return file


def test_layers_in_a_file(tmp_path: Path) -> None:
    """Members of lists have a class, attributes of a model have none; more than ten arrays stay in order."""
    a, b, many = normal(3, 2), normal(2, 3), [np.full(1, float(n)) for n in range(12)]
    file = written(tmp_path / "a.weights.h5", {
        "layers/dense_12": ("first", [a]),
        "blocks/dense": ("dense_3", [a]),
        "encoder": ("dense_7", [a]),
        "encoder/dense": ("x", [b]),
        "layers/my_layer": ("mine", many),
        "layers/model": ("inner", []),
        "layers/model/layers/embedding": ("words", [a]),
        "optimizer": ("adam", [a]),
        "seed_generator": ("seeds", [np.ones(2, np.uint32)]),
    })  # fmt: skip
    same(from_keras(file), {
        "blocks.dense_3.weight": a.T.copy(), "encoder.vars.0": a, "encoder.dense.vars.0": b, "first.weight": a.T.copy(),
        "inner.words.weight": a, **{f"mine.vars.{n}": array for n, array in enumerate(many)},
    })  # fmt: skip
    assert layers.Embedding(3, 2).load(file, prefix="inner.words.").weight.shape == (3, 2)
    with pytest.raises(ValueError, match="two layers are named 'x': wanted each name once"):
        from_keras(written(tmp_path / "b.h5", {"layers/dense": ("x", [a]), "layers/dense_1": ("x", [a])}))
    with pytest.raises(ValueError, match=re.escape("x (Dense) has arrays (3,): wanted (n, m)")):
        from_keras(written(tmp_path / "c.h5", {"layers/dense": ("x", [normal(3)])}))


def test_files_that_lead_elsewhere(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    for name, link in (("soft", h5py.SoftLink("/vars")), ("external", h5py.ExternalLink("other.h5", "/x"))):
        file = written(tmp_path / f"{name}.h5", {"layers/dense": ("x", [normal(3, 2)])})
        with h5py.File(file, "a") as root:
            root["layers/dense_1"] = link
            root["layers/dense/vars/1"] = link
        with pytest.raises(ValueError, match="is a link to something else: wanted it in the file itself"):
            from_keras(file)
    file = written(tmp_path / "raw.h5", {"layers/dense": ("x", [])})
    with h5py.File(file, "a") as root:
        root.create_dataset("layers/dense/vars/0", (3, 2), "f4", external=[(str(tmp_path / "raw"), 0, 24)])
    with pytest.raises(ValueError, match="lies in another file: wanted it in the file itself"):
        from_keras(file)
    with h5py.File(tmp_path / "old.h5", "w") as root:
        root.require_group("model_weights")
    with pytest.raises(ValueError, match=r"old.h5 is of Keras 2: wanted a .keras or .weights.h5 file"):
        layers.Linear(3, 2).load(tmp_path / "old.h5")


def test_bfloat16_of_keras(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    file, numbers = (
        written(tmp_path / "a.h5", {"layers/embedding": ("x", [])}),
        np.float32([[1, -2.5], [0.15625, 3e38]]),
    )
    numbers.view(np.uint32)[...] &= 0xFFFF0000
    with h5py.File(file, "a") as root:
        root["layers/embedding/vars/0"] = (numbers.view(np.uint32) >> 16).astype(np.uint16).view("V2")
        root["layers/embedding/vars/0"].attrs["dtype"] = "bfloat16"
    same(from_keras(file), {"x.weight": numbers})


def test_h5py_is_named(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["h5py"] = None
from harken.layers import from_keras
try:
    from_keras("a.weights.h5")
except ImportError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "a.weights.h5 needs the package h5py: pip install h5py\n"


def test_keras_is_not_imported() -> None:
    code = "import sys, harken.layers; print({'keras', 'h5py', 'safetensors'} & sys.modules.keys())"
    assert output(code).strip() == "set()"


def test_classes_derived_from_them() -> None:
    class Dense:
        def get_weights(self) -> list[Array]:
            return [normal(3, 2)]

        def get_config(self) -> dict[str, Any]:
            return {}

    class Mine(Dense):
        pass

    assert keras.kind_of(Mine()) == "Dense"
    assert from_keras(Mine())["weight"].shape == (2, 3)
