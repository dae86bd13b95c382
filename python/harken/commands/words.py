"""Words become vectors without a download: signs drawn from hashed character n-grams, plus a little of the position."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

POSITION = 0.4  # length of the position's part beside the word's unit vector
LONELY = 0.5  # weight of an n-gram that one word alone has: it tells the word apart and finds no other


def words_of(text: str) -> list[str]:
    """The words of a text in their order, as written."""
    return re.findall(r"[^\W_]+(?:['\u2019][^\W_]+)*", text)


def vectors(words: Sequence[str], dim: int) -> Floats:
    """A unit vector of `dim` floats for each word at its place: what it is made of, and a little of where it stands."""
    vocabulary, place = np.unique([word.lower() for word in words], return_inverse=True)
    return unit(meanings(vocabulary.tolist(), dim)[place] + POSITION * unit(positions(len(words), dim)))


def meanings(vocabulary: Sequence[str], dim: int) -> Floats:
    """A unit vector for each word: the sum of the signs of its n-grams; rare ones weigh more, lonely ones little."""
    spelt = [grams(word) for word in vocabulary]
    shared = Counter(gram for part in spelt for gram in part)
    table = np.empty((len(vocabulary), dim), np.float32)
    for row, part in zip(table, spelt, strict=True):
        weight = [np.log1p(len(vocabulary) / shared[gram]) if shared[gram] > 1 else LONELY for gram in part]
        row[:] = weight @ signs([zlib.crc32(gram.encode()) for gram in part], dim)
    return unit(table)


def grams(word: str) -> list[str]:
    """The word between brackets, and its runs of 3 to 5 characters: `<listen>` has `<li`, `list`, `isten` and so on."""
    whole = f"<{word}>"
    return sorted({whole} | {whole[i : i + n] for n in (3, 4, 5) for i in range(len(whole) - n + 1)})


def signs(hashes: Sequence[int], dim: int) -> Floats:
    """For each hash `dim` numbers of -1 and 1, the same everywhere: the bits of SplitMix64 started at the hash."""
    count = -(-dim // 64)
    start = np.left_shift(np.array(hashes, np.uint64)[:, None], np.uint64(20))
    z: NDArray[np.uint64] = (start + np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits = np.unpackbits((z ^ (z >> np.uint64(31))).astype("<u8").view(np.uint8), axis=1)[:, :dim]
    return bits.astype(np.float32) * 2 - 1


def positions(count: int, dim: int) -> Floats:
    """Sines and cosines of the place at wavelengths from 2 pi to 10000 * 2 pi (Vaswani et al. 2017)."""
    angles = np.arange(count)[:, None] / 10000 ** (np.arange(0, dim, 2) / dim)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(count, dim).astype(np.float32)


def unit(x: Floats) -> Floats:
    """Each row divided by its length."""
    y: Floats = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return y
