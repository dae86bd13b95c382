"""Kernels beside those of others in one process, in turns, by events of the card; and what crosses the bus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from card.device import Card
from card.numbers import numbers, stored
from card.probe import torch_with_card
from card.problem import make, of_host, of_tensor

Call = Callable[[int], Any]
TOLERANCE = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 2e-2}  # TF32 is what some call float32
SAMPLES, SAMPLE_MS, HOPELESS = 30, 1.0, 20.0  # who takes so many times the best is not timed on
LONGEST = 0.5  # seconds of a call after which it is not called again


@dataclass(frozen=True)
class Problem:
    """One call over random numbers."""

    group: str
    type: str
    B: int
    Hq: int
    Hkv: int
    Lq: int
    Lk: int
    D: int
    causal: bool = False
    precision: str = "highest"

    @property
    def flops(self) -> float:
        return 4.0 * self.B * self.Hq * self.Lq * self.Lk * self.D / (2 if self.causal else 1)

    @property
    def key_bytes(self) -> int:
        return 2 * self.B * self.Hkv * self.Lk * self.D * {"float32": 4}.get(self.type, 2)


def prefill(
    type: str, D: int, lengths: tuple[int, ...], tokens: int = 16384, precision: str = "highest"
) -> Iterator[Problem]:
    """As the papers measure it: B L and H D stay the same."""
    H = 2048 // D
    for L in lengths:
        for causal in (False, True):
            yield Problem(f"{type} D={D}", type, tokens // L, H, H, L, L, D, causal, precision)


GROUPS: dict[str, list[Problem]] = {
    "bfloat16 D=128": list(prefill("bfloat16", 128, (2048, 4096, 8192, 16384))),
    "bfloat16 D=64": list(prefill("bfloat16", 64, (2048, 4096, 8192, 16384))),
    "bfloat16 D=256": list(prefill("bfloat16", 256, (2048, 4096, 8192, 16384))),
    "float16 D=128": list(prefill("float16", 128, (4096,))),
    "float32 D=128": list(prefill("float32", 128, (2048, 4096), 8192)),
    "float32 D=64": list(prefill("float32", 64, (1024, 4096), 8192)),
    "float32 D=128, medium": list(prefill("float32", 128, (4096,), 8192, "medium")),
    "decode": [
        Problem("decode", "bfloat16", 16, 64, 8, 1, 8192, 128),
        Problem("decode", "bfloat16", 8, 32, 32, 1, 4096, 128),
        Problem("decode", "bfloat16", 1, 64, 8, 1, 131072, 128),
    ],
    "few queries": [
        Problem("few queries", "bfloat16", 16, 64, 8, 4, 8192, 128),
        Problem("few queries", "bfloat16", 16, 64, 8, 8, 8192, 128),
        Problem("few queries", "bfloat16", 16, 64, 8, 1, 16384, 64),
        Problem("few queries", "float16", 16, 32, 8, 1, 4096, 256),
        Problem("few queries", "bfloat16", 1, 8, 1, 1, 1 << 20, 128),
    ],
    "NumPy": [Problem("NumPy", "bfloat16", 1, 16, 16, L, L, 128) for L in (4096, 16384)],
}


def truth_of_rows(torch: Any, problem: Problem, q: Any, k: Any, v: Any) -> Any:
    """The last rows of one head in float64."""
    rows = min(problem.Lq, 256)
    Q, K, V = q[0, -1, -rows:].double(), k[0, -1].double(), v[0, -1].double()
    S = Q @ K.T * problem.D**-0.5
    if problem.causal:
        first = problem.Lk - rows
        S.masked_fill_(torch.ones_like(S, dtype=torch.bool).triu(first + 1), float("-inf"))
    return torch.softmax(S, -1) @ V


def error_of(torch: Any, problem: Problem, out: Any, truth: Any) -> float:
    """|out - truth| / |truth| of those rows; NaN where any number is NaN."""
    rows = out[0, -1, -len(truth) :].double()
    error = float((rows - truth).norm() / truth.norm())
    return error if not bool(torch.isnan(out).any()) else float("nan")


def rivals(torch: Any, problem: Problem, sets: list[Any]) -> dict[str, Call | str]:
    """The others, each with the call of set n, or why it cannot."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    function = torch.nn.functional.scaled_dot_product_attention
    found: dict[str, Call | str] = {}
    wanted = {
        "torch flash": "FLASH_ATTENTION",
        "torch cudnn": "CUDNN_ATTENTION",
        "torch efficient": "EFFICIENT_ATTENTION",
    }

    def by(backend: Any, n: int) -> Any:
        with sdpa_kernel(backend):
            return function(*sets[n], is_causal=problem.causal and problem.Lq > 1, enable_gqa=problem.Hq != problem.Hkv)

    for name, backend in wanted.items():
        found[name] = partial(by, getattr(SDPBackend, backend))
    try:
        from fa3_fwd_interface import flash_attn_func
    except (ImportError, OSError) as error:
        found["FlashAttention-3"] = f"not importable: {error}"
        return found
    swapped = [[x.transpose(1, 2).contiguous() for x in three] for three in sets]

    def fa3(n: int) -> Any:
        out = flash_attn_func(*swapped[n], causal=problem.causal)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    found["FlashAttention-3"] = fa3
    return found


