"""The streaming example: frame by frame is all at once, however long it runs, and says so."""

from __future__ import annotations

import re

import numpy as np
import pytest
from example import load

streaming = load("streaming")
SOUND = streaming.sound(2.505)  # 250 frames and a half


@pytest.mark.parametrize("window", [0, 1, 31, 400])
def test_a_stream_is_the_whole(window: int, backend: str) -> None:
    listener = streaming.Listener(window)
    scores, seconds, memory = streaming.stream(listener, SOUND)
    whole = listener(SOUND)
    assert scores.shape == (250, streaming.SCORES)
    assert seconds.shape == (250,)
    assert whole.std(axis=0).min() > 0.01  # the sound reaches the scores
    np.testing.assert_allclose(scores, whole[:250], rtol=0, atol=3e-6)
    assert memory.keys.lengths[0] == min(window + 1, 250)
    assert memory.keys.starts[0] == max(249 - window, 0)


def test_what_the_ring_has_dropped_is_out_of_the_window(backend: str) -> None:
    """A ring that is too short is a shorter window: not what the listener was to hear, but nothing else either."""
    listener, shorter = streaming.Listener(31), streaming.Listener(15)
    scores = streaming.stream(listener, SOUND, kept=16)[0]
    np.testing.assert_allclose(scores, shorter(SOUND)[:250], rtol=0, atol=3e-6)
    assert np.abs(scores - listener(SOUND)[:250]).max() > 1e-4
    np.testing.assert_allclose(scores[:16], listener(SOUND)[:16], rtol=0, atol=3e-6)  # nothing is dropped yet


def test_memory_does_not_grow() -> None:
    listener = streaming.Listener(7)
    short, long = (streaming.stream(listener, SOUND[: n * streaming.FRAME])[2] for n in (20, 250))
    assert short.keys.nbytes == long.keys.nbytes
    assert short.samples.rows.shape == long.samples.rows.shape == (240, 1)
    assert short.frames.rows.shape == long.frames.rows.shape == (4, streaming.CHANNELS)
    assert short.h.shape == long.h.shape


def test_no_frame_waits_for_a_later_one() -> None:
    listener, changed = streaming.Listener(31), SOUND.copy()
    changed[100 * streaming.FRAME :] = 1
    before, after = listener(SOUND), listener(changed)
    np.testing.assert_allclose(before[:100], after[:100], rtol=0, atol=3e-6)
    assert np.abs(before[100] - after[100]).max() > 1e-3


def test_it_prints_latency_and_difference(capsys: pytest.CaptureFixture[str]) -> None:
    streaming.main(["--seconds", "4", "--window", "50"])
    said = capsys.readouterr().out
    times = re.search(r"^400 frames of 10 ms: p50 (\d+) us, p99 (\d+) us a frame", said)
    assert times, said
    assert 0 < int(times[1]) <= int(times[2])
    assert int(times[1]) < 10_000  # it keeps up with the sound
    assert "the ring holds 51 frames" in said
    assert "it has dropped 349" in said
    assert float(said.split()[-1]) < 3e-6


@pytest.mark.parametrize("wrong", [["--window", "-1"], ["--seconds", "0"], ["--seconds", "nan"]])
def test_a_mistake_is_one_line(wrong: list[str]) -> None:
    with pytest.raises(SystemExit, match="give --window 0 or more, and --seconds"):
        streaming.main(wrong)
