"""small_fc as an optax transformation: where it must work, and what it must refuse."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt import PAPER, WIDTH_SAFE, Artifact, Epsilons, SmallFC
from parametrization import ADAM_LIKE, STANDARD, Axes, ParamSpec

SMALL = SmallFC(hidden_size=4, hidden_layers=1, step_mult=0.1)


def spec_of(axes, shape, base_shape=None):
    return ParamSpec(Axes.parse(axes), shape, base_shape or shape)


SPECS = {"b": spec_of("-> width", (4,)), "w": spec_of("width -> width", (4, 3))}


def values(seed, shape=(), specs=SPECS):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=shape + spec.shape).astype(np.float32)
        for name, spec in specs.items()
    }


@pytest.fixture(scope="module")
def theta(random_theta):
    return random_theta(SMALL)


@pytest.fixture(scope="module")
def update(theta):
    """One compiled update of the two tensors, θ an argument."""

    def apply(grads, state, params, theta=theta):
        return SMALL.as_optax(theta, SPECS, 10).update(grads, state, params)

    return jax.jit(apply)


def start(params, theta, specs=SPECS, optimizer=SMALL):
    return optimizer.as_optax(theta, specs, 10).init(params)


def same_bits(x, y):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, x, y)))


def close(x, y, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), x, y)


def test_the_second_update_does_not_compile_again(theta, update):
    params = jax.tree.map(jnp.asarray, values(0))
    state = start(params, theta)
    update.clear_cache()
    for seed in (1, 2, 3):
        grads = jax.tree.map(jnp.asarray, values(seed))
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert update._cache_size() == 1
    assert state.step == 3


def test_state_keeps_its_types(theta):
    transformation = SMALL.as_optax(theta, SPECS, 10)
    before = jax.eval_shape(transformation.init, values(0))
    updates, after = jax.eval_shape(transformation.update, values(1), before, values(0))
    assert before == after
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == jax.tree.map(
        lambda x: (x.shape, x.dtype), values(0)
    )


def test_num_steps_may_be_traced_and_the_loss_may_be_given(theta):
    def apply(num_steps):
        transformation = SMALL.as_optax(theta, SPECS, num_steps)
        state = transformation.init(values(0))
        return transformation.update(values(1), state, values(0), loss=jnp.float32(1))[
            0
        ]

    shapes = jax.eval_shape(apply, jnp.int32(7))
    assert jax.tree.map(lambda x: x.shape, shapes) == {"b": (4,), "w": (4, 3)}


def test_theta_may_be_numpy_in_a_closure(theta, update):
    """θ as read from a file."""
    lopt = SMALL.as_optax(jax.tree.map(np.asarray, theta), SPECS, 10)
    params, grads = values(0), values(1)
    got, _ = jax.jit(lopt.update)(grads, lopt.init(params), params)
    want, _ = update(grads, start(params, theta), params)
    close(got, want, rtol=1e-5, atol=1e-7)


def test_a_batch_of_particles_is_a_loop_over_them(theta, update):
    thetas = jax.tree.map(lambda x: np.stack([x, 0.5 * x, 2 * x]), theta)
    params, grads = values(0, (3,)), values(1, (3,))

    def one(theta, params, grads):
        state = start(params, theta)
        for _ in range(2):
            updates, state = update(grads, state, params, theta)
        return updates, state

    batched = jax.jit(jax.vmap(one))(thetas, params, grads)
    for i in range(3):
        alone = one(*jax.tree.map(lambda x, i=i: x[i], (thetas, params, grads)))
        mine = jax.tree.map(lambda x, i=i: x[i], batched)
        close(mine, alone, rtol=1e-4, atol=1e-6)


def test_inside_a_chain(theta, update):
    lopt = SMALL.as_optax(theta, SPECS, 10)
    chain = optax.chain(optax.clip_by_global_norm(0.1), lopt, optax.scale(0.5))
    params, grads = values(0), values(1)
    got, state = jax.jit(chain.update)(grads, chain.init(params), params)
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    clipped = jax.tree.map(lambda g: np.float32(g * 0.1 / norm), grads)
    want, alone = update(clipped, start(params, theta), params)
    close(got, jax.tree.map(lambda u: 0.5 * u, want), rtol=1e-4, atol=1e-7)
    close(state[1], alone, rtol=1e-4, atol=1e-7)


def test_beside_another_optimizer(theta, update):
    """`multi_transform` hides the other's tensors; the specs are of all of them."""
    both = optax.multi_transform(
        {"learned": SMALL.as_optax(theta, SPECS, 10), "sgd": optax.sgd(0.5)},
        {"b": "sgd", "w": "learned"},
    )
    params, grads = values(0), values(1)
    got, _ = jax.jit(both.update)(grads, both.init(params), params)
    want, _ = update(grads, start(params, theta), params)
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(got["b"], -0.5 * grads["b"], rtol=1e-6)


