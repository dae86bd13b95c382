"""What every test may ask for: each backend of this machine, each storage type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from compare import DTYPES, forced

import harken


@pytest.fixture(params=harken.backends())
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend that every call of the test is forced to run on."""
    with forced(request.param) as name:
        yield name


@pytest.fixture(params=list(DTYPES))
def dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    """One of the four storage types."""
    return DTYPES[request.param]
