"""Quadratics and valleys: closed forms, and the interface without a model."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parametrization import Rules
from tasks.base import SPLITS, sample
from tasks.synthetic.base import Landscape
from tasks.synthetic.quadratics import NoisyQuadratic, Quadratic
from tasks.synthetic.valley import Valley
from tests.tasks.families import KEY

LANDSCAPES = [
    Quadratic(dimension=5, rotated=True),
    NoisyQuadratic(Quadratic(dimension=5), batch_size=3),
    Valley(dimension=6, rotated=True),
]
each = pytest.mark.parametrize("task", LANDSCAPES, ids=lambda t: type(t).__name__)


@each
def test_a_landscape_is_a_task_without_a_model(task):
    assert isinstance(task, Landscape) and (task.width, task.depth) == (None, None)
    name, size = type(task).__name__, task.dimension
    for method, field in ((task.at_width, "width"), (task.at_depth, "depth")):
        with pytest.raises(ValueError, match=f"^{name} has no {field} to set to 8$"):
            method(8)
    (spec,) = task.specs().values()
    assert (
        spec.shape
        == spec.base_shape
        == (size,)
        == jax.eval_shape(task.init, KEY)["x"].shape
    )
    assert (str(spec.axes), spec.kind) == ("-> fixed", "vector")
    for rules in Rules:
        assert task.with_rules(rules) is task and rules.step_scale(spec) == 1.0
    assert task.activations(None, KEY, None) == {}
    assert hash(task) == hash(dataclasses.replace(task))


@each
def test_the_unit_is_the_mean_loss_of_64_starts(task):
    # Asked for inside a trace first.
    traced = jax.jit(jax.vmap(lambda x: x * task.loss_at_chance))(jnp.ones(2))
    data = task.load_data()

    def one(key):
        start, batch = jax.random.split(key)
        return task.loss(task.init(start), key, sample(task, data, batch))[0]

    losses = np.float64(jax.jit(jax.vmap(one))(jax.random.split(KEY, 4000)))
    error = losses.std() * math.sqrt(1 / 64 + 1 / 4000)
    assert task.loss_at_chance == pytest.approx(losses.mean(), abs=4.5 * error)
    assert 3.0 * error < task.loss_at_chance
    np.testing.assert_allclose(traced, task.loss_at_chance, rtol=1e-6)


@each
def test_the_optimum_is_the_lowest_point(task):
    data = task.load_data()
    whole = task.whole(data, "test")
    best = task.optimum(data)
    program = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    (height, _), slope = program(best, KEY, whole)
    assert float(height) == pytest.approx(task.lowest_loss, abs=1e-8, rel=1e-6)
    assert np.abs(slope["x"]).max() < 1e-3
    for seed in range(3):
        step = 0.1 * jax.random.normal(jax.random.key(seed), best["x"].shape)
        assert program({"x": best["x"] + step}, KEY, whole)[0][0] > height


@jax.jit
def curvature(data):
    return jax.hessian(lambda x: Quadratic(4).loss({"x": x}, KEY, data)[0])(
        jnp.zeros(4)
    )


SPECTRA = {
    "flat": [1.0, 1.0, 1.0, 1.0],
    "linear": [1.0, 0.75, 0.5, 0.25],
    "log_uniform": [1.0, 4 ** (-1 / 3), 4 ** (-2 / 3), 0.25],
    "power": [1.0, 1 / 2, 1 / 3, 1 / 4],
}


@pytest.mark.parametrize(("spectrum", "want"), SPECTRA.items())
def test_spectra_are_what_they_are_called(spectrum, want):
    task = Quadratic(4, spectrum, condition=4.0, rotated=True)
    np.testing.assert_allclose(task.eigenvalues(), want, rtol=1e-12)
    assert Quadratic(1, spectrum).eigenvalues() == [1.0]
    data = task.load_data()
    np.testing.assert_allclose(data.rotation.T @ data.rotation, np.eye(4), atol=1e-6)
    hessian = np.asarray(curvature(data))
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian)[::-1], want, atol=1e-6)
    off = np.abs(hessian - np.diag(np.diag(hessian))).max()
    assert (off > 0.01) == (spectrum != "flat")


@pytest.mark.parametrize("rotated", [False, True])
def test_gradient_descent_goes_where_it_must(rotated):
    task = Quadratic(dimension=6, condition=30.0, rotated=rotated, seed=3)
    data, rate, num = task.load_data(), 0.8, 25
    start = jax.jit(task.init)(KEY)

    def step(params, key):
        batch = sample(task, data, key)
        (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(
            params, key, batch
        )
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), loss

    keys = jax.random.split(KEY, num)
    end, losses = jax.jit(lambda start: jax.lax.scan(step, start, keys))(start)
    vectors = np.eye(6) if data.rotation is None else np.float64(data.rotation)
    values, centre = np.float64(data.eigenvalues), np.float64(data.centre)
    y = vectors.T @ (np.float64(start["x"]) - centre)
    # Along each eigenvector the distance shrinks by 1 - rate · eigenvalue per step.
    path = y * (1 - rate * values) ** np.arange(num)[:, None]
    np.testing.assert_allclose(losses, 0.5 * path**2 @ values, rtol=1e-4, atol=1e-9)
    want = centre + vectors @ (y * (1 - rate * values) ** num)
    np.testing.assert_allclose(end["x"], want, rtol=1e-4, atol=1e-5)
    assert (data.rotation is None) == (not rotated)


def test_a_seed_is_a_landscape():
    one, again, other = (Quadratic(rotated=True, seed=s).load_data() for s in (0, 0, 1))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one, again)))
    assert not np.array_equal(one.centre, other.centre)
    assert not np.array_equal(one.rotation, other.rotation)


@pytest.mark.parametrize("covariance", ["hessian", "squared_hessian"])
def test_the_noise_of_gradients_has_its_covariance(covariance):
    quadratic = Quadratic(4, condition=8.0, rotated=True)
    task = NoisyQuadratic(quadratic, 0.5, covariance, batch_size=2)
    data, num = task.load_data(), 20_000
    x = {"x": jnp.arange(4.0)}

    def gradient(draw):
        batch = task.batch(data, draw, "train")
        return jax.grad(task.loss, has_aux=True)(x, KEY, batch)[0]["x"]

    draws = task.draw(data, KEY, "train", num)
    gradients = np.float64(jax.jit(jax.vmap(gradient))(draws))
    exact = quadratic.load_data()
    mean = jax.jit(jax.grad(quadratic.loss, has_aux=True))(x, KEY, exact)[0]["x"]
    error = gradients.std(0) / math.sqrt(num)
    assert (np.abs(gradients.mean(0) - mean) < 4.5 * error).all()
    # Along the eigenvectors; a batch of two halves the variance.
    power = {"hessian": 1, "squared_hessian": 2}[covariance]
    want = 0.5**2 * quadratic.eigenvalues() ** power / 2
    noise = (gradients - gradients.mean(0)) @ np.float64(exact.rotation)
    got = noise.T @ noise / num
    scale = np.sqrt(np.outer(want, want))
    off = np.abs(got - np.diag(want)) / scale
    assert off.max() < 4.5 * math.sqrt(2 / num)


def test_sgd_ends_at_the_risk_that_theory_says():
    quadratic = Quadratic(4, "linear", condition=4.0)
    task = NoisyQuadratic(quadratic, noise=0.7, batch_size=2)
    data, rate, chains, num = task.load_data(), 0.5, 4000, 60

    def chain(key):
        def step(params, draw):
            batch = task.batch(data, draw, "train")
            grads, _ = jax.grad(task.loss, has_aux=True)(params, key, batch)
            return jax.tree.map(lambda p, g: p - rate * g, params, grads), None

        draws = task.draw(data, key, "train", num)
        params, _ = jax.lax.scan(step, task.optimum(data), draws)
        return task.loss(params, key, task.whole(data, "test"))[0]

    risks = np.float64(jax.jit(jax.vmap(chain))(jax.random.split(KEY, chains)))
    values = quadratic.eigenvalues()
    # y' = (1 - a) y + a c with a = rate · eigenvalue and c of variance s² / B: in the
    # end y has variance a s² / (B (2 - a)).
    pull, spread = rate * values, 0.7**2 / values
    variance = pull * spread / (2 * (2 - pull))
    want = 0.5 * values @ (variance + spread)
    assert ((1 - pull) ** (2 * num) < 1e-6).all()
    error = math.sqrt((values**2 * variance**2).sum() / (2 * chains))
    assert risks.mean() == pytest.approx(want, abs=4.5 * error)
    assert want - task.lowest_loss > 40 * error


def test_the_expected_loss_is_the_mean_over_batches():
    task = NoisyQuadratic(Quadratic(5, rotated=True), noise=0.3)
    data = task.load_data()
    params = jax.jit(task.init)(KEY)
    num = 20_000
    draws = jnp.stack([task.draw(data, KEY, split, num) for split in SPLITS])

    def heights(draws):
        def height(draw):
            return task.loss(params, KEY, task.batch(data, draw, "train"))[0]

        whole = task.loss(params, KEY, task.whole(data, "test"))[0]
        return jax.vmap(jax.vmap(height))(draws), whole

    losses, want = (np.float64(x) for x in jax.jit(heights)(draws))
    error = losses.std(1) / math.sqrt(num)
    assert (np.abs(losses.mean(1) - want) < 4.5 * error).all()
    together = np.corrcoef(losses)
    assert np.abs(together - np.eye(4)).max() < 4.5 / math.sqrt(num)
    # A longer draw begins with a shorter one.
    keys = jax.random.key_data(task.draw(data, KEY, "train", 3))
    longer = jax.random.key_data(task.draw(data, KEY, "train", 7))
    np.testing.assert_array_equal(keys, longer[:3])
    with pytest.raises(ValueError, match="unknown split 'valid'; there are train, inn"):
        task.draw(data, KEY, "valid", 1)


def rosenbrock(z, curvature, chained):
    """Height and gradient, term by term."""
    height, slope = 0.0, np.zeros_like(z)
    for i in range(0, len(z) - 1, 1 if chained else 2):
        wall = z[i + 1] - z[i] ** 2
        height += curvature * wall**2 + (1 - z[i]) ** 2
        slope[i] -= 4 * curvature * z[i] * wall + 2 * (1 - z[i])
        slope[i + 1] += 2 * curvature * wall
    return height, slope


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("rotated", [True, False])
def test_a_valley_is_rosenbrock_s(chained, rotated):
    task = Valley(6, 30.0, chained, rotated, scale=2.5, seed=1)
    data = task.load_data()
    assert (data.rotation is not None) == rotated
    turn = np.eye(6) if data.rotation is None else np.float64(data.rotation)
    program = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    for seed in range(3):
        z = np.random.default_rng(seed).normal(size=6)
        x = 2.5 * turn @ z
        (height, _), slope = program({"x": jnp.float32(x)}, KEY, data)
        want, steep = rosenbrock(z, 30.0, chained)
        assert float(height) == pytest.approx(want, rel=1e-5)
        steep = turn @ steep / 2.5
        np.testing.assert_allclose(
            slope["x"], steep, rtol=1e-4, atol=1e-5 * np.abs(steep).max()
        )
    best = task.optimum(data)["x"]
    np.testing.assert_allclose(best, 2.5 * turn @ np.ones(6), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quadratic(dimension=0), "dimension = 0 must be a positive"),
        (lambda: Quadratic(spectrum="round"), "spectrum = 'round' must be one of flat"),
        (lambda: Quadratic(condition=0.5), "condition = 0.5 must be 1 or more"),
        (lambda: Quadratic(condition=math.inf), "condition = inf must be 1 or more"),
        (lambda: Quadratic(seed=-1), "seed = -1 must be a whole number in [0, 2³²)"),
        (lambda: NoisyQuadratic(noise=-1.0), "noise = -1.0 must not be negative"),
        (lambda: NoisyQuadratic(noise=math.nan), "noise = nan must be a number"),
        (lambda: NoisyQuadratic(batch_size=0), "batch_size = 0 must be a positive"),
        (
            lambda: NoisyQuadratic(gradient_covariance="identity"),
            "gradient_covariance = 'identity' must be one of hessian, squared_hessian",
        ),
        (lambda: Valley(dimension=1), "dimension = 1 must be 2 or more, and even"),
        (lambda: Valley(5, chained=False), "dimension = 5 must be 2 or more, and even"),
        (lambda: Valley(curvature=0.0), "curvature = 0.0 must be positive"),
        (lambda: Valley(scale=-2.0), "scale = -2.0 must be positive"),
        (lambda: Valley(seed=1.5), "seed = 1.5 must be a whole number"),
    ],
)
def test_bad_fields_are_refused(make, message):
    with pytest.raises(ValueError) as info:
        make()
    assert message in str(info.value) and "\n" not in str(info.value)
