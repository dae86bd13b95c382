"""The functions are what they look like: one signature, documented, with examples that run; a plan reads well."""

from __future__ import annotations

import copy
import doctest
import gc
import importlib
import inspect
import json
import os
import pickle
import pkgutil
import pydoc
import subprocess
import sys
import threading
import time
import weakref
from typing import Any, get_type_hints

import numpy as np
import pytest
from compare import forced, qkv

import harken

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(harken.__path__, "harken.")
    if not name.endswith(("__main__", "_harken_core", "libharken_cuda"))  # what is compiled, one for Python, one not
]
PUBLIC = [getattr(harken, name) for name in harken.__all__]


def test_one_signature() -> None:
    attention, explain, reference = (inspect.signature(f) for f in (harken.attention, harken.explain, harken.reference))
    shape = [(p.name, p.kind, p.default) for p in attention.parameters.values()]
    assert [(p.name, p.kind, p.default) for p in explain.parameters.values()] == shape
    assert [(p.name, p.kind, p.default) for p in reference.parameters.values()][:-1] == shape
    assert list(reference.parameters)[-1] == "dtype"


def test_signature_of_the_contract() -> None:
    signature = str(inspect.signature(harken.attention).replace(return_annotation=inspect.Signature.empty))
    names = [text.split(":")[0].split("=")[0].strip() for text in signature.strip("()").split(", ") if "=" in text]
    defaults = {n: p.default for n, p in inspect.signature(harken.attention).parameters.items()}
    assert list(defaults)[:3] == ["q", "k", "v"]
    assert {n: d for n, d in defaults.items() if d is not None and d is not inspect.Parameter.empty} == {
        "causal": False,
        "score": "dot",
        "precision": "highest",
        "head_axis": -3,
        "return_lse": False,
        "return_weights": False,
    }
    assert len(names) == 22


def test_options_are_the_keywords() -> None:
    from harken.attention import Options

    keywords = list(inspect.signature(harken.attention).parameters)[3:]
    assert [n for n in keywords if n not in ("return_lse", "return_weights")] == list(get_type_hints(Options))


def test_decorated_name_and_arguments_are_checked() -> None:
    def other(q: Any, k: Any, v: Any) -> None: ...

    def attention(q: Any, k: Any, v: Any, *, mask: Any = None) -> None: ...

    for function in (other, attention):
        with pytest.raises(TypeError, match=r"has the arguments .*, the extension has "):
            harken._core.native(function)
    another: dict[str, Any] = {}
    names = list(inspect.signature(harken.attention).parameters)
    exec(f"def other({', '.join(names[:3])}, *, {'=None, '.join(names[3:])}=None): ...", another)
    with pytest.raises(ValueError, match="the extension has no body for <function other"):
        harken._core.native(another["other"])


@pytest.mark.parametrize("name", ["attention", "explain"])
def test_looks_like_a_function(name: str) -> None:
    function = getattr(harken, name)
    assert repr(function) == f"<function harken.{name}>"
    assert (function.__name__, function.__qualname__, function.__module__) == (name, name, f"harken.{name}")
    assert inspect.isroutine(function)
    assert function.__wrapped__.__doc__ == function.__doc__
    text = pydoc.plain(pydoc.render_doc(function))
    assert f"{name}(" in text
    assert "q: 'ArrayLike'" in text
    assert "Examples" in text
    page = pydoc.plain(pydoc.render_doc(harken))
    assert f"{name}(" in page
    for again in (pickle.loads(pickle.dumps(function)), copy.copy(function), copy.deepcopy(function)):
        assert again is function
    assert weakref.ref(function)() is function
    assert hash(function) == hash(function)


def test_function_object_is_collected() -> None:
    made = harken._core.native(harken.attention.__wrapped__)
    made.itself = made
    alive = weakref.ref(made)
    q = np.ones((2, 3))
    assert made(q, q, q).shape == (2, 3)
    del made
    gc.collect()
    assert alive() is None


def test_method_of_a_class() -> None:
    class Query(np.ndarray):
        attend = harken.attention

    q, k, v = qkv(np.float32, 3, 4)
    assert np.array_equal(q.view(Query).attend(k, v, causal=True), harken.attention(q, k, v, causal=True))
    assert Query.attend is harken.attention


def test_ways_to_pass_arguments() -> None:
    q, k, v = qkv(np.float32, 3, 4)
    plain = harken.attention(q, k, v, causal=True)
    options = {"cau" + "sal": True, "".join(["k"]): k, "v": v}  # keys that are not interned
    assert np.array_equal(harken.attention(q, **options), plain)
    assert np.array_equal(harken.attention(*[q, k, v], **{"causal": True}), plain)
    assert np.array_equal(harken.attention(causal=True, v=v, k=k, q=q), plain)


def test_references_are_given_back() -> None:
    q, k, v = qkv(np.float32, 3, 4)
    mask, bias, sinks = np.ones((3, 4), bool), np.zeros((3, 4)), np.zeros(2, np.float32)
    held = [q, k, v, mask, bias, sinks, 12345.5]
    before = [sys.getrefcount(x) for x in held]

    def calls() -> None:
        harken.attention(q, k, v, mask=mask, bias=bias, sinks=sinks, scale=held[-1], return_lse=True)
        harken.attention(q, k, v, mask=mask, return_lse=True, return_weights=True)
        harken.attention(q, k.astype(">f4"), v, out=q.copy())
        harken.explain(q, k, v, mask=mask, bias=bias)
        with pytest.raises(ValueError, match="rows"):
            harken.attention(q, k, v[:, :2], mask=mask, bias=bias)
        with pytest.raises(ValueError, match="broadcasts"):
            harken.attention(q, k, v, mask=mask, bias=bias, sinks=np.zeros(5))

    for _ in range(10):
        calls()
    assert [sys.getrefcount(x) for x in held] == before
    gc.collect()
    alive = len(gc.get_objects())
    for _ in range(50):
        calls()
    gc.collect()
    assert len(gc.get_objects()) - alive < 20


