"""Which cards there are, and which kernels may run on them: those checked on such a card, or the one forced."""

from __future__ import annotations

import ctypes
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from harken.cuda.interface import OK, Absent, KernelFacts, Library, load

FORCE = "HARKEN_CUDA_KERNEL"


def why_not() -> str | None:
    """Why nothing can be computed on a card, in words; None where it can.

    Returns
    -------
    str or None
        No library in this build, no driver, no card, or none that is new enough (compute capability 8.0).

    Examples
    --------
    >>> import harken.cuda
    >>> (harken.cuda.why_not() is None) == harken.cuda.is_available()
    True
    """
    try:
        library = load()
    except Absent as error:
        return str(error)
    count = ctypes.c_int32()
    status, words = library.status("cards", count)
    if status != OK:
        return words
    if count.value == 0:
        return "this machine has no NVIDIA card"
    if not any(float(library.capability(n)) >= 8 for n in range(count.value)):
        return "no card of this machine has compute capability 8.0 or newer"
    return None


def is_available() -> bool:
    """Is there a card that harken's kernels run on, and a driver for it?

    Returns
    -------
    bool
        If not, `why_not` says why. That a kernel has been checked on such a card is another question: see `kernels`.

    Examples
    --------
    >>> import harken.cuda
    >>> harken.cuda.is_available() in (True, False)
    True
    """
    return why_not() is None


def devices() -> list[dict[str, Any]]:
    """The cards of this machine.

    Returns
    -------
    list of dict
        For card n, which is device "cuda:n": its name, compute capability, multiprocessors, and bytes of memory, in all
        and free. Empty where `is_available` is False.

    Examples
    --------
    >>> import harken.cuda
    >>> all(card["memory"] >= card["free"] for card in harken.cuda.devices())
    True
    """
    if not is_available():
        return []
    library, count = load(), ctypes.c_int32()
    library.call("cards", count)
    cards = [(library.capability(n), library.card(n)) for n in range(count.value)]
    return [
        {
            "name": card.name.decode(),
            "capability": capability,
            "processors": card.processors,
            "memory": card.memory,
            "free": card.free,
        }
        for capability, card in cards
    ]


def kernels() -> list[dict[str, Any]]:
    """The kernels of this build, fastest first.

    Returns
    -------
    list of dict
        Of each its name, what it is, the hash of its source, the compute capability that runs it, and where it was
        checked: the records, of this source and no other, each with the card, its compute capability and the date.
        Without a record for the compute capability of the card it is only used if HARKEN_CUDA_KERNEL names it.

    Examples
    --------
    >>> import harken.cuda
    >>> all(record["source"] == kernel["source"] for kernel in harken.cuda.kernels() for record in kernel["checked"])
    True
    """
    try:
        library = load()
    except Absent:
        return []
    return [
        {
            "name": kernel.name.decode(),
            "idea": kernel.idea.decode(),
            "source": kernel.source.decode(),
            "capability": f"{kernel.capability // 10}.{kernel.capability % 10}" + " or newer" * kernel.newer,
            "checked": checked(kernel),
        }
        for kernel in library.kernels()
    ]


@cache
def records() -> list[dict[str, str]]:
    """What passed on a card: kernel, source, card, capability, driver, date."""
    found: list[dict[str, str]] = json.loads(Path(__file__).with_name("checked.json").read_text("utf-8"))
    return found


def checked(kernel: KernelFacts) -> list[dict[str, str]]:
    """The records of this kernel as it is now."""
    now = kernel.name.decode(), kernel.source.decode()
    return [record for record in records() if (record["kernel"], record["source"]) == now]


def allowed(library: Library, number: int) -> int:
    """Bit n: kernel n may compute on this card. Raises in words where none may."""
    all_kernels = library.kernels()
    names = [kernel.name.decode() for kernel in all_kernels]
    forced = os.environ.get(FORCE)
    if forced:
        if forced not in names:
            raise RuntimeError(f"{FORCE} is {forced!r}: wanted one of {', '.join(names)}")
        return 1 << names.index(forced)
    capability, bits = library.capability(number), 0
    for n, kernel in enumerate(all_kernels):
        if any(record["capability"] == capability for record in checked(kernel)):
            bits |= 1 << n
    if bits == 0:
        raise RuntimeError(
            f"no kernel has been checked on a card like this one, {library.card(number).name.decode()} of compute "
            f"capability {capability}: check and record them with python bench/gpu.py, or force "
            f"one by {FORCE}={names[-1]}"
        )
    return bits
