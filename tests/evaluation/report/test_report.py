"""Tables, figures and the report are complete and self-contained."""

import dataclasses
import html
import math
import re
from html.parser import HTMLParser

import pytest

from evaluation.plan import ADAM, ADAM_LONG, LEARNED, MU_ADAM, CellTuning, Skipped
from evaluation.report import plots
from evaluation.report.budget import budget_lines, meta_training_steps
from evaluation.report.html import write_report
from evaluation.report.summary import compare, headline, scaling_lines, summarize
from evaluation.report.tables import (
    html_seeds,
    html_tunings,
    overview,
    text_summary,
    units_of,
    wants_overview,
)
from evaluation.tune import Point, Tuning

RATE = {
    "learning_rate": 2**-4.5,
    "schedule": "cosine",
    "tuned_at": "trained",
    "tuning_runs": 90,
    "tuning_inner_steps": 36_000,
}


@pytest.fixture
def rows(make_row):
    """The learned optimizer wins in the trained cell and loses to μAdam when wide."""
    result = []
    for seed in range(5):
        noise = 0.001 * seed
        result += [
            make_row(LEARNED, seed=seed, loss=0.050 + noise),
            make_row(
                ADAM, seed=seed, loss=0.060 + 1.1 * noise, provenance=RATE, steps=5
            ),
            make_row(LEARNED, "width 128", seed, 0.045 + noise, widths=(128, 128)),
            make_row(
                MU_ADAM,
                "width 128",
                seed,
                0.040 + 1.1 * noise,
                widths=(128, 128),
                provenance=RATE,
            ),
        ]
    result.sort(key=lambda row: row.cell)
    return result


@pytest.fixture
def tunings():
    points = tuple(
        Point(schedule, 2.0 ** (k / 2), 0.1 + 0.01 * (k + 9) ** 2, 0)
        for schedule in ("constant", "cosine")
        for k in range(-12, -5)
    )
    tuning = Tuning(2**-4.5, "cosine", 0.1, points, 42, 210, 1, True, 3.0)
    return [CellTuning("trained", ADAM, tuning)]


def test_summary_counts_and_compares(rows):
    learned, adam, *_ = summarize(rows)
    assert (learned.optimizer, learned.num, learned.diverged) == (LEARNED, 5, 0)
    assert learned.mean_loss[0] == pytest.approx(0.052)
    assert learned.mean_loss[1] == pytest.approx(0.001 * math.sqrt(2.5 / 5))
    assert learned.versus_adam.verdict == "lower"
    assert learned.versus_adam.wins == 5
    assert adam.versus_adam is None


def test_headline_names_the_winner_and_the_baseline_that_wins(rows, make_row):
    text = headline(rows)
    assert f"{100 * (1 - 0.052 / 0.0622):.1f} % below tuned Adam's" in text
    assert "lower on 5 of 5 seeds (the learned optimizer wins)" in text
    assert f"Baselines with a lower mean loss: {MU_ADAM} (width 128)" in text
    assert (
        "Its test loss after the last step, 0.300, is not distinguishable from" in text
    )
    worse = [
        make_row(name, seed=seed, loss=loss + 0.001 * seed * loss)
        for seed in range(5)
        for name, loss in ((LEARNED, 0.2), (ADAM, 0.1))
    ]
    text = headline(worse)
    assert "100.0 % above tuned Adam's" in text
    assert "tuned Adam wins" in text
    assert f"{ADAM} (trained)" in text


def test_headline_names_cells_where_tuned_adam_ends_lower(make_row):
    rows = [
        make_row(name, cell, seed, 0.1, final_loss=final, test_loss=test + seed * 1e-3)
        for seed in range(5)
        for cell, test in (("trained", 0.3), ("width 128", 0.1))
        for name, final, test in ((LEARNED, 2e-3, test), (ADAM, 1e-3, 0.2))
    ]
    text = headline(rows)
    assert "Tuned Adam has the lower final loss in: trained, width 128." in text
    assert text.endswith("Tuned Adam has the lower test loss in: trained.")


def test_the_budget_of_every_optimizer_is_printed(rows, make_row):
    trained = {"meta_training_inner_steps": 2_400_000}
    other = [make_row(ADAM, "width 128", seed, provenance=RATE) for seed in (0, 1)]
    reused = RATE | {"tuning_runs": 0, "tuning_inner_steps": 0}
    rows = [
        dataclasses.replace(
            row,
            provenance={LEARNED: trained, MU_ADAM: reused}.get(row.optimizer, RATE),
        )
        for row in rows
    ]
    lines = budget_lines([*rows, *other])
    assert lines == [
        f"budget of {LEARNED}: meta-trained once (2,400,000 inner steps), tuned in no "
        "cell",
        f"budget of {ADAM}: 180 tuning runs over all cells (72,000 inner steps)",
        f"budget of {MU_ADAM}: the learning rate tuned in trained",
    ]
    assert all(line in text_summary(rows + other) for line in lines)
    # Artifacts of earlier versions.
    (line,) = budget_lines([make_row(LEARNED, provenance={})])
    assert "its artifact does not say how long" in line


