"""The layer of a transformer's decoder, and a stack of them: self-attention, attention to a memory, a perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from numpy.typing import ArrayLike, NDArray

from harken.attention import Window
from harken.cache import Layout
from harken.layers.block import Block, Stack
from harken.layers.caches import DecoderCache, Unchanged, own
from harken.layers.heads import MultiHeadAttention
from harken.layers.look import Look, looking
from harken.layers.norm import LayerNorm
from harken.layers.rows import Rows
from harken.masks import Mask

Array = NDArray[Any]
Part = Callable[[Array], Array]


class TransformerDecoderLayer(Block):
    """Self-attention, attention to a memory and a perceptron, as `torch.nn.TransformerDecoderLayer`, batch_first=True::

        y = norm1(x + self_attn(x))                     y = x + self_attn(norm1(x))                 with norm_first
        z = norm2(y + multihead_attn(y, memory))        z = y + multihead_attn(norm2(y), memory)
        u = norm3(z + feed(z))                          u = z + feed(norm3(z))

        feed(z) = linear2(activation(linear1(z)))

    Parameters
    ----------
    d_model, nhead, dim_feedforward, activation, layer_norm_eps, norm_first, bias, num_kv_heads, dtype, rng
        As in `TransformerEncoderLayer`.
    rope : float or (cos, sin), optional
        As in `MultiHeadAttention`, for the self-attention.

    Attributes
    ----------
    self_attn, multihead_attn : MultiHeadAttention
    linear1, linear2 : Linear
    norm1, norm2, norm3 : LayerNorm

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762.

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import TransformerDecoderLayer
    >>> layer = TransformerDecoderLayer(64, 8, 256, rng=0)
    >>> rng = np.random.default_rng(0)
    >>> x, memory = (rng.normal(size=(2, L, 64)).astype(np.float32) for L in (10, 30))
    >>> y = layer(x, memory, causal=True, memory_lengths=[30, 20])

    One position at a time, the memory projected once:

    >>> cache = layer.cache(memory, 10, memory_lengths=[30, 20])
    >>> steps = [layer(x[:, i : i + 1], cache=cache) for i in range(10)]
    >>> np.allclose(np.concatenate(steps, axis=1), y, atol=1e-5)
    True
    """

    _attentions = ("self_attn", "multihead_attn")
    multihead_attn: MultiHeadAttention
    norm3: LayerNorm

    def cache(
        self,
        memory: ArrayLike,
        capacity: int,
        *,
        memory_lengths: ArrayLike | None = None,
        layout: Layout = "contiguous",
        **options: Any,
    ) -> DecoderCache:
        """For calls with cache=: the memory's keys and values, projected once, and room for `capacity` positions.

        `memory` is (B, Lm, d_model), or (Lm, d_model) for one sequence; the rest as in `MultiHeadAttention.cache`.
        """
        memory = self.take("memory", memory, axes=2, last=self.d_model)
        if memory.ndim > 3:
            raise ValueError(f"memory is {memory.shape}: wanted (B, Lm, {self.d_model}) for a cache of B sequences")
        source = Rows(memory, memory_lengths, "memory_lengths")
        kept = self.multihead_attn._memory(memory, source)
        return DecoderCache(self.self_attn.cache(kept.batch, capacity, layout=layout, **options), kept)

    def __call__(
        self,
        x: ArrayLike,
        memory: ArrayLike | None = None,
        *,
        mask: ArrayLike | Mask | None = None,
        bias: ArrayLike | None = None,
        causal: bool = False,
        window: Window | None = None,
        lengths: ArrayLike | None = None,
        memory_mask: ArrayLike | Mask | None = None,
        memory_lengths: ArrayLike | None = None,
        cache: DecoderCache | None = None,
    ) -> Array:
        """(..., L, d_model) and a memory (..., Lm, d_model) to (..., L, d_model).

        Parameters
        ----------
        mask, bias, causal, window, lengths
            Of the self-attention, as in `MultiHeadAttention`. As in PyTorch it is not causal unless told so, or with a
            cache.
        memory_mask : broadcastable to (..., H, L, Lm), optional
            True where a query may look into the memory.
        memory_lengths : integers over the leading axes, optional
            How many positions of the memory exist.
        cache : DecoderCache, optional
            Instead of the memory: the positions continue those that it holds.
        """
        look, memory_look = looking(mask, bias, causal, window), looking(memory_mask, None, False, None)
        caches = None if cache is None else own([cache], 1, DecoderCache)
        x = self.take("x", x, axes=2, last=self.d_model)
        return decode([self], None, x, memory, look, memory_look, lengths, memory_lengths, caches)

    def _rows(self, x: Array, attend: Part, recall: Part) -> Array:
        """The same for rows that are packed, by the two attentions as functions of them."""
        return self._through(x, (self.norm1, attend), (self.norm2, recall), (self.norm3, self._feed))


class TransformerDecoder(Stack[TransformerDecoderLayer]):
    """A stack of decoder layers that look into one memory, as `torch.nn.TransformerDecoder`.

    Parameters
    ----------
    decoder_layer : TransformerDecoderLayer
        It is copied `num_layers` times, as PyTorch does: without `load`, all layers begin alike.
    num_layers : int
    norm : LayerNorm, optional
        What the last layer's result goes through.

    Attributes
    ----------
    layers : list of TransformerDecoderLayer
        Their parameters are `layers.0.self_attn.in_proj_weight` and so on.
    norm : LayerNorm or None

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import LayerNorm, TransformerDecoder, TransformerDecoderLayer
    >>> model = TransformerDecoder(TransformerDecoderLayer(64, 8, 256, rng=0), 2, LayerNorm(64))
    >>> rng = np.random.default_rng(0)
    >>> x, memory = (rng.normal(size=(1, L, 64)).astype(np.float32) for L in (10, 30))
    >>> cache = model.cache(memory, 100)
    >>> prompt, step = model(x[:, :9], cache=cache), model(x[:, 9:], cache=cache)
    >>> np.allclose(step, model(x, memory, causal=True)[:, 9:], atol=1e-5)
    True
    """

    def __init__(self, decoder_layer: TransformerDecoderLayer, num_layers: int, norm: LayerNorm | None = None) -> None:
        super().__init__(decoder_layer, num_layers, norm)

    def cache(
        self,
        memory: ArrayLike,
        capacity: int,
        *,
        memory_lengths: ArrayLike | None = None,
        layout: Layout = "contiguous",
        **options: Any,
    ) -> list[DecoderCache]:
        """One for each layer, for calls with cache=; see `TransformerDecoderLayer.cache`."""
        options |= {"memory_lengths": memory_lengths, "layout": layout}
        return [layer.cache(memory, capacity, **options) for layer in self.layers]

    def __call__(
        self,
        x: ArrayLike,
        memory: ArrayLike | None = None,
        *,
        mask: ArrayLike | Mask | None = None,
        bias: ArrayLike | None = None,
        causal: bool = False,
        window: Window | None = None,
        lengths: ArrayLike | None = None,
        memory_mask: ArrayLike | Mask | None = None,
        memory_lengths: ArrayLike | None = None,
        cache: Sequence[DecoderCache] | None = None,
    ) -> Array:
        """As a call of `TransformerDecoderLayer`, layer after layer, with a cache for each."""
        look, memory_look = looking(mask, bias, causal, window), looking(memory_mask, None, False, None)
        caches = None if cache is None else own(cache, len(self.layers), DecoderCache)
        x = self.take("x", x, axes=2, last=self.d_model)
        return decode(self.layers, self.norm, x, memory, look, memory_look, lengths, memory_lengths, caches)


def decode(
    layers: Sequence[TransformerDecoderLayer],
    norm: LayerNorm | None,
    x: Array,
    memory: Any,
    look: Look,
    memory_look: Look,
    lengths: Any,
    memory_lengths: Any,
    caches: list[DecoderCache] | None,
) -> Array:
    """x through layers and, if there is one, a last normalisation."""
    rows = Rows(x, lengths)
    y = rows.pack(x)
    if caches is None:
        source, remembered = _memory(layers[0], rows, memory, memory_lengths)
        for layer in layers:
            recall = partial(layer.multihead_attn._attend_to, remembered, source, rows, memory_look)
            y = layer._rows(y, layer.self_attn._part(rows, look), recall)
    else:
        if memory is not None or memory_lengths is not None:
            raise ValueError("memory or memory_lengths is given with a cache, which keeps what it was made of")
        with Unchanged(cache.own for cache in caches):
            for layer, cache in zip(layers, caches, strict=True):
                at = cache.own.starts + cache.own.lengths
                if memory_look:
                    layer.multihead_attn._legal(cache.memory, rows, memory_look)
                recall = partial(layer.multihead_attn._look_up, cache.memory, at, rows, memory_look)
                y = layer._rows(y, layer.self_attn._part(rows, look, cache.own), recall)
    return rows.unpack(y if norm is None else norm(y))


def _memory(layer: TransformerDecoderLayer, rows: Rows, memory: Any, lengths: Any) -> tuple[Rows, Array]:
    """How the rows of a memory lie, and they."""
    if memory is None:
        raise ValueError("memory is None: wanted an array (..., Lm, d_model), or a cache that was made of one")
    given = layer.take("memory", memory, axes=2, last=layer.d_model)
    source = Rows(given, lengths, "memory_lengths")
    if not source.spreads(rows):
        raise ValueError(f"memory is {given.shape}: wanted leading axes that broadcast to those of x, {rows.lead}")
    return source, source.pack(given)
