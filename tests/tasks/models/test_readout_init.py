"""Readouts that start at random weights: everywhere, alone, and of a known size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configuration import identity
from experiments import command_line
from experiments.presets import configs
from experiments.presets.serialization import decode, encode
from parametrization import ADAM_LIKE, COMPLETEP, STANDARD
from tasks import MLP, ImageClassification, LanguageModelling, Transformer
from tasks.base import initial_loss
from tasks.generation.denoising import Denoising
from tasks.modelled import ModelTask
from tasks.registry import FAMILIES
from tasks.synthetic.valley import Valley

KEY = jax.random.key(0)


def leaves(task):
    return jax.tree_util.tree_leaves_with_path(jax.jit(task.init)(KEY))


def with_readouts():
    """A small task of every class of model whose last layer is its own."""
    found = {}
    for name, family in FAMILIES.items():
        task = family.task()
        tied = getattr(getattr(task, "model", None), "readout", "untied") == "tied"
        if isinstance(task, ModelTask) and not tied:
            found.setdefault(type(task.model).__name__, (name, task))
    return [pytest.param(task, id=name) for name, task in found.values()]


@pytest.mark.parametrize("task", with_readouts())
def test_all_readouts_of_every_model_are_drawn_and_nothing_else_changes(task):
    drawn = task.with_readout_init("lecun")
    specs = jax.tree.leaves(task.specs())
    assert jax.tree.leaves(drawn.specs()) == specs
    kinds = set()
    for (path, zero), (_, one), spec in zip(
        leaves(task), leaves(drawn), specs, strict=True
    ):
        where = jax.tree_util.keystr(path)
        if spec.kind == "output":
            kinds.add(spec.kind)
            assert not np.any(zero) and np.all(one != 0), where
        else:
            np.testing.assert_array_equal(zero, one, err_msg=where)
    assert kinds == {"output"}
    assert drawn.with_readout_init("zero") == task


@pytest.mark.parametrize("rules", [STANDARD, ADAM_LIKE, COMPLETEP])
def test_logits_have_size_one_at_the_base_width_and_never_grow(rules):
    def std_of_logits(width):
        model = MLP((width,), base_width=16, rules=rules, readout_init="lecun")
        inputs = jax.random.normal(jax.random.key(1), (256, width))
        kernel = model.init(KEY, (8,), 10)["readout"]["kernel"]
        scale = rules.forward_scale(width, 16)
        # Of elements: that of the base model in μP, as each width has the same steps.
        elements = width**-0.5 if rules is STANDARD else 16**-0.5
        assert float(jnp.std(kernel)) == pytest.approx(elements, rel=0.1)
        return float(jnp.std(scale * inputs @ kernel))

    assert std_of_logits(16) == pytest.approx(1.0, rel=0.2)
    grown = std_of_logits(1024)
    shrunk = 1.0 if rules is STANDARD else (1024 / 16) ** -0.5
    assert grown == pytest.approx(shrunk, rel=0.1)


def test_parametrizations_agree_bit_for_bit_at_the_base_shape():
    model = MLP((16,), base_width=16, readout_init="lecun")
    one, other = (
        model.with_rules(rules).init(KEY, (8,), 10) for rules in (STANDARD, ADAM_LIKE)
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_what_is_stored_of_zero_readouts_is_what_it_was():
    task = ImageClassification(MLP((4,)))
    encoded = encode(task)
    assert "readout_init" not in encoded["model"]
    assert "readout_init" not in repr(task)
    drawn = task.with_readout_init("lecun")
    stored = encode(drawn)
    assert stored["model"]["readout_init"] == "lecun"
    for kept in (task, drawn):
        config = dataclasses.replace(configs.QUICKSTART, task=kept)
        assert decode(configs.TrainConfig, encode(config)).task == kept
    assert identity.digest(identity.of(task)) != identity.digest(identity.of(drawn))
    assert "readout_init" not in str(identity.of(task))
    with pytest.raises(ValueError, match="readout_init = 'ones' must be one of zero"):
        task.with_readout_init("ones")


def test_a_tied_readout_is_refused_in_one_line():
    tied = LanguageModelling(Transformer(width=32, readout="tied"))
    with pytest.raises(ValueError, match="readout_init = 'lecun' must be 'zero'") as e:
        tied.with_readout_init("lecun")
    assert "\n" not in str(e.value)
    assert tied.with_readout_init("zero") == tied


def test_losses_at_chance_are_those_of_zero_readouts():
    for task in (ImageClassification(MLP((4,))), FAMILIES["autoencoder"].task()):
        drawn = task.with_readout_init("lecun")
        assert drawn.loss_at_chance == task.loss_at_chance
        assert initial_loss(drawn) > 1.02 * task.loss_at_chance
    assert Valley().with_readout_init("lecun") == Valley()


def test_a_task_that_measures_its_loss_at_chance_does_so_from_zero(monkeypatch):
    measured = []
    for module in ("tasks.modelled", "tasks.generation.denoising"):
        monkeypatch.setattr(f"{module}.initial_loss", measured.append)
    task = ImageClassification(MLP((4,), readout_init="lecun"))
    assert ModelTask.loss_at_chance.fget(task) is None  # pyright: ignore
    assert Denoising.loss_at_chance.fget(task) is None  # pyright: ignore
    zero = dataclasses.replace(task.model, readout_init="zero")
    assert [x.model for x in measured] == [zero, zero.at_width(zero.base_width)]


def test_the_command_line_sets_it():
    arguments = ["quickstart", "--task.model.readout-init", "lecun"]
    _, config = command_line.choose_preset(configs.presets(), "train", arguments)
    want = configs.QUICKSTART.task.with_readout_init("lecun")
    assert config.task == want != configs.QUICKSTART.task
