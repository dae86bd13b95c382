"""The layers of encoder and decoder, and stacks of them: the formula, PyTorch's names and numbers, step by step."""

from __future__ import annotations

from functools import partial
from typing import Any

import formulas
import numpy as np
import pytest
from compare import Array, same_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_heads import TYPES, agree, normal

import harken
from harken.layers import (
    LayerNorm,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
    gelu,
    silu,
    tanh,
)

E, H, F = 24, 4, 20


def stirred(layer: Any, seed: int = 0) -> Any:
    """The layer with no two parameters alike."""
    rng = np.random.default_rng(seed)
    return layer.load({name: x + rng.normal(size=x.shape) / 5 for name, x in layer.state().items()})


def encoder(dtype: Any, count: int = 3, **options: Any) -> TransformerEncoder:
    layer = TransformerEncoderLayer(E, H, F, dtype=dtype, rng=0, **options)
    return stirred(TransformerEncoder(layer, count, LayerNorm(E, dtype=dtype)))


def decoder(dtype: Any, count: int = 3, **options: Any) -> TransformerDecoder:
    layer = TransformerDecoderLayer(E, H, F, dtype=dtype, rng=0, **options)
    return stirred(TransformerDecoder(layer, count, LayerNorm(E, dtype=dtype)))


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    flag = st.booleans()
    lead, L = draw(st.sampled_from([(), (3,), (2, 2)])), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    build: dict[str, Any] = {"norm_first": draw(flag), "bias": draw(flag)}
    build |= {"activation": draw(st.sampled_from(["relu", "gelu"]))}
    build |= {"num_kv_heads": 2} if draw(flag) else {}
    build |= {"rope": 100.0} if draw(flag) else {}
    build |= {"layer_norm_eps": 0.1} if draw(flag) else {}
    call: dict[str, Any] = {"causal": draw(flag)}
    call |= {"window": (2, 1)} if draw(flag) else {}
    call |= {"mask": rng.random((*lead, 1, L, L)) < 0.7} if draw(flag) else {}
    call |= {"bias": rng.standard_normal((H, L, L))} if draw(flag) else {}
    call |= {"lengths": rng.integers(0, L + 1, lead)} if draw(flag) else {}
    return {"lead": lead, "L": L, "build": build, "call": call, "dtype": draw(st.sampled_from(TYPES)), "rng": rng}


def meaning(drawn: dict[str, Any]) -> tuple[Array, Array, dict[str, Any]]:
    """Which rows are valid, who sees whom, and the options, as the formulas take them."""
    L, build, call = drawn["L"], drawn["build"], drawn["call"]
    lengths = np.broadcast_to(call.get("lengths", L), drawn["lead"])
    valid = (np.arange(L) < lengths[..., None])[..., None]
    who = formulas.seen(L, L, call["causal"], call.get("window"), lengths, call.get("mask", True))
    more = {"act": getattr(formulas, build["activation"]), "first": build["norm_first"]}
    more |= {"eps": build.get("layer_norm_eps", 1e-5), "rope": build.get("rope"), "bias": call.get("bias", 0.0)}
    return valid, who, more


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(calls())
def test_encoder_under_any_options(drawn: dict[str, Any]) -> None:
    layer = stirred(TransformerEncoderLayer(E, H, F, dtype=drawn["dtype"], **drawn["build"]))
    valid, who, more = meaning(drawn)
    x = normal(layer.dtype, *drawn["lead"], drawn["L"], E)
    formula = partial(formulas.transformer_layer, H=H, G=layer.self_attn.num_kv_heads, who=who, **more)
    y = layer(np.where(valid, x, np.nan), **drawn["call"])
    agree("y", y, formula, layer, x, valid=valid)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(calls(), st.integers(1, 8), st.booleans(), st.booleans())
def test_decoder_under_any_options(drawn: dict[str, Any], Lm: int, masked: bool, short: bool) -> None:
    layer = stirred(TransformerDecoderLayer(E, H, F, dtype=drawn["dtype"], **drawn["build"]))
    valid, who, more = meaning(drawn)
    L, lead, rng, call = drawn["L"], drawn["lead"], drawn["rng"], drawn["call"]
    x, memory = normal(layer.dtype, *lead, L, E), normal(layer.dtype, *lead, Lm, E, seed=2)
    if masked:
        call = call | {"memory_mask": rng.random((*lead, 1, L, Lm)) < 0.7}
    if short:
        call = call | {"memory_lengths": rng.integers(0, Lm + 1, lead)}
    counts = np.broadcast_to(call.get("memory_lengths", Lm), lead)
    whom = formulas.seen(L, Lm, kv_lengths=counts, mask=call.get("memory_mask", True))
    exists = (np.arange(Lm) < counts[..., None])[..., None]
    formula = partial(formulas.transformer_layer, H=H, G=layer.self_attn.num_kv_heads, who=who, whom=whom, **more)
    y = layer(np.where(valid, x, np.nan), np.where(exists, memory, np.nan), **call)
    agree("y", y, formula, layer, x, memory, valid=valid)