def test_over_accumulated_gradients(theta, update):
    multi = optax.MultiSteps(SMALL.as_optax(theta, SPECS, 10), every_k_schedule=2)
    params, first, second = values(0), values(1), values(2)
    step, state = jax.jit(multi.update), multi.init(params)
    nothing, state = step(first, state, params)
    assert not any(u.any() for u in nothing.values())
    got, state = step(second, state, params)
    mean = jax.tree.map(lambda x, y: (x + y) / 2, first, second)
    want, _ = update(mean, start(params, theta), params)
    close(got, want, rtol=1e-4, atol=1e-6)
    assert state.inner_opt_state.step == 1


def test_bfloat16_parameters_keep_their_dtype(theta, update):
    low = jax.tree.map(jnp.bfloat16, (values(0), values(1)))
    state = start(low[0], theta)
    updates, state = update(low[1], state, low[0])
    assert {u.dtype for u in updates.values()} == {jnp.dtype(jnp.bfloat16)}
    leaves = jax.tree.leaves(state.tensors)
    assert {x.dtype for x in leaves} == {jnp.dtype(jnp.float32)}
    exact = jax.tree.map(jnp.float32, low)
    want, wanted = update(exact[1], start(exact[0], theta), exact[0])
    close(state, wanted, rtol=1e-6)
    rounded = jax.tree.map(lambda u: u.astype(jnp.bfloat16).astype(jnp.float32), want)
    close(jax.tree.map(jnp.float32, updates), rounded, rtol=2**-7)


def test_tensors_without_elements(theta):
    specs = {
        **SPECS,
        "none": spec_of("-> width", (0,)),
        "rows": spec_of("width -> width", (0, 3)),
    }
    params, grads = values(0, specs=specs), values(1, specs=specs)
    lopt = SMALL.as_optax(theta, specs, 10)

    def two(params, grads):
        updates, state = lopt.update(grads, lopt.init(params), params)
        return lopt.update(grads, state, optax.apply_updates(params, updates))

    updates, state = jax.jit(two)(params, grads)
    assert updates["none"].shape == (0,) and updates["rows"].shape == (0, 3)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state)))