def test_meta_training_counts_what_it_began_with():
    first = {"inner_steps": 160}
    second = {"inner_steps": 200, "parent": {"provenance": first}}
    third = {"inner_steps": 0, "parent": {"provenance": second}}
    assert meta_training_steps(third) == 360
    for unknown in ("160", 1.5, True, -5, None, [160]):
        assert meta_training_steps({"inner_steps": unknown}) is None
        parent = {"provenance": {"inner_steps": unknown}}
        assert meta_training_steps({"inner_steps": 2, "parent": parent}) is None
    for parent in (None, {}, "path", {"provenance": "x"}):
        assert meta_training_steps({"inner_steps": 2, "parent": parent}) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("num", [1, 5])
def test_a_test_loss_that_is_not_finite_is_higher_than_adams(make_row, loss, num):
    rows = [
        make_row(name, cell, seed, 0.1, test_loss=test)
        for seed in range(5)
        for cell in ("trained", "width 128")
        for name, test in ((LEARNED, loss if seed < num else 0.1), (ADAM, 0.2))
    ]
    assert headline(rows).endswith("lower test loss in: trained, width 128.")
    both = [dataclasses.replace(row, test_loss=loss) for row in rows]
    assert "lower test loss" not in headline(both)


def test_runs_that_share_no_seed_are_not_compared(make_row):
    rows = [make_row(LEARNED, seed=0), make_row(ADAM, seed=1)]
    assert compare(rows, LEARNED, ADAM) is None
    assert "share no run" in headline(rows)


def test_text_table_is_aligned_and_complete(rows):
    text = text_summary(rows, [("width 512", LEARNED, 3), ("width 512", LEARNED, 4)])
    lines = text.splitlines()
    starts = {
        line.index(name)
        for name in (LEARNED, ADAM)
        for line in lines[2:4]
        if name in line
    }
    assert starts == {lines[0].index("optimizer")}
    for part in ("0.0520 ± 0.0007", "▼", "5/5", "0.0442 cosine (90 runs)", "no tuning"):
        assert part in text
    assert "0.0442 cosine (from trained)" in text
    assert "MISSING: width 512, learned: seeds 3, 4" in text
    assert "width 128: 0.90 × its own mean loss" in scaling_lines(rows)[0]


def test_diverged_runs_are_counted_in_every_table(rows, make_row):
    bad = make_row(
        LEARNED,
        seed=5,
        loss=3.45,
        curve=(2.3, math.nan, math.nan, math.nan, math.inf),
        diverged=True,
        capped_steps=4,
    )
    rows = [bad, *rows]
    assert summarize(rows)[0].diverged == 1
    assert summarize(rows)[0].mean_loss[0] == pytest.approx((5 * 0.052 + 3.45) / 6)
    assert "1/6 (4 steps capped)" in text_summary(rows)
    assert "<td>yes</td>" in html_seeds(rows)
    assert plots.svg(plots.plot_curves(rows)).startswith("<svg")


@pytest.mark.parametrize("loss", [math.nan, math.inf, 3.5])
def test_a_held_out_loss_beyond_the_cap_is_flagged_wherever_it_stands(
    rows, make_row, loss, tmp_path
):
    assert "†" not in text_summary(rows) + html_seeds(rows)
    rows = [make_row(LEARNED, seed=5, test_loss=loss), *rows]
    mean = f"{(5 * 0.3 + loss) / 6:.3f}"
    summary, *_ = summarize(rows)
    assert summary.flagged == 1 and summary.diverged == 0
    text = text_summary(rows)
    assert f"{mean} †" in text.splitlines()[2] and "† a run diverged" in text
    assert html_seeds(rows).count(f"{loss:.4f} †") == 1
    _, lines = overview(rows)
    assert [line[6].endswith("†") for line in lines] == [True, False]
    page = tmp_path / "report.html"
    write_report(page, "a title", rows, [], [], {}, {})
    assert f"{mean} †" in page.read_text()
    assert "Validation and test losses are as measured" in page.read_text()


