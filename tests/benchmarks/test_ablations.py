"""Rows of ablations are used only with the settings that made them."""

import dataclasses
import json

import pytest

from benchmarks import ablations
from benchmarks.ablations import (
    ARMS,
    CELLS,
    RECIPE,
    append,
    overview,
    read,
    settings,
    shortened,
    table,
)
from experiments.presets.configs import QUICKSTART

STEPS = 300


def row(arm, seed, mean, steps=STEPS):
    figures = {"mean": mean, "final": 1e-5, "held out": 0.1, "rise": 0.0}
    cells = dict.fromkeys(CELLS, figures)
    made = settings(arm, seed, steps)
    return {
        "arm": arm,
        "seed": seed,
        "outer_steps": steps,
        "settings": made,
        "cells": cells,
    }


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_arms_differ_in_what_they_run():
    made = {settings(arm, seed, STEPS) for arm in ARMS for seed in range(2)}
    assert len(made) == 2 * len(ARMS)


def test_curriculum_and_warm_up_shrink_with_the_run():
    config = shortened(QUICKSTART, QUICKSTART.num_steps // 3)
    (stage,), (whole,) = (c.estimator.lengths.stages for c in (config, QUICKSTART))
    assert stage == (whole[0] // 3, *whole[1:])
    assert config.outer.warmup_steps == round(QUICKSTART.outer.warmup_steps / 3)
    assert shortened(QUICKSTART, QUICKSTART.num_steps) == QUICKSTART


def test_rows_of_other_settings_are_refused(tmp_path, monkeypatch):
    path = written(tmp_path / "rows.jsonl", row(RECIPE, 0, 0.05))
    assert [x["arm"] for x in read(path, STEPS)] == [RECIPE]
    with pytest.raises(
        ValueError, match=r"line 1: arm 'recipe', .* for 300 outer steps"
    ):
        read(path, STEPS + 1)
    outer = dataclasses.replace(QUICKSTART.outer, learning_rate=1e-3)
    changed = dataclasses.replace(QUICKSTART, outer=outer)
    monkeypatch.setattr(ablations, "QUICKSTART", changed)
    with pytest.raises(ValueError, match="today's settings"):
        read(path, STEPS)


@pytest.mark.parametrize("damage", ["{", "[]", '{"arm": "recipe"}', "\xff"])
def test_a_damaged_line_is_named(tmp_path, damage):
    path = written(tmp_path / "rows.jsonl", row(RECIPE, 0, 0.05))
    with path.open("a", encoding="latin-1") as file:
        file.write(damage)
    with pytest.raises(ValueError, match="damaged in line 2"):
        read(path, STEPS)


def test_differences_are_paired_by_meta_seed():
    """The arm is .01 above the recipe on the seed they share; others do not count."""
    rows = [row(RECIPE, 0, 0.05), row(RECIPE, 1, 0.09), row("no decay", 1, 0.10)]
    lines = [line for line in table(rows) if line.count(" no decay ")]
    assert len(lines) == len(CELLS)
    assert all("0.1000" in line and "+0.0100" in line for line in lines)
    assert not any("[" in line or "≈" in line for line in lines)


def test_the_overview_marks_what_can_be_told_apart():
    means = {RECIPE: (0.05, 0.06), "no decay": (0.07, 0.08001), "linear": (0.04, 0.07)}
    rows = [row(arm, i, x) for arm, of in means.items() for i, x in enumerate(of)]
    lines = {line.split("  ")[0]: line for line in overview(rows)}
    assert lines["no decay"].count("0.0750 ▲") == len(CELLS)
    assert lines["linear"].count("0.0550 ≈") == len(CELLS)


def test_a_row_has_a_line_of_its_own_behind_one_that_was_cut_off(tmp_path):
    path = written(tmp_path / "rows.jsonl", row(RECIPE, 0, 0.05))
    path.write_text(path.read_text().rstrip("\n"))
    append(path, row(RECIPE, 1, 0.06))
    assert [x["seed"] for x in read(path, STEPS)] == [0, 1]
    append(tmp_path / "new.jsonl", row(RECIPE, 0, 0.05))
    assert len(read(tmp_path / "new.jsonl", STEPS)) == 1
