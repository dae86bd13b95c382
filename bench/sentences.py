"""Sentences a second through MiniLM: harken.layers against ONNX Runtime and PyTorch with the same weights.

    python bench/sentences.py [--threads 2] [--seconds 20] [--busy] [--json bench/results/sentences.json]

From token numbers to unit vectors, float32: one sentence, 8 and 32 of mixed lengths, and 8 of 128 tokens each. Rivals
get a batch padded to its longest sentence with the lengths beside it, as their users do, and "alone" one sentence after
the other, without padding. ONNX Runtime runs the operators that its own optimizer makes of BERT: Attention with the
lengths as its mask, SkipLayerNormalization and BiasGelu, with all optimizations of graphs on. PyTorch runs its
TransformerEncoder in inference mode, whose fast path leaves padding out by itself. All are checked against the
equations in float64 before they are timed. On a machine that has other work, --busy takes one thread and counts its CPU
time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import machine
import numpy as np
import threadpoolctl
import timing
from additive import processor_time
from problems import Array

ROOT = Path(__file__).parents[1]
Call = Callable[[], Any]
Tokens = list[list[int]]
LENGTHS = (13, 9, 21, 34, 8, 17, 52, 11, 27, 15, 40, 7, 19, 88, 12, 24)  # of sentences, as tokens


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def problems(model: Any) -> dict[str, Tokens]:
    """Pieces of a text, each with BERT's first and last token."""
    text = (ROOT / "python" / "harken" / "commands" / "paragraph.txt").read_text("utf-8")
    first, *body, last = model.tokens([text])[0]
    body *= 2

    def piece(i: int, length: int) -> list[int]:
        start = 7 * i % 120
        return [first, *body[start : start + length - 2], last]

    mixed = [piece(i, LENGTHS[i % len(LENGTHS)]) for i in range(32)]
    return {
        "1 sentence": mixed[:1],
        "8 sentences": mixed[:8],
        "32 sentences": mixed,
        "8 of 128 tokens": [piece(i, 128) for i in range(8)],
    }


def padded(tokens: Tokens) -> tuple[Array, Array]:
    """(B, L) and the lengths."""
    lengths = np.array([len(one) for one in tokens])
    return np.array([one + [0] * (lengths.max() - len(one)) for one in tokens]), lengths


