"""Parameters go in by PyTorch's names and come out by them; all that does not fit is named and changes nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from compare import Array

from harken import layers
from harken.layers import Layer, Linear, Sequential

RNG = np.random.default_rng(5)


def like(layer: Layer, dtype: Any = np.float64) -> dict[str, Array]:
    """A state of other numbers that fits."""
    return {name: RNG.standard_normal(array.shape).astype(dtype) for name, array in layer.state().items()}


def equal(layer: Layer, state: dict[str, Any]) -> None:
    assert list(layer.state()) == list(state)
    for name, array in layer.state().items():
        assert array.dtype == layer.dtype
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, np.asarray(state[name]).astype(layer.dtype), strict=True)


class Model(Layer):
    """Layers inside of layers, and a parameter of its own."""

    def __init__(self, dtype: Any = np.float32) -> None:
        super().__init__(dtype)
        self.embed = layers.Embedding(5, 4, dtype=dtype)
        self.blocks = Sequential(Linear(4, 4, dtype=dtype), layers.SiLU(dtype=dtype), Linear(4, 3, False, dtype=dtype))
        self.norm = layers.LayerNorm(3, dtype=dtype)
        self.own(gain=np.ones(3))


MODEL = ["gain", "embed.weight", "blocks.0.weight", "blocks.0.bias", "blocks.2.weight", "norm.weight", "norm.bias"]

# Each layer beside PyTorch's, and the names that a state has in both.
PAIRS: dict[str, tuple[Callable[[], Layer], Callable[[Any], Any], list[str]]] = {
    "Linear": (lambda: Linear(3, 2), lambda nn: nn.Linear(3, 2), ["weight", "bias"]),
    "Linear without bias": (lambda: Linear(3, 2, bias=False), lambda nn: nn.Linear(3, 2, bias=False), ["weight"]),
    "Embedding": (lambda: layers.Embedding(7, 3, 1), lambda nn: nn.Embedding(7, 3, 1), ["weight"]),
    "LearnedPositions": (lambda: layers.LearnedPositions(7, 3), lambda nn: nn.Embedding(7, 3), ["weight"]),
    "LayerNorm": (lambda: layers.LayerNorm((2, 3)), lambda nn: nn.LayerNorm((2, 3)), ["weight", "bias"]),
    "LayerNorm without bias": (lambda: layers.LayerNorm(3, bias=False), lambda nn: nn.LayerNorm(3, bias=False),
                               ["weight"]),
    "LayerNorm without any": (lambda: layers.LayerNorm(3, elementwise_affine=False),
                              lambda nn: nn.LayerNorm(3, elementwise_affine=False), []),
    "RMSNorm": (lambda: layers.RMSNorm(3), lambda nn: nn.RMSNorm(3), ["weight"]),
    "Sequential": (lambda: Sequential(Linear(3, 4), layers.ReLU(), Linear(4, 2, bias=False)),
                   lambda nn: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False)),
                   ["0.weight", "0.bias", "2.weight"]),
    "Sequential with gaps": (lambda: Sequential({"0": Linear(3, 4), "3": layers.LayerNorm(4)}),
                             lambda nn: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(), nn.LayerNorm(4)),
                             ["0.weight", "0.bias", "3.weight", "3.bias"]),
    "Sequential with names": (lambda: Sequential(OrderedDict(a=Linear(3, 4), b=Sequential(Linear(4, 4)))),
                              lambda nn: nn.Sequential(OrderedDict(a=nn.Linear(3, 4),
                                                                   b=nn.Sequential(nn.Linear(4, 4)))),
                              ["a.weight", "a.bias", "b.0.weight", "b.0.bias"]),
    "SelfAttention": (lambda: layers.SelfAttention(8), lambda nn: nn.Identity(), []),
}  # fmt: skip


# --- names ---


@pytest.mark.parametrize("name", PAIRS)
def test_names_and_order(name: str) -> None:
    layer, _, names = PAIRS[name]
    assert list(layer().state()) == names


@pytest.mark.parametrize("name", PAIRS)
def test_round_trip_of_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    make, make_theirs, _ = PAIRS[name]
    layer, theirs = make(), make_theirs(torch.nn)
    assert {name: tuple(x.shape) for name, x in theirs.state_dict().items()} == {
        name: x.shape for name, x in layer.state().items()
    }
    layer.load(theirs.state_dict())
    equal(layer, theirs.state_dict())
    for number in ("bfloat16", "float16", "float64"):
        layer.load(theirs.to(getattr(torch, number)).state_dict())
        equal(layer, {name: x.double().numpy() for name, x in theirs.state_dict().items()})
    given = like(layer, layer.dtype)
    layer.load(given)
    theirs.float().load_state_dict({name: torch.from_numpy(x.copy()) for name, x in layer.state().items()})
    equal(layer, theirs.state_dict())


def test_names_of_inner_layers() -> None:
    model = Model()
    assert list(model.state()) == MODEL
    assert [name for name, _ in model.inner()] == ["embed", "blocks", "norm"]
    assert layers.AdditiveAttention(3, 4, 5, bias=True).state().keys() == {
        "w", "q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias",
    }  # fmt: skip
    assert repr(Linear(3, 2)) == "Linear(weight(2, 3), bias(2,))"
    assert "norm=LayerNorm(weight(3,), bias(3,))" in repr(model)


def test_state_is_the_arrays_themselves() -> None:
    layer = Linear(3, 2)
    layer.state()["bias"][:] = 7
    assert (layer(np.zeros(3, np.float32)) == 7).all()


# --- where parameters come from ---


@pytest.mark.parametrize("source", ["float64", "float32", "float16", "bfloat16", ">f4", "longdouble"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_floating_type(source: str, dtype: str) -> None:
    model = Model(dtype)
    given = like(model, ml_dtypes.bfloat16 if source == "bfloat16" else source)
    assert model.load(given) is model
    equal(model, given)
    given["gain"][:] = 0  # which was copied
    assert (model.gain != 0).all()


def test_any_order_in_memory() -> None:
    layer = Linear(3, 2)
    weight = np.asfortranarray(RNG.standard_normal((4, 6)))[::2, ::2]
    equal(layer.load({"bias": [1, 2], "weight": weight}), {"weight": weight, "bias": np.float32([1, 2])})


@pytest.mark.parametrize("kind", [str, Path])
def test_files(tmp_path: Path, kind: Callable[[Any], Any]) -> None:
    model = Model()
    given = like(model, np.float16)
    np.savez(tmp_path / "a.npz", **given)
    equal(model.load(kind(tmp_path / "a.npz")), given)
    save_file = pytest.importorskip("safetensors.numpy").save_file
    for number in (np.float64, np.float16, ml_dtypes.bfloat16):
        given = like(model, number)
        save_file(given, tmp_path / "a.safetensors")
        equal(model.load(kind(tmp_path / "a.safetensors")), given)
    assert np.load(tmp_path / "a.npz").keys() == given.keys()
    with np.load(tmp_path / "a.npz") as arrays:
        model.load(arrays)


def test_prefix_and_strict() -> None:
    model = Model()
    given = {**{f"encoder.{name}": x for name, x in like(model).items()}, "encoder.pooler": np.ones(2), "x": 1}
    with pytest.raises(ValueError, match=re.escape("the state does not fit Model: unknown: encoder.pooler")):
        model.load(given, prefix="encoder.")
    model.load(given, prefix="encoder.", strict=False)
    assert np.array_equal(model.gain, given["encoder.gain"].astype(np.float32))
    inner = Linear(4, 4).load(model.state(), prefix="blocks.0.")
    assert np.array_equal(inner.weight, model.state()["blocks.0.weight"])
    with pytest.raises(
        ValueError, match=r"^no name in the state begins with 'decoder.': there are encoder.gain, .* and"
    ):
        model.load(given, prefix="decoder.")


# --- mistakes ---


def test_all_mistakes_at_once_and_nothing_changed() -> None:
    model = Model()
    before = {name: x.copy() for name, x in model.state().items()}
    given = like(model)
    del given["norm.bias"], given["embed.weight"]
    given |= {"gain": np.ones((3, 1)), "blocks.0.bias": np.ones(5), "head.weight": np.ones(1), "head.bias": np.ones(1)}
    with pytest.raises(ValueError, match="does not fit") as caught:
        model.load(given)
    assert str(caught.value) == (
        "the state does not fit Model: gain is (3, 1), wanted (3,), blocks.0.bias is (5,), wanted (4,); "
        "missing: embed.weight, norm.bias; unknown: head.weight, head.bias"
    )
    few = ", ".join(f"m.{name}" for name in MODEL[:5])
    with pytest.raises(ValueError, match=f": missing: {re.escape(few)}, and 2 more; unknown: m.z$"):
        model.load({"m.z": np.ones(1)}, prefix="m.")
    for wrong in (np.ones(3, int), np.ones(3, complex), np.ones(3, bool), np.array(["a"] * 3), np.array([None] * 3)):
        with pytest.raises(TypeError, match=rf"^gain is {re.escape(str(wrong.dtype))}: wanted floating numbers$"):
            model.load({**like(model), "gain": wrong})
    equal(model, before)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ([1, 2], TypeError, "state is a list: wanted a mapping of names to arrays, or a path"),
        ({1: np.ones(2)}, TypeError, "the state has the name 1: wanted words, such as 'weight'"),
        ("weights.pt", ValueError, "weights.pt: wanted a file that ends in .safetensors, .npz, .keras or .weights.h5"),
        ({}, ValueError, "the state does not fit Linear: missing: weight, bias"),
    ],
)
def test_what_is_no_state(state: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        Linear(3, 2).load(state)
    assert str(caught.value) == message


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Linear(3, 2).load(tmp_path / "absent.npz")
    np.savez(tmp_path / "pickled.npz", weight=np.array([{}], object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Linear(3, 2).load(tmp_path / "pickled.npz")


@pytest.mark.parametrize("without", ["safetensors.numpy", "ml_dtypes"])
def test_packages_that_are_missing_are_named(tmp_path: Path, without: str) -> None:
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({"bias": np.zeros(2, ml_dtypes.bfloat16)}, tmp_path / "x.safetensors")
    code = f"""
