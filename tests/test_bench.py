"""The bench: it runs, times nobody whose result is wrong, and writes what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The runner as a module, gone again after the test."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    import run

    yield run
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


class Plain:
    """A rival whose results are right but for what `spoil` does to them."""

    name = "plain"
    dtypes = ("float32",)

    def __init__(self, spoil: Any = lambda out: out) -> None:
        self.spoil = spoil

    def prepare(self, problem: Any, dtype: str, q: Any, k: Any, v: Any, threads: int) -> Any:
        import truth

        return lambda: self.spoil(truth.attend64(problem, q, k, v).astype(np.float32))

    def to_numpy(self, result: Any) -> Any:
        return result


def result(run: Any, problem: str, rival: Any, dtype: str = "float32") -> Any:
    entry = run.compare(run.problems.PROBLEMS[problem], dtype, [rival], 1, 0.01, lambda text: None)
    json.dumps(entry)
    return entry["rivals"]["plain"]


def test_two_smallest_problems(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file, chart = tmp_path / "out.json", tmp_path / "out.png"
    options = "--problems seed,tiny --rivals numpy,harken --dtypes float32,float64 --threads 1 --seconds 0.05"
    command = [sys.executable, BENCH / "run.py", *options.split(), "--json", file, "--chart", chart]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "MPLBACKEND": "Agg"})
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == "[1/4] seed float32"
    assert "harken's speed over each rival's" in done.stdout
    assert chart.read_bytes().startswith(b"\x89PNG")

    report = json.loads(file.read_text())
    assert report["threads"] == 1
    assert set(report["versions"]) == {"numpy", "harken"}
    assert [(e["problem"]["name"], e["dtype"]) for e in report["results"]] == [
        (name, dtype) for dtype in ("float32", "float64") for name in ("seed", "tiny")
    ]
    for entry in report["results"]:
        for name in ("harken", "numpy"):
            timed = entry["rivals"][name]
            assert timed["status"] == "ok"
            assert timed["error"] < 1e-6
            assert 0 < timed["seconds"] < 1
            assert timed["gflops"] == pytest.approx(flops(entry["problem"]) / timed["seconds"] / 1e9)
            assert len(timed["samples"]) >= 3
            assert all(len(samples) >= 1 for samples in timed["samples"])
        assert entry["rivals"]["numpy"]["ratio"] > 0
    for dtype in ("float32", "float64"):
        summary = report["summary"][dtype]["numpy"]
        ratios = [e["rivals"]["numpy"]["ratio"] for e in report["results"] if e["dtype"] == dtype]
        assert summary["geomean"] == pytest.approx(np.sqrt(ratios[0] * ratios[1]))
        assert summary["worst"] == min(ratios)


def flops(problem: dict[str, int]) -> int:
    return 4 * problem["B"] * problem["Hq"] * problem["Lq"] * problem["Lk"] * problem["D"]


def test_unknown_names_end_with_the_known_ones() -> None:
    command = [sys.executable, BENCH / "run.py", "--problems", "bert"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "bert: choose from seed, tiny, bert128" in done.stderr


def test_right_result_gets_a_time(run: Any) -> None:
    timed = result(run, "seed", Plain())
    assert timed["status"] == "ok"
    assert timed["seconds"] > 0
    assert timed["error"] < 1e-7


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda out: out * np.float32(1.001), "error 1.0e-03, at most 1e-05 is right"),
        (lambda out: out + np.float32(np.nan), "error nan"),
        (lambda out: out[..., :1], r"shape \(1, 12, 16, 1\) instead of \(1, 12, 16, 64\)"),
        (lambda out: out.swapaxes(1, 2), "shape"),
        (lambda out: out[:, ::-1], "error"),
    ],
    ids=["inexact", "nan", "shape", "layout", "heads"],
)
def test_wrong_result_gets_no_time(run: Any, spoil: Any, why: str) -> None:
    timed = result(run, "tiny", Plain(spoil))
    assert timed["status"] == "wrong"
    assert re.match(why, timed["reason"])
    assert set(timed) == {"status", "reason"}


def test_one_wrong_row_of_many_is_found(run: Any) -> None:
    def spoil(out: Any) -> Any:
        out[0, 3, 5] *= 1.0005  # moves the whole by less than the tolerance
        return out

    problem = run.problems.Problem("rows", "compute", 1, 64, 64, 64, 64, 16)
    entry = run.compare(problem, "float32", [Plain(spoil)], 1, 0.01, lambda text: None)
    assert entry["rivals"]["plain"]["status"] == "wrong"
    assert "in one row" in entry["rivals"]["plain"]["reason"]


def test_who_cannot_or_fails_is_told_apart(run: Any) -> None:
    class Never(Plain):
        def prepare(self, *_: Any) -> Any:
            return None

    def fail(out: Any) -> Any:
        raise RuntimeError("no such instruction\nat 0x0")

    assert result(run, "seed", Never()) == {"status": "absent", "reason": "no such attention"}
    assert result(run, "seed", Plain(), "float64") == {"status": "absent", "reason": "no float64"}
    assert result(run, "seed", Plain(fail)) == {"status": "failed", "reason": "RuntimeError: no such instruction"}


def test_truth_is_causal_and_grouped(run: Any) -> None:
    import truth

    problem = run.problems.Problem("small", "compute", 2, 6, 2, 700, 700, 8, causal=True)
    q, k, v = problem.inputs("float32")
    S = q.astype(float).reshape(2, 2, 3, 700, 8) @ k.astype(float).swapaxes(-1, -2)[:, :, None] / np.sqrt(8)
    P = np.exp(S) * np.tri(700)
    expected = (P / P.sum(-1, keepdims=True) @ v[:, :, None]).reshape(q.shape)
    np.testing.assert_allclose(truth.attend64(problem, q, k, v), expected, rtol=1e-10, atol=1e-12)


def test_problems_count_their_work(run: Any) -> None:
    llama, decode = run.problems.PROBLEMS["llama2k"], run.problems.PROBLEMS["decode4k"]
    assert llama.flops == 2 * 32 * 2048 * 2048 * 128
    assert decode.bytes("float32") == 4 * 128 * (2 * 32 + 2 * 8 * 4096)
    assert decode.bytes("bfloat16") * 2 == decode.bytes("float32")
    assert [x.shape for x in decode.inputs("float16")] == [(1, 32, 1, 128), (1, 8, 4096, 128), (1, 8, 4096, 128)]


def test_every_rival_looks_the_same(run: Any) -> None:
    rivals = run.rivals.everyone()
    assert list(rivals)[-1] == "harken"
    for name, rival in rivals.items():
        assert rival.name == name
        assert set(rival.dtypes) <= set(run.problems.DTYPES)
        assert all(callable(getattr(rival, verb)) for verb in ("load", "prepare", "to_numpy"))
