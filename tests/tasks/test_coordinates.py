"""Every family: layers change alike at every width in μP, and do not without it.

Four steps of training on one batch, three seeds. In μP no layer's change may depend on
the width; in the standard parametrization some layer's must, or the check could not
fail. Families without a width say so by `width = None`.
"""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from evaluation.scaling.coordinate_check import coordinate_check
from lopt import SGD, Adam, Celo2, SmallFC
from lopt.baselines import scale_by_specs
from lopt.per_parameter.epsilons import WIDTH_SAFE
from parametrization import ADAM_LIKE, COMPLETEP, SGD_LIKE, STANDARD
from tasks.base import sample
from tasks.models.blocks import BlockModel
from tasks.registry import FAMILIES

FLAT = 0.15
STEEP = 0.4
NARROW = (32, 64, 128, 256)
WIDE = (64, 128, 256, 512, 1024)
DEPTHS = (2, 4, 8, 16, 32)
NUM_STEPS = 4
RATE = 1e-2
WITH_WIDTH = [name for name, f in FAMILIES.items() if f.task().width is not None]


def check(tasks, lopt, theta=None, num_steps=NUM_STEPS, seeds=(0, 1, 2)):
    first = next(iter(tasks.values()))
    batch = sample(first, first.load_data(), jax.random.key(0))
    theta = lopt.init(jax.random.key(1)) if theta is None else theta
    return coordinate_check(
        tasks, lambda s: lopt.as_optax(theta, s, num_steps), batch, num_steps, seeds
    )


def at_widths(name, widths, rules):
    task = FAMILIES[name].task().with_rules(rules)
    return {width: task.at_width(width) for width in widths}


def moved(result, step=-1):
    """Slopes of the layers that moved, and that there are any."""
    slopes = {n: s for n, s in result.slopes(step).items() if not np.isnan(s)}
    assert slopes
    return slopes


def assert_flat(result, tolerance=FLAT):
    slopes = moved(result)
    steep = {name: s for name, s in slopes.items() if not abs(s) < tolerance}
    assert not steep, f"not flat: {steep}\n{result.table()}"


def assert_steep(result):
    steepest = max(max(moved(result, t).values()) for t in range(NUM_STEPS))
    assert steepest > STEEP, f"the check cannot fail:\n{result.table()}"


def test_families_without_a_width_are_those_without_a_model():
    without = set(FAMILIES) - set(WITH_WIDTH)
    assert without == {"quadratic", "noisy_quadratic", "valley"}


# Families of the default suite; every other one takes 15 to 80 seconds.
SOON = {"mlp"}


# signals is the MLP on other data: in the default suite one of the two will do.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in SOON else [pytest.mark.slow])
        for name in WITH_WIDTH
        if name != "signals"
    ],
)
def test_adam(name):
    assert_flat(check(at_widths(name, NARROW, ADAM_LIKE), Adam(RATE, rules=ADAM_LIKE)))
    # Two widths are enough to fail.
    assert_steep(check(at_widths(name, NARROW[::3], STANDARD), Adam(RATE)))


# Images and attention take minutes at width 1,024: `test_adam` has them, narrower.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "lstm", "autoencoder"])
def test_adam_at_large_widths(name):
    assert_flat(check(at_widths(name, WIDE, ADAM_LIKE), Adam(RATE, rules=ADAM_LIKE)))
    assert_steep(check(at_widths(name, WIDE[::2], STANDARD), Adam(RATE)))


@pytest.mark.parametrize(
    ("name", "rate"),
    [("mlp", 0.1), pytest.param("transformer", 0.1, marks=pytest.mark.slow)],
)
def test_sgd(name, rate):
    flat = at_widths(name, NARROW, SGD_LIKE)
    assert_flat(check(flat, SGD(rate, rules=SGD_LIKE)))
    assert_steep(check(at_widths(name, NARROW[::3], STANDARD), SGD(rate)))


