"""Options that XLA does not know are left out; wrong values are still refused."""

import jax
import pytest

from metatrain.compiler import known_options

KNOWN = {"xla_backend_optimization_level": 0}


def test_unknown_options_are_left_out():
    assert known_options({"xla_no_such_option": True, **KNOWN}) == KNOWN


def test_a_wrong_value_is_not_taken_for_an_unknown_option():
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_backend_optimization"):
        known_options({"xla_backend_optimization_level": "high"})
