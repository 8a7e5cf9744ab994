"""Figures of coordinate checks, feature checks and learning-rate transfer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.report.plots import STYLE, plain_log_ticks, scale_by_octaves
from evaluation.scaling.coordinate_check import CoordinateCheck
from evaluation.scaling.feature_check import FeatureCheck
from evaluation.scaling.transfer import Transfer

_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
TOLERANCE = 0.15
"""Slopes within ± this count as flat."""


@matplotlib.rc_context(STYLE)
def plot_coordinates(
    checks: Mapping[str, CoordinateCheck], axis: str = "width", step: int = -1
) -> Figure:
    """Plots every layer's change against size, a panel per check.

    Args:
        checks: by title, for example the parametrization.
        axis: what grows.
        step: index of the step whose change is shown.
    """
    figure = Figure(figsize=(4.6 * len(checks), 3.8))
    panels = figure.subplots(1, len(checks), squeeze=False, sharey=True)[0]
    for axes, (title, check) in zip(panels, checks.items(), strict=True):
        _draw_check(axes, title, check, axis, step)
    num_steps = next(iter(checks.values())).change.shape[2]
    after = num_steps if step == -1 else step + 1
    panels[0].set_ylabel(f"std(x$_{{{after}}}$ − x$_0$)", parse_math=True)
    figure.tight_layout()
    return figure


def _draw_check(
    axes: Axes, title: str, check: CoordinateCheck, axis: str, step: int
) -> None:
    slopes = check.slopes(step)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = 2.0 ** np.log2(check.change[:, :, step]).mean(1)
    means = np.where(np.isfinite(means) & (means > 0), means, np.nan)
    few = len(check.layers) <= 12
    for i, shade in enumerate(_shades(max(len(check.layers), 2))[: len(slopes)]):
        name = check.layers[i]
        if not math.isnan(slopes[name]):
            label = f"{name} {slopes[name]:+.2f}" if few else None
            axes.plot(check.sizes, means[:, i], "o-", color=shade, ms=3.5, label=label)
    if all(map(math.isnan, slopes.values())):
        axes.set_title(f"{title}: nothing moved", loc="left")
        return
    steepest, slope = check.steepest(step)
    if not few and math.isfinite(slope):
        worst = means[:, check.layers.index(steepest)]
        label = f"steepest: {steepest}"
        axes.plot(check.sizes, worst, "s-", color=_COLOURS[0], ms=4, label=label)
    axes.set_title(f"{title}: steepest {slope:+.2f}", loc="left")
    _label_sizes(axes, check.sizes, axis)
    axes.legend(fontsize=7, title="layer, slope" if few else None, title_fontsize=7)


@matplotlib.rc_context(STYLE)
def plot_features(checks: Mapping[str, FeatureCheck]) -> Figure:
    """Plots the width slopes of every input, a dot per tensor, for both statistics.

    Args:
        checks: by label, for example the floors, with the same tensors and inputs.
    """
    figure = Figure(figsize=(11, 6.4))
    panels = figure.subplots(2, 1, sharex=True)
    features = next(iter(checks.values())).features
    titles = {
        "rms": "slope of the root mean square: below 0 the input fades",
        "spread": "slope of the standard deviation: below 0 it tells elements apart "
        "ever less",
    }
    for axes, (statistic, title) in zip(panels, titles.items(), strict=True):
        axes.axhspan(-TOLERANCE, TOLERANCE, color="#dddddd", zorder=0)
        for i, (label, check) in enumerate(checks.items()):
            slopes = check.slopes(statistic)
            slopes = np.where(np.isfinite(slopes), slopes, np.nan)
            x = np.arange(len(features)) + 0.24 * (i - (len(checks) - 1) / 2)
            style = {"color": _COLOURS[i], "ms": 4, "alpha": 0.75, "linestyle": "none"}
            lines = axes.plot(x, slopes.T, _MARKERS[i], **style)
            lines[0].set_label(label)
        axes.set_title(title, loc="left")
        axes.set_ylabel("slope against log₂ width")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(checks), loc="upper right")
    panels[1].set_xticks(range(len(features)), features, rotation=60, ha="right")
    panels[1].tick_params(axis="x", labelsize=7.5)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    return figure


@matplotlib.rc_context(STYLE)
def plot_transfer(transfers: Mapping[str, Transfer]) -> Figure:
    """Plots loss against learning rate, a line per width, a star at its best.

    Args:
        transfers: by title, for example "Adam, standard" and "μAdam".
    """
    figure = Figure(figsize=(4.4 * len(transfers), 3.6))
    panels = figure.subplots(1, len(transfers), squeeze=False, sharey=True)[0]
    top = 0.0
    for axes, (title, transfer) in zip(panels, transfers.items(), strict=True):
        shades, means = _shades(len(transfer.widths)), transfer.losses.mean(2)
        for width, losses, shade in zip(transfer.widths, means, shades, strict=True):
            axes.plot(transfer.rates, losses, "-", color=shade, label=f"{width}")
            best = int(np.argmin(losses))
            axes.plot(transfer.rates[best], losses[best], "*", color=shade, ms=11)
            top = max(top, float(np.median(losses)))
        scale_by_octaves(axes)
        axes.set_xlabel("learning rate")
        axes.set_title(
            f"{title}: best moves {transfer.shift():+.2g} octaves", loc="left"
        )
        axes.legend(title="width", fontsize=7.5, title_fontsize=7.5)
    lowest = min(float(t.losses.mean(2).min()) for t in transfers.values())
    panels[0].set_ylim(lowest - 0.08 * (top - lowest), top * 1.25)
    panels[0].set_ylabel("training loss (mean over steps)")
    figure.tight_layout()
    return figure


def _shades(num: int) -> np.ndarray:
    """`[num, 4]` colours from dark to light."""
    return matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, num))


def _label_sizes(axes: Axes, sizes: Sequence[int], label: str) -> None:
    axes.set_xscale("log", base=2)
    drawn = [np.asarray(line.get_ydata(), np.float64) for line in axes.get_lines()]
    if any((y > 0).any() for y in drawn):
        axes.set_yscale("log")
        plain_log_ticks(axes.yaxis)
    ticks: Any = list(sizes)
    axes.set_xticks(ticks, [str(size) for size in sizes])
    axes.set_xlabel(label)
