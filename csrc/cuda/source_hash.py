"""The hash of what a kernel is made of: its file and all that it includes, without comments and white space.

A kernel that passed on a card is recorded with this hash; when a word of its text changes, the record is no longer its.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
OF_THE_EMULATOR = {"emulated.hpp", "emulated_engines.hpp"}


def texts(path: Path, seen: dict[Path, str]) -> dict[Path, str]:
    """A file and the files of the house that it includes, each once."""
    path = path.resolve()
    if path not in seen and path.name not in OF_THE_EMULATOR:
        seen[path] = text = path.read_text("utf-8")
        for name in re.findall(r'^\s*#include "(.+)"', text, re.M):
            texts(path.parent / name, seen)
    return seen


def bare(text: str) -> str:
    """Without comments, every run of white space as one blank."""
    kept = re.sub(r'("(?:\\.|[^"\\\n])*")|//[^\n]*|/\*.*?\*/', lambda match: match[1] or " ", text, flags=re.S)
    return " ".join(kept.split())


def source_hash(kernel: str) -> str:
    """Of NAME.cu, in 16 digits."""
    found = {
        path.relative_to(HERE.resolve().parent).as_posix(): text for path, text in texts(HERE / kernel, {}).items()
    }
    whole = "".join(f"{name}\n{bare(text)}\n" for name, text in sorted(found.items()))
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


if __name__ == "__main__":
    print(source_hash(sys.argv[1]))
