"""Report of an evaluation: one self-contained HTML file."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from configuration.fields import escaped
from configuration.files import write_text
from evaluation.plan import CellTuning, Skipped
from evaluation.report import plots, tables
from evaluation.report.aggregate import aggregate_lines
from evaluation.report.budget import budget_lines
from evaluation.report.summary import headline, scaling_lines
from evaluation.results import EvalRow

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1320px; padding: 2rem 1.5rem 4rem; color: #1c2430;
  background: #fff; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; padding-bottom: .3rem;
  border-bottom: 1px solid #d7dce2; }
p { max-width: 52rem; margin: .5rem 0; }
.headline { font-size: 1.12rem; padding: .9rem 1.1rem; background: #f3f6fa;
  border-left: 4px solid #d55e00; border-radius: 0 6px 6px 0; max-width: none; }
.warning { padding: .7rem 1.1rem; background: #fff4e5; border-left: 4px solid #b45309;
  max-width: none; }
.note, figcaption { color: #556070; font-size: .88rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; width: 100%;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: #556070; padding: .35rem .7rem .35rem 0;
  border-bottom: 2px solid #c4ccd6; white-space: nowrap; }
td { padding: .28rem .7rem .28rem 0; white-space: nowrap; }
tr.first td { border-top: 1px solid #d7dce2; }
tr.first td:first-child { font-weight: 600; }
tr.learned td:not(:first-child) { background: #fdf1e8; }
figure { margin: 1rem 0 1.5rem; }
figure svg { max-width: 100%; height: auto; }
pre { background: #f6f8fa; padding: 1rem; border-radius: 6px; overflow: auto;
  font-size: .8rem; line-height: 1.45; max-height: 30rem; }
details { margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem;
  font-size: .9rem; }
dt { color: #556070; } dd { margin: 0; overflow-wrap: anywhere; }
"""


def write_report(
    path: str | Path,
    title: str,
    rows: Sequence[EvalRow],
    tunings: Sequence[CellTuning],
    training_metrics: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    missing: Sequence[tuple[str, str, int]] = (),
    skipped: Sequence[Skipped] = (),
    notes: Mapping[str, str] | None = None,
) -> None:
    """Writes the report; the file is replaced as a whole.

    Args:
        path: path of the HTML file.
        title: heading.
        rows: all evaluation runs.
        tunings: all tunings.
        training_metrics: metrics of meta-training (see `plots.plot_training`), if any.
        config: configuration of meta-training, any JSON.
        environment: command, machine, versions, seeds.
        missing: expected runs (cell, optimizer, seed) without a row.
        skipped: cells that could not run, with reasons.
        notes: explanations of cells, by cell.
    """
    sections = [
        _summary_section(rows, missing, skipped),
        f"<h2>What the cells are</h2>{_definitions(notes)}" if notes else "",
        _section("Training loss", [_CURVES_NOTE], plots.plot_curves, rows),
        _section("Width", [_WIDTH_NOTE], plots.plot_widths, plots.over_width(rows)),
        _section("Meta-training", [_META_NOTE], plots.plot_training, training_metrics),
        _tuning_section(tunings, tables.units_of(rows)),
        f"<h2>Every run</h2>{_details('All seeds', tables.html_seeds(rows))}",
        _origin_section(config, environment),
    ]
    page = _page(title, "\n".join(filter(None, sections)))
    write_text(path, escaped(page))  # the command line may be no Unicode text


_CURVES_NOTE = (
    "Loss of each training batch before its update, smoothed over 1/40 of the run. "
    "Line: mean over seeds; band: lowest to highest seed. A run that diverges leaves "
    "its panel at the top or ends where it stops being finite."
)
_WIDTH_NOTE = (
    "The horizon and the depth are those of the trained cell. Dots are seeds, crosses "
    "seeds that diverged and count as the cap. The "
    "learned optimizer and transferred μAdam run in μP and were tuned at no width but "
    "the trained one; tuned Adam runs in the standard parametrization and was tuned at "
    "each width."
)
_META_NOTE = (
    "The meta-loss is that of the perturbed particles in windows of any age, so it is "
    "not comparable with a loss from step 0. Held out and training batches: the "
    "averaged θ in validation runs; the dotted line is the θ that was released."
)
_TUNING_NOTE = (
    "Each baseline's learning rate was chosen by the figure that is reported, the mean "
    "training loss, on tuning seeds of its own, on a √2 grid with a constant and with "
    "a cosine schedule. An optimum at the edge widened the grid. The learned optimizer "
    "was not tuned anywhere; transferred μAdam has the learning rate and the schedule "
    "of Adam in the trained cell."
)
_CAP_NOTE = (
    "Before averaging over steps, each training loss is capped at 1.5 × the loss at "
    "chance, NaN included, so that a diverged run counts as the cap and not as "
    "nothing; capped steps and diverged runs are counted in the table. Validation and "
    "test losses are as measured; a mean over seeds of which one is not finite is not "
    "finite. A run diverged if something in it was not finite or its last training "
    "loss stood at the cap."
)


