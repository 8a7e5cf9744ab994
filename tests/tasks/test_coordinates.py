"""Every family: layers change alike at every width in μP, and do not without it.

Four steps of training on one batch, three seeds. In μP no layer's change may depend on
the width; in the standard parametrization some layer's must, or the check could not
fail. Families without a width say so by `width = None`.
"""

import jax
import numpy as np
import pytest

from lopt import Adam
from parametrization import (
    ADAM_LIKE,
    STANDARD,
    coordinate_check,
)
from tasks.base import sample
from tasks.families import FAMILIES

FLAT = 0.15
STEEP = 0.4
NARROW = (32, 64, 128, 256)
WIDE = (64, 128, 256, 512, 1024)
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


@pytest.mark.parametrize("name", WITH_WIDTH)
def test_adam(name):
    assert_flat(check(at_widths(name, NARROW, ADAM_LIKE), Adam(RATE, rules=ADAM_LIKE)))
    # Two widths are enough to fail.
    assert_steep(check(at_widths(name, NARROW[::3], STANDARD), Adam(RATE)))


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_WIDTH)
def test_adam_at_large_widths(name):
    assert_flat(check(at_widths(name, WIDE, ADAM_LIKE), Adam(RATE, rules=ADAM_LIKE)))
    assert_steep(check(at_widths(name, WIDE[::2], STANDARD), Adam(RATE)))
