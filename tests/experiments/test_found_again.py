"""Whatever is found again is found only under the identity that it was made with.

`READERS` lists all reads of something kept; a new one must join the list. Compiled
programs are not in it: they are the same bytes, and their key is JAX's.
"""

import ast
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configuration import folders, identity
from evaluation import folder, plan, run, suite, tune
from evaluation.results import read_rows
from experiments import evaluate
from experiments.command_line import InputError
from experiments.evaluate import Evaluate
from experiments.presets.serialization import encode
from experiments.run.run_directory import METRICS
from lopt import Artifact, SmallFC
from lopt.baselines import SGD
from metatrain import checkpoint
from parametrization import ADAM_LIKE
from tasks import MLP, FunctionTask, ImageClassification, Quadratic
from tasks.data.cache import cached
from tasks.data.embedded import Digits
from tasks.generation.pretraining import Pretraining
from tasks.suites import SUITES, Cell, Suite
from tests.experiments.stubs import falling_losses

ROOT = Path(__file__).parents[2]
ROOMS = ("configuration", "parametrization", "tasks", "lopt", "metatrain")
ROOMS += ("evaluation", "experiments")
READS = ("cached", "read_stamp", "restore", "tuning_cache.read", "_remembered")
READERS = {
    "configuration/digests.py": "the digest of a file: device, inode, size, times",
    "evaluation/suite.py": "the outcome of a job",
    "evaluation/tune.py": "a tuning",
    "experiments/evaluate.py": "a finished evaluation",
    "experiments/run/training_state.py": "a checkpoint",
    "tasks/data/embedded.py": "a dataset",
    "tasks/data/standard_library.py": "a dataset",
    "tasks/data/tfds_images.py": "a dataset",
    "tasks/data/tfds_text.py": "a dataset",
    "tasks/generation/pretraining.py": "a pretrained stage",
}


