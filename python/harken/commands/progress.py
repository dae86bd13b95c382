"""A progress bar on stderr that stays silent until a job has run for a second."""

from __future__ import annotations

import sys
import time
from types import TracebackType

CELLS = 32


class Progress:
    """A bar over `total` units of work, redrawn ten times a second on a terminal and once a second elsewhere."""

    def __init__(self, name: str, total: float, *, after: float = 1.0) -> None:
        self.name, self.total, self.after = name, max(total, 1e-300), after
        self.done, self.shown, self.drawn = 0.0, False, 0.0
        self.begun = time.perf_counter()
        self.pause = 0.1 if sys.stderr.isatty() else 1.0

    def __enter__(self) -> Progress:
        return self

    def advance(self, amount: float) -> None:
        """Count `amount` more units as done, and redraw if it is time to."""
        self.done += amount
        now = time.perf_counter()
        if now - self.begun >= self.after and now - self.drawn >= self.pause:
            self._draw(now)

    def _draw(self, now: float) -> None:
        part = min(self.done / self.total, 1.0)
        spent = now - self.begun
        left = f"{clock(spent * (1 - part) / part)} left" if part else ""
        full = round(part * CELLS)
        line = f"{self.name} [{'#' * full}{'.' * (CELLS - full)}] {part:4.0%}  {clock(spent)}  {left}"
        print(f"\r{line:<79}", end="", file=sys.stderr, flush=True)
        self.shown, self.drawn = True, now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and time.perf_counter() - self.begun >= self.after:
            self._draw(time.perf_counter())
        if self.shown:
            print(file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Minutes and seconds: `clock(75)` is "1:15"."""
    whole = int(seconds + 0.5)
    if whole >= 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{whole // 60}:{whole % 60:02}"
