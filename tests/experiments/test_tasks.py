"""`list` and `show`: everything has a line, nothing is trained, errors are one line."""

import json

import pytest

from experiments import command_line, tasks
from experiments.command_line import BAD_INPUT, InputError
from experiments.presets import inventory
from tasks import MLP, ImageClassification, Quadratic, TFDSImages
from tasks.distributions import NamedDistribution
from tasks.groups import Group, TaskDistribution
from tasks.registry import FAMILIES, NAMED
from tasks.suites import SUITES, Cell, Suite
from tasks.variation import Variation

ABSENT = ImageClassification(MLP((64,), base_width=32), TFDSImages("no_such_images"))


@pytest.fixture
def small(monkeypatch):
    """One suite and one distribution, small enough to show."""
    cells = (
        Cell("trained", "trained", ImageClassification(MLP((64,), base_width=32)), 7),
        Cell("far", "dataset", ABSENT, 1000, "stands for another"),
    )
    suites = {"small": Suite("small", "two cells", lambda: cells)}
    monkeypatch.setattr(inventory, "SUITES", suites)
    group = Group("bowls", Quadratic(), 0.25, Variation(loss_scale=(0.5, 2.0)))
    mixture = TaskDistribution((group,))
    named = NamedDistribution("a mixture", lambda: mixture)
    monkeypatch.setattr(inventory, "DISTRIBUTIONS", {"mixture": named})
    monkeypatch.setenv(command_line.DATA_DIR, "/nowhere")


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["tasks", *arguments])
    command_line.run(tasks.main)
    return capsys.readouterr().out


def test_a_list_has_a_line_for_everything(monkeypatch, capsys, small):
    lines = run(monkeypatch, capsys, "list").splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    assert names == [*NAMED, "mixture", "small"]
    assert [x for x in lines if not x.startswith(" ")] == [
        "families",
        "distributions",
        "suites",
    ]
    found = {line.split()[0]: line for line in lines}
    assert found["mlp"].endswith(FAMILIES["mlp"].description)
    assert found["tfds_vit"].endswith("(its data is not here)")
    assert found["small"].endswith(
        "two cells; 2 cells, the data of 1 is not here, 1 cannot be described without "
        "it"
    )
    listed = json.loads(run(monkeypatch, capsys, "list", "--json"))
    assert list(listed) == ["families", "distributions", "suites"]
    assert listed["distributions"] == {"mixture": "a mixture"}


def test_a_suite_shows_each_cell_with_its_roles(monkeypatch, capsys, small):
    text = run(monkeypatch, capsys, "show", "small")
    first, far = text.split("\n\n")
    lines = first.splitlines()
    assert lines[0] == "trained  (trained, 7 steps)"
    assert "input 8×8×1, batch 128" in first
    assert "4,810 parameters in 4 tensors" in first and "FLOP per step (XLA)" in first
    for part in ("parameters 19.2 kB", "state of Adam 38.5 kB", "data 122 kB"):
        assert part in first
    table = [line.split("  ") for line in lines[5:]]
    cells = [[x.strip() for x in line if x.strip()] for line in table]
    assert cells[0][:3] == ["parameter", "axes", "kind"] and len(cells) == 6
    assert cells[-1] == [
        *("readout/kernel", "width -> classes", "output", "64×10", "32×10"),
        *("2", "1", "0.5"),
    ]
    # What only a disk knows, and the disk has not got, says so.
    assert "far  (dataset, 1,000 steps; stands for another)" in far
    assert "cannot be described here: /nowhere is not a folder" in far


def test_json_says_the_same(monkeypatch, capsys, small):
    first, far = json.loads(run(monkeypatch, capsys, "show", "small", "--json"))
    assert (first["name"], first["unit"], first["input"]) == (
        "trained",
        "nats",
        "8×8×1",
    )
    assert first["cost"]["parameters"] == 4810 and first["problem"] is None
    (hidden,) = [p for p in first["parameters"] if p["path"] == "hidden_0/kernel"]
    assert (hidden["kind"], hidden["shape"], hidden["count"]) == ("input", [64, 64], 1)
    assert far["cost"] is None and far["parameters"] == []
    assert "/nowhere" in far["problem"]


def test_a_distribution_shows_its_groups(monkeypatch, capsys, small):
    text = run(monkeypatch, capsys, "show", "mixture")
    assert text.startswith(
        "bowls  (weight 0.25, loss_scale 0.5…2)\n  Quadratic, Quadratic"
    )
    assert "32 parameters in 1 tensor, " in text and "loss in units" in text


def test_what_has_no_such_name_gets_one_line_and_a_suggestion(monkeypatch, capsys):
    with pytest.raises(InputError, match=r"'mulo_papers'.*meant 'mulo_paper'"):
        inventory.entries("mulo_papers")
    for arguments in (["show", "tranformer"], ["show"], ["lst"], []):
        monkeypatch.setattr("sys.argv", ["tasks", *arguments])
        with pytest.raises(SystemExit) as stop:
            command_line.run(tasks.main)
        error = capsys.readouterr().err
        assert stop.value.code == BAD_INPUT
        assert error.startswith("error: ") and error.count("\n") == 1
    assert set(SUITES) <= set(inventory.SUITES)


def test_counts_are_rounded_with_prefixes():
    assert [inventory.with_prefix(x) for x in (12, 1500, 2.5e6, 3.333e12, 4e15)] == [
        *("12 ", "1.5 k", "2.5 M", "3.33 T", "4 P")
    ]
    assert inventory.size(999) == "999 B"


@pytest.mark.slow
def test_every_task_of_every_suite_shows(monkeypatch, capsys):
    for name, suite in SUITES.items():
        found = json.loads(run(monkeypatch, capsys, "show", name, "--json"))
        assert [task["name"] for task in found] == [cell.name for cell in suite.cells]
        for task in found:
            assert (task["cost"] is None) <= (task["problem"] is not None)
            if task["cost"]:
                assert task["cost"]["flop_per_step"] > 0
