"""LSTM and GRU: layers that go through a sequence step by step, all steps in one native call."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken._load import core
from harken.layers.layer import Layer, Rng

Array = NDArray[Any]


class Recurrent(Layer):
    """What LSTM and GRU share: layers on layers, directions, states, lengths."""

    gates: int
    cell: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        bidirectional: bool,
        dtype: DTypeLike,
        rng: Rng,
    ) -> None:
        super().__init__(dtype)
        for name, size, least in (
            ("input_size", input_size, 0),
            ("hidden_size", hidden_size, 1),
            ("num_layers", num_layers, 1),
        ):
            if size < least:
                raise ValueError(f"{name} is {size}: wanted {least} or more")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bidirectional = bidirectional
        self.directions = 1 + bidirectional
        rng = np.random.default_rng(rng)
        reach = 1 / hidden_size**0.5
        rows = self.gates * hidden_size
        for layer, suffix in self._suffixes():
            size = self.directions * hidden_size if layer else input_size
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, size), "weight_hh": (rows, hidden_size)}
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)} if bias else {}
            self.own(**{name + suffix: rng.uniform(-reach, reach, shape) for name, shape in shapes.items()})

    def _suffixes(self) -> Iterator[tuple[int, str]]:
        for layer in range(self.num_layers):
            yield layer, f"_l{layer}"
            if self.bidirectional:
                yield layer, f"_l{layer}_reverse"

    def _weights(self, layer: int) -> tuple[Array | None, ...]:
        """For each direction W_ih, W_hh, b_ih and b_hh, whatever has been assigned to them."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return tuple(getattr(self, name + s, None) for n, s in self._suffixes() if n == layer for name in names)

    def _state(self, name: str, state: ArrayLike | None, batch: tuple[int, ...]) -> Array:
        """A first state as (layers, directions, B, H), a copy; zeros where none is given."""
        shape = (self.num_layers * self.directions, *batch, self.hidden_size)
        if state is None:
            given = np.zeros(shape, self.dtype)
        else:
            given = self.take(name, state, axes=1)
            if given.shape != shape:
                raise ValueError(
                    f"{name} is {given.shape}: wanted {shape}, (layers * directions, ...batch, hidden_size)"
                )
        return np.array(given, order="C").reshape(self.num_layers, self.directions, math.prod(batch), self.hidden_size)

    def _lengths(self, lengths: ArrayLike | None, batch: tuple[int, ...], L: int) -> Array | None:
        if lengths is None:
            return None
        array = np.asarray(lengths)
        if array.dtype.kind not in "iu":
            raise TypeError(f"lengths is {array.dtype}: wanted integers")
        try:
            array = np.broadcast_to(array, batch)
        except ValueError:
            raise ValueError(f"lengths is {array.shape}: wanted {batch}, a number for each sequence") from None
        if array.size and (array.min() < 0 or array.max() > L):
            raise ValueError(f"lengths go from {array.min()} to {array.max()}: wanted 0 to {L}, the positions of x")
        return np.ascontiguousarray(array, np.int64).reshape(-1)

    def _run(self, x: ArrayLike, h0: ArrayLike | None, c0: ArrayLike | None, lengths: ArrayLike | None) -> Any:
        x = self.take("x", x, axes=2, last=self.input_size)
        *axes, L, _ = x.shape
        batch, B, H, D = tuple(axes), math.prod(axes), self.hidden_size, self.directions
        counts = self._lengths(lengths, batch, L)
        order = None if counts is None else np.argsort(-counts, kind="stable").astype(np.int64)
        first = self._state("h0", h0, batch)
        last = first.copy()
        c = self._state("c0", c0, batch) if self.cell == "lstm" else None
        y = np.ascontiguousarray(x).reshape(B, L, self.input_size)
        for layer in range(self.num_layers):
            below, y = y, np.empty((B, L, D * H), self.dtype)
            if counts is not None:
                for row, count in enumerate(counts.tolist()):
                    y[row, count:] = 0
            core._recur(
                self.cell,
                below,
                y,
                first[layer],
                last[layer],
                None if c is None else c[layer],
                self._weights(layer),
                counts,
                order,
            )
        shape = (self.num_layers * D, *batch, H)
        return y.reshape(*batch, L, D * H), last.reshape(shape), None if c is None else c.reshape(shape)

    def _step(self, x: ArrayLike, h: ArrayLike | None, c: ArrayLike | None) -> Any:
        if self.bidirectional:
            raise ValueError(
                "step goes forwards: a bidirectional layer needs the whole sequence, call the layer itself"
            )
        x = self.take("x", x, axes=1, last=self.input_size)
        y, h, c = self._run(x[..., None, :], h, c, None)
        return y[..., 0, :], h, c


