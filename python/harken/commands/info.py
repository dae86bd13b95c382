"""`python -m harken info`: what this build can do, what this machine has, what was chosen and why."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any


def add(commands: Any) -> None:
    """Add the sub-command and its arguments."""
    parser = commands.add_parser("info", help="version, build, processor, backends, threads", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print `harken.info()`."""
    from harken import info

    facts = info()
    if args.json:
        print(json.dumps(facts, indent=2, default=str))
    else:
        print("\n".join(lines(facts)))


def lines(facts: Mapping[str, Any], indent: str = "") -> list[str]:
    """A nested mapping as aligned lines, a level of indentation for each level of nesting."""
    width = max((len(str(key)) for key, value in facts.items() if not isinstance(value, Mapping)), default=0)
    text = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            text += [f"{indent}{key}", *lines(value, indent + "  ")]
        else:
            text.append(f"{indent}{key!s:<{width}}  {plain(value)}")
    return text


def plain(value: Any) -> str:
    """A leaf in words: yes and no for truth, commas between the items of a list, a dash for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(plain(item) for item in value) or "-"
    return "-" if value is None or value == "" else str(value)
