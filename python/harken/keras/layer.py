"""Attention in the layers of Keras where they compute scores: for the caller, for dropout, on many axes."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from harken.attention import attention
from harken.keras.arrays import Array, known, paired, spread
from harken.keras.calls import LeftToKeras, counted

# What `_compute_attention` takes in Keras 3.15.
MULTI_HEAD = "self query key value attention_mask training return_attention_scores use_causal_mask"
GROUPED = "self query key value attention_mask training use_causal_mask"

OURS = ("_build_attention", "_masked_softmax", "_compute_causal_mask")  # what is not asked, so that nobody changed it


def exchanged(original: Callable[..., Any], keras: Any, cls: Any) -> Callable[..., Any]:
    """`_compute_attention` of a layer's class, by harken where Keras would compute scores and harken can."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def _compute_attention(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = signature.bind(self, *args, **kwargs)
        call.apply_defaults()
        given = of(cls, keras, **call.arguments)
        if not (given.dropout > 0 or given.scores or len(given.q.shape) != 4):
            return original(self, *args, **kwargs)  # which calls dot_product_attention
        plain = type(self).call is cls.call and type(self)._compute_attention is _compute_attention

        def ours() -> tuple[Array, Array | None]:
            if type(self._softmax) is not keras.layers.Softmax or any(
                getattr(type(self), name, None) is not getattr(cls, name, None) for name in OURS
            ):
                raise LeftToKeras("a subclass that has its own way from scores to weights")
            known(self.compute_dtype)
            if any(keras.backend.standardize_dtype(x.dtype) != self.compute_dtype for x in (given.q, given.k, given.v)):
                raise LeftToKeras("another dtype than the layer's")
            return attend(given, given.scores or not plain)

        return counted(ours, lambda: original(self, *args, **kwargs))

    return _compute_attention


@dataclass(frozen=True)
class Given:
    """A call of `_compute_attention`, in the same words for every layer; q (B, ..., N, H) with axes to attend over."""

    q: Array
    k: Array
    v: Array
    mask: Array | None
    causal: bool
    training: bool
    dropout: float
    scores: bool
    flash: bool
    scale: float
    axes: tuple[int, ...]


def of(
    cls: Any,
    keras: Any,
    self: Any,
    query: Array,
    key: Array,
    value: Array,
    attention_mask: Array | None,
    training: bool | None,
    use_causal_mask: bool,
    return_attention_scores: bool | None = None,
) -> Given:
    """The call, from the arguments and from where each layer keeps its settings."""
    multi_head = cls is keras.layers.MultiHeadAttention
    return Given(
        query,
        key,
        value,
        attention_mask,
        use_causal_mask,
        bool(training),  # None is not a question to an outer layer: Keras' dropout is told None, and does nothing
        self._dropout if multi_head else self.dropout,
        bool(return_attention_scores if multi_head else self._return_attention_scores),
        self._flash_attention,
        self._inverse_sqrt_key_dim if multi_head else self._inverse_sqrt_head_dim,
        tuple(self._attention_axes) if multi_head else (1,),
    )


def attend(given: Given, want: bool) -> tuple[Array, Array | None]:
    """softmax(scale Q K^T) V over the axes together, and the weights (the other axes, N, axes of q, axes of k).

    A query whose mask hides every key gets 0, as in Keras, whose softmax clears what a mask hides.
    """
    q, k, v, axes = given.q, given.k, given.v, given.axes
    if given.dropout > 0 and given.training:
        raise LeftToKeras("training with dropout")
    if given.flash and given.scores:
        raise LeftToKeras("flash_attention=True")
    if len(set(axes)) < len(axes) or not all(0 <= axis < q.ndim - 2 for axis in axes):
        raise LeftToKeras("attention_axes over heads or channels, or one twice")
    if given.causal and (q.ndim, axes) != (4, (1,)):
        raise LeftToKeras("use_causal_mask on other axes than one of three")
    paired(q, k, v, axes)
    if q.shape[-2] != k.shape[-2]:
        raise LeftToKeras("shapes that only broadcasting makes fit, or nothing does")
    others = tuple(axis for axis in range(q.ndim - 2) if axis not in axes)
    order = (*others, *axes, q.ndim - 2, q.ndim - 1)
    outer, Lq, Lk = (tuple(x.shape[axis] for axis in kind) for x, kind in ((q, others), (q, axes), (k, axes)))
    N, V = v.shape[-2:]
    mask = None if given.mask is None else flat_mask(given, (*outer, N, *Lq, *Lk))
    rows = [x.transpose(order).reshape(*outer, -1, *x.shape[-2:]) for x in (q, k, v)]
    options: dict[str, Any] = {"mask": mask, "scale": given.scale, "causal": bool(given.causal), "return_weights": want}
    answer: Any = attention(*rows, q_start=0, head_axis=-2, **options)
    out, weights = answer if want else (answer, None)
    out = out.reshape(*outer, *Lq, N, V).transpose(np.argsort(order))
    return out, None if weights is None else weights.reshape(*outer, N, *Lq, *Lk)


def flat_mask(given: Given, scores: tuple[int, ...]) -> Array:
    """The mask as harken takes it, boolean and with one axis for all that is attended over, and one for their keys."""
    mask, n = np.asarray(given.mask), len(given.axes)
    if mask.dtype != bool:
        mask = mask.astype(bool) if given.causal else mask > 0.5  # as Keras does in either case
    while mask.ndim < len(scores):
        if mask.ndim < 2 * n:
            raise LeftToKeras("a mask that does not broadcast to the scores")
        mask = np.expand_dims(mask, -2 * n - 1)
    mask = spread("mask", mask, scores)
    if n == 1:
        return mask
    mask = np.broadcast_to(mask, (*mask.shape[: -2 * n], *scores[-2 * n :]))
    Lq, Lk = math.prod(scores[-2 * n : -n]), math.prod(scores[-n:])
    return mask.reshape(*mask.shape[: -2 * n], Lq, Lk)