class LSTM(Recurrent):
    """Long short-term memory: a state h and a cell c that gates write, keep and read.

    For each step, s the logistic function::

        i = s(W_ii x + b_ii + W_hi h + b_hi)        f, o likewise
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)
        c' = f * c + i * g
        h' = o * tanh(c')

    Parameters
    ----------
    input_size, hidden_size : int
        x is (..., L, input_size), y (..., L, directions * hidden_size).
    num_layers : int
        Layers, each over the y of the one below.
    bias : bool
    bidirectional : bool
        Each layer also goes from the end to the beginning, with weights of its own; y holds both, forwards first.
    dtype : float32 or float64
    rng : numpy.random.Generator or int, optional
        Draws the first values, uniform on +-1 / sqrt(hidden_size), as PyTorch does.

    Attributes
    ----------
    weight_ih_l0 : (4 * hidden_size, input_size)
        The rows of i, f, g and o, in this order; l1 and so on have directions * hidden_size columns. Those of the other
        direction are called weight_ih_l0_reverse.
    weight_hh_l0 : (4 * hidden_size, hidden_size)
    bias_ih_l0, bias_hh_l0 : (4 * hidden_size,)
        Where there is bias.

    Notes
    -----
    The bits of a sequence depend on it alone: not on the batch, the threads, or the padding beyond its length. A matrix
    engine (AMX), where there is one, multiplies x with weight_ih in its own order for float32 sequences of 64 steps or
    more, 48 or more inputs and units, and 2^24 or more products, steps * input_size * rows of weight_ih, in all: there,
    the last bits differ from those of `step`, and of a call for a part of the sequence.

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import LSTM
    >>> layer = LSTM(8, 16)
    >>> x = np.ones((3, 10, 8), np.float32)
    >>> y, (h, c) = layer(x)
    >>> y.shape, h.shape, c.shape
    ((3, 10, 16), (1, 3, 16), (1, 3, 16))

    Frame by frame, with the same bits, as no matrix engine takes so little:

    >>> state = None
    >>> for t in range(10):
    ...     out, state = layer.step(x[:, t], state)
    >>> np.array_equal(out, y[:, -1])
    True

    References
    ----------
    .. [1] S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997.
    """

    gates, cell = 4, "lstm"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        bidirectional: bool = False,
        *,
        dtype: DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, bias, bidirectional, dtype, rng)

    def __call__(
        self,
        x: ArrayLike,
        state: tuple[ArrayLike, ArrayLike] | None = None,
        *,
        lengths: ArrayLike | None = None,
    ) -> tuple[Array, tuple[Array, Array]]:
        """The outputs of all steps, and the state after the last.

        Parameters
        ----------
        x : (..., L, input_size)
        state : (h0, c0), each (num_layers * directions, ..., hidden_size), optional
            Zeros if not given.
        lengths : integers over the batch axes, optional
            Positions at or past a length do not count, whatever they hold: y is 0 there, the state is that at the
            length, and backwards begins there.

        Returns
        -------
        y : (..., L, directions * hidden_size)
        h, c : (num_layers * directions, ..., hidden_size)
        """
        h0, c0 = _pair(state)
        y, h, c = self._run(x, h0, c0, lengths)
        return y, (h, c)

    def step(self, x: ArrayLike, state: tuple[ArrayLike, ArrayLike] | None = None) -> tuple[Array, tuple[Array, Array]]:
        """One step, of x (..., input_size): y (..., hidden_size) and the next state, as in the whole call."""
        h0, c0 = _pair(state)
        y, h, c = self._step(x, h0, c0)
        return y, (h, c)


