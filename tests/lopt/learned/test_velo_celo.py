"""VeLO and Celo against trajectories of the originals, and their common ground."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt.learned.celo import Celo
from lopt.learned.velo import PUBLISHED, VeLO
from lopt.per_parameter import accumulators, features
from lopt.placement import blank
from parametrization import ADAM_LIKE, SGD_LIKE, Axes, ParamSpec
from tests.lopt.per_tensor.test_scheduler import tensor_lstm_theta
from tests.lopt.trajectories import LEAVES, Trajectory, assert_close

GROUPS = 14
"""Kinds of features; each has a kernel of its own in the original."""
VELO = VeLO(lstm_hidden_size=16, param_inits=8)
BUGGED = dataclasses.replace(VELO, bugged_losses=True)
FILES = {
    "velo_hyperv2": (VELO, 3e-5),
    "velo_hyperv2_bugged_loss": (BUGGED, 3e-6),
    "celo": (Celo(), 2e-6),
    "celo_long": (Celo(), 5e-6),
}
DECAYS = {
    "mom_rolling/m": "momentum",
    "rms_rolling/rms": "second_moment",
    "fac_rolling/v_row": "row",
    "fac_rolling/v_col": "column",
    "fac_rolling/v_diag": "row",
}


def layers(arrays):
    """The bank in our names, its first kernel in one."""
    stack = {k.removeprefix("ff_mod_stack/~/"): v for k, v in arrays.items()}
    first = np.concatenate([stack[f"w0__{i}"] for i in range(GROUPS)], axis=1)
    return {
        "layer_0": {"kernel": first, "bias": stack["b0"]},
        "layer_1": {"kernel": stack["w1"], "bias": stack["b1"]},
        "layer_2": {"kernel": stack["w2"], "bias": stack["b2"]},
    }


def velo_theta(arrays):
    return {"scheduler": tensor_lstm_theta(arrays), "bank": layers(arrays)}


def celo_theta(arrays):
    """A bank of one network has the weight 1, whatever the controls are."""
    scheduler = tensor_lstm_theta(arrays)
    del scheduler["controls"]
    return {
        "scheduler": scheduler,
        "rule": jax.tree.map(lambda x: x[0], layers(arrays)),
    }


class Golden:
    def __init__(self, name, golden):
        self.optimizer, self.atol = FILES[name]
        self.file = Trajectory(golden(f"{name}.npz"))
        make = celo_theta if name.startswith("celo") else velo_theta
        self.theta = make(self.file.group("theta"))
        self.f32 = self.file.run(self.optimizer, self.theta, np.float32)


SLOW = {"velo_hyperv2_bugged_loss", "celo_long"}
"""Tests of the scheduler check the loss features, too."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in FILES
    ],
)
def reference(request, golden):
    return Golden(request.param, golden)


def test_theta_has_the_shapes_of_the_original(reference):
    ours = jax.eval_shape(reference.optimizer.init, jax.random.key(0))
    shapes = jax.tree.map(np.shape, reference.theta)
    assert jax.tree.map(lambda x: x.shape, ours) == shapes


def test_every_step_in_float32(reference):
    for leaf in LEAVES:
        got = reference.f32[0][leaf]
        want = reference.file.arrays[f"params/{leaf}"][1:]
        assert got.dtype == np.float32 and len(got) == 20
        assert_close(got, want, 1e-5, reference.atol)


def test_every_step_in_float64(reference):
    path, _ = reference.file.run(reference.optimizer, reference.theta, np.float64)
    for leaf in LEAVES:
        want = reference.file.arrays[f"params_f64/{leaf}"][1:]
        assert path[leaf].dtype == np.float64 and len(path[leaf]) == 20
        assert_close(path[leaf], want, 0, 1e-6)


def test_final_accumulators(reference):
    for theirs, ours in DECAYS.items():
        for leaf, want in reference.file.group(f"final/{theirs}").items():
            got = getattr(reference.f32[1].tensors[leaf], ours)[-1]
            want = np.moveaxis(want, -1, 0).reshape(got.shape)
            assert_close(got, want, 1e-4, 1e-7 * np.abs(want).max())
    assert reference.f32[1].step[-1] == reference.file.arrays["final/iteration"] == 20


