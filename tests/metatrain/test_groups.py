"""Groups of tasks: how their gradients are averaged, and what is compiled when."""

import contextlib
import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt.learned.small_fc import SmallFC
from metatrain.estimators.pes import PES
from metatrain.inner_training import InnerTraining
from metatrain.objective import Objective
from metatrain.outer import MetaTraining, ProblemGroup
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.truncation import EpisodeLengths
from parametrization.rules import ADAM_LIKE
from tasks.classification import ImageClassification
from tasks.groups import Group, TaskDistribution, over_widths
from tasks.models.mlp import MLP
from tasks.regression import RandomTeacher
from tasks.variation import UNVARYING, Variation
from tests.metatrain.toy import estimated

TASK = ImageClassification(MLP(widths=(4,), base_width=4), batch_size=8)
TEACHER = RandomTeacher(MLP((3,), base_width=3), teacher=MLP((4,)), batch_size=8)
LOPT = SmallFC(hidden_size=3, step_mult=0.01, rules=ADAM_LIKE)
ES = PES(
    num_pairs=3, chunk=3, truncation=4, lengths=EpisodeLengths(4, 8, staggered=False)
)
VARIED = Variation(
    "tensor",
    loss_scale=(0.1, 10.0),
    init_scale=(0.5, 2.0),
    label_noise=(0.0, 0.3),
    batch_share=0.25,
)


def problem(task, variation=UNVARYING):
    return InnerTraining(task, LOPT, Objective(), variation)


def training(*groups, **fields):
    return MetaTraining(groups, LOPT, ES, OuterOptimizer(), num_steps=50, **fields)


@pytest.fixture(scope="module")
def mixed():
    """Two groups, the first with everything varied, weights 1 and 3."""
    return training(
        ProblemGroup("digits", problem(TASK, VARIED), 1.0),
        ProblemGroup("teacher", problem(TEACHER), 3.0),
    )


@pytest.fixture(scope="module")
def datasets():
    return {0: TASK.load_data(), 1: TEACHER.load_data()}


@contextlib.contextmanager
def compilations():
    """Counts the programs that are compiled meanwhile."""
    counted = []

    def listen(event, duration, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            counted.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counted
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
def test_the_gradient_is_the_mean_by_weight_and_so_are_the_metrics(mixed, datasets):
    state = mixed.init()
    estimates = [
        jax.jit(
            lambda theta, pairs, data, key, group=group: estimated(
                ES, group.problem, theta, pairs, data, key
            )[0]
        )(state.theta, state.estimator_states[i], datasets[i], mixed.group_key(i, 0))
        for i, group in enumerate(mixed.groups)
    ]
    _, metrics = mixed.step(state, datasets)
    mean = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, *(e.grad for e in estimates))
    assert float(metrics["grad_norm"]) == pytest.approx(
        float(optax.tree.norm(mean)), rel=1e-4
    )
    losses = [float(estimate.loss) for estimate in estimates]
    assert losses[0] != losses[1]
    want = 0.25 * losses[0] + 0.75 * losses[1]
    assert float(metrics["meta_loss"]) == pytest.approx(want, rel=1e-5)
    for name, loss in zip(("digits", "teacher"), losses, strict=True):
        assert float(metrics[f"meta_loss/{name}"]) == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_a_variant_is_one_for_a_pair_and_for_an_episode(mixed, datasets):
    state = mixed.init()
    seen, starts = [], []
    for step in range(5):
        state, _ = mixed.step(state, datasets)
        pairs = state.estimator_states[0]
        seen.append(np.asarray(pairs.variant.loss_scale))
        starts.append(np.asarray(pairs.episodes.step[:, 0]) == ES.truncation)
        assert seen[-1].shape == (3,)  # no axis of members
        assert len(set(seen[-1].tolist())) == 3, f"step {step}"
    for before, now, began in zip(seen, seen[1:], starts[1:], strict=False):
        np.testing.assert_array_equal(before != now, began)
    assert np.concatenate(starts[1:]).any() and not np.concatenate(starts[1:]).all()


def test_nothing_is_compiled_for_another_sample(mixed, datasets):
    state = mixed.init()
    state, _ = mixed.step(state, datasets)
    with compilations() as counted:
        for _ in range(6):
            state, metrics = mixed.step(state, datasets)
    assert counted == []
    assert np.isfinite(float(metrics["grad_norm"]))


