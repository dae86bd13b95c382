"""Additive attention as a layer: queries and keys are projected, and meet by w . tanh(q + k)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken.additive import additive_attention
from harken.attention import Window
from harken.layers.integers import size
from harken.layers.layer import Layer, Rng
from harken.layers.linear import Linear
from harken.layers.self_attention import Seen, one_head, without_heads

Array = NDArray[Any]


class AdditiveAttention(Layer):
    """y_i = sum_j p_ij v_j with p_i = softmax_j(w . tanh(W_q q_i + W_k k_j)).

    Parameters
    ----------
    query_size, key_size : int
        Queries are (..., Lq, query_size), keys (..., Lk, key_size); key_size is by default query_size.
    hidden_size : int, optional
        The size of w; by default query_size.
    bias : bool
        Whether the projections add a bias (one of them is enough, as both are added).
    project : bool
        False leaves out both projections, as in Keras' AdditiveAttention: then all sizes are the same.
    use_scale : bool
        False leaves out w, which is then 1, as in Keras' AdditiveAttention(use_scale=False).
    dtype : float32 or float64
    rng : numpy.random.Generator or int, optional
        Draws the first values, uniform, each on +-1 / sqrt(the numbers that it adds up).

    Attributes
    ----------
    w : (hidden_size,), or None
        v in [1]_, `scale` in Keras.
    q_proj : Linear, or None
        W_q, W in [1]_: q_proj.weight is (hidden_size, query_size), q_proj.bias (hidden_size,).
    k_proj : Linear, or None
        W_k, U in [1]_: k_proj.weight is (hidden_size, key_size), k_proj.bias (hidden_size,).

    References
    ----------
    .. [1] D. Bahdanau, K. Cho and Y. Bengio, "Neural Machine Translation by Jointly Learning to Align and Translate",
       2014, arXiv:1409.0473.

    Examples
    --------
    A decoder's state looks at an encoder's.

    >>> import numpy as np
    >>> from harken.layers import AdditiveAttention
    >>> rng = np.random.default_rng(0)
    >>> state, memory = rng.standard_normal((8, 1, 32), np.float32), rng.standard_normal((8, 20, 64), np.float32)
    >>> attend = AdditiveAttention(32, 64, hidden_size=16)
    >>> attend(state, memory, kv_lengths=[20, 20, 5, 7, 20, 1, 13, 20]).shape
    (8, 1, 64)
    >>> list(attend.state())
    ['w', 'q_proj.weight', 'k_proj.weight']
    """

    w: Array | None
    q_proj: Linear | None
    k_proj: Linear | None

    def __init__(
        self,
        query_size: int,
        key_size: int | None = None,
        hidden_size: int | None = None,
        *,
        bias: bool = False,
        project: bool = True,
        use_scale: bool = True,
        dtype: DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        super().__init__(dtype)
        self.query_size = size("query_size", query_size)
        self.key_size = self.query_size if key_size is None else size("key_size", key_size)
        hidden = self.query_size if hidden_size is None else size("hidden_size", hidden_size)
        rng = np.random.default_rng(rng)
        self.w = self.q_proj = self.k_proj = None
        if project:
            self.q_proj = Linear(self.query_size, hidden, bias, dtype=dtype, rng=rng)
            self.k_proj = Linear(self.key_size, hidden, bias, dtype=dtype, rng=rng)
        elif not self.query_size == self.key_size == hidden:
            raise ValueError(
                f"query_size is {self.query_size}, key_size {self.key_size}, hidden_size {hidden}: without projections "
                "they are the same"
            )
        elif bias:
            raise ValueError("bias is True: without projections there is none")
        if use_scale:
            reach = 1 / max(hidden, 1) ** 0.5
            self.own(w=rng.uniform(-reach, reach, hidden))

    def __call__(
        self,
        query: ArrayLike,
        key: ArrayLike,
        value: ArrayLike | None = None,
        *,
        q_lengths: ArrayLike | None = None,
        kv_lengths: ArrayLike | None = None,
        mask: Seen = None,
        causal: bool = False,
        window: Window | None = None,
        return_weights: bool = False,
    ) -> Any:
        """What each query makes of the keys that it sees.

        Parameters
        ----------
        query : array_like, (..., Lq, query_size)
        key : array_like, (..., Lk, key_size)
        value : array_like, (..., Lk, C), optional
            By default the keys, before their projection.
        q_lengths, kv_lengths : integers over the batch axes, optional
            Keys at or past the length are not looked at; queries at or past theirs give 0.
        mask : array_like of bool, broadcastable to (..., Lq, Lk), or Mask, optional
            True where a query may look.
        causal, window
            As in `harken.attention`, where the last query stands at the last key.
        return_weights : bool
            Return (y, weights), y being (..., Lq, C) and the weights (..., Lq, Lk).
        """
        q = self.take("query", query, axes=2, last=self.query_size)
        k = self.take("key", key, axes=2, last=self.key_size)
        v = k if value is None else self.take("value", value, axes=2)
        try:
            batch = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        except ValueError:
            raise ValueError(
                f"query is {q.shape}, key {k.shape} and value {v.shape}: their batch axes do not broadcast"
            ) from None
        if v.shape[-2] != k.shape[-2]:
            raise ValueError(f"value has {v.shape[-2]} rows, key {k.shape[-2]}: keys and values come in pairs")
        seen = one_head("mask", mask, (*batch, q.shape[-2], k.shape[-2]))
        if self.q_proj is not None and self.k_proj is not None:
            q, k = self.q_proj(q), self.k_proj(k)
        answer = additive_attention(
            q[..., None, :, :], k[..., None, :, :], v[..., None, :, :], self.w,
            mask=seen, causal=causal, window=window, q_lengths=q_lengths, kv_lengths=kv_lengths,
            return_weights=return_weights,
        )  # fmt: skip
        return without_heads(answer)
