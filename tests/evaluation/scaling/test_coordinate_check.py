"""Coordinate checks of networks with changes in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from evaluation.scaling.coordinate_check import coordinate_check, log2_slope
from parametrization import ADAM_LIKE, Axes, ParamSpec

SIZES = (4, 8, 16, 32)
BATCH = jnp.asarray([1.0, -2.0, 0.5])


@dataclasses.dataclass(frozen=True)
class Line:
    """Network `size**power · w · x`; gradient descent moves it by a multiple of x."""

    size: int
    power: float = 0.0

    def specs(self):
        return {"w": ParamSpec(Axes.parse("->"), (), ())}

    def init(self, key):
        return {"w": jax.random.normal(key)}

    def activations(self, params, key, batch):
        out = self.size**self.power * params["w"] * batch
        return {
            "out": out,
            "still": batch,
            f"only_{self.size}": out,
            "late": jnp.where(self.size > 4, out, 0.0),
        }

    def loss(self, params, key, batch):
        return params["w"], {}


def check(power, **kwargs):
    return coordinate_check(
        {size: Line(size, power) for size in SIZES},
        lambda specs: optax.with_extra_args_support(optax.sgd(0.5)),
        BATCH,
        **kwargs,
    )


@pytest.mark.parametrize("power", [-1.0, 0.0, 1.0])
def test_the_change_and_its_slope(power):
    result = check(power, num_steps=3, seeds=(0, 5))
    assert result.sizes == SIZES and result.layers == ("out", "still", "late")
    # After t steps w has moved by −t/2, whatever its start.
    want = np.asarray(SIZES, np.float64) ** power * 0.5 * float(jnp.std(BATCH))
    for t in (1, 2, 3):
        for seed in (0, 1):
            got = result.change[:, seed, t - 1, 0]
            np.testing.assert_allclose(got, t * want, rtol=1e-5)
    assert result.slopes()["out"] == pytest.approx(power, abs=1e-5)
    assert np.isnan(result.slopes()["still"])
    assert result.slopes()["late"] == np.inf
    assert result.steepest() == ("late", np.inf)
    starts = [float(jax.random.normal(jax.random.key(seed))) for seed in (0, 5)]
    np.testing.assert_allclose(result.losses[0, :, 0], starts, rtol=1e-6)
    std = abs(starts[1]) * 4**power * float(jnp.std(BATCH))
    np.testing.assert_allclose(result.initial[0, 1, 0], std, rtol=1e-5)


def test_the_table_shows_every_layer_and_size():
    lines = check(1.0, num_steps=1, seeds=(0,)).table().splitlines()
    assert lines[0].split() == ["layer", "4", "8", "16", "32", "slope"]
    assert lines[1].split()[0] == "out" and lines[1].split()[-1] == "+1.000"
    assert lines[2].split() == ["still", "0", "0", "0", "0", "–"]
    first, last = (float(lines[1].split()[i]) for i in (1, 4))
    assert last == pytest.approx(8 * first, rel=2e-2)


def test_slopes_are_least_squares_over_seeds():
    rng = np.random.default_rng(0)
    values = rng.uniform(0.1, 2.0, (4, 3))
    x = np.log2(SIZES)
    want = np.polyfit(x, np.log2(values).mean(1), 1)[0]
    assert log2_slope(SIZES, values) == pytest.approx(want, rel=1e-12)
    values[2, 1] = np.nan
    assert log2_slope(SIZES, values) == np.inf


def test_learned_and_hand_designed_optimizers_get_the_specs():
    seen = []

    def build(specs):
        seen.append(specs)
        return optax.with_extra_args_support(optax.sgd(0.5))

    coordinate_check({4: Line(4), 8: Line(8)}, build, BATCH)
    assert seen and all(ADAM_LIKE.step_scale(specs["w"]) == 1.0 for specs in seen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (8,)}, "at least two different"),
        ({"num_steps": 0}, "num_steps = 0"),
        ({"seeds": ()}, r"seeds = \(\)"),
    ],
)
def test_what_cannot_be_judged_is_refused(change, message):
    sizes = change.pop("sizes", SIZES)
    with pytest.raises(ValueError, match=message):
        coordinate_check(
            {size: Line(size) for size in sizes},
            lambda specs: optax.with_extra_args_support(optax.sgd(0.5)),
            BATCH,
            **change,
        )


def test_nothing_moved_is_no_verdict():
    with pytest.raises(ValueError, match="no layer has moved"):
        coordinate_check(
            {size: Line(size) for size in SIZES},
            lambda specs: optax.with_extra_args_support(optax.sgd(0.0)),
            BATCH,
        ).steepest()
