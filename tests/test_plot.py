"""Pictures: what is in the arrays is in the pixels, words are legible at any length, pyplot knows nothing of them."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare import DTYPES
from drawn import at, clashes, pixels, words

import harken
from harken import masks, plot

pytest.importorskip("matplotlib")

TEXT = "the listener sat by the river every evening listening to singers who sang of [SEP] stones and _$x_1$"
WORDS = TEXT.split()
RNG = np.random.default_rng(3)


def weights(*shape: int, causal: bool = False) -> Any:
    """Rows that add up to 1, few of them large."""
    *heads, Lq, Lk = shape
    q, k = RNG.standard_normal((*heads, Lq, 16)), RNG.standard_normal((*heads, Lk, 16))
    return harken.attention(q * 2, k, k, causal=causal, return_weights=True)[1]


def tokens(count: int) -> list[str]:
    return [WORDS[n % len(WORDS)] for n in range(count)]


def dark(colours: Any) -> Any:
    return colours.sum(axis=-1) < 200


def white(colours: Any) -> Any:
    return (colours > 245).all(axis=-1)


# --- legible ---


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("shape", [(10, 10), (60, 60), (500, 500), (1, 200), (3, 17), (40, 9), (1, 1)])
def test_words_do_not_meet(shape: tuple[int, int], named: bool) -> None:
    labels = [tokens(n) for n in shape] if named else [None, None]
    ax = plot.heatmap(weights(*shape), *labels, title="who looks at whom")
    pixels(ax)
    assert not clashes(ax)
    shown = [text.replace(r"\$", "$") for text, _ in words(ax)]
    assert {"query", "key", "weight", "who looks at whom"} <= set(shown)
    if max(shape) <= 60 and named:
        assert {*tokens(shape[0]), *tokens(shape[1])} <= set(shown)
    for side in range(2):  # neither crowded nor bare
        assert sum(text in (labels[side] or map(str, range(shape[side]))) for text in shown) >= min(shape[side], 5)


def test_words_of_many_panels_do_not_meet() -> None:
    for panels in (
        plot.heads(weights(12, 30, 30), tokens(30), tokens(30), title="layer 0"),
        plot.heads(weights(7, 100, 60)),
        plot.mask(masks.Window([3, 40, 5, 9, 1], 0), 70, 200),
        plot.mask(masks.Causal(), 1000, tiles=128),
        plot.stats(harken.attention_stats(*RNG.standard_normal((2, 3, 200, 8)), top_k=2, entropy=True, rows=[0, 7])),
    ):
        pixels(panels)
        assert not clashes(panels)


def test_labels_follow_the_room() -> None:
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots(figsize=(3, 3), layout="constrained")
    try:
        assert plot.heatmap(weights(80, 80), tokens(80), tokens(80), ax=ax, mark=[41]) is ax
        pixels(ax)
        few = len(words(ax))
        assert not clashes(ax)
        assert "of" not in tokens(80)[41]
        assert [tick.get_loc() for tick in ax.xaxis.get_minor_ticks()] == [41]
        assert tokens(80)[41] in [tick.label1.get_text() for tick in ax.xaxis.get_minor_ticks()]
        figure.set_size_inches(9, 9)
        pixels(ax)
        more = len(words(ax))
        assert not clashes(ax)
        ax.set(xlim=(19.5, 29.5), ylim=(29.5, 19.5))
        pixels(ax)
        near = [text for text, _ in words(ax)]
        assert set(tokens(30)[20:]) <= {text.replace(r"\$", "$") for text in near}
        assert few < more
    finally:
        plt.close(figure)


def test_labels_are_drawn_as_they_are() -> None:
    labels = ["$x$", "a\nb", "\t", "$", "long" * 20, "_^{"]
    ax = plot.heatmap(np.eye(6), labels, labels)
    pixels(ax)
    drawn = [tick.label1.get_text() for tick in ax.yaxis.get_major_ticks()]
    assert drawn[:4] == [r"\$x\$", r"a\nb", r"\t", r"\$"]
    assert len(drawn[4]) == 24
    assert drawn[4].endswith("…")
    assert not clashes(ax)


def test_values_where_there_is_room() -> None:
    W = np.array([[0.25, 0.751, 0.001], [0, 12.5, 1234]])
    assert [text.get_text() for text in plot.heatmap(W).texts] == ["0.25", "0.75", "12.5", "1.23e+03"]
    assert not plot.heatmap(W, values=False).texts
    assert not plot.heatmap(weights(40, 40)).texts
    assert len(plot.heatmap(np.ones((40, 40)), values=True).texts) == 1600
    on_dark, on_light = plot.heatmap([[1.0, 0.1]]).texts
    assert (on_dark.get_color(), on_light.get_color()) == ("white", "0.15")


# --- true ---


def test_cells_have_the_colours_of_their_weights() -> None:
    W = weights(9, 14)
    ax = plot.heatmap(W, values=False)
    picture = pixels(ax)
    image = ax.images[0]
    for (i, j), x in np.ndenumerate(W):
        expected = np.array(image.cmap(x / W.max())[:3]) * 255
        assert abs(at(ax, picture, i, j)[0] - expected).max() <= 3
    assert not np.array_equal(picture, pixels(plot.heatmap(W[::-1], values=False)))
    assert np.array_equal(picture, pixels(plot.heatmap(W.copy(), values=False)))


@pytest.mark.parametrize("dpi", [150, 37])
@pytest.mark.parametrize("shape", [(2000, 2000), (2000, 1501), (300, 5000)])
def test_a_single_bright_key_survives(shape: tuple[int, int], dpi: int) -> None:
    W = np.zeros(shape, np.float32)
    where = np.column_stack([RNG.integers(0, n, 20) for n in shape])
    where[0], where[1] = 0, np.array(shape) - 1
    W[tuple(where.T)] = 1
    ax = plot.heatmap(W)
    ax.figure.dpi = dpi
    ax.spines[:].set_visible(False)
    picture = pixels(ax)
    for i, j in where:
        assert dark(at(ax, picture, i, j, near=2)).any()
    empty = plot.heatmap(np.zeros(shape, np.float32))
    empty.figure.dpi = dpi
    assert white(at(empty, pixels(empty), shape[0] // 2, shape[1] // 2, near=3)).all()


def test_the_largest_of_a_pixel_is_seen_and_zooming_shows_cells() -> None:
    W = np.full((2000, 2000), 0.2)
    W[1500, 1500] = 1.0
    ax = plot.heatmap(W)
    pixels(ax)
    image = ax.images[0]
    assert max(image.get_array().shape) < 1500
    assert image.get_array().max() == 1
    ax.set(xlim=(1489.5, 1510.5), ylim=(1510.5, 1489.5))
    picture = pixels(ax)
    assert image.get_array().shape == (21, 21)
    assert dark(at(ax, picture, 1500, 1500)).all()
    assert not dark(at(ax, picture, 1500, 1501)).any()


def test_colours_fall_evenly_from_white() -> None:
    from harken.plot.image import colours

    rgb = colours(None)(np.linspace(0, 1, 33))[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ (0.2126, 0.7152, 0.0722)) - 16
    assert lightness[0] == pytest.approx(100, abs=0.1)
    assert lightness[-1] < 10
    steps = -np.diff(lightness)
    assert (abs(steps - steps.mean()) < 0.15 * steps.mean()).all()


def test_what_is_no_number_is_grey_and_scales_nothing() -> None:
    W = np.array([[np.nan, 0.5], [np.inf, -np.inf]])
    ax = plot.heatmap(W, values=True)
    picture = pixels(ax)
    assert [text.get_text() for text in ax.texts] == ["0.50"]
    assert ax.images[0].norm.vmax == 0.5
    grey = (0xD5, 0xD8, 0xDC)
    assert [(abs(at(ax, picture, i, j) - grey).max() <= 2) for i, j in ((0, 0), (1, 0), (1, 1))] == [True] * 3


def test_scales() -> None:
    W = np.array([[0.0, 0.25, 1.0, 3.0]])
    linear, root = plot.heatmap(W, values=False).images[0], plot.heatmap(W, power=0.5, largest=1.0).images[0]
    np.testing.assert_allclose(linear.norm(W[0]), [0, 1 / 12, 1 / 3, 1])
    np.testing.assert_allclose(root.norm(W[0])[:3], [0, 0.5, 1])
    assert plot.heatmap(np.zeros((3, 3))).images[0].norm(1e-9) < 1e-6
    assert plot.heatmap([[-2, 5]]).images[0].norm.vmin == -2
    assert plot.heatmap(W, cmap="viridis").images[0].cmap.name == "viridis"
    assert len(plot.heatmap(W, colorbar=False).child_axes) == 0
    wide, wider = (plot.heatmap(np.eye(5), side=side).figure.get_size_inches()[0] for side in (3, 6))
    assert wider - wide == pytest.approx(3, abs=0.5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64", "bool"])
def test_any_real_numbers(dtype: str) -> None:
    W = np.array([[0, 1], [1, 0]]).astype(DTYPES.get(dtype, dtype))
    assert np.array_equal(pixels(plot.heatmap(W)), pixels(plot.heatmap([[0.0, 1.0], [1.0, 0.0]])))


def test_arrays_of_other_libraries() -> None:
    library = pytest.importorskip("array_api_strict")
    W = weights(4, 5)
    assert np.array_equal(pixels(plot.heatmap(library.asarray(W))), pixels(plot.heatmap(W)))
    q = library.asarray(RNG.standard_normal((20, 8)))
    assert len(plot.stats(harken.attention_stats(q, q, top_k=2, per_key_mass=True))) == 2


# --- heads ---


def test_heads_have_one_scale() -> None:
    W = weights(5, 8, 6) * np.arange(1, 6)[:, None, None]
    panels = plot.heads(W, names=list("abcde"), title="layer")
    assert panels.shape == (5,)
    assert [panel.get_title() for panel in panels] == list("abcde")
    picture = pixels(panels)
    for panel, head in zip(panels, W, strict=True):
        assert panel.images[0].norm is panels[0].images[0].norm
        i, j = np.unravel_index(head.argmax(), head.shape)
        expected = np.array(panel.images[0].cmap(head.max() / W.max())[:3]) * 255
        assert abs(at(panel, picture, i, j)[0] - expected).max() <= 3
    assert [panel.get_title() for panel in plot.heads(W[:2])] == ["head 0", "head 1"]


def test_heads_on_given_axes() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots(2, 2)
    panels = plot.heads(weights(4, 5, 5), ax=axes, title="given", colorbar=False)
    assert list(panels) == list(axes.flat)
    assert panels[0].get_title() == "given: head 0"


# --- wrong ---

HALF = harken.attention_stats(np.zeros((3, 4)), np.zeros((5, 4)), entropy=True)
SQUARE = np.eye(3)

WRONG: list[tuple[Any, type[Exception], str]] = [
    (lambda: plot.heatmap(np.ones(3)), ValueError, "weights has shape (3,): wanted (Lq, Lk)"),
    (lambda: plot.heatmap(np.ones((2, 3, 3))), ValueError, "choose from the leading axes, as in weights[0]"),
    (lambda: plot.heatmap(np.ones((0, 3))), ValueError, "weights has shape (0, 3): wanted (Lq, Lk) with at least one"),
    (lambda: plot.heatmap(SQUARE * 1j), TypeError, "weights is complex128: wanted real numbers"),
    (lambda: plot.heatmap([["a"]]), TypeError, "wanted real numbers"),
    (lambda: plot.heatmap(SQUARE, ["a"]), ValueError, "q_labels holds 1 labels, there are 3 queries: wanted one for"),
    (lambda: plot.heatmap(SQUARE, None, "abcd"), TypeError, "k_labels is 'abcd': wanted a list"),
    (lambda: plot.heatmap(SQUARE, mark=[3]), ValueError, "mark holds 3: wanted 0 to 2"),
    (lambda: plot.heatmap(SQUARE, mark=[0.5]), TypeError, "mark holds 0.5: wanted integers"),
    (lambda: plot.heatmap(SQUARE, mark=1), TypeError, "mark is 1: wanted a list"),
    (lambda: plot.heatmap(SQUARE, ax="here"), TypeError, "ax is a str: wanted the Axes to draw on"),
    (lambda: plot.heatmap(SQUARE, power=0), ValueError, "power is 0: wanted a number above 0"),
    (lambda: plot.heatmap(SQUARE, largest=-1), ValueError, "largest is -1: wanted a number above 0"),
    (lambda: plot.heatmap(SQUARE, side=0), ValueError, "side is 0: wanted inches, above 0"),
    (lambda: plot.heatmap(SQUARE, cmap="paint"), ValueError, "'paint' is not a valid"),
    (lambda: plot.heads(SQUARE), ValueError, "weights has shape (3, 3): wanted (H, Lq, Lk)"),
    (lambda: plot.heads(SQUARE[None], names=list("ab")), ValueError, "names holds 2 labels, there are 1 heads"),
    (lambda: plot.heads(SQUARE[None], ax=[]), ValueError, "ax holds 0 Axes: wanted 1, one for each of the heads"),
    (lambda: plot.mask(SQUARE), TypeError, "mask is float64: wanted bool, True where a query may look, or one of"),
    (lambda: plot.mask(masks.Causal()), TypeError, "Causal() has no size of its own: give q_length"),
    (lambda: plot.mask(masks.Causal(), 0), ValueError, "q_length is 0: wanted 1 or more"),
    (lambda: plot.mask(masks.Causal(), 2.5), TypeError, "q_length is 2.5: wanted an integer"),
    (
        lambda: plot.mask(masks.Causal(), 9, tiles=0),
        ValueError,
        "tiles is 0: wanted the queries and the keys of",
    ),
    (lambda: plot.mask(SQUARE > 0, 4), ValueError, "mask has shape (3, 3): wanted one that broadcasts to (4, 3)"),
    (lambda: plot.mask(np.ones(3, bool)), ValueError, "mask has shape (3,): wanted (..., Lq, Lk), or give q_length"),
    (lambda: plot.stats(SQUARE), TypeError, "stats is a ndarray: wanted what harken.attention_stats gives"),
    (lambda: plot.stats(HALF, show=["mass"]), ValueError, "show holds 'mass': wanted some of top_weights, entropy"),
    (lambda: plot.stats(HALF, show=["per_key_mass"]), ValueError, "which stats does not: it holds entropy, lse"),
    (lambda: plot.stats(HALF, show=[]), ValueError, "show is empty: wanted some of entropy, lse"),
    (lambda: plot.stats(HALF, tokens(9)), ValueError, "labels are 9: wanted 3, as many as there are queries or keys"),
]


@pytest.mark.parametrize(("call", "kind", "message"), WRONG, ids=[message[:40] for _, _, message in WRONG])
def test_wrong_calls(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)


# --- beside the picture ---


def test_examples_run() -> None:
    for module in pkgutil.iter_modules(plot.__path__, "harken.plot."):
        assert doctest.testmod(importlib.import_module(module.name)).failed == 0
    for name in plot.__all__:
        assert ">>> " in getattr(plot, name).__doc__


def test_pyplot_knows_nothing() -> None:
    code = """
