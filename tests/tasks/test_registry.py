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
from lopt.baselines import Adam
from lopt.learned.learnable import LearnableSGDM
from lopt.learned.small_fc import SmallFC
from metatrain.estimators.pes import PES
from parametrization import Axes, ParamSpec
from tasks import (
    MLP,
    Bytes,
    Digits,
    FunctionTask,
    ImageClassification,
    LanguageModelling,
    StandardLibrary,
    Transformer,
    Valley,
    registry,
)
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


def test_two_classes_of_one_name_are_refused():
    other = dataclasses.make_dataclass("Ring", [], frozen=True)
    with pytest.raises(ValueError, match="share a name"):
        registry.register(Ring, other)
    assert "Ring" not in registry.KINDS
    with pytest.raises(ValueError, match="must be a dataclass"):
        registry.register(Ring())


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("mulo_s_digits", "a distribution"),
        ("ladder_cpu", "a suite"),
        ("quickstart", "a suite"),
    ],
)
def test_names_of_distributions_and_suites_are_taken(name, owner):
    with pytest.raises(ValueError, match=f"'{name}' is the name of {owner}: choose"):
        registry.register(Ring, **{name: Family("a ring", Ring)})
    assert "Ring" not in registry.KINDS and name not in registry.NAMED


@pytest.mark.parametrize("kind", [SmallFC, PES, Adam])
def test_names_of_other_components_are_taken(kind):
    namesake = dataclasses.make_dataclass(kind.__name__, [], frozen=True)
    message = f"'{kind.__name__}' is the name of another component: choose"
    with pytest.raises(ValueError, match=message):
        registry.register(namesake)
    assert kind.__name__ not in registry.KINDS


def test_a_name_that_was_registered_before_is_not_reserved(ring):
    with pytest.raises(ValueError, match="'Ring' is the name of a ladder: choose"):
        registry.reserve("a ladder", ["Ring"])
    registry.unregister("Ring")
    registry.register(Ring)


@pytest.mark.parametrize("name", ["quickstart", "mulo_s_digits"])
def test_no_family_replaces_another_preset(monkeypatch, name):
    monkeypatch.setitem(registry.NAMED, name, Family("a ring", Ring))
    with pytest.raises(ValueError, match=f"family '{name}' has the name of a preset"):
        configs.presets()


@pytest.mark.parametrize("name", ["MLP", "mlp", "Ringlet"])
def test_only_what_was_registered_is_removed(ring, name):
    kinds, named = dict(registry.KINDS), dict(registry.NAMED)
    with pytest.raises(ValueError, match=f"'{name}' cannot be removed"):
        registry.unregister("Ring", name)
    assert (kinds, named) == (registry.KINDS, registry.NAMED)


def test_a_class_of_a_family_s_name_is_removed_alone():
    registry.register(dataclasses.make_dataclass("mlp", [], frozen=True))
    registry.unregister("mlp")
    assert "mlp" not in registry.KINDS and "mlp" in registry.NAMED


@configuration
class OwnMLP(MLP):
    """A model that nobody registered."""


@configuration
class OwnDigits(Digits):
    """A source that nobody registered."""


@configuration
class OwnBytes(Bytes):
    """A tokenizer that nobody registered."""


@pytest.mark.parametrize(
    ("task", "where"),
    [
        (ImageClassification(OwnMLP((8,))), r"task\.model = OwnMLP"),
        (ImageClassification(MLP((8,)), OwnDigits()), r"task\.data = OwnDigits"),
        (
            LanguageModelling(Transformer(), StandardLibrary(tokenizer=OwnBytes())),
            r"task\.data\.tokenizer = OwnBytes",
        ),
    ],
)
def test_an_unregistered_class_inside_a_task_is_refused(task, where):
    with pytest.raises(ValueError, match=where) as error:
        dataclasses.replace(configs.QUICKSTART, task=task)
    assert "tasks.registry.register(Own" in str(error.value)
    assert "\n" not in str(error.value)


@configuration
class Rings(BaseTask):
    """A task that holds configurations, one of them in a tuple."""

    first: Ring = Ring()
    more: tuple[BaseTask, ...] = ()
    maybe: tuple[Ring, ...] | None = None

    init = Ring.init
    specs = Ring.specs
    load_data = Ring.load_data
    draw = Ring.draw
    batch = Ring.batch
    whole = Ring.whole
    loss = Ring.loss


def test_a_field_of_one_class_needs_no_registration():
    registry.register(Rings)
    try:
        registry.check_registered(Rings(maybe=(Ring(),)))
        stored = registry.encoding.encode(Rings(maybe=(Ring(3),)), registry.KINDS)
        read = registry.encoding.decode_kind(stored, "it", registry.KINDS)
        assert read == Rings(maybe=(Ring(3),))
        with pytest.raises(ValueError, match=r"task\.more\[1\] = Ring"):
            registry.check_registered(Rings(more=(Valley(), Ring())))
    finally:
        registry.unregister("Rings")


def test_a_part_is_refused_also_where_its_annotation_does_not_resolve(ring):
    @dataclasses.dataclass(frozen=True)
    class Holder(Rings):
        inner: "Hidden" = None  # noqa: F821

    registry.register(Holder)
    try:
        with pytest.raises(ValueError, match=r"task\.inner = OwnMLP"):
            registry.check_registered(Holder(inner=OwnMLP((8,))))
    finally:
        registry.unregister("Holder")


def test_every_class_and_every_family_is_there():
    tasks_of_families = [family.task() for family in registry.NAMED.values()]
    assert all(type(task) in registry.TASKS for task in tasks_of_families)
    for task in tasks_of_families:
        registry.check_registered(task)
    assert {
        type(task.model) for task in tasks_of_families if hasattr(task, "model")
    } == {*registry.MODELS}
