"""What every optimizer must do, whatever its rule; one table of them all.

Each is compiled a handful of times on a small tree with a tensor of every kind; zero,
infinite and permuted gradients go through the same program.
"""

import dataclasses
import functools

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from lopt import SGD, Adafactor, Adam, Lion, Muon, Prodigy, ScheduleFreeAdamW, SmallFC
from lopt.baselines.base import RateTuned
from lopt.learned.celo import Celo
from lopt.learned.celo2 import Celo2
from lopt.learned.celo_adam import CeloAdam
from lopt.learned.elo import ELO
from lopt.learned.learnable import LearnableAdam, LearnableSGD, LearnableSGDM
from lopt.learned.mlp_lopt import MLPLOpt
from lopt.learned.nn_adam import NNAdam
from lopt.learned.nominal import Nominal
from lopt.learned.rnn_mlp import RNNMLP
from lopt.learned.velo import VeLO
from lopt.release import registry
from lopt.wrappers import (
    AccumulatedGradients,
    Bfloat16Features,
    ClippedGradients,
    RoleFallback,
    ScheduledSteps,
    StochasticBfloat16,
    WeightDecay,
)
from parametrization import ADAM_LIKE, Axes, ParamSpec

SMALL = {"hidden_size": 4, "hidden_layers": 1}


@dataclasses.dataclass(frozen=True)
class Case:
    """An optimizer, and what distinguishes it."""

    optimizer: object
    coupled: bool = False  # one tensor's gradient may move another, and stays finite
    global_norm: bool = False  # an infinite norm is nobody's to mend
    whole_stacks: bool = False  # optax takes a stack of layers for one tensor
    random: bool = False  # rounds by chance, so that order matters within rounding
    delayed: bool = False  # moves at every second gradient
    loss: bool = False  # update needs the loss
    root_at_zero: bool = False  # optax differentiates a root at 0
    slow: bool = False  # compiles long, and has others of its kind in the table


CASES = {
    "small_fc": Case(SmallFC(**SMALL, step_mult=0.1)),
    "mlp_lopt": Case(MLPLOpt(**SMALL, step_mult=0.1), slow=True),
    "celo2": Case(Celo2(), slow=True),
    "celo2_base": Case(
        Celo2(orthogonalize=False, weight_decay=0.1, clip_norm=1.0),
        global_norm=True,
        slow=True,
    ),
    "elo": Case(ELO(**SMALL, weight_decay=0.1), slow=True),
    "nominal": Case(
        Nominal(SmallFC(**SMALL), precondition=True, max_ratio=2.0), slow=True
    ),
    "nn_adam": Case(NNAdam(hidden_size=3, initial_learning_rate=0.1), slow=True),
    "rnn_mlp": Case(
        RNNMLP(**SMALL, lstm_size=3, step_mult=0.1), coupled=True, loss=True, slow=True
    ),
    "celo_adam": Case(CeloAdam(3, 0.1), coupled=True, loss=True, slow=True),
    "velo": Case(
        VeLO(3, 4, 1, param_inits=2, step_mult=0.1, param_scale_mult=False),
        coupled=True,
        loss=True,
        slow=True,
    ),
    "celo": Case(
        Celo(3, 4, 1, step_mult=0.1, param_scale_mult=False),
        coupled=True,
        loss=True,
        slow=True,
    ),
    "learnable_sgd": Case(LearnableSGD(), slow=True),
    "learnable_sgdm": Case(LearnableSGDM(), slow=True),
    "learnable_adam": Case(LearnableAdam()),
    "sgd": Case(SGD(momentum=0.9, nesterov=True), slow=True),
    "adam": Case(Adam(weight_decay=0.1, schedule="cosine")),
    "nadamw": Case(Adam(weight_decay=0.1, nesterov=True), slow=True),
    "lion": Case(Lion(), slow=True),
    "muon": Case(Muon()),
    "adafactor": Case(
        Adafactor(multiply_by_parameter_scale=False), whole_stacks=True, slow=True
    ),
    "schedule_free": Case(ScheduleFreeAdamW(), slow=True),
    "prodigy": Case(Prodigy(), global_norm=True, root_at_zero=True, slow=True),
    "weight_decay": Case(WeightDecay(ScheduledSteps(SmallFC(**SMALL))), slow=True),
    "clipped": Case(ClippedGradients(SmallFC(**SMALL)), global_norm=True, slow=True),
    "accumulated": Case(AccumulatedGradients(SmallFC(**SMALL)), delayed=True),
    "fallback": Case(RoleFallback(SmallFC(**SMALL)), slow=True),
    "bfloat16": Case(StochasticBfloat16(SmallFC(**SMALL)), random=True, slow=True),
    "bfloat16_features": Case(Bfloat16Features(SmallFC(**SMALL)), slow=True),
}

