"""Text and figure of a study of graded diagnosis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from evaluation.diagnosis.auc import Comparison, Estimate
from evaluation.diagnosis.reader_study import Diagnosis, Dichotomy, Study
from evaluation.report.plots import STYLE

_MODEL, _READERS, _CEILING = "#D55E00", "#0072B2", "#888888"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def text_report(result: Diagnosis) -> str:
    """Formats tables of AUCs and kappas, each with its unit."""
    readers = range(len(result.reader_kappas))

    def reader(i: int, part: Dichotomy) -> str:
        return f"{part.readers[i]}{' *' if part.best == i else ''}"

    aucs = {
        "patients above": lambda p: f"{p.num_positive} of {result.num_patients}",
        "model": lambda p: str(p.model),
        **{f"reader {i + 1}": partial(reader, i) for i in readers},
        "mean of readers": lambda p: str(p.readers_mean),
        "best possible": lambda p: str(p.ceiling),
        "model − mean": lambda p: format_comparison(p.versus_mean),
        "model − best *": lambda p: format_comparison(p.versus_best),
    }
    kappas = {
        "Cohen, mean of pairs": lambda p: f"{p.kappa:.2f}",
        "Fleiss, session 1": lambda p: str(p.fleiss),
    }
    images = {
        "images as if independent": lambda p: _half_width(p.images_naive),
        "the same, patients drawn": lambda p: _half_width(p.images_clustered),
    }
    return "\n\n".join(
        [
            f"AUC per dichotomy [95 % logit-DeLong interval]; unit: the patient "
            f"({result.num_patients} of the test split)\n{_table(result, aucs)}\n"
            "A reader's score is the grade, both sessions averaged. Differences: "
            "paired DeLong test, plain\ninterval, p. The best reader (*) was found on "
            "the same patients, which favours the reader.",
            "κ between readers per dichotomy [95 % bootstrap over patients]\n"
            f"{_table(result, kappas)}",
            "Quadratic weighted κ of the grades [95 % bootstrap over patients]\n"
            f"{_aligned(_grade_lines(result))}",
            "AUC of single images ± half the interval: what a wrong unit would claim\n"
            f"{_table(result, images)}",
        ]
    )


def format_comparison(comparison: Comparison) -> str:
    """Formats as "+0.08 [+0.02, +0.14] p = .013"."""
    if math.isnan(comparison.p_value):
        return f"{comparison.difference:+.2f}"
    p = "< .001" if comparison.p_value < 5e-4 else f"= {comparison.p_value:.3f}"
    return (
        f"{comparison.difference:+.2f} [{comparison.low:+.2f}, {comparison.high:+.2f}] "
        f"p {p.replace('0.', '.')}"
    )


def _half_width(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ± {(estimate.high - estimate.low) / 2:.3f}"


def _grade_lines(result: Diagnosis) -> list[tuple[str, str]]:
    figures = {
        "model and readers, mean": result.model_with_readers,
        "between readers, mean of pairs": result.between_readers,
        "within readers, sessions 1 and 2": result.within_readers,
    }
    each = ", ".join(f"{kappa:.2f}" for kappa in result.reader_kappas)
    return [
        ("model and reference", str(result.model_kappa)),
        ("readers and reference", each),
        *((name, f"{x:.2f}") for name, x in figures.items() if x is not None),
    ]


def _table(result: Diagnosis, rows: Mapping[str, Callable[[Dichotomy], str]]) -> str:
    """A column per dichotomy, a line per label."""
    parts = result.dichotomies
    lines = [(label, *map(text, parts)) for label, text in rows.items()]
    return _aligned([("", *(part.name for part in parts)), *lines])


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (map(str.ljust, line, widths) for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


@matplotlib.rc_context(STYLE)
def plot_study(study: Study, result: Diagnosis, images: Sequence[np.ndarray]) -> Figure:
    """Plots images of each grade, and a ROC panel per dichotomy with all readers.

    Args:
        study: grades and scores.
        result: statistics of the study.
        images: for each grade some images `[k, height, width]` uint8.
    """
    figure = Figure(figsize=(11, 6.6))
    margins = {"left": 0.06, "right": 0.99, "bottom": 0.07, "top": 0.96}
    rows = figure.add_gridspec(2, 1, height_ratios=(1.0, 1.5), hspace=0.16, **margins)
    top = rows[0].subgridspec(1, len(images), wspace=0.06)
    for g, pictures in enumerate(images):
        _draw_images(figure.add_subplot(top[0, g]), pictures, f"S{g}")
    parts = result.dichotomies
    bottom = rows[1].subgridspec(1, len(parts), wspace=0.16)
    scores = study.patient_scores()
    for k, part in enumerate(parts):
        axes = figure.add_subplot(bottom[0, k])
        _draw_roc(axes, study, scores[:, k], k, part)
        axes.set_title(part.name, loc="left")
        axes.set_xlabel("false positive rate")
        if k == 0:
            axes.set_ylabel("true positive rate")
    return figure


def _draw_images(axes: Axes, pictures: np.ndarray, title: str) -> None:
    """Draws pictures in two rows with gaps."""
    count, height, width = pictures.shape
    sheet = np.full((2 * height + 1, (count + 1) // 2 * (width + 1) - 1), 255, np.uint8)
    for i, picture in enumerate(pictures):
        row, column = i % 2 * (height + 1), i // 2 * (width + 1)
        sheet[row : row + height, column : column + width] = picture
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title, loc="left")
    axes.set_axis_off()


def _draw_roc(
    axes: Axes, study: Study, scores: np.ndarray, k: int, part: Dichotomy
) -> None:
    above = study.grade > k
    for values, colour, label in (
        (study.ceiling, _CEILING, f"best possible {part.ceiling.value:.2f}"),
        (scores, _MODEL, f"model {part.model}"),
    ):
        false, true, _ = roc_curve(above, values)
        axes.plot(false, true, color=colour, linewidth=1.8, label=label)
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8, linestyle=":")
    called = study.readings > k
    true, false = called[..., above].mean(-1), called[..., ~above].mean(-1)
    style = {"color": _READERS, "ms": 5.5, "linewidth": 0.7, "alpha": 0.85}
    for i, reader in enumerate(part.readers):
        marker = _MARKERS[i % len(_MARKERS)]
        label = f"reader {i + 1} {reader.value:.2f}"
        axes.plot(false[:, i], true[:, i], marker=marker, label=label, **style)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    compact = {"fontsize": 6.8, "title_fontsize": 6.8, "labelspacing": 0.25}
    axes.legend(title="AUC", loc="lower right", borderaxespad=0.1, **compact)
