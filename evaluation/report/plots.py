"""Figures of an evaluation, as SVG text or PNG bytes.

Every optimizer has the same colour, marker and dash in all figures: Okabe and Ito's
palette for colour-blind readers, the others for print in black and white. Nothing
touches pyplot's global state or needs a display.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.lines
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from evaluation.plan import (
    ADAM,
    ADAM_LONG,
    ADAMW,
    LEARNED,
    MORE,
    MU_ADAM,
    MU_ADAM_TUNED,
    SGDM,
    CellTuning,
)
from evaluation.report.summary import names_of, summarize
from evaluation.results import EvalRow, by_cell

_STYLES: dict[str, tuple[str, str, Any]] = {  # colour, marker, line
    LEARNED: ("#D55E00", "o", "-"),
    ADAM: ("#0072B2", "s", "-"),
    MU_ADAM: ("#56B4E9", "D", "--"),
    MU_ADAM_TUNED: ("#56B4E9", "D", "-"),
    ADAMW: ("#009E73", "^", "-."),
    SGDM: ("#CC79A7", "v", ":"),
}
_MORE_STYLES: tuple[tuple[str, str, Any], ...] = (
    ("#E69F00", "P", ":"),
    ("#8C564B", "*", "-"),
    ("#000000", "X", "-"),
    ("#7F7F7F", "<", "--"),
    ("#17BECF", ">", "-."),
    ("#9467BD", "h", ":"),
    ("#BCBD22", "p", "--"),
)
for (_name, _), _style in zip(MORE.values(), _MORE_STYLES, strict=True):
    _STYLES[_name] = _style
_OTHER: tuple[str, str, Any] = ("#666666", "x", "-")
STYLE: dict[Any, Any] = {  # matplotlib's settings, the same for all figures
    "font.size": 9.5,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "text.parse_math": False,  # a name with dollar signs is no formula
    "svg.fonttype": "none",
    "svg.hashsalt": "evaluation",
}
_COLUMNS = 3
"""Largest number of panels side by side."""
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def svg(figure: Figure) -> str:
    """Returns the figure's `<svg>` element, without XML header, metadata or date."""
    with matplotlib.rc_context(STYLE):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def png(figure: Figure, dpi: int = 150) -> bytes:
    """Returns the figure as PNG, for pages that cannot show SVG."""
    with matplotlib.rc_context(STYLE):
        buffer = io.BytesIO()
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


@matplotlib.rc_context(STYLE)
def plot_curves(rows: Sequence[EvalRow]) -> Figure:
    """Plots training loss over steps, a panel per cell: mean and range over seeds."""
    rows = [row for row in rows if row.optimizer != ADAM_LONG]
    cells = by_cell(rows)
    figure, panels = _panels(len(cells))
    units = {row.unit for row in rows}
    for axes, (cell, here) in zip(panels, cells.items(), strict=True):
        for name in names_of(here):
            curves = np.asarray([row.curve for row in here if row.optimizer == name])
            _draw_curves(axes, curves, name)
        axes.set_yscale("log")
        axes.set_title(cell)
        axes.set_xlabel("inner step")
        axes.set_xlim(0, here[0].steps)
        _limit_losses(axes, here)
        if len(units) > 1:
            axes.set_ylabel(here[0].unit)
    if len(units) == 1:
        _label_left(panels, f"training loss ({units.pop()})")
    return _with_legend(figure, names_of(rows))


