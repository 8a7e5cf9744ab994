"""Variations do what they say, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.baselines import SGD
from metatrain.inner import InnerLoop, inner_step, start
from tasks import variation
from tasks.base import sample
from tasks.classification import ImageClassification
from tasks.data.label_noise import corrupt
from tasks.data.text import Text, TextDraws, to_device
from tasks.groups import Group
from tasks.language_modelling import LanguageModelling
from tasks.models.mlp import MLP
from tasks.models.transformer import Transformer
from tasks.synthetic.quadratics import Quadratic
from tasks.variation import UNVARIED, UNVARYING, Variant, Variation

KEY = jax.random.key(3)
TASK = ImageClassification(MLP((6, 5), base_width=4, layer_norm=True), batch_size=8)
LEVELS = ("task", "tensor", "parameter")


@pytest.fixture(scope="module")
def data():
    return TASK.load_data()


@pytest.fixture(scope="module")
def batch(data):
    return sample(TASK, data, KEY)


def moved(params):
    """Parameters of which none is zero, so that every gradient shows."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    away = [x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return structure.unflatten(away)


@pytest.mark.parametrize(
    "level", [pytest.param("task", marks=pytest.mark.slow), *LEVELS[1:]]
)
def test_a_reparametrized_network_is_the_same_function_with_scaled_gradients(
    level, batch
):
    varied = Variation(level, factors=(0.01, 100.0)).sample(TASK, KEY)
    params = moved(TASK.init(KEY))
    inside = jax.tree.map(lambda p, s: p / s, params, varied.factors)

    def loss(variant, params):
        return variation.loss(TASK, variant, params, KEY, batch)[0]

    plain, grads = jax.value_and_grad(lambda p: loss(UNVARIED, p))(params)
    value, scaled = jax.value_and_grad(lambda p: loss(varied, p))(inside)
    assert float(value) == pytest.approx(float(plain), rel=1e-5)
    want = jax.tree.map(lambda g, s: g * s, grads, varied.factors)
    for got, wanted in zip(jax.tree.leaves(scaled), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(
            got, wanted, rtol=2e-3, atol=1e-6 * np.abs(wanted).max()
        )
    # The start is the plain start, divided.
    begun = variation.init(TASK, varied, KEY)
    for got, w0, s in zip(
        *map(jax.tree.leaves, (begun, TASK.init(KEY), varied.factors)), strict=True
    ):
        np.testing.assert_array_equal(got, w0 / s)


@pytest.mark.parametrize(
    ("level", "distinct"), [("task", 1), ("tensor", 10), ("parameter", 507)]
)
def test_there_are_as_many_factors_as_the_level_says(level, distinct):
    varied = Variation(level, factors=(0.01, 100.0)).sample(TASK, KEY)
    params = TASK.init(KEY)
    assert jax.tree.structure(varied.factors) == jax.tree.structure(params)
    values = np.concatenate([np.ravel(x) for x in jax.tree.leaves(varied.factors)])
    assert len(np.unique(values)) == distinct
    assert len(jax.tree.leaves(params)) == 10
    assert sum(x.size for x in jax.tree.leaves(params)) == 507


def test_factors_are_log_uniform_and_another_key_gives_others():
    draw = jax.vmap(lambda k: Variation("task", (1e-3, 1e3)).sample(TASK, k).factors)
    factors = draw(jax.random.split(KEY, 4000))["readout"]["bias"]
    logs = np.log10(np.asarray(factors))
    assert logs.min() >= -3.001 and logs.max() <= 3.001
    # Uniform on [-3, 3]: mean 0, variance 3, each within 4 standard errors.
    assert abs(logs.mean()) < 4 * np.sqrt(3 / 4000)
    assert abs(logs.var() - 3) < 4 * np.sqrt((81 / 5 - 9) / 4000)


def test_a_step_of_sgd_goes_s_squared_times_as_far(data, batch):
    rate, theta = 1e-3, SGD(1e-3).init(KEY)
    varied = Variation("task", factors=(3.0, 3.0)).sample(TASK, KEY)
    steps = {}
    for name, variant in (("plain", UNVARIED), ("varied", varied)):
        loop = InnerLoop(TASK, SGD(rate), variant)
        state = start(loop, theta, KEY, 5)
        after, *_ = inner_step(loop, loop.optimizer(theta, 5), state, batch, KEY)
        scale = 3.0 if name == "varied" else 1.0
        steps[name] = jax.tree.map(
            lambda new, old, s=scale: s * (new - old), after.params, state.params
        )
    for got, plain in zip(*map(jax.tree.leaves, steps.values()), strict=True):
        np.testing.assert_allclose(plain, 9 * got, rtol=1e-3, atol=1e-7)


def test_the_loss_scale_reaches_the_optimizer_and_not_the_record(batch):
    seen = {}

    class Spy:
        def update(self, grads, state, params, *, loss):
            seen.update(grads=grads, loss=loss)
            return jax.tree.map(jnp.zeros_like, grads), state

    loop = InnerLoop(TASK, SGD())
    state = start(loop, SGD().init(KEY), KEY, 5)
    _, plain, _ = inner_step(loop, Spy(), state, batch, KEY)
    first = dict(seen)
    scaled = dataclasses.replace(loop, variant=Variant(loss_scale=jnp.float32(8.0)))
    _, recorded, _ = inner_step(scaled, Spy(), state, batch, KEY)
    assert float(recorded) == float(plain)
    assert float(seen["loss"]) == 8.0 * float(plain)
    for got, want in zip(
        *map(jax.tree.leaves, (seen["grads"], first["grads"])), strict=True
    ):
        np.testing.assert_array_equal(got, 8.0 * want)


def test_the_scale_of_the_start_is_that_of_matrices_alone():
    scaled = variation.init(TASK, Variant(init_scale=jnp.float32(2.0)), KEY)
    plain = TASK.init(KEY)
    kernel = plain["hidden_0"]["kernel"]
    np.testing.assert_array_equal(scaled["hidden_0"]["kernel"], 2.0 * kernel)
    np.testing.assert_array_equal(scaled["norm_0"]["gain"], 1.0)
    np.testing.assert_array_equal(scaled["hidden_1"]["bias"], 0.0)


@pytest.fixture(scope="module")
def noise():
    rows = jnp.arange(20000) % 5000
    labels = (rows * 7) % 10
    corrupted = jax.jit(corrupt, static_argnums=2)
    return (
        rows,
        labels,
        lambda share, seed: np.asarray(
            corrupted(labels, rows, 10, jnp.float32(share), jnp.uint32(seed))
        ),
    )


def test_as_many_labels_are_wrong_as_was_said_and_always_the_same(noise):
    _rows, labels, corrupted = noise
    got, labels = corrupted(0.2, 5), np.asarray(labels)
    wrong = (got != labels)[:5000]
    assert abs(wrong.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 5000)
    # Each row occurs four times, and has the same label every time.
    np.testing.assert_array_equal(got.reshape(4, 5000), got[None, :5000].repeat(4, 0))
    away = np.bincount((got - labels)[:5000][wrong] % 10, minlength=10)
    assert away[0] == 0 and ((got >= 0) & (got < 10)).all()
    expected = wrong.sum() / 9
    assert ((away[1:] - expected) ** 2 / expected).sum() < 26.1  # χ²(8), p = .001
    other = corrupted(0.2, 6)[:5000] != labels[:5000]
    both = (wrong & other).mean()  # independent: 4 % are wrong under both seeds
    assert abs(both - 0.04) < 4 * np.sqrt(0.04 * 0.96 / 5000)


@pytest.mark.parametrize(("share", "want"), [(0.0, 0), (1.0, 20000)])
def test_no_label_and_every_label(noise, share, want):
    _, labels, corrupted = noise
    assert (corrupted(share, 1) != np.asarray(labels)).sum() == want


def test_two_labels_are_exchanged():
    labels = jnp.array([0, 1, 1, 0])
    got = corrupt(labels, jnp.arange(4), 2, jnp.float32(1.0), jnp.uint32(0))
    np.testing.assert_array_equal(got, 1 - labels)


class Letters(Text):
    vocab_size = 16

    def load(self):
        tokens = np.arange(400, dtype=np.uint8) % 16
        return to_device(
            dict.fromkeys(("train", "inner_valid", "outer_valid", "test"), tokens)
        )


def test_a_place_of_a_text_has_the_same_wrong_target_in_every_window():
    model = Transformer(width=16, base_width=16, depth=1)
    task = LanguageModelling(model, Letters(), length=8, batch_size=2)
    data = task.load_data()
    draw = TextDraws(jnp.array([40, 43]))  # overlapping windows
    batch = task.batch(data, draw, "train")
    got = task.relabel(batch, draw, jnp.float32(0.5), jnp.uint32(9))
    np.testing.assert_array_equal(got.inputs, batch.inputs)
    np.testing.assert_array_equal(got.targets[0, 3:], got.targets[1, :5])
    wrong = np.asarray(got.targets != batch.targets)
    assert 0 < wrong.sum() < 16


@pytest.mark.parametrize(
    "rows", [8, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 2)), 1]
)
def test_a_thinned_batch_has_the_loss_of_its_first_rows(rows, data):
    params = moved(TASK.init(KEY))
    draws = TASK.draw(data, KEY, "train", 3)
    thinned = variation.thin(TASK, Variant(rows=jnp.int32(rows)), draws)
    full = TASK.batch(data, jax.tree.map(lambda x: x[1], draws), "train")
    few = TASK.batch(data, jax.tree.map(lambda x: x[1], thinned), "train")
    want = TASK.loss(params, KEY, jax.tree.map(lambda x: x[:rows], full))[0]
    got = TASK.loss(params, KEY, few)[0]
    assert float(got) == pytest.approx(float(want), rel=1e-6)
    assert len(few.labels) == 8
    assert len(np.unique(thinned.rows[1])) <= rows