def _summary_section(
    rows: Sequence[EvalRow],
    missing: Sequence[tuple[str, str, int]],
    skipped: Sequence[Skipped],
) -> str:
    parts = [_tag("p", headline(rows), "headline")]
    if missing:
        text = html.escape(tables.describe_missing(missing))
        parts.append(f'<p class="warning"><b>Missing runs.</b> {text}</p>')
    if skipped:
        items = _list(f"{cell}: {reason}" for cell, reason in skipped)
        parts.append(f'<div class="warning"><b>Skipped cells.</b>{items}</div>')
    parts += [_tag("p", line) for line in aggregate_lines(rows, skipped)]
    if tables.wants_overview(rows):
        notes = tables.overview_notes(rows)
        parts += ["<h2>Overview</h2>", tables.html_table(*tables.overview(rows))]
        parts.append(_figure("overview", plots.plot_overview(rows), notes))
    parts += ["<h2>Summary</h2>", tables.html_summary(rows)]
    parts += [_tag("p", text, "note") for text in (tables.legend(rows), _CAP_NOTE)]
    if lines := budget_lines(rows):
        parts.append("<p>Before the reported runs:</p>" + _list(lines))
    if lines := scaling_lines(rows):
        parts.append("<p>The learned optimizer beyond its training:</p>" + _list(lines))
    return "\n".join(parts)


def _section(
    heading: str,
    notes: Iterable[str],
    plot: Callable[[Any], Figure],
    data: Sequence[Any],
) -> str:
    """Heading, figure and caption; empty without data."""
    if not data:
        return ""
    slug = heading.lower().replace(" ", "-")
    figure = _figure(slug, plot(data), notes)
    return f"{_tag('h2', heading)}\n{figure}"


def _figure(slug: str, figure: Figure, notes: Iterable[str]) -> str:
    caption = " ".join(html.escape(note) for note in notes)
    # HTML needs no names of XML vocabularies.
    drawing = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", plots.svg(figure))
    # Ids of clip paths repeat between figures, but must be unique in a page.
    drawing = drawing.replace('id="', f'id="{slug}-')
    drawing = drawing.replace('href="#', f'href="#{slug}-')
    drawing = drawing.replace("url(#", f"url(#{slug}-")
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def _tuning_section(tunings: Sequence[CellTuning], units: Mapping[str, str]) -> str:
    if not tunings:
        return ""
    runs = sum(entry.tuning.num_runs for entry in tunings)
    steps = sum(entry.tuning.inner_steps for entry in tunings)
    total = f"Altogether {runs:,} tuning runs, {steps:,} inner steps."
    heading = "Tuning of the baselines"
    plot = partial(plots.plot_tunings, units=units)
    figure = _section(heading, [_TUNING_NOTE], plot, tunings)
    return f"{figure}\n<p>{total}</p>\n{tables.html_tunings(tunings, units)}"


def _origin_section(config: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    text = html.escape(json.dumps(config, indent=2, ensure_ascii=False, default=str))
    return (
        f"<h2>How it was made</h2>{_definitions(environment)}"
        f"{_details('Configuration of meta-training', f'<pre>{text}</pre>')}"
    )


def _definitions(values: Mapping[str, Any]) -> str:
    def shown(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value, default=str)

    items = (_tag("dt", k) + _tag("dd", shown(v)) for k, v in values.items())
    return f"<dl>{''.join(items)}</dl>"


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(_tag('li', line) for line in lines)}</ul>"


def _tag(name: str, text: str, css_class: str = "") -> str:
    """An element with a text, which is escaped."""
    attribute = f' class="{css_class}"' if css_class else ""
    return f"<{name}{attribute}>{html.escape(text)}</{name}>"


def _details(summary: str, inner: str) -> str:
    return f"<details>{_tag('summary', summary)}{inner}</details>"


def _page(title: str, body: str) -> str:
    name = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{name}</h1>\n{body}\n</body>\n</html>\n"
    )