@pytest.mark.parametrize("losses", [(math.nan, 0.3), (math.inf, math.inf)])
def test_no_verdict_on_test_losses_that_are_not_finite(make_row, losses):
    rows = [
        make_row(name, seed=seed, test_loss=loss, diverged=name == LEARNED)
        for seed in range(2)
        for name, loss in zip((LEARNED, ADAM), losses, strict=True)
    ]
    text = headline(rows)
    shown = f"{losses[0]:.3f} †, is not comparable with tuned Adam's, {losses[1]:.3f}."
    assert shown in text
    assert "Diverged runs, which count as the cap: learned (2 of 2)." in text


def test_huge_held_out_losses_are_short(make_row):
    rows = [make_row(LEARNED, test_loss=2.25e10), make_row(ADAM)]
    for text in (text_summary(rows), html_seeds(rows)):
        assert "2.25e+10 †" in text
    assert "after the last step, 2.25e+10 †" in headline(rows)


def test_diverged_runs_have_marks_of_their_own_in_plots(make_row):
    rows = [
        make_row(LEARNED, cell, seed, widths=(width,), diverged=seed == 1)
        for cell, width in (("trained", 8), ("width 16", 16))
        for seed in range(3)
    ]
    (axes,) = plots.plot_widths(rows).axes
    marks = [line.get_marker() for line in axes.lines if len(line.get_xdata()) == 1]
    assert sorted(marks) == [".", ".", ".", ".", "x", "x"]
    (axes,) = plots.plot_overview(rows).axes
    assert axes.lines[0].get_markerfacecolor() == "none"
    fine = [make_row(LEARNED)]
    (axes,) = plots.plot_overview(fine).axes
    assert axes.lines[0].get_markerfacecolor() != "none"


def test_the_table_of_the_quickstart_looks_as_it_did(rows):
    text = text_summary(rows)
    lines = text.splitlines()
    assert lines[0].split("  ")[0] == "cell"
    assert lines[0].rstrip().endswith("learning rate")
    assert lines[1] and set(lines[1]) == {"─", " "}
    # A rule before each cell and none inside it.
    assert [set(line) == {"─", " "} for line in lines[:7]] == [
        *(False, True, False, False),
        *(True, False, False),
    ]
    assert lines[7] == "" and lines[8] == (
        "Losses in nats; mean loss: mean over all steps of the training batch's loss "
        "before the update, ± standard error over seeds; ▼ lower than tuned Adam, "
        "▲ higher, ≈ the 95 % interval of the paired difference holds 0."
    )
    assert "varies" not in text and "SKIPPED" not in text


TEXT = {
    "axis": "held_out",
    "task": "LanguageModelling",
    "family": "Transformer",
    "dataset": "lm1b",
    "resolution": "64 of 256 tokens",
    "unit": "nats per token",
    "loss_at_chance": 4.0,
    "depth": 3,
    "widths": (8, 8, 8),
}
BOWL = {
    "axis": "held_out",
    "task": "Quadratic",
    "family": "Quadratic",
    "unit": "units of the height",
    "loss_at_chance": 2.0,
    "widths": (),
    "depth": None,
    "base_width": None,
    "batch_size": None,
    "valid_accuracy": math.nan,
    "test_accuracy": math.nan,
}


@pytest.fixture
def mixed(make_row):
    """A suite of seven cells in three units, one of them without any width."""
    result = []
    for seed in range(3):
        noise = 0.001 * seed
        for k in range(5):
            cell = f"width {16 * 2**k}"
            wide = {"widths": (16 * 2**k,), "cell": cell, "seed": seed}
            result += [
                make_row(LEARNED, loss=0.1 + noise, **wide),
                make_row(ADAM, loss=0.2 + noise, provenance=RATE, **wide),
            ]
        result += [
            make_row(LEARNED, "text", seed, 2.0 + noise, **TEXT),
            make_row(ADAM, "text", seed, 1.0 + 1.1 * noise, provenance=RATE, **TEXT),
            make_row(LEARNED, "bowl", seed, 0.5 + noise, **BOWL),
            make_row(ADAM, "bowl", seed, 0.5 + 2.0 * noise, provenance=RATE, **BOWL),
        ]
    result.sort(key=lambda row: (row.cell, row.optimizer != LEARNED))
    return result


def test_cells_of_different_tasks_share_an_overview(mixed):
    header, lines = overview(mixed)
    assert header == (
        *("cell", "varies", "family", "data", "input", "unit"),
        *(LEARNED, ADAM, ""),
    )
    found = {line[0]: line for line in lines}
    assert len(found) == len(lines) == 7
    # (2 + .001)/4 and (1 + .0011)/4; (.5 + .001)/2
    assert found["text"][5:] == ("nats per token", "0.5", "0.25", "▲")
    assert found["bowl"][2:] == (
        *("Quadratic", "Digits", "8×8×1", "units of the height"),
        *("0.251", "0.251", "≈"),
    )
    assert found["width 16"][-1] == "▼"
    assert [line[0] for line in lines][:2] == ["bowl", "text"]


