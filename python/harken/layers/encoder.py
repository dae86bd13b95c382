"""The layer of a transformer's encoder, and a stack of them: self-attention and a perceptron, added to their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike, NDArray

from harken.attention import Window
from harken.cache import KVCache, Layout
from harken.layers.block import Block, Stack
from harken.layers.caches import Unchanged, own
from harken.layers.look import Look, looking
from harken.layers.norm import LayerNorm
from harken.layers.rows import Rows
from harken.masks import Mask

Array = NDArray[Any]


class TransformerEncoderLayer(Block):
    """Self-attention and a perceptron, as `torch.nn.TransformerEncoderLayer` with batch_first=True::

        y = norm1(x + self_attn(x))         y = x + self_attn(norm1(x))         with norm_first
        z = norm2(y + feed(y))              z = y + feed(norm2(y))

        feed(y) = linear2(activation(linear1(y)))

    Parameters
    ----------
    d_model, nhead, dim_feedforward : int
        Channels, heads, and the width of the perceptron.
    activation : {"gelu", "gelu_tanh", "relu", "sigmoid", "silu", "tanh"} or function
        A function takes an array (T, dim_feedforward) and gives one of the same shape and dtype; it may be the same.
    layer_norm_eps : float
    norm_first : bool
    bias : bool
        Whether projections, linear maps and normalisations have biases.
    num_kv_heads, rope
        As in `MultiHeadAttention`.
    dtype : float32 or float64
    rng : numpy.random.Generator or int, optional

    Attributes
    ----------
    self_attn : MultiHeadAttention
    linear1, linear2 : Linear
    norm1, norm2 : LayerNorm

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762.
    .. [2] R. Xiong et al., "On Layer Normalization in the Transformer Architecture", 2020, arXiv:2002.04745:
       norm_first.

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import TransformerEncoderLayer
    >>> layer = TransformerEncoderLayer(64, 8, 256, activation="gelu", rng=0)
    >>> x = np.random.default_rng(0).normal(size=(2, 10, 64)).astype(np.float32)
    >>> y = layer(x, lengths=[10, 7])
    >>> y.shape, bool(y[1, 7:].any())
    ((2, 10, 64), False)
    """

    def cache(self, batch: int, capacity: int, *, layout: Layout = "contiguous", **options: Any) -> KVCache:
        """For calls with cache=; see `MultiHeadAttention.cache`."""
        return self.self_attn.cache(batch, capacity, layout=layout, **options)

    def __call__(
        self,
        x: ArrayLike,
        *,
        mask: ArrayLike | Mask | None = None,
        bias: ArrayLike | None = None,
        causal: bool = False,
        window: Window | None = None,
        lengths: ArrayLike | None = None,
        cache: KVCache | None = None,
    ) -> Array:
        """(..., L, d_model) to the same; the options are those of `MultiHeadAttention`.

        The result is 0 past `lengths`; padding is neither read nor computed with.
        """
        x = self.take("x", x, axes=2, last=self.d_model)
        return encode([self], None, x, looking(mask, bias, causal, window), lengths, [cache])

    def _rows(self, x: Array, rows: Rows, look: Look, cache: KVCache | None) -> Array:
        """The same for rows that are packed."""
        attend = self.self_attn._part(rows, look, cache)
        return self._through(x, (self.norm1, attend), (self.norm2, self._feed))


class TransformerEncoder(Stack[TransformerEncoderLayer]):
    """A stack of encoder layers, as `torch.nn.TransformerEncoder`; with causal=True also a decoder without a memory.

    Parameters
    ----------
    encoder_layer : TransformerEncoderLayer
        It is copied `num_layers` times, as PyTorch does: without `load`, all layers begin alike.
    num_layers : int
    norm : LayerNorm, optional
        What the last layer's result goes through.

    Attributes
    ----------
    layers : list of TransformerEncoderLayer
        Their parameters are `layers.0.self_attn.in_proj_weight` and so on.
    norm : LayerNorm or None

    Examples
    --------
    A language model generates: the prompt at once, then position by position.

    >>> import numpy as np
    >>> from harken.layers import LayerNorm, TransformerEncoder, TransformerEncoderLayer
    >>> model = TransformerEncoder(TransformerEncoderLayer(64, 4, 256, norm_first=True, rng=0), 3, LayerNorm(64))
    >>> x = np.random.default_rng(0).normal(size=(1, 10, 64)).astype(np.float32)
    >>> cache = model.cache(1, 100)
    >>> prompt, step = model(x[:, :9], cache=cache), model(x[:, 9:], cache=cache)
    >>> np.allclose(step, model(x, causal=True)[:, 9:], atol=1e-5)
    True
    """

    def __init__(self, encoder_layer: TransformerEncoderLayer, num_layers: int, norm: LayerNorm | None = None) -> None:
        super().__init__(encoder_layer, num_layers, norm)

    def cache(self, batch: int, capacity: int, *, layout: Layout = "contiguous", **options: Any) -> list[KVCache]:
        """One for each layer, for calls with cache=; see `MultiHeadAttention.cache`."""
        return [layer.cache(batch, capacity, layout=layout, **options) for layer in self.layers]

    def __call__(
        self,
        x: ArrayLike,
        *,
        mask: ArrayLike | Mask | None = None,
        bias: ArrayLike | None = None,
        causal: bool = False,
        window: Window | None = None,
        lengths: ArrayLike | None = None,
        cache: Sequence[KVCache] | None = None,
    ) -> Array:
        """(..., L, d_model) to the same; the options are those of each layer, `cache` one for each."""
        x = self.take("x", x, axes=2, last=self.d_model)
        look = looking(mask, bias, causal, window)
        caches = [None] * len(self.layers) if cache is None else own(cache, len(self.layers), KVCache)
        return encode(self.layers, self.norm, x, look, lengths, caches)


def encode(
    layers: Sequence[TransformerEncoderLayer],
    norm: LayerNorm | None,
    x: Array,
    look: Look,
    lengths: Any,
    caches: Sequence[KVCache | None],
) -> Array:
    """x through layers and, if there is one, a last normalisation."""
    rows = Rows(x, lengths)
    y = rows.pack(x)
    with Unchanged(cache for cache in caches if cache is not None):
        for layer, cache in zip(layers, caches, strict=True):
            y = layer._rows(y, rows, look, cache)
        if norm is not None:
            y = norm(y)
    return rows.unpack(y)
