"""The goals of the bench: each is judged by what is measured for it, and is missed by what is wrong or not a number."""

from __future__ import annotations

import json
import math
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contender import Plain


def test_goals_are_reached_or_missed(run: Any) -> None:
    goals = run.goals
    most, least, mean = (goals.Goal("it", figure, 2.0) for figure in (goals.COLD, goals.PEER, goals.MEAN))

    def verdict(goal: Any, *values: float) -> str:
        return str(goals.judge(goal, goals.Values({str(i): x for i, x in enumerate(values)}))["verdict"])

    assert [verdict(least, 2.0, 9.0), verdict(least, 1.9, 9.0)] == ["reached", "missed"]  # the worst counts
    assert [verdict(most, 2.0, 0.1), verdict(most, 2.1, 0.1)] == ["reached", "missed"]
    assert [verdict(mean, 1.0, 4.0), verdict(mean, 1.0, 3.9)] == ["reached", "missed"]
    assert [verdict(goal, math.nan) for goal in (least, most, mean)] == ["missed"] * 3
    assert goals.judge(least, goals.NotMeasurable("no"))["verdict"] == "not measurable here"
    assert goals.judge(least, goals.Wrong("no"))["verdict"] == "missed"
    row = goals.judge(least, goals.Values({"a": 1.5, "b": 3.0}, {"a": "torch", "": "so"}), others=0.5)
    text = goals.line(row)
    for part in ("missed", "1.5 x", ">= 2 x", "it: over the best peer", "a 1.5 torch, b 3", "so", "not quiet: 50 %"):
        assert part in text
    assert "not measurable here: no" in goals.line(goals.judge(least, goals.NotMeasurable("no")))


def test_every_goal_can_be_asked_for(run: Any) -> None:
    for goal in run.goals.GOALS:
        known = run.goals.HALVED if goal.figure is run.goals.CAUSAL else run.suite.PROBLEM
        assert set(goal.problems) <= set(known), goal
        assert goal.figure in run.suite.MEASURES or goal.dtype not in run.problems.DTYPES, goal
        assert goal.number > 0
    assert len(set(run.goals.GOALS)) == len(run.goals.GOALS)


def judged(run: Any, wanted: list[Any], loaded: list[Any]) -> tuple[Any, list[dict[str, Any]]]:
    suite = run.suite.Suite(wanted, loaded, 1, 0.01, lambda text: None)
    rows = list(suite.rows())
    json.dumps([rows, *suite.entries.values()])
    return suite, rows


def test_suite_compares_with_the_best_peer(run: Any) -> None:
    goals, harken_ = run.goals, run.rivals.everyone()["harken"]

    def late(out: Any) -> Any:
        time.sleep(0.003)
        return out

    wanted = [
        goals.Goal("beside peers", goals.PEER, 1.0, ("tiny",)),
        goals.Goal("no such peer", goals.PEER, 1.0, ("tiny",), "float64"),
        goals.Goal("no such backend", goals.PEER, 1.0, ("tiny",), backend="abacus"),
        goals.Goal("no such storage", goals.READ, 1.0, ("tiny",), "int3"),
        goals.Goal("beside reading", goals.READ, 1.0, ("decode512",)),
        goals.Goal("held", goals.HELD, 1.0, ("tiny",)),
    ]
    suite, rows = judged(run, wanted, [Plain(), Plain(late, "late"), harken_])
    assert rows[0]["notes"] == {"tiny": "plain"}
    assert rows[0]["by"]["tiny"] == rows[0]["value"] > 0
    assert "no peer" in rows[1]["reason"]
    assert "no backend abacus" in rows[2]["reason"]
    assert "does not store int3" in rows[3]["reason"]
    assert rows[4]["value"] == 100 * suite.entries[suite.case(wanted[4], "decode512")]["rivals"]["harken"]["of_peak"]
    assert list(suite.entries[suite.case(wanted[4], "decode512")]["rivals"]) == ["harken"]  # peers are not needed
    assert "torch is not installed" in rows[5]["reason"]

    wanted = [goals.Goal(name, goals.TORCH, 1.0, ("tiny",), precision=name) for name in ("highest", "high")]
    suite, rows = judged(run, wanted, [Plain(name="torch"), Plain(lambda out: out * np.float32(1 + 1e-4), "harken")])
    assert [row["verdict"] == "missed" and "harken is wrong" in row.get("reason", "") for row in rows] == [True, False]
    assert [entry["problem"]["precision"] for entry in suite.entries.values()] == ["high", "highest"]
    problem = replace(run.problems.PROBLEMS["tiny"], precision="high")
    assert harken_.prepare(problem, "float32", *problem.inputs("float32"), 1).keywords == {"precision": "high"}

    wanted = [goals.Goal("spoilt", goals.PEER, 1.0, ("tiny",))]
    _, rows = judged(run, wanted, [Plain(), Plain(lambda out: out * 2, "harken")])
    assert rows[0]["verdict"] == "missed"
    assert "harken is wrong" in rows[0]["reason"]


