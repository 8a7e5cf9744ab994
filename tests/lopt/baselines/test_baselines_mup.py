"""In μP every layer moves alike at all widths, with every baseline that can do it.

Each check has a counterpart that fails: the same optimizer with factors of another
rule, or none.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from evaluation.scaling.coordinate_check import coordinate_check
from lopt import Adafactor, Adam, Lion, Muon, Prodigy, ScheduleFreeAdamW
from parametrization import ADAM_LIKE, STANDARD, Axes, ParamSpec
from tasks.base import sample
from tasks.registry import FAMILIES

FLAT = 0.15
STEEP = 0.4
WIDTHS = (32, 64, 128, 256)
# Hidden matrices move much more than what surrounds them, or only that would be seen.
MUON = Muon(0.2, adam_ratio=0.01, rules=ADAM_LIKE)
MUON_RMS = Muon(0.1, scaling="consistent_rms", adam_ratio=0.02, rules=ADAM_LIKE)
# The floor is compared with gradients times the step scale: small enough for width 256.
PRODIGY = Prodigy(first_estimate=1e-3, eps=1e-12, rules=ADAM_LIKE)
ADAFACTOR = Adafactor(1e-2, multiply_by_parameter_scale=False, rules=ADAM_LIKE)


def check(name, widths, lopt, num_steps, seeds, rules=ADAM_LIKE):
    task = FAMILIES[name].task().with_rules(rules)
    tasks = {width: task.at_width(width) for width in widths}
    first = tasks[widths[0]]
    batch = sample(first, first.load_data(), jax.random.key(0))
    theta = lopt.init(jax.random.key(1))
    return coordinate_check(
        tasks, lambda s: lopt.as_optax(theta, s, num_steps), batch, num_steps, seeds
    )


def slopes(result, step=-1):
    found = {n: s for n, s in result.slopes(step).items() if not np.isnan(s)}
    assert found
    return found


@pytest.mark.parametrize(
    ("lopt", "widths"),
    [
        pytest.param(MUON_RMS, (32, 128), id="muon_rms", marks=pytest.mark.slow),
        pytest.param(MUON_RMS, WIDTHS, id="muon_rms, wide", marks=pytest.mark.slow),
        pytest.param(PRODIGY, WIDTHS, id="prodigy", marks=pytest.mark.slow),
    ],
)
def test_flat_with_the_factors_and_steep_without(lopt, widths):
    result = check("mlp", widths, lopt, 3, (0,))
    assert max(map(abs, slopes(result).values())) < FLAT, result.table()
    # In the same networks: only the optimizer's factors are missing.
    without = dataclasses.replace(lopt, rules=STANDARD)
    result = check("mlp", widths, without, 3, (0,))
    assert max(slopes(result).values()) > STEEP, result.table()


@pytest.mark.slow
def test_the_aspect_ratio_needs_no_factor_where_both_sides_grow():
    for lopt in (MUON, dataclasses.replace(MUON, rules=STANDARD)):
        result = check("mlp", WIDTHS, lopt, 3, (0, 1, 2))
        assert max(map(abs, slopes(result).values())) < FLAT, result.table()


NETWORK = {
    "bias": ("-> width", (4,)),
    "embed": ("pixels -> width", (3, 4)),
    "hidden": ("width -> width", (4, 4)),
    "readout": ("width -> classes", (4, 2)),
}


def grown(n):
    """Specs of a network whose width is n times its base's."""
    specs = {}
    for name, (text, base) in NETWORK.items():
        axes = Axes.parse(text)
        shape = [
            s * n if a == "width" else s for a, s in zip(axes.names, base, strict=True)
        ]
        specs[name] = ParamSpec(axes, tuple(shape), base)
    return specs


def final_estimate(run, n, rules):
    specs, lopt = grown(n), dataclasses.replace(PRODIGY, rules=rules)
    rng = np.random.default_rng(0)
    # They shrink with the width as μP has them shrink; and they agree from step to step
    # in some tensors but not in others, so it matters how much each of these weighs.
    grads = {}
    for name, spec in specs.items():
        noise = 0.0 if name == "hidden" else 2.0
        series = (1.0 + noise * rng.normal(size=6)) * ADAM_LIKE.gradient_scale(spec)
        series = series.reshape(6, *[1] * len(spec.shape))
        grads[name] = np.float32(np.broadcast_to(series, (6, *spec.shape)))
    params = {name: np.zeros(spec.shape, np.float32) for name, spec in specs.items()}
    make = functools.partial(lopt.as_optax, specs=specs, num_steps=6)
    return float(run(make, params, grads, lopt.init(None))[1].estim_lr)


def test_the_estimate_of_prodigy_does_not_depend_on_the_width(run):
    at_base, wide = (final_estimate(run, n, ADAM_LIKE) for n in (1, 16))
    assert at_base > 1.2 * PRODIGY.first_estimate  # it has grown
    np.testing.assert_allclose(wide, at_base, rtol=1e-4)
    assert abs(final_estimate(run, 16, STANDARD) / at_base - 1) > 0.05


IN_MUP = {
    "lion": Lion(3e-3, rules=ADAM_LIKE),
    "nadamw": Adam(1e-2, weight_decay=1e-2, nesterov=True, rules=ADAM_LIKE),
    "adafactor": ADAFACTOR,
    "schedule_free": ScheduleFreeAdamW(1e-2, rules=ADAM_LIKE),
    "prodigy": PRODIGY,
    "muon": Muon(2e-2, adam_ratio=0.2, rules=ADAM_LIKE),
    "muon_rms": Muon(1e-2, scaling="consistent_rms", rules=ADAM_LIKE),
}


# What the others do depends on a tensor's role alone, which the MLP has all of; Muon
# makes matrices of attention kernels as well.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"),
    [
        *(("mlp", name) for name in IN_MUP),
        ("transformer", "muon"),
    ],
)
def test_every_layer_moves_alike(family, name):
    result = check(family, WIDTHS, IN_MUP[name], 4, (0, 1, 2))
    assert max(map(abs, slopes(result).values())) < FLAT, result.table()


@pytest.mark.slow
@pytest.mark.parametrize(
    "lopt", [Lion(3e-3), Adam(1e-2, nesterov=True), ScheduleFreeAdamW(1e-2)]
)
def test_the_standard_parametrization_is_steep(lopt):
    result = check("mlp", WIDTHS[::3], lopt, 4, (0, 1, 2), STANDARD)
    steepest = max(max(slopes(result, t).values()) for t in range(4))
    assert steepest > STEEP, result.table()
