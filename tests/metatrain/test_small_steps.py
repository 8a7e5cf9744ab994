"""Rules in units of a tensor's own size say what they hardly move."""

import warnings

import jax
import jax.numpy as jnp
import pytest

from evaluation import tune as tuning
from lopt import Adafactor, Adam, Celo, CeloAdam, SmallFC, VeLO
from lopt.base import follows_size
from lopt.wrappers import ClippedGradients, RoleFallback
from metatrain.small_steps import small_steps_warning, stuck_tensors
from parametrization import ADAM_LIKE
from tasks import MLP, ImageClassification, LanguageModelling, Transformer
from tasks.suites import CELO17

TASK = ImageClassification(MLP((8,), base_width=8))
CELO = Celo(lstm_hidden_size=2)


def test_only_steps_in_units_of_a_tensor_count():
    wrapped = ClippedGradients(RoleFallback(CELO, Adam()), 1.0)
    for optimizer in (CELO, VeLO(2, param_inits=2), Adafactor(), wrapped):
        assert follows_size(optimizer)
        assert stuck_tensors(TASK, optimizer) == ("readout/kernel",)
    fixed = Celo(lstm_hidden_size=2, param_scale_mult=False)
    in_mup = Celo(lstm_hidden_size=2, rules=ADAM_LIKE)
    for optimizer in (fixed, in_mup, CeloAdam(2), SmallFC(), Adam()):
        assert not follows_size(optimizer)
        assert stuck_tensors(TASK, optimizer) == ()


def test_such_a_tensor_hardly_moves_and_a_drawn_one_does():
    celo = Celo(lstm_hidden_size=2, phase="rule", step_mult=0.1)
    moved = {}
    for start in ("zero", "lecun"):
        task = TASK.with_readout_init(start)
        params = task.init(jax.random.key(0))
        rule = celo.as_optax(celo.init(jax.random.key(1)), task.specs(), 10)
        grads = jax.tree.map(jnp.ones_like, params)
        updates, _ = rule.update(grads, rule.init(params), params, loss=jnp.ones([]))
        moved[start] = float(jnp.abs(updates["readout"]["kernel"]).max())
    assert 0 < moved["zero"] < 1e-3 * moved["lecun"]


def test_the_warning_is_one_line_with_the_remedy_and_is_gone_once_it_is_taken():
    text = small_steps_warning(CELO, {"digits": TASK, "wide": TASK.at_width(16)})
    assert text == (
        "Celo's steps scale with a tensor's own size, and 1 tensor starts at zero "
        "(readout/kernel; in digits, wide): it hardly moves; use readout_init='lecun'"
    )
    drawn = TASK.with_readout_init("lecun")
    assert small_steps_warning(CELO, {"digits": drawn}) is None
    assert small_steps_warning(SmallFC(), {"digits": TASK}) is None


def test_what_starts_at_random_by_itself_is_not_named():
    tied = LanguageModelling(
        Transformer(width=8, head_dim=4, readout="tied"), length=4, batch_size=2
    )
    assert stuck_tensors(tied, CELO) == ()


def test_tuning_warns_of_its_baseline(monkeypatch):
    monkeypatch.setattr(tuning, "_tune", lambda *of: None)
    with pytest.warns(UserWarning, match="Adafactor's steps scale .*readout/kernel"):
        tuning.tune(TASK, Adafactor(), 3)
    with warnings.catch_warnings(action="error"):
        tuning.tune(TASK, Adam(), 3)
        tuning.tune(TASK.with_readout_init("lecun"), Adafactor(), 3)


def test_the_tasks_of_celo_have_readouts_that_it_moves():
    for cell in CELO17.cells:
        assert cell.task.model.readout_init == "lecun"
    # And so for every optimizer, in every parametrization.
    cell = CELO17.cells[0]
    assert cell.task.with_rules(ADAM_LIKE).model.readout_init == "lecun"
