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


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("kernel", emulated.KERNELS)
def test_no_warning_and_no_surprise(kernel: str, architecture: str, tmp_path: Path) -> None:
    functions = EXPECTED[kernel]
    command = [
        "nvcc",
        f"-arch={architecture}",
        *FLAGS,
        "-cubin",
        emulated.CUDA / f"{kernel}.cu",
        "-o",
        tmp_path / "cubin",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
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
    if kernel in PRODUCTS and NVDISASM is not None:
        check_instructions(tmp_path / "cubin", len(functions), PRODUCTS[kernel], PRODUCT.get(kernel, HALVES))


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
