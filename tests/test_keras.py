"""Keras' layers and models give the same with harken as without it, and say which calls harken did not take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare import DTYPES
from with_keras import ONE, both, grouped, keras, left, multi_head, normal, some

import harken
import harken.keras
from harken.keras import Calls

KINDS = pytest.mark.parametrize("make", [multi_head, grouped], ids=["multi_head", "grouped"])
POLICIES = ["float64", "float32", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"]
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"use_causal_mask": True},
    "value": {"value_mask": some(2, 11)},
    "key": {"key_mask": some(2, 11)},
    "query": {"query_mask": some(2, 9)},
    "attention": {"attention_mask": some(2, 9, 11)},
    "attention of heads": {"attention_mask": some(2, 4, 9, 11)},
    "attention of all": {"attention_mask": some(1, 9, 11)},
    "numbers": {"attention_mask": some(2, 9, 11).astype("int32")},
    "all": {
        "query_mask": some(2, 9),
        "value_mask": some(2, 11),
        "key_mask": some(2, 11),
        "attention_mask": some(2, 9, 11),
        "use_causal_mask": True,
    },
}


@KINDS
@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("masks", MASKS)
def test_layer_under_every_mask(make: Any, masks: str, scores: bool) -> None:
    for window in (None, 3):
        layer = make(sliding_window=window)
        x, y, z = normal(2, 9, 20), normal(2, 11, 20), normal(2, 11, 20, seed=1)
        both(lambda: layer(x, y, z, return_attention_scores=scores, **MASKS[masks]))  # noqa: B023


@KINDS
@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_layer_of_every_dtype(make: Any, policy: str, scores: bool) -> None:
    layer = make(dtype=policy)
    x, mask = normal(2, 30, 20), some(2, 30, 30)
    counted = left("dtype float64") if scores and policy == "float64" else ONE
    result = both(lambda: layer(x, x, attention_mask=mask, return_attention_scores=scores), counted)
    name = policy.removeprefix("mixed_")
    assert (result[0] if scores else result).dtype == DTYPES["float32" if name == "float64" else name]


@pytest.mark.parametrize("scores", [False, True])
def test_layer_with_widths_of_its_own(scores: bool, backend: str) -> None:
    settings = {"value_dim": 13, "output_shape": (3, 5), "use_bias": False, "use_gate": True}
    layer = keras.layers.MultiHeadAttention(3, 8, **settings)
    x, y, z = normal(2, 6, 20), normal(2, 11, 12), normal(2, 11, 17)
    result = both(lambda: layer(x, y, z, return_attention_scores=scores))
    assert (result[0] if scores else result).shape == (2, 6, 3, 5)


@KINDS
def test_rows_that_see_nothing_stay_as_they_are(make: Any) -> None:
    """The same layer gives the mean of its values without scores, and 0 with them."""
    layer, x = make(), normal(2, 9, 20)
    mask = some(2, 9, 9)
    mask[1, 4] = False
    mean = both(lambda: layer(x, x, attention_mask=mask))
    zero, scores = both(lambda: layer(x, x, attention_mask=mask, return_attention_scores=True))
    assert not scores[1, :, 4].any()
    assert np.abs(mean[1, 4] - zero[1, 4]).max() > 1e-3


@KINDS
def test_dropout(make: Any) -> None:
    layer, x = make(dropout=0.4, seed=3), normal(2, 9, 20)
    both(lambda: layer(x, x))
    both(lambda: layer(x, x, training=False, return_attention_scores=True, use_causal_mask=True))
    start = layer._dropout_layer.seed_generator.state.value.copy()

    def train(**options: Any) -> Any:
        layer._dropout_layer.seed_generator.state.assign(start)
        return layer(x, x, training=True, **options)

    for options in ({}, {"return_attention_scores": True}):
        both(lambda options=options: train(**options), left("training with dropout"), close=0)
    assert np.abs(train() - layer(x, x)).max() > 1e-3
    nothing = make(dropout=0.0)
    both(lambda: nothing(x, x, training=True, return_attention_scores=True))


def test_training_is_not_asked_of_an_outer_layer() -> None:
    class Silent(keras.layers.MultiHeadAttention):
        def call(self, query: Any, value: Any, training: Any = None) -> Any:
            q, k, v = self._query_dense(query), self._key_dense(value), self._value_dense(value)
            return self._compute_attention(q, k, v)

    layer, x = Silent(4, 8, dropout=0.5), normal(2, 9, 20)
    layer.build(x.shape, x.shape)
    out, scores = both(lambda: layer(x, x, training=True))
    assert np.allclose(scores.sum(axis=-1), 1)
    assert np.allclose(out, np.einsum("bnts,bsnh->btnh", scores, layer._value_dense(x)), atol=1e-5)


AXES: list[tuple[tuple[int, ...], tuple[int, ...] | None, tuple[int, ...]]] = [
    ((2, 3, 5, 20), None, (3, 5)),
    ((2, 3, 5, 20), (1,), (3,)),
    ((2, 3, 5, 20), (2,), (5,)),
    ((2, 3, 5, 20), (2, 1), (5, 3)),
    ((2, 3, 5, 20), (-2,), (5,)),
    ((2, 3, 4, 5, 20), None, (3, 4, 5)),
    ((2, 3, 4, 5, 20), (2,), (4,)),
    ((2, 3, 4, 5, 20), (3, 1), (5, 3)),
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize(("shape", "axes", "attended"), AXES)
def test_axes(shape: Any, axes: Any, attended: Any, scores: bool, masked: bool) -> None:
    layer, x = multi_head(attention_axes=axes), normal(*shape)
    kept = [axis % len(shape) for axis in axes or range(1, len(shape) - 1)]
    others = [n for i, n in enumerate(shape[:-1]) if i not in kept]
    options = {"attention_mask": some(1, *others[1:], 1, *attended, *attended)} if masked else {}
    both(lambda: layer(x, x, return_attention_scores=scores, **options))
    longer = np.concatenate([x, x], axis=kept[0])
    both(lambda: layer(longer, x, return_attention_scores=scores))


def test_axis_of_the_batch() -> None:
    """Keras attends over it where it computes scores; its op over axis 1 of three, whatever the layer was told."""
    layer, x = multi_head(attention_axes=0), normal(6, 5, 20)
    for scores in (False, True):
        both(lambda scores=scores: layer(x, x, return_attention_scores=scores))
    both(lambda: layer(x, x, attention_mask=some(5, 1, 6, 6), return_attention_scores=True))


def test_mask_over_many_axes_broadcasts_as_in_keras() -> None:
    layer, x = multi_head(), normal(2, 3, 5, 20)
    for shape in ((2, 3, 5, 3, 5), (3, 5, 3, 5), (1, 5, 3, 1), (2, 4, 3, 1, 1, 5)):
        mask = some(*shape)
        both(lambda mask=mask: layer(x, x, attention_mask=mask, return_attention_scores=True))
    both(lambda: layer(x, x, attention_mask=some(3, 5, 3, 5) * 3))
    with harken.keras.enable(), pytest.raises(ValueError, match="-5"):
        layer(x, x, attention_mask=some(3, 5))
    with harken.keras.enable(), pytest.raises(ValueError, match="broadcastable"):
        layer(x, x, attention_mask=some(2, 3, 5, 4, 5))
    assert harken.keras.calls() == left("a mask that does not broadcast to the scores")
    with harken.keras.enable(), pytest.raises(ValueError, match="-5"):
        layer(x, x, use_causal_mask=True)
    assert harken.keras.calls().harken == 0


def test_odd_axes_are_left_to_keras() -> None:
    layer, x = multi_head(attention_axes=(1, 2)), normal(2, 9, 20)  # 2 is the axis of heads
    both(
        lambda: layer(x, x, return_attention_scores=True),
        left("attention_axes over heads or channels, or one twice"),
    )


def test_flash_attention_is_refused_by_keras() -> None:
    for make in (multi_head, grouped):
        layer, x = make(flash_attention=True), normal(2, 9, 20)
        for options in ({}, {"return_attention_scores": True}):
            with harken.keras.enable(), pytest.raises(ValueError, match=r"[Ff]lash"):
                layer(x, x, **options)
            assert harken.keras.calls() == left("flash_attention=True")


def test_subclasses() -> None:
    class Sharper(keras.layers.MultiHeadAttention):
        def _masked_softmax(self, scores: Any, attention_mask: Any = None) -> Any:
            return super()._masked_softmax(2 * scores, attention_mask)

    class Own(keras.layers.MultiHeadAttention):
        def _build_attention(self, rank: int) -> None:
            super()._build_attention(rank)
            self._combine_equation = self._combine_equation + ""

    class Scores(keras.layers.MultiHeadAttention):
        def _compute_attention(self, *args: Any, **kwargs: Any) -> Any:
            out, scores = super()._compute_attention(*args, **kwargs)
            return out + scores.sum(), scores

    x = normal(2, 9, 20)
    sharper, scores = Sharper(4, 8, dropout=0.1), Scores(4, 8, dropout=0.1)
    both(lambda: sharper(x, x), left("a subclass that has its own way from scores to weights"))
    both(lambda: scores(x, x))
    own = Own(4, 8, dropout=0.1)
    both(lambda: own(x, x), left("a subclass that has its own way from scores to weights"))
    narrow = normal(2, 9, 4, 8, dtype=np.float16)
    other = multi_head(dropout=0.1)
    other.build(x.shape, x.shape)
    both(lambda: other._compute_attention(narrow, narrow, narrow)[0], left("another dtype than the layer's"))


# --- models ---


def small_model(causal: bool) -> Any:
    tokens = keras.Input((12,), dtype="int32")
    x = keras.layers.Embedding(50, 16, mask_zero=True)(tokens)
    x = multi_head(dropout=0.1)(x, x, use_causal_mask=causal)
    x = grouped()(x, x)
    x = keras.layers.Dense(3)(x)
    return keras.Model(tokens, x)


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask:UserWarning")  # GroupQueryAttention's
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # of saving
@pytest.mark.parametrize("causal", [False, True])
def test_model_predicts_also_when_loaded(causal: bool, tmp_path: Path) -> None:
    model = small_model(causal)
    tokens = np.random.default_rng(0).integers(1, 50, (5, 12))
    tokens[2, 7:] = 0
    predicted = both(lambda: model.predict(tokens, batch_size=2, verbose=0), Calls(6, {}))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    again = both(lambda: loaded.predict(tokens, verbose=0), Calls(2, {}))
    assert np.allclose(again, predicted, atol=1e-5)
    with harken.keras.enable():
        model.save(tmp_path / "while.keras")
        inside = keras.saving.load_model(tmp_path / "while.keras")
    assert np.allclose(inside.predict(tokens, verbose=0), predicted, atol=1e-5)


def test_symbolic_calls_are_not_computed() -> None:
    with harken.keras.enable():
        q = keras.Input((9, 4, 8))
        model = keras.Model(q, keras.ops.dot_product_attention(q, q, q, is_causal=True))
        assert harken.keras.calls() == Calls(0, {})
        x = normal(2, 9, 4, 8)
        assert np.allclose(model(x), harken.attention(x, x, x, causal=True, head_axis=-2))
        assert harken.keras.calls() == ONE
