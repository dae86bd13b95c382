"""`python -m harken`: the library at work on real input, one sub-command a job, one line for every mistake."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from harken.commands import attend, bench, demo, info, onnx, plot


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def parser() -> Parser:
    """The parser of the whole command line."""
    top = Parser(prog="harken", description="Exact, fused attention for NumPy arrays.")
    commands = top.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in (demo, attend, onnx, plot, info, bench):
        module.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; return the exit code: 0 done, 2 bad input, 130 interrupted, 141 nobody reads the output."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a word of the text that the terminal cannot show is no failure
    args = parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not complain again
        return 141
    except (OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        print(f"harken {args.command}: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def one_line(error: BaseException) -> str:
    """What went wrong in one line: the file and the system's words, or the message of the check that failed."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    raise SystemExit(main())