def test_the_columns_of_adam_and_sgd_are_not_interchangeable():
    # SGD with Adam's factors: hidden matrices, whose gradients are 1/n, barely move.
    tasks = at_widths("mlp", NARROW[::3], ADAM_LIKE)
    adam_steps = Adam(RATE, rules=ADAM_LIKE)

    class Wrong:
        def init(self, key):
            return SGD(0.1).init(key)

        def as_optax(self, theta, specs, num_steps):
            sgd = SGD(0.1).as_optax(theta, specs, num_steps)
            return optax.chain(sgd, scale_by_specs(specs, adam_steps.rules))

    slopes = moved(check(tasks, Wrong()))
    assert min(slopes.values()) < -STEEP


@pytest.mark.slow
def test_a_learned_optimizer():
    lopt = SmallFC(step_mult=0.01, rules=ADAM_LIKE)
    assert_flat(check(at_widths("mlp", NARROW[::3], ADAM_LIKE), lopt))
    plain = dataclasses.replace(lopt, rules=STANDARD)
    assert_steep(check(at_widths("mlp", NARROW[::3], STANDARD), plain))


@pytest.mark.slow
def test_a_learned_optimizer_at_large_widths():
    # With the paper's floors the slopes are those of floors, not of networks: they
    # neither vanish nor stay alike. With width-safe ones every layer becomes flat.
    safe = SmallFC(step_mult=0.01, rules=ADAM_LIKE, epsilons=WIDTH_SAFE)
    assert_flat(check(at_widths("mlp", WIDE[1:], ADAM_LIKE), safe, seeds=range(6)))


def at_depths(name, depths, rules):
    task = FAMILIES[name].task().with_rules(rules)
    if isinstance(task.model, BlockModel):  # one block is compiled, whatever the depth
        model = dataclasses.replace(task.model, scan=True)
        task = dataclasses.replace(task, model=model)
    return {depth: task.at_depth(depth) for depth in depths}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer", "vit"])
def test_depth(name):
    # The stream after the last block; what the blocks add to it shrinks as 1/depth.
    complete = at_depths(name, DEPTHS, COMPLETEP)
    result = check(complete, Adam(RATE, rules=COMPLETEP))
    assert abs(moved(result)["residual/out"]) < FLAT, result.table()
    mup = check(at_depths(name, DEPTHS[::4], ADAM_LIKE), Adam(RATE, rules=ADAM_LIKE))
    assert moved(mup)["residual/out"] > STEEP, mup.table()


@pytest.mark.slow
def test_depth_of_a_resnet():
    streams = {"stage_0_stream", "stage_1_stream"}
    result = check(at_depths("resnet", DEPTHS, COMPLETEP), Adam(RATE, rules=COMPLETEP))
    slopes = moved(result)
    assert streams <= set(slopes)
    assert all(abs(slopes[name]) < FLAT for name in streams), result.table()
    mup = check(
        at_depths("resnet", DEPTHS[::4], ADAM_LIKE), Adam(RATE, rules=ADAM_LIKE)
    )
    assert all(moved(mup)[name] > STEEP for name in streams), mup.table()


@pytest.mark.slow
@pytest.mark.parametrize("orthogonalize", [True, False])
def test_celo2_with_its_trained_weights(orthogonalize, golden):
    """Orthogonal steps have a factor of their own, √(n_out/n_in) in spectral norm."""
    with np.load(golden("celo2_theta.npz"), allow_pickle=False) as file:
        parts = {key.rpartition("/")[2]: file[key] for key in file.files}
    parts["w0"] = np.concatenate([parts[f"w0__{i}"] for i in range(14)])
    theta = {
        f"layer_{i}": {"kernel": parts[f"w{i}"], "bias": parts[f"b{i}"]}
        for i in range(3)
    }
    theta = jax.tree.map(jax.numpy.asarray, theta)
    lopt = Celo2(1e-2, orthogonalize=orthogonalize, adam_mult=1.0, rules=ADAM_LIKE)
    assert_flat(check(at_widths("mlp", NARROW, ADAM_LIKE), lopt, theta))
    plain = dataclasses.replace(lopt, rules=STANDARD)
    assert_steep(check(at_widths("mlp", NARROW[::3], STANDARD), plain, theta))
