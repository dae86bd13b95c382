"""Pictures of masks: each pair has the colour of what its query sees, and of the tile that it lies in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn import at, figure_of, pixels

from harken import masks, plot

pytest.importorskip("matplotlib")

MASKS = [
    masks.Causal(),
    masks.Causal() & (masks.Window(5) | masks.Prefix(2)),
    masks.Documents(np.arange(23) // 4),
    ~masks.Lengths(7),
]


@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_a_mask_is_its_array(mask: masks.Mask) -> None:
    seen = mask.dense(17, 23)
    ax = plot.mask(mask, 17, 23, title="")
    picture = pixels(ax)
    shown, hidden = np.array((0x31, 0x58, 0x8A)), np.array((0xEE, 0xF1, 0xF5))
    for (i, j), there in np.ndenumerate(seen):
        assert abs(at(ax, picture, i, j)[0] - (shown if there else hidden)).max() <= 2
    assert np.array_equal(picture, pixels(plot.mask(seen, title="")))
    assert plot.mask(mask, 17, 23).get_title() == f"{mask!r}: {100 * seen.mean():.3g} % seen"
    assert plot.mask(seen).get_title() == f"{100 * seen.mean():.3g} % seen"


@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_tiles_are_those_of_the_mask(mask: masks.Mask) -> None:
    ax = plot.mask(mask, 17, 23, tiles=(4, 5))
    picture = pixels(ax)
    seen, kinds = mask.dense(17, 23), mask.tiles(17, 23, (4, 5))
    colours = np.array([[(0xEE, 0xF1, 0xF5)] * 2, [(0xFA, 0xE6, 0xCF), (0xD9, 0x82, 0x2B)], [(0x31, 0x58, 0x8A)] * 2])
    for (i, j), there in np.ndenumerate(seen):
        assert abs(at(ax, picture, i, j)[0] - colours[kinds[i // 4, j // 5], int(there)]).max() <= 2
    legend = ax.get_legend()
    assert legend.get_title().get_text() == "tiles of 4 × 5"
    shares = [f"{name}: {100 * (kinds == n).mean():.3g} %" for n, name in ((2, "full"), (1, "edge"), (0, "empty"))]
    assert [text.get_text() for text in legend.get_texts()] == shares


def test_masks_that_no_memory_holds() -> None:
    ax = plot.mask(masks.Causal() & masks.Window(400_000), 10**6, tiles=128)
    picture = pixels(ax)
    assert ax.get_legend().get_title().get_text() == "tiles of 2,048 × 2,048"
    for i, j, colour in ((700_000, 500_000, (0x31, 0x58, 0x8A)), (300_000, 500_000, (0xEE, 0xF1, 0xF5))):
        assert abs(at(ax, picture, i, j)[0] - colour).max() <= 2


def test_one_way_to_draw_a_mask(tmp_path: Path) -> None:
    mask = masks.Causal() & masks.Window(np.array([3, 40]))
    mask.plot(tmp_path / "method.png", 70, 120)
    panels = plot.mask(mask, 70, 120)
    seen = mask.dense(70, 120)
    assert [panel.get_title() for panel in panels] == [f"{n}: {100 * seen[n, 0].mean():.3g} % seen" for n in (0, 1)]
    figure_of(panels).savefig(tmp_path / "function.png")
    assert (tmp_path / "method.png").read_bytes() == (tmp_path / "function.png").read_bytes()