@pytest.mark.slow
def test_another_group_costs_one_compilation(mixed, datasets):
    one = dataclasses.replace(mixed, each_step="one")
    # Which group is drawn does not matter here: each is run once, alone.
    state = one.init()
    counts = []
    for index in (0, 1):
        with compilations() as counted:
            state, metrics = one.step(state, {index: datasets[index]})
            jax.block_until_ready(metrics)
        counts.append(len(counted))
    # The first step also compiles what moves θ, and a few trivial programs.
    assert counts[1] == 1 and counts[0] > 1
    with compilations() as counted:
        one.step(state, {0: datasets[0]})
    assert counted == []


def test_one_group_is_drawn_in_proportion_to_its_weight():
    groups = [ProblemGroup(n, problem(TASK), w) for n, w in (("a", 1), ("b", 3))]
    drawing = training(*groups, each_step="one")
    drawn = [drawing.groups_at(step) for step in range(4000)]
    assert all(len(one) == 1 for one in drawn)
    share = Counter(drawn)[(1,)] / 4000
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 4000)
    assert drawn == [drawing.groups_at(step) for step in range(4000)]
    other = dataclasses.replace(drawing, seed=1)
    assert drawn != [other.groups_at(step) for step in range(4000)]
    assert training(*groups).groups_at(7) == (0, 1)
    assert drawing.inner_steps_per_step * 2 == training(*groups).inner_steps_per_step


@pytest.mark.slow
def test_a_group_that_is_not_drawn_stays_where_it_is(mixed, datasets):
    one = dataclasses.replace(mixed, each_step="one")
    state = one.init()
    before = jax.device_get(state.estimator_states[1])
    state, metrics = one.step(state, {0: datasets[0]})
    same = jax.tree.map(np.array_equal, before, state.estimator_states[1])
    assert all(jax.tree.leaves(same))
    assert "meta_loss/digits" in metrics and "meta_loss/teacher" not in metrics


def test_a_group_does_not_disturb_the_randomness_of_another(mixed, datasets):
    reversed_groups = dataclasses.replace(mixed, groups=mixed.groups[::-1])
    key = jax.random.key_data(mixed.group_key(0, 5))
    other = jax.random.key_data(reversed_groups.group_key(1, 5))
    np.testing.assert_array_equal(key, other)


def test_a_random_width_is_a_group_for_each():
    groups = over_widths(TASK, (4, 8))
    assert [group.name for group in groups] == ["width_4", "width_8"]
    assert [group.task.width for group in groups] == [4, 8]
    assert TaskDistribution(groups).groups == groups
    single = TaskDistribution.single(TASK, VARIED)
    assert [g.task for g in single.groups] == [TASK]
    assert single.groups[0].variation == VARIED


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaskDistribution(()), "at least one"),
        (
            lambda: TaskDistribution((Group("a", TASK),) * 2),
            "'a' stands more than once",
        ),
        (
            lambda: TaskDistribution((Group("a", TASK),), each_step="two"),
            "each_step = 'two'",
        ),
        (lambda: Group("", TASK), "name = ''"),
        (lambda: Group("a/b", TASK), "without a slash"),
        (lambda: Group("a", TASK, 0.0), "weight = 0.0"),
        (lambda: Group("a", TASK, float("nan")), "weight = nan"),
        (lambda: Group("a", TASK, 1e308), "weight = 1e.308 must lie in"),
        (
            lambda: Group("a", TEACHER, variation=Variation(batch_share=0.5)),
            "batches of a RandomTeacher are not rows",
        ),
        (lambda: training(), "groups"),
        (
            lambda: training(*(ProblemGroup("a", problem(TASK)),) * 2),
            "names .* must differ",
        ),
        (lambda: training(ProblemGroup("a", None, -1.0)), "weight of 'a' = -1.0"),
        (
            lambda: training(ProblemGroup("a", None)).step(None, {-1: ()}),
            r"groups \[-1\]: must be a mapping from all of the places \[0\]",
        ),
        (lambda: training(ProblemGroup("a", None)).step(None, {}), "all of the places"),
        (lambda: training(ProblemGroup("a", None), each_step="x"), "each_step = 'x'"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_nan_of_one_group_leaves_theta_finite(mixed, datasets):
    state = mixed.init()
    broken = datasets[1]._replace(mean=datasets[1].mean * jnp.nan)
    state, metrics = mixed.step(state, {0: datasets[0], 1: broken})
    assert float(metrics["diverged/teacher"]) == 1.0
    assert float(metrics["diverged/digits"]) < 1.0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.theta))
