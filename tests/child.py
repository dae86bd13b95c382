"""A function of a test module, or a piece of source, run in a process of its own and judged by how that ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Ctrl-C works here also where the parent ignores it and its children inherit that.
CALL = """
import importlib, json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {folder!r})
result = getattr(importlib.import_module({module!r}), {name!r})(*json.loads({arguments!r}))
print("\\n" + json.dumps(result))
"""
Env = Mapping[str, str]
NO: Env = {}
SETTINGS = ("HARKEN_", "OMP_", "GOMP_", "KMP_", "OPENBLAS_", "MKL_")


def in_child(function: Callable[..., Any], *args: Any, timeout: float = 60, warn: str = "error", env: Env = NO) -> Any:
    """What the function returns in a fresh process with these variables; arguments and result travel as JSON."""
    source = CALL.format(
        folder=str(Path(__file__).parent),
        module=function.__module__,
        name=function.__name__,
        arguments=json.dumps(args),
    )
    return json.loads(output(source, timeout, warn, env).splitlines()[-1])


def output(source: str, timeout: float = 60, warn: str = "error", env: Env = NO) -> str:
    """Standard output of Python source in a fresh process, which must end well, and in time."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    command = [sys.executable, "-X", "faulthandler", "-W", warn, "-c", source]
    child = subprocess.Popen(
        command,
        env={**kept, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, error = child.communicate(timeout=timeout)
    except BaseException as why:
        os.killpg(child.pid, signal.SIGKILL)  # its own children too, who would keep the pipes open
        out, error = child.communicate()
        if not isinstance(why, subprocess.TimeoutExpired):
            raise
        raise AssertionError(f"still running after {timeout} s\n{out[-2000:]}\n{error[-4000:]}") from None
    assert child.returncode == 0, f"ended with {child.returncode}\n{out[-2000:]}\n{error[-4000:]}"
    return out


def os_threads() -> int:
    """How many threads the operating system counts in this process."""
    return len(os.listdir("/proc/self/task"))
