"""Whether an output may depend on an input: never a false no."""

import jax
import jax.numpy as jnp
import pytest

from tasks.custom.dependence import may_depend


def inside_jit(state, x):
    @jax.jit
    def both(state, x):
        return state + x, 2.0 * x

    return both(state, x)[1]


def through_jit(state, x):
    return jax.jit(lambda state, x: (x, jnp.sin(state)))(state, x)[1]


def through_a_loop(state, x):
    return jax.lax.scan(lambda c, _: (c + state, None), x, length=2)[0]


def chosen_by(state, x):
    return jnp.where(state > 0, x, -x)


@pytest.mark.parametrize(
    ("function", "depends"),
    [
        (lambda state, x: x * 2.0, False),
        (lambda state, x: (x, jnp.float32(3.0)), False),
        (inside_jit, False),
        (lambda state, x: jax.grad(lambda x: state + x**2)(x), False),
        (lambda state, x: state, True),
        (lambda state, x: x + 0.0 * state, True),
        (lambda state, x: jax.grad(lambda x: state * x)(x), True),
        (through_jit, True),
        (through_a_loop, True),
        (chosen_by, True),
    ],
)
def test_dependence(function, depends):
    assert may_depend(function, jnp.float32(1.0), jnp.float32(2.0)) == depends


def test_only_the_first_argument_counts_and_all_of_it():
    shapes = {"a": jax.ShapeDtypeStruct((2,), jnp.float32), "b": jnp.zeros(3)}
    assert may_depend(lambda state, x: state["b"], shapes, 1.0)
    assert may_depend(lambda state, x: state["a"], shapes, 1.0)
    assert not may_depend(lambda state, x: x, shapes, 1.0)
    assert not may_depend(lambda state, x: x, {}, 1.0)
