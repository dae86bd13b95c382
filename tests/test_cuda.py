"""harken.cuda: what it says without a card, what it says of one, what is chosen, and what goes wrong."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import emulated
import numpy as np
import pytest
from compare import qkv

import harken
import harken.cuda
from harken.cuda import cards, interface

ROOT = Path(__file__).parents[1]
BUILT = Path(interface.__file__).with_name("libharken_cuda.so")
with_kernels = pytest.mark.skipif(not BUILT.exists(), reason="this build has no CUDA kernels")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable of the shell decides, and nothing that a test loads stays."""
    for name in ("HARKEN_CUDA_LIBRARY", "HARKEN_CUDA_KERNEL"):
        monkeypatch.delenv(name, raising=False)
    interface.load.cache_clear()
    yield
    interface.load.cache_clear()


def source_hash(kernel: str) -> str:
    """What the build computes."""
    spec = importlib.util.spec_from_file_location("source_hash", ROOT / "csrc/cuda/source_hash.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: str = module.source_hash(f"{kernel}.cu")
    return found


# --- without a card ---


def test_import_loads_nothing() -> None:
    code = "import sys, harken; print([name for name in sys.modules if name.startswith('harken.cuda')])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_without_a_card_there_are_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARKEN_CUDA_LIBRARY", str(tmp_path / "none.so"))
    assert not harken.cuda.is_available()
    assert harken.cuda.why_not() == f"HARKEN_CUDA_LIBRARY={tmp_path}/none.so is no file"
    assert harken.cuda.devices() == harken.cuda.kernels() == []
    q, k, v = qkv(np.float32, 2, 3)
    for call in (harken.attention, harken.explain):
        with pytest.raises(RuntimeError, match=r"^device is 'cuda:1': .* is no file; leave device=None$"):
            call(q, k, v, device="cuda:1")
    assert harken.info()["cuda"] == {"available": False, "why": harken.cuda.why_not(), "devices": [], "kernels": []}


def test_a_library_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "text.so"
    path.write_text("text")
    monkeypatch.setenv("HARKEN_CUDA_LIBRARY", str(path))
    assert str(harken.cuda.why_not()).startswith("text.so cannot be loaded: ")


@with_kernels
def test_the_library_answers_politely() -> None:
    loaded = interface.load()
    assert [kernel["name"] for kernel in harken.cuda.kernels()] == list(emulated.KERNELS)
    status, words = loaded.status("cards", ctypes.c_int32())
    assert (status == interface.OK) or (status == interface.NO_CARD and words)
    assert harken.cuda.kernels()[-1]["capability"] == "8.0 or newer"
    if status != interface.OK:
        assert harken.cuda.why_not() == words
        assert loaded.status("allocate", 0, 16, None, ctypes.c_void_p())[0] == interface.NO_CARD


@with_kernels
def test_the_library_exports_its_interface_alone() -> None:
    symbols = subprocess.run(["nm", "-D", "--defined-only", BUILT], check=True, capture_output=True, text=True).stdout
    names = {line.split()[-1] for line in symbols.splitlines()}
    wanted = {f"harken_cuda_{name}" for name in (*interface.FUNCTIONS, "interface", "build", "error", "kernels")}
    assert names == wanted
    needed = subprocess.run(["readelf", "-d", BUILT], check=True, capture_output=True, text=True).stdout
    assert "libcuda" not in needed
    assert "python" not in needed
    assert BUILT.stat().st_size < 15 << 20


# --- the record ---


def test_records_are_of_the_source_as_it_is() -> None:
    """A kernel that was changed since is to be checked again: python bench/gpu.py."""
    for record in json.loads((ROOT / "python/harken/cuda/checked.json").read_text("utf-8")):
        assert set(record) == {"kernel", "source", "card", "capability", "driver", "date"}
        assert record["source"] == source_hash(record["kernel"]), (
            f"{record['kernel']} was changed since {record['date']}"
        )


@with_kernels
def test_the_build_knows_its_source() -> None:
    assert {kernel["name"]: kernel["source"] for kernel in harken.cuda.kernels()} == {
        name: source_hash(name) for name in emulated.KERNELS
    }


