"""What every baseline promises: dtypes, finite steps, tensors that are left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

from lopt import SGD, Adafactor, Adam, Lion, Muon, Prodigy, ScheduleFreeAdamW
from parametrization import ADAM_LIKE, Axes, ParamSpec

SHAPES = {
    "conv": ("kernel kernel channels -> channels", (2, 2, 4, 4)),
    "empty": ("width -> width", (0, 4)),
    "scalar": ("->", ()),
    "stacked": ("[layers] width -> mlp", (2, 4, 6)),
    "vector": ("-> width", (4,)),
}
SPECS = {
    name: ParamSpec(Axes.parse(axes), shape, tuple(min(n, 2) for n in shape))
    for name, (axes, shape) in SHAPES.items()
}
BASELINES = {
    "adam": Adam(0.01, weight_decay=0.1, nesterov=True, rules=ADAM_LIKE),
    "sgd": SGD(0.01, momentum=0.9, nesterov=True),
    "lion": Lion(0.01, weight_decay=0.1, rules=ADAM_LIKE),
    "muon": Muon(0.01, weight_decay=0.1, newton_schulz_steps=2, rules=ADAM_LIKE),
    "adafactor": Adafactor(0.01, min_dim_size_to_factor=4, weight_decay=0.1),
    "schedule_free": ScheduleFreeAdamW(0.01, weight_decay=0.1, rules=ADAM_LIKE),
    "prodigy": Prodigy(first_estimate=0.01, weight_decay=0.1, rules=ADAM_LIKE),
}


def draw(seed, dtype="float32"):
    rng = np.random.default_rng(seed)
    return {n: jnp.asarray(rng.normal(size=s.shape), dtype) for n, s in SPECS.items()}


@pytest.fixture(scope="module", params=BASELINES)
def baseline(request):
    return BASELINES[request.param]


@pytest.fixture(scope="module")
def step(baseline):
    """`(params, state, grads) -> (params, state, updates)`, compiled."""
    rule = baseline.as_optax(baseline.init(None), SPECS, 10)

    @jax.jit
    def step(params, state, grads):
        state = rule.init(params) if state is None else state
        updates, state = rule.update(grads, state, params, loss=jnp.float32(1))
        return optax.apply_updates(params, updates), state, updates

    return step


def finite(tree):
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree))


def test_steps_of_any_gradient(baseline, step):
    params, state, _ = step(draw(0), None, jax.tree.map(jnp.zeros_like, draw(1)))
    assert finite(params)  # gradients that were always zero
    params, state, _ = step(params, state, draw(1))
    compiled = step._cache_size()
    plain, new, updates = step(params, state, draw(2))
    for name, x in params.items():
        assert updates[name].shape == x.shape and updates[name].dtype == x.dtype
        assert x.size == 0 or bool((plain[name] != x).all())
    assert finite(new)
    # An infinite gradient of one tensor.
    bad = draw(2)
    bad["conv"] = bad["conv"].at[0, 1, 2, 3].set(jnp.inf)
    broken, after, _ = step(params, state, bad)
    if isinstance(baseline, Prodigy):  # coupled: that step is left out
        jax.tree.map(np.testing.assert_array_equal, broken, params)
        assert finite(after)
    else:
        for name in sorted(SPECS.keys() - {"conv"}):
            np.testing.assert_array_equal(broken[name], plain[name])
    # Nothing compiles again, and the state is a plain tree of arrays.
    assert step._cache_size() == compiled
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(new))
    stored = serialization.to_state_dict(new)
    again = serialization.from_state_dict(after, stored)
    jax.tree.map(np.testing.assert_array_equal, again, new)


def test_bfloat16_parameters_have_wider_accumulators(step):
    params = draw(0, "bfloat16")
    params, state, updates = step(params, None, draw(1, "bfloat16"))
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves((params, updates)))
    assert finite(params)
    dtypes = {x.dtype for x in jax.tree.leaves(state)}
    assert dtypes <= {np.dtype(t) for t in ("float32", "int32", "bool")}


def test_beside_another_optimizer_and_over_several_batches(baseline, step):
    rule = baseline.as_optax(baseline.init(None), SPECS, 10)
    labels = {n: "other" if n in ("scalar", "stacked") else "mine" for n in SPECS}
    both = optax.chain(
        optax.clip(1e9),
        optax.multi_transform({"mine": rule, "other": optax.set_to_zero()}, labels),
    )
    several = optax.MultiSteps(both, 2).gradient_transformation()

    @jax.jit
    def run(params, grads):
        state = several.init(params)
        first, state = several.update(grads, state, params)
        return first, several.update(grads, state, params)[0]

    params, grads = draw(0), draw(1)
    first, second = run(params, grads)
    _, _, alone = step(params, None, grads)
    for name, label in labels.items():
        assert not np.any(first[name])
        want = alone[name] if label == "mine" else np.zeros_like(alone[name])
        np.testing.assert_allclose(second[name], want, rtol=1e-5, atol=1e-7)
