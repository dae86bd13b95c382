"""How many threads a call may use."""

from __future__ import annotations

from harken._load import core


def set_num_threads(count: int | None) -> None:
    """Set how many threads calls use from now on that do not say `threads=`.

    Parameters
    ----------
    count : int or None
        1 or more. None is the default again: HARKEN_NUM_THREADS, else OMP_NUM_THREADS, else the processors that this
        process may use, by its affinity and by the quota of its container.

    Raises
    ------
    TypeError, ValueError
        No integer, or one below 1.

    Notes
    -----
    Results do not depend on the number of threads, and small problems stay on the calling thread.

    Examples
    --------
    >>> import harken
    >>> harken.set_num_threads(1)
    >>> harken.get_num_threads()
    1
    >>> harken.set_num_threads(None)
    """
    core.set_num_threads(count)


def get_num_threads() -> int:
    """How many threads a call uses that does not say `threads=`.

    Examples
    --------
    >>> import harken
    >>> harken.get_num_threads() >= 1
    True
    """
    return core.get_num_threads()
