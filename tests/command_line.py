"""The command line under test: called in this process, or started in its own."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from typing import Any

from harken.__main__ import main

# what `python -m harken` does, also where the parent of the tests ignores Ctrl-C and its children inherit that
MODULE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "import runpy; runpy.run_module('harken', run_name='__main__', alter_sys=True)"
)


def call(*argv: object, code: int = 0) -> tuple[str, str]:
    """Standard output and error of a command, after a check of its exit code and of the form of its complaint."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            returned = main([str(arg) for arg in argv])
        except SystemExit as stop:
            returned = int(stop.code or 0)
    assert returned == code, err.getvalue()
    if code == 2:
        complaint = err.getvalue()
        assert complaint.startswith("harken"), complaint
        assert complaint.count("\n") == 1, complaint
    return out.getvalue(), err.getvalue()


def start(*argv: object, **options: Any) -> subprocess.Popen[str]:
    """The real command line in a process of its own."""
    command = [sys.executable, "-c", MODULE, *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
