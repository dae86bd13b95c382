"""`python -m harken`: every sub-command does its job on real input, and every mistake is one line and exit code 2."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from command_line import call, start

import harken
from harken.commands.plain import numpy_attention
from harken.commands.progress import clock
from harken.commands.timing import spoken
from harken.commands.words import meanings, vectors, words_of

pytestmark = pytest.mark.usefixtures("folder")


def test_demo_tells_what_words_attend_to(tmp_path: Path) -> None:
    process = start("demo", "--words", "listener", "quiet", cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    rows = out.splitlines()
    after = next(i for i, row in enumerate(rows) if row.startswith("listener"))
    assert {"listen", "listening"} <= {row.split()[0] for row in rows[after + 1 : after + 5]}
    assert "(131, 128) float32" in out
    assert "131 queries x 131 keys" in out
    errors = [float(row.split("float64:")[1].split()[0]) for row in rows if row.startswith(("  harken", "  NumPy"))]
    assert len(errors) == 2
    assert max(errors) < 1e-5
    image = tmp_path / "harken-demo.png"
    if image.exists():
        assert image.read_bytes().startswith(b"\x89PNG")
        assert out.endswith("heat map: harken-demo.png\n")
    else:
        assert "no picture: matplotlib is not installed (pip install matplotlib)" in out


def test_demo_takes_a_text_and_an_image() -> None:
    pytest.importorskip("matplotlib")
    out, _ = call(
        "demo", "--text", "Singers sing songs; the singer sang a song_of $x$ \u4e2d\u6587.", "--image", "sing.png"
    )
    assert "the given text: 11 words" in out
    assert "heat map: sing.png" in out
    assert Path("sing.png").read_bytes().startswith(b"\x89PNG")


def test_demo_takes_a_file_too_long_for_all_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harken.commands.demo.SCORES", 300 * 20)
    Path("long.txt").write_text("the gardener waters a garden, then the gardens water her " * 30, "utf-8")
    out, _ = call("demo", "long.txt", "--words", "garden")
    assert "all 300 queries: " in out
    assert "without an array of 300 x 300 weights" in out
    assert "20 queries x 300 keys" in out
    assert "gardener" in out
    assert "gardens" in out
    assert "first 144 of 300 words" in out or "no picture" in out


def test_demo_of_one_word() -> None:
    out, _ = call("demo", "--text", "alone")
    assert "100.0%" in out
    assert "1 query x 1 key" in out


def test_demo_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harken.commands.demo.find_spec", lambda name: None)
    out, _ = call("demo", "--text", "hear and heard")
    assert "no picture: matplotlib is not installed (pip install matplotlib)" in out
    _, err = call("demo", "--text", "hear and heard", "--image", "a.png", code=2)
    assert "a.png needs matplotlib" in err


def test_demo_where_nothing_may_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    Path("harken-demo.png").mkdir()
    out, _ = call("demo", "--text", "hear and heard")
    assert "no picture: harken-demo.png: " in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--text", " ... "], "the given text has no words"),
        (["missing.txt"], "missing.txt: No such file"),
        (["latin.txt"], "latin.txt is not UTF-8 text"),
        (["--words", "lisener"], "'lisener' is not in the text; near it are listener"),
        (["--image", "no/such/folder.png"], "no/such/folder.png: No such file"),
    ],
)
def test_demo_mistakes(argv: list[str], message: str) -> None:
    Path("latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    assert message in call("demo", *argv, code=2)[1]


def test_words_are_found_and_their_relatives_are_near() -> None:
    assert words_of("Don't stop: it\u2019s 3 o'clock, na\xefve_word!") == [
        "Don't",
        "stop",
        "it\u2019s",
        "3",
        "o'clock",
        "na\xefve",
        "word",
    ]
    vocabulary = ["listen", "listener", "river", "stone", "quiet", "quietly"]
    likeness = meanings(vocabulary, 128) @ meanings(vocabulary, 128).T
    assert likeness[0, 1] > 0.6
    assert likeness[4, 5] > 0.6
    assert abs(likeness[0, 2:]).max() < 0.4
    np.testing.assert_allclose(np.linalg.norm(vectors(["a"] * 5, 64), axis=1), 1, rtol=1e-6)


def test_info() -> None:
    facts = json.loads(call("info", "--json")[0])
    assert facts == json.loads(json.dumps(harken.info(), default=str))
    assert "version" in facts
    text, _ = call("info")
    assert all(str(key) in text for key in facts)
    assert "{" not in text
    assert "None" not in text


def test_bench() -> None:
    out, err = call("bench", "--seconds", "0.1")
    head, columns, *rows, mean = out.splitlines()
    assert f"NumPy {np.__version__}" in head
    assert columns.split()[:4] == ["problem", "shape", "harken", "NumPy"]
    assert [row.split()[0] for row in rows] == ["seed", "tiny", "bert128", "bert512", "causal1k", "decode4k"]
    assert all(float(row.split()[-2]) < 1e-5 for row in rows)
    assert "geometric mean" in mean
    assert "100%" in err


def test_bench_mistakes() -> None:
    assert "--seconds is 0" in call("bench", "--seconds", "0", code=2)[1]
    assert "abacus" in call("bench", "--backend", "abacus", code=2)[1]


@pytest.mark.parametrize("causal", [False, True])
def test_the_rival_is_right(causal: bool) -> None:
    random = np.random.default_rng(6)
    q, k, v = (random.standard_normal(s, np.float32) for s in ((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 3)))
    np.testing.assert_allclose(
        numpy_attention(q, k, v, 0.3, causal), harken.reference(q, k, v, scale=0.3, causal=causal), atol=1e-6
    )


def test_times_are_spoken() -> None:
    assert [clock(s) for s in (0.2, 59.6, 3723)] == ["0:00", "1:00", "1:02:03"]
    assert [spoken(s) for s in (2.5, 0.99999, 0.0123456, 3e-6, 4.2e-8)] == [
        "2.5 s",
        "1 s",
        "12.3 ms",
        "3 us",
        "0.042 us",
    ]


def test_a_closed_pipe_is_no_traceback() -> None:
    process = start("info")
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    with process:
        assert "Traceback" not in process.stderr.read()
    assert process.returncode in (0, 141, -signal.SIGPIPE)


def test_the_command_line_says_one_line(tmp_path: Path) -> None:
    process = start("attend", "gone.npy", "k.npy", "v.npy", "-o", "out.npy", cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (2, "", "harken attend: gone.npy: no such file\n")


@pytest.mark.parametrize("command", ["demo", "attend", "onnx", "plot", "info", "bench"])
def test_help(command: str) -> None:
    out, _ = call(command, "--help")
    assert out.startswith(f"usage: harken {command}")
    assert call("--help")[0].count("\n") > 5
