"""The exponents, against a table written by hand (tests/golden/mup_scales.json)."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parametrization import ADAM_LIKE, SGD_LIKE, STANDARD, Axes, ParamSpec, Rules
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


COLUMNS = {
    "STANDARD": "STANDARD",
    "ADAM_LIKE": "ADAM_LIKE",
    "SGD_LIKE": "SGD_LIKE",
    "COMPLETEP": "ADAM_LIKE",
    "COMPLETEP_SGD_LIKE": "SGD_LIKE",
}
"""Each parametrization's column of the table, outside of residual blocks."""


@pytest.mark.parametrize("rules", list(Rules), ids=lambda rules: rules.name)
def test_scales(case, rules):
    spec, want = spec_of(case), case[COLUMNS[rules.name]]
    assert spec.kind == case["kind"]
    assert rules.step_scale(spec) == want["step_scale"]
    gradient = 1.0 if rules is STANDARD else case["gradient"]
    assert rules.gradient_scale(spec) == pytest.approx(gradient, rel=1e-15)
    if spec.kind == "output":
        base = ParamSpec(spec.axes, spec.base_shape, spec.base_shape)
        got = rules.forward_scale(spec.fan_in, base.fan_in)
        assert got == want["forward_scale"]


# In a block of a network four times as deep: only CompleteP knows of depth.
IN_A_BLOCK = {
    "STANDARD": (1.0, 1.0),
    "ADAM_LIKE": (1.0, 1.0),
    "SGD_LIKE": (1.0, 1.0),
    "COMPLETEP": (1.0, 0.25),
    "COMPLETEP_SGD_LIKE": (4.0, 0.25),
}


@pytest.mark.parametrize("rules", list(Rules), ids=lambda rules: rules.name)
def test_depth(case, rules):
    flat = spec_of(case)
    deep = dataclasses.replace(flat, depth_mult=4.0)
    step, gradient = IN_A_BLOCK[rules.name]
    assert rules.step_scale(deep) == step * rules.step_scale(flat)
    assert rules.gradient_scale(deep) == gradient * rules.gradient_scale(flat)
    branch = 0.25 if rules.name.startswith("COMPLETEP") else 1.0
    assert rules.residual_scale(depth=8, base_depth=2) == branch
    assert rules.residual_scale(depth=3, base_depth=3) == 1.0


@pytest.mark.parametrize("rules", list(Rules), ids=lambda rules: rules.name)
def test_attention_is_divided_by_the_head_dimension_with_parity_at_the_base(rules):
    assert rules.attention_scale(16, 16) == 0.25
    grown = rules.attention_scale(64, 16)
    assert grown == (1 / 8 if rules is STANDARD else 1 / 16)


def test_the_two_forms_of_a_readout_take_the_same_step():
    # Multiplier a and step c make a change of a·c per unit of gradient-free step
    # (Adam); a gradient that is itself multiplied by a makes it a²·c (SGD). The form
    # without multiplier has step 1/n in both columns (Tensor Programs V, Table 3).
    spec = ParamSpec(Axes.parse("width -> classes"), (40, 10), (8, 10))
    a = ADAM_LIKE.forward_scale(40, 8)
    assert a * ADAM_LIKE.step_scale(spec) == 1 / 5
    assert a**2 * SGD_LIKE.step_scale(spec) == pytest.approx(1 / 5, rel=1e-15)


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


@pytest.mark.optimized
def test_a_zero_readout_is_not_a_constant_to_the_compiler():
    # jaxlib 0.10.2 computes the mean of (a product with a constant matrix) wrongly on
    # CPUs; what it returns depends on what lies in memory. So the zeros must still be
    # drawn when everything has been optimized, and be zeros.
    draw = initializer("width -> classes")
    compiled = jax.jit(lambda key: draw(key, (32, 4), jnp.float32).value)
    program = compiled.lower(jax.random.key(0)).compile()
    assert "xor" in program.as_text()
    assert np.asarray(program(jax.random.key(1))).tobytes() == bytes(32 * 4 * 4)
