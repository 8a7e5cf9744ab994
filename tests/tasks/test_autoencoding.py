"""Autoencoding: its losses, its unit, its start, and that it can be learned."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from parametrization import STANDARD
from tasks.autoencoding import Autoencoding, reconstruction_loss
from tasks.base import sample
from tasks.data.images import Images, partition
from tasks.models.autoencoder import VAE, AutoEncoder
from tests.tasks import families
from tests.tasks.families import KEY

KINDS = ("mse", "bernoulli")
TASKS = {
    "autoencoder mse": Autoencoding(),
    "autoencoder bernoulli": Autoencoding(reconstruction="bernoulli"),
    "vae mse": Autoencoding(VAE()),
    "vae bernoulli": Autoencoding(VAE(), reconstruction="bernoulli"),
}
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
plain = pytest.mark.parametrize("task", list(TASKS.values())[:2], ids=list(TASKS)[:2])


@pytest.fixture(scope="module")
def digits():
    """Raw pixels by split, float64 `[n, 64]`."""
    order = np.random.RandomState(0).permutation(1797)
    rows = load_digits().images[order].reshape(1797, 64)
    return {"train": rows[:1077], "test": rows[1437:]}


@dataclasses.dataclass(frozen=True)
class Colours(Images):
    """Tiny images of three channels with different statistics."""

    image_shape = (2, 2, 3)
    num_classes = 2

    def pixels(self):
        rng = np.random.default_rng(0)
        means = np.array([60, 120, 180])
        return rng.normal(means, (10, 20, 30), (40, 2, 2, 3)).round().astype(np.uint8)

    def load(self):
        return partition(self.pixels(), np.zeros(40, int), (20, 25, 30))


@dataclasses.dataclass(frozen=True)
class Absent(Colours):
    """A source that cannot be read."""

    def load(self):
        raise ValueError("it was read")


def entropy(p):
    """-p ln p - (1 - p) ln(1 - p), 0 at both ends."""
    return -sum(q * np.log(np.where(q > 0, q, 1)) for q in (p, 1 - p))


def test_the_unit_is_the_loss_of_the_best_constant_image(digits):
    train = digits["train"]
    # Squared error, in units of the variance over all training pixels.
    want = train.var(0).mean() / np.float64(np.float32(train.std())) ** 2
    assert Autoencoding().loss_at_chance == pytest.approx(want, rel=1e-12)
    # Cross-entropy: at least the entropy of the mean image, and little more, since
    # half a pixel on and half a pixel off are added to each count.
    least = entropy(train.mean(0) / 16).mean()
    chance = TASKS["autoencoder bernoulli"].loss_at_chance
    assert least < chance < least + 1 / len(train)
    for name, task in TASKS.items():
        assert (
            task.loss_at_chance
            == TASKS[f"autoencoder {name.split()[1]}"].loss_at_chance
        )


@each_task
def test_a_run_starts_at_chance(task, digits):
    params = jax.jit(task.init)(KEY)
    data = task.load_data()
    whole = jax.jit(functools.partial(task.whole, split="train"))(data)
    loss, parts = jax.jit(task.loss)(params, KEY, whole)
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(task.loss_at_chance, rel=1e-5)
    if parts:
        assert float(parts["divergence"]) == 0.0
        assert float(parts["reconstruction_loss"]) == float(loss)
    assert bool(parts) == isinstance(task.model, VAE)
    # Of a batch, in closed form.
    batch = jax.jit(lambda key: sample(task, data, key, "test"))(jax.random.key(3))
    raw = np.asarray(batch.inputs.reshape(128, 64), np.float64)
    mean, std = digits["train"].mean(), digits["train"].std()
    raw = raw * std + mean
    image = digits["train"].mean(0)
    if task.reconstruction == "mse":
        want = ((raw - image) ** 2).mean() / std**2
    else:
        on = (1077 * image / 16 + 0.5) / 1078
        want = -(raw / 16 * np.log(on) + (1 - raw / 16) * np.log(1 - on)).mean()
    loss = jax.jit(task.loss)(params, KEY, batch)[0]
    assert float(loss) == pytest.approx(want, rel=1e-5)


@plain
def test_targets_are_the_images(task, digits):
    data = task.load_data()
    batch = jax.jit(lambda data: task.whole(data, "test"))(data)
    assert batch.inputs.shape == (360, 8, 8, 1) and batch.targets.shape == (360, 64)
    normal = (digits["test"] - digits["train"].mean()) / digits["train"].std()
    np.testing.assert_allclose(batch.inputs.reshape(360, 64), normal, atol=1e-5)
    want = normal if task.reconstruction == "mse" else digits["test"] / 16
    np.testing.assert_allclose(batch.targets, want, atol=1e-5)
    best = digits["train"].mean(0)
    if task.reconstruction == "mse":
        best = (best - digits["train"].mean()) / digits["train"].std()
        np.testing.assert_allclose(batch.best, best, atol=1e-5)
    else:
        probability = 1 / (1 + np.exp(-np.float64(batch.best)))
        np.testing.assert_allclose(probability, best / 16, atol=0.5 / 1077)


def test_losses_are_their_definitions():
    rng = np.random.default_rng(1)
    outputs = rng.normal(size=(5, 7)) * np.array([[0.1, 1, 5, 20, 100]]).T
    targets, best = rng.uniform(size=(5, 7)), rng.normal(size=7)
    guess = outputs + best
    wants = {
        "mse": ((guess - targets) ** 2).mean(),
        "bernoulli": (
            targets * np.logaddexp(0, -guess) + (1 - targets) * np.logaddexp(0, guess)
        ).mean(),
    }
    for kind, want in wants.items():
        got = reconstruction_loss(kind, *map(jnp.float32, (outputs, targets, best)))
        assert float(got) == pytest.approx(want, rel=1e-5)


def test_the_negative_elbo_is_per_pixel(digits):
    task = TASKS["vae bernoulli"]
    model = dataclasses.replace(task.model, width=8, base_width=8)
    task = dataclasses.replace(task, model=model, batch_size=16)
    params = families.randomized(model, (8, 8, 1), 64, 0.2)
    batch = sample(task, task.load_data(), KEY)

    def compute(params, key):
        result = model.apply(params, batch.inputs, 64, key)
        return task.loss(params, key, batch), result, result.divergence()

    (loss, parts), result, divergence = jax.jit(compute)(params, KEY)
    guess = np.float64(result.outputs) + np.float64(batch.best)
    cross = np.logaddexp(0, guess) - np.float64(batch.targets) * guess
    # Nats per image, over the number of pixels.
    per_image = cross.sum(1) + np.float64(divergence)
    assert float(loss) == pytest.approx(per_image.mean() / 64, rel=1e-5)
    assert float(parts["divergence"]) == pytest.approx(
        np.float64(divergence).mean() / 64, rel=1e-5
    )
    assert float(divergence.min()) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_each_channel_has_its_unit_and_pixels_their_range(kind):
    task = Autoencoding(AutoEncoder(width=8, base_width=8), Colours(), 4, kind)
    pixels = Colours().pixels().astype(np.float64)
    train, test = pixels[:20], pixels[30:]
    low, high = train.min(), train.max()
    assert (test > high).any() or (test < low).any()
    batch = task.whole(task.load_data(), "test")
    normal = (test - train.mean((0, 1, 2))) / train.std((0, 1, 2))
    np.testing.assert_allclose(batch.inputs, normal, atol=1e-5)
    scaled = np.clip((test - low) / (high - low), 0, 1)
    want = normal if kind == "mse" else scaled
    np.testing.assert_allclose(batch.targets, want.reshape(10, 12), atol=1e-5)
    variance = train.var(0) / train.var((0, 1, 2))
    least = entropy(((train - low) / (high - low)).mean(0))
    want = (variance if kind == "mse" else least).mean()
    assert task.loss_at_chance == pytest.approx(
        want, rel=1e-6 if kind == "mse" else 1e-2
    )


@each_task
def test_it_can_be_learned_and_no_zero_at_the_start_is_a_trap(task):
    optimizer = optax.adam(1e-2)

    def run(params, data):
        def step(carry, key):
            params, state = carry
            batch = sample(task, data, key)
            grads, _ = jax.grad(task.loss, has_aux=True)(params, key, batch)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), grads

        keys = jax.random.split(KEY, 100)
        carry, grads = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        largest = jax.tree.map(lambda g: jnp.abs(g[3]).max(), grads)
        return largest, task.loss(carry[0], KEY, task.whole(data, "test"))[0]

    fourth, loss = jax.jit(run)(jax.jit(task.init)(KEY), task.load_data())
    for path, largest in jax.tree_util.tree_leaves_with_path(fourth):
        assert float(largest) > 1e-7, jax.tree_util.keystr(path)
    assert float(loss) < 0.95 * task.loss_at_chance


def test_data_is_read_only_when_it_is_needed():
    task = Autoencoding(data=Absent(), reconstruction="bernoulli")
    assert task.num_outputs == 12 and task.specs() is not None
    for use in (task.load_data, lambda: task.loss_at_chance):
        with pytest.raises(ValueError, match="it was read"):
            use()


def test_the_unit_can_be_asked_for_while_tracing():
    task = Autoencoding(AutoEncoder(width=8, base_width=8), Colours(), batch_size=3)
    traced = jax.jit(jax.vmap(lambda x: x / task.loss_at_chance))(jnp.ones(2))
    np.testing.assert_allclose(traced, 1 / task.loss_at_chance, rtol=1e-6)
    assert isinstance(task.load_data().best, np.ndarray | jax.Array)
    assert not isinstance(task.load_data().images.mean[0], jax.core.Tracer)


def test_the_model_is_reached_through_the_task():
    task = Autoencoding(VAE(width=16, base_width=8, depth=2))
    assert (task.width, task.depth) == (16, 2)
    assert task.at_width(64).model == VAE(width=64, base_width=8, depth=2)
    assert task.at_depth(3).model == VAE(width=16, base_width=8, depth=3)
    assert task.with_rules(STANDARD).model.rules is STANDARD
    assert task.at_width(64).data == task.data


def test_bad_fields_are_refused():
    with pytest.raises(ValueError, match="batch_size = 0 must be a positive"):
        Autoencoding(batch_size=0)
    with pytest.raises(ValueError, match="reconstruction = 'l1' must be one of mse, b"):
        Autoencoding(reconstruction="l1")
