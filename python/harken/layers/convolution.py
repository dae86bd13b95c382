"""Convolution over positions, whole or as a stream: each output is a weighted sum over a window of the input's rows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken._load import core
from harken.layers.integers import size
from harken.layers.layer import Layer, Rng

Array = NDArray[Any]
Padding = int | tuple[int, int] | str


class Conv1DState(NamedTuple):
    """What a stream through `Conv1D` remembers between chunks; `step` gives a new one and leaves the old as it was."""

    rows: Array
    """(..., n, in_channels), the positions that windows to come still meet."""
    skip: int
    """Positions to come that no window meets, where the stride is longer than the kernel."""


class Conv1D(Layer):
    """y[l, o] = bias[o] + sum_ck x[l stride + k dilation - left, c] weight[o, c, k], zeros standing beside x.

    c goes over the input channels of the group that o belongs to. The sums are made in the order of the weights in
    memory, by chains of 64 products, so that the bits of an output depend on its window alone: not on the threads,
    the batch, the length of x or, in a stream, on how it is cut into chunks. A matrix engine (AMX), where there is one,
    takes float32 sequences of 64 outputs or more, up to 16 taps, with 48 channels or more on either side, in its own
    order, which depends neither on threads nor batch: there, the last bits differ from those of a stream.

    Parameters
    ----------
    in_channels, out_channels, kernel_size : int
        x is (..., L, in_channels), y (..., L', out_channels), L' = floor((L + left + right - reach - 1) / stride) + 1,
        where reach = dilation (kernel_size - 1).
    stride : int
        From one window to the next.
    padding : int, (left, right), "valid", "same" or "causal"
        How many zeros stand before and after each sequence: an integer for both sides; "valid", none; "same", reach in
        all, the odd one on the right as PyTorch has it, for stride 1; "causal", reach before and none after.
    dilation : int
        From one tap of a window to the next.
    groups : int
        Into how many groups the channels of input and output are cut; in_channels of them with as many outputs are a
        depthwise convolution.
    bias : bool
        Whether there is one.
    dtype : float32 or float64
    rng : numpy.random.Generator or int, optional
        Draws the first values, uniform on +-1 / sqrt(in_channels / groups * kernel_size), as PyTorch does.

    Attributes
    ----------
    weight : (out_channels, in_channels / groups, kernel_size)
    bias : (out_channels,), or None
    left, right : int
        The zeros before and after each sequence.

    Raises
    ------
    ValueError
        Sizes that do not fit, or x shorter, with its padding, than a window.
    TypeError
        x of another dtype.

    Notes
    -----
    Parameters are those of `torch.nn.Conv1d`, but positions come before channels: where PyTorch takes (B, C, L), give
    `x.swapaxes(-1, -2)`, a view, which is copied once. Arrays whose channels lie side by side are read in place,
    whatever their other strides.

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import Conv1D
    >>> layer = Conv1D(80, 256, 3, stride=2, padding=1)
    >>> layer(np.ones((8, 100, 80), np.float32), lengths=[100, 31, 7, 99, 64, 2, 1, 50]).shape
    (8, 50, 256)
    >>> layer.output_lengths([100, 31]).tolist()
    [50, 16]

    A stream, in chunks of any length, gives the whole:

    >>> layer = Conv1D(4, 8, 5, padding="causal")
    >>> x = np.random.default_rng(0).standard_normal((20, 4), np.float32)
    >>> state, parts = layer.start(), []
    >>> for chunk in x[:1], x[1:9], x[9:9], x[9:]:
    ...     y, state = layer.step(chunk, state)
    ...     parts.append(y)
    >>> np.array_equal(np.concatenate(parts), layer(x))
    True

    References
    ----------
    .. [1] A. Waibel et al., "Phoneme Recognition Using Time-Delay Neural Networks", 1989.
    .. [2] A. van den Oord et al., "WaveNet: A Generative Model for Raw Audio", 2016, arXiv:1609.03499: causal, dilated.
    """

    weight: Array
    bias: Array | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: Padding = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        super().__init__(dtype)
        self.in_channels = size("in_channels", in_channels, 1)
        self.out_channels = size("out_channels", out_channels, 1)
        self.kernel_size = size("kernel_size", kernel_size, 1)
        self.stride = size("stride", stride, 1)
        self.dilation = size("dilation", dilation, 1)
        self.groups = size("groups", groups, 1)
        for name, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if channels % self.groups:
                raise ValueError(f"{name} is {channels}, groups is {self.groups}: wanted a multiple of groups")
        self.left, self.right = self._sides(padding)
        rng = np.random.default_rng(rng)
        inputs = self.in_channels // self.groups
        reach = 1 / (inputs * self.kernel_size) ** 0.5
        self.own(weight=rng.uniform(-reach, reach, (self.out_channels, inputs, self.kernel_size)))
        self.bias = None
        if bias:
            self.own(bias=rng.uniform(-reach, reach, self.out_channels))

    def _sides(self, padding: Padding) -> tuple[int, int]:
        reach = self.dilation * (self.kernel_size - 1)
        if isinstance(padding, str):
            if padding == "same" and self.stride > 1:
                raise ValueError(
                    f'padding is "same", stride is {self.stride}: wanted stride 1, or padding=(left, right)'
                )
            sides = {"valid": (0, 0), "same": (reach // 2, reach - reach // 2), "causal": (reach, 0)}
            if padding not in sides:
                raise ValueError(
                    f'padding is {padding!r}: wanted "valid", "same", "causal", an integer or (left, right)'
                )
            return sides[padding]
        if isinstance(padding, tuple | list):
            if len(padding) != 2:
                raise ValueError(f"padding is {padding!r}: wanted (left, right)")
            return size("padding[0]", padding[0], 0), size("padding[1]", padding[1], 0)
        both = size("padding", padding, 0)
        return both, both

    def output_lengths(self, lengths: ArrayLike) -> Any:
        """How many positions sequences of these lengths give: integers of the shape of `lengths`."""
        array = np.asarray(lengths)
        if array.dtype.kind not in "iu":
            raise TypeError(f"lengths is {array.dtype}: wanted integers")
        spare = array.astype(np.int64) + (self.left + self.right - self.dilation * (self.kernel_size - 1) - 1)
        return np.maximum(spare // self.stride + 1, 0)

    def __call__(self, x: ArrayLike, *, lengths: ArrayLike | None = None) -> Array:
        """The convolution of x.

        Parameters
        ----------
        x : (..., L, in_channels)
        lengths : integers over the batch axes, optional
            Positions at and past the length count as zeros and are not read; y is 0 at and past
            `output_lengths(lengths)`.

        Returns
        -------
        (..., L', out_channels)
        """
        x = self.take("x", x, axes=2, last=self.in_channels)
        L, window = x.shape[-2], self.dilation * (self.kernel_size - 1) + 1
        if L > 0 and L + self.left + self.right < window:
            padding = f" with {self.left} and {self.right} zeros beside them" if self.left or self.right else ""
            raise ValueError(f"x has {L} positions{padding}: wanted {window} or more, which a window reaches over")
        batch = x.shape[:-2]
        if lengths is not None:
            lengths = self._lengths(lengths, batch, L)
        return self._convolve(x, lengths, self.left, self.right, False)

    def _lengths(self, lengths: ArrayLike, batch: tuple[int, ...], L: int) -> Array:
        array = np.asarray(lengths)
        if array.dtype.kind not in "iu":
            raise TypeError(f"lengths is {array.dtype}: wanted integers")
        if array.size and not (array.min() >= 0 and array.max() <= L):
            raise ValueError(f"lengths goes from {array.min()} to {array.max()}: wanted 0 to {L}, the positions of x")
        try:
            array = np.broadcast_to(array.astype(np.int64), batch)
        except ValueError:
            raise ValueError(f"lengths is {array.shape}: wanted {batch}, the batch axes of x") from None
        return np.ascontiguousarray(array).reshape(math.prod(batch))

    def _convolve(self, x: Array, lengths: Array | None, left: int, right: int, stream: bool) -> Array:
        *batch, L, C = x.shape
        out = max((L + left + right - self.dilation * (self.kernel_size - 1) - 1) // self.stride + 1, 0)
        y = np.empty((math.prod(batch), out, self.out_channels), self.dtype)
        x = x.reshape(math.prod(batch), L, C)
        whole = all(step % x.itemsize == 0 for step in x.strides[:2]) and (C <= 1 or x.strides[2] == x.itemsize)
        if not (whole and x.flags.aligned):
            x = np.ascontiguousarray(x)
        numbers = self.stride, self.dilation, left, right, self.groups
        core._convolve(x, self.weight, self.bias, y, lengths, *numbers, stream)
        return y.reshape(*batch, out, self.out_channels)

    def start(self, batch_shape: int | tuple[int, ...] = ()) -> Conv1DState:
        """A stream that has seen nothing but the zeros before it, for x of shape (*batch_shape, n, in_channels)."""
        if self.right:
            raise ValueError(f"padding after a sequence is {self.right}: a stream has no end; wanted padding='causal'")
        batch = (batch_shape,) if isinstance(batch_shape, int) else tuple(batch_shape)
        return Conv1DState(np.zeros((*batch, self.left, self.in_channels), self.dtype), 0)

    def step(self, x: ArrayLike, state: Conv1DState) -> tuple[Array, Conv1DState]:
        """The outputs that the next positions complete, and the state after them.

        Parameters
        ----------
        x : (..., n, in_channels)
            The next n positions, 0 or more.
        state : Conv1DState
            From `start` or from the step before.

        Returns
        -------
        y : (..., n', out_channels)
            All of them in a row are the convolution of all x in a row, bit for bit the same for all chunks.
        state : Conv1DState
        """
        if not isinstance(state, Conv1DState):
            raise TypeError(f"state is {type(state).__name__}: wanted what start() or the last step gave")
        x = self.take("x", x, axes=2, last=self.in_channels)
        if x.shape[:-2] != state.rows.shape[:-2]:
            raise ValueError(f"x is {x.shape}, the stream was started for {state.rows.shape[:-2]} as its batch axes")
        skipped = min(state.skip, x.shape[-2])
        rows = np.concatenate([state.rows, x[..., skipped:, :]], -2)
        n = rows.shape[-2]
        y = self._convolve(rows, None, 0, 0, True)
        used = y.shape[-2] * self.stride
        return y, Conv1DState(rows[..., used:, :].copy(), state.skip - skipped + max(used - n, 0))