import sys
sys.modules[{without!r}] = None
from harken.layers import Linear
try:
    Linear(3, 2).load({str(tmp_path / "x.safetensors")!r})
except ImportError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(rf"x.safetensors .*needs the package {without.split('.')[0]}: pip install \w+\n", said)


# --- assignment ---


def test_assigned_parameters() -> None:
    layer = Linear(2, 2)
    layer.weight = [[1, 2], [3, 4]]
    layer.bias = np.array([10.0, 20.0])
    assert layer.weight.dtype == layer.bias.dtype == np.float32
    assert layer(np.float32([1, 1])).tolist() == [13, 27]
    table = layers.Embedding(2, 2)
    layer.weight = table.weight  # tied
    assert layer.weight is table.weight
    layer.weight = np.asfortranarray(np.eye(2))
    assert layer.weight.flags.c_contiguous
    kept = layer.weight
    with pytest.raises(ValueError, match=re.escape("weight is (3, 2), wanted (2, 2)")):
        layer.weight = np.ones((3, 2))
    with pytest.raises(TypeError, match="bias is int64: wanted floating numbers"):
        layer.bias = np.ones(2, int)
    with pytest.raises(TypeError, match="weight is object: wanted floating numbers"):
        layer.weight = None
    assert layer.weight is kept
    layer.weight *= 2
    assert layer.weight is kept
    assert (kept == 2 * np.eye(2)).all()