def test_stored_in_int8_beside_bfloat16(run: Any) -> None:
    figures = run.goals.READ, run.goals.INT8
    wanted = [run.goals.Goal("decode int8", figure, 1.0, ("decode512",), "int8") for figure in figures]
    suite, rows = judged(run, wanted, [run.rivals.everyone()["harken"]])
    (measured,) = suite.storages.values()  # once for both
    (row,) = (row for row in measured if (row["q"], row["storage"]) == ("bfloat16", "int8"))
    assert rows[0]["value"] == 100 * row["GB/s"] / row["read GB/s"] > 0
    assert rows[1]["value"] == row["over bfloat16"] > 0


def test_who_is_hopeless_is_not_timed(run: Any) -> None:
    def late(out: Any) -> Any:
        time.sleep(0.2)
        return out

    contenders = [Plain(name="harken"), Plain(), Plain(late, "late")]
    arguments = run.problems.PROBLEMS["seed"], "float32", contenders, 1, 0.01, lambda text: None
    assert run.compare(*arguments, best_only=True)["rivals"]["late"]["status"] == "slow"
    assert run.compare(*arguments)["rivals"]["late"]["status"] == "ok"


def test_held_to_avx2_is_a_process_of_its_own(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def child(command: list[Any], env: dict[str, str], **_: Any) -> Any:
        assert env["HARKEN_BACKEND"] == env["ATEN_CPU_CAPABILITY"] == "avx2"
        assert env["MKL_ENABLE_INSTRUCTIONS"] == env["ONEDNN_MAX_CPU_ISA"] == "AVX2"
        given = dict(str(x).lstrip("-").split("=", 1) for x in command[2:])
        assert (given["problems"], given["rivals"], given["dtypes"]) == ("tiny,seed", "torch", "float32")
        ratios = {"tiny": 1.5, "seed": 1.25}
        entries = [{"problem": {"name": name}, "rivals": {"torch": {"ratio": x}}} for name, x in ratios.items()]
        report = {"versions": {"torch": "1 AVX2", "harken": "1 avx2"}, "results": entries}
        Path(given["json"]).write_text(json.dumps(report))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(run.suite.subprocess, "run", child)
    wanted = [run.goals.Goal("held", run.goals.HELD, 1.2, ("tiny", "seed"))]
    _, rows = judged(run, wanted, [Plain(name="torch")])
    assert (rows[0]["verdict"], rows[0]["value"]) == ("reached", 1.25)


def test_harken_beside_itself(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, Any]] = []

    def beside(one: Any, other: Any, seconds: float) -> tuple[float, float]:
        seen.append(tuple(getattr(call, "keywords", {}) for call in (one, other)))
        return 2.0, 2e-3

    monkeypatch.setattr(run.suite, "beside", beside)
    goals = run.goals
    wanted = [
        goals.Goal("call", goals.CALL, 1e3),
        goals.Goal("out", goals.CALL_OUT, 1e3),
        goals.Goal("cold", goals.COLD, 1e3, ("seed",)),
        goals.Goal("causal", goals.CAUSAL, 2.0, ("causal128",)),
        goals.Goal("threads", goals.THREADS, 2.0, ("seed", "whisper")),
    ]
    _, rows = judged(run, wanted, [])
    assert [x["causal"] for x in seen[0]] == [False, True]
    if run.machine.cpus() < 2:
        assert "one CPU" in rows.pop()["reason"]
    else:
        assert [x["threads"] for x in seen[1]] == [1, 2]
        assert list(rows[-1]["by"]) == ["whisper"]  # seed takes less than 1 ms
    assert [row["verdict"] for row in rows] == ["reached"] * len(rows)
    assert [*rows[0]["by"], *rows[1]["by"]] == ["harken.attention(q, k, v)", "harken.attention(q, k, v, out=out)"]
    assert 0 < rows[0]["value"] < 1e3


def test_beside_is_the_first_over_the_second(run: Any) -> None:
    ratio, seconds = run.suite.beside(lambda: time.sleep(0.03), lambda: time.sleep(0.003), 0.01)
    assert ratio > 2
    assert seconds >= 0.003