@matplotlib.rc_context(STYLE)
def plot_widths(rows: Sequence[EvalRow]) -> Figure:
    """Plots mean loss against width: a dot per seed, a line through their means."""
    wide = over_width(rows)
    figure, (axes,) = _panels(1, width=6.2, height=3.4)
    names = names_of([row for row in wide if row.axis == "width"] or wide)
    widths = sorted({row.widths[0] for row in wide})
    for offset, name in enumerate(names):
        colour, marker, line = _STYLES.get(name, _OTHER)
        # Optimizers stand side by side, so that their dots do not overlap.
        shift = 1.06 ** (offset - (len(names) - 1) / 2)
        here = [row for row in wide if row.optimizer == name]
        points = {w: [r.mean_loss for r in here if r.widths[0] == w] for w in widths}
        points = {w: losses for w, losses in points.items() if losses}
        for row in here:
            x, mark = row.widths[0] * shift, "x" if row.diverged else "."
            axes.plot(
                [x], [row.mean_loss], mark, color=colour, alpha=0.45, markersize=5
            )
        axes.plot(
            [width * shift for width in points],
            [np.mean(losses) for losses in points.values()],
            color=colour,
            marker=marker,
            linestyle=line,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("width")
    units = {row.unit for row in wide}
    unit = f" ({units.pop()})" if len(units) == 1 else ""
    axes.set_ylabel(f"mean training loss{unit}")
    axes.set_ylim(bottom=0)
    return _with_legend(figure, names)


def over_width(rows: Sequence[EvalRow]) -> list[EvalRow]:
    """Returns the rows of the trained cell and of wider ones; none if none differs."""
    wide = [r for r in rows if r.axis in ("trained", "width") and r.widths]
    return wide if any(row.axis == "width" for row in wide) else []


@matplotlib.rc_context(STYLE)
def plot_overview(rows: Sequence[EvalRow]) -> Figure:
    """Plots mean loss over the loss at chance, a line per cell."""
    summaries = summarize(rows)
    cells = list(dict.fromkeys(summary.cell for summary in summaries))
    figure, (axes,) = _panels(1, width=9.6, height=1.2 + 0.24 * len(cells))
    names = names_of(rows)
    for summary in summaries:
        colour, marker, _ = _STYLES.get(summary.optimizer, _OTHER)
        x, y = summary.normalized_loss, cells.index(summary.cell)
        inside = "none" if summary.flagged else colour
        style = {"color": colour, "markersize": 5, "markerfacecolor": inside}
        axes.plot([x], [y], marker, alpha=0.85, **style)
    axes.set_yticks(range(len(cells)), cells)
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.set_xscale("log")
    plain_log_ticks(axes.xaxis)
    axes.axvline(1.0, color="black", linestyle=":", linewidth=1)
    axes.set_xlabel("mean training loss over the loss at chance")
    return _with_legend(figure, names)


@matplotlib.rc_context(STYLE)
def plot_tunings(
    tunings: Sequence[CellTuning], units: Mapping[str, str] | None = None
) -> Figure:
    """Plots each tuning's criterion against the learning rate, a ring at the best.

    Args:
        tunings: a panel each.
        units: of the losses, by cell.
    """
    figure, panels = _panels(len(tunings))
    for axes, (cell, name, tuning) in zip(panels, tunings, strict=True):
        colour, marker, _ = _STYLES.get(name, _OTHER)
        for schedule, line in (("constant", "--"), ("cosine", "-")):
            points = [p for p in tuning.points if p.schedule == schedule]
            points.sort(key=lambda point: point.learning_rate)
            x, y = [p.learning_rate for p in points], [p.mean_loss for p in points]
            style = {"color": colour, "marker": marker, "linestyle": line}
            axes.plot(x, y, markersize=3.5, label=schedule, **style)  # pyright: ignore
        ring = {"color": "black", "markersize": 11, "markerfacecolor": "none"}
        axes.plot([tuning.learning_rate], [tuning.mean_loss], "o", **ring)
        scale_by_octaves(axes)
        axes.set_yscale("log")
        plain_log_ticks(axes.yaxis)
        axes.set_title(f"{name}: {cell}")
        axes.set_xlabel("learning rate")
        axes.legend(fontsize=8)
    known = [(units or {}).get(entry.cell, "") for entry in tunings]
    if len(set(known)) > 1:
        for axes, unit in zip(panels, known, strict=True):
            axes.set_ylabel(unit)
    else:
        _label_left(panels, f"mean loss ({known[0]})" if any(known) else "mean loss")
    figure.tight_layout()
    return figure


@matplotlib.rc_context(STYLE)
def plot_training(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots the meta-loss of every outer step, smoothed, and validations.

    Args:
        metrics: rows with `step`, and `meta_loss` (of perturbed particles, truncation
            windows of any age) or `held_out_loss` and `train_loss` (of the averaged θ);
            the last row whose `chosen` is true is the released θ.
    """
    figure, (axes,) = _panels(1, width=9.6, height=3.2)
    losses = _column(metrics, "meta_loss")
    if len(losses):
        steps, values = losses.T
        axes.plot(steps, values, color="#bbbbbb", linewidth=0.7, label="meta-loss")
        span = max(1, len(values) // 50)
        if span > 1:
            smooth = np.convolve(values, np.ones(span) / span, mode="valid")
            label = f"mean of {span} steps"
            axes.plot(steps[span - 1 :], smooth, color="#0072B2", label=label)
    validations = {
        "held_out_loss": ("held out", "#D55E00"),
        "train_loss": ("training batches", "#009E73"),
    }
    for name, (label, color) in validations.items():
        points = _column(metrics, name)
        if len(points):
            axes.plot(*points.T, "o-", color=color, markersize=4, label=label)
    chosen = [row["step"] for row in metrics if row.get("chosen")]
    if chosen:
        axes.axvline(chosen[-1], color="black", linestyle=":", label="released θ")
    axes.set_yscale("log")
    plain_log_ticks(axes.yaxis)
    axes.set_xlabel("outer step")
    axes.set_ylabel("normalized loss (1 = chance)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    return figure


def _column(metrics: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Steps and finite values `[n, 2]` of a metric."""
    pairs = [(row["step"], row[name]) for row in metrics if name in row]
    finite = [(step, value) for step, value in pairs if math.isfinite(value)]
    return np.asarray(finite, np.float64).reshape(-1, 2)


def _draw_curves(axes: Axes, curves: np.ndarray, name: str) -> None:
    """Draws mean and range over seeds of curves `[R, H]`, smoothed."""
    colour, _, line = _STYLES.get(name, _OTHER)
    span = max(1, curves.shape[1] // 40)
    kernel = np.ones(span) / span
    smooth = np.stack([np.convolve(curve, kernel, mode="valid") for curve in curves])
    steps = np.arange(span - 1, curves.shape[1])
    # A diverged seed ends the lines where it stops being finite.
    axes.fill_between(
        steps, smooth.min(0), smooth.max(0), color=colour, alpha=0.15, linewidth=0
    )
    axes.plot(steps, smooth.mean(0), color=colour, linestyle=line, linewidth=1.5)


def _limit_losses(axes: Axes, rows: Sequence[EvalRow]) -> None:
    """Limits the panel to 1.5 × the first loss; diverged runs leave it at the top."""
    finite = [x for row in rows for x in row.curve[-len(row.curve) // 4 :]]
    finite = [x for x in finite if math.isfinite(x) and x > 0]
    start = [row.curve[0] for row in rows if math.isfinite(row.curve[0])]
    low, top = axes.get_ylim()
    if start:
        top = 1.5 * max(start)
    if finite:
        low = max(low, 0.5 * float(np.percentile(finite, 1)), 1e-7)
    axes.set_ylim(min(low, top / 10), top)
    plain_log_ticks(axes.yaxis)


def plain_log_ticks(axis: Axis) -> None:
    """Writes 0.1 rather than 10⁻¹, with few enough labels that none overlap."""

    def label(value: float, _: Any) -> str:
        mantissa = value / 10 ** math.floor(math.log10(value))
        return f"{value:g}" if round(mantissa, 3) in (1, 2, 5) else ""

    low, high = sorted(axis.get_view_interval())
    narrow = low > 0 and high / low < 30
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(label) if narrow else NullFormatter())


def scale_by_octaves(axes: Axes) -> None:
    """Makes the x axis logarithmic, with powers of two as labels."""

    def label(value: float, _: Any) -> str:
        exponent = math.log2(value)
        if not exponent.is_integer():
            return f"{value:.3g}"
        return f"2{str(int(exponent)).translate(_SUPERSCRIPTS)}"

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(label))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _panels(
    num: int, width: float | None = None, height: float = 2.9
) -> tuple[Figure, list[Axes]]:
    columns = min(_COLUMNS, max(num, 1))
    lines = max(1, math.ceil(num / columns))
    figure = Figure(figsize=(width or 3.6 * columns, height * lines))
    grid = figure.subplots(lines, columns, squeeze=False)
    panels = [axes for line in grid for axes in line]
    for axes in panels[num:]:
        axes.set_visible(False)
    return figure, panels[:num]


def _label_left(panels: Sequence[Axes], label: str) -> None:
    for axes in panels[::_COLUMNS]:
        axes.set_ylabel(label)


def _with_legend(figure: Figure, names: Sequence[str]) -> Figure:
    """Adds one legend below all panels."""
    handles = []
    for name in names:
        colour, marker, line = _STYLES.get(name, _OTHER)
        handle = matplotlib.lines.Line2D(  # pyright: ignore
            [], [], color=colour, marker=marker, linestyle=line, label=name
        )
        handles.append(handle)
    columns = max(1, min(len(names), int(figure.get_figwidth() / 1.75)))
    room = (0.2 + 0.22 * math.ceil(len(names) / columns)) / figure.get_figheight()
    figure.tight_layout(rect=(0, room, 1, 1))
    figure.legend(handles=handles, loc="lower center", ncols=columns)
    return figure
