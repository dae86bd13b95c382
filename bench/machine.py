"""What a measurement must say about where it was made."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

# The variables that change how fast somebody runs.
VARIABLES = ("ATEN_", "DNNL_", "GOMP_", "HARKEN_", "KMP_", "MKL_", "NPROC", "OMP_", "ONEDNN_", "OPENBLAS_", "XLA_")
VECTORS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "amx_fp16")
QUIET = 0.05  # the share of the machine's CPU time that may go elsewhere before its figures are not to be believed


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache() -> int:
    """Bytes of the largest cache."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size.rstrip("K")) << 10 for size in sizes if size.endswith("K")), default=32 << 20)


def describe() -> dict[str, Any]:
    info = {}
    if (path := Path("/proc/cpuinfo")).exists():
        lines = (line.partition(":") for line in path.read_text().split("\n\n")[0].splitlines())
        info = {key.strip(): value.strip() for key, _, value in lines}
    flags = set(info.get("flags", "").split())
    return {
        "cpu": info.get("model name", platform.processor()),
        "cpus": cpus(),
        "vectors": [flag for flag in VECTORS if flag in flags],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def environment() -> dict[str, str]:
    return {key: value for key, value in sorted(os.environ.items()) if key.startswith(VARIABLES)}


class Quiet:
    """Watches how much of the machine's time somebody else takes while we measure: other programs and other guests."""

    def __init__(self) -> None:
        self.start = self.clocks()

    def clocks(self) -> tuple[float, float, float]:
        """Seconds since whenever: CPU time spent on this machine, that of ours alone, time on the wall."""
        busy = 0.0
        if (path := Path("/proc/stat")).exists():
            user, nice, system, _, _, irq, softirq, steal = map(int, path.read_text().split("\n")[0].split()[1:9])
            busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        ours = time.process_time() + sum(os.times()[2:4])  # and the processes that this one has waited for
        return busy, ours, time.perf_counter()

    def others(self) -> float:
        """The share of the machine's CPU time that went elsewhere."""
        busy, ours, wall = (now - then for now, then in zip(self.clocks(), self.start, strict=True))
        return max(0.0, (busy - ours) / (wall * (os.cpu_count() or 1)))