def test_the_rows_of_a_batch_are_halved_equally_often():
    varying = Variation(batch_share=0.25)
    draw = jax.vmap(lambda key: varying.sample(TASK, key).rows)
    rows = np.asarray(draw(jax.random.split(KEY, 3000)))
    values, counts = np.unique(rows, return_counts=True)
    np.testing.assert_array_equal(values, [2, 4, 8])
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(3000 * 2 / 9)


def test_what_does_not_vary_is_not_in_the_program(data):
    assert jax.tree.leaves(UNVARYING.sample(TASK, KEY)) == []
    assert not UNVARYING.active and not Variation(factors=(1.0, 2.0)).active
    one = Variation(label_noise=(0.1, 0.1)).sample(TASK, KEY)
    assert len(jax.tree.leaves(one)) == 2
    assert float(one.label_noise) == pytest.approx(0.1)
    draws = TASK.draw(data, KEY, "train", 2)
    assert variation.thin(TASK, UNVARIED, draws) is draws


def test_a_variation_says_what_varies():
    assert UNVARYING.summary == "nothing varies"
    varied = Variation("task", (1e-3, 1e3), label_noise=(0.0, 0.2), batch_share=0.25)
    assert varied.summary == (
        "reparametrization task, factors 0.001…1000, label_noise 0…0.2, "
        "batch_share 0.25"
    )


