"""Compiler options that not every version of XLA knows."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax

Option = bool | int | str


def known_options(options: Mapping[str, Option]) -> dict[str, Option]:
    """Returns those options that this XLA knows, for `jax.jit(compiler_options=…)`.

    XLA refuses a program that names an option it does not know, and options come and
    go between versions and devices.
    """
    return {name: value for name, value in options.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: Option) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True