def test_layers_of_ones_own() -> None:
    class Gate(Layer):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.own(bias=np.zeros(count))
            self.linear = Linear(count, count)

        def __call__(self, x: Any) -> Array:
            return layers.sigmoid(self.linear(x) + self.bias) * x

    gate = Gate(3)
    assert list(gate.state()) == ["bias", "linear.weight", "linear.bias"]
    assert gate.load(like(gate))(np.ones((2, 3), np.float32)).shape == (2, 3)
    with pytest.raises(TypeError, match="Layer says not what it computes"):
        Layer()(1)
    for wrong in (np.float16, int, "bfloat16"):
        with pytest.raises(TypeError, match="layers compute in float32 or float64"):
            Layer(wrong)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Linear(-1, 2), ValueError, "in_features is -1: wanted 0 or more"),
        (lambda: Linear(3, 2.0), TypeError, "out_features is 2.0: wanted an integer"),
        (lambda: layers.Embedding(True, 2), TypeError, "num_embeddings is True: wanted an integer"),
        (lambda: layers.Embedding(3, 2, 3), ValueError, "padding_idx is 3: wanted -3 to 2"),
        (lambda: layers.LayerNorm(()), ValueError, "normalized_shape is (): wanted the sizes of one or more last axes"),
        (lambda: layers.LayerNorm((3, -1)), ValueError,
         "normalized_shape is (3, -1): wanted the sizes of one or more last axes"),
        (lambda: layers.SelfAttention(8, "dots"), ValueError, "score is 'dots': wanted 'dot' or 'cosine'"),
        (lambda: layers.AdditiveAttention(3, 4, project=False), ValueError,
         "query_size is 3, key_size 4, hidden_size 3: without projections they are the same"),
        (lambda: layers.AdditiveAttention(3, bias=True, project=False), ValueError,
         "bias is True: without projections there is none"),
        (lambda: Sequential(Linear(3, 2), np.tanh), TypeError, f"layer 1 is {np.tanh!r}: wanted a Layer"),
        (lambda: Sequential({"a.b": Linear(3, 2)}), ValueError, "a layer is named 'a.b': wanted a name without a dot"),
        (lambda: Sequential({1: Linear(3, 2), "1": Linear(3, 2)}), ValueError,
         "layers are named 1, '1': wanted each name once"),
    ],
)  # fmt: skip
def test_layers_that_cannot_be(make: Callable[[], Layer], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == message
