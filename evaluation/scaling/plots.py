"""Figures about size: coordinate checks, inputs of a learned optimizer, transfer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.report.plots import STYLE
from evaluation.scaling.coordinate_check import CoordinateCheck
from evaluation.scaling.feature_check import FeatureCheck
from evaluation.scaling.transfer import Transfer

_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
TOLERANCE = 0.15
"""A slope within ± this counts as flat."""


@matplotlib.rc_context(STYLE)
def plot_coordinates(
    checks: Mapping[str, CoordinateCheck], axis: str = "width", step: int = -1
) -> Figure:
    """Change of every layer against size, one panel per check; lines should be flat.

    Args:
        checks: by title, for example the parametrization.
        axis: what grows.
        step: which step's change.
    """
    figure = Figure(figsize=(4.6 * len(checks), 3.8))
    panels = figure.subplots(1, len(checks), squeeze=False, sharey=True)[0]
    for axes, (title, check) in zip(panels, checks.items(), strict=True):
        slopes = check.slopes(step)
        shades = matplotlib.colormaps["viridis"](
            np.linspace(0.0, 0.9, max(len(check.layers), 2))
        )
        for i, name in enumerate(check.layers):
            change = check.change[:, :, step, i]
            if math.isnan(slopes[name]):
                continue
            label = f"{name} {slopes[name]:+.2f}" if len(check.layers) <= 12 else None
            with np.errstate(divide="ignore", invalid="ignore"):
                mean = 2.0 ** np.log2(change).mean(1)
            mean = np.where(np.isfinite(mean) & (mean > 0), mean, np.nan)
            axes.plot(check.sizes, mean, "o-", color=shades[i], ms=3.5, label=label)
        if all(map(math.isnan, slopes.values())):
            axes.set_title(f"{title}: nothing moved", loc="left")
            continue
        steepest, slope = check.steepest(step)
        worst = check.change[:, :, step, check.layers.index(steepest)]
        if len(check.layers) > 12 and math.isfinite(slope):
            label = f"steepest: {steepest}"
            mean = 2.0 ** np.log2(worst).mean(1)
            axes.plot(check.sizes, mean, "s-", color=_COLOURS[0], ms=4, label=label)
        axes.set_title(f"{title}: steepest {slope:+.2f}", loc="left")
        _log_sizes(axes, check.sizes, axis)
        if len(check.layers) <= 12:
            axes.legend(fontsize=7, title="layer, slope", title_fontsize=7)
        else:
            axes.legend(fontsize=7)
    num_steps = checks[next(iter(checks))].change.shape[2]
    after = num_steps if step == -1 else step + 1
    panels[0].set_ylabel(f"std(x$_{{{after}}}$ − x$_0$)")
    figure.tight_layout()
    return figure


@matplotlib.rc_context(STYLE)
def plot_features(checks: Mapping[str, FeatureCheck]) -> Figure:
    """Width slopes of every input, a dot per tensor; both statistics.

    Args:
        checks: by label, for example the floors; all of the same tensors and inputs.
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
            x = np.arange(len(features)) + 0.24 * (i - (len(checks) - 1) / 2)
            for j, row in enumerate(slopes):
                axes.plot(
                    x,
                    np.where(np.isfinite(row), row, np.nan),
                    _MARKERS[i],
                    color=_COLOURS[i],
                    ms=4,
                    alpha=0.75,
                    linestyle="none",
                    label=label if j == 0 else None,
                )
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
    """Loss against learning rate, a line per width; stars mark each width's best.

    Args:
        transfers: by title, for example "Adam, standard" and "μAdam".
    """
    figure = Figure(figsize=(4.4 * len(transfers), 3.6))
    panels = figure.subplots(1, len(transfers), squeeze=False, sharey=True)[0]
    top = 0.0
    for axes, (title, transfer) in zip(panels, transfers.items(), strict=True):
        shades = matplotlib.colormaps["viridis"](
            np.linspace(0.0, 0.9, len(transfer.widths))
        )
        for width, losses, shade in zip(
            transfer.widths, transfer.losses.mean(2), shades, strict=True
        ):
            axes.plot(transfer.rates, losses, "-", color=shade, label=f"{width}")
            best = int(np.argmin(losses))
            axes.plot(transfer.rates[best], losses[best], "*", color=shade, ms=11)
            top = max(top, float(np.median(losses)))
        axes.set_xscale("log", base=2)
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


def _log_sizes(axes: Axes, sizes: Sequence[int], label: str) -> None:
    axes.set_xscale("log", base=2)
    drawn = [np.asarray(line.get_ydata(), np.float64) for line in axes.get_lines()]
    if any((y > 0).any() for y in drawn):
        axes.set_yscale("log")
    ticks: Any = list(sizes)
    axes.set_xticks(ticks, [str(size) for size in sizes])
    axes.set_xlabel(label)
