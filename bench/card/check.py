"""Every kernel against the definition in float64, over the shapes, types and options of the contract."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from card.device import Card, Held, reference
from card.numbers import Array, largest, numbers, off, stored, ulp
from card.problem import Operand, lay, make, of_host

FLOATING = ("float64", "float32", "float16", "bfloat16")
SHAPES = (
    (1, 1, 1, 1), (1, 70, 64, 64), (16, 32, 64, 128), (17, 33, 65, 129), (5, 100, 130, 3), (40, 31, 8, 260),
    (64, 64, 64, 64), (65, 63, 128, 128), (127, 129, 32, 32), (128, 200, 96, 96), (100, 257, 192, 128),
    (130, 190, 256, 256), (1, 1000, 128, 128), (3, 513, 64, 64), (300, 333, 128, 128), (0, 3, 4, 5), (3, 0, 4, 5),
    (16, 100, 0, 5), (3, 4, 5, 0),
)  # fmt: skip
SMALL = ((1, 1, 1, 1), (17, 33, 65, 129), (5, 40, 64, 64), (3, 0, 4, 5))
OPTIONS = (
    "window", "lengths", "mask", "bias", "softcap", "alibi", "scales", "cosine", "additive", "sinks", "lists", "all",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One call. The options are those of `options_of`; `layout` says how the arrays lie."""

    types: tuple[str, str, str]
    Lq: int
    Lk: int
    D: int
    Dv: int
    Hq: int = 2
    Hkv: int = 2
    batch: tuple[int, ...] = ()
    options: str = ""
    causal: bool = False
    weights: bool = False
    layout: str = "heads first"
    hidden: bool = False  # what nobody sees is NaN
    special: bool = False  # some of what is seen is NaN or Inf
    precision: str = "highest"
    host: bool = False  # arrays of the host

    def __str__(self) -> str:
        types = self.types[0] if len(set(self.types)) == 1 else "/".join(self.types)
        words = [types, "x".join(map(str, (*self.batch, f"{self.Hq}:{self.Hkv}", self.Lq, self.Lk, self.D, self.Dv)))]
        words += [word for word in (self.options, self.layout if self.layout != "heads first" else "") if word]
        words += [name for name in ("causal", "weights", "hidden", "special", "host") if getattr(self, name)]
        words += [self.precision] * (self.precision != "highest")
        return " ".join(words)


def grid(small: bool) -> Iterator[Case]:
    """The cases, the plain ones first. Small: few and little ones."""
    for type in FLOATING:
        three = (type,) * 3
        for shape in SMALL if small else SHAPES:
            for causal in (False, True):
                yield Case(three, *shape, causal=causal, Hq=4, Hkv=2)
        base = Case(three, 20, 75, 24, 40, Hq=4, Hkv=2, batch=(2,))
        wide = Case(three, 70, 200, 64, 64, Hq=4, Hkv=1, batch=(2,))
        for case in (base,) if small else (base, wide, replace(wide, D=128, Dv=128)):
            for name in OPTIONS if type == "float32" or not small else ("all",):
                yield replace(case, options=name)
            yield replace(case, causal=True, options="large")
            yield replace(case, weights=True, causal=True)
            if small and type not in ("float32", "bfloat16"):
                continue
            yield replace(case, options="lengths", causal=True, hidden=True)
            yield replace(case, options="mask", hidden=True)
            yield replace(case, causal=True, special=True)
            for precision in ("high", "medium") if type == "float32" else ():
                yield replace(case, causal=True, precision=precision)
            for layout in ("heads last", "gaps", "one for all"):
                yield replace(case, layout=layout, causal=True)
            yield replace(case, host=True, causal=True)
        if not small:
            yield Case(three, 9, 70, 64, 64, Hq=8, Hkv=1, batch=(2, 3), causal=True)
            for D in (64, 128, 256):  # more tiles than a card has processors
                yield Case(three, 300, 700, D, D, Hq=16, Hkv=4, batch=(3,), causal=True)
            yield Case(three, 300, 700, 128, 128, Hq=16, Hkv=4, batch=(3,), options="lengths", hidden=True)
            yield Case(three, 1, 5000, 128, 128, Hq=8, Hkv=2, batch=(2,), options="lengths")
            yield Case(three, 1, 70000, 64, 64, Hq=2, Hkv=1)  # as many ranges as there are
        few = Case(three, 3, 600, 24, 40, Hq=4, Hkv=2, batch=(2,))  # rows of a head in one tile, its keys in ranges
        for case in () if small else (few, replace(few, Hkv=1, Lq=16, D=128, Dv=128), replace(few, Hq=34, D=256)):
            for name in OPTIONS:
                yield replace(case, options=name)
            yield replace(case, causal=True, options="large")
            yield replace(case, options="lengths", causal=True, hidden=True)
            yield replace(case, options="mask", hidden=True)
        for rows in (64,) if small else (16, 64, 256):
            yield Case(three, 2, 300, 64, 64, Hq=4, Hkv=2, batch=(2,), options="lengths", layout=f"pages of {rows}")
    for types in (("float32", "float16", "bfloat16"), ("float32", "int8", "int8"), ("bfloat16", "int8", "int8")):
        for options in ("", "cosine", "channels"):
            if options != "channels" or "int8" in types:
                yield Case(types, 9, 70, 32, 32, Hq=4, Hkv=2, options=options, causal=True)


