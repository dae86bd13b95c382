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
            "available": False,
            "why": "this build computes on the CPU only",
        },
    }
