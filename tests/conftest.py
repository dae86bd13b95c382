"""What every test may ask for: backends, storage types, libraries, an emulated card, a folder, the bench's runner."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import emulated
import libraries
import numpy as np
import pytest
from compare import DTYPES, forced
from contender import BENCH

import harken
import harken.cuda

os.environ["KERAS_BACKEND"] = "numpy"  # Keras reads both when it is imported, by whichever test
os.environ["KERAS_HOME"] = os.devnull  # so that it writes no settings into the home folder


@pytest.fixture(params=harken.backends())
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend that every call of the test is forced to run on."""
    with forced(request.param) as name:
        yield name


@pytest.fixture(params=list(DTYPES))
def dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    """One of the four storage types."""
    return DTYPES[request.param]


@pytest.fixture(params=["float16", "bfloat16"])
def half(request: pytest.FixtureRequest) -> np.dtype[Any]:
    """One of the two storage types of 2 bytes."""
    return DTYPES[request.param]


@pytest.fixture
def emulator() -> Iterator[None]:
    """The emulator as the card, on which nothing is left in the end."""
    with emulated.card():
        before = harken.cuda.devices()[0]["free"]
        yield
        gc.collect()
        assert harken.cuda.devices()[0]["free"] == before


@pytest.fixture(
    params=[libraries.quick, libraries.strict, libraries.torch, libraries.jax], ids=lambda make: make.__name__
)
def library(request: pytest.FixtureRequest) -> Iterator[libraries.Library]:
    """Each library of arrays that is installed, with all of its types."""
    made: libraries.Library = request.param()
    if made.name != "jax":
        yield made
        return
    config = importlib.import_module("jax").config
    config.update("jax_enable_x64", True)
    yield made
    config.update("jax_enable_x64", False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, and the backend as it was."""
    monkeypatch.chdir(tmp_path)
    backend = harken.get_backend()
    yield tmp_path
    harken.set_backend(backend)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The bench's runner as a module, its others beside it; gone again after the test."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    import run

    yield run
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