AXES = {
    "bias": "-> width",
    "convolution": "kernel kernel channels -> channels",
    "empty": "vocab -> width",
    "kernel": "width -> width",
    "layers": "[layers] width -> width",
    "query": "width -> heads head_dim",
    "scalar": "->",
    "table": "vocab -> width",
    "twin": "width -> width",
}
SHAPES = {
    "bias": (6,),
    "convolution": (2, 2, 4, 6),
    "empty": (0, 6),
    "kernel": (6, 6),
    "layers": (2, 6, 5),
    "query": (6, 2, 3),
    "scalar": (),
    "table": (5, 6),
    "twin": (6, 6),
}
SPECS = {n: ParamSpec(Axes.parse(AXES[n]), s, s) for n, s in SHAPES.items()}
NUM_STEPS = 3


def values(seed, shapes=None, lead=()):
    rng = np.random.default_rng(seed)
    shapes = SHAPES if shapes is None else shapes
    return {n: np.float32(rng.normal(size=(*lead, *s))) for n, s in shapes.items()}


GRADS = values(1, lead=(NUM_STEPS,))
PARAMS = values(0)
LOSSES = np.float32([2.3, 2.1, 1.7])


def training(case, specs=SPECS, optimizer=None, wrap=lambda rule: rule):
    """`(θ, params, grads [T], losses [T]) -> (params [T], final state)`."""
    optimizer = optimizer or case.optimizer

    def whole(theta, params, grads, losses):
        rule = wrap(optimizer.as_optax(theta, specs, 10))

        def step(carry, inputs):
            params, state = carry
            grads, loss = inputs
            extra = {"loss": loss} if case.loss else {}
            updates, state = rule.update(grads, state, params, **extra)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        start = (params, rule.init(params))
        (_, state), path = jax.lax.scan(step, start, (grads, losses))
        return path, state

    return whole


SHARE = 1e-5
ROUNDED = 0.05  # accumulators in bfloat16, rounded another way


def assert_close(got, want, start, share):
    """Equal to a share of how far each tensor has moved, beyond rounding of values."""
    for name, value in want.items():
        moved = np.abs(value - start[name]).max(initial=0.0)
        size = np.abs(value).max(initial=0.0)
        atol = share * moved + 2e-7 * size
        np.testing.assert_allclose(got[name], value, rtol=0, atol=atol, err_msg=name)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if case.slow else [])
        for name, case in CASES.items()
    ],
)
def name(request):
    return request.param


class Subject:
    """A case, its θ, and its compiled run, made when first asked for."""

    def __init__(self, name):
        self.case = CASES[name]
        self.optimizer = self.case.optimizer
        self.theta = self.optimizer.init(jax.random.key(3))

    @functools.cached_property
    def compiled(self):
        return jax.jit(training(self.case))

    def run(self, params=PARAMS, grads=GRADS, theta=None):
        theta = self.theta if theta is None else theta
        return jax.tree.map(np.asarray, self.compiled(theta, params, grads, LOSSES))

    @functools.cached_property
    def result(self):
        return self.run()


@pytest.fixture(scope="module")
def subject(name):
    return Subject(name)


def test_every_tensor_moves_and_nothing_is_compiled_again(subject):
    path, _ = subject.result
    assert subject.compiled._cache_size() == 1
    for tensor, value in path.items():
        assert np.isfinite(value).all(), tensor
        assert value.size == 0 or (value[-1] != PARAMS[tensor]).any(), tensor
    subject.run(grads=values(5, lead=(NUM_STEPS,)))
    assert subject.compiled._cache_size() == 1


def test_zero_gradients_give_finite_steps(subject):
    path, _ = subject.run(grads=jax.tree.map(np.zeros_like, GRADS))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(path))


def test_an_infinite_gradient_stays_in_its_tensor(subject):
    grads = {n: g.copy() for n, g in GRADS.items()}
    grads["kernel"][1, 0, 0] = np.inf
    path, _ = subject.run(grads=grads)
    for tensor, value in path.items():
        if tensor == "kernel":
            continue
        if subject.case.global_norm:
            continue
        if subject.case.coupled:
            assert np.isfinite(value).all(), tensor
        else:
            np.testing.assert_array_equal(value, subject.result[0][tensor], tensor)