def harkens(torch: Any, card: Card, kernels: list[str], problem: Problem, sets: list[Any]) -> dict[str, Call | str]:
    """Its kernels, each by itself."""
    outs = [torch.empty_like(three[0]) for three in sets]
    made = [
        make(
            dict(zip(("q", "k", "v", "out"), map(of_tensor, (*three, out)), strict=True)),
            causal=problem.causal,
            precision=problem.precision,
        )
        for three, out in zip(sets, outs, strict=True)
    ]
    stream = torch.cuda.current_stream().cuda_stream

    def run(kernel: str, n: int) -> Any:
        card.attend(made[n], kernel, stream)
        return outs[n]

    calls: dict[str, Call | str] = {}
    for kernel in kernels:
        why = card.lacks(made[0], kernel)
        calls[f"harken {kernel}"] = why if why is not None else partial(run, kernel)
    return calls


def timed(torch: Any, call: Call, first: int, sets: int, count: int) -> float:
    """Milliseconds of a call, by events around `count` of them."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for n in range(count):
        call((first + n) % sets)
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / count


def in_turns(torch: Any, calls: dict[str, Call], sets: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Median milliseconds of each. Who is hopeless beside the best is called twice and no more."""
    first = {name: min(timed(torch, call, n, sets, 1) for n in range(2)) for name, call in calls.items()}
    best = min(first.values())
    samples: dict[str, list[float]] = {name: [ms] for name, ms in first.items()}
    counts = {name: max(1, int(SAMPLE_MS / ms)) for name, ms in first.items() if ms <= HOPELESS * best}
    begun = time.perf_counter()
    for turn in range(SAMPLES):
        for name, count in counts.items():
            samples[name].append(timed(torch, calls[name], turn * count, sets, count))
        if time.perf_counter() - begun > seconds and turn >= 2:
            break
    return {name: {"ms": float(np.median(ms[1:] or ms)), "samples": len(ms[1:] or ms)} for name, ms in samples.items()}


def rates(problem: Problem, ms: float) -> dict[str, float]:
    """A time, and what it means."""
    return {"ms": ms, "TFLOP/s": problem.flops / ms / 1e9, "GB/s of keys": problem.key_bytes / ms / 1e6}


