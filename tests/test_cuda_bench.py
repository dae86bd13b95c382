"""bench/gpu.py checks kernels through the C interface alone, and records none that is wrong."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compare
import emulated
import ml_dtypes
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script as a module; gone again after the test."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    before = set(sys.modules)
    import gpu

    yield gpu
    for name in set(sys.modules) - before:
        if name == "gpu" or name.split(".")[0].split("_")[0] == "card":
            del sys.modules[name]


def answering(monkeypatch: pytest.MonkeyPatch, gpu: Any, library: Path, sanitizer: int, folder: Path) -> Any:
    """A run with this library as the card, and a sanitizer that runs its program, or finds what it is told to."""
    monkeypatch.setenv("HARKEN_CUDA_LIBRARY", str(library))
    tool = folder / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\nshift 4\nexec "$@"\n' if sanitizer == 0 else f"#!/bin/sh\nexit {sanitizer}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    gpu.interface.load.cache_clear()
    options = Namespace(kernels=["simple"], small=True, minutes=8.0, results=folder)
    return gpu.Run(options, gpu.Card())


def recorded(run: Any, folder: Path) -> list[dict[str, str]]:
    """What it enters beside a record of another card."""
    other = {"kernel": "simple", "source": "older", "card": "other", "capability": "8.0", "date": "", "driver": ""}
    path = folder / "checked.json"
    path.write_text(json.dumps([other, other | {"capability": "9.0"}]))
    run.options.small = False
    run.record(path)
    records: list[dict[str, str]] = json.loads(path.read_text())
    assert other in records
    return [record for record in records if record["source"] != "older"]


@emulated.needed
def test_a_right_kernel_is_recorded(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = answering(monkeypatch, gpu, emulated.built(), 0, tmp_path)
    monkeypatch.setattr(gpu, "TOOLS", ("memcheck",))
    run.check()
    kernel = run.report["kernels"]["simple"]
    assert (kernel["check"]["status"], kernel["check"]["taken"]) == ("passed", kernel["check"]["cases"])
    assert gpu.unproven(kernel, small=False) == "memcheck was not run"
    run.sanitize()
    (record,) = recorded(run, tmp_path)
    assert record["source"] == "emulated"
    assert record.keys() == {"kernel", "source", "card", "capability", "driver", "date"}
    assert gpu.unproven(kernel, small=True) == "the small grid proves nothing"
    assert json.loads((tmp_path / "gpu-emulator.json").read_text())["kernels"]["simple"] == kernel


@emulated.needed
def test_a_wrong_kernel_is_not(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    source = tmp_path / "csrc" / "cuda" / "simple.cu"
    text = source.read_text()
    assert text.count("sees = j >= of.first && j < of.end") == 1
    source.write_text(text.replace("j < of.end", "j <= of.end"))  # one key too many
    with monkeypatch.context() as patch:
        patch.setattr(emulated, "CUDA", source.parent)
        patch.setattr(emulated, "KERNELS", ("simple",))
        library = emulated.built.__wrapped__()
    run = answering(monkeypatch, gpu, library, 0, tmp_path)
    run.check()
    kernel = run.report["kernels"]["simple"]
    assert kernel["check"]["status"] == "failed"
    assert any("causal" in failed["case"] for failed in kernel["check"]["failed"])
    kernel["sanitizer"] = {tool: {"status": "passed"} for tool in gpu.TOOLS}
    assert recorded(run, tmp_path) == []


@emulated.needed
def test_what_the_sanitizer_finds_is_not_recorded(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = answering(monkeypatch, gpu, emulated.built(), 9, tmp_path)
    monkeypatch.setattr(gpu, "TOOLS", ("racecheck",))
    run.report["kernels"]["simple"]["check"] = {"status": "passed"}
    run.sanitize()
    found = run.report["kernels"]["simple"]["sanitizer"]["racecheck"]
    assert found["status"] == "failed"
    assert found["words"].startswith("ended with 9")
    assert recorded(run, tmp_path) == []
    run.options.minutes = 0.0
    assert run.stage({"stage": "probe"}) == {"status": "not begun: the time is over"}


def test_without_a_card(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "bench/gpu.py"], capture_output=True, text=True,
        env={"HARKEN_CUDA_LIBRARY": str(tmp_path / "none.so")},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"there is no card to measure on: HARKEN_CUDA_LIBRARY={tmp_path}/none.so is no file\n"


def test_the_rule_is_that_of_the_tests(gpu: Any) -> None:
    from card.numbers import numbers, off, stored

    rng = np.random.default_rng(0)
    for type, dtype in compare.DTYPES.items():
        truth = rng.standard_normal(50)
        naive = truth.astype(dtype)
        bits = stored(truth, type)
        np.testing.assert_array_equal(numbers(bits, type).astype(np.float64), naive.astype(np.float64))
        step = compare.ulp(dtype, float(np.abs(truth).max()))
        verdicts = set()
        for change in (0.0, step, 1.9 * step, 4 * step, np.nan, np.inf):
            actual = truth.copy()
            actual[np.abs(truth).argmax()] += change
            actual = actual.astype(dtype)
            words = off(actual.astype(naive.dtype if type != "bfloat16" else np.float32), naive, truth, type)
            try:
                compare.close("it", actual, naive, truth)
                kept = True
            except AssertionError:
                kept = False
            assert (words is None) == kept, (type, change, words)
            verdicts.add(kept)
        assert verdicts == {True, False}
    assert numbers(stored(np.array([np.nan]), "bfloat16"), "bfloat16")[0] != 0
    assert stored(np.float32(1.00390625), "bfloat16") == np.asarray(1.00390625, ml_dtypes.bfloat16).view(np.uint16)


def contenders(**ms: float) -> dict[str, Any]:
    rows = {"k": "harken k", "flash": "torch flash", "fa3": "FlashAttention-3", "efficient": "torch efficient"}
    return {rows[name]: {"ms": x, "error": 1e-7, "GB/s of keys": 900.0 / x} for name, x in ms.items()}


def test_goals(gpu: Any) -> None:
    goals = {goal.what: goal for goal in gpu.goals.GOALS}
    hopper, portable = (
        next(g for name, g in goals.items() if name.startswith(word)) for word in ("Hopper", "portable")
    )
    problem = {"B": 1, "Lk": 2048, "causal": False}
    report = {
        "probe": {"capability": "9.0", "GB/s": {"read": 1000.0}},
        "kernels": {"k": {"newer": True}},
        "times": {"bfloat16 D=128": {"entries": [{"problem": problem, "contenders": contenders(k=1.0, flash=0.96)}]}},
    }

    def verdict(goal: Any, **changed: Any) -> Any:
        row = gpu.goals.judge(goal, report | changed)
        assert gpu.goals.lines({"goals": [row]})
        return row["verdict"]

    def of(group: str, **ms: float) -> dict[str, Any]:
        return {group: {"entries": [{"problem": problem, "contenders": contenders(**ms)}]}}

    assert verdict(portable) == "reached"
    assert verdict(portable, kernels={"k": {"newer": False}}) == "not measurable"
    assert verdict(portable, times={}) == verdict(hopper) == "not measurable"
    assert verdict(hopper, times=of("bfloat16 D=128", k=1.0, fa3=0.84)) == "missed"
    assert verdict(hopper, times=of("bfloat16 D=128", k=1.0, fa3=0.86)) == "reached"
    assert verdict(hopper, probe={"capability": "8.0"}) == "not measurable"
    assert verdict(portable, times=of("bfloat16 D=128", k=math.nan, flash=1.0)) == "missed"
    decode = next(g for g in gpu.goals.GOALS if g.group == "decode")
    assert [verdict(decode, times=of("decode", k=x)) for x in (1.0, 1.1)] == ["reached", "missed"]
    single = next(g for g in gpu.goals.GOALS if g.group == "float32 D=128")
    times = of("float32 D=128", k=1.0, efficient=1.6)
    assert verdict(single, times=times) == "reached"
    times["float32 D=128"]["entries"][0]["contenders"]["harken k"]["error"] = 1e-3
    assert verdict(single, times=times) == "missed"
