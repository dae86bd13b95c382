"""`python -m harken plot`: files of weights and masks become pictures, and mistakes one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import call

import harken
from harken import plot

pytest.importorskip("matplotlib")

WEIGHTS = np.random.default_rng(1).dirichlet(np.full(12, 0.2), (2, 3, 12)).astype(np.float32)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with weights of 2 x 3 heads, masks and labels."""
    monkeypatch.chdir(tmp_path)
    np.save("batch.npy", WEIGHTS)
    np.save("heads.npy", WEIGHTS[0])
    np.save("one.npy", WEIGHTS[0, 0])
    np.savez("all.npz", w=WEIGHTS[:1], mask=np.tril(np.ones((12, 12), bool)))
    np.save("line.npy", WEIGHTS[0, 0, 0])
    np.save("words.npy", np.array([["a"]]))
    Path("words.txt").write_text("\n".join(f"word{n}" for n in range(12)) + "\n", "utf-8")
    Path("few.txt").write_text("a\nb\n", "utf-8")
    Path("latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    yield tmp_path
    assert not list(tmp_path.glob(".*.part"))


def same(path: str, drawn: Any) -> bool:
    """Is the file the picture that the function draws?"""
    np.asarray(drawn, object).flat[0].figure.savefig("expected.png")
    return Path(path).read_bytes() == Path("expected.png").read_bytes()


def test_files_become_what_the_functions_draw() -> None:
    words = [f"word{n}" for n in range(12)]
    out, _ = call("plot", "one.npy", "-o", "map.png", "--q-labels", "words.txt", "--k-labels", "words.txt")
    assert out == "map.png: 12 x 12 weights\n"
    assert same("map.png", plot.heatmap(WEIGHTS[0, 0], words, words))
    call("plot", "heads.npy", "-o", "map.png", "--heads", "2", "0", "--title", "two", "--power", "0.5")
    names = ["head 2", "head 0"]
    assert same("map.png", plot.heads(WEIGHTS[0, [2, 0]], names=names, title="two", power=0.5))
    call("plot", "batch.npy", "-o", "map.png", "--batch", "1")
    assert same("map.png", plot.heads(WEIGHTS[1]))
    call("plot", "batch.npy", "-o", "map.png", "--batch", "1", "--heads", "2")
    assert same("map.png", plot.heatmap(WEIGHTS[1, 2]))
    call("plot", "all.npz:w", "-o", "map.png")
    assert same("map.png", plot.heads(WEIGHTS[0]))
    out, _ = call("plot", "all.npz:mask", "-o", "map.png", "--tiles", "4")
    assert out == "map.png: 12 x 12 pairs\n"
    assert same("map.png", plot.mask(harken.masks.Causal(), 12, tiles=4, title="54.2 % seen"))
    call("plot", "one.npy", "-o", "map.svg")
    assert "<svg" in Path("map.svg").read_text("utf-8")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gone.npy", "-o", "map.png"], "gone.npy: no such file"),
        (["one.npy"], "the following arguments are required: -o/--output"),
        (["one.npy", "-o", "map.txt"], "map.txt: wanted a name that ends in .png, .pdf, .svg"),
        (["one.npy", "-o", "no/map.png"], "no/map.png: No such file"),
        (["line.npy", "-o", "map.png"], "line.npy has shape (12,): wanted (Lq, Lk), (H, Lq, Lk) or (..., H, Lq, Lk)"),
        (["words.npy", "-o", "map.png"], "weights is <U1: wanted real numbers"),
        (["batch.npy", "-o", "map.png"], "batch.npy has shape (2, 3, 12, 12): wanted --batch with 1 numbers, not 0"),
        (["heads.npy", "-o", "map.png", "--batch", "0"], "wanted --batch with 0 numbers, not 1"),
        (["batch.npy", "-o", "map.png", "--batch", "2"], "--batch has 2: batch.npy has shape (2, 3, 12, 12)"),
        (["heads.npy", "-o", "map.png", "--heads", "0", "3"], "--heads has 3: heads.npy has shape (3, 12, 12)"),
        (["one.npy", "-o", "map.png", "--heads", "0"], "--heads has 0: one.npy has shape (12, 12)"),
        (["one.npy", "-o", "map.png", "--q-labels", "few.txt"], "q_labels holds 2 labels, there are 12 queries"),
        (["one.npy", "-o", "map.png", "--k-labels", "latin.txt"], "latin.txt is not UTF-8 text"),
        (["one.npy", "-o", "map.png", "--power", "-1"], "power is -1.0: wanted a number above 0"),
        (["one.npy", "-o", "map.png", "--tiles", "4"], "one.npy is float32: --tiles are those of a boolean mask"),
        (["all.npz:mask", "-o", "map.png", "--tiles", "4", "4", "4"], "--tiles takes one size or two, not 3"),
        (["all.npz:mask", "-o", "map.png", "--power", "2"], "all.npz:mask is a mask, which has no --power"),
    ],
)
def test_mistakes(argv: list[str], message: str) -> None:
    assert message in call("plot", *argv, code=2)[1]
    assert not Path("map.png").exists()


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert "pip install 'harken[plot]'" in call("plot", "one.npy", "-o", "map.png", code=2)[1]