def compare(torch: Any, card: Card, kernels: list[str], problem: Problem, l2: int, seconds: float) -> dict[str, Any]:
    """One problem: time, rate and error of everyone who computes it rightly."""
    dtype = getattr(torch, problem.type)
    shapes = (problem.Hq, problem.Lq), (problem.Hkv, problem.Lk), (problem.Hkv, problem.Lk)
    bytes_of_set = problem.key_bytes + 2 * problem.B * problem.Hq * problem.Lq * problem.D * dtype.itemsize
    count = max(2, -(-2 * l2 // bytes_of_set))
    sets = [[torch.randn(problem.B, H, L, problem.D, device="cuda").to(dtype) for H, L in shapes] for _ in range(count)]
    truth = truth_of_rows(torch, problem, *sets[0])
    answer: dict[str, Any] = {"problem": asdict(problem), "sets": count, "contenders": {}}
    right: dict[str, Call] = {}
    for name, call in (harkens(torch, card, kernels, problem, sets) | rivals(torch, problem, sets)).items():
        if isinstance(call, str):
            answer["contenders"][name] = {"status": call}
            continue
        try:
            torch.cuda.synchronize()
            begun = time.perf_counter()
            out = call(0)
            torch.cuda.synchronize()
            seconds_of_call = time.perf_counter() - begun
            error = error_of(torch, problem, out, truth)
        except (RuntimeError, MemoryError) as words:
            answer["contenders"][name] = {"status": str(words).split("\n")[0][:200]}
            continue
        good = error <= TOLERANCE[problem.type]
        answer["contenders"][name] = {"status": "right" if good else "wrong", "error": error}
        if good and seconds_of_call > LONGEST:
            answer["contenders"][name] |= rates(problem, seconds_of_call * 1e3) | {"samples": 1}
        elif good:
            right[name] = call
    if not right:
        return answer
    for name, row in in_turns(torch, right, count, seconds).items():
        answer["contenders"][name] |= row | rates(problem, row["ms"])
    return answer


def from_host(torch: Any, card: Card, kernels: list[str], problem: Problem, limits: dict[str, float]) -> dict[str, Any]:
    """NumPy in, NumPy out: seconds beside those of the copies alone and of the kernel alone."""
    answer = compare(torch, card, kernels, problem, 0, 1.0)
    rng = np.random.default_rng(0)
    shape = problem.B, problem.Hq, problem.Lq, problem.D
    three = [stored(rng.standard_normal(shape, np.float32), problem.type) for _ in range(3)]
    copy = (
        max(3 * three[0].nbytes / limits["to the card, pinned"], three[0].nbytes / limits["from the card, pinned"])
        / 1e6
    )  # ms
    truth = truth_of_rows(torch, problem, *(torch.from_numpy(numbers(x[:, -1:], problem.type)) for x in three))
    for name, row in answer["contenders"].items():
        if not name.startswith("harken ") or row["status"] != "right":
            continue
        for memory in ("pageable", "pinned"):
            arrays = [torch.empty(shape, dtype=torch.int16, pin_memory=memory == "pinned").numpy() for _ in range(4)]
            for to, x in zip(arrays, three, strict=False):
                to[...] = x.view(np.int16)
            operands = {n: of_host(x, problem.type) for n, x in zip(("q", "k", "v", "out"), arrays, strict=True)}
            made = make(operands)
            times = []
            for _ in range(7):
                begun = time.perf_counter()
                card.attend(made, name.removeprefix("harken "))
                times.append((time.perf_counter() - begun) * 1e3)
            out = torch.from_numpy(numbers(arrays[3][:, -1:].view(np.uint16), problem.type))
            floor = max(copy, row["ms"])
            ms = float(np.median(times[1:]))
            row[memory] = {
                "ms": ms, "copy ms": copy, "floor over time": floor / ms, "error": error_of(torch, problem, out, truth),
            }  # fmt: skip
    return answer


def times(card: Card, group: str, kernels: list[str], facts: dict[str, Any], tell: Callable[[Any], None]) -> None:
    """One group of problems; after each what is known so far is told."""
    torch = torch_with_card()
    if isinstance(torch, str):
        return tell({"status": torch})
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    entries: list[dict[str, Any]] = []
    for problem in GROUPS[group]:
        if group == "NumPy":
            entries.append(from_host(torch, card, kernels, problem, facts["GB/s"]))
        else:
            entries.append(compare(torch, card, kernels, problem, facts["l2"], 2.0))
        tell({"status": "measured" if len(entries) == len(GROUPS[group]) else "not finished", "entries": entries})
    return None