@emulated.needed
def test_only_what_was_checked_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = qkv(np.float32, 2, 3)
    record = {"kernel": "simple", "source": "emulated", "card": "emulator", "capability": "9.0", "date": "2026-01-01"}
    with emulated.card(None):
        for stale in ([], [record | {"source": "older"}], [record | {"capability": "8.0"}]):
            monkeypatch.setattr(cards, "records", lambda stale=stale: stale)
            with pytest.raises(
                RuntimeError, match=r"^no kernel has been checked on a card like this one, emulator of "
            ):
                harken.attention(q, k, v, device="cuda")
        monkeypatch.setattr(cards, "records", lambda: [record])
        harken.attention(q, k, v, device="cuda")
        assert {kernel["name"]: kernel["checked"] for kernel in harken.cuda.kernels()} == {
            name: [record] * (name == "simple") for name in emulated.KERNELS
        }
    with (
        emulated.card("fastest"),
        pytest.raises(RuntimeError, match=r"^HARKEN_CUDA_KERNEL is 'fastest': wanted one of"),
    ):
        harken.attention(q, k, v, device="cuda")


# --- with one ---


@emulated.needed
@pytest.mark.usefixtures("emulator")
def test_facts_of_a_card() -> None:
    assert harken.cuda.why_not() is None
    (card,) = harken.cuda.devices()
    assert (card["name"], card["capability"]) == ("emulator", "9.0")
    assert 0 < card["free"] <= card["memory"]
    assert harken.info()["cuda"]["available"]


@emulated.needed
@pytest.mark.usefixtures("emulator")
def test_the_plan() -> None:
    q, k, v = qkv(np.float32, 20, 30, 16, 300, Hq=4, Hkv=2)
    plan = harken.explain(q, k, v, device="cuda", causal=True)
    assert isinstance(plan, harken.cuda.Plan)
    assert (plan.device, plan.kernel, plan.blocks, plan.threads) == ("cuda:0", "simple", 4 * 2 * 3, 128)
    assert "forced by HARKEN_CUDA_KERNEL" in str(plan)


@emulated.needed
@pytest.mark.usefixtures("emulator")
def test_out_of_memory_leaves_the_card_usable() -> None:
    q, k, v = qkv(np.float32, 2, 3)
    free = harken.cuda.devices()[0]["free"]
    large = np.zeros((1 << 20, 64), np.float32)
    with pytest.raises(MemoryError, match=r"^keys exceed the memory of the card"):
        harken.attention(q[0, :, :1].repeat(64, 1), large, large, device="cuda", return_weights=True)
    assert harken.cuda.devices()[0]["free"] == free
    harken.attention(q, k, v, device="cuda")
    assert harken.cuda.devices()[0]["free"] == free


@emulated.needed
@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(
    ("device", "error", "words"),
    [
        ("cuda:1", RuntimeError, "there is no card 1: wanted 0 to 0"),
        ("cuda:x", ValueError, "device is 'cuda:x': wanted None, 'cpu', 'cuda' or 'cuda:1'"),
        ("cuda:", ValueError, "device is 'cuda:': wanted None, 'cpu', 'cuda' or 'cuda:1'"),
    ],
)
def test_wrong_devices(device: str, error: type[Exception], words: str) -> None:
    q, k, v = qkv(np.float32, 2, 3)
    with pytest.raises(error) as raised:
        harken.attention(q, k, v, device=device)
    assert str(raised.value) == words


@emulated.needed
@pytest.mark.usefixtures("emulator")
def test_what_only_the_cpu_computes() -> None:
    q, k, v = (x.swapaxes(0, 1) for x in qkv(np.float32, 4, 4))
    with pytest.raises(RuntimeError, match="harken computes packed sequences on the CPU only"):
        harken.attention_varlen(q, k, v, [0, 2, 4], device="cuda")


@emulated.needed
@pytest.mark.usefixtures("emulator")
def test_versions_must_agree() -> None:
    loaded = interface.load()
    call: Any = interface.Call(None, 8, 1, None, 0)
    status, words = loaded.status("attend", ctypes.byref(call))
    assert status == interface.MISUSED
    assert "different versions" in words