@pytest.mark.parametrize("name", ["harken", *MODULES])
def test_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("thing", PUBLIC, ids=harken.__all__)
def test_everything_public_is_documented(thing: Any) -> None:
    assert inspect.getdoc(thing)
    if inspect.isroutine(thing):
        examples = doctest.DocTestFinder(recurse=False).find(thing, thing.__name__)
        assert any(example.examples for example in examples)
        assert thing.__name__ in harken.__all__


def test_plan_reads_well() -> None:
    q, k, v = qkv(np.float32, 300, 400, D=64, Hq=8, Hkv=2, batch=(3,))
    with forced(harken.backends()[-1]):  # which has no matrix engine
        plan = harken.explain(q, k.astype(">f4"), v, threads=1, precision="medium")
    text = str(plan)
    lines = text.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "arrays", "backend", "form", "a head", "tasks", "threads", "precision", "workspace", "copies",
    ]  # fmt: skip
    assert max(map(len, lines)) < 160
    for part in ("(3, 8, 300, 64)", "float32", "3 batches", "'medium' was asked for", "copies     k"):
        assert part in text
    assert (plan.threads, plan.converted, plan.precision, plan.batches) == (1, ("k",), "highest", 3)
    assert plan.tasks == plan.batches * plan.heads * plan.tiles * plan.ranges
    assert plan.workspace_bytes == plan.threads * plan.scratch_bytes + plan.partial_bytes
    with pytest.raises(AttributeError):
        plan.threads = 2


def test_plan_follows_the_choice(backend: str) -> None:
    q, k, v = qkv(np.float64, 3, 4)
    plan = harken.explain(q, k, v)
    assert plan.backend == backend
    assert "set_backend" in plan.why_backend
    assert plan.computed_in == "float64"


def test_the_plan_does_not_depend_on_threads() -> None:
    q, k, v = qkv(np.float32, 300, 1400, D=64)
    plans = [harken.explain(q, k, v, threads=threads) for threads in (1, 2, 7)]
    assert len({(p.tiles, p.tile_rows, p.ranges, p.range_keys, p.key_block, p.tasks) for p in plans}) == 1


def test_info() -> None:
    facts = harken.info()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["version"] == harken.__version__
    assert facts["cpu"]["available"] == harken.backends()
    assert set(facts["cpu"]["available"]) <= set(facts["cpu"]["compiled"])
    assert facts["cpu"]["backend"] == harken.get_backend()
    assert facts["threads"]["count"] == harken.get_num_threads()
    assert facts["threads"]["why"]
    assert facts["cuda"]["available"] == (facts["cuda"]["why"] is None)


def test_number_of_threads() -> None:
    default = harken.get_num_threads()
    assert default >= 1
    try:
        harken.set_num_threads(np.int64(3))
        assert harken.get_num_threads() == 3
        assert harken.info()["threads"]["why"] == "set_num_threads"
    finally:
        harken.set_num_threads(None)
    assert harken.get_num_threads() == default


def run(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_import_leaves_the_environment_alone() -> None:
    code = "import os; old = dict(os.environ); import harken; print(os.environ == old, os.getenv('GOMP_SPINCOUNT'))"
    assert run(code) == "True None"
    assert run(code, GOMP_SPINCOUNT="7") == "True 7"
    assert run(code, OMP_WAIT_POLICY="passive") == "True None"


def test_import_starts_no_thread_and_needs_nothing() -> None:
    code = "import sys, numpy, os; n = len(os.listdir('/proc/self/task')); import harken; "
    assert run(code + "print(len(os.listdir('/proc/self/task')) - n)") == "0"
    extras = "('ml_dtypes', 'torch', 'matplotlib', 'threadpoolctl', 'onnx', 'keras')"
    assert run(code + f"print([name for name in {extras} if name in sys.modules])") == "[]"


def test_many_python_threads_at_once() -> None:
    q, k, v = qkv(np.float32, 200, 300, D=64, Hq=4)
    expected, results = harken.attention(q, k, v, causal=True), []
    threads = [
        threading.Thread(target=lambda: results.extend(harken.attention(q, k, v, causal=True) for _ in range(5)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    assert all(np.array_equal(result, expected) for result in results)


def test_other_python_threads_run_meanwhile() -> None:
    q = np.zeros((4, 4000, 64), np.float32)
    call = threading.Thread(target=harken.attention, args=(q, q, q), kwargs={"threads": 1})
    turns = 0
    call.start()
    while call.is_alive():
        turns += 1
        time.sleep(0.001)
    assert turns > 5


def test_interrupt_ends_a_long_call() -> None:
    code = """
import os, signal, threading, time
import numpy as np
import harken

q = np.zeros((64, 20000, 64), np.float32)
delays = []
for threads in (1, 2, 1, 2):
    sent = []
    def interrupt():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)
    threading.Timer(0.3, interrupt).start()
    try:
        harken.attention(q, q, q, threads=threads)
    except KeyboardInterrupt:
        delays.append(time.perf_counter() - sent[0])
print(len(delays), min(delays) < 0.1, harken.attention(q[:1, :2], q[:1, :3], q[:1, :3]).sum())
"""
    assert run(code) == "4 True 0.0"