# --- the names and numbers of PyTorch ---

ATTENTION = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
REST = [f"{name}.{part}" for name in ("linear1", "linear2", "norm1", "norm2") for part in ("weight", "bias")]


def test_names_of_the_state() -> None:
    its = [*(f"self_attn.{name}" for name in ATTENTION), *REST]
    assert list(TransformerEncoderLayer(E, H, F).state()) == its
    assert list(encoder(np.float32, 2).state()) == [
        *(f"layers.{n}.{name}" for n in (0, 1) for name in its), "norm.weight", "norm.bias",
    ]  # fmt: skip
    its = [f"{part}.{name}" for part in ("self_attn", "multihead_attn") for name in ATTENTION]
    its += [*REST, "norm3.weight", "norm3.bias"]
    assert list(TransformerDecoderLayer(E, H, F).state()) == its
    assert list(TransformerDecoder(TransformerDecoderLayer(E, H, F), 1).state()) == [f"layers.0.{name}" for name in its]
    assert not [name for name in TransformerDecoderLayer(E, H, F, bias=False).state() if "bias" in name]


def test_layers_of_a_stack_are_their_own() -> None:
    stack = TransformerEncoder(TransformerEncoderLayer(E, H, F, rng=0), 2)
    one, two = (layer.state() for layer in stack.layers)
    for name in one:
        same_bits(one[name], two[name])
        assert not np.shares_memory(one[name], two[name])


def torch_pair(ours: Any, kind: str, layers: int, double: bool, **options: Any) -> tuple[Any, Any, Any]:
    """PyTorch's module in evaluation mode, and ours with its state."""
    torch = pytest.importorskip("torch")
    dtype = torch.float64 if double else torch.float32
    part = getattr(torch.nn, f"Transformer{kind}Layer")(E, H, F, batch_first=True, dtype=dtype, **options)
    theirs = getattr(torch.nn, f"Transformer{kind}")(part, layers, torch.nn.LayerNorm(E, dtype=dtype))
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert list(ours.state()) == list(theirs.state_dict())
    return torch, theirs.eval(), ours.load(theirs.state_dict())


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(
    "build", [{}, {"norm_first": True, "activation": "gelu"}, {"bias": False, "layer_norm_eps": 1e-2}], ids=str
)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning", "ignore:The PyTorch API of nested:UserWarning")
def test_torch(build: dict[str, Any], double: bool) -> None:
    dtype, bound = (np.float64, 1e-12) if double else (np.float32, 2e-5)
    x, memory = normal(dtype, 3, 9, E), normal(dtype, 3, 7, E)
    padding, valid = np.arange(9) >= np.array([[9], [4], [6]]), np.array([9, 4, 6])
    hidden = np.triu(np.ones((9, 9), bool), 1)
    with_norm = {"dtype": dtype, "count": 3, **build}
    torch, theirs, ours = torch_pair(encoder(**with_norm), "Encoder", 3, double, **build)
    with torch.no_grad():
        their_y = theirs(torch.from_numpy(x), src_key_padding_mask=torch.from_numpy(padding)).numpy()
        y = ours(x, lengths=valid)
        np.testing.assert_allclose(y[~padding], their_y[~padding], atol=bound)
        assert not y[padding].any()
        their_y = theirs(torch.from_numpy(x), mask=torch.from_numpy(hidden)).numpy()
        np.testing.assert_allclose(ours(x, causal=True), their_y, atol=bound)
        np.testing.assert_allclose(ours(x, mask=~hidden), their_y, atol=bound)
        torch, theirs, ours = torch_pair(decoder(**with_norm), "Decoder", 3, double, **build)
        past = np.arange(7) >= np.array([[7], [2], [5]])
        their_y = theirs(
            *map(torch.from_numpy, (x, memory)), tgt_mask=torch.from_numpy(hidden),
            tgt_key_padding_mask=torch.from_numpy(padding), memory_key_padding_mask=torch.from_numpy(past),
        ).numpy()  # fmt: skip
        y = ours(x, memory, causal=True, lengths=valid, memory_lengths=[7, 2, 5])
        np.testing.assert_allclose(y[~padding], their_y[~padding], atol=bound)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", silu, tanh, partial(gelu, approximate="tanh")], ids=str)
