"""Networks that multiply in bfloat16, in every form, against a NumPy reference.

The reference rounds by `ml_dtypes` and does all else in float64. There, two ways to add
differ by 1e-16, and no sum comes so near to the middle of two bfloat16 numbers that it
would be rounded to the other one: agreement is exact or there is none.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from lopt import (
    ELO,
    RNNMLP,
    Artifact,
    Celo,
    Celo2,
    MLPLOpt,
    NNAdam,
    Nominal,
    SmallFC,
    VeLO,
)
from lopt.per_parameter import features, first_layer, kernels
from lopt.per_parameter import network as per_parameter_mlp
from lopt.per_parameter import precision as feature_precision
from lopt.per_parameter.accumulators import TensorState
from lopt.per_parameter.epsilons import PAPER
from lopt.per_parameter.features import Quantities
from lopt.per_parameter.forms import Execution, in_precision, precisions, with_execution
from lopt.wrappers import (
    Bfloat16Features,
    ClippedGradients,
    RoleFallback,
    WeightDecay,
)
from parametrization import Axes, ParamSpec

from .test_forms import NETWORKS, layers_of, lowered_for_cuda, quantities, relative

EXP_MULT = 0.1
FORMS = ("plain", "blocked", "kernel")
ROUNDS = {"xla_allow_excess_precision": False}
"""Keeps the kernel's conversions, which round on a GPU."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("lopt.per_parameter.blocked.BLOCK", 64)
    per_parameter_mlp._program.cache_clear()


def displacement(form, precision, layers, q):
    @functools.partial(jax.jit, compiler_options=ROUNDS)
    def compute(layers, grad, param, state, step):
        q = Quantities(grad, param, state, step, PAPER)
        return per_parameter_mlp.displacement(
            layers, features.SMALL_FC, q, EXP_MULT, Execution(form, precision)
        )

    return np.asarray(compute(layers, q.grad, q.param, q.state, q.step), np.float64)


def low(x):
    """The nearest bfloat16 numbers, as float64."""
    return np.asarray(x, np.float64).astype(ml_dtypes.bfloat16).astype(np.float64)


def reference(layers, q):
    """Inputs, hidden units and the weights they meet are rounded; nothing else is."""
    parts = first_layer.split(layers["layer_0"], features.SMALL_FC, q)
    terms = parts.places[None]
    values = first_layer.values_of(terms, q)
    scale = features.normalizers(values, PAPER)[:, None]
    kernel = low(scale * first_layer.kernel_of(terms))
    hidden = np.tensordot(kernel.T, low(values), 1)
    for _, x in first_layer.contributions(parts, q):
        hidden = hidden + np.asarray(x)
    for i in range(1, len(layers)):
        layer = layers[f"layer_{i}"]
        hidden = np.tensordot(low(layer["kernel"]).T, low(np.maximum(hidden, 0)), 1)
        hidden = hidden + np.asarray(layer["bias"]).reshape(-1, *[1] * q.grad.ndim)
    return hidden[0] * np.exp(EXP_MULT * hidden[1])


def distance(got, want):
    """Root mean square of the difference, in that of `want`."""
    return np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("form", ["plain", "blocked"])
def test_what_is_rounded_and_what_is_not(form, network):
    with jax.enable_x64(True):
        q, layers = quantities((21, 10)), layers_of(*NETWORKS[network])
        got = displacement(form, "bfloat16", layers, q)
        want, exact = reference(layers, q), displacement(form, "float32", layers, q)
    assert relative(got, want) < 1e-12
    assert 1e-3 < distance(want, exact) < 1e-2


@pytest.mark.parametrize("shape", [(10,), (1,)], ids=str)
def test_vectors_are_rounded_alike(shape):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        draw = [jnp.asarray(rng.normal(size=(k, *shape))) for k in (1, 1, 3, 1, 3)]
        state = TensorState(draw[2], draw[3] ** 2, draw[4] ** 2, None)
        q = Quantities(draw[0][0], draw[1][0], state, jnp.asarray(7), PAPER)
        layers = layers_of(5, 2)
        got = displacement("plain", "bfloat16", layers, q)
        assert relative(got, reference(layers, q)) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_in_float32_every_form_is_far_nearer_to_it_than_to_no_rounding(form):
    """A sum may fall on the other side of a middle, so a few elements differ."""
    q, layers = quantities((37, 11), 0, np.float32), layers_of(32, 2, 1, np.float32)
    got = displacement(form, "bfloat16", layers, q)
    want, exact = reference(layers, q), displacement(form, "float32", layers, q)
    rounding = distance(want, exact)
    assert 1e-3 < rounding < 1e-2
    assert distance(got, want) < 0.05 * rounding
    assert np.median(np.abs(got - want)) < 1e-6 * np.abs(want).max()