def onnx_model(weights: dict[str, Array], config: dict[str, Any]) -> bytes:
    """BERT, the mean over tokens and the division by the norm, of (B, L) tokens and (B,) lengths."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants = [], {}
    epsilon = config["layer_norm_eps"]

    def keep(name: str, array: Array) -> str:
        constants[name] = np.ascontiguousarray(array)
        return name

    def add(kind: str, inputs: list[str], output: str, contrib: bool = False, **attributes: Any) -> str:
        domain = {"domain": "com.microsoft"} if contrib else {}
        nodes.append(helper.make_node(kind, inputs, [output], **domain, **attributes))
        return output

    def matmul(x: str, name: str, output: str) -> str:
        return add("MatMul", [x, keep(f"{name}.weight", weights[f"{name}.weight"].T)], output)

    def weight(name: str) -> str:
        return keep(name, weights[name])

    at = "embeddings"
    place = weights[f"{at}.position_embeddings.weight"] + weights[f"{at}.token_type_embeddings.weight"][0]
    add("Gather", [weight(f"{at}.word_embeddings.weight"), "tokens"], "words")
    add("Shape", ["tokens"], "L", start=1, end=2)
    add("Slice", [keep("place", place), keep("zero", np.int64([0])), "L"], "places")
    x = add("Add", ["words", "places"], "placed")
    names = [weight(f"{at}.LayerNorm.{part}") for part in ("weight", "bias")]
    x = add("LayerNormalization", [x, *names], "x", axis=-1, epsilon=epsilon)
    for n in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{n}"
        each = [f"{at}.attention.self.{name}" for name in ("query", "key", "value")]
        qkv = keep(f"{at}.qkv", np.concatenate([weights[f"{name}.weight"].T for name in each], axis=1))
        bias = keep(f"{at}.qkv_bias", np.concatenate([weights[f"{name}.bias"] for name in each]))
        heads = config["num_attention_heads"]
        a = add("Attention", [x, qkv, bias, "lengths"], f"a{n}", contrib=True, num_heads=heads)
        for inner, out in (("attention.output", f"y{n}"), ("output", f"z{n}")):
            if inner == "output":
                h = matmul(x, f"{at}.intermediate.dense", f"h{n}")
                a = add("BiasGelu", [h, weight(f"{at}.intermediate.dense.bias")], f"g{n}", contrib=True)
            o = matmul(a, f"{at}.{inner}.dense", f"{out}o")
            names = [f"{at}.{inner}.{part}" for part in ("LayerNorm.weight", "LayerNorm.bias", "dense.bias")]
            inputs = [o, x, *map(weight, names)]
            x = add("SkipLayerNormalization", inputs, out, contrib=True, epsilon=epsilon)
    add("Range", [keep("none", np.int32(0)), add("Squeeze", [add("Cast", ["L"], "L32", to=6)], "L0"),
                  keep("one", np.int32(1))], "at")  # fmt: skip
    add("Less", ["at", add("Unsqueeze", ["lengths", keep("axis1", np.int64([1]))], "column")], "real")
    mask = add("Unsqueeze", [add("Cast", ["real"], "mask2", to=1), keep("axis2", np.int64([2]))], "mask")
    total = add("ReduceSum", [add("Mul", [x, mask], "seen"), "axis1"], "total", keepdims=0)
    mean = add("Div", [total, add("Cast", ["column"], "count", to=1)], "mean")
    norm = add("ReduceL2", [mean, "axis1"], "norm", keepdims=1)
    add("Div", [mean, norm], "out")
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B", "L"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
    ]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["B", config["hidden_size"]])
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "bert", inputs, [output], held)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    done: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return done


def onnxruntime(model: Any, threads: int) -> Callable[[Tokens], Array]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    made = onnx_model(model.weights, model.config)
    session = ort.InferenceSession(made, options, providers=["CPUExecutionProvider"])

    def embed(tokens: Tokens) -> Array:
        ids, lengths = padded(tokens)
        out: Array = session.run(None, {"tokens": ids, "lengths": lengths.astype(np.int32)})[0]
        return out

    return embed


def pytorch(model: Any, threads: int) -> Callable[[Tokens], Array]:
    import torch

    torch.set_num_threads(threads)
    c, state = model.config, {name: torch.from_numpy(x) for name, x in model.network.state().items()}
    layer = torch.nn.TransformerEncoderLayer(
        c["hidden_size"], c["num_attention_heads"], c["intermediate_size"], 0.0, "gelu", c["layer_norm_eps"], True
    )
    warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
    encoder = torch.nn.TransformerEncoder(layer, c["num_hidden_layers"]).eval()
    inner = {name.removeprefix("encoder."): x for name, x in state.items() if name.startswith("encoder.")}
    encoder.load_state_dict(inner)
    place = state["positions"] + state["kind"]

    def embed(tokens: Tokens) -> Array:
        ids, lengths = map(torch.from_numpy, padded(tokens))
        with torch.inference_mode():
            x = state["words"][ids] + place[: ids.shape[1]]
            x = torch.nn.functional.layer_norm(
                x, x.shape[-1:], state["norm.weight"], state["norm.bias"], c["layer_norm_eps"]
            )
            past = torch.arange(ids.shape[1]) >= lengths[:, None]
            y = encoder(x, src_key_padding_mask=past if bool(past.any()) else None)
            y = y.masked_fill(past[..., None], 0).sum(1) / lengths[:, None]
            out: Array = torch.nn.functional.normalize(y, dim=-1).numpy()
            return out

    return embed


def contenders(model: Any, threads: int) -> Iterator[tuple[str, Callable[[Tokens], Array]]]:
    yield "harken", model.network
    for name, make in (("ONNX Runtime", onnxruntime), ("PyTorch", pytorch)):
        try:
            embed = make(model, threads)
        except ImportError as error:
            print(f"{name}: {error.name} is not installed: no times of it")
            continue
        yield name, embed
        yield f"{name}, alone", lambda tokens, embed=embed: np.concatenate([embed([one]) for one in tokens])


def measure(
    title: str, tokens: Tokens, right: Array, embeds: dict[str, Callable[[Tokens], Array]], seconds: float, busy: bool
) -> dict[str, Any]:
    calls: dict[str, Call] = {}
    errors = {}
    for name, embed in embeds.items():
        if name.endswith("alone") and (len(tokens) == 1 or len({len(one) for one in tokens}) == 1):
            continue
        errors[name] = float(np.abs(embed(tokens) - right).max())
        if not errors[name] < 1e-5:
            print(f"{title}, {name}: error {errors[name]:.1e}: no time")
            continue
        calls[name] = lambda embed=embed: embed(tokens)
    quiet = machine.Quiet()
    rounds = processor_time(calls, seconds) if busy else timing.interleave(calls, seconds, lambda text: None)
    shortest = {name: min(x for samples in rounds[name] for x in samples) for name in calls}
    return {
        "problem": title,
        "tokens": sum(map(len, tokens)),
        "padded": len(tokens) * max(map(len, tokens)),
        "seconds": {name: timing.middle(rounds[name]) for name in calls},
        "shortest": shortest,
        "sentences_a_second": {name: len(tokens) / timing.middle(rounds[name]) for name in calls},
        "ratio": {name: timing.ratio(rounds[name], rounds["harken"]) for name in calls},
        "error": errors,
        "others": quiet.others(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=machine.cpus(), metavar="N")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each problem (default: %(default)s)")
    parser.add_argument("--busy", action="store_true", help="one thread, and its CPU time")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    options.threads = 1 if options.busy else options.threads
    threadpoolctl.threadpool_limits(options.threads)
    import harken

    harken.set_num_threads(options.threads)
    example = module(ROOT / "examples" / "sentence_embeddings.py")
    model = example.Model(example.folder())
    exact = example.SentenceEncoder(model.config, dtype=np.float64).load(example.renamed(model.weights))
    embeds = dict(contenders(model, options.threads))
    report: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "environment": machine.environment(),
        "threads": options.threads,
        "clock": "CPU time" if options.busy else "wall",
        "backend": harken.get_backend(),
        "rows": [],
    }
    print(f"float32, {harken.get_backend()}, {options.threads} threads; sentences a second, rivals' time over harken's")
    for title, tokens in problems(model).items():
        right = np.concatenate([exact([one]) for one in tokens])
        row = measure(title, tokens, right, embeds, options.seconds, options.busy)
        report["rows"].append(row)
        print(f"{title:<16}{row['tokens']:5} tokens" + "".join(
            f"  {name} {rate:6.0f}/s {row['ratio'][name]:5.2f} x ({1e3 * row['shortest'][name]:.2f} ms)"
            for name, rate in row["sentences_a_second"].items()
        ) + f"  (others: {row['others']:.0%})", flush=True)  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