def test_activations(activation: Any) -> None:
    layer = stirred(TransformerEncoderLayer(E, H, F, activation, dtype=np.float64))
    x = normal(np.float64, 5, E)
    meant: Any = {
        "silu": lambda h: h / (1 + np.exp(-h)),
        "tanh": np.tanh,
        "gelu_tanh": lambda h: h / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (h + 0.044715 * h**3))),
    }
    name = activation if isinstance(activation, str) else getattr(activation, "__name__", "gelu_tanh")
    formula = partial(formulas.transformer_layer, H=H, G=H, who=formulas.seen(5, 5), act=meant[name])
    np.testing.assert_allclose(layer(x), formula(layer.state(), x), atol=1e-12)


# --- step by step ---


@pytest.mark.parametrize("layout", ["contiguous", "paged", "ring"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_generates(layout: str, norm_first: bool) -> None:
    model = encoder(np.float64, norm_first=norm_first, num_kv_heads=2, rope=100.0)
    x, window = normal(np.float64, 2, 30, E), (8, 0)
    whole = model(x, causal=True, window=window)
    cache = model.cache(2, 16 if layout == "ring" else 30, layout=layout)
    y = [model(part, window=window, cache=cache) for part in np.split(x, [7, 8, 9, 16, 24, 25], axis=1)]
    np.testing.assert_allclose(np.concatenate(y, axis=1), whole, atol=1e-12)


@pytest.mark.parametrize("layout", ["contiguous", "paged"])
def test_a_decoder_generates(layout: str) -> None:
    model = decoder(np.float64, rope=100.0, num_kv_heads=2)
    x, memory = normal(np.float64, 2, 12, E), normal(np.float64, 2, 9, E)
    seen = np.random.default_rng(0).random((2, 1, 1, 9)) < 0.8
    whole = model(x, memory, causal=True, memory_lengths=[9, 4], memory_mask=seen)
    memory[1, 4:] = np.nan
    cache = model.cache(memory, 12, memory_lengths=[9, 4], layout=layout)
    y = [model(part, cache=cache, memory_mask=seen[..., :9]) for part in np.split(x, [5, 6, 7], axis=1)]
    np.testing.assert_allclose(np.concatenate(y, axis=1), whole, atol=1e-12)
    for one in cache:
        one.truncate(5)
    same_bits(model(x[:, 5:6], cache=cache, memory_mask=seen), y[1])


def test_one_sequence_decodes_without_a_batch_axis() -> None:
    layer = stirred(TransformerDecoderLayer(E, H, F))
    x, memory = normal(np.float32, 6, E), normal(np.float32, 4, E)
    cache = layer.cache(memory, 6)
    np.testing.assert_allclose(layer(x, cache=cache), layer(x, memory, causal=True), atol=1e-5)
    np.testing.assert_allclose(layer(x, memory)[None], layer(x[None], memory[None]), atol=1e-5)


def test_rows_decode_at_positions_of_their_own() -> None:
    layer = stirred(TransformerDecoderLayer(E, H, F, rope=100.0, dtype=np.float64))
    x, memory = normal(np.float64, 2, 8, E), normal(np.float64, 2, 4, E)
    whole = layer(x, memory, causal=True)
    cache = layer.cache(memory, 8)
    layer(x[:, :5], cache=cache, lengths=[5, 2])
    part = np.stack([x[0, 5:7], x[1, 2:4]])
    y = layer(part, cache=cache)
    np.testing.assert_allclose(y, np.stack([whole[0, 5:7], whole[1, 2:4]]), atol=1e-12)


@pytest.mark.parametrize("layout", ["contiguous", "ring"])
def test_a_step_that_fails_leaves_all_caches(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, memory = decoder(np.float32), normal(np.float32, 2, 9, E)
    cache, x = model.cache(memory, 4, layout=layout), normal(np.float32, 2, 3, E)
    model(x, cache=cache)
    before = [(one.own.starts, one.own.lengths, one.own.keys().copy()) for one in cache]
    for wrong in ({"mask": np.ones((5, 2), bool)}, {"memory_mask": np.ones((1, 8), bool)}, {"lengths": 4}):
        with pytest.raises(ValueError, match=r"mask|lengths"):
            model(x[:, :1] if layout == "contiguous" else x, cache=cache, **wrong)
    if layout == "contiguous":
        feed, calls_ = TransformerDecoderLayer._feed, []

        def interrupted(self: Any, y: Array) -> Array:
            calls_.append(1)
            if len(calls_) == 2:
                raise KeyboardInterrupt
            return feed(self, y)

        monkeypatch.setattr(TransformerDecoderLayer, "_feed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model(x[:, :1], cache=cache)
    for one, (starts, lengths, keys) in zip(cache, before, strict=True):
        same_bits(one.own.starts, starts)
        same_bits(one.own.lengths, lengths)
        same_bits(one.own.keys(), keys)


# --- what is read ---


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 3e38])
def test_padding_reaches_nothing(garbage: float) -> None:
    x, memory = normal(np.float32, 3, 20, E), normal(np.float32, 3, 11, E)
    lengths, its = np.array([20, 7, 1]), np.array([11, 4, 1])
    past, beyond = np.arange(20) >= lengths[:, None], np.arange(11) >= its[:, None]
    dirty, foul = x.copy(), memory.copy()
    dirty[past], foul[beyond] = garbage, garbage
    for norm_first in (False, True):
        model, other = encoder(np.float32, norm_first=norm_first), decoder(np.float32, norm_first=norm_first)
        same_bits(model(dirty, lengths=lengths), model(x, lengths=lengths))
        options: dict[str, Any] = {"lengths": lengths, "memory_lengths": its, "causal": True}
        y = other(dirty, foul, **options)
        same_bits(y, other(x, memory, **options))
        assert not y[past].any()
    same_bits(x, normal(np.float32, 3, 20, E))


def test_nothing_in_nothing_out() -> None:
    model, other = encoder(np.float32), decoder(np.float32)
    for shape in ((0, 3, E), (2, 0, E), (0, E)):
        x = np.zeros(shape, np.float32)
        assert model(x).shape == shape
        assert other(x, np.ones((*shape[:-2], 4, E), np.float32)).shape == shape


# --- what is refused ---


def test_wrong_layers() -> None:
    with pytest.raises(
        ValueError, match="activation is 'swish': wanted one of gelu, gelu_tanh, relu, sigmoid, silu, tanh"
    ):
        TransformerEncoderLayer(E, H, F, "swish")
    with pytest.raises(TypeError, match=r"activation is 0\.1: wanted a name"):
        TransformerEncoderLayer(E, H, F, 0.1)  # type: ignore[arg-type]
    layer = TransformerEncoderLayer(E, H, F, lambda h: h.astype(np.float64))
    with pytest.raises(ValueError, match=r"activation gives float64 \(3, 20\) for float32 \(3, 20\)"):
        layer(normal(np.float32, 3, E))


def test_wrong_calls() -> None:
    model, other = encoder(np.float32), decoder(np.float32)
    x, memory = normal(np.float32, 2, 3, E), normal(np.float32, 2, 5, E)
    with pytest.raises(TypeError, match="x is float64, the layer is float32"):
        model(x.astype(np.float64))
    with pytest.raises(ValueError, match=r"lengths holds 9: wanted 0 to 3"):
        model(x, lengths=[9, 0])
    with pytest.raises(TypeError, match="cache is KVCache: wanted a KVCache for each of 3 layers"):
        model(x, cache=model.layers[0].cache(2, 3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cache is 2 of them: wanted a KVCache for each of 3 layers"):
        model(x, cache=model.cache(2, 3)[:2])
    with pytest.raises(ValueError, match="memory is None: wanted an array"):
        other(x)
    with pytest.raises(ValueError, match="is given with a cache, which keeps what it was made of"):
        other(x, memory, cache=other.cache(memory, 3))
    with pytest.raises(ValueError, match=r"memory is \(3, 5, 24\): wanted leading axes that broadcast to .* \(2,\)"):
        other(x, np.ones((3, 5, E), np.float32))
    with pytest.raises(ValueError, match=r"memory_lengths holds 6: wanted 0 to 5"):
        other(x, memory, memory_lengths=6)
    with pytest.raises(ValueError, match="for a cache of B sequences"):
        other.cache(np.ones((2, 2, 5, E), np.float32), 3)
    with pytest.raises(ValueError, match=r"cache has 2 rows, the input \(1,\)"):
        other(x[:1], cache=other.cache(memory, 3))
    with pytest.raises(TypeError, match="cache is KVCache: wanted a DecoderCache"):
        other(x, cache=harken.KVCache(2, 4, 3, 6))  # type: ignore[arg-type]
