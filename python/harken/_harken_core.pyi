from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_F = TypeVar("_F", bound=Callable[..., Any])

__version__: str

def native(function: _F) -> _F: ...
def attend_packed(
    attention: Any, q: Any, k: Any, v: Any, q_ends: Any, k_ends: Any, options: dict[str, Any], /
) -> Any: ...
def attend_stored(
    attention: Any, q: Any, k: Any, v: Any, table: Any, origins: Any, lengths: Any, options: dict[str, Any], /
) -> Any: ...
def attend_on_card(
    attention: Any, q: Any, k: Any, v: Any, make: Callable[..., Any], stream: int, options: dict[str, Any], /
) -> Any: ...
def backends() -> list[str]: ...
def set_backend(name: str | None) -> None: ...
def get_backend() -> str: ...
def set_num_threads(count: int | None) -> None: ...
def get_num_threads() -> int: ...
def _view(capsule: object, name: str, card: int = -1) -> NDArray[Any]: ...
def _capsule(array: object, card: int = -1) -> object: ...
def _set_form(name: str | None) -> None: ...
def _info() -> dict[str, Any]: ...
def _activate(name: str, x: NDArray[Any], bias: NDArray[Any] | None, y: NDArray[Any]) -> None: ...
def _linear(name: str, x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None, y: NDArray[Any]) -> bool: ...
def _normalize(
    centered: bool,
    x: NDArray[Any],
    residual: NDArray[Any] | None,
    weight: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    eps: float,
    y: NDArray[Any],
    sum: NDArray[Any] | None,
) -> None: ...
def _convolve(
    arg0: NDArray[Any],
    arg1: NDArray[Any],
    arg2: NDArray[Any] | None,
    arg3: NDArray[Any],
    arg4: NDArray[np.int64] | None,
    arg5: int,
    arg6: int,
    arg7: int,
    arg8: int,
    arg9: int,
    arg10: bool,
    /,
) -> None: ...
def _rotate(x: NDArray[Any], cos: NDArray[Any], sin: NDArray[Any], y: NDArray[Any], interleaved: bool) -> None: ...
def _recur(
    cell: str,
    x: NDArray[Any],
    y: NDArray[Any],
    h0: NDArray[Any],
    h: NDArray[Any],
    c: NDArray[Any] | None,
    weights: tuple[NDArray[Any] | None, ...],
    lengths: NDArray[Any] | None,
    order: NDArray[Any] | None,
) -> None: ...