def test_many_cells_without_accuracy_or_trained_cell(mixed):
    assert wants_overview(mixed)
    assert not wants_overview([r for r in mixed if r.unit == "nats"])
    text = text_summary(mixed, skipped=[Skipped("far", "its data is not here")])
    assert "SKIPPED: far: its data is not here" in text
    assert (
        "Losses in nats, in units of the height (bowl), in nats per token (text); mean"
    ) in text
    # Many cells are counted, and the baseline that wins is named all the same.
    assert headline(mixed) == (
        "No cell is the setting of meta-training. Its mean loss is lower than tuned "
        "Adam's in: 5 of 7 cells. Not distinguishable from tuned Adam: 1 of 7 cells. "
        f"Baselines with a lower mean loss: {ADAM} (in 1 of 7 cells). "
        "Tuned Adam has the lower final loss in: 1 of 7 cells."
    )
    few = [r for r in mixed if r.cell in ("text", "bowl", "width 16")]
    assert f"Baselines with a lower mean loss: {ADAM} (text)." in headline(few)
    assert scaling_lines(mixed) == []
    bowl = next(line for line in text.splitlines() if line.startswith("bowl"))
    assert "  –  " in bowl and "nan" not in text
    assert "94.0 %" in text


def test_losses_carry_the_unit_of_their_cell_wherever_units_are_mixed(mixed, tunings):
    lines = text_summary(mixed).splitlines()
    assert lines[0].split()[:3] == ["cell", "optimizer", "unit"]
    shown = {line.split("  ")[0]: line for line in lines[2:] if LEARNED in line}
    assert "units of the height" in shown["bowl"]
    assert "nats per token" in shown["text"]
    assert "<td>units of the height</td>" in html_seeds(mixed)
    two = [tunings[0]._replace(cell=cell) for cell in ("bowl", "text")]
    units = units_of(mixed)
    assert re.search(r"<td>[\d.]+ units of the height</td>", html_tunings(two, units))
    labels = [axes.get_ylabel() for axes in plots.plot_tunings(two, units).axes]
    assert labels == ["units of the height", "nats per token"]
    one = [entry._replace(cell="bowl") for entry in two]
    label = plots.plot_tunings(one, units).axes[0].get_ylabel()
    assert label == "mean loss (units of the height)"
    # One unit is said once, and no axis of two says one.
    alone = [row for row in mixed if row.cell == "bowl"]
    assert lines_of(alone)[0].split()[:3] == ["cell", "optimizer", "mean"]
    assert text_summary(alone).count("units of the height") == 1
    wide = [r for r in mixed if r.cell in ("width 16", "width 32")]
    both = [*wide[:6], *(dataclasses.replace(r, unit="radii") for r in wide[6:])]
    for rows, label in ((wide, " (nats)"), (both, "")):
        drawn = plots.plot_widths(rows).axes[0].get_ylabel()
        assert drawn == f"mean training loss{label}"


def test_a_table_names_readouts_that_do_not_start_at_zero(rows, tmp_path):
    assert "Readouts" not in text_summary(rows)
    drawn = [dataclasses.replace(row, readout_init="lecun") for row in rows]
    said = "Readouts do not start at zero (readout_init: lecun) in "
    assert f"{said}all cells." in text_summary(drawn)
    half = [r if r.cell == "trained" else d for r, d in zip(rows, drawn, strict=True)]
    assert f"{said}width 128." in text_summary(half)
    write_report(tmp_path / "r.html", "t", half, [], [], {}, {})
    assert f"{said}width 128." in (tmp_path / "r.html").read_text()


def lines_of(rows):
    return text_summary(rows).splitlines()


def test_ratios_to_the_trained_cell_are_of_normalized_losses(make_row):
    rows = [
        make_row(LEARNED, loss=0.5, loss_at_chance=2.0),
        make_row(LEARNED, "family other", loss=0.5, loss_at_chance=4.0),
    ]
    assert "family other: 0.50 × its own mean loss" in scaling_lines(rows)[0]


