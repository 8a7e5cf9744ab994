"""Every optimizer that there is goes through an artifact and changes its rules."""

import dataclasses
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lopt
from configuration import encoding
from lopt import SGD, Adam, Artifact, SmallFC
from lopt.base import LearnedOptimizer
from lopt.baselines.base import RateTuned
from lopt.interchange.peer import PeerLearnedOptimizer
from lopt.learned.celo import Celo
from lopt.learned.celo2 import Celo2
from lopt.learned.celo_adam import CeloAdam
from lopt.learned.elo import ELO
from lopt.learned.learnable import LearnableAdam, LearnableSGD, LearnableSGDM
from lopt.learned.mlp_lopt import MLPLOpt
from lopt.learned.nn_adam import NNAdam
from lopt.learned.nominal import Nominal
from lopt.learned.rnn_mlp import RNNMLP
from lopt.learned.velo import VeLO
from lopt.release import registry
from lopt.schedules import WarmupCosine
from lopt.wrappers import (
    AccumulatedGradients,
    Bfloat16Features,
    ClippedGradients,
    RoleFallback,
    ScheduledSteps,
    StochasticBfloat16,
    WeightDecay,
)
from lopt.wrappers.base import Wrapper
from parametrization import ADAM_LIKE, SGD_LIKE, STANDARD

SMALL = SmallFC(hidden_size=3, hidden_layers=1, rules=ADAM_LIKE)
CASES = (
    SMALL,
    MLPLOpt(hidden_size=3, momentum_decays=(0.5, 0.9)),
    LearnableSGD(0.3, SGD_LIKE),
    LearnableSGDM(initial_momentum=0.5),
    LearnableAdam(initial_eps=1e-5),
    NNAdam(hidden_size=3),
    RNNMLP(hidden_size=3, lstm_size=2, decays=(0.5,)),
    VeLO(lstm_hidden_size=2, param_inits=3, bugged_losses=True),
    Celo(lstm_hidden_size=2, param_scale_mult=False, phase="rule"),
    CeloAdam(lstm_hidden_size=2, b1=0.5),
    Celo2(clip_norm=0.5, adam_decays=(0.8, 0.85), schedule="cosine"),
    ELO(hidden_size=2),
    Nominal(SMALL, estimator="adam", rules=ADAM_LIKE),
    AccumulatedGradients(
        ClippedGradients(
            ScheduledSteps(
                WeightDecay(
                    RoleFallback(SMALL, SGD(momentum=0.5), ("vector",)),
                    0.1,
                    ("hidden",),
                ),
                0.5,
                WarmupCosine(0.1),
            ),
            2.0,
        ),
        3,
    ),
    StochasticBfloat16(Bfloat16Features(MLPLOpt(hidden_size=2)), seed=3),
)
NAMES = [type(case).__name__ for case in CASES]


@pytest.mark.parametrize("optimizer", CASES, ids=NAMES)
def test_an_artifact_keeps_it_bit_for_bit(optimizer, tmp_path):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(optimizer.init, jax.random.key(0))
    theta = jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), shapes)
    Artifact(optimizer, theta, {"width": 8}).save(tmp_path / "artifact")
    again = Artifact.load(tmp_path / "artifact")
    assert again.optimizer == optimizer and hash(again.optimizer) == hash(optimizer)
    assert jax.tree.structure(again.theta) == jax.tree.structure(theta)
    for x, y in zip(*map(jax.tree.leaves, (again.theta, theta)), strict=True):
        assert x.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    assert PeerLearnedOptimizer(again.optimizer).name.startswith(
        type(optimizer).__name__
    )


def test_nothing_that_is_an_optimizer_is_left_out():
    found = set()
    for module in pkgutil.walk_packages(lopt.__path__, "lopt."):
        for kind in vars(importlib.import_module(module.name)).values():
            is_class = inspect.isclass(kind) and kind.__module__ == module.name
            if is_class and issubclass(kind, LearnedOptimizer):
                found.add(kind)
    assert found - {LearnedOptimizer, Wrapper, RateTuned} == {
        kind for kind in registry.KINDS.values() if hasattr(kind, "as_optax")
    }
    written = {
        kind
        for case in CASES
        for kind in kinds_in(encoding.encode(case, registry.KINDS))
    }
    assert {kind.__name__ for kind in registry.LEARNED} <= written


def kinds_in(data):
    if isinstance(data, dict):
        inner = [kind for value in data.values() for kind in kinds_in(value)]
        return [data["kind"], *inner] if "kind" in data else inner
    return []


def test_a_parametrization_reaches_all_that_is_wrapped():
    for case in CASES:
        for rules in (STANDARD, ADAM_LIKE):
            changed = registry.with_rules(case, rules)
            sgd_like = isinstance(case, registry.SGD_LIKE)
            assert changed.rules is (rules.for_sgd if sgd_like else rules)
            back = registry.with_rules(changed, ADAM_LIKE)
            assert back == registry.with_rules(case, ADAM_LIKE)
    wrapped = RoleFallback(WeightDecay(SMALL), SGD())
    changed = registry.with_rules(wrapped, ADAM_LIKE)
    assert (changed.inner.inner.rules, changed.fallback.rules) == (ADAM_LIKE, SGD_LIKE)
    nominal = registry.with_rules(Nominal(SMALL, rules=ADAM_LIKE), STANDARD)
    assert nominal.inner.rules is nominal.rules is STANDARD
    assert registry.with_rules(RoleFallback(SMALL, Adam()), STANDARD).fallback == Adam()


def test_what_trained_weights_do_not_determine_is_named_by_each_class():
    for case in CASES:
        names = {field.name for field in dataclasses.fields(case)}
        unstored = set(getattr(case, "NOT_STORED", ()))
        # NNAdam's output_scale is a factor on every step.
        initial = {"output_scale"} if not isinstance(case, NNAdam) else set()
        assert unstored == names & {"execution", *initial, *unstored}
        assert registry.as_trained(registry.as_trained(case)) == registry.as_trained(
            case
        )
    wrapped = [
        WeightDecay(dataclasses.replace(SMALL, output_scale=scale), 0.1)
        for scale in (0.0, 0.5)
    ]
    assert registry.as_trained(wrapped[0]) == registry.as_trained(wrapped[1])
    other = WeightDecay(dataclasses.replace(SMALL, step_mult=0.5), 0.1)
    assert registry.as_trained(other) != registry.as_trained(wrapped[0])
