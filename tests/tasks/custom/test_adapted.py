"""Foreign tasks made ours: contract tests with small tasks of the same methods."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parametrization import ADAM_LIKE, STANDARD, Rules
from tasks.base import SPLITS, sample
from tasks.custom.base import EveryBatch
from tasks.custom.learned_optimization import AdaptedTask, adapt
from tests.tasks.custom import foreign
from tests.tasks.custom.foreign import Base, Classifier, Quadratic, Returning, Scales

KEY = jax.random.key(5)
RAW = jax.random.PRNGKey(5)
BATCHES = {"num_batches": 6, "num_held_out": 2}


def few(original, **kwargs):
    return adapt(original, **{**BATCHES, **kwargs})


@pytest.fixture(scope="module")
def classifier():
    return few(Classifier())


@pytest.fixture(scope="module")
def params(classifier):
    return jax.jit(classifier.init)(KEY)


def equal_bits(left, right):
    left, right = jax.device_get((left, right))
    assert jax.tree.structure(left) == jax.tree.structure(right)
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


def given(split, num):
    """The first batches that an iterator of a split gives."""
    source = foreign.image_batches(SPLITS.index(split))
    return [next(source) for _ in range(num)]


def test_initial_parameters_are_the_original_s_own_bits(classifier, params):
    theirs = jax.jit(classifier.original.init)(RAW)
    assert equal_bits(params, theirs)
    assert np.asarray(theirs["linear"]["w"]).any()


def test_loss_and_gradient_are_the_original_s_own_bits(classifier, params):
    batch = given("train", 4)[3]
    ours = jax.jit(jax.value_and_grad(classifier.loss, has_aux=True))
    theirs = jax.jit(jax.value_and_grad(classifier.original.loss))
    (loss, aux), grad = ours(params, KEY, batch)
    assert equal_bits((loss, grad), theirs(params, RAW, batch))
    assert np.asarray(grad["linear"]["w"]).any()
    logits = batch["image"] @ np.asarray(params["linear"]["w"])
    assert float(aux["accuracy"]) == np.mean(logits.argmax(-1) == batch["label"])


def test_without_data_batches_are_empty_and_the_key_is_theirs():
    task = few(Quadratic())
    assert (task.load_data(), task.whole((), "test"), task.name) == (
        (),
        (),
        "Quadratic",
    )
    params = jnp.arange(4.0)
    assert sample(task, (), KEY) == ()
    theirs = jax.jit(lambda p: task.original.loss(p, RAW, ()))(params)
    assert equal_bits(jax.jit(task.loss)(params, KEY, ())[0], theirs)
    assert task.draw((), KEY, "train", 7).shape == (7,)


@pytest.mark.parametrize("reuse", [False, True])
def test_stored_batches_are_those_that_the_iterators_gave(reuse):
    # An iterator that writes each batch into the same memory must not matter.
    dataset = few(Classifier(reuse=reuse)).load_data()
    for split, num in zip(SPLITS, (6, 2, 2, 2), strict=True):
        expected = jax.tree.map(lambda *xs: np.stack(xs), *given(split, num))
        assert equal_bits(dataset.split(split), expected)


def test_a_batch_is_a_function_of_its_key(classifier):
    dataset = classifier.load_data()
    draw = jax.jit(classifier.draw, static_argnums=(2, 3))
    for split, num in (("train", 6), ("test", 2)):
        draws = np.asarray(draw(dataset, KEY, split, 100))
        assert sorted(set(draws.tolist())) == list(range(num))
    batch = classifier.batch(dataset, jnp.int32(1), "test")
    assert equal_bits(batch, given("test", 2)[1])
    with pytest.raises(ValueError, match="unknown split 'valid'"):
        classifier.draw(dataset, KEY, "valid", 1)


def test_the_loss_of_a_whole_split_is_the_mean_over_its_batches(classifier, params):
    whole = classifier.whole(classifier.load_data(), "train")
    assert isinstance(whole, EveryBatch)
    loss, aux = jax.jit(classifier.loss)(params, KEY, whole)
    w, b = (np.asarray(params["linear"][n], np.float64) for n in "wb")
    losses, right = [], []
    for batch in given("train", 6):
        logits = batch["image"] @ w + b
        chosen = logits[np.arange(foreign.BATCH), batch["label"]]
        losses.append(np.log(np.exp(logits).sum(1)) - chosen)
        right.append(logits.argmax(1) == batch["label"])
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-6)
    assert float(aux["accuracy"]) == pytest.approx(np.mean(right), rel=1e-6)


class Four:
    """Four losses that can be told apart."""

    def __init__(self, *names):
        values = {
            "loss_with_state_and_aux": lambda p, s, k, d: (4.0 + p, s, {"a": p}),
            "loss_and_aux": lambda p, k, d: (3.0 + p, {"a": p}),
            "loss_with_state": lambda p, s, k, d: (2.0 + p, s),
            "loss": lambda p, k, d: 1.0 + p,
        }
        for name in names:
            setattr(self, name, values[name])

    def init(self, key):
        return jnp.float32(0.0)


RICHEST = ("loss_with_state_and_aux", "loss_and_aux", "loss_with_state", "loss")


@pytest.mark.parametrize("poorest", range(4))
def test_the_richest_loss_counts(poorest):
    task = adapt(Four(*RICHEST[poorest:]))
    loss, aux = task.loss(jnp.float32(0.5), KEY, ())
    assert float(loss) == 4.0 - poorest + 0.5
    assert aux == ({"a": 0.5} if poorest < 2 else {})


@pytest.mark.parametrize("kind", [foreign.Averaging, foreign.Compiled, foreign.Doubled])
def test_state_that_cannot_reach_the_loss_is_left_out(kind):
    original = kind()
    task = few(original)
    params, state = jax.jit(original.init_with_state)(RAW)
    batch = given("train", 1)[0]
    (loss, aux), grad = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(
        params, KEY, batch
    )
    # The state, which is NaN, changes no bit.
    theirs = jax.jit(jax.value_and_grad(original.loss_with_state, has_aux=True))
    (loss_in_state, _), grad_in_state = theirs(params, state, RAW, batch)
    assert equal_bits((loss, grad), (loss_in_state, grad_in_state))
    assert math.isfinite(float(loss)) and aux == {}


@pytest.mark.parametrize("kind", [foreign.Shifting, foreign.Delayed])
def test_state_that_loss_or_gradient_may_use_is_refused(kind):
    message = f"^the loss of {kind.__name__} may depend on its model state"
    with pytest.raises(ValueError, match=message):
        few(kind())


def test_a_family_at_a_seed_is_one_task():
    task = few(Scales(), seed=3)
    cfg = jax.jit(Scales().sample)(jax.random.PRNGKey(3))
    assert equal_bits(task.config, cfg) and task.is_family
    single = task.original.task_fn(cfg)
    assert equal_bits(jax.jit(task.init)(KEY), jax.jit(single.init)(RAW))
    params = {"x": jnp.arange(3.0)}
    expected = np.sum((np.arange(3.0) - np.asarray(cfg["centre"], np.float64)) ** 2)
    assert float(task.loss(params, KEY, ())[0]) == pytest.approx(expected, rel=1e-6)
    assert not equal_bits(jax.jit(Scales().sample)(jax.random.PRNGKey(4)), cfg)


def test_every_episode_can_have_a_configuration_of_its_own():
    task = few(Scales())

    def episode(key):
        variation = task.sample_config(key)
        params = task.init_with(variation, key)
        return variation, params, task.loss_with(variation, params, key, ())[0]

    keys = jax.random.split(KEY, 5)
    variation, params, losses = jax.device_get(jax.jit(jax.vmap(episode))(keys))
    normal = jax.vmap(lambda k: jax.random.normal(k, (3,)))(keys)
    scale = np.exp(np.asarray(variation["log_scale"], np.float64))
    x = scale[:, None] * np.asarray(normal, np.float64)
    np.testing.assert_allclose(params["x"], x, rtol=1e-6)
    expected = np.sum((x - variation["centre"]) ** 2, axis=1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len(set(scale)) == 5
    # The task itself stays at the configuration of its seed.
    assert equal_bits(task.config, jax.jit(Scales().sample)(jax.random.PRNGKey(0)))


def test_a_single_task_has_nothing_to_vary(classifier, params):
    assert classifier.sample_config(KEY) is None and not classifier.is_family
    init = jax.jit(lambda key: classifier.init_with(None, key))
    assert equal_bits(init(KEY), params)
    batch = given("test", 1)[0]
    ours = classifier.loss(params, KEY, batch)
    assert equal_bits(classifier.loss_with(None, params, KEY, batch), ours)


def test_loss_at_chance_is_of_one_configuration_or_of_all():
    task = few(foreign.Level())
    assert task.loss_at_chance == pytest.approx(float(task.config), rel=1e-6)
    # Uniform in [1, 3]: 4.5 standard errors of a mean of 64.
    error = 4.5 * (2 / math.sqrt(12)) / math.sqrt(64)
    assert task.loss_at_chance_over_configs() == pytest.approx(2.0, abs=error)
    assert few(foreign.Level(), loss_at_chance=7.5).loss_at_chance == 7.5


def test_loss_at_chance_is_the_mean_initial_loss():
    # Of (2z − 0.1 e)² the mean is 4.01; of 64 sums of 4 the standard error is
    # 4.01 √(2·4)/8.
    error = 4.5 * 4.01 * math.sqrt(8) / 8
    assert few(Quadratic()).loss_at_chance == pytest.approx(4 * 4.01, abs=error)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -1.0])
def test_a_unit_that_is_none_is_refused_when_it_is_needed(value):
    task = adapt(Returning(lambda x: value + 0.0 * jnp.sum(x)))
    with pytest.raises(ValueError, match="of Returning at initialization, averaged"):
        task.loss_at_chance  # noqa: B018
    assert adapt(task.original, loss_at_chance=2.0).loss_at_chance == 2.0


def test_roles_are_guessed_or_given_and_every_multiplier_is_one(classifier):
    specs = classifier.specs()["linear"]
    assert (specs["w"].kind, specs["b"].kind) == ("fixed", "vector")
    given_kinds = {"['linear']['w']": "output"}
    named = few(Classifier(), kinds=given_kinds).specs()["linear"]
    assert (named["w"].kind, named["b"].kind) == ("output", "vector")
    for spec in (*specs.values(), *named.values()):
        assert spec.shape == spec.base_shape
        assert all(rules.step_scale(spec) == 1.0 for rules in Rules)
    with pytest.raises(ValueError, match="kinds name parameters that do not exist"):
        few(Classifier(), kinds={"['linear']['v']": "hidden"})


def test_nothing_can_be_widened_deepened_or_reparametrized(classifier):
    assert (classifier.width, classifier.depth) == (None, None)
    assert classifier.with_rules(STANDARD) is classifier
    assert classifier.activations({}, KEY, {}) == {}
    for change, message in (
        (lambda: classifier.at_width(8), "^Classifier has no width to set to 8"),
        (lambda: classifier.at_depth(8), "^Classifier has no depth to set to 8"),
        (lambda: classifier.with_rules(ADAM_LIKE), "so ADAM_LIKE cannot be set"),
    ):
        with pytest.raises(ValueError, match=message):
            change()


def test_an_adaptation_is_compiled_once_and_another_again(classifier, params):
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def compute(task, params):
        traced.append(task)
        return task.loss(params, KEY, given("train", 1)[0])[0]

    other = few(classifier.original, name="the same again")
    for task in (classifier, classifier, other, classifier):
        compute(task, params)
    assert traced == [classifier, other] and other != classifier
    assert isinstance(hash(other), int) and other.name == "the same again"


class Constant(Base):
    """Constant matrices in `init`, as everybody writes them."""

    def __init__(self, x):
        self.datasets = types.SimpleNamespace(**{split: [x] for split in SPLITS})

    def init(self, key):
        return {"w": jnp.ones((32, 32)), "b": jnp.full((2, 2), -0.0)}

    def loss(self, params, key, data):
        return jnp.mean(jnp.mean(data @ params["w"], axis=1) ** 2)


@pytest.mark.optimized
def test_a_constant_matrix_is_none_to_the_compiler():
    # jaxlib 0.10.2 for CPUs multiplies with one wrongly; see never_constant.
    x = np.random.default_rng(0).normal(size=(128, 32)).astype(np.float32)
    task = adapt(Constant(x), num_batches=1, num_held_out=1)
    loss = jax.jit(lambda key, x: task.loss(task.init(key), key, x)[0])(KEY, x)
    params = jax.device_get(jax.jit(task.init)(KEY))
    expected = np.mean(x.astype(np.float64).sum(axis=1) ** 2)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert params["w"].tobytes() == np.ones((32, 32), np.float32).tobytes()
    assert params["b"].tobytes() == np.full((2, 2), -0.0, np.float32).tobytes()


NOT_ONE_NUMBER = (
    r"^the loss of Returning has shape \(2,\) and dtype float32; it must be"
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adapt(Returning(lambda x: x)), NOT_ONE_NUMBER),
        (lambda: adapt(Returning(lambda x: jnp.argmax(x))), "dtype int32; it must be"),
        (lambda: adapt(Returning(lambda x: (x, x, {}))), "is a tuple; it must be one"),
        (
            lambda: adapt(Returning(jnp.sum, aux=3.0)),
            "are a float; they must be a dict",
        ),
        (lambda: adapt(object()), "^object is neither a task .* nor a family"),
        (lambda: adapt(Quadratic), "^Quadratic is a class: adapt an object of it"),
        (lambda: adapt(Quadratic(), num_batches=0), "^num_batches = 0 must be a pos"),
        (lambda: adapt(Quadratic(), seed=-1), "^seed = -1 must be a whole number"),
        (lambda: adapt(Quadratic(), loss_at_chance=0.0), "Quadratic = 0.0 must be pos"),
        (
            lambda: few(Classifier(num=4)),
            r"^Classifier: datasets.train ended after 4 of 6 batches",
        ),
        (
            lambda: few(foreign.Peeking(num=6)),
            "^Peeking takes a batch from its datasets to initialize, and they",
        ),
    ],
)
def test_what_cannot_be_ours_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_an_adapted_task_says_little_of_itself(classifier):
    assert isinstance(classifier, AdaptedTask)
    assert len(repr(classifier)) < 200 and "name='Classifier'" in repr(classifier)
