"""Tables, figures and the report: complete, honest, self-contained."""

import math
import re
from html.parser import HTMLParser

import pytest

from evaluation import plots
from evaluation.plan import ADAM, LEARNED, MU_ADAM, CellTuning
from evaluation.report import write_report
from evaluation.summary import compare, headline, scaling_lines, summarize
from evaluation.tables import html_seeds, text_summary
from evaluation.tune import Point, Tuning

RATE = {
    "learning_rate": 2**-4.5,
    "schedule": "cosine",
    "tuned_at": "trained",
    "tuning_runs": 90,
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
