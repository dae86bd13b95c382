"""What this build can do, what this machine has, and what was chosen."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from harken._load import core


def info() -> dict[str, Any]:
    """Facts about this build and this machine, for a reader or a bug report.

    `python -m harken info` prints them.

    Returns
    -------
    dict
        Of plain values, nested by subject, so that `json.dumps` takes it.

    Examples
    --------
    >>> import harken
    >>> facts = harken.info()
    >>> facts["version"] == harken.__version__
    True
    >>> facts["cpu"]["backend"] in facts["cpu"]["available"]
    True
    """
    from harken import cuda  # what it loads is loaded here, not with harken

    facts = core._info()
    return {
        "version": facts["version"],
        "build": {
            "compiler": facts["compiler"],
            "type": facts["build_type"],
            "numpy api": facts["numpy_api"],
        },
        "python": {
            "version": platform.python_version(),
            "numpy": np.__version__,
            "platform": platform.platform(),
        },
        "cpu": {
            "features": facts["features"],
            "compiled": facts["compiled"],
            "available": facts["available"],
            "backend": facts["chosen"],
            "why": facts["why_chosen"],
        },
        "threads": {
            "count": facts["threads"],
            "why": facts["why_threads"],
            "openmp": facts["openmp"],
        },
        "cuda": {
            "available": cuda.is_available(),
            "why": cuda.why_not(),
            "devices": [
                f"{card['name']}, compute capability {card['capability']}, {card['memory'] / 2**30:.3g} GiB"
                for card in cuda.devices()
            ],
            "kernels": [
                f"{kernel['name']}, " + (", ".join(map(_checked, kernel["checked"])) or "not checked on any card yet")
                for kernel in cuda.kernels()
            ],
        },
    }


def _checked(record: dict[str, str]) -> str:
    """One record in words."""
    return f"checked on {record['card']} on {record['date']}"