def test_matrices_in_bfloat16_where_there_are_tensor_cores(monkeypatch):
    """`product` of an accelerator, run here: products in bfloat16, sums in float32."""
    rng = np.random.default_rng(0)
    x, kernel = (np.float32(rng.normal(size=s)) for s in ((40, 3, 16), (16, 8)))
    want = feature_precision.product(jnp.asarray(x), jnp.asarray(kernel), "bfloat16")
    np.testing.assert_allclose(want, low(x) @ low(kernel), rtol=0, atol=1e-5)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    product = functools.partial(feature_precision.product, precision="bfloat16")
    [multiplied] = [
        e for e in jax.make_jaxpr(product)(x, kernel).eqns if "dot" in str(e.primitive)
    ]
    assert {v.aval.dtype for v in multiplied.invars} == {jnp.dtype(jnp.bfloat16)}
    assert {v.aval.dtype for v in multiplied.outvars} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(product(x, kernel), want, rtol=0, atol=1e-5)


def test_the_kernel_in_bfloat16_lowers_to_triton():
    """Triton knows every operation; the result is not tested here."""
    q, layers = quantities((37, 150), 0, np.float32), layers_of(32, 2, 1, np.float32)
    program = kernels.program(
        features.SMALL_FC, PAPER, 0.1, "bfloat16", interpret=False
    )
    inputs = (layers, q.grad, q.param, q.state, q.step)
    assert "xla.gpu.triton" in lowered_for_cuda(program, *inputs)


@pytest.mark.parametrize("form", ["blocked", "kernel"])
def test_derivatives_are_those_of_the_plain_form_in_the_same_precision(form):
    q, layers = quantities((20, 6), 0, np.float32), layers_of(4, 1, 1, np.float32)

    def loss(form, precision, layers, grad):
        moved = Quantities(grad, q.param, q.state, q.step, PAPER)
        execution = Execution(form, precision)
        out = per_parameter_mlp.displacement(
            layers, features.SMALL_FC, moved, 0.1, execution
        )
        return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape)))

    derivative = jax.jit(
        jax.grad(loss, argnums=(2, 3)), static_argnums=(0, 1), compiler_options=ROUNDS
    )
    got = derivative(form, "bfloat16", layers, q.grad)
    want = derivative("plain", "bfloat16", layers, q.grad)
    exact = derivative("plain", "float32", layers, q.grad)
    leaves = [jax.tree.leaves(x) for x in (got, want, exact)]
    for a, b, c in zip(*leaves, strict=True):
        assert a.dtype == np.float32 and np.abs(b).max() > 0
        np.testing.assert_array_equal(a, b)
        assert distance(np.float64(a), np.float64(c)) < 0.02
    assert any((b != c).any() for b, c in zip(*leaves[1:], strict=True))


SHAPES = {"w": (6, 4), "b": (4,), "s": ()}
AXES = {"w": "width -> mlp", "b": "-> mlp", "s": "->"}
SPECS = {n: ParamSpec(Axes.parse(AXES[n]), s, s) for n, s in SHAPES.items()}
LEARNED = {
    "small_fc": SmallFC(hidden_size=4),
    "mlp_lopt": MLPLOpt(hidden_size=4),
    "celo2": Celo2(),
    "celo2_base": Celo2(orthogonalize=False),
    "velo": VeLO(3, 4, 1, param_inits=2),
    "celo": Celo(3, 4, 1),
    "rnn_mlp": RNNMLP(hidden_size=4, lstm_size=3),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            n, marks=[] if n in ("small_fc", "celo2_base") else [pytest.mark.slow]
        )
        for n in LEARNED
    ],
)
def test_steps_of_every_network_of_features_change_a_little(name):
    optimizer, rng = LEARNED[name], np.random.default_rng(0)
    theta = optimizer.init(jax.random.key(0))
    params, grads = (
        {n: np.float32(rng.normal(size=s)) for n, s in SHAPES.items()} for _ in "12"
    )

    @functools.partial(jax.jit, static_argnums=0)
    def update(lopt, theta, params, grads):
        rule = lopt.as_optax(theta, SPECS, 10)
        state = rule.init(params)
        return rule.update(grads, state, params, loss=jnp.float32(1.0))

    exact, state = update(optimizer, theta, params, grads)
    low = in_precision(optimizer, "bfloat16")
    steps, low_state = update(low, theta, params, grads)
    assert jax.tree.structure(state) == jax.tree.structure(low_state)
    dtypes = {str(x.dtype) for x in jax.tree.leaves((steps, low_state))}
    assert dtypes == {"float32", "int32"}
    for tensor in ("w", "b"):
        got, want = np.float64(steps[tensor]), np.float64(exact[tensor])
        if name.startswith("celo2") and tensor == "b":  # which Adam moves
            np.testing.assert_array_equal(got, want)
        else:
            # Orthogonalization makes small parts of a step large, errors among them.
            most = 0.1 if name == "celo2" else 0.02
            assert 1e-4 < distance(got, want) < most, tensor


