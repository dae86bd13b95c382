"""What the card is and what it can: name, driver, clocks, and the rates that nothing on it can exceed."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FIELDS = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
GIB = 1 << 30


def torch_with_card() -> Any:
    """PyTorch, or in words why it cannot be used."""
    try:
        import torch
    except ImportError as error:
        return f"PyTorch cannot be imported: {error}"
    return torch if torch.cuda.is_available() else "PyTorch sees no card"


def driver() -> dict[str, str]:
    """What nvidia-smi says, or the driver's own file."""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "-i", "0", f"--query-gpu={FIELDS}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return dict(zip(FIELDS.split(","), done.stdout.strip().split(", "), strict=True))
    path = Path("/proc/driver/nvidia/version")
    return {"driver_version": path.read_text().split("\n")[0] if path.exists() else "unknown"}


def median_ms(torch: Any, call: Callable[[], Any], count: int = 20) -> float:
    """By events of the card."""
    call()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for begin, end in marks:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    times = sorted(begin.elapsed_time(end) for begin, end in marks)
    return float(times[count // 2])


def bandwidths(torch: Any) -> dict[str, float]:
    """GB/s: of reading alone, of a copy (read and written), and between host and card."""
    big = torch.randn(GIB // 4, device="cuda")
    other = torch.empty_like(big)
    read = max(big.nbytes / median_ms(torch, call) for call in (big.sum, big.amax)) / 1e6
    rates = {"read": read, "copy": 2 * big.nbytes / median_ms(torch, lambda: other.copy_(big)) / 1e6}
    part = big[: GIB // 16]
    for name, pinned in (("pinned", True), ("pageable", False)):
        host = torch.empty(part.shape, pin_memory=pinned).normal_()
        for way, to, source in (("to the card", part, host), ("from the card", host, part)):
            to.copy_(source)
            times = []
            for _ in range(5):
                torch.cuda.synchronize()
                begun = time.perf_counter()
                to.copy_(source, non_blocking=True)
                torch.cuda.synchronize()
                times.append(time.perf_counter() - begun)
            rates[f"{way}, {name}"] = part.nbytes / sorted(times)[2] / 1e9
    return rates


def product(torch: Any) -> float:
    """TFLOP/s of a large bfloat16 product on random numbers."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    return 2 * n**3 / median_ms(torch, lambda: a @ b) / 1e9


def probe(card: Any) -> dict[str, Any]:
    """The facts, and what can be measured with what is installed."""
    facts: dict[str, Any] = {
        "card": card.facts.name.decode(),
        "capability": card.capability,
        "processors": card.facts.processors,
        "memory": card.facts.memory,
        "library": card.interface.build,
        "system": driver(),
    }
    torch = torch_with_card()
    if isinstance(torch, str):
        return facts | {"torch": torch}
    properties = torch.cuda.get_device_properties(0)
    facts |= {"torch": torch.__version__, "l2": getattr(properties, "L2_cache_size", 50 << 20)}
    facts |= {"GB/s": bandwidths(torch), "bfloat16 product TFLOP/s": product(torch)}
    return facts | {"clocks afterwards": driver()}
