"""Sheets of generated pictures beside originals."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.generation.scores import Pictures
from evaluation.report.plots import STYLE

_GAP = 2
"""White pixels between pictures."""


@matplotlib.rc_context(STYLE)
def plot_pictures(pictures: Pictures, captions: Sequence[str]) -> Figure:
    """Plots a row per class: samples on the left, a reproduced picture on the right.

    Args:
        pictures: samples and reproductions of `K` classes.
        captions: names of the classes.
    """
    num = pictures.samples.shape[1]
    figure = Figure(figsize=(0.5 * (num + 3) + 2.2, 0.5 * len(captions) + 0.7))
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": (num, 3)})
    _show(left, tile(pictures.samples))
    seen = (pictures.originals, pictures.rendered, pictures.decoded)
    _show(right, tile(np.stack(seen, axis=1)))
    height, width = (n + _GAP for n in pictures.samples.shape[2:4])
    left.set_yticks((np.arange(len(captions)) + 0.5) * height, captions)
    right.set_xticks((np.arange(3) + 0.5) * width, ["original", "B + A", "A"])
    left.set_title("generated from the caption", loc="left")
    right.set_title("reproduced", loc="left")
    figure.tight_layout()
    return figure


def tile(pictures: np.ndarray) -> np.ndarray:
    """Puts rows and columns of pictures on one sheet, white between them.

    Args:
        pictures: `[rows, columns, height, width, channels]` uint8.

    Returns:
        `[rows · (height + gap), columns · (width + gap), 3]` uint8.
    """
    rows, columns, height, width, _ = pictures.shape
    whole = np.full((rows, height + _GAP, columns, width + _GAP, 3), 255, np.uint8)
    # Assignment repeats a single channel: grey.
    whole[:, :height, :, :width] = pictures.transpose(0, 2, 1, 3, 4)
    return whole.reshape(rows * (height + _GAP), columns * (width + _GAP), 3)


def _show(axes: Axes, whole: np.ndarray) -> None:
    axes.imshow(whole, interpolation="nearest")
    axes.grid(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
