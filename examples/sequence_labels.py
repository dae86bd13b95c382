"""A sequence labeller with attention and without: of what kind is a name that was introduced many words ago?

python examples/sequence_labels.py
python examples/sequence_labels.py --train

A sentence introduces names by a title, "Lake Orin", and mentions them again, bare, many words later: there "Orin" is
to be labelled a place. Which name is of which kind is drawn anew for each sentence, so nothing can be learned by heart,
it has to be looked up. Sentences and labels are made from a seed. The network is

    Embedding -> Conv1D (causal, 2 words) -> SelfAttention (causal) -> LSTM -> Linear

and its rival the same without SelfAttention. Since that layer has no parameters, both have equally many of them; both
were trained by `--train` below from the same start on the same sentences in the same order, and lie in
sequence_labels.npz in float16. harken.layers computes forwards, in training as well; the gradients are written out by
hand. Of names introduced 32 to 63 words ago 100 % are labelled rightly with attention, 43 % without; of all 100 % and
49 %. After four times as many steps the network without attention has 59 % of all.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harken.layers import LSTM, Conv1D, Embedding, Layer, Linear, SelfAttention

Array = NDArray[Any]

FILE = Path(__file__).with_suffix(".npz")
TITLES = {"Dr": "person", "Lake": "place", "HMS": "ship", "Bank": "firm"}
LABELS = ("no name", *TITLES.values())
NAMES = tuple(
    a + b for a in ("Or", "Vel", "Tam", "Kes", "Dun", "Bra", "Mir", "Sol") for b in ("in", "a", "on", "us", "ey")
)
FILLERS = ("the", "a", "of", "and", "to", "was", "seen", "then", "near", "by", "in", "with", "old", "new", "far", "saw")
WORDS = (*FILLERS, *TITLES, *NAMES)
FIRST_TITLE, FIRST_NAME = len(FILLERS), len(FILLERS) + len(TITLES)

INTRODUCED, MENTIONS = 6, 3  # names in a sentence, and how often each comes again
LENGTH, CHANNELS, HIDDEN = 64, 32, 32
HELD_OUT, TRAINING = 1, 2  # seeds


class Sentences(NamedTuple):
    """Sentences with the answers."""

    words: Array
    """(B, L), places in WORDS."""
    labels: Array
    """(B, L), places in LABELS."""
    ago: Array
    """(B, L), how many words ago a bare name was introduced; 0 for all other words."""


def draw(rng: np.random.Generator, count: int, length: int = LENGTH) -> Sentences:
    """So many new sentences."""
    words = rng.integers(FIRST_TITLE, size=(count, length))
    labels, ago = np.zeros((2, count, length), np.int64)
    for b in range(count):
        names = rng.permutation(len(NAMES))[:INTRODUCED]
        kinds = rng.integers(len(TITLES), size=INTRODUCED)
        order = rng.permutation(np.repeat(np.arange(INTRODUCED), 1 + MENTIONS))
        places = np.sort(rng.choice(length // 2, size=order.size, replace=False)) * 2 + 1  # room for a title before
        introduced: dict[int, int] = {}
        for name, at in zip(order.tolist(), places.tolist(), strict=True):
            words[b, at] = FIRST_NAME + names[name]
            labels[b, at] = 1 + kinds[name]
            if name in introduced:
                ago[b, at] = at - introduced[name]
            else:
                words[b, at - 1] = FIRST_TITLE + kinds[name]
                introduced[name] = at
    return Sentences(words, labels, ago)


class Labeller(Layer):
    """(B, L) words to (B, L, len(LABELS)) scores."""

    def __init__(self, attends: bool, *, dtype: Any = np.float32, rng: Any = None) -> None:
        super().__init__(dtype)
        rng = np.random.default_rng(rng)
        self.embedding = Embedding(len(WORDS), CHANNELS, dtype=dtype, rng=rng)
        self.conv = Conv1D(CHANNELS, CHANNELS, 2, padding="causal", dtype=dtype, rng=rng)
        self.conv.weight[:, :, 1] += np.eye(CHANNELS)  # begins near the word itself
        self.attention = SelfAttention(CHANNELS, dtype=dtype) if attends else None
        self.lstm = LSTM(CHANNELS, HIDDEN, dtype=dtype, rng=rng)
        self.head = Linear(HIDDEN, len(LABELS), dtype=dtype, rng=rng)

    def __call__(self, words: Array) -> Array:
        x = self.conv(self.embedding(words))
        if self.attention is not None:
            x = self.attention(x, causal=True)
        return self.head(self.lstm(x)[0])

    def gradients(self, words: Array, labels: Array) -> tuple[float, dict[str, Array]]:
        """The mean cross-entropy of the labels, and its derivative by each parameter."""
        B, L = words.shape
        e = self.embedding(words)
        x = self.conv(e)
        y, p = (x, None) if self.attention is None else self.attention(x, causal=True, return_weights=True)
        h, _ = self.lstm(y)
        z = self.head(h)
        log = z - z.max(-1, keepdims=True)
        log -= np.log(np.exp(log).sum(-1, keepdims=True))
        right = np.eye(len(LABELS), dtype=z.dtype)[labels]
        grads: dict[str, Array] = {}

        dz = (np.exp(log) - right) / (B * L)
        grads["head.weight"], grads["head.bias"] = flat(dz).T @ flat(h), flat(dz).sum(0)
        dy = self._back_through_lstm(y, h, dz @ self.head.weight, grads)

        if p is None:
            dx = dy
        else:  # y = p x, p = softmax(s), s = x xᵀ / sqrt(C)
            dp = dy @ x.swapaxes(1, 2)
            ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / np.sqrt(x.dtype.type(CHANNELS))
            dx = p.swapaxes(1, 2) @ dy + (ds + ds.swapaxes(1, 2)) @ x

        before = np.pad(e, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        w = self.conv.weight
        grads["conv.weight"] = np.stack([flat(dx).T @ flat(before), flat(dx).T @ flat(e)], -1)
        grads["conv.bias"] = flat(dx).sum(0)
        de = dx @ w[:, :, 1]
        de[:, :-1] += dx[:, 1:] @ w[:, :, 0]
        grads["embedding.weight"] = np.zeros_like(self.embedding.weight)
        np.add.at(grads["embedding.weight"], words, de)
        return -float((log * right).sum()) / (B * L), grads

    def _back_through_lstm(self, x: Array, h: Array, dh: Array, grads: dict[str, Array]) -> Array:
        """From dh, the derivative by all outputs, that by the inputs x: (B, L, CHANNELS).

        The layer gives h alone, but from h the gates of all steps follow in one product, and from these the cells.
        """
        (B, L, H), lstm = h.shape, self.lstm
        before = np.pad(h, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        a = x @ lstm.weight_ih_l0.T + before @ lstm.weight_hh_l0.T + lstm.bias_ih_l0 + lstm.bias_hh_l0
        gates = (np.tanh(a * 0.5) + 1) * 0.5  # the logistic function
        i, f, o, g = gates[..., :H], gates[..., H : 2 * H], gates[..., 3 * H :], np.tanh(a[..., 2 * H : 3 * H])
        c = np.zeros((B, L + 1, H), x.dtype)
        for t in range(L):
            c[:, t + 1] = f[:, t] * c[:, t] + i[:, t] * g[:, t]
        tanh = np.tanh(c[:, 1:])
        # da = (di, df, dg, do): what dc and dh are multiplied by, for all steps at once
        by_c = np.concatenate([g * i * (1 - i), c[:, :-1] * f * (1 - f), i * (1 - g * g)], -1).reshape(B, L, 3, H)
        by_h, through = tanh * o * (1 - o), o * (1 - tanh * tanh)
        da = np.empty((B, L, 4, H), x.dtype)
        dc, later = np.zeros((2, B, H), x.dtype)
        for t in reversed(range(L)):
            now = dh[:, t] + later
            dc = dc + now * through[:, t]
            da[:, t, :3] = dc[:, None] * by_c[:, t]
            da[:, t, 3] = now * by_h[:, t]
            dc = dc * f[:, t]
            later = da[:, t].reshape(B, 4 * H) @ lstm.weight_hh_l0
        da = da.reshape(B, L, 4 * H)
        grads["lstm.weight_ih_l0"], grads["lstm.weight_hh_l0"] = flat(da).T @ flat(x), flat(da).T @ flat(before)
        grads["lstm.bias_ih_l0"] = grads["lstm.bias_hh_l0"] = flat(da).sum(0)
        return da @ lstm.weight_ih_l0


def flat(x: Array) -> Array:
    """(B, L, C) as (B L, C)."""
    return x.reshape(-1, x.shape[-1])


def train(attends: bool, steps: int, batch: int = 64, rate: float = 5e-3) -> Labeller:
    """A labeller after so many steps of Adam, each on sentences never seen before; the rate falls to 0."""
    rng = np.random.default_rng(TRAINING)
    model = Labeller(attends, rng=0)
    state = model.state()
    mean, square = ({name: np.zeros_like(array) for name, array in state.items()} for _ in range(2))
    begun = time.perf_counter()
    for step in range(1, steps + 1):
        loss, grads = model.gradients(*draw(rng, batch)[:2])
        pace = rate * (1 + np.cos(np.pi * step / steps)) / 2
        norm = np.sqrt(sum(float((grad * grad).sum()) for grad in grads.values()))
        for name, array in state.items():
            grad = grads[name] * min(1.0, 1 / norm)
            mean[name] += 0.1 * (grad - mean[name])
            square[name] += 0.01 * (grad * grad - square[name])
            array -= pace * (mean[name] / (1 - 0.9**step)) / (np.sqrt(square[name] / (1 - 0.99**step)) + 1e-8)
        if step % 250 == 0 or step == steps:
            print(f"  step {step:5}   loss {loss:.4f}   {time.perf_counter() - begun:4.0f} s", flush=True)
    return model


def labellers(path: Path) -> dict[str, Labeller]:
    """Both networks, of a file that `--train` wrote."""
    return {name: Labeller(name == "with").load(path, prefix=f"{name}.") for name in ("with", "without")}


def accuracies(models: dict[str, Labeller], length: int, count: int = 500) -> list[tuple[int, int, int, Array]]:
    """Held-out bare names by how many words ago they were introduced, then all: from, to, count, each model's share."""
    held = draw(np.random.default_rng([HELD_OUT, length]), count, length)
    right = np.stack([model(held.words).argmax(-1) == held.labels for model in models.values()])
    edges = [1, *(2**n for n in range(3, 12) if 2**n < length), length]
    rows = []
    for low, high in [*itertools.pairwise(edges), (1, length)]:
        among = (held.ago >= low) & (held.ago < high)
        rows.append((low, high - 1, int(among.sum()), right[:, among].mean(-1)))
    return rows


