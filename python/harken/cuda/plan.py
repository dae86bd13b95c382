"""A problem on its way to a card: the call of the C interface, and the plan that explains it."""

from __future__ import annotations

import os
from ctypes import byref
from dataclasses import dataclass

from harken.cuda.cards import FORCE, allowed, why_not
from harken.cuda.interface import Call, PlanFacts, load


@dataclass(frozen=True)
class Plan:
    """How one call of `attention` would be computed on a card; what `explain` returns for one. `print` it."""

    device: str
    card: str
    kernel: str
    idea: str
    blocks: int
    """How many blocks of threads are launched."""
    threads: int
    """Threads of a block."""
    shared_bytes: int
    """Shared memory of a block."""
    workspace_bytes: int
    """Memory of the card besides the arrays."""
    why: str

    def __str__(self) -> str:
        rows = [
            ("device", self.device, self.card),
            ("kernel", self.kernel, self.idea),
            ("chosen", "", self.why),
            ("launch", f"{self.blocks} blocks", f"{self.threads} threads and {self.shared_bytes} bytes each"),
            ("workspace", f"{self.workspace_bytes} bytes", "on the card, besides the arrays"),
        ]
        width = max(len(what) for _, what, _ in rows)
        return "\n".join(f"{name:<10} {what:<{width}}  {why}" for name, what, why in rows)


def require(device: str) -> int:
    """The number of the card that `device` names, or in words why it cannot be had."""
    _, _, number = device.partition(":")
    why = why_not()
    if why is not None:
        raise RuntimeError(f"device is {device!r}: {why}; leave device=None")
    card = int(number or "0")
    load().capability(card)  # raises for one that is not there
    return card


def attend(problem: int, size: int, card: int, stream: int = 0) -> None:
    """Compute the Problem at an address, of so many bytes."""
    library = load()
    library.call("attend", byref(Call(problem, size, allowed(library, card), stream, card)))


def explain(problem: int, size: int, card: int) -> Plan:
    """What `attend` would do."""
    library, facts = load(), PlanFacts()
    library.call("plan", byref(Call(problem, size, allowed(library, card), None, card)), facts)
    kernel, of_card = library.kernels()[facts.kernel], library.card(card)
    reasons = [f"forced by {FORCE}" if os.environ.get(FORCE) else "the fastest that was checked on such a card"]
    if facts.why:
        reasons.append(facts.why.decode())
    return Plan(
        device=f"cuda:{card}",
        card=f"{of_card.name.decode()}, compute capability {library.capability(card)}",
        kernel=kernel.name.decode(),
        idea=kernel.idea.decode(),
        blocks=facts.blocks,
        threads=facts.threads,
        shared_bytes=facts.shared_bytes,
        workspace_bytes=facts.workspace,
        why="; ".join(reasons),
    )
