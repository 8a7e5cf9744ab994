"""Dependence of outputs on inputs, read from a traced program.

The answer is conservative: an independence behind a loop or a condition is not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

_CALLS = frozenset({"jit", "pjit"})
"""Primitives whose inner program has the same inputs and outputs."""


def may_depend(function: Callable[..., Any], first: Any, *others: Any) -> bool:
    """Returns whether any output of a function may depend on its first argument.

    Args:
        function: anything that can be traced.
        first: a tree of arrays or shapes.
        others: trees of arrays or shapes.
    """
    jaxpr = jax.make_jaxpr(function)(first, *others).jaxpr
    num = len(jax.tree.leaves(first))
    return any(_reached(jaxpr, [i < num for i in range(len(jaxpr.invars))]))


def _reached(jaxpr: core.Jaxpr, inputs: list[bool]) -> list[bool]:
    """Returns which outputs of a program the marked inputs reach."""
    reached = {var for var, mark in zip(jaxpr.invars, inputs, strict=True) if mark}

    def marks(variables: Any) -> list[bool]:
        return [not isinstance(v, core.Literal) and v in reached for v in variables]

    for equation in jaxpr.eqns:
        inside = marks(equation.invars)
        if not any(inside):
            continue
        if equation.primitive.name in _CALLS:
            out = _reached(equation.params["jaxpr"].jaxpr, inside)
        else:
            out = [True] * len(equation.outvars)
        reached.update(v for v, mark in zip(equation.outvars, out, strict=True) if mark)
    return marks(jaxpr.outvars)
