"""A task from outside of the package goes through every command once registered."""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp
import pytest

from configuration.fields import configuration
from evaluation import tune
from evaluation.results import read_rows
from experiments import command_line, evaluate, tasks, train
from experiments.presets import configs
from experiments.presets.serialization import decode, encode
from experiments.run.training_state import load_trained
from lopt.learned.learnable import LearnableSGDM
from parametrization import Axes, ParamSpec
from tasks import FunctionTask, Valley, registry
from tasks.base import BaseTask, batch_keys
from tasks.registry import Family
from tasks.suites import SUITES, Cell, Suite


@final
@configuration
class Ring(BaseTask):
    """Squared distance of ‖x‖² from 1, seen through noise."""

    dimension: int = 2
    """Number of coordinates."""

    unit = "squared radii"

    def init(self, key):
        return {"x": 2.0 + jax.random.normal(key, (self.dimension,))}

    def specs(self):
        shape = (self.dimension,)
        return {"x": ParamSpec(Axes.parse("-> fixed"), shape, shape)}

    def load_data(self):
        return ()

    def draw(self, dataset, key, split, num):
        return batch_keys(key, split, num)

    def batch(self, dataset, draw, split):
        return 0.01 * jax.random.normal(draw, (self.dimension,))

    def whole(self, dataset, split):
        return jnp.zeros(self.dimension)

    def loss(self, params, key, batch):
        return (jnp.sum((params["x"] + batch) ** 2) - 1.0) ** 2, {}


@pytest.fixture
def ring():
    registry.register(Ring, ring=Family("a ring of minima", Ring))
    yield Ring(3)
    registry.unregister("Ring", "ring")


def tiny(path):
    """The quickstart's recipe on the ring, as the command line makes it."""
    presets = configs.with_optimizer(configs.presets(), LearnableSGDM())
    flags = {
        "task.dimension": 3,
        "num-steps": 2,
        "validation.num-steps": 2,
        "estimator.num-pairs": 2,
        "estimator.chunk": 1,
        "estimator.truncation": 2,
        "estimator.lengths.minimum": 2,
        "estimator.lengths.maximum": 4,
        "run.directory": path,
    }
    words = [
        str(word) for name, value in flags.items() for word in (f"--{name}", value)
    ]
    return command_line.choose_preset(presets, "train", ["ring", *words])[1]


def test_a_registered_task_trains_is_evaluated_and_shown(
    ring, tmp_path, monkeypatch, capsys
):
    config = tiny(tmp_path / "run")
    assert config.task == ring
    path = train.train(config, "ring")
    assert load_trained(path)[0] == config

    suite = Suite("rings", "for tests", lambda: (Cell("ring", "held_out", ring, 2),))
    monkeypatch.setitem(SUITES, "rings", suite)
    grid = tune.Grid(-12, -10, max_widenings=0)
    monkeypatch.setattr(tune, "grid_for", lambda baseline: grid)
    wanted = evaluate.Evaluate(path / "artifact", "rings", None, tmp_path / "cache")
    page = evaluate.evaluate(wanted, "a command").read_text()
    assert "squared radii" in page and "Ring" in page
    rows = read_rows(path / "rows.jsonl")
    assert {(row.task, row.family, row.unit) for row in rows} == {
        ("Ring", "Ring", "squared radii")
    }
    assert {row.resolution for row in rows} == {"–"} and len(rows) > 5

    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["tasks", "show", "ring"])
    tasks.main()
    shown = capsys.readouterr().out
    assert "ring  (a ring of minima)" in shown and "loss in squared radii" in shown
    assert "2 parameters in 1 tensor" in shown


def test_what_is_not_registered_is_refused_before_it_runs():
    assert "ring" not in configs.presets()
    stored = encode(configs.presets()["valley"][1]())
    stored["task"]["kind"] = "Ring"
    with pytest.raises(ValueError, match=r"config\.task\.kind = 'Ring' is not known"):
        decode(configs.TrainConfig, stored)
    for task in (Ring(), FunctionTask(lambda key: jnp.ones(1), lambda p, k, b: p[0])):
        with pytest.raises(
            ValueError, match=rf"register\({type(task).__name__}\) adds"
        ):
            dataclasses.replace(configs.QUICKSTART, task=task)


def test_names_are_taken_once():
    with pytest.raises(ValueError, match="'Valley' is registered already"):
        registry.register(Valley)
    with pytest.raises(ValueError, match="'mlp' is registered already"):
        registry.register(Ring, mlp=Family("another", Ring))
    assert "Ring" not in registry.KINDS
    with pytest.raises(ValueError, match="int must be a dataclass"):
        registry.register(int)


def test_every_class_and_every_family_is_there():
    tasks_of_families = [family.task() for family in registry.NAMED.values()]
    assert all(type(task) in registry.TASKS for task in tasks_of_families)
    assert {
        type(task.model) for task in tasks_of_families if hasattr(task, "model")
    } == {*registry.MODELS}
