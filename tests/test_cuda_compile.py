"""nvcc compiles every kernel without a warning, and what its assembler reports is what is expected of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import emulated
import pytest

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")

FLAGS = ["-std=c++17", "-O3", "-Xcompiler=-Wall,-Wextra", "-Werror=all-warnings", "-Xptxas=-v", '-DHARKEN_SOURCE=""']

# Of each kernel the architecture, and for each of its functions the most registers, stack and spilled bytes.
EXPECTED = {"simple": ("sm_80", {"attend_simpleIf": (168, 1024, 0), "attend_simpleId": (168, 1024, 256)})}


@pytest.mark.parametrize("kernel", emulated.KERNELS)
def test_no_warning_and_no_surprise(kernel: str, tmp_path: Path) -> None:
    architecture, functions = EXPECTED[kernel]
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
