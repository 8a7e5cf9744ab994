"""Checks of the ranges of optimizers' fields; `configuration` checks their types."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from parametrization.rules import ADAM_LIKE, STANDARD, Rules

LARGEST = 1e38
"""Largest value of a field, well inside float32."""
MOST_DECAYS = 100
"""Most decays of one kind; each is an accumulator of the size of the parameters."""


def positive_integer(owner: Any, *names: str) -> None:
    """Checks fields that count."""
    for name in names:
        value = getattr(owner, name)
        if value < 1:
            raise ValueError(f"{name} = {value} must be a positive whole number")
        # Layers are traced one by one, so many more would take for ever.
        most = 1000 if name.endswith("layers") else 10**6
        if value > most:
            raise ValueError(f"{name} = {value} must be at most {most:,}")


def within(owner: Any, name: str, low: float, high: float) -> None:
    """Checks a field against a closed interval."""
    value = getattr(owner, name)
    if not low <= value <= high:
        raise ValueError(f"{name} = {value} must lie in [{low:g}, {high:g}]")


def positive(owner: Any, *names: str) -> None:
    """Checks fields that are finite and above 0."""
    for name in names:
        value = getattr(owner, name)
        if not 0 < value <= LARGEST:
            raise ValueError(f"{name} = {value} must be positive, at most {LARGEST}")


def not_negative(owner: Any, *names: str) -> None:
    """Checks fields that are finite and not below 0."""
    for name in names:
        value = getattr(owner, name)
        if not 0 <= value <= LARGEST:
            raise ValueError(
                f"{name} = {value} must not be negative, and at most {LARGEST}"
            )


def network(owner: Any) -> None:
    """Checks sizes and scales of a per-parameter network."""
    positive_integer(owner, "hidden_size", "hidden_layers")
    if not 0.0 < owner.step_mult <= 1e3:
        raise ValueError(f"step_mult = {owner.step_mult} must lie in (0, 1000]")
    for name in ("exp_mult", "output_scale"):
        within(owner, name, -1e3, 1e3)


def decay(owner: Any, *names: str) -> None:
    """Checks fields that are decays of running averages."""
    for name in names:
        value = getattr(owner, name)
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name} = {value} must lie in [0, 1)")


def decays(owner: Any, *names: str) -> None:
    """Checks fields that hold one decay or several."""
    for name in names:
        value = getattr(owner, name)
        if value == ():
            raise ValueError(f"{name} = () must name at least one decay")
        if isinstance(value, tuple) and len(value) > MOST_DECAYS:
            raise ValueError(
                f"{name} has {len(value):,} decays, must have at most {MOST_DECAYS}"
            )
        for decay in value if isinstance(value, tuple) else (value,):
            if not 0.0 <= decay < 1.0:
                raise ValueError(f"{name}: decay {decay} must lie in [0, 1)")


def as_many(owner: Any, name: str, other: str) -> None:
    """Checks that two fields have as many decays."""
    value, wanted = getattr(owner, name), getattr(owner, other)
    if len(value) != len(wanted):
        raise ValueError(
            f"{name} = {value} must be as many as {other} = {wanted}: each momentum is "
            "divided by the factored moment of the same index"
        )


def floating(param: Any, complex_numbers: bool = False) -> None:
    """Refuses integers, truth values and, unless they are known, complex numbers."""
    dtype = getattr(param, "dtype", None) or jnp.result_type(param)
    if jnp.issubdtype(dtype, jnp.floating):
        return
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(
            f"a parameter or gradient of shape {jnp.shape(param)} is {dtype}, must be "
            "floating-point: keep what is not trained out of the parameters"
        )
    if not complex_numbers:
        raise ValueError(
            f"a parameter of shape {jnp.shape(param)} is {dtype}, must be real: give "
            "real and imaginary part as two parameters"
        )


def step_rules(rules: Rules) -> None:
    """Checks the parametrization of a rule whose steps do not grow with gradients."""
    if not isinstance(rules, Rules) or rules not in (STANDARD, ADAM_LIKE):
        raise ValueError(
            f"rules = {rules!r} must be STANDARD or ADAM_LIKE; in a CompleteP "
            "model the steps of this optimizer are those of ADAM_LIKE"
        )