@pytest.mark.slow
def test_inputs_of_the_network(reference):
    """Step 3: parameters and accumulators of ours, after that gradient."""
    rule, file = reference.optimizer.rule, reference.file
    states = jax.tree.map(lambda x: x[3], reference.f32[1].tensors)

    @jax.jit
    def look(params, grads, states):
        q = {
            leaf: rule.quantities(
                jnp.atleast_1d(grads[leaf]), jnp.atleast_1d(params[leaf]), states[leaf]
            )
            for leaf in LEAVES
        }
        return {k: features.all_features(features.VELO, v) for k, v in q.items()}

    params = {k: v[3] for k, v in file.group("params").items()}
    grads = {k: v[3] for k, v in file.group("grads").items()}
    got = look(params, grads, states)
    for leaf in LEAVES:
        assert_close(got[leaf], file.arrays[f"features/ff/{leaf}"], 1e-4, 1e-4)


def test_the_published_weights_are_those_of_the_trajectories(golden):
    arrays = Trajectory(golden("celo.npz")).group("theta")
    with np.load(golden("celo_theta.npz"), allow_pickle=False) as file:
        trained = celo_theta({k: file[k] for k in file.files})
    assert jax.tree.all(jax.tree.map(np.array_equal, celo_theta(arrays), trained))


def test_published_velo_has_the_size_of_the_original():
    """2,320,385 weights without those of an unused layer (30 × 512 + 512)."""
    shapes = jax.eval_shape(PUBLISHED.init, jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert count == 2_320_385 - (30 * 512 + 512)
    assert PUBLISHED.bugged_losses and PUBLISHED.rule.hidden_size == 4


SMALL = {
    "velo": VeLO(lstm_hidden_size=3, param_inits=2, param_scale_mult=False),
    "celo": Celo(lstm_hidden_size=3, param_scale_mult=False),
}
SPECS = {
    "a": ParamSpec(Axes.parse("width -> width"), (4, 4), (2, 2)),
    "b": ParamSpec(Axes.parse("-> width"), (4,), (2,)),
    "empty": ParamSpec(Axes.parse("pixels -> width"), (0, 4), (0, 2)),
    "s": ParamSpec(Axes.parse("[layers] width -> width"), (2, 4, 4), (2, 2, 2)),
}


def last_step(lopt, specs):
    """Compiled: updates of the last of three rounds, and the state."""

    @jax.jit
    def run(theta, params, grads, losses, num_steps):
        rule = lopt.as_optax(theta, specs, num_steps)

        def step(carry, given):
            updates, state = rule.update(given[0], carry[1], carry[0], loss=given[1])
            return (optax.apply_updates(carry[0], updates), state), updates

        carry = (params, rule.init(params))
        (_, state), updates = jax.lax.scan(step, carry, (grads, losses))
        return jax.tree.map(lambda u: u[-1], updates), state

    return lambda *given: jax.tree.map(np.asarray, run(*given))


class Small:
    def __init__(self, name):
        rng = np.random.default_rng(0)
        self.optimizer = SMALL[name]

        def draw(*lead):
            return {
                n: np.float32(rng.normal(size=lead + s.shape)) for n, s in SPECS.items()
            }

        shapes = jax.eval_shape(self.optimizer.init, jax.random.key(0))
        self.theta = jax.tree.map(
            lambda x: np.float32(0.5 * rng.normal(size=x.shape)), shapes
        )
        self.params, self.grads = draw(), draw(3)
        self.losses = np.float32([2.0, 1.5, 1.0])
        self.run = last_step(self.optimizer, SPECS)


@pytest.fixture(
    scope="module", params=["velo", pytest.param("celo", marks=pytest.mark.slow)]
)
def small(request):
    return Small(request.param)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_one_bad_gradient_leaves_all_tensors_finite(small, bad):
    broken = jax.tree.map(np.copy, small.grads)
    broken["a"][1] = bad
    steps, state = small.run(small.theta, small.params, broken, small.losses, 10)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((steps, state)))
    assert np.any(steps["a"]) and np.any(steps["b"])


def test_mu_p_scales_the_step_and_unscales_the_gradient(small):
    """At twice the base width, gradients and hidden matrices' steps are halved."""
    mup = last_step(dataclasses.replace(small.optimizer, rules=ADAM_LIKE), SPECS)
    first = jax.tree.map(lambda g: g[:1], small.grads), small.losses[:1], 10
    doubled = jax.tree.map(lambda g: 2 * g, first[0]), *first[1:]
    got, _ = mup(small.theta, small.params, *first)
    want, _ = small.run(small.theta, small.params, *doubled)
    for name, factor in (("a", 0.5), ("s", 0.5), ("b", 1.0)):
        np.testing.assert_allclose(got[name], factor * want[name], rtol=1e-6)
        assert np.any(got[name])


