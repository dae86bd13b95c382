"""The compiled module, loaded so that its idle threads neither burn the processor nor sleep too deep.

OpenMP's threads wait for work by spinning. libgomp spins 300 000 rounds, on a machine whose processors are all in use
against its own helpers. Measured on two cores, a parallel region when hot, after 50 ms of pause, and the processor time
burnt afterwards:

    rounds     hot       cold       burnt
    300 000    1.0 us    5.5 ms     7.5 ms      libgomp's own
     20 000    1.1 us    0.54 ms    1.1 ms
      6 000    1.0 us    0.19 ms    0.3 ms
      2 000    0.8 us    0.09 ms    0.2 ms      chosen
          0    59 us     0.015 ms   0.1 ms

libgomp reads the number when it is loaded and never again, so it stands in the environment for just as long, and not at
all where a policy of waiting is set.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

SPIN = "GOMP_SPINCOUNT"
ROUNDS = "2000"


@contextlib.contextmanager
def bounded_spin() -> Iterator[None]:
    """The environment for libgomp to be loaded in."""
    if any(name in (SPIN, "OMP_WAIT_POLICY") or name.startswith("KMP_") for name in os.environ):
        yield
        return
    os.environ[SPIN] = ROUNDS
    try:
        yield
    finally:
        del os.environ[SPIN]


with bounded_spin():
    from harken import _harken_core as core

__all__ = ["core"]
