"""nvcc compiles every kernel without a warning, and what its assembler reports is what is expected of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import emulated
import pytest

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")

FLAGS = ["-std=c++17", "-O3", "-Xcompiler=-Wall,-Wextra", "-Werror=all-warnings", "-Xptxas=-v", '-DHARKEN_SOURCE=""']

# Of each kernel the functions, by what their names contain, with the most registers, stack and spilled bytes. 65536
# registers are 2 blocks of 128 threads at 255 of them, 3 at 168.
EXPECTED = {
    "decode": {
        f"{function}INS0_4FormINS_{of}ELi{width}E": (registers[n], 0, 0)
        for of in ("3f16", "4bf16")
        for n, width in enumerate((64, 128, 256))
        for function, registers in (("attend_decode", (168, 168, 255)), ("merge_ranges", (64, 64, 64)))
    },
    "hopper": {f"{of}ELi{width}E": (168, 0, 0) for of in ("3f16", "4bf16") for width in (64, 128, 256)},
    "portable": {
        f"{of}ELi{width}E": (registers, 0, 0)
        for of in ("3f16", "4bf16")
        for width, registers in ((64, 255), (128, 255), (256, 250))
    },
    "tf32": {
        f"ILi{width}ELi{keys}ELi1ELi{terms}E": (registers, 0, 0)
        for width, keys, of in ((64, 64, (168, 198)), (128, 32, (242, 255)), (256, 16, (220, 250)))
        for terms, registers in zip((1, 2), of, strict=True)
    },
    "simple": {"attend_simpleIf": (168, 1024, 0), "attend_simpleId": (168, 1024, 256)},
}

# Of those on a matrix engine, of each function the fewest products; 0: it makes none, and has no memory of its own.
PRODUCTS = {
    "decode": {"attend_decode": 16, "merge_ranges": 0},
    "portable": {"attend_portable": 64},
    "tf32": {"attend_tf32": 64},
}
PRODUCT = {"tf32": r"HMMA\.1688\.F32\.TF32"}
HALVES = r"HMMA\.16816\.F32(\.BF16)?"

# Where to find the disassembler: on the path, or in the package nvidia-cuda-nvdisasm.
PACKAGED = [found for folder in sys.path for found in Path(folder).glob("nvidia/*/bin/nvdisasm")]
NVDISASM = shutil.which("nvdisasm") or next(map(str, PACKAGED), None)


BUILDS = [(kernel, f"sm_{n}") for kernel in emulated.KERNELS for n in (("90a",) if kernel == "hopper" else (80, 90))]


@pytest.mark.parametrize(("kernel", "architecture"), BUILDS)
def test_no_warning_and_no_surprise(kernel: str, architecture: str, tmp_path: Path) -> None:
    functions = EXPECTED[kernel]
    command = [
        "nvcc",
        f"-gencode=arch=compute_{architecture[3:]},code={architecture}",
        *FLAGS,
        "-cubin",
        emulated.CUDA / f"{kernel}.cu",
        "-o",
        tmp_path / "cubin",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"\(C7\d+\)", done.stderr), done.stderr  # products made to wait, registers not handed over
    reports = re.split(r"Compiling entry function", done.stderr)[1:]
    assert len(reports) == len(functions)
    for name, (registers, stack, spilled) in functions.items():
        (report,) = (report for report in reports if name in report.partition("\n")[0])
        numbers = [int(number) for number in re.findall(r"(\d+) bytes (?:stack frame|spill stores)", report)]
        used = re.search(r"Used (\d+) registers", report)
        assert used
        assert int(used[1]) <= registers, report
        assert numbers[0] <= stack, report
        assert numbers[1] <= spilled, report
    if NVDISASM is None:
        return
    if kernel in PRODUCTS:
        check_instructions(tmp_path / "cubin", len(functions), PRODUCTS[kernel], PRODUCT.get(kernel, HALVES))
    if kernel == "hopper":
        check_engines(tmp_path / "cubin", functions)


def check_engines(cubin: Path, functions: dict[str, tuple[int, int, int]]) -> None:
    """Products by wgmma, two begun before one is waited for; powers between; tiles by the copy engine."""
    for name, text in instructions(cubin, functions).items():
        width = int(re.findall(r"ELi(\d+)E", name)[0])
        keys = 64 if width == 256 else 128
        kind = "F32.BF16" if "4bf16" in name else "F32"
        shapes = re.findall(r"\bHGMMA\.(\S+)", text)
        steps = {f"64x{keys}x16.{kind}": width // 16, f"64x{width}x16.{kind}": keys // 16}
        expected = sum(2 * steps.get(shape, 0) for shape in steps)  # the first S, S and O of the loop, the last O
        assert set(shapes) == set(steps), shapes
        assert len(shapes) == (expected if len(steps) == 2 else 2 * (width + keys) // 16)
        waits = re.findall(r"DEPBAR\.LE gsb0, (0x\d)", text)
        assert waits == ["0x0", "0x1", "0x0", "0x0"], waits  # one more would be a product that waits for another
        loop = re.split(r"WARPGROUP\.DEPBAR", text)[2]
        powers = keys // 2
        assert len(re.findall(r"MUFU\.EX2", loop)) >= powers * 0.75, "powers are taken after the wait for O"
        assert sorted(re.findall(r"USETMAXREG\.(\w+)", text)) == ["DEALLOC", "TRY_ALLOC"]
        count = {word: len(re.findall(rf"\b{word}\b", text)) for word in ("UTMALDG", "SYNCS", "HMMA", "LDL", "STL")}
        assert count["UTMALDG"] == 3, count
        assert count["SYNCS"] >= 20, count
        assert count["HMMA"] == count["LDL"] == count["STL"] == 0, count


def instructions(cubin: Path, functions: dict[str, tuple[int, int, int]]) -> dict[str, str]:
    """The disassembly of each function, by its name."""
    assert NVDISASM is not None
    text = subprocess.run([NVDISASM, "-c", cubin], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\.text\.", text, flags=re.M)[1:]
    found = {part.partition(":")[0]: part for part in parts}
    assert len(found) == len(functions)
    return found


def check_instructions(cubin: Path, functions: int, products: dict[str, int], product: str) -> None:
    """Products by the matrix engine, fragments by one instruction, copies past the registers, no memory of a thread."""
    assert NVDISASM is not None
    text = subprocess.run([NVDISASM, "-c", cubin], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\.text\.", text, flags=re.M)[1:]
    assert len(parts) == functions
    for part in parts:
        assert len(re.findall(r"\bHMMA\.", part)) == len(re.findall(rf"\b{product}\b", part))
        count = {name: len(re.findall(rf"\b{name}\b", part)) for name in ("HMMA", "LDSM", "LDGSTS", "LDL", "STL")}
        assert count["LDL"] == count["STL"] == 0, count
        (least,) = (number for name, number in products.items() if name in part.partition("\n")[0])
        if least == 0:
            continue
        assert count["HMMA"] >= least, count
        assert 0 < count["LDSM"] <= count["HMMA"], count
        assert count["LDGSTS"] > 0, count