@pytest.mark.parametrize("epsilons", [PAPER, WIDTH_SAFE], ids=["paper", "width_safe"])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e6])
def test_any_finite_gradient_gives_a_finite_step(theta, run, epsilons, scale):
    optimizer = dataclasses.replace(SMALL, epsilons=epsilons)
    grads = jax.tree.map(lambda g: np.float32(scale * g), values(1, (6,)))
    grads["w"][:, 0] = 0.0  # a dead row and a dead column
    grads["w"][:, :, 1] = 0.0
    # The gradient stops: momenta outlive the second moments.
    stopped = jax.tree.map(lambda g: np.concatenate([g, 0 * g, 0 * g, 0 * g]), grads)
    path, state = run(
        lambda theta: optimizer.as_optax(theta, SPECS, 10), values(0), stopped, theta
    )
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((path, state)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_a_broken_gradient_stays_in_its_tensor(theta, update, bad):
    params, grads = values(0), values(1)
    broken = {**grads, "w": grads["w"].copy()}
    broken["w"][1, 2] = bad
    results = []
    for given in (grads, broken):
        updates, state = update(given, start(params, theta), params)
        updates, state = update(given, state, params)
        results.append((updates["b"], state.tensors["b"], updates["w"]))
    assert same_bits(results[0][:2], results[1][:2])
    assert not np.isfinite(results[1][2]).all()


def test_missing_params_are_refused(theta):
    lopt = SMALL.as_optax(theta, SPECS, 10)
    with pytest.raises(ValueError, match="needs params"):
        lopt.update(values(1), lopt.init(values(0)))


def test_specs_of_another_structure_are_refused(theta):
    lopt = SMALL.as_optax(theta, {"w": SPECS["w"]}, 10)
    with pytest.raises(ValueError):
        lopt.update(values(1), lopt.init(values(0)), values(0))


def test_mup_is_one_factor_on_hidden_steps(make_specs, problem, random_theta):
    names = ("scalar", "vector", "embedding", "square", "conv")
    params, grads = ({name: tree[name] for name in names} for tree in problem(1))
    grads = jax.tree.map(lambda g: g[0], grads)
    specs = {w: {name: make_specs(w)[name] for name in names} for w in (1, 4)}
    theta = random_theta(SMALL)
    mup = dataclasses.replace(SMALL, rules=ADAM_LIKE)

    @jax.jit
    def all_three(theta, params, grads):
        pairs = ((SMALL, 4), (mup, 1), (mup, 4))
        transformations = [o.as_optax(theta, specs[w], 10) for o, w in pairs]
        return [t.update(grads, t.init(params), params)[0] for t in transformations]

    standard, at_base, wide = jax.tree.map(np.asarray, all_three(theta, params, grads))
    assert same_bits(standard, at_base)
    kinds = {name: spec.kind for name, spec in specs[4].items()}
    assert list(kinds.values()).count("hidden") == 2
    for name, kind in kinds.items():
        factor = np.float32(0.25 if kind == "hidden" else 1.0)
        assert np.abs(standard[name]).max() > 0
        np.testing.assert_array_equal(wide[name], factor * standard[name], name)


def test_decays_follow_their_formula_and_are_clipped(random_theta):
    optimizer = SmallFC()
    theta = random_theta(optimizer)
    offsets = {
        "momentum": [0.05, -0.1, 0.2],
        "second_moment": [-0.3],
        "factored": [0.0, 0.01, -0.02],
    }
    theta |= {f"{name}_offsets": np.float32(o) for name, o in offsets.items()}
    initial = {"momentum": [0.9, 0.99, 0.999], "second_moment": [0.999]}
    initial["factored"] = initial["momentum"]
    got = optimizer.learned_decays(theta)
    for name, o in offsets.items():
        start = np.array(initial[name])
        want = 1 - np.exp(10 * (np.log(1 - start) / 10 + np.array(o)))
        np.testing.assert_allclose(got[name], want, atol=1e-6)
    for offset, bound in ((9.0, 0.0), (-9.0, 1.0)):
        edge = {
            f"{name}_offsets": np.full(len(o), offset) for name, o in offsets.items()
        }
        decays = optimizer.learned_decays({**theta, **jax.tree.map(np.float32, edge)})
        assert all((np.asarray(x) == bound).all() for x in decays.values())


def test_without_offsets_decays_are_the_initial_ones():
    optimizer = SmallFC()
    decays = jax.jit(lambda key: optimizer.learned_decays(optimizer.init(key)))(
        jax.random.key(0)
    )
    np.testing.assert_allclose(decays["momentum"], [0.9, 0.99, 0.999], atol=1e-7)
    np.testing.assert_allclose(decays["second_moment"], [0.999], atol=1e-7)


def test_theta_starts_as_a_truncated_normal():
    theta = jax.jit(SmallFC(hidden_size=256).init)(jax.random.key(0))
    for i, fan_in in enumerate((39, 256, 256)):
        kernel = np.asarray(theta[f"layer_{i}"]["kernel"], np.float64)
        bound = 2 / np.sqrt(fan_in)
        assert kernel.shape[0] == fan_in
        assert 0.95 * bound < np.abs(kernel).max() <= bound * (1 + 1e-6)
        # The deviation of a normal cut at 2σ is .8796 σ; 4.5 standard errors.
        error = 4.5 / np.sqrt(2 * kernel.size)
        assert kernel.std() * np.sqrt(fan_in) / 0.8796 == pytest.approx(1, abs=error)
        assert not np.asarray(theta[f"layer_{i}"]["bias"]).any()
    assert {x.dtype for x in jax.tree.leaves(theta)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("hidden_size", 0, "hidden_size = 0"),
        ("hidden_layers", 0, "hidden_layers = 0"),
        ("step_mult", 0.0, "step_mult = 0.0"),
        ("step_mult", float("nan"), "step_mult = nan"),
        ("exp_mult", float("inf"), "exp_mult = inf"),
        ("momentum_decays", (), "momentum_decays = ()"),
        ("momentum_decays", (0.9, 0.99, 1.0), "1.0"),
        ("momentum_decays", (0.9,), "factored_decays"),
        ("second_moment_decay", -0.1, "-0.1"),
        ("factored_decays", (0.9, 0.99, 2.0), "2.0"),
    ],
)
def test_impossible_hyperparameters_are_refused(field, value, word):
    with pytest.raises(ValueError) as info:
        SmallFC(**{field: value})
    assert word in str(info.value) and "\n" not in str(info.value)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Epsilons)])