def test_what_would_change_nothing_is_refused():
    message = "^NNAdam has no per-parameter network: bfloat16 would change nothing$"
    for refused in (
        lambda: in_precision(NNAdam(), "bfloat16"),
        lambda: Bfloat16Features(NNAdam()).as_optax({}, SPECS, 10),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    with pytest.raises(ValueError, match="RoleFallback has no per-parameter network"):
        in_precision(RoleFallback(NNAdam()), "bfloat16")
    assert in_precision(NNAdam(), "float32") == NNAdam()


@pytest.mark.parametrize("rule", [*LEARNED.values(), ELO()], ids=lambda x: str(x)[:9])
def test_every_network_is_found_inside_of_wrappers(rule):
    low = dataclasses.replace(rule, execution=Execution(precision="bfloat16"))
    for wrap in (
        lambda x: x,
        WeightDecay,
        lambda x: RoleFallback(ClippedGradients(x)),
        lambda x: RoleFallback(NNAdam(), fallback=x),
        Nominal,
    ):
        assert in_precision(wrap(rule), "bfloat16") == wrap(low) != wrap(rule)
        assert in_precision(wrap(low), "float32") == wrap(rule)
    plain = dataclasses.replace(rule, execution=Execution("plain"))
    both = dataclasses.replace(rule, execution=Execution("plain", "bfloat16"))
    assert in_precision(plain, "bfloat16") == both


def test_float32_is_float32_inside_of_a_wrapper_that_sets_bfloat16():
    rule = SmallFC(hidden_size=4)
    for wrap in (lambda x: x, WeightDecay, Nominal):
        fixed = wrap(Bfloat16Features(rule))
        assert precisions(fixed) == {"bfloat16"}
        assert in_precision(fixed, "float32") == wrap(rule)
        assert in_precision(fixed, "bfloat16") == in_precision(wrap(rule), "bfloat16")
        # Another form leaves the wrapper, and so the precision, as it is.
        plain = with_execution(fixed, form="plain")
        assert plain == wrap(Bfloat16Features(with_execution(rule, form="plain")))
    assert precisions(RoleFallback(Bfloat16Features(rule), fallback=rule)) == {
        "bfloat16",
        "float32",
    }
    assert precisions(Bfloat16Features(NNAdam())) == set()
    with pytest.raises(ValueError, match="Bfloat16Features has no per-parameter"):
        in_precision(Bfloat16Features(NNAdam()), "bfloat16")


def test_programs_of_both_precisions_stand_beside_each_other():
    """An optimizer may jit its own update, and be used in both precisions in turn."""
    rng = np.random.default_rng(0)
    params, grads = (
        {n: np.float32(rng.normal(size=s)) for n, s in SHAPES.items()} for _ in "12"
    )

    class Compiled(SmallFC):
        def as_optax(self, theta, specs, num_steps):
            rule = super().as_optax(theta, specs, num_steps)
            update = jax.jit(rule.update)
            return optax.GradientTransformationExtraArgs(rule.init, update)

    rule = Compiled(hidden_size=4)
    theta = rule.init(jax.random.key(0))
    exact, low = (
        x.as_optax(theta, SPECS, 10) for x in (rule, in_precision(rule, "bfloat16"))
    )
    state = exact.init(params)
    for precision in (None, "highest"):
        with jax.default_matmul_precision(precision):
            first, rounded, again, once_more = (
                x.update(grads, state, params)[0]["w"] for x in (exact, low) * 2
            )
        np.testing.assert_array_equal(first, again)
        np.testing.assert_array_equal(rounded, once_more)
        assert (first != rounded).all()


def test_released_artifacts_do_not_say_how_they_are_executed(tmp_path):
    execution = Execution("plain", "bfloat16")
    for rule in (SmallFC(hidden_size=4), WeightDecay(LEARNED["mlp_lopt"])):
        theta = rule.init(jax.random.key(0))
        changed = with_execution(rule, **vars(execution))
        assert changed != rule
        for name, optimizer in (("rule", rule), ("changed", changed)):
            Artifact(optimizer, theta).save(tmp_path / name, replace=True)
            assert Artifact.load(tmp_path / name).optimizer == rule
        texts = {p.read_text() for p in tmp_path.glob("*/config.json")}
        assert len(texts) == 1 and "execution" not in texts.pop()


def test_numbers_beyond_float32_stay_finite_in_float64():
    with jax.enable_x64(True):
        x = jnp.asarray([1e300, 1.0 + 2.0**-9, -1e-300])
        found = np.asarray(feature_precision.rounded(x, "bfloat16"))
    np.testing.assert_allclose(found, [1e300, 1.0, -1e-300], rtol=2.0**-8)
    assert found[1] == 1.0