def test_hidden_units_have_no_order(subject):
    order = np.random.default_rng(2).permutation(6)

    def permute(tree, lead):
        permuted = dict(tree)
        for tensor in ("bias", "table", "kernel", "twin", "convolution"):
            permuted[tensor] = np.take(tree[tensor], order, axis=-1)
        for tensor in ("kernel", "twin"):
            permuted[tensor] = np.take(permuted[tensor], order, axis=lead)
        for tensor, axis in (("query", lead), ("layers", lead + 1)):
            permuted[tensor] = np.take(tree[tensor], order, axis=axis)
        return permuted

    path, _ = subject.run(permute(PARAMS, 0), permute(GRADS, 1))
    share = ROUNDED if subject.case.random else SHARE
    assert_close(path, permute(subject.result[0], 1), permute(PARAMS, 0), share)


def test_members_of_a_vmap_are_what_they_are_alone(subject):
    thetas = [subject.theta, subject.optimizer.init(jax.random.key(4))]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *thetas)
    whole = training(subject.case)
    many = jax.jit(jax.vmap(whole, in_axes=(0, None, None, None)))
    path, _ = jax.tree.map(np.asarray, many(stacked, PARAMS, GRADS, LOSSES))
    for i, theta in enumerate(thetas):
        alone, _ = subject.run(theta=theta)
        assert_close(jax.tree.map(lambda x, i=i: x[i], path), alone, PARAMS, SHARE)


def test_order_of_the_tree_and_scanning_of_layers_are_irrelevant(subject):
    """The same tensors under names that sort the other way, layers apart."""
    names = [n for n in sorted(SHAPES) if n != "layers"] + ["layer_0", "layer_1"]
    renamed = dict(zip(names, reversed(sorted(names)), strict=True))

    def apart(tree, axis):
        layers = np.moveaxis(tree["layers"], axis, 0)
        whole = tree | {f"layer_{i}": x for i, x in enumerate(layers)}
        return {n: whole[n] for n in names}

    def rename(tree):
        return {renamed[n]: x for n, x in tree.items()}

    layer = ParamSpec(Axes.parse("width -> width"), (6, 5), (6, 5))
    specs = {n: SPECS.get(n, layer) for n in names}
    run = jax.jit(training(subject.case, rename(specs)))
    start, grads = apart(PARAMS, 0), apart(GRADS, 1)
    path, _ = run(subject.theta, rename(start), rename(grads), LOSSES)
    back = {n: np.asarray(path[renamed[n]]) for n in names}
    want = apart(subject.result[0], 1)
    if subject.case.whole_stacks:
        back, want = ({n: t[n] for n in names if n in SHAPES} for t in (back, want))
    assert_close(back, want, start, ROUNDED if subject.case.random else SHARE)


def test_bfloat16_parameters_stay_and_accumulators_are_float32(subject):
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (PARAMS, GRADS))
    path, state = subject.compiled(subject.theta, *half, LOSSES)
    for tensor, value in path.items():
        assert value.dtype == jnp.bfloat16
        assert np.isfinite(np.float32(value)).all(), tensor
    assert jax.tree.structure(state) == jax.tree.structure(subject.result[1])
    if not isinstance(subject.optimizer, RateTuned | StochasticBfloat16):
        dtypes = {x.dtype for x in jax.tree.leaves(state)}
        assert jnp.bfloat16 not in dtypes


def test_at_the_base_width_mup_is_the_standard_parametrization(subject):
    theirs = registry.with_rules(subject.optimizer, ADAM_LIKE)
    assert theirs != subject.optimizer
    run = jax.jit(training(subject.case, optimizer=theirs))
    path, _ = run(subject.theta, PARAMS, GRADS, LOSSES)
    for tensor, want in subject.result[0].items():
        np.testing.assert_array_equal(np.asarray(path[tensor]), want, tensor)


def test_state_is_a_tree_of_arrays_that_flax_and_orbax_store(subject, tmp_path):
    _, state = subject.result
    assert all(isinstance(x, np.ndarray | np.generic) for x in jax.tree.leaves(state))
    empty = jax.tree.map(np.zeros_like, state)
    data = flax.serialization.to_bytes(state)
    with ocp.StandardCheckpointer() as checkpointer:
        # orbax refuses arrays without elements, which hold nothing to store
        kept = {"step": np.int32(3)}
        leaves = jax.tree.leaves(state)
        kept |= {str(i): x for i, x in enumerate(leaves) if np.size(x)}
        checkpointer.save(tmp_path / "state", kept)
        checkpointer.wait_until_finished()
        blank = jax.tree.map(np.zeros_like, kept)
        loaded = checkpointer.restore(tmp_path / "state", blank)
    jax.tree.map(np.testing.assert_array_equal, dict(loaded), kept)
    restored = flax.serialization.from_bytes(empty, data)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def buffers(tree):
    return [x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree) if x.size]


