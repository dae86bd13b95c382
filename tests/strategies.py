"""Any legal call of attention, drawn by hypothesis: shapes and options from it, numbers from a seed of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from compare import DTYPES, Array, poisoned
from hypothesis import strategies as st

Call = tuple[Array, Array, Array, dict[str, Any]]
Sizes = st.SearchStrategy[int]


@st.composite
def calls(draw: st.DrawFn, dtype: Any, Lq: Sizes, Lk: Sizes, D: Sizes, special: bool = False) -> Call:
    """q, k, v and options; with `special`, a few of the numbers are NaN, Inf and -Inf."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    batch = draw(st.sampled_from([(), (1,), (2,), (3,), (2, 2)]))
    Hkv, group = draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from([1, 1, 2, 4]))
    Hq, nq, nk, d, dv = Hkv * group, draw(Lq), draw(Lk), draw(D), draw(D)
    one_head = batch == () and Hq == 1 and draw(st.booleans())  # 2-D arrays
    head_axis = draw(st.sampled_from([-3, -2]))
    lead = () if one_head else (*batch, Hq)

    def part(shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape that broadcasts to this one: some axes are 1, some leading axes are absent."""
        ones = tuple(n if draw(st.booleans()) else 1 for n in shape)
        return ones[draw(st.integers(0, len(shape))) :]

    def normal(shape: tuple[int, ...]) -> Array:
        x = rng.standard_normal(shape)
        if special and x.size:
            x.flat[rng.integers(0, x.size, draw(st.integers(0, 2)))] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        return x

    def laid_out(x: Array) -> Array:
        """The same numbers at other strides."""
        layout = draw(st.sampled_from(["plain", "gaps", "steps", "transposed", "backwards"]))
        if layout in ("gaps", "steps"):
            return poisoned(x, step=1 if layout == "gaps" else 3)
        if layout == "transposed":
            return np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)
        return x[..., ::-1, ::-1].copy()[..., ::-1, ::-1] if layout == "backwards" else x

    def operand(batch: tuple[int, ...], H: int, L: int, depth: int) -> Array:
        x = normal((*batch, H, L, depth)).astype(dtype)
        return laid_out(x[0] if one_head else x.swapaxes(-3, -2) if head_axis == -2 else x)

    def bias() -> Array:
        x = normal(part((*lead, nq, nk))).astype(draw(st.sampled_from(list(DTYPES.values()))))
        return laid_out(x) if x.ndim > 1 else x

    def integers(least: int, most: int) -> Any:
        shape = part(batch)
        return rng.integers(least, most + 1, shape) if shape else draw(st.integers(least, most))

    def side() -> int | None:
        return draw(st.none() | st.integers(0, nk + 2))

    options: dict[str, Callable[[], Any]] = {
        "mask": lambda: rng.random(part((*lead, nq, nk))) < draw(st.sampled_from([0.1, 0.5, 0.95])),
        "bias": bias,
        "causal": lambda: True,
        "window": lambda: (side(), side()),
        "q_start": lambda: integers(-nk - 2, nk + 2),
        "q_lengths": lambda: integers(0, nq),
        "kv_lengths": lambda: integers(0, nk),
        "scale": lambda: (
            rng.standard_normal(part(lead)) / 2 if draw(st.booleans()) else draw(st.sampled_from([0, -1.0]))
        ),
        "score": lambda: "cosine",
        "softcap": lambda: draw(st.sampled_from([0.5, 3, 30.0])),
        "alibi": lambda: rng.standard_normal(part(lead)) / 5,
        "sinks": lambda: rng.standard_normal(part(lead)),
        "precision": lambda: "highest",
    }
    q, k, v = operand(batch, Hq, nq, d), operand(part(batch), Hkv, nk, d), operand(part(batch), Hkv, nk, dv)
    return q, k, v, {"head_axis": head_axis} | {name: make() for name, make in options.items() if draw(st.booleans())}