class Stretched:
    """A quadratic that draws its own curvature, once for a run."""

    def __init__(self):
        self.inner = Quadratic(dimension=3)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def sample_config(self, key):
        return {"stretch": jax.random.uniform(key, minval=2.0, maxval=3.0)}

    def loss_at_chance_over_configs(self):
        return 1.0

    def init_with(self, config, key):
        return jax.tree.map(lambda x: x * config["stretch"], self.inner.init(key))

    def loss_with(self, config, params, key, batch):
        loss, aux = self.inner.loss(params, key, batch)
        return config["stretch"] * loss, aux


def test_numbers_that_a_task_draws_for_itself_reach_its_start_and_its_loss():
    task = Stretched()
    variant = UNVARYING.sample(task, KEY)
    stretch = float(variant.config["stretch"])
    assert 2.0 <= stretch <= 3.0
    other = UNVARYING.sample(task, jax.random.key(4)).config["stretch"]
    assert float(other) != stretch
    params = variation.init(task, variant, KEY)
    np.testing.assert_allclose(params["x"], stretch * task.init(KEY)["x"], rtol=1e-6)
    batch = sample(task, task.load_data(), KEY)
    got = variation.loss(task, variant, params, KEY, batch)[0]
    want = stretch * task.loss(params, KEY, batch)[0]
    assert float(got) == pytest.approx(float(want), rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reparametrization": "layer"}, "reparametrization = 'layer' must be one of"),
        ({"factors": (0.0, 1.0)}, r"factors = \(0.0, 1.0\)"),
        ({"loss_scale": (2.0, 1.0)}, r"loss_scale = \(2.0, 1.0\).*ascending"),
        ({"init_scale": (1.0,)}, r"init_scale = \(1.0,\) must be a tuple of 2"),
        ({"label_noise": (0.0, 1.5)}, r"label_noise = \(0.0, 1.5\)"),
        ({"label_noise": (float("nan"),) * 2}, "label_noise"),
        ({"batch_share": 0.3}, "batch_share = 0.3 must be a power of ½"),
        ({"batch_share": 2.0}, "batch_share = 2.0"),
    ],
)
def test_nonsense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Variation(**fields)


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        (Quadratic(), {"label_noise": (0.0, 0.1)}, "a Quadratic has no labels"),
        (Quadratic(), {"batch_share": 0.5}, "batches of a Quadratic are not rows"),
        (
            dataclasses.replace(TASK, batch_size=6),
            {"batch_share": 0.25},
            "batch_share = 0.25 of batch_size = 6",
        ),
    ],
)
def test_what_a_task_cannot_vary_is_refused(task, fields, message):
    with pytest.raises(ValueError, match=message):
        Variation(**fields).check(task)


def test_a_group_is_of_a_task():
    with pytest.raises(ValueError, match="is no task: it has no init, specs"):
        Group("digits", "digits")
