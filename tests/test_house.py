"""The rules of the house hold: what may stand where, what an instruction set may export, what README and map say."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from compare import DTYPES

import harken

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
MAP = (ROOT / "docs" / "map.md").read_text("utf-8")
CMAKE = re.sub(r"#.*", "", (ROOT / "CMakeLists.txt").read_text("utf-8"))
ISA = Path("csrc/cpu/isa")
INSTRUCTION_SETS = {name: flags.split() for name, flags in re.findall(r"^harken_isa\((\w+)(.*)\)$", CMAKE, re.M)}

LONGEST_FILE, LONGEST_LINE = 400, 120


def files(folder: str, *suffixes: str) -> list[Path]:
    """The files below a folder, relative to the root."""
    found = sorted(path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    assert found
    return found


CPP = files("csrc", ".hpp", ".cpp", ".cu", ".cuh", ".h")
PYTHON = [path for folder in ("python", "tests", "bench", "examples") for path in files(folder, ".py")]


def text(path: Path) -> str:
    return (ROOT / path).read_text("utf-8")


def lines(pattern: str, paths: list[Path]) -> list[str]:
    """Every line in which the pattern occurs, as FILE:LINE: TEXT."""
    numbered = ((path, n, line) for path in paths for n, line in enumerate(text(path).splitlines(), 1))
    return [f"{path}:{n}: {line.strip()}" for path, n, line in numbered if re.search(pattern, line)]


def nowhere(pattern: str, paths: list[Path]) -> None:
    found = lines(pattern, paths)
    assert not found, "\n".join([f"{pattern} should not occur here:", *found])


def idea(path: Path) -> str:
    """The one sentence that a file opens with."""
    if path.suffix == ".py":
        first = (ast.get_docstring(ast.parse(text(path))) or "").splitlines()[:2]
        assert first, f"{path} has no docstring"
        assert len(first) == 1 or first[1] == "", f"{path}: the first line of its docstring is not one sentence"
        sentence = first[0]
    else:
        line = text(path).partition("\n")[0]
        start = f"// {path.name} - "
        assert line.startswith(start), f"{path} does not open with {start!r}"
        sentence = line.removeprefix(start)
    assert re.fullmatch(r".+[.?]", sentence), f"{path}: its first line does not end a sentence: {sentence}"
    assert not re.search(r"[.?] [A-Z]", sentence), f"{path}: its first line is more than one sentence: {sentence}"
    return sentence


def included(path: Path, seen: dict[Path, list[str]]) -> dict[Path, list[str]]:
    """The files that one includes, and theirs, each with the system headers that it names."""
    if path in seen:
        return seen
    seen[path] = re.findall(r"^#include <(.+)>", text(path), re.M)
    own = re.findall(r'^#include "(.+)"', text(path), re.M)
    below = [Path(os.path.normpath(path.parent / name)) for name in own]
    if "#include HARKEN_ISA_HEADER" in text(path):
        below += files(str(ISA), ".hpp")
    for other in below:
        included(other, seen)
    return seen


# --- what may stand where ---


def test_every_file_opens_with_its_idea() -> None:
    for path in CPP + PYTHON:
        idea(path)


def test_no_file_and_no_line_is_too_long() -> None:
    long_files = {str(path): n for path in CPP + PYTHON if (n := len(text(path).splitlines())) > LONGEST_FILE}
    assert not long_files
    nowhere(rf".{{{LONGEST_LINE + 1}}}", CPP)  # of the Python files ruff says it


def test_nothing_is_left_for_later() -> None:
    nowhere(r"\b(TO" + r"DO|FIX" + r"ME)\b", CPP + PYTHON)


def test_intrinsics_stay_with_their_instruction_set() -> None:
    generic = [path for path in CPP if ISA not in path.parents]
    nowhere(r"\b_mm\d*_|\b__m\d+[di]?\b|immintrin\.h", generic)


def test_one_file_knows_openmp() -> None:
    nowhere(r"#pragma omp|\bomp_\w+|omp\.h", [path for path in CPP if path.name != "parallel.cpp"])
    assert len(lines(r"#pragma omp", CPP)) == 1


def test_one_folder_knows_python() -> None:
    outside = [path for path in CPP if Path("csrc/python") not in path.parents]
    nowhere(r"pybind11|numpy/|\bPy[A-Z_]\w+|\bnpy_\w+|NPY_", outside)


def test_no_unsafe_mathematics() -> None:
    assert "fast-math" not in CMAKE
    assert "funsafe" not in CMAKE


# --- the wall around code that is compiled for one instruction set ---


def test_instruction_sets_are_a_file_and_a_line() -> None:
    assert {path.stem for path in files(str(ISA), ".hpp")} == set(INSTRUCTION_SETS)
    assert harken.info()["cpu"]["compiled"] == list(INSTRUCTION_SETS)


def test_no_standard_library_behind_the_wall() -> None:
    behind = included(ISA / "layers.cpp", included(ISA / "isa.cpp", {}))
    for path, system in behind.items():
        allowed = {"stdint.h", "stddef.h"} | ({"immintrin.h"} if ISA in path.parents else set())
        assert set(system) <= allowed, path


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize(("source", "entry"), [("isa.cpp", "backend"), ("layers.cpp", "layers")])
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_one_symbol_comes_out(name: str, source: str, entry: str, tmp_path: Path) -> None:
    """With the flags of the build, but -O1: the same symbols in a third of the time."""
    common = re.search(r"target_compile_options\(harken_\$\{name\} PRIVATE \$\{ARGN\}(.*?)\)", CMAKE, re.S)
    assert common
    flags = ["-std=gnu++20", "-fPIC", "-fvisibility=hidden", *INSTRUCTION_SETS[name], *common[1].split(), "-O1", "-w"]
    given = {
        "HARKEN_ISA_HEADER": f'"{name}.hpp"',
        "HARKEN_ISA_NAME": f'"{name}"',
        "HARKEN_ISA_BACKEND": f"{name}_backend",
        "HARKEN_ISA_LAYERS": f"{name}_layers",
    }
    defined = [f"-D{key}={value}" for key, value in given.items()]
    target = tmp_path / "isa.o"
    subprocess.run(["g++", *flags, *defined, "-c", ROOT / ISA / source, "-o", target], check=True)
    symbols = subprocess.run(["nm", "-C", target], check=True, capture_output=True, text=True).stdout
    kinds = [(kind, symbol) for kind, symbol in re.findall(r"^[0-9a-f ]* (\S) (.+)$", symbols, re.M)]
    assert [symbol for kind, symbol in kinds if kind in "uvwVW" or (kind.isupper() and kind != "U")] == [
        f"harken::{name}_{entry}"
    ]
    wanted = {symbol.partition("(")[0] for kind, symbol in kinds if kind == "U"}
    house = {"harken::interrupted", "harken::task_at", f"harken::{name}_layers"} if source == "isa.cpp" else set()
    assert house <= wanted
    library = {"exp2", "log2", "memcpy", "memset", "memmove"}
    hardening = {"__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}  # what some distributions' compilers add
    assert wanted <= house | {"harken::decoded_in_parts"} | library | hardening  # where there is an engine


# --- one list of storage types ---


def test_storage_types_are_what_python_takes() -> None:
    *rows, scaled = re.findall(r'X\(\w+, \w+, "(\w+)", \w+\)', text(Path("csrc/dtype.hpp")))
    reference = importlib.import_module("harken.reference")
    assert rows == list(reference.STORAGE)
    assert [scaled] == list(reference.SCALED)
    assert rows == list(DTYPES)
    for name in rows:
        x = np.ones((2, 3), DTYPES[name])
        assert harken.attention(x, x, x).dtype.name == name


# --- the README ---


def blocks(language: str, part: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", part, re.M | re.S)


def mapped() -> Iterator[tuple[Path, str]]:
    """The files of the map with their sentences; NAME.* is NAME.hpp and NAME.cpp."""
    folder = Path()
    for line in "".join(blocks("text", MAP)).splitlines():
        name, _, sentence = line.strip().partition(" ")
        if line[0] != " ":
            folder = Path(name)
        else:
            for path in (ROOT / folder).glob(name) if name.endswith(".*") else [ROOT / folder / name]:
                yield path.relative_to(ROOT), sentence.strip()


def test_map_of_the_house() -> None:
    """Every file is on the map, with the sentence that it opens with."""
    drawn = list(mapped())
    house = {path: idea(path) for path in CPP + files("python", ".py")}
    data = files("python", ".pyi", ".txt", ".typed", ".json")
    assert len(drawn) == len(dict(drawn)), "a file is on the map twice"
    assert {path for path, _ in drawn} == {*house, *data}
    assert {path: sentence for path, sentence in drawn if path in house} == house


def test_files_that_the_readme_names_are_there() -> None:
    names = set(re.findall(r"`((?:tests|bench|csrc|python|examples|docs)/[\w/.]+)`", README))
    assert names
    assert not [name for name in names if not (ROOT / name).exists()]


def test_set_up_is_two_commands() -> None:
    assert [command.count("\n") for command in blocks("sh", README)] == [1, 1]


def test_the_first_example_prints_what_it_says() -> None:
    code, says = blocks("python", README)[0], blocks("text", README)[0]
    assert sum(map(bool, code.splitlines())) == 5
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    error = r"\d+e-\d+"  # of the instruction set that computes
    assert re.sub(error, "", printed.getvalue()) == re.sub(error, "", says)
    ours, theirs = (float(re.findall(error, out)[0]) for out in (printed.getvalue(), says))
    assert ours <= 3 * theirs