def test_it_needs_loss_and_parameters(small):
    rule = small.optimizer.as_optax(small.theta, SPECS, 10)
    state = jax.eval_shape(rule.init, small.params)
    grads = jax.tree.map(lambda g: g[0], small.grads)
    name = type(small.optimizer).__name__
    with pytest.raises(ValueError, match=f"{name} needs the loss"):
        rule.update(grads, state, small.params)
    with pytest.raises(ValueError, match=f"{name} needs params"):
        rule.update(grads, state, loss=1.0)


def test_celo_learns_in_two_phases():
    rng = np.random.default_rng(1)
    celo = Celo(lstm_hidden_size=3)
    phases = {p: dataclasses.replace(celo, phase=p) for p in ("rule", "scheduler")}
    assert phases["rule"].frozen == ("scheduler",)
    assert phases["scheduler"].frozen == ("rule",) and celo.frozen == ()
    shapes = jax.eval_shape(celo.init, jax.random.key(0))
    assert sorted(shapes) == ["rule", "scheduler"]
    theta = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), shapes)
    spec = {"a": SPECS["a"]}
    params, grads = ({"a": np.float32(rng.normal(size=(4, 4)))} for _ in range(2))

    @jax.jit
    def steps(theta):
        results = {}
        for phase, lopt in phases.items():
            rule = lopt.as_optax(theta, spec, 10)
            loss = {} if phase == "rule" else {"loss": 2.0}
            results[phase] = rule.update(grads, rule.init(params), params, **loss)
        return results

    results = steps(theta)
    (plain, before), (scheduled, after) = results["rule"], results["scheduler"]
    ratio = np.asarray(scheduled["a"] / plain["a"])
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
    assert abs(ratio[0, 0] - 1) > 1e-2
    assert before.scheduler.losses.losses == 0 and after.scheduler.losses.losses == 1
    assert jax.tree.structure(before) == jax.tree.structure(after)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VeLO(param_inits=0), "param_inits = 0 must be a positive"),
        (lambda: VeLO(ff_hidden_size=0), "ff_hidden_size = 0 must be a positive"),
        (lambda: VeLO(param_scale_mult=True, rules=ADAM_LIKE), "makes steps grow"),
        (lambda: VeLO(rules=SGD_LIKE), "rules = Rules.SGD_LIKE must be"),
        (lambda: VeLO(momentum_decays=(0.9,)), "must be as many as momentum_decays"),
        (lambda: Celo(phase="three"), "phase = 'three' must be one of"),
        (lambda: Celo(lstm_hidden_size=0), "lstm_hidden_size = 0 must be"),
        (lambda: Celo(param_scale_mult=True, rules=ADAM_LIKE), "makes steps grow"),
        (lambda: Celo(step_mult=0.0), "step_mult = 0.0 must be positive"),
        (lambda: Celo(second_moment_decay=1.0), "decay 1.0 must lie in"),
    ],
)
def test_wrong_fields(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [VeLO, Celo])
def test_steps_are_in_units_of_the_weights_but_not_in_mu_p(kind):
    assert kind().rule.param_scale_mult is True
    assert kind(rules=ADAM_LIKE).rule.param_scale_mult is False
    assert kind(param_scale_mult=False).rule.param_scale_mult is False


def test_accumulators_of_both_are_small_fc_s():
    state = SMALL["celo"].rule.empty(blank((4, 3), jnp.float32))
    want = accumulators.init(blank((4, 3), jnp.float32), 3)
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, want)


@pytest.mark.slow
def test_a_huge_parameter_spoils_no_other_tensor(spec_of):
    """Its mean square overflows, and the scheduler looks at all tensors."""
    velo = VeLO(2, 8, 1, param_inits=2)
    specs = {n: spec_of("width -> width", (2, 3)) for n in ("huge", "other")}
    values = jax.random.normal(jax.random.key(1), (2, 3))
    params = {"huge": jnp.full((2, 3), 1e30), "other": values}
    theta = velo.init(jax.random.key(0))
    rule = velo.as_optax(theta, specs, 5)
    state = rule.init(params)
    with jax.disable_jit():
        for _ in range(2):
            grads = {"huge": jnp.ones((2, 3)), "other": values**2}
            steps, state = rule.update(grads, state, params, loss=jnp.float32(2.0))
    assert np.isfinite(steps["other"]).all() and (steps["other"] != 0).any()
    with pytest.raises(ValueError, match=r"loss has shape \(3,\), must be one number"):
        rule.update(grads, state, params, loss=jnp.ones(3))