def options_of(case: Case, rng: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """For the definition; for the Problem; arrays of the Problem."""
    H, Lq, Lk = case.Hq, case.Lq, case.Lk
    lead, name, whole = case.batch, case.options, {"all"}
    options: dict[str, Any] = {}
    plain: dict[str, Any] = {"causal": case.causal, "precision": case.precision}
    arrays: dict[str, Any] = {}

    def integers(values: Any) -> Array:
        return np.resize(np.asarray(values, np.int64), lead)

    if name == "window":
        plain["window"] = (20, 3)
        options["q_start"] = arrays["q_starts"] = integers([0, -7, 3])
    if name in {"lengths"} | whole:
        options["kv_lengths"] = arrays["kv_lengths"] = integers([Lk, Lk // 2 + 1, 0])
    if name == "lengths":
        options["q_lengths"] = arrays["q_lengths"] = integers([Lq, Lq // 2])
    if name in {"mask"} | whole:
        options["mask"] = arrays["mask"] = rng.random((*lead, 1, Lq, Lk)) < 0.5
        options["mask"][..., min(3, Lq - 1), :] = False
        if case.hidden:
            options["mask"][..., 7] = False
    if name in {"bias"} | whole:
        options["bias"] = arrays["bias"] = rng.standard_normal((H, Lq, Lk)).astype(np.float32)
    if name in {"softcap"} | whole:
        plain["softcap"] = 3.0
    if name in {"alibi"} | whole:
        options["alibi"] = arrays["slopes"] = 2.0 ** -np.arange(1, H + 1)
    if name == "scales":
        options["scale"] = arrays["scales"] = np.linspace(0.1, 0.4, H)
    if name == "large":
        plain["scale"] = 100.0
    if name in ("cosine", "additive"):
        plain["score"] = name
        plain["scale"] = 5.0 if name == "cosine" else 0.5
    if name == "additive":
        options["w"] = arrays["w"] = rng.standard_normal((H, case.D)).astype(np.float32)
    if name in {"sinks"} | whole:
        options["sinks"] = arrays["sinks"] = np.resize([0.5, -1.0, 3.0, 0.0], H)
    if name == "lists":  # rows see what is of their parity in blocks of 16, or the first 5 keys
        number = np.broadcast_to(np.arange(Lq) % 3, (*lead, H, Lq)).astype(np.int64)
        even, odd = ([(a, min(a + 16, Lk)) for a in range(n, Lk, 32)] for n in (0, 16))
        lists = [even, odd, [(0, min(5, Lk))]]
        plain["lists"] = (
            number,
            np.cumsum([0, *map(len, lists)]),
            np.concatenate([np.array(of, np.int64).reshape(-1, 2) for of in lists]),
        )
        dense = np.zeros((3, Lk), bool)
        for row, intervals in zip(dense, lists, strict=True):
            for first, end in intervals:
                row[first:end] = True
        options["mask"] = dense[number]
    return options | {n: x for n, x in plain.items() if n != "lists"}, plain, arrays


def inputs(case: Case, rng: Any) -> dict[str, tuple[Array, str]]:
    """q, k and v as stored, (*batch, H, L, D) in the case's layout, and factors of integers."""
    shapes = (case.Hq, case.Lq, case.D), (case.Hkv, case.Lk, case.D), (case.Hkv, case.Lk, case.Dv)
    made = {}
    for name, shape, type in zip("qkv", shapes, case.types, strict=True):
        lead = (1,) * len(case.batch) if case.layout == "one for all" and name != "q" else case.batch
        if type == "int8":
            made[name] = rng.integers(-127, 128, (*lead, *shape)).astype(np.int8), type
            factors = (*lead, shape[0], 1, shape[2]) if case.options == "channels" else (*lead, *shape[:2], 1)
            made[f"{name}_scale"] = (rng.random(factors).astype(np.float32) + 0.5) / 64, "float32"
            continue
        x = stored(rng.standard_normal((*lead, *shape)), type)
        made[name] = (x.swapaxes(-2, -3).copy().swapaxes(-2, -3) if case.layout == "heads last" else x), type
    return made


def strew(case: Case, made: dict[str, tuple[Array, str]]) -> None:
    """NaN and Inf where some look: an infinite key weighs nothing or everything, by the sign of the query's channel."""
    (k, k_type), (v, v_type) = made["k"], made["v"]
    nan, inf = (stored(np.full(1, x), k_type)[0] for x in (np.nan, np.inf))
    assert k_type == v_type
    k[..., case.Lk - 2, 0] = -inf if k_type != "bfloat16" else inf | 0x8000
    v[..., case.Lk // 2, 0], v[..., case.Lk - 1, case.Dv - 1] = nan, inf


def hide(case: Case, made: dict[str, tuple[Array, str]], options: dict[str, Any]) -> None:
    """NaN where nobody looks."""
    for name in ("k", "v"):
        x, type = made[name]
        nan = stored(np.full(1, np.nan), type)[0]
        if "kv_lengths" in options:
            for at, length in np.ndenumerate(options["kv_lengths"]):
                x[(*at, slice(None), slice(int(length), None))] = nan
        else:
            x[..., 7, :] = nan


class Run:
    """A case on the card: its arrays there, run as often as it is asked."""

    def __init__(self, card: Card, kernel: str, case: Case, made: dict[str, Any], options: tuple[Any, Any]) -> None:
        self.card, self.kernel, self.case = card, kernel, case
        self.plain, arrays = options
        q_type, lse_type = case.types[0], "float64" if case.types[0] == "float64" else "float32"
        rows = (*case.batch, case.Hq, case.Lq)
        results = {"out": ((*rows, case.Dv), q_type), "lse": (rows, lse_type)}
        if case.weights:
            results["weights"] = (*rows, case.Lk), q_type
        self.held: dict[str, Held] = {}
        self.there: dict[str, Operand] = {}
        self.kept = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
        for name, x in self.kept.items():
            self.there[name] = of_host(x)
        self.results = {}
        for name, (x, type) in made.items():
            self.put(name, x, type)
        for name, (shape, type) in results.items():
            x = stored(np.zeros(shape), type)
            x.view(np.uint8)[...] = 0 if name == "weights" else 0xFF
            self.results[name] = x, type
            self.put(name, x, type, fill=name == "weights")
        if case.layout.startswith("pages"):
            self.turn_pages(made, int(case.layout.split()[-1]))
            return
        self.problem = make(self.there, **self.plain)

    def turn_pages(self, made: dict[str, Any], rows: int) -> None:
        """Keys and values in pages of a pool, in no order, each batch row from a place of its own on."""
        (B,), Lk = self.case.batch, self.case.Lk
        origins = np.arange(B) * 37 % rows
        count = -(-(rows + Lk) // rows)
        table = np.random.default_rng(rows).permutation(B * count).reshape(B, count)
        steps = []
        for name in "kv":
            x, type = made[name]
            pool = stored(np.full((B * count, x.shape[1], rows, x.shape[3]), np.nan), type)
            for b, j in np.ndindex(B, Lk):
                n, r = divmod(j + origins[b], rows)
                pool[table[b, n], :, r] = x[b, :, j]
            self.held[name].release()
            self.put(name, pool, type)
            of_pool = self.there[name]
            self.there[name] = of_pool._replace(shape=x.shape[1:], strides=of_pool.strides[1:])
            steps.append(of_pool.strides[0])
        self.problem = make(self.there, **self.plain)
        pages = self.problem.pages
        for name, x in (("table", table), ("origins", origins)):
            self.put(name, x.astype(np.int64), "int64")
            lay(getattr(pages, name), self.there[name], (B,), () if name == "origins" else ("col",))
        pages.rows, pages.steps[:2] = rows, steps

    def put(self, name: str, x: Array, type: str, fill: bool = True) -> None:
        if self.case.host:
            self.kept[name] = x
            self.there[name] = of_host(x, type)
            return
        apart = self.case.layout == "gaps" and name in "qkv" and x.ndim and x.shape[-1]
        wide = np.concatenate([x, np.full_like(x, stored(np.full(1, np.nan), type)[0])], -1) if apart else x
        self.held[name] = Held(self.card, wide, type, fill)
        self.there[name] = self.held[name].operand._replace(shape=x.shape)

    def again(self) -> dict[str, Array]:
        """Once more, into results that are poisoned anew."""
        for name, (x, type) in self.results.items():
            if not self.case.host:
                self.held[name].release()
                self.put(name, x, type, fill=name == "weights")
                getattr(self.problem, name).data = self.there[name].address
        self.card.attend(self.problem, self.kernel)
        self.card.wait()
        if self.case.host:
            return {name: self.kept[name].copy() for name in self.results}
        return {name: self.held[name].read() for name in self.results}

    def release(self) -> None:
        for held in self.held.values():
            held.release()


def check(card: Card, kernel: str, case: Case, seed: int) -> tuple[bool, str | None]:
    """Does the kernel take the case, and what is wrong?"""
    rng = np.random.default_rng(seed)
    made = inputs(case, rng)
    if case.special:
        strew(case, made)
    options, plain, arrays = options_of(case, rng)
    seen = {name: numbers(x, type) for name, (x, type) in made.items()}
    if case.hidden:  # the definition does not read it, either
        hide(case, made, options)
    run = Run(card, kernel, case, made, (plain, arrays))
    try:
        if card.lacks(run.problem, kernel) is not None:
            return False, None
        found = run.again()
        again = run.again()
    finally:
        run.release()
    asked = {"return_lse": True, "return_weights": True}
    exact = np.longdouble if case.types[0] == "float64" else np.float64
    with np.errstate(all="ignore"):
        truth = reference(**seen, **options, **asked, dtype=exact)
        if case.precision == "medium":  # may err as if its products were of bfloat16
            seen |= {name: numbers(stored(seen[name], "bfloat16"), "bfloat16") for name in "qkv"}
        naive = reference(**seen, **options, **asked)
    q_type, lse_type = case.types[0], "float64" if case.types[0] == "float64" else "float32"
    v = seen["v"] * seen.get("v_scale", np.float32(1))
    rounding = ulp(lse_type, max(1.0, largest(truth[1])))
    slack = {"out": rounding * largest(v), "lse": 4 * rounding, "weights": 4 * rounding}
    for n, (name, type) in enumerate((("out", q_type), ("lse", lse_type), ("weights", q_type))):
        if name not in found:
            continue
        if (found[name].reshape(-1).view(np.uint8) != again[name].reshape(-1).view(np.uint8)).any():
            return True, f"{name}: two runs differ"
        rounded = numbers(stored(naive[n], type), type)
        words = off(numbers(found[name], type), rounded, truth[n], type, slack[name])
        if words is not None:
            return True, f"{name}: {words}"
    return True, None


def check_all(card: Card, kernel: str, small: bool, tell: Callable[[dict[str, Any]], None]) -> None:
    """Every case; after each, what is known so far is told."""
    begun, cases = time.perf_counter(), list(grid(small))
    answer: dict[str, Any] = {"status": "passed", "cases": len(cases), "done": 0, "taken": 0, "failed": []}
    for seed, case in enumerate(cases):
        try:
            taken, words = check(card, kernel, case, seed)
        except (RuntimeError, ValueError, MemoryError) as error:
            taken, words = True, str(error)
        answer["done"] += 1
        answer["taken"] += taken
        if words is not None:
            answer["failed"].append({"case": str(case), "words": words})
        answer["status"] = "failed" if answer["failed"] or not answer["taken"] else "passed"
        answer["seconds"] = time.perf_counter() - begun
        tell(answer | ({"status": "not finished"} if answer["done"] < len(cases) else {}))
        if words is not None and "CUDA says" in words:  # nothing after it says anything
            return
