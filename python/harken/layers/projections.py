"""The projections around attention of many heads: one matrix for q, k and v, or one each, and that of the result."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from harken.layers.layer import Layer, Rng
from harken.layers.linear import Linear, product

Array = NDArray[Any]


class Projections(Layer):
    """The parameters of `MultiHeadAttention`, and the products with them, of rows that are packed."""

    in_proj_weight: Array
    q_proj_weight: Array
    k_proj_weight: Array
    v_proj_weight: Array
    in_proj_bias: Array | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool,
        kdim: int | None,
        vdim: int | None,
        num_kv_heads: int | None,
        head_dim: int | None,
        dtype: DTypeLike,
        rng: Rng,
    ) -> None:
        super().__init__(dtype)
        rng = np.random.default_rng(rng)
        H, E = num_heads, embed_dim
        G = H if num_kv_heads is None else num_kv_heads
        if H < 1 or G < 1 or H % G:
            raise ValueError(f"num_kv_heads is {G}, num_heads {H}: wanted 1 or more that divide num_heads")
        if head_dim is None and E % H:
            raise ValueError(f"embed_dim is {E}, num_heads {H}: wanted a multiple of num_heads, or give head_dim")
        D = E // H if head_dim is None else head_dim
        self.embed_dim, self.num_heads, self.num_kv_heads, self.head_dim = E, H, G, D
        self.kdim, self.vdim = E if kdim is None else kdim, E if vdim is None else vdim
        self.fused = self.kdim == E == self.vdim
        if self.fused:
            self.own(in_proj_weight=_first(rng, (H + 2 * G) * D, E))
        else:
            self.own(
                q_proj_weight=_first(rng, H * D, E),
                k_proj_weight=_first(rng, G * D, self.kdim),
                v_proj_weight=_first(rng, G * D, self.vdim),
            )
        self.in_proj_bias = None
        if bias:
            self.own(in_proj_bias=np.zeros((H + 2 * G) * D))
        self.out_proj = Linear(H * D, E, bias, dtype=dtype, rng=rng)
        if self.out_proj.bias is not None:
            self.out_proj.bias[...] = 0

    def load(self, state: Any, *, prefix: str = "", strict: bool = True) -> Self:
        try:
            return super().load(state, prefix=prefix, strict=strict)
        except ValueError as error:
            if "bias_k" in str(error):
                error.add_note("bias_k, bias_v: keys and values of add_bias_kv=True, which this layer does not have")
            raise

    def _project(self, x: Array, first: int = 0, end: int | None = None) -> Array:
        """(T, C) to the heads first .. end - 1 of all that are projected, (T, heads, D): q's, then k's, then v's."""
        H, G, D = self.num_heads, self.num_kv_heads, self.head_dim
        end = H + 2 * G if end is None else end
        if self.fused:
            weight = self.in_proj_weight[first * D : end * D]
        else:
            weight = {0: self.q_proj_weight, H: self.k_proj_weight, H + G: self.v_proj_weight}[first]
        bias = None if self.in_proj_bias is None else self.in_proj_bias[first * D : end * D]
        return product(x, weight, bias).reshape(len(x), end - first, D)

    def _output(self, found: Array) -> Array:
        return product(found, self.out_proj.weight, self.out_proj.bias)


def _first(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Glorot and Bengio's uniform numbers, +-sqrt(6 / (rows + columns))."""
    reach = (6 / max(rows + columns, 1)) ** 0.5
    return rng.uniform(-reach, reach, (rows, columns))
