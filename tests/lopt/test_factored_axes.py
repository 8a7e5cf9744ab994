"""Rules with factored moments see an attention kernel as the matrix that acts."""

import dataclasses

import jax
import numpy as np
import pytest

from lopt import SmallFC
from lopt.learned.celo import Celo
from lopt.learned.elo import ELO
from lopt.learned.velo import VeLO
from lopt.per_parameter import accumulators
from lopt.placement import blank
from lopt.release.registry import LEARNED
from lopt.tensors import tensor_shape
from parametrization import ADAM_LIKE, Axes, ParamSpec

RULES = (
    SmallFC(hidden_size=4, step_mult=0.1, rules=ADAM_LIKE),
    ELO(hidden_size=4, learning_rate=0.1, rules=ADAM_LIKE),
    VeLO(lstm_hidden_size=2, param_inits=2, step_mult=0.1, rules=ADAM_LIKE),
    Celo(lstm_hidden_size=2, step_mult=0.1, rules=ADAM_LIKE),
)
# Axes, shape, base shape, and the same as a matrix or a vector.
TENSORS = {
    "query": ("width -> heads head_dim", (8, 2, 5), (4, 1, 5), (8, 10)),
    "out": ("heads head_dim -> width", (2, 5, 8), (1, 5, 4), (10, 8)),
    "layers": ("[layers] width -> gates width", (2, 6, 4, 6), (2, 3, 4, 3), (6, 24)),
    "bias": ("-> gates width", (4, 6), (4, 3), (24,)),
    "conv": ("kernel kernel channels -> channels", (3, 3, 2, 4), (3, 3, 1, 2), None),
    "depthwise": ("kernel kernel -> channels", (3, 3, 4), (3, 3, 2), None),
    "unknown": ("width fixed -> width", (3, 4, 6), (3, 4, 3), None),
    "scalar": ("->", (), (), (1,)),
}
SPECS = {
    name: ParamSpec(Axes.parse(axes), shape, base)
    for name, (axes, shape, base, _) in TENSORS.items()
}


@pytest.mark.parametrize("name", TENSORS)
def test_sides_are_merged_and_positions_are_not(name):
    spec, wanted = SPECS[name], TENSORS[name][3]
    own = spec.shape[len(spec.axes.stacked) :] or (1,)
    assert tensor_shape(spec) == tensor_shape(spec, "tensor") == own
    assert tensor_shape(spec, "matrix") == (wanted or own)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("factored_axes", ["tensor", "matrix", None])
def test_the_rule_averages_over_rows_and_columns_of_that_shape(rule, factored_axes):
    if factored_axes is not None:
        rule = dataclasses.replace(rule, factored_axes=factored_axes)
    shape = jax.eval_shape

    def state_after(theta, params):
        transformation = rule.as_optax(theta, SPECS, 9)
        state = transformation.init(params)
        return transformation.update(params, state, params, loss=1.0)[1]

    params = {n: jax.ShapeDtypeStruct(s.shape, "float32") for n, s in SPECS.items()}
    state = shape(state_after, shape(rule.init, jax.random.key(0)), params)
    (tensors,) = [
        node.tensors
        for node in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "tensors"))
        if hasattr(node, "tensors")
    ]
    for name, spec in SPECS.items():
        seen = tensor_shape(spec, factored_axes or "matrix")
        want = accumulators.init(blank(seen, np.float32), 3)
        stacked = spec.shape[: len(spec.axes.stacked)]
        assert jax.tree.map(lambda x: x.shape, tensors[name]) == jax.tree.map(
            lambda x, stacked=stacked: (*stacked, *x.shape), want
        )


def test_every_rule_with_factored_moments_has_the_field():
    with_moments = {
        kind
        for kind in LEARNED
        if "factored_decays" in {field.name for field in dataclasses.fields(kind)}
    }
    with_field = {type(rule) for rule in RULES}
    # CELO2 has always seen matrices.
    assert {kind.__name__ for kind in with_moments - with_field} == {"Celo2"}
