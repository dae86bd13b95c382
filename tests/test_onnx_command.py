"""`python -m harken onnx`: it writes what the model gives; a mistake is one line, exit code 2 and no file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import call, start
from compare import DTYPES

import harken

onnx = pytest.importorskip("onnx")

LAYER = """
<ir_version: 10, opset_import: ["": 23]>
layer (float[B, 4, L, 8] q, float[B, 2, S, 8] k, float[B, 2, S, 8] v, float half)
=> (float[B, 4, L, 8] file, float[B, 4, L, 8] z)
<float half = {0.5}>
{
  file = Attention <is_causal = 1> (q, k, v)
  z = Mul (file, half)
}
"""
INNER = """
<ir_version: 10, opset_import: ["": 23, "local": 1]>
layer (float[B, 4, L, 8] q, float[B, 2, S, 8] k, float[B, 2, S, 8] v) => (float[B, 4, L, 8] y)
{ y = local.twice (q, k, v) }
<opset_import: ["": 23], domain: "local">
twice (q, k, v) => (y) {
  x = Attention (q, k, v)
  y = Attention (x, k, v)
}
"""
INPUTS = ["--input", "q=q.npy", "k=k.npy", "v=all.npz:v"]


@pytest.fixture(autouse=True)
def arrays(folder: Path) -> dict[str, Any]:
    """The inputs of a model, which lie in the folder beside it."""
    rng = np.random.default_rng(0)
    made = {name: rng.standard_normal((1, heads, 5, 8), np.float32) for name, heads in (("q", 4), ("k", 2), ("v", 2))}
    np.save("q.npy", made["q"])
    np.save("k.npy", made["k"])
    np.savez("all.npz", **made)
    onnx.save(onnx.parser.parse_model(LAYER), "layer.onnx")
    return made


def test_a_model_runs(arrays: dict[str, Any]) -> None:
    out, err = call("onnx", "layer.onnx", *INPUTS, "-o", "out.npz")
    wanted = harken.attention(*arrays.values(), causal=True)
    with np.load("out.npz") as results:
        assert list(results) == ["file", "z"]
        np.testing.assert_array_equal(results["file"], wanted)
        np.testing.assert_array_equal(results["z"], wanted / 2)
    assert out.startswith("out.npz: 2 arrays in ")
    assert "file: (1, 4, 5, 8) float32\nz: (1, 4, 5, 8) float32\n" in out
    assert err == ""


def test_an_initializer_may_be_replaced_and_a_backend_forced(arrays: dict[str, Any]) -> None:
    np.save("half.npy", np.float32(3))
    backend = harken.backends()[-1]
    call("onnx", "layer.onnx", *INPUTS, "--input", "half=half.npy", "--backend", backend, "-o", "out.npz")
    assert harken.get_backend() == backend
    np.testing.assert_array_equal(np.load("out.npz")["z"], harken.attention(*arrays.values(), causal=True) * 3)


def test_functions_of_the_model_are_harken_s_too(arrays: dict[str, Any]) -> None:
    onnx.save(onnx.parser.parse_model(INNER), "inner.onnx")
    call("onnx", "inner.onnx", *INPUTS, "-o", "out.npz")
    q, k, v = arrays.values()
    np.testing.assert_array_equal(np.load("out.npz")["y"], harken.attention(harken.attention(q, k, v), k, v))


def test_bfloat16_goes_in_and_comes_out(arrays: dict[str, Any]) -> None:
    given = {name: x.astype(DTYPES["bfloat16"]) for name, x in arrays.items()}
    np.savez("bf.npz", **given)
    text = '<ir_version: 10, opset_import: ["": 23]> a (bfloat16[B, 4, L, 8] q, bfloat16[B, 2, S, 8] k, '
    text += "bfloat16[B, 2, S, 8] v) => (bfloat16[B, 4, L, 8] y) { y = Attention (q, k, v) }"
    onnx.save(onnx.parser.parse_model(text), "bf.onnx")
    call("onnx", "bf.onnx", "--input", *(f"{name}=bf.npz:{name}" for name in "qkv"), "-o", "out.npz")
    got = np.load("out.npz")["y"].view(DTYPES["bfloat16"])
    np.testing.assert_array_equal(got, harken.attention(*given.values()))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gone.onnx"], "gone.onnx: No such file"),
        (["q.npy"], "q.npy is no ONNX model"),
        (["layer.onnx", "--input", "q"], "--input takes NAME=FILE, not q"),
        (["layer.onnx", "--input", "x=q.npy"], "layer.onnx has no input 'x', it has 'q', 'k', 'v', 'half'"),
        (["layer.onnx", "--input", "q=gone.npy"], "gone.npy: no such file"),
        (["layer.onnx", "--input", "q=q.npy", "q=q.npy"], "the input 'q' is given twice"),
        (
            ["layer.onnx", "--input", "q=q.npy", "k=k.npy"],
            "layer.onnx needs the input 'v', float32 (B, 2, S, 8): give --input v=FILE.npy",
        ),
        (
            ["layer.onnx", "--input", "k=q.npy"],
            "the input 'k' is float32 (1, 4, 5, 8), the model wants float32 (B, 2, S, 8)",
        ),
        (["layer.onnx", "--input", "q=wide.npy"], "the input 'q' is float64 (1, 4, 5, 8), the model wants float32"),
        (["layer.onnx", *INPUTS[:-1], "v=short.npy"], "layer.onnx: v has 3 rows, k has 5"),
        (["layer.onnx", *INPUTS, "--backend", "abacus"], "abacus"),
        (["new.onnx", *INPUTS[:2]], "new.onnx: "),
    ],
)
def test_mistakes(argv: list[str], message: str) -> None:
    np.save("wide.npy", np.zeros((1, 4, 5, 8)))
    np.save("short.npy", np.zeros((1, 2, 3, 8), np.float32))
    text = '<ir_version: 10, opset_import: ["": 23]> a (float[B, 4, L, 8] q) => (float y) { y = Unheard (q) }'
    onnx.save(onnx.parser.parse_model(text), "new.onnx")
    assert message in call("onnx", *argv, "-o", "out.npz", code=2)[1]
    assert not list(Path().glob("*out.npz*")), "a file is left behind"


def test_a_full_disk_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    before = set(Path().iterdir())
    monkeypatch.setattr(np.lib.format, "write_array", full)
    assert "No space left" in call("onnx", "layer.onnx", *INPUTS, "-o", "out.npz", code=2)[1]
    assert set(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.npy", "out.npy: the output is an .npz file, name it so"),
        ("no/out.npz", "no/out.npz: there is no folder no"),
    ],
)
def test_the_output_must_be_possible(name: str, message: str) -> None:
    assert message in call("onnx", "layer.onnx", *INPUTS, "-o", name, code=2)[1]


def test_without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "harken.onnx", raising=False)
    for name in [name for name in sys.modules if name == "onnx" or name.startswith("onnx.")]:
        monkeypatch.setitem(sys.modules, name, None)
    _, err = call("onnx", "layer.onnx", *INPUTS, "-o", "out.npz", code=2)
    assert err == "harken onnx: harken.onnx needs onnx: pip install 'harken[onnx]'\n"


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    process = start("onnx", "layer.onnx", *INPUTS, "-o", "out.npz", cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("out.npz: 2 arrays in ")