import sys, numpy, harken
assert "matplotlib" not in sys.modules
harken.plot.heatmap(numpy.eye(3)).figure.savefig(sys.argv[1])
harken.plot.heads(numpy.eye(3)[None])
print("matplotlib.pyplot" in sys.modules)
"""
    assert ran(code, "/dev/null/no.png") == "NotADirectoryError"
    assert ran(code.replace(".figure.savefig(sys.argv[1])", "")) == "False"


def test_without_matplotlib() -> None:
    code = """
import sys
sys.modules["matplotlib"] = None
import harken
try:
    harken.plot.DRAW
except ImportError as error:
    print(error)
"""
    says = "harken.plot draws with matplotlib, which is not here: pip install 'harken[plot]'"
    stats = "stats(harken.attention_stats([[1.0]], [[1.0]]))"
    for draw in ("heatmap([[1.0]])", "heads([[[1.0]]])", "mask(harken.masks.Causal(), 3)", stats):
        assert ran(code.replace("DRAW", draw)) == says
    assert ran(code.replace("plot.DRAW", "masks.Causal().plot('mask.png', 3, 3)")) == says


def ran(code: str, *argv: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1].partition(":")[0]


def test_files_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harken.plot.sheet import save

    figure = plot.heatmap(np.eye(3), list("中文字"), title="中").figure
    for suffix in ("png", "pdf", "svg", "PNG"):
        save(figure, tmp_path / f"map.{suffix}")
    assert (tmp_path / "map.png").read_bytes()[1:4] == b"PNG"
    assert (tmp_path / "map.pdf").read_bytes()[:4] == b"%PDF"
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"map\.txt: wanted a name that ends in \.png, \.pdf, \.svg"):
        save(figure, tmp_path / "map.txt")
    with pytest.raises(FileNotFoundError) as caught:
        save(figure, tmp_path / "no" / "map.png")
    assert caught.value.filename == str(tmp_path / "no" / "map.png")
    (tmp_path / "map.png").write_text("as it was")

    def breaks(path: Path, **options: Any) -> None:
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", breaks)
    with pytest.raises(OSError, match="No space left"):
        save(figure, tmp_path / "map.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "map.png").read_text() == "as it was"