class GRU(Recurrent):
    """Gated recurrent unit: a state h of which z says what stays.

    For each step, s the logistic function::

        r = s(W_ir x + b_ir + W_hr h + b_hr)        z likewise
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))        reset_after=True
        n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)        reset_after=False
        h' = (1 - z) * n + z * h

    Parameters
    ----------
    input_size, hidden_size : int
        x is (..., L, input_size), y (..., L, directions * hidden_size).
    num_layers : int
        Layers, each over the y of the one below.
    bias : bool
    bidirectional : bool
        Each layer also goes from the end to the beginning, with weights of its own; y holds both, forwards first.
    reset_after : bool
        Whether r resets the state after its product or before. After is PyTorch's and cuDNN's convention, and Keras'
        default; before is the original paper's, and ONNX's default (linear_before_reset=0).
    dtype : float32 or float64
    rng : numpy.random.Generator or int, optional
        Draws the first values, uniform on +-1 / sqrt(hidden_size), as PyTorch does.

    Attributes
    ----------
    weight_ih_l0 : (3 * hidden_size, input_size)
        The rows of r, z and n, in this order; l1 and so on have directions * hidden_size columns. Those of the other
        direction are called weight_ih_l0_reverse.
    weight_hh_l0 : (3 * hidden_size, hidden_size)
    bias_ih_l0, bias_hh_l0 : (3 * hidden_size,)
        Where there is bias.

    Notes
    -----
    The bits of a sequence depend on it alone: not on the batch, the threads, or the padding beyond its length. A matrix
    engine (AMX), where there is one, multiplies x with weight_ih in its own order for float32 sequences of 64 steps or
    more, 48 or more inputs and units, and 2^24 or more products, steps * input_size * rows of weight_ih, in all: there,
    the last bits differ from those of `step`, and of a call for a part of the sequence.

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import GRU
    >>> y, h = GRU(8, 16, bidirectional=True)(np.ones((3, 10, 8), np.float32), lengths=[10, 4, 0])
    >>> y.shape, h.shape, y[2].any()
    ((3, 10, 32), (2, 3, 16), np.False_)

    References
    ----------
    .. [1] K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
       Translation", 2014, arXiv:1406.1078.
    """

    gates, cell = 3, "gru"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        dtype: DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, bias, bidirectional, dtype, rng)
        self.reset_after = reset_after
        self.cell = "gru" if reset_after else "gru_reset_before"

    def __call__(
        self, x: ArrayLike, h0: ArrayLike | None = None, *, lengths: ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """The outputs of all steps, and the state after the last.

        Parameters
        ----------
        x : (..., L, input_size)
        h0 : (num_layers * directions, ..., hidden_size), optional
            Zeros if not given.
        lengths : integers over the batch axes, optional
            Positions at or past a length do not count, whatever they hold: y is 0 there, the state is that at the
            length, and backwards begins there.

        Returns
        -------
        y : (..., L, directions * hidden_size)
        h : (num_layers * directions, ..., hidden_size)
        """
        y, h, _ = self._run(x, h0, None, lengths)
        return y, h

    def step(self, x: ArrayLike, h0: ArrayLike | None = None) -> tuple[Array, Array]:
        """One step, of x (..., input_size): y (..., hidden_size) and the next state, as in the whole call."""
        y, h, _ = self._step(x, h0, None)
        return y, h


def _pair(state: Any) -> tuple[Any, Any]:
    if state is None:
        return None, None
    if not isinstance(state, tuple | list) or len(state) != 2:
        raise TypeError(f"state is {type(state).__name__}: wanted (h0, c0), as the layer returns them")
    return state[0], state[1]
