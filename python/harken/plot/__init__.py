"""Attention to look at: weights, heads, masks and statistics as pictures that can go into a paper.

`pip install 'harken[plot]'` brings matplotlib, which is imported by the first picture. Each function draws on the axes
that it is given, or on those of a figure of its own, which no window and no pyplot knows; it returns the axes:
`heatmap(weights).figure.savefig("map.png")`.
"""

from harken.plot.heads import heads
from harken.plot.heatmap import heatmap
from harken.plot.mask import mask
from harken.plot.stats import stats

__all__ = ["heads", "heatmap", "mask", "stats"]