def test_these_are_all_reads_of_something_kept():
    found = set()
    for path in (p for room in ROOMS for p in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in READS or name.endswith(tuple(f".{x}" for x in READS)):
                    found.add(path.relative_to(ROOT).as_posix())
    found -= {"metatrain/checkpoint.py"}  # orbax's own
    assert found == set(READERS)


@pytest.fixture
def upgrade(monkeypatch):
    """A function after whose call everything has another version."""
    real = identity.version
    return lambda: monkeypatch.setattr(
        identity, "version", lambda name: real(name) + "1"
    )


def test_a_dataset(tmp_path, monkeypatch, upgrade):
    monkeypatch.setenv(folders.VARIABLE, str(tmp_path))
    made = []

    def make():
        made.append(1)
        return {"x": np.arange(3)}

    for _ in range(2):
        cached("things", {}, make)
    assert len(made) == 1
    upgrade()
    cached("things", {}, make)
    assert len(made) == 2


def test_a_pretrained_stage(tmp_path, monkeypatch, upgrade):
    from tasks.generation import pretraining

    monkeypatch.setenv(folders.VARIABLE, str(tmp_path))
    made = []
    arrays = {"x": np.ones(2, np.float32)}
    monkeypatch.setattr(pretraining, "_run", lambda *of: made.append(1) or arrays)

    def train():
        pretraining._train.cache_clear()
        Pretraining(3).train(Quadratic(dimension=2))

    train(), train()
    assert len(made) == 1
    was = jax.config.jax_default_prng_impl
    try:
        jax.config.update("jax_default_prng_impl", "rbg")
        train()
    finally:
        jax.config.update("jax_default_prng_impl", was)
    assert len(made) == 2
    upgrade(), train()
    assert len(made) == 3
    pretraining._train.cache_clear()


def test_a_tuning(tmp_path, monkeypatch, upgrade):
    made = []
    point = tune.Point("constant", 0.1, 1.0, 0)
    tuning = tune.Tuning(0.1, "constant", 1.0, (point,), 1, 1, 0, False, 1.0)
    monkeypatch.setattr(tune, "_tune", lambda *of: made.append(1) or tuning)
    task = ImageClassification(MLP((4,), base_width=4))

    def again():
        tune.tune(task, SGD(), 3, cache_dir=tmp_path)
        return len(made)

    assert [again(), again()] == [1, 1]
    with monkeypatch.context() as patch:
        patch.setattr(Digits, "content", lambda self: "other labels")
        assert again() == 2
    assert again() == 2
    upgrade()
    assert again() == 3


def test_a_tuning_of_what_has_no_identity_is_not_kept(tmp_path, monkeypatch):
    made = []
    point = tune.Point("constant", 0.1, 1.0, 0)
    tuning = tune.Tuning(0.1, "constant", 1.0, (point,), 1, 1, 0, False, 1.0)
    monkeypatch.setattr(tune, "_tune", lambda *of: made.append(1) or tuning)

    def unknown(self):
        raise identity.UnidentifiedError("its content is unknown")

    monkeypatch.setattr(Digits, "content", unknown)
    task = ImageClassification(MLP((4,), base_width=4))
    for _ in range(2):
        with pytest.warns(UserWarning, match="not cached: its content is unknown"):
            tune.tune(task, SGD(), 3, cache_dir=tmp_path)
    assert len(made) == 2 and not list(tmp_path.iterdir())


def test_data_that_changes_while_it_is_tuned_on_is_not_kept(tmp_path, monkeypatch):
    point = tune.Point("constant", 0.1, 1.0, 0)
    tuning = tune.Tuning(0.1, "constant", 1.0, (point,), 1, 1, 0, False, 1.0)

    def change(*of):
        monkeypatch.setattr(Digits, "content", lambda self: "later")
        return tuning

    monkeypatch.setattr(tune, "_tune", change)
    task = ImageClassification(MLP((4,), base_width=4))
    with pytest.warns(UserWarning, match="content: .*: changed while it ran"):
        tune.tune(task, SGD(), 3, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


SCALE = 1.0


def start(key):
    return jnp.ones(2)


def loss(params, key, batch):
    return SCALE * ((params - batch.mean()) ** 2).sum()


def test_what_a_loss_refers_to_may_change_within_a_process(tmp_path, monkeypatch):
    """Programs that were compiled before are not used for the new identity."""
    rows = np.arange(24.0).reshape(12, 2) / 24
    task = FunctionTask(start, loss, rows, batch_size=2, chance=2.0)
    grid = tune.Grid(-8, -6, 0)

    def figure(cache):
        return tune.tune(
            task, SGD(), 3, grid=grid, seeds=(1000,), cache_dir=cache
        ).mean_loss

    before = figure(tmp_path)
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    after = figure(tmp_path)
    assert after != before and figure(tmp_path) == after
    assert figure(tmp_path / "new") == after
    was = jax.config.jax_default_prng_impl
    try:
        jax.config.update("jax_default_prng_impl", "rbg")
        assert figure(tmp_path) != after
    finally:
        jax.config.update("jax_default_prng_impl", was)
    assert figure(tmp_path) == after


def test_other_data_than_the_tasks_own_is_not_cached_under_its_name(tmp_path):
    rows = np.arange(24.0).reshape(12, 2) / 24
    one, two = (FunctionTask(start, loss, x, batch_size=2) for x in (rows, 1 - rows))
    with pytest.raises(ValueError, match="dataset is not the task's own data"):
        tune.tune(one, SGD(), 3, dataset=two.load_data(), cache_dir=tmp_path)


def test_a_checkpoint(tmp_path):
    kept = checkpoint.Checkpoints(tmp_path)
    kept.about = {"made": "with this"}
    kept.save(1, {"x": np.ones(2)})
    seen = []
    template = {"x": jax.ShapeDtypeStruct((2,), np.float64)}
    kept.restore(template, lambda path, about: seen.append((path.name, about)))
    assert seen == [("step_00000001", {"made": "with this"})]

    def refuse(path, about):
        raise ValueError("other data")

    with pytest.raises(ValueError, match="other data"):
        kept.restore(template, refuse)
    # The experiments' check: tests/experiments/run/test_origin.py.


TASK = ImageClassification(MLP((4,), base_width=4), batch_size=8)
CELLS = (
    Cell("trained", "trained", TASK, 3),
    Cell("bowl", "held_out", Quadratic(dimension=3), 2),
)


@pytest.fixture
def artifact(tmp_path):
    lopt = SmallFC(hidden_size=3, rules=ADAM_LIKE)
    provenance = {"config": {"task": encode(TASK)}}
    made = Artifact(lopt, lopt.init(jax.random.key(0)), {"width": 4}, provenance)
    made.save(tmp_path / "run" / "artifact")
    return tmp_path / "run" / "artifact"


@pytest.fixture
def evaluated(artifact, tmp_path, monkeypatch, few_runs, capsys):
    """A function that evaluates, and returns how many runs that took, and the words."""
    ran = []

    def result(task, lopt, theta, num_steps, seeds, dataset=None):
        ran.append(type(lopt).__name__)
        return falling_losses(seeds, num_steps)

    for name in ("evaluate", "evaluate_each"):
        monkeypatch.setattr(run, name, result)
    for name, cells in (("mine", CELLS), ("other", CELLS[:1])):
        made = Suite(name, "for tests", lambda cells=cells: cells)
        monkeypatch.setitem(SUITES, name, made)

    def go(name="mine", **fields):
        ran.clear()
        given = Evaluate(artifact, name, tmp_path / "out", tmp_path / "cache")
        evaluate.evaluate(dataclasses.replace(given, **fields), "a command")
        out, error = capsys.readouterr()
        return len(ran), out + error

    return go


def test_a_finished_evaluation_is_kept_while_all_is_the_same(evaluated, tmp_path):
    first, _ = evaluated()
    assert first > 0
    assert evaluated()[0] == 0
    for name in (folder.ROWS, folder.REPORT, folder.CURVES):
        path = tmp_path / "out" / name
        before = path.read_bytes()
        path.write_bytes(before.replace(b"0.1", b"0.2") + b" ")
        num, words = evaluated()
        # Made again from the jobs that are stored.
        assert num == 0 and f"evaluated anew: {name}: " in words
        if name == folder.ROWS:
            assert path.read_bytes() == before
        path.unlink()
        assert "evaluated anew" in evaluated()[1] and path.exists()
    stamp = json.loads((tmp_path / "out" / folder.STAMP).read_text())
    rows = read_rows(tmp_path / "out" / folder.ROWS)
    assert all(len(row.provenance["identity"]) == 64 for row in rows)
    page = (tmp_path / "out" / folder.REPORT).read_text()
    for part in (identity.digest(stamp["identity"]), stamp["sha256"][folder.ROWS]):
        assert part in page


def test_other_data_versions_and_settings_are_evaluated_anew(
    evaluated, monkeypatch, upgrade
):
    first, _ = evaluated()
    with monkeypatch.context() as patch:
        patch.setattr(Digits, "content", lambda self: "f" * 64)
        num, words = evaluated()
        assert 0 < num < first and "content: " in words and "→ ffffffffffff…" in words
    # Of the first evaluation the jobs are still there.
    assert evaluated()[0] == 0
    was = jax.config.jax_default_prng_impl
    try:
        jax.config.update("jax_default_prng_impl", "rbg")
        num, words = evaluated()
    finally:
        jax.config.update("jax_default_prng_impl", was)
    assert num == first and "default_prng_impl: threefry2x32 → rbg" in words
    upgrade()
    num, words = evaluated()
    assert num == first and "versions.jax: " in words


def test_a_stopped_evaluation_keeps_its_finished_jobs(evaluated, monkeypatch, tmp_path):
    real, seen = run.evaluate, []

    def stop(*given, **named):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(run, "evaluate", stop)
        patch.setattr(suite, "WORKERS", 1)
        with pytest.raises(KeyboardInterrupt):
            evaluated()
    rest, _ = evaluated()
    whole, _ = evaluated(out_dir=tmp_path / "whole", cache_dir=tmp_path / "new")
    assert 0 < rest < whole
    names = ("out", "whole")
    rows = [(tmp_path / name / folder.ROWS).read_bytes() for name in names]
    assert rows[0] == rows[1]


def test_another_artifact_reuses_the_baselines(evaluated, artifact, tmp_path):
    evaluated()
    lopt = SmallFC(hidden_size=3, rules=ADAM_LIKE)
    other = Artifact(lopt, lopt.init(jax.random.key(1)), {"width": 4}, {})
    other.save(tmp_path / "other")
    num, words = evaluated(artifact=tmp_path / "other")
    assert num == len(CELLS) and "artifact.theta: " in words


def test_more_optimizers_add_jobs_and_stay(evaluated, tmp_path):
    first, _ = evaluated()
    num, _ = evaluated(also=("muon",))
    assert 0 < num < first
    num, words = evaluated()
    assert num == 0 and "is up to date" in words and "Muon, tuned" in words
    assert "Muon, tuned" in (tmp_path / "out" / folder.REPORT).read_text()


def test_a_finished_report_stays_so_while_an_optimizer_is_added(evaluated, monkeypatch):
    evaluated()

    def stop(*given, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        for name in ("evaluate", "evaluate_each"):
            patch.setattr(run, name, stop)
        patch.setattr(suite, "WORKERS", 1)
        with pytest.raises(KeyboardInterrupt):
            evaluated(also=("muon",))
    num, words = evaluated()
    assert num == 0 and "is up to date" in words and "Muon" not in words


def test_a_setting_of_a_with_block_is_refused(evaluated):
    with (
        jax.default_prng_impl("rbg"),
        pytest.raises(InputError, match=r"rbg → threefry2x32 in a thread: a setting"),
    ):
        evaluated()


def test_kept_jobs_are_told_and_counted(evaluated):
    _, words = evaluated()
    assert "[1/7] " in words and "[7/7] " in words and "(stored)" not in words
    _, words = evaluated(also=("muon",))
    assert words.count("(stored)") == 7 and "[9/9] " in words


def test_a_folder_belongs_to_one_suite(evaluated, tmp_path):
    evaluated()
    before = (tmp_path / "out" / folder.REPORT).read_bytes()
    with pytest.raises(InputError, match=r"suite mine: choose .*--out-dir .*out/other"):
        evaluated("other")
    assert (tmp_path / "out" / folder.REPORT).read_bytes() == before


def test_a_folder_in_use_is_refused(evaluated, tmp_path):
    with (
        folder.held(tmp_path / "out"),
        pytest.raises(InputError, match="out: is in use by process"),
    ):
        evaluated()


def test_data_that_changes_during_an_evaluation_is_noticed(
    evaluated, monkeypatch, tmp_path
):
    real = run.evaluate

    def change(*given, **named):
        monkeypatch.setattr(Digits, "content", lambda self: "f" * 64)
        return real(*given, **named)

    monkeypatch.setattr(run, "evaluate", change)
    with pytest.raises(InputError, match=r"content: .*changed during the evaluation"):
        evaluated()
    assert not (tmp_path / "out" / folder.REPORT).exists()


def test_the_curve_of_another_run_is_not_shown(evaluated, artifact):
    config = {"task": encode(TASK), "num_steps": 7}
    (artifact.parent / "config.json").write_text(json.dumps(config))
    (artifact.parent / METRICS).write_text('{"step": 1, "meta_loss": 0.5}\n')
    _, words = evaluated()
    assert "is not the run that made" in words and "its curve is left out" in words


def test_optimizers_of_a_plan_have_identities():
    found = {identity.digest(identity.of(x)) for x in plan.BASELINES.values()}
    assert len(found) == len(plan.BASELINES)
