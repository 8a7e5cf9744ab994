"""What depends on what, read from a traced program.

The answer is safe: what is said not to depend does not. What is said to depend may be
independent after all, where a loop or a condition hides it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

_CALLS = frozenset({"jit", "pjit"})
"""Primitives whose program has an input and an output for each of their own."""


def may_depend(function: Callable[..., Any], first: Any, *others: Any) -> bool:
    """Whether any output of a function may depend on its first argument.

    Args:
        function: anything that can be traced.
        first: a tree of arrays or shapes.
        others: trees of arrays or shapes.
    """
    jaxpr = jax.make_jaxpr(function)(first, *others).jaxpr
    num = len(jax.tree.leaves(first))
    return any(_reached(jaxpr, [i < num for i in range(len(jaxpr.invars))]))


def _reached(jaxpr: core.Jaxpr, inputs: list[bool]) -> list[bool]:
    """Which outputs of a program the marked inputs reach."""
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
