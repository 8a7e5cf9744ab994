"""Rows survive a file; anything else in it is refused."""

import json
import math

import pytest

from evaluation.results import missing_runs, read_rows, write_rows


def test_rows_come_back_as_they_were(tmp_path, make_row):
    path = tmp_path / "runs" / "rows.jsonl"
    rows = [make_row(seed=0), make_row("Adam, tuned", seed=1, loss=1 / 3)]
    write_rows(path, rows)
    assert read_rows(path) == rows
    assert [p.name for p in path.parent.iterdir()] == ["rows.jsonl"]


LINE = (
    '{"schema_version": 3, "optimizer": "learned", "cell": "trained", "axis": '
    '"trained", "task": "ImageClassification", "family": "MLP", "widths": [32, 32], '
    '"depth": null, "base_width": 32, "parametrization": "ADAM_LIKE", "batch_size": '
    '64, "dataset": "Digits", "resolution": "8×8×1", "unit": "nats", '
    '"loss_at_chance": 2.3, "steps": 3, "seed": 0, "curve": [2.5, "inf", "nan"], '
    '"mean_loss": 2.0, "final_loss": 2.0, "valid_loss": 1.0, "valid_accuracy": "nan", '
    '"test_loss": 1.0, "test_accuracy": 0.5, "diverged": true, "capped_steps": 2, '
    '"seconds": 0.25, "provenance": {"schedule": "cosine"}}\n'
)
"""A row as the first version of schema 3 wrote it."""


def test_earlier_rows_are_read_and_the_form_has_not_changed(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(LINE)
    (row,) = read_rows(path)
    assert row.depth is None and row.widths == (32, 32)
    assert row.curve[:2] == (2.5, math.inf) and math.isnan(row.curve[2])
    write_rows(path, [row])
    assert path.read_text() == LINE


def test_a_task_without_width_depth_and_accuracy_has_rows_too(tmp_path, make_row):
    path = tmp_path / "rows.jsonl"
    fields = {"widths": (), "depth": None, "base_width": None, "batch_size": None}
    nothing = {"valid_accuracy": math.nan, "test_accuracy": math.nan}
    write_rows(path, [make_row(**fields, **nothing, unit="units of the height")])
    (row,) = read_rows(path)
    assert {name: getattr(row, name) for name in fields} == fields
    assert math.isnan(row.valid_accuracy) and math.isnan(row.test_accuracy)


def test_what_is_not_finite_comes_back_and_the_file_is_strict_json(tmp_path, make_row):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [make_row(curve=(2.3, math.inf, math.nan), diverged=True)])
    (row,) = read_rows(path)
    assert row.curve[:2] == (2.3, math.inf)
    assert math.isnan(row.curve[2])

    def refuse(constant):
        raise AssertionError(constant)

    json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize(
    "field",
    [
        *("loss_at_chance", "mean_loss", "final_loss", "valid_loss", "test_loss"),
        *("valid_accuracy", "test_accuracy", "seconds"),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_every_figure_that_is_written_is_read(tmp_path, make_row, field, value):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [make_row(**{field: value})])
    assert str(getattr(read_rows(path)[0], field)) == str(value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema_version", 1, "schema_version = 1; this version reads 3"),
        ("schema_version", None, "schema_version"),
        ("surprise", 1, "row.surprise is not a field"),
        ("seed", "0", "seed = '0'"),
        ("depth", 2.0, "depth = 2.0"),
        ("depth", True, "depth = True"),
        ("widths", None, "widths = None"),
        ("unit", None, "unit = None"),
        ("diverged", 1, "diverged = 1"),
        ("curve", [1.0, None], r"curve\[1\] = None"),
        ("mean_loss", True, "mean_loss = True"),
    ],
)
def test_other_rows_are_refused(tmp_path, make_row, field, value, message):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [make_row(), make_row(seed=1)])
    first, second = path.read_text().splitlines()
    content = json.loads(second) | {field: value}
    path.write_text(first + "\n" + json.dumps(content) + "\n")
    with pytest.raises(ValueError, match=message) as error:
        read_rows(path)
    assert f"{path}, line 2" in str(error.value)


def test_missing_fields_and_damaged_lines_are_refused(tmp_path, make_row):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [make_row()])
    text = path.read_text()
    content = json.loads(text)
    del content["curve"]
    for damaged in (json.dumps(content), text[:40], "[]"):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="line 1"):
            read_rows(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, make_row):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [make_row()])
    with pytest.raises(ValueError, match="no value of JSON"):
        write_rows(path, [make_row(provenance={"x": object()})])
    assert len(read_rows(path)) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_missing_runs_are_named(make_row):
    rows = [make_row(seed=seed) for seed in (0, 2)]
    expected = [("trained", "learned", seed) for seed in (0, 1, 2)]
    assert missing_runs(rows, expected) == [("trained", "learned", 1)]
