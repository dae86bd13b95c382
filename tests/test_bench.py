"""The bench: it runs, times nobody whose result is wrong, names the peak of a share, and writes what it says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contender import BENCH, Plain

import harken


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


def test_wrong_options_end_with_the_reason(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    reasons = {
        "--problems bert": "bert: choose from seed, tiny, bert128",
        "--suite abacus": "invalid choice: 'abacus'",
        "--suite goals --chart out.png": "a chart is drawn of problems",
    }
    for options, reason in reasons.items():
        with pytest.raises(SystemExit, match="2"):
            run.main(options.split())
        assert reason in capsys.readouterr().err


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


# --- peaks ---


def test_a_share_is_of_the_named_peak(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small = run.problems.Problem("small", "compute", 1, 2, 2, 32, 32, 16)
    rounds = {sys.modules[run.compare.__module__].PEAK: [[2e-3], [3e-3]], "plain": [[8e-3], [12e-3]]}
    monkeypatch.setattr(run.timing, "interleave", lambda calls, *_: {name: rounds[name] for name in calls})
    entry = run.compare(small, "float32", [Plain()], 1, 0.01, lambda text: None)
    peak, timed = entry["peak"], entry["rivals"]["plain"]
    assert peak["name"].endswith(("FMA float32", "multiply and add float32"))
    assert peak["unit"] == "GFLOP/s"
    assert timed["of_peak"] * peak["rate"] == pytest.approx(timed["gflops"])
    shown = run.lines(entry | {"others": 0.0})
    assert peak["name"] in shown[1]
    assert f"{100 * timed['of_peak']:.0f} % of the peak" in shown[2]

    stream = run.problems.Problem("stream", "stream", 1, 2, 2, 1, 4096, 16)
    entry = run.compare(stream, "float32", [Plain()], 1, 0.01, lambda text: None)
    keys = 2 * 2 * 4096 * 16 * 4
    assert entry["peak"]["name"] == "a plain read of K and V"
    assert entry["rivals"]["plain"]["of_peak"] * entry["peak"]["rate"] == pytest.approx(keys / 10e-3 / 1e9)


def test_each_problem_has_its_peak(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: run.problems.PROBLEMS[name] for name in ("tiny", "bert128", "decode512")}
    tiles = run.peaks.Peak("tiles", print, 1)
    monkeypatch.setattr(run.peaks, "tile_products", lambda threads, backend: tiles)
    backend = "baseline"
    k = np.ones(1 << 16, np.uint8)

    def name(problem: str, dtype: str, backend: str) -> str:
        return str(run.peaks.of(known[problem], dtype, k, k, 1, backend))

    assert name("bert128", "float32", backend) == "SSE2 multiply and add float32"
    assert name("bert128", "bfloat16", backend) == "SSE2 multiply and add float32"
    assert name("bert128", "float64", backend) == "SSE2 multiply and add float64"
    assert name("decode512", "float16", backend) == "a plain read of K and V"
    assert name("bert128", "float16", "amx") == name("bert128", "bfloat16", "amx") == "tiles"
    with pytest.raises(run.peaks.Unknown, match="the call itself"):
        name("tiny", "float32", backend)
    with pytest.raises(run.peaks.Unknown, match="what abacus computes with"):
        name("bert128", "float32", "abacus")


def test_peaks_are_what_processors_do(run: Any) -> None:
    """Between 1 and 1000 GFLOP/s a thread; a register holds half as many of float64."""
    backend = harken.get_backend()
    assert set(harken.info()["cpu"]["compiled"]) <= set(run.peaks.FMA)
    single, double = (run.peaks.multiply_add(dtype, 1, backend) for dtype in ("float32", "float64"))
    for _ in range(10):  # a machine that does something else meanwhile is asked again
        rounds = run.timing.interleave({"single": single.call, "double": double.call}, 0.05, lambda text: None)
        one, two = (peak.rate(min(map(min, rounds[x]))) for x, peak in (("single", single), ("double", double)))
        assert 1 < one < 1000
        if 1.6 < one / two < 2.5:
            break
    else:
        raise AssertionError((one, two))
    if "amx_bf16" in run.machine.describe()["vectors"]:
        with contextlib.suppress(run.peaks.Unknown):  # where the system keeps it to itself
            tiles = run.peaks.tile_products(1, "amx")
            rounds = run.timing.interleave({"single": single.call, "tiles": tiles.call}, 0.05, lambda text: None)
            assert tiles.rate(min(map(min, rounds["tiles"]))) > 4 * single.rate(min(map(min, rounds["single"])))
    once = np.ones(1 << 20, np.uint8)
    assert run.peaks.stream(once, once.copy(), 2, backend, "read").amount % (2 << 20) == 0


CANNOT = [("no-c++", "", "there is no no-c++"), ("c++", "int x = ;", "error")]


@pytest.mark.parametrize(("compiler", "source", "why"), CANNOT, ids=["compiler", "source"])
def test_without_a_peak_there_are_times(
    run: Any, monkeypatch: Any, tmp_path: Path, compiler: str, source: str, why: str
) -> None:
    (tmp_path / "peaks.cpp").write_text(source)
    monkeypatch.setattr(run.peaks, "COMPILER", compiler)
    monkeypatch.setattr(run.peaks, "SOURCE", tmp_path / "peaks.cpp")
    if compiler == "c++" and shutil.which("c++") is None:
        pytest.skip("no c++")
    entry = run.compare(
        run.problems.Problem("small", "compute", 1, 2, 2, 8, 8, 8), "float32", [Plain()], 1, 0.01, print
    )
    assert why in entry["peak"]["reason"]
    assert entry["rivals"]["plain"]["seconds"] > 0
    shown = "\n".join(run.lines(entry | {"others": 0.0}))
    assert f"none: {entry['peak']['reason']}" in shown
    assert "% of the peak" not in shown


def test_errors_stand_beside_numpys(run: Any) -> None:
    result = {"status": "ok", "seconds": 1.0, "spread": 0.0, "gflops": 1.0, "gbytes": 1.0}
    given = {"harken": result | {"error": 3e-7}, "numpy": result | {"error": 2e-7, "ratio": 2.0}}
    problem = run.problems.PROBLEMS["tiny"].__dict__
    entry = {"problem": problem, "dtype": "float32", "kind": "latency", "peak": {"reason": "no"}, "rivals": given}
    assert "error 3.0e-07 = 1.50 NumPy's" in run.lines(entry | {"others": 0.0})[2]


def test_the_time_of_children_is_not_that_of_others(run: Any) -> None:
    clocks = run.machine.Quiet().clocks
    before = clocks()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True)
    assert clocks()[1] - before[1] > 0.45


# --- the chart ---


def test_chart_keeps_equals_apart_and_says_the_mean(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import chart
    from matplotlib.figure import Figure

    names = ("jax", "numpy", "onnxruntime", "openvino", "torch")
    entries = []
    for dtype in ("float32", "bfloat16", "float64"):
        for kind, problem in (("compute", "bert128"), ("stream", "decode512")):
            results = {name: {"status": "ok", "ratio": 2.0} for name in names}
            ours = {"status": "ok", "of_peak": 0.57}
            entry = {"dtype": dtype, "kind": kind, "problem": {"name": problem}, "peak": {"name": "AVX2 FMA"}}
            entries.append(entry | {"rivals": {"harken": ours, **results}})
    report = {"results": entries, "summary": run.summarize(entries), "threads": 1, "others": 0.0}
    report |= {"versions": {"harken": "1"}, "machine": {"cpu": "abacus"}}
    axis = Figure().subplots()
    chart.fill(axis, "float32", report, (0.5, 5.0))
    said = [text.get_text() for text in axis.texts]
    assert said.count("2") == 5
    assert {"57 % of FMA", "57 % of reading"} <= set(said)
    dots = {tuple(xy) for collection in axis.collections for xy in collection.get_offsets().tolist()}
    assert len(dots) == 5 * 3
    chart.draw(tmp_path / "chart.png", report)
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_statistics_are_compared_before_they_are_timed(run: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import stats

    assert stats.main(["--lengths", "64", "--seconds", "0.01", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "MiB   harken is" in printed
    for n, words in enumerate(["top_indices are not", "top_weights differ", "entropy differ", "per_key_mass differ"]):

        def spoiled(*given: Any, n: int = n) -> Any:
            found = [x.copy() for x in stats.dense(*given)]
            found[n][0, 3, 5] += 0.01 if n else (-1 if found[n][0, 3, 5].min() else 1)
            return tuple(found)

        monkeypatch.setitem(stats.RIVALS, "harken", spoiled)
        assert stats.main(["--lengths", "64", "--seconds", "0.01", "--threads", "1"]) == 1
        assert f"wrong: {words}" in capsys.readouterr().out
