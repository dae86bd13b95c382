"""Sound as it arrives, frame by frame, through convolutions, windowed attention and a GRU: how late, and how exact?

python examples/streaming.py
python examples/streaming.py --seconds 60 --window 200

A frame is 10 ms of sound, 160 samples. Each goes at once through

    Conv1D over samples (25 ms, stride 10 ms), ReLU
    Conv1D over frames (5 of them, causal), ReLU
    x + MultiHeadAttention (rotary; this frame and `--window` before it, in a ring that drops older ones), LayerNorm
    GRU, Linear

and gives 8 scores before the next arrives. What the stream remembers is of one size however long it runs: the samples
and frames that a convolution still meets, the ring, and the GRU's state. The same network then takes the recording all
at once, which is what the stream is compared to. The weights are random, the scores mean nothing; times and rounding
are those of any weights.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harken import KVCache
from harken.layers import GRU, Conv1D, Conv1DState, Layer, LayerNorm, Linear, MultiHeadAttention, relu

Array = NDArray[Any]

RATE, FRAME = 16_000, 160
CHANNELS, HEADS, SCORES = 128, 4, 8


def sound(seconds: float, seed: int = 0) -> Array:
    """A voice-like tone that glides, with overtones, pauses and noise: (samples, 1)."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(140 + 60 * np.sin(2 * np.pi * 0.7 * t)) / RATE
    voice = sum(np.sin(n * phase) / n for n in range(1, 8)) * (np.sin(2 * np.pi * 1.3 * t) > -0.5)
    return (0.3 * voice + 0.02 * rng.standard_normal(t.size)).astype(np.float32)[:, None]


class Memory(NamedTuple):
    """What a stream remembers between frames."""

    samples: Conv1DState
    frames: Conv1DState
    keys: KVCache
    h: Array | None


class Listener(Layer):
    """(samples, 1) to (frames, SCORES), whole or as a stream."""

    def __init__(self, window: int, *, rng: Any = 0) -> None:
        super().__init__()
        rng = np.random.default_rng(rng)
        self.window = window
        self.filters = Conv1D(1, CHANNELS, 400, stride=FRAME, padding=(400 - FRAME, 0), rng=rng)
        self.conv = Conv1D(CHANNELS, CHANNELS, 5, padding="causal", rng=rng)
        self.attention = MultiHeadAttention(CHANNELS, HEADS, rope=10_000.0, rng=rng)
        self.norm = LayerNorm(CHANNELS)
        self.gru = GRU(CHANNELS, CHANNELS, rng=rng)
        self.head = Linear(CHANNELS, SCORES, rng=rng)

    def __call__(self, samples: Array) -> Array:
        """The scores of all frames."""
        x = relu(self.conv(relu(self.filters(samples))))
        x = self.norm(x + self.attention(x, causal=True, window=(self.window, 0)))
        return self.head(self.gru(x)[0])

    def start(self, kept: int | None = None) -> Memory:
        """A stream that has heard nothing; `kept` frames, window + 1 unless given, stay in its ring."""
        keys = self.attention.cache(1, self.window + 1 if kept is None else kept, layout="ring")
        return Memory(self.filters.start(), self.conv.start(), keys, None)

    def step(self, samples: Array, memory: Memory) -> tuple[Array, Memory]:
        """The scores of the next frame, whose samples these are, and what is remembered after it."""
        x, past = self.filters.step(samples, memory.samples)
        x, frames = self.conv.step(relu(x), memory.frames)
        x = relu(x)
        x = self.norm(x + self.attention(x[None], window=(self.window, 0), cache=memory.keys)[0])
        y, h = self.gru.step(x[0], memory.h)
        return self.head(y), Memory(past, frames, memory.keys, h)


def stream(listener: Listener, samples: Array, kept: int | None = None) -> tuple[Array, Array, Memory]:
    """The scores of each frame, the seconds that each took, and the memory in the end."""
    memory = listener.start(kept)
    count = len(samples) // FRAME
    scores, seconds = np.empty((count, SCORES), np.float32), np.empty(count)
    for n, frame in enumerate(samples[: count * FRAME].reshape(count, FRAME, 1)):
        begun = time.perf_counter()
        scores[n], memory = listener.step(frame, memory)
        seconds[n] = time.perf_counter() - begun
    return scores, seconds, memory


def main(argv: list[str] | None = None) -> None:
    """Stream a recording, then take it whole; print latencies and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of sound (default: %(default)s)")
    parser.add_argument(
        "--window", type=int, default=100, help="frames that attention looks back (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    if options.window < 0 or not options.seconds >= 0.1:
        sys.exit("give --window 0 or more, and --seconds 0.1 or more")
    listener, samples = Listener(options.window), sound(options.seconds)
    stream(listener, samples[: 20 * FRAME])  # warm-up
    scores, seconds, memory = stream(listener, samples)
    begun = time.perf_counter()
    whole = listener(samples[: len(scores) * FRAME])
    offline = time.perf_counter() - begun
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1e6
    count, dropped = len(scores), int(memory.keys.starts[0])
    print(
        f"{count} frames of 10 ms: p50 {p50:.0f} us, p99 {p99:.0f} us a frame, {1e4 / p50:.0f} x as fast as the sound"
    )
    print(
        f"the ring holds {int(memory.keys.lengths[0])} frames, {memory.keys.nbytes >> 10} KiB; it has dropped {dropped}"
    )
    print(f"all at once: {offline / count * 1e6:.0f} us a frame; largest score {np.abs(whole).max():.2f}")
    print(f"largest difference of the stream to it: {np.abs(scores - whole).max():.1e}")


if __name__ == "__main__":
    main()
