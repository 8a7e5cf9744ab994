"""Any suite from the command line: what runs, what is skipped, what is done already."""

import dataclasses

import jax
import pytest

from configuration import identity
from evaluation import plan, run
from evaluation.identity import Evaluation
from evaluation.results import read_rows
from experiments import command_line, evaluate
from experiments.command_line import InputError
from experiments.evaluate import Evaluate
from experiments.presets.serialization import encode
from lopt import Artifact, SmallFC
from parametrization import ADAM_LIKE
from tasks import MLP, ImageClassification, Quadratic, TFDSImages
from tasks.suites import LADDER_CPU, SUITES, Cell, Suite
from tests.experiments.stubs import falling_losses

TASK = ImageClassification(MLP((4,), base_width=4), batch_size=8)
ABSENT = dataclasses.replace(TASK, data=TFDSImages("no_such_images"))
CELLS = (
    Cell("trained", "trained", TASK, 3),
    Cell("bowl", "held_out", Quadratic(dimension=3), 2, "stands for a network"),
    Cell("absent", "dataset", ABSENT, 3),
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    lopt = SmallFC(hidden_size=3, rules=ADAM_LIKE)
    folder = tmp_path_factory.mktemp("released") / "artifact"
    provenance = {"config": {"task": encode(TASK)}}
    made = Artifact(lopt, lopt.init(jax.random.key(0)), {"width": 4}, provenance)
    made.save(folder)
    return folder


@pytest.fixture
def stubbed(monkeypatch, few_runs):
    """Runs without training: the loss is the seed's, and falls."""

    def evaluate_each(task, lopt, theta, num_steps, seeds, dataset=None):
        return falling_losses(seeds, num_steps)

    monkeypatch.setattr(run, "evaluate", evaluate_each)
    monkeypatch.setattr(run, "evaluate_each", evaluate_each)


def arguments(artifact, name, tmp_path):
    return Evaluate(artifact, name, tmp_path, tmp_path / "cache")


def test_a_suite_of_different_tasks_with_a_cell_that_cannot_run(
    monkeypatch, capsys, tmp_path, artifact, stubbed
):
    mine = Suite("mine", "for tests", lambda: CELLS, aggregate=True)
    monkeypatch.setitem(SUITES, "mine", mine)
    report = evaluate.evaluate(arguments(artifact, "mine", tmp_path), "a command")
    out, error = capsys.readouterr()
    assert "skipped: absent: " in error and "warning" not in error
    assert "SKIPPED: absent: " in out
    assert "Losses in nats, in units of the height (bowl); mean loss" in out
    assert "1 of 3 cells were skipped and are not in these means" in out
    page = report.read_text()
    for part in (
        "Skipped cells.",
        "no_such_images",
        "stands for a network",
        "Overview",
    ):
        assert part in page
    rows = read_rows(tmp_path / "rows.jsonl")
    runs = {(row.cell, row.optimizer, row.steps) for row in rows}
    assert runs == {
        *(("trained", name, 3) for name in (plan.LEARNED, plan.ADAM)),
        *(("trained", name, 3) for name in (plan.ADAMW, plan.SGDM)),
        *(("bowl", name, 2) for name in (plan.LEARNED, plan.ADAM, plan.MU_ADAM)),
        *(("trained", plan.ADAM_LONG, 12), ("bowl", plan.ADAM_LONG, 8)),
    }
    # Done work is not repeated, and still says what it lacks.
    evaluate.evaluate(arguments(artifact, "mine", tmp_path), "a command")
    again, _ = capsys.readouterr()
    assert "is up to date" in again and "SKIPPED: absent: " in again
    # Another set of cells that can run is another evaluation.
    whole, _ = plan.runnable(mine, Artifact.load(artifact))
    fewer = Suite("mine", "", lambda: CELLS[:1], aggregate=True)
    plain = dataclasses.replace(whole, aggregate=False)
    loaded = Artifact.load(artifact)
    found = [Evaluation(x, loaded, (0,)).identity for x in (whole, fewer, plain)]
    assert len(set(map(identity.digest, found))) == 3


@pytest.mark.slow
def test_more_baselines_are_tuned_in_every_cell(
    monkeypatch, tmp_path, artifact, stubbed
):
    mine = Suite("mine", "for tests", lambda: CELLS[:2])
    monkeypatch.setitem(SUITES, "mine", mine)
    plain = arguments(artifact, "mine", tmp_path)
    more = dataclasses.replace(plain, also=("prodigy", "muon"))
    evaluate.evaluate(more, "a command")
    rows = read_rows(tmp_path / "rows.jsonl")
    added = {(r.cell, r.optimizer) for r in rows} - {
        (cell, name) for cell, name, _ in plan.expected_runs(mine)
    }
    names = ("Muon, tuned", "Prodigy, tuned")
    assert added == {(cell.name, name) for cell in CELLS[:2] for name in names}
    assert all(r.provenance["tuned_at"] == r.cell for r in rows if r.optimizer in names)
    page = (tmp_path / "report.html").read_text()
    assert all(name in page for name in names)
    with pytest.raises(InputError, match="--also 'moun': known are nadamw, lion, muon"):
        evaluate.evaluate(dataclasses.replace(plain, also=("moun",)), "")


def test_where_nothing_can_run_or_the_name_is_wrong(monkeypatch, tmp_path, artifact):
    monkeypatch.setitem(SUITES, "far", Suite("far", "", lambda: CELLS[2:]))
    with pytest.raises(
        InputError, match=r"no cell of far can run here: absent: .*no_s"
    ):
        evaluate.evaluate(arguments(artifact, "far", tmp_path), "")
    assert not (tmp_path / "rows.jsonl").exists()
    with pytest.raises(
        InputError, match=r"'mulopaper'.*perhaps you meant 'mulo_paper'"
    ):
        evaluate.evaluate(arguments(artifact, "mulopaper", tmp_path), "")


def test_an_artifact_from_elsewhere_is_told_from_the_trained_cell(artifact):
    made = Artifact.load(artifact)
    given = Suite("x", "", lambda: CELLS)
    assert evaluate._mismatch(made, given) is None
    wide = (dataclasses.replace(CELLS[0], task=TASK.at_width(8)),)
    assert "read 'trained' as 'reference'" in evaluate._mismatch(
        made, Suite("x", "", lambda: wide)
    )
    lost = evaluate._mismatch(made, given, [plan.Skipped("trained", "no data")])
    assert "no learning rate is transferred" in lost
    assert evaluate._mismatch(made, Suite("x", "", lambda: CELLS[1:])) is None


SOME = ("trained", "resolution 4", "family autoencoder", "text transformer")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_cells_of_every_kind_of_task_run_from_end_to_end(
    monkeypatch, tmp_path, artifact, few_runs
):
    cells = tuple(
        dataclasses.replace(cell, num_steps=8)
        for cell in LADDER_CPU.cells
        if cell.name in SOME
    )
    short = Suite("short", "", lambda: cells)
    monkeypatch.setitem(SUITES, "short", short)
    evaluate.evaluate(arguments(artifact, "short", tmp_path), "")
    rows = read_rows(tmp_path / "rows.jsonl")
    assert {row.cell for row in rows} == set(SOME)
    assert not any(row.diverged for row in rows)
    assert {r.unit for r in rows} == {"nats", "nats per token", "squared deviations"}
    # Every optimizer begins at chance, in every unit.
    for row in rows:
        assert row.curve[0] == pytest.approx(row.loss_at_chance, rel=0.2), row.cell


def test_a_fleet_of_parts_gives_the_rows_of_one_process(
    monkeypatch, capsys, tmp_path, artifact, stubbed
):
    mine = Suite("mine", "for tests", lambda: CELLS[:2], aggregate=True)
    monkeypatch.setitem(SUITES, "mine", mine)
    alone = arguments(artifact, "mine", tmp_path / "alone")
    evaluate.evaluate(alone, "a command")
    place = {"fleet": "slurm", "workers": 7, "slurm": ("timeout_min=9",)}
    one = dataclasses.replace(alone, out_dir=tmp_path / "one", also=("muon",), **place)
    batches = []

    def run_jobs(jobs, folder, *place):
        """Runs the jobs of a fleet here, by their command lines."""
        assert place == ("slurm", 7, ("timeout_min=9",))
        batches.append([job.name for job in jobs])
        for job in jobs:
            assert job.command[0] == "experiments.evaluate"
            words = [*job.command[1:]]
            given = command_line.parse(Evaluate, "evaluate", words)
            if given.part is None:
                evaluate.evaluate(given, "a command")
            else:
                evaluate.run_part(given)
        return 0

    monkeypatch.setattr(evaluate, "run_jobs", run_jobs)
    evaluate.evaluate(one, "a command")
    # The tuning that others reuse comes first and alone.
    assert batches[0] == ["trained_Adam,_tuned"] and batches[0][0] in batches[1]
    assert len(batches[1]) == len(set(batches[1])) == 9
    assert batches[2:] == [["report"]]

    rows, expected = (read_rows(x.out_dir / "rows.jsonl") for x in (one, alone))
    muon = [row for row in rows if row.optimizer.startswith("Muon")]
    assert {row.cell for row in muon} == {"trained", "bowl"}
    assert list(map(repr, expected)) == [repr(row) for row in rows if row not in muon]

    # A part that is there is not run again; of a fleet that fails no report is told.
    (tmp_path / "one" / "evaluation.json").unlink()
    monkeypatch.setattr(run, "evaluate_each", None)
    monkeypatch.setattr(run, "evaluate", None)
    evaluate.evaluate(one, "a command")
    assert "Muon" in capsys.readouterr().out
    monkeypatch.setattr(evaluate, "run_jobs", lambda *arguments: 1)
    with pytest.raises(SystemExit, match="1"):
        evaluate.evaluate(one, "a command")
    assert "Muon" not in capsys.readouterr().out
    wrong = dataclasses.replace(one, part="bowl/SGD, tuned")
    with pytest.raises(InputError, match="--part 'bowl/SGD, tuned' must be one of tra"):
        evaluate.run_part(wrong)
