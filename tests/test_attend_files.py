"""`python -m harken attend`: it writes what `harken.attention` returns, in pieces too; mistakes leave nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import call, start

import harken
from harken.commands import pieces
from harken.commands.arrays import open_array

Array = np.ndarray[Any, Any]
pytestmark = pytest.mark.usefixtures("folder")


def save(random: np.random.Generator, **shapes: tuple[int, ...]) -> dict[str, Array]:
    """Arrays of random numbers, saved under their names in the current folder."""
    arrays = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    return arrays


@pytest.fixture
def qkv(folder: Path) -> dict[str, Array]:
    return save(np.random.default_rng(1), q=(2, 4, 9, 16), k=(2, 2, 13, 16), v=(2, 2, 13, 8))


FILES = ("q.npy", "k.npy", "v.npy", "-o", "out.npy")


OPTIONS: dict[str, tuple[list[object], dict[str, Any]]] = {
    "plain": ([], {}),
    "causal": (["--causal"], {"causal": True}),
    "window": (["--window", "2", "none"], {"window": (2, None)}),
    "scale": (["--scale", "0.5"], {"scale": 0.5}),
    "scales": (["--scale", "0.5", "1", "2", "0"], {"scale": np.array([0.5, 1, 2, 0])}),
    "cosine": (["--score", "cosine", "--scale", "3"], {"score": "cosine", "scale": 3.0}),
    "softcap": (["--softcap", "2.5"], {"softcap": 2.5}),
    "lengths": (["--kv-lengths", "5", "13", "--q-lengths", "9", "4"], {"kv_lengths": [5, 13], "q_lengths": [9, 4]}),
    "start": (["--causal", "--q-start", "-2"], {"causal": True, "q_start": -2}),
    "alibi": (
        ["--alibi", "1", ".5", ".25", "0", "--sinks", "0", "1", "2", "3"],
        {"alibi": [1, 0.5, 0.25, 0], "sinks": [0, 1, 2, 3]},
    ),
    "threads": (["--threads", "1"], {"threads": 1}),
    "backend": (["--backend", harken.backends()[0]], {}),
}


@pytest.mark.parametrize("options", OPTIONS)
def test_attend_is_attention(qkv: dict[str, Array], options: str) -> None:
    argv, keywords = OPTIONS[options]
    out, err = call("attend", *FILES, "--lse", "lse.npy", *argv)
    want, lse = harken.attention(
        **qkv, **{k: np.asarray(v) if isinstance(v, list) else v for k, v in keywords.items()}, return_lse=True
    )
    np.testing.assert_array_equal(np.load("out.npy"), want)
    np.testing.assert_array_equal(np.load("lse.npy"), lse)
    assert out.startswith("out.npy: (2, 4, 9, 8) float32 in ")
    assert "lse.npy: (2, 4, 9) float32" in out
    assert err == ""


def test_attend_takes_masks_and_biases(qkv: dict[str, Array]) -> None:
    random = np.random.default_rng(2)
    mask, bias = random.random((9, 13)) < 0.6, random.standard_normal((2, 1, 9, 13), np.float32)
    np.savez("more.npz", mask=mask, bias=bias, lengths=np.array([3, 12]))
    argv = ["--mask", "more.npz:mask", "--bias", "more.npz:bias", "--kv-lengths", "more.npz:lengths"]
    call("attend", *FILES, *argv)
    want = harken.attention(**qkv, mask=mask, bias=bias, kv_lengths=np.array([3, 12]))
    np.testing.assert_array_equal(np.load("out.npy"), want)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_attend_takes_npz(qkv: dict[str, Array], save: Callable[..., None]) -> None:
    save("all.npz", **qkv, other=np.arange(3))
    want = harken.attention(**qkv)
    for files in (["all.npz"], ["all.npz:q", "all.npz:k", "all.npz:v"], ["q.npy", "all.npz:k", "v.npy"]):
        call("attend", *files, "-o", "out.npy")
        np.testing.assert_array_equal(np.load("out.npy"), want)


def test_arrays_are_mapped_where_they_lie() -> None:
    whole = np.arange(24, dtype=np.float64).reshape(4, 6)
    np.savez("many.npz", first=whole, second=np.asfortranarray(whole[::-1]), third=whole.astype(">f8"), none=whole[:0])
    for name, want in (("first", whole), ("second", whole[::-1]), ("third", whole), ("none", whole[:0])):
        got = open_array(f"many.npz:{name}")
        np.testing.assert_array_equal(got, want)
        assert got.dtype.isnative
    assert isinstance(open_array("many.npz:first").base, np.memmap)


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4"])
def test_attend_keeps_the_dtype(qkv: dict[str, Array], dtype: str) -> None:
    for name, array in qkv.items():
        np.save(name, array.astype(dtype))
    call("attend", *FILES)
    native = np.dtype(dtype).newbyteorder("=")
    got = np.load("out.npy")
    assert got.dtype == native
    np.testing.assert_array_equal(got, harken.attention(*(array.astype(native) for array in qkv.values())))


def test_attend_reads_bfloat16(qkv: dict[str, Array]) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    for name, array in qkv.items():
        np.save(name, array.astype(bfloat16))
    call("attend", *FILES)
    want = harken.attention(*(array.astype(bfloat16) for array in qkv.values()))
    np.testing.assert_array_equal(np.load("out.npy").view(np.uint16), want.view(np.uint16))


@pytest.mark.parametrize(
    ("head_axis", "q", "k"), [(-3, (5, 8), (7, 8)), (-2, (2, 5, 4, 8), (2, 7, 2, 8)), (-3, (2, 4, 0, 8), (2, 4, 7, 8))]
)
def test_attend_takes_every_layout(head_axis: int, q: tuple[int, ...], k: tuple[int, ...]) -> None:
    arrays = save(np.random.default_rng(3), q=q, k=k, v=k)
    call("attend", *FILES, "--head-axis", head_axis, "--lse", "lse.npy")
    want, lse = harken.attention(**arrays, head_axis=head_axis, return_lse=True)
    np.testing.assert_array_equal(np.load("out.npy"), want)
    np.testing.assert_array_equal(np.load("lse.npy"), lse)


CUT: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "lengths": {"causal": True, "q_lengths": np.array([[700], [0], [300]]), "kv_lengths": np.array([100, 400])},
    "start": {"window": (30, 20), "q_start": np.array([-5, 90])},
    "everything": {
        "mask": np.random.default_rng(0).random((700, 400)) < 0.7,
        "bias": np.random.default_rng(1).standard_normal((3, 1, 2, 700, 1), np.float32),
        "scale": np.linspace(0.1, 1, 4).reshape(2, 2),
        "alibi": np.array([0.1, 0.01]),
        "sinks": np.array([0.5, -0.5]),
        "kv_lengths": 390,
        "q_lengths": 650,
    },
}


@pytest.mark.parametrize("head_axis", [-3, -2])
@pytest.mark.parametrize("options", CUT)
@pytest.mark.parametrize("budget", [1e3, 2e7, 6e7, 1e12])
def test_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch, options: str, head_axis: int, budget: float) -> None:
    monkeypatch.setattr(pieces, "PIECE", budget)
    random = np.random.default_rng(4)
    q, k, v = (random.standard_normal(s, np.float32) for s in ((3, 2, 2, 700, 8), (2, 1, 400, 8), (3, 1, 1, 400, 5)))
    if head_axis == -2:
        q, k, v = (x.swapaxes(-3, -2) for x in (q, k, v))
    whole = pieces.Whole(q, k, v, {**CUT[options], "head_axis": head_axis})
    want = harken.attention(q, k, v, **whole.options)
    got = np.full_like(want, np.nan)
    parts = whole.pieces(1)
    assert len(parts) == {1e3: 18, 2e7: 6, 6e7: 2, 1e12: 1}[budget]
    for piece in parts:
        arguments = whole.arguments(piece)
        harken.attention(*arguments[:3], **arguments[3], out=piece.take(got, 3, whole.row_axis(got)))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_attend_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 1.0)
    arrays = save(np.random.default_rng(5), q=(2, 600, 8), k=(2, 1000, 8), v=(2, 1000, 8))
    call("attend", *FILES, "--causal", "--lse", "lse.npy")
    want, lse = harken.attention(**arrays, causal=True, return_lse=True)
    np.testing.assert_allclose(np.load("out.npy"), want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.load("lse.npy"), lse, rtol=0, atol=1e-5)


def test_attend_overwrites_its_own_input(qkv: dict[str, Array]) -> None:
    call("attend", "q.npy", "k.npy", "v.npy", "-o", "q.npy")
    np.testing.assert_array_equal(np.load("q.npy"), harken.attention(**qkv))


def slow(path: Path) -> None:
    """A problem of several seconds on any machine, in small files."""
    rows = np.ones((131072, 32), np.float32)
    for name in ("q", "k", "v"):
        np.save(path / f"{name}.npy", rows)


def test_attend_shows_progress_and_stops_quietly(tmp_path: Path) -> None:
    slow(tmp_path)
    process = start("attend", *FILES, "--threads", "1", cwd=tmp_path)
    assert process.stderr
    shown = ""
    while "attend [" not in shown or "%" not in shown:
        character = process.stderr.read(1)
        assert character, shown
        shown += character
    asked = time.perf_counter()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert time.perf_counter() - asked < 5
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k.npy", "q.npy", "v.npy"]


MISTAKES: list[tuple[list[object], str]] = [
    (["gone.npy", "k.npy", "v.npy", "-o", "out.npy"], "gone.npy: no such file"),
    (["text.npy", "k.npy", "v.npy", "-o", "out.npy"], "text.npy is not a whole .npy file"),
    (["cut.npy", "k.npy", "v.npy", "-o", "out.npy"], "cut.npy is not a whole .npy file"),
    (["objects.npy", "k.npy", "v.npy", "-o", "out.npy"], "objects.npy is not a whole .npy file of numbers"),
    (["folder", "k.npy", "v.npy", "-o", "out.npy"], "folder is a folder"),
    (["cut.npz", "-o", "out.npy"], "cut.npz is not a whole .npz file"),
    (["bad.npz", "-o", "out.npy"], "bad.npz is not a whole .npz file"),
    (["all.npz:w", "k.npy", "v.npy", "-o", "out.npy"], "all.npz has no array 'w', it has q, k"),
    (["all.npz", "-o", "out.npy"], "all.npz has no v, it has q, k"),
    (["all.npz", "k.npy", "v.npy", "-o", "out.npy"], "choose one, as in all.npz:q"),
    (["q.npy", "-o", "out.npy"], "q.npy is one array: give three files"),
    (["q.npy", "k.npy", "-o", "out.npy"], "give three files"),
    (["q.npy:key", "k.npy", "v.npy", "-o", "out.npy"], "q.npy is not an .npz file, so 'key' cannot be chosen"),
    (["q.npy", "v.npy", "k.npy", "-o", "out.npy"], ""),
    (["q.npy", "k.npy", "integers.npy", "-o", "out.npy"], ""),
    ([*FILES, "--mask", "integers.npy"], "mask != 0"),
    ([*FILES, "--kv-lengths", "three"], "--kv-lengths takes integers or one .npy file, not three"),
    ([*FILES, "--kv-lengths", "1", "2", "3"], "kv_lengths"),
    ([*FILES, "--window", "1", "all"], "'all' is neither an integer nor none"),
    ([*FILES, "--score", "euclid"], "invalid choice: 'euclid'"),
    ([*FILES, "--softcap", "-1"], "softcap"),
    ([*FILES, "--backend", "abacus"], "abacus"),
    ([*FILES, "--lse", "out.npy"], "out.npy is asked for twice"),
    (["q.npy", "k.npy", "v.npy", "-o", "out.txt"], "out.txt: the output is an .npy file"),
    (["q.npy", "k.npy", "v.npy", "-o", "no/such/out.npy"], "no/such/out.npy: there is no folder no/such"),
    (["q.npy", "k.npy", "v.npy"], "required: -o/--output"),
]


@pytest.mark.parametrize(("argv", "message"), MISTAKES)
def test_attend_mistakes_leave_nothing_behind(qkv: dict[str, Array], argv: list[object], message: str) -> None:
    Path("text.npy").write_text("not an array")
    Path("cut.npy").write_bytes(Path("q.npy").read_bytes()[:500])
    Path("folder").mkdir()
    np.save("objects.npy", np.array([None, {}]), allow_pickle=True)
    np.save("integers.npy", np.ones((9, 13), int))
    np.savez("all.npz", q=qkv["q"], k=qkv["k"])
    Path("cut.npz").write_bytes(Path("all.npz").read_bytes()[:500])
    np.savez_compressed("bad.npz", **qkv)
    Path("bad.npz").write_bytes(
        Path("bad.npz").read_bytes().replace(b"\x93NUMPY", b"").replace(b"\x00", b"\x01", 40)[:-1]
    )
    before = sorted(Path().iterdir())
    assert message in call("attend", *argv, code=2)[1]
    assert sorted(Path().iterdir()) == before