@pytest.mark.parametrize("value", [0.0, -1e-9, float("inf"), float("nan")], ids=str)
def test_impossible_floors_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} = {value}"):
        Epsilons(**{field: value})


def test_the_paper_s_floors():
    assert Epsilons(1e-5, 1e-6, 1e-8, 1e-9, 1e-30, 1e-6) == PAPER
    floors = dataclasses.asdict(WIDTH_SAFE)
    assert all(0 < floor <= 1e-20 for floor in floors.values())


def test_optimizers_are_values():
    assert SmallFC() == SmallFC() and hash(SmallFC()) == hash(SmallFC())
    assert dataclasses.replace(SmallFC(), rules=ADAM_LIKE) != SmallFC(rules=STANDARD)
    assert len(set(SmallFC().feature_names)) == 39


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_an_untrained_rule_can_step_along_adams_direction(layers):
    rule = dataclasses.replace(
        SMALL, hidden_layers=layers, output_scale=0.0, initial_step=3.0
    )
    theta = rule.init(jax.random.key(1))
    params, grads = values(0), values(1)
    state = start(params, theta, optimizer=rule)
    inputs = rule.features(theta, state, grads, params)
    steps, _ = rule.as_optax(theta, SPECS, 10).update(grads, state, params)
    adam = rule.feature_names.index("normalized_momentum_0")
    for name, step in steps.items():
        wanted = -0.1 * 3.0 * inputs[name][..., adam]
        np.testing.assert_allclose(step, wanted, rtol=1e-5, atol=1e-7)
        # A feature's root mean square is 1, so this is the step's.
        np.testing.assert_allclose(jnp.sqrt(jnp.mean(step**2)), 0.3, rtol=1e-3)


def test_steps_are_bounded_before_they_are_scaled():
    free, bound = dataclasses.replace(SMALL, rules=ADAM_LIKE), 0.02
    bounded = dataclasses.replace(free, largest_step=bound)
    theta = free.init(jax.random.key(1))
    params, grads, specs = values(0), values(1), SPECS
    step, other = (
        rule.as_optax(theta, specs, 10).update(
            grads, start(params, theta, optimizer=rule), params
        )[0]
        for rule in (free, bounded)
    )
    scales = jax.tree.map(ADAM_LIKE.step_scale, specs)
    reached = 0
    for name, scale in scales.items():
        limit = SMALL.step_mult * scale * bound
        np.testing.assert_allclose(
            other[name], np.clip(step[name], -limit, limit), rtol=1e-6
        )
        reached += int((np.abs(step[name]) > limit).sum())
    assert 0 < reached < sum(x.size for x in jax.tree.leaves(params))


def test_overflow_of_the_magnitude_ends_at_the_bound():
    rule = dataclasses.replace(SMALL, exp_mult=1e3, largest_step=2.0)
    theta = rule.init(jax.random.key(1))
    theta["layer_1"]["bias"] = jnp.array([-1.0, 1e3])
    params, grads = values(0), values(1)
    steps, _ = rule.as_optax(theta, SPECS, 10).update(
        grads, start(params, theta, optimizer=rule), params
    )
    for step in jax.tree.leaves(steps):
        np.testing.assert_allclose(np.abs(step), 2.0 * rule.step_mult, rtol=1e-6)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bound_is_positive(bound):
    with pytest.raises(ValueError, match=r"largest_step = .* must be"):
        SmallFC(largest_step=bound)


def test_a_bounded_rule_has_no_form_that_pylo_would_read(tmp_path):
    rule = dataclasses.replace(SMALL, largest_step=3.0)
    Artifact(rule, rule.init(jax.random.key(0)), {"width": 4}).save(tmp_path / "a")
    assert Artifact.load(tmp_path / "a").optimizer.largest_step == 3.0
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["schema_version"] == 2 and "hidden_size" not in config


def test_the_initial_step_needs_two_units():
    with pytest.raises(ValueError, match="hidden_size = 1 must be at least 2"):
        SmallFC(hidden_size=1, initial_step=1.0)
    assert SmallFC(hidden_size=1).initial_step == 0.0