@pytest.mark.parametrize("compiled", [False, True])
def test_no_two_leaves_are_one_buffer(subject, compiled):
    """So parameters, θ and state may be donated."""
    params = jax.tree.map(jnp.array, PARAMS)
    theta = jax.tree.map(jnp.array, subject.theta)
    init = subject.optimizer.as_optax(theta, SPECS, 10).init
    state = (jax.jit(init) if compiled else init)(params)
    found = buffers((subject.theta, params, theta, state))
    assert len(found) == len(set(found))


def test_complex_parameters_are_refused_where_squares_are_products(subject):
    params = {"kernel": jnp.ones((6, 6), jnp.complex64)}
    specs = {"kernel": SPECS["kernel"]}
    optimizer = subject.optimizer.as_optax(subject.theta, specs, 10)
    if isinstance(subject.optimizer, Adam | SGD):  # optax takes the square of |g|
        state = optimizer.init(params)
        steps, _ = optimizer.update(params, state, params)
        assert steps["kernel"].dtype == jnp.complex64
        return
    with pytest.raises(ValueError, match="is complex64, must be real"):
        optimizer.init(params)


def test_parameters_that_are_no_floats_or_of_another_shape_are_refused(subject):
    specs = {"kernel": SPECS["kernel"]}
    optimizer = subject.optimizer.as_optax(subject.theta, specs, 10)
    for dtype in ("int32", "bool"):
        with pytest.raises(ValueError, match=f"is {dtype}, must be floating-point"):
            optimizer.init({"kernel": jnp.ones((6, 6), dtype)})
    extra = {"loss": 1.0} if subject.case.loss else {}
    params = {"kernel": jnp.ones((6, 6))}
    state, wide = optimizer.init(params), {"kernel": jnp.ones((6, 7))}
    # JAX 0.10 raises TypeError where optax adds arrays of two shapes.
    refused = (ValueError, TypeError)
    with pytest.raises(refused, match=r"(?s)\(6, 7\).*\(6, 6\)|must be the same"):
        optimizer.update(wide, state, wide, **extra)


def test_meta_gradients_are_finite_where_a_tensor_has_none(subject):
    if subject.case.root_at_zero:
        pytest.skip("optax's own Prodigy has a root there, and its θ is a rate alone")
    shapes = {n: SHAPES[n] for n in ("bias", "kernel", "scalar", "twin")}
    specs = {n: SPECS[n] for n in shapes}

    def loss(params):
        return jnp.sum(params["kernel"] ** 2) + params["scalar"] ** 2

    @jax.jit
    @jax.grad
    def meta_gradient(theta):
        rule = subject.optimizer.as_optax(theta, specs, 10)

        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            extra = {"loss": value} if subject.case.loss else {}
            updates, state = rule.update(grads, state, params, **extra)
            return (optax.apply_updates(params, updates), state), None

        start = {n: PARAMS[n] for n in shapes}
        carry, _ = jax.lax.scan(step, (start, rule.init(start)), length=3)
        return loss(carry[0])

    found = meta_gradient(subject.theta)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found)), found


def test_inside_chain_multi_transform_and_multi_steps(subject):
    labels = {n: "still" if n in ("twin", "table") else "ours" for n in SHAPES}

    def wrap(rule):
        several = optax.multi_transform(
            {"ours": optax.chain(rule, optax.scale(0.5)), "still": optax.set_to_zero()},
            labels,
        )
        steps = optax.MultiSteps(several, every_k_schedule=2)
        return optax.GradientTransformationExtraArgs(steps.init, steps.update)

    run = jax.jit(training(subject.case, wrap=wrap))
    path, _ = run(subject.theta, PARAMS, GRADS, LOSSES)
    for tensor, label in labels.items():
        got = np.asarray(path[tensor])
        np.testing.assert_array_equal(got[0], PARAMS[tensor])  # accumulates
        np.testing.assert_array_equal(got[1], got[2])
        moves = label == "ours" and not subject.case.delayed
        assert got.size == 0 or (got[1] != PARAMS[tensor]).any() == moves
        assert np.isfinite(got).all()
