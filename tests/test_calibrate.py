"""The bench on harken's own choices: forms are forced and let go, crossovers are said in words, cliffs are found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contender import BENCH

import harken


def test_calibrate_says_who_wins(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    options = "--calibrate --quick --dtypes float32 --seconds 0.002 --json"
    done = subprocess.run([sys.executable, BENCH / "run.py", *options.split(), file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"harken chooses a form that loses more than 5 % at \d of 4 points", done.stdout)
    assert "float32   D  64  L 48 to 104" in done.stdout
    report = json.loads(file.read_text())
    assert [(point["keys"], point["rows"]) for point in report["points"]] == [(16, 1), (16, 64), (128, 1), (128, 64)]
    for point in report["points"]:
        assert {"tiled", "decode"} <= set(point["times"])
        assert point["best"] == min(point["times"], key=point["times"].get)
        assert point["loss"] == point["times"][point["chosen"]] / point["times"][point["best"]] - 1
    assert report["cliffs"][0]["lengths"] == list(range(48, 112, 8))


def test_forms_are_forced_and_let_go(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from harken._load import core

    q = np.ones((1, 64, 8), np.float32)
    chosen = harken.explain(q, q, q).form
    with run.calibrate.forced("decode"):
        assert harken.explain(q, q, q).form == "decode"
    assert harken.explain(q, q, q).form == chosen == "tiled"
    assert {"tiled", "decode"} <= set(run.calibrate.forms())
    monkeypatch.setattr(core, "_forms", lambda: ["tiled", "another"], raising=False)
    assert run.calibrate.forms() == ["tiled", "another"]


def test_crossovers_in_words(run: Any) -> None:
    def point(keys: int, rows: int, chosen: str, **times: float) -> dict[str, Any]:
        best = min(times, key=times.__getitem__)
        sizes = {"dtype": "float32", "D": 64, "keys": keys, "rows": rows, "heads": 1}
        return sizes | {"times": times, "best": best, "chosen": chosen, "loss": run.calibrate.loss(times, chosen)}

    row = [
        [point(keys, 1, "decode", decode=1, tiled=2), point(keys, 2, "decode", decode=1.01, tiled=1), late]
        for keys, late in (
            (16, point(16, 8, "decode", decode=3, tiled=2)),
            (32, point(32, 8, "tiled", decode=3, tiled=2)),
        )
    ]
    assert run.calibrate.crossovers([*row[0], *row[1]]) == [
        "float32   D  64  keys 16            decode up to 2, tiled from 8; harken: decode always",
        "float32   D  64  keys 32            decode up to 2, tiled from 8; harken: the same",
    ]
    assert run.calibrate.line(row[0][2]).endswith("loses 50 %")
    assert "loses" not in run.calibrate.line(row[1][2])


def test_cliffs_are_found(run: Any) -> None:
    import cliffs

    smooth = [1 + 1 / (i + 5) for i in range(30)]
    assert cliffs.cliffs(smooth) == {}
    rough = [x * (1 + 0.04 * (-1) ** i) for i, x in enumerate(smooth)]
    assert cliffs.cliffs(rough) == {}
    peak = [x * (1.25 if i == 12 else 1) for i, x in enumerate(smooth)]
    assert list(cliffs.cliffs(peak)) == [12]
    step = [x * (1.18 if i >= 12 else 1) for i, x in enumerate(smooth)]
    assert 12 in cliffs.cliffs(step)
    assert all(12 <= i <= 14 for i in cliffs.cliffs(step))
    made = {"dtype": "float32", "D": 64, "lengths": [1, 2, 3, 4], "gflops": [4.0] * 4}
    found = [{"L": L, "gflops": 3.0, "slower": L / 10} for L in (2, 3)]
    assert "cliff at L 2 to 3: 3 GFLOP/s, 30 % slower" in cliffs.lines(made | {"found": found})[1]
