"""Which instruction set computes: the best that the machine has, or the one that is asked for."""

from __future__ import annotations

from harken._load import core


def backends() -> list[str]:
    """The backends that this machine can run, best first.

    Without a choice the first computes. The environment variable HARKEN_BACKEND chooses before the program starts,
    `set_backend` while it runs.

    Returns
    -------
    list of str

    Examples
    --------
    >>> import harken
    >>> harken.get_backend() in harken.backends()
    True
    """
    return core.backends()


def set_backend(name: str | None) -> None:
    """Choose the backend of all calls from now on.

    Parameters
    ----------
    name : str or None
        One of `backends()`; None is the best again.

    Raises
    ------
    ValueError
        A name that this machine or this build does not have; the text lists those it has.

    Examples
    --------
    >>> import harken
    >>> harken.set_backend(harken.backends()[-1])
    >>> harken.set_backend(None)
    >>> harken.get_backend() == harken.backends()[0]
    True
    """
    core.set_backend(name)


def get_backend() -> str:
    """The name of the backend that computes.

    Examples
    --------
    >>> import harken
    >>> harken.get_backend() in harken.backends()
    True
    """
    return core.get_backend()
