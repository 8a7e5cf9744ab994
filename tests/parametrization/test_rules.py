"""The exponents, against a table written by hand (tests/golden/mup_scales.json)."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parametrization import ADAM_LIKE, STANDARD, Axes, ParamSpec, Rules
from parametrization.axes import KINDS
from parametrization.rules import init_std, initializer

TABLE = Path(__file__).parents[1] / "golden" / "mup_scales.json"
CASES = {case["name"]: case for case in json.loads(TABLE.read_text())["cases"]}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def spec_of(case):
    shapes = tuple(case["shape"]), tuple(case["base_shape"])
    return ParamSpec(Axes.parse(case["axes"]), *shapes)


def test_the_table_has_every_kind():
    assert {case["kind"] for case in CASES.values()} == set(KINDS)


@pytest.mark.parametrize("rules", list(Rules), ids=lambda rules: rules.name)
def test_scales(case, rules):
    spec, want = spec_of(case), case[rules.name]
    assert spec.kind == case["kind"]
    assert rules.step_scale(spec) == want["step_scale"]
    if spec.kind == "output":
        base = ParamSpec(spec.axes, spec.base_shape, spec.base_shape)
        got = rules.forward_scale(spec.fan_in, base.fan_in)
        assert got == want["forward_scale"]


def test_standard_deviations(case):
    std = init_std(Axes.parse(case["axes"]), tuple(case["shape"]))
    assert std == pytest.approx(case["init_std"], rel=1e-15)


def test_at_the_base_shape_all_parametrizations_agree(case):
    spec = spec_of({**case, "shape": case["base_shape"]})
    for rules in Rules:
        assert rules.step_scale(spec) == rules.gradient_scale(spec) == 1.0


def test_base_width_one_is_the_absolute_rule():
    axes = Axes.parse("kernel channels -> channels")
    spec = ParamSpec(axes, (3, 64, 64), (3, 1, 1))
    assert ADAM_LIKE.step_scale(spec) == 1 / 64
    assert ADAM_LIKE.forward_scale(64, 1) == 1 / 64
    assert STANDARD.forward_scale(64, 1) == 1.0


def test_gradients_shrink_with_the_units_that_share_the_error():
    def scale(axes, shape, base):
        return ADAM_LIKE.gradient_scale(ParamSpec(Axes.parse(axes), shape, base))

    assert scale("pixels -> width", (5, 32), (5, 8)) == 0.25
    assert scale("width -> width", (16, 32), (8, 8)) == 0.25
    assert scale("width -> classes", (32, 10), (8, 10)) == 0.25
    assert scale("-> width", (32,), (8,)) == 0.25
    assert scale("-> classes", (10,), (10,)) == 1.0


def test_initializers_draw_with_the_table_s_deviation():
    draw = initializer("width -> width")
    box = draw(jax.random.key(3), (400, 300), jnp.float32)
    assert str(box.axes) == "width -> width"
    values = np.asarray(box.value, np.float64)
    # 4.5 standard errors of a standard deviation and of a mean.
    error = 4.5 / math.sqrt(2 * values.size)
    assert values.std() * math.sqrt(400) == pytest.approx(1.0, abs=error)
    assert abs(values.mean()) < 4.5 * 0.05 / math.sqrt(values.size)
    for axes, shape in (("width -> classes", (4, 3)), ("-> width", (4,)), ("->", ())):
        zeros = initializer(axes)(jax.random.key(3), shape, jnp.float32).value
        assert zeros.shape == shape and not zeros.any()