def test_a_report_of_many_cells(tmp_path, mixed, make_row, tunings):
    long = [
        make_row(ADAM_LONG, cell, seed, 0.1, **about, curve=(2.3, 1.0, 0.9, 0.8) * 5)
        for seed in range(3)
        for cell, about in (("text", TEXT), ("bowl", BOWL))
    ]
    path = tmp_path / "report.html"
    skipped = [Skipped("far", "its data <is> not here")]
    notes = {"text": "a decoder, not the paper's"}
    write_report(
        path, "t", mixed + long, tunings, [], {}, {}, skipped=skipped, notes=notes
    )
    checker = _Checker()
    checker.feed(path.read_text())
    assert checker.stack == [] and len(checker.ids) == len(set(checker.ids))
    text = " ".join(checker.text)
    for part in (
        "Overview",
        "speed-up over tuned Adam",
        "interquartile mean over 2 cells and 6 runs",
        "1 of 8 cells were skipped",
        "far: its data <is> not here",
        "What the cells are",
        "a decoder, not the paper's",
        "units of the height",
    ):
        assert part in text
    figure = plots.plot_curves(mixed)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == sorted({r.cell for r in mixed})
    assert len({axes.get_position().x0 for axes in shown}) == 3
    labels = {axes.get_title(): axes.get_ylabel() for axes in shown}
    assert labels["bowl"] == "units of the height" and labels["width 16"] == "nats"
    assert plots.over_width(mixed[:12]) == []


class _Checker(HTMLParser):
    """Fails on unbalanced tags; collects ids, references and text."""

    void = ("meta", "br", "link", "img")

    def __init__(self):
        super().__init__()
        self.stack, self.ids, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.void:
            self.stack.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.attributes += attrs

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page(tmp_path, rows, tunings):
    path = tmp_path / "deep" / "report.html"
    metrics = [{"step": step, "meta_loss": 1.0 / step} for step in range(1, 121)]
    metrics += [{"step": 60, "held_out_loss": 0.5}, {"step": 120, "held_out_loss": 0.4}]
    missing = [("width 512", LEARNED, 0)]
    environment = {"command": "python -m x --a '<b>'", "seeds": [0, 1]}
    write_report(
        path,
        "A <title> & more",
        rows,
        tunings,
        metrics,
        {"lopt": {"n": 32}},
        environment,
        missing,
    )
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text()


def test_report_is_well_formed_and_escapes(page):
    checker = _Checker()
    checker.feed(page)
    assert checker.stack == []
    assert "<b>" not in page.replace("<b>Missing runs.</b>", "")
    assert "A &lt;title&gt; &amp; more" in page
    text = " ".join(checker.text)
    for part in (
        "Missing runs.",
        "width 512",
        "Every run",
        "inner steps",
        "YES",
        '"n": 32',
        "the learned optimizer wins",
        MU_ADAM,
    ):
        assert part in text


MATH = r"a $\frac{$ b"


def test_names_are_no_formulas(tmp_path, rows, tunings):
    rows = [dataclasses.replace(row, cell=MATH, unit="$x^$") for row in rows]
    rows += [dataclasses.replace(row, cell="$$") for row in rows]
    tunings = [entry._replace(cell=MATH) for entry in tunings]
    path = tmp_path / "report.html"
    environment = {"command": "python -m x '\udcff'"}
    write_report(path, MATH, rows, tunings, [], {}, environment)
    drawn = [plots.plot_curves(rows), plots.plot_overview(rows)]
    assert all(MATH in plots.svg(figure) for figure in drawn)
    assert plots.png(drawn[0])
    page = path.read_text()
    assert f"{ADAM}: {MATH}" in page and r"x '\udcff'" in html.unescape(page)
    # Neither are the ticks, though matplotlib would write powers as formulas.
    assert "mathdefault" not in page and ">2⁻⁴<" in page


def test_report_needs_no_other_resource(page):
    checker = _Checker()
    checker.feed(page)
    for name, value in checker.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#")
    assert not re.search(r"https?:", page)
    assert "<script" not in page
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_figures_share_no_ids(page):
    checker = _Checker()
    checker.feed(page)
    assert len(checker.ids) == len(set(checker.ids))
    used = set(re.findall(r"url\(#([^)]+)\)", page))
    used |= set(re.findall(r'href="#([^"]+)"', page))
    assert used
    assert used <= set(checker.ids)


def test_figures_are_reproducible_and_come_as_png_too(rows):
    assert plots.svg(plots.plot_widths(rows)) == plots.svg(plots.plot_widths(rows))
    assert plots.png(plots.plot_widths(rows)).startswith(b"\x89PNG")


def test_a_report_without_training_or_tuning(tmp_path, rows):
    write_report(tmp_path / "r.html", "t", rows, [], [], {}, {})
    page = (tmp_path / "r.html").read_text()
    assert "Meta-training" not in page
    assert "Missing runs" not in page
