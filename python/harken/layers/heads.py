"""Attention of many heads between its projections: fused, grouped, rotary, cached, without a copy of q, k or v."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken._load import core
from harken.attention import Window, attention
from harken.cache import KVCache, Layout
from harken.layers.caches import Unchanged, fits, legal
from harken.layers.layer import Rng
from harken.layers.look import Look, cornered, looking, packable
from harken.layers.projections import Projections
from harken.layers.rotary import Rope, Rotary
from harken.layers.rows import Rows
from harken.masks import Mask

Array = NDArray[Any]


class MultiHeadAttention(Projections):
    """Attention of H heads, each on its own projection of the inputs, and a projection of what they found::

        q, k, v = query Wqᵀ + bq, key Wkᵀ + bk, value Wvᵀ + bv           H, Hkv and Hkv heads of D channels
        y       = attention(q, k, v) Woᵀ + bo

    as `torch.nn.MultiheadAttention` with batch_first=True. q, k and v of self-attention are one matrix product, and
    views of it are what `harken.attention` reads.

    Parameters
    ----------
    embed_dim : int
        Channels of the queries and of the result.
    num_heads : int
        H.
    bias : bool
        Whether the projections have biases.
    kdim, vdim : int, optional
        Channels of keys and of values; embed_dim unless given.
    add_zero_attn : bool
        A key that every query sees, of score 0 and with the value 0: `sinks=0`. It has no place in the weights.
    num_kv_heads : int, optional
        Hkv, which divides H: query head h reads key head h // (H // Hkv). num_heads unless given.
    head_dim : int, optional
        D; embed_dim / num_heads unless given.
    rope : float or (cos, sin), optional
        Queries and keys turn by their positions: the base of the frequencies (`rope_theta` of a model's config.json),
        or the tables of `harken.rope_table`, for scaled contexts or a part of the channels.
    rope_interleaved : bool
        Whether the channels of a pair are neighbours; see `harken.rope`.
    score, scale, softcap, alibi
        As in `harken.attention`.
    dtype : float32 or float64
    rng : numpy.random.Generator or int, optional
        Draws the first values, as PyTorch does.

    Attributes
    ----------
    in_proj_weight : ((H + 2 Hkv) D, embed_dim)
        Rows of Wq, Wk and Wv, in this order, grouped heads or not. Only where kdim and vdim are embed_dim; else there
        are q_proj_weight (H D, embed_dim), k_proj_weight (Hkv D, kdim) and v_proj_weight (Hkv D, vdim).
    in_proj_bias : ((H + 2 Hkv) D,), or None
    out_proj.weight, out_proj.bias : (embed_dim, H D), (embed_dim,) or None

    Notes
    -----
    A mask is True where a query MAY look. PyTorch's are the other way round: its boolean `attn_mask` is given as
    `mask=~attn_mask`, (B H, L, S) as (B, H, L, S); its float mask as `bias=attn_mask`; its `key_padding_mask` as
    `kv_lengths=`, or `mask=~key_padding_mask[:, None, None]`. A query that may look nowhere finds 0, not NaN. bias_k
    and bias_v of add_bias_kv=True are not computed with, and `load` says so.

    Query i stands at position i and key j at position j; with a cache, behind what it holds.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762.
    .. [2] J. Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
       2023, arXiv:2305.13245.

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import MultiHeadAttention
    >>> layer = MultiHeadAttention(64, 8, num_kv_heads=2, rope=10000.0, rng=0)
    >>> x = np.random.default_rng(0).normal(size=(2, 10, 64)).astype(np.float32)
    >>> y = layer(x, causal=True, lengths=[10, 7])
    >>> y.shape, bool(y[1, 7:].any())
    ((2, 10, 64), False)

    One position at a time:

    >>> cache = layer.cache(2, 10)
    >>> steps = [layer(x[:, i : i + 1], cache=cache) for i in range(10)]
    >>> np.allclose(np.concatenate(steps, axis=1)[0], y[0], atol=1e-5)
    True
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        *,
        add_zero_attn: bool = False,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rope: Rope | None = None,
        rope_interleaved: bool = False,
        score: Literal["dot", "cosine"] = "dot",
        scale: ArrayLike | None = None,
        softcap: float | None = None,
        alibi: ArrayLike | None = None,
        dtype: DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, bias, kdim, vdim, num_kv_heads, head_dim, dtype, rng)
        given = {"scale": scale, "softcap": softcap, "alibi": alibi, "sinks": 0.0 if add_zero_attn else None}
        self._options: Look = {name: value for name, value in given.items() if value is not None}
        if score != "dot":
            self._options["score"] = score
        self._rotary = None if rope is None else Rotary(rope, self.head_dim, rope_interleaved, self.dtype)

    def cache(self, batch: int, capacity: int, *, layout: Layout = "contiguous", **options: Any) -> KVCache:
        """A `harken.KVCache` for calls of this layer with cache=: `batch` sequences of up to `capacity` positions.

        `options` are those of `harken.KVCache`: kv_dtype, page_size, pages. In layout="ring", which drops its oldest
        keys, give window=(w, 0) with w + L <= capacity for calls of L positions, and nothing is missed.
        """
        return KVCache(batch, self.num_kv_heads, capacity, self.head_dim, dtype=self.dtype, layout=layout, **options)

    def __call__(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        mask: ArrayLike | Mask | None = None,
        bias: ArrayLike | None = None,
        causal: bool = False,
        window: Window | None = None,
        lengths: ArrayLike | None = None,
        kv_lengths: ArrayLike | None = None,
        cache: KVCache | None = None,
        return_weights: bool = False,
    ) -> Any:
        """What the queries find.

        Parameters
        ----------
        query : array, (..., L, embed_dim)
        key : array, (..., Lk, kdim), optional
            Without it the queries attend to themselves. Its leading axes broadcast to those of `query`.
        value : array, (..., Lk, vdim), optional
            `key` unless given.
        mask, bias : broadcastable to (..., H, L, Lk), optional
            bool, True where a query may look, or one of `harken.masks`; floats that are added to the scores. One for
            each sequence is (B, 1, L, Lk).
        causal, window
            As in `harken.attention`.
        lengths : integers over the leading axes, optional
            How many positions of `query` exist; in self-attention that holds for the keys, too. The result is 0 past
            them, and nothing that is there is read.
        kv_lengths : integers over the leading axes, optional
            How many positions of `key` exist.
        cache : KVCache, optional
            Self-attention only: the positions continue those that it holds, see them, and join them. Always causal.
            mask and bias are over the keys then held, (batch, H, L, max(cache.lengths)).
        return_weights : bool
            Also return the weights.

        Returns
        -------
        y : ndarray, (..., L, embed_dim)
        weights : ndarray, (..., H, L, Lk), only with `return_weights`
            Of each head; PyTorch's mean over them is `weights.mean(-3)`.

        Raises
        ------
        ValueError, TypeError
            Shapes that do not fit, another dtype. The cache is as it was.
        """
        x = self.take("query", query, axes=2, last=self.embed_dim)
        rows = Rows(x, lengths)
        look = looking(mask, bias, causal, window)
        if cache is not None:
            if key is not None or value is not None or kv_lengths is not None:
                raise ValueError("cache is given with key, value or kv_lengths: a cache is for self-attention")
            if not self.fused:
                raise ValueError(f"cache is given, and keys have {self.kdim} channels: a cache is for self-attention")
            with Unchanged([cache]):
                y, weights = self._attend_on(rows.pack(x), rows, look, cache, return_weights)
        elif key is None and value is None and kv_lengths is None and self.fused:
            y, weights = self._attend(rows.pack(x), rows, look, return_weights)
        else:
            y, weights = self._across(x, key, value, rows, kv_lengths, look, return_weights)
        return (rows.unpack(y), weights) if return_weights else rows.unpack(y)

    # --- the same for rows that are packed, (T, embed_dim) to (T, embed_dim) ---

    def _attend(self, x: Array, rows: Rows, look: Look, weights: bool = False) -> tuple[Array, Array | None]:
        """Self-attention."""
        H, G = self.num_heads, self.num_kv_heads
        qkv = self._project(x)
        if self._rotary is not None:
            self._turn(qkv[:, : H + G], rows)
        return self._meet(qkv[:, :H], qkv[:, H : H + G], qkv[:, H + G :], rows, rows, look, weights)

    def _attend_on(
        self, x: Array, rows: Rows, look: Look, cache: KVCache, weights: bool = False
    ) -> tuple[Array, Array | None]:
        """Self-attention that continues what a cache holds."""
        H, G, D = self.num_heads, self.num_kv_heads, self.head_dim
        fits(cache, rows, G, D, self.dtype)
        qkv = rows.unpack(self._project(x)).reshape(cache.batch, rows.L, H + 2 * G, D)
        at = cache.starts + cache.lengths
        if self._rotary is not None:
            self._rotary.turn_on(qkv[:, :, : H + G], at, rows.lengths)
        q, k, v = qkv[:, :, :H], qkv[:, :, H : H + G], qkv[:, :, H + G :]
        options = {**self._options, **look, "causal": True, "head_axis": -2}
        if rows.lengths is not None:
            options["q_lengths"] = rows.lengths
        if look and cache.layout == "ring":
            counts = rows.L if rows.lengths is None else rows.lengths
            legal(q, cache, np.minimum(cache.lengths + counts, cache.capacity), options)
        cache.append(k.swapaxes(1, 2), v.swapaxes(1, 2), rows.lengths)
        return self._leave(cache.attend(q, return_weights=weights, **options), rows, weights)

    def _part(self, rows: Rows, look: Look, cache: KVCache | None = None) -> Callable[[Array], Array]:
        """Self-attention as a function of packed rows alone."""
        if cache is None:
            return lambda x: self._attend(x, rows, look)[0]
        return lambda x: self._attend_on(x, rows, look, cache)[0]

    def _attend_to(self, memory: Array, source: Rows, rows: Rows, look: Look, x: Array) -> Array:
        """Attention to a memory, whose rows are keys and values."""
        k, v = self._remember(memory, source)
        return self._meet(self._ask(x, rows), k, v, rows, source, look, False)[0]

    def _memory(self, memory: Array, source: Rows) -> KVCache:
        """The keys and values of a memory, for `_look_up`."""
        G, D = self.num_kv_heads, self.head_dim
        batch = math.prod(source.lead)
        kept = KVCache(batch, G, max(source.L, 1), D, dtype=self.dtype)
        k, v = (
            source.unpack(part).reshape(batch, source.L, G, D) for part in self._remember(source.pack(memory), source)
        )
        kept.append(k.swapaxes(1, 2), v.swapaxes(1, 2), source.lengths)
        return kept

    def _look_up(self, memory: KVCache, at: Array, rows: Rows, look: Look, x: Array) -> Array:
        """Attention to what `_memory` made, of queries that stand at the positions from `at` on."""
        fits(memory, rows, self.num_kv_heads, self.head_dim, self.dtype)
        q = self._project(x, 0, self.num_heads)
        q = rows.unpack(q).reshape(memory.batch, rows.L, self.num_heads, self.head_dim)
        if self._rotary is not None:
            self._rotary.turn_on(q, at, rows.lengths)
        options = {**self._options, **look, "causal": False, "head_axis": -2, "q_start": at}
        return self._leave(memory.attend(q, q_lengths=rows.lengths, **options), rows, False)[0]

    def _legal(self, memory: KVCache, rows: Rows, look: Look) -> None:
        """Raise what `_look_up` would for these options, before anything else is done."""
        fits(memory, rows, self.num_kv_heads, self.head_dim, self.dtype)
        shape = (memory.batch, rows.L, self.num_heads, self.head_dim)
        q = np.broadcast_to(np.zeros((), self.dtype), shape)
        legal(q, memory, memory.lengths, {**self._options, **look, "head_axis": -2})

    def _across(
        self, x: Array, key: Any, value: Any, rows: Rows, kv_lengths: Any, look: Look, weights: bool
    ) -> tuple[Array, Array | None]:
        """Attention to something else, as the caller gave it."""
        if key is None and value is not None:
            raise ValueError("value is given without key: values are looked up by keys")
        keys = self.take(
            "query, the keys too," if key is None else "key", x if key is None else key, axes=2, last=self.kdim
        )
        name = "key, the values too," if value is None else "value"
        values = self.take(name, keys if value is None else value, axes=2, last=self.vdim)
        if keys.shape[:-1] != values.shape[:-1]:
            raise ValueError(f"value is {values.shape}, key {keys.shape}: wanted a value for each key")
        source = Rows(keys, kv_lengths, "kv_lengths")
        if not source.spreads(rows):
            raise ValueError(f"key is {keys.shape}, query {x.shape}: wanted leading axes that broadcast to {rows.lead}")
        k, v = self._remember(source.pack(keys), source, None if values is keys else source.pack(values))
        return self._meet(self._ask(rows.pack(x), rows), k, v, rows, source, look, weights)

    # --- its parts ---

    def _ask(self, x: Array, rows: Rows) -> Array:
        """The queries alone."""
        q = self._project(x, 0, self.num_heads)
        if self._rotary is not None:
            self._turn(q, rows)
        return q

    def _remember(self, keys: Array, source: Rows, values: Array | None = None) -> tuple[Array, Array]:
        """Keys and values; of the same rows by one product."""
        H, G = self.num_heads, self.num_kv_heads
        if values is None and self.fused:
            both = self._project(keys, H)
            k, v = both[:, :G], both[:, G:]
        else:
            k, v = self._project(keys, H, H + G), self._project(keys if values is None else values, H + G)
        if self._rotary is not None:
            self._turn(k, source)
        return k, v

    def _turn(self, x: Array, rows: Rows) -> None:
        assert self._rotary is not None
        if rows.lengths is None:
            self._rotary.turn(x.reshape(*rows.lead, rows.L, *x.shape[1:]))  # splitting an axis is a view
        else:
            self._rotary.turn_at(x, rows.positions)

    def _meet(
        self, q: Array, k: Array, v: Array, rows: Rows, source: Rows, look: Look, weights: bool
    ) -> tuple[Array, Array | None]:
        """Packed queries meet packed keys and values."""
        options: Look = {**self._options, **look}
        found: Any
        if (rows.lengths is not None or source.lengths is not None) and not weights and packable(rows, source, look):
            options |= cornered(rows, source, self.num_heads, look)
            options |= {"q_start": 0, "head_axis": -2}
            # What attention_varlen calls when it has checked its arguments, which takes it 25 us.
            found = core.attend_packed(attention, q, k, v, rows.ends, source.ends, options)
            return self._output(found.reshape(len(q), self.num_heads * self.head_dim)), None
        q, k, v = rows.unpack(q), source.unpack(k), source.unpack(v)
        options |= {"q_lengths": rows.counts, "kv_lengths": source.counts}
        found = attention(q, k, v, q_start=0, head_axis=-2, return_weights=weights, **options)
        return self._leave(found, rows, weights)

    def _leave(self, found: Any, rows: Rows, weights: bool) -> tuple[Array, Array | None]:
        """The output projection of (..., L, H, D); and the weights, if there are any."""
        out, seen = found if weights else (found, None)
        out = rows.pack(out.reshape(*rows.lead, rows.L, self.num_heads * self.head_dim))
        return self._output(out), seen if seen is None else seen.reshape(*rows.lead, *seen.shape[-3:])