def show(model: Labeller) -> str:
    """What one bare name looks at."""
    held = draw(np.random.default_rng([HELD_OUT, LENGTH]), 1)
    at = int(held.ago[0].argmax())
    assert model.attention is not None
    weights = model.attention(model.conv(model.embedding(held.words)), causal=True, return_weights=True)[1][0, at]
    said = LABELS[model(held.words)[0, at].argmax()]
    seen = ", ".join(
        f"{weight:.2f} on {WORDS[held.words[0, j - 1]]} {WORDS[held.words[0, j]]!r}{f' {at - j} words ago' * (j < at)}"
        for j in np.argsort(-weights)[:2].tolist()
        for weight in [weights[j]]
    )
    return f"{WORDS[held.words[0, at]]!r} is a {said}: {seen}"


def main(argv: list[str] | None = None) -> None:
    """Train both, where that is wanted, and print how often they are right on sentences that no training has seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="train both anew and write them to --weights (minutes)")
    parser.add_argument("--steps", type=int, default=800, help="steps of training (default: %(default)s)")
    parser.add_argument("--weights", type=Path, default=FILE, metavar="FILE", help="default: beside this script")
    options = parser.parse_args(argv)
    if options.train:
        trained = {}
        for name in ("with", "without"):
            print(f"training {name} attention")
            state = train(name == "with", options.steps).state()
            trained |= {f"{name}.{key}": array.astype(np.float16) for key, array in state.items()}
        np.savez_compressed(options.weights, **trained)
    models = labellers(options.weights)
    size = sum(array.size for array in models["with"].state().values())
    print(
        f"bare names that get the right one of {len(TITLES)} kinds; {size} parameters each, with attention and without"
    )
    for length in (LENGTH, 4 * LENGTH):
        begun = time.perf_counter()
        rows = accuracies(models, length)
        print(f"500 new sentences of {length} words ({time.perf_counter() - begun:.1f} s)      with   without")
        for n, (low, high, count, share) in enumerate(rows, 1):
            where = "all" if n == len(rows) else f"introduced {low} to {high} words ago"
            print(f"  {where:30} {count:6}  {share[0]:7.1%}   {share[1]:7.1%}")
    print(show(models["with"]))


if __name__ == "__main__":
    main()
