"""The blocked form and the kernel against the plain one, on inputs that expose axes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from lopt import SmallFC, tensors
from lopt.learned.celo2 import Celo2
from lopt.learned.mlp_lopt import MLPLOpt
from lopt.per_parameter import features, first_layer, forms, kernels
from lopt.per_parameter import network as per_parameter_mlp
from lopt.per_parameter.accumulators import TensorState, factored_axes
from lopt.per_parameter.epsilons import PAPER
from lopt.per_parameter.features import Quantities
from lopt.per_parameter.forms import Execution
from parametrization import Axes, ParamSpec
from tests.lopt.conftest import heteroscedastic

SHAPES = {  # `blocked.BLOCK` is set to 64 below
    "several blocks": (32, 8),
    "last block overlaps": (37, 8),
    "square": (11, 11),
    "wide: cut along columns": (3, 100),
    "convolution": (3, 2, 10, 6),
}
NETWORKS = {"products": (32, 2), "written out": (4, 2), "one layer": (8, 1)}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("lopt.per_parameter.blocked.BLOCK", 64)
    per_parameter_mlp._program.cache_clear()


def quantities(shape, seed=0, dtype=np.float64):
    """Uneven gradients and accumulators, which expose a mistaken axis or decay."""
    rng = np.random.default_rng(seed)

    def draw(*lead, positive=False, without=None):
        kept = [s for i, s in enumerate(shape) if i != without]
        x = np.stack([heteroscedastic(rng, kept) for _ in range(int(np.prod(lead)))])
        x = 0.1 * x.reshape(*lead, *kept)
        return jnp.asarray(x**2 if positive else x, dtype)

    d1, d0 = factored_axes(shape)
    state = TensorState(
        draw(3),
        draw(1, positive=True),
        draw(3, positive=True, without=d0),
        draw(3, positive=True, without=d1),
    )
    return Quantities(draw(1)[0], draw(1)[0], state, jnp.asarray(7), PAPER)


def layers_of(hidden, depth, seed=1, dtype=np.float64):
    rng = np.random.default_rng(seed)
    sizes = [39, *[hidden] * depth, 2]
    return {
        f"layer_{i}": {
            "kernel": jnp.asarray(rng.normal(size=(a, b)) / np.sqrt(a), dtype),
            "bias": jnp.asarray(rng.normal(size=b), dtype),
        }
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    }


def displacement(form, layers, q, exp_mult=0.1):
    @jax.jit
    def compute(layers, grad, param, state, step):
        q = Quantities(grad, param, state, step, PAPER)
        return per_parameter_mlp.displacement(
            layers, features.SMALL_FC, q, exp_mult, Execution(form)
        )

    return np.asarray(compute(layers, q.grad, q.param, q.state, q.step))


def relative(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_blocks_are_the_plain_form_in_float64(shape, network):
    if network != "products" and shape == SHAPES["convolution"]:
        pytest.skip("one network suffices for the indices of four axes")
    with jax.enable_x64(True):
        q, layers = quantities(shape), layers_of(*NETWORKS[network])
        want = displacement("plain", layers, q)
        got = displacement("blocked", layers, q)
    assert got.dtype == np.float64 and got.shape == shape
    assert want.std() > 0.1
    assert relative(got, want) < 1e-12


def test_only_the_direction_where_there_is_no_magnitude():
    with jax.enable_x64(True):
        q, layers = quantities((32, 8)), layers_of(4, 2)
        out = per_parameter_mlp.apply(layers, features.SMALL_FC, q)
        got = displacement("blocked", layers, q, exp_mult=0.0)
    assert relative(got, np.asarray(out[..., 0])) < 1e-12


OPTIMIZERS = {
    "small_fc 32": SmallFC(),
    "small_fc 4": SmallFC(hidden_size=4),
    "CELO2-base": Celo2(orthogonalize=False),
    "mlp_lopt": MLPLOpt(hidden_size=8),
}


def steps(form, optimizer, theta, params, grads, specs, stacked=2):
    """Parameters after two updates in a scan, of particles with a θ each."""

    def one(theta, params, grads):
        rule = forms.with_execution(optimizer, form=form).as_optax(theta, specs, 10)

        def body(carry, grad):
            params, state = carry
            step, state = rule.update(grad, state, params)
            params = jax.tree.map(jnp.add, params, step)
            return (params, state), params

        start = (params, rule.init(params))
        return jax.lax.scan(body, start, grads)[1]

    program = one
    for _ in range(stacked):
        program = jax.vmap(program)
    compiled = jax.jit(program)
    return jax.tree.map(np.asarray, compiled(theta, params, grads))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "small_fc 4" else [pytest.mark.slow])
        for name in OPTIMIZERS
    ],
)
def test_particles_of_pairs_in_a_scan_agree_in_float32(name, random_theta):
    """Two vmaps over particles around one over tensors; scalars and vectors, too."""
    optimizer, rng = OPTIMIZERS[name], np.random.default_rng(0)
    axes = {"a": "width -> mlp", "b": "width -> mlp", "bias": "-> mlp", "scalar": "->"}
    shapes = {"a": (21, 13), "b": (21, 13), "bias": (13,), "scalar": ()}
    specs = {n: ParamSpec(Axes.parse(axes[n]), s, s) for n, s in shapes.items()}

    def draw(*lead):
        return {
            n: np.float32(0.05 * heteroscedastic(rng, (*lead, *s)))
            for n, s in shapes.items()
        }

    thetas = [random_theta(optimizer, seed) for seed in range(4)]
    theta = jax.tree.map(lambda *xs: np.stack(xs).reshape(2, 2, *xs[0].shape), *thetas)
    params, grads = draw(2, 2), draw(2, 2, 2)
    want = steps("plain", optimizer, theta, params, grads, specs)
    got = steps("blocked", optimizer, theta, params, grads, specs)
    for tensor in shapes:
        moved = want[tensor] - params[tensor][:, :, None]
        error = np.abs(got[tensor] - want[tensor]).max()
        assert error < 1e-6 * np.abs(moved).max() + 1e-7 * np.abs(want[tensor]).max()
        if not tensor.startswith(("bias", "scalar")):
            assert (
                np.abs(got[tensor][0, 0] - got[tensor][0, 1]).max()
                > 1e-3 * np.abs(moved).max()
            )


def test_derivatives_are_those_of_the_plain_form():
    with jax.enable_x64(True):
        q, layers = quantities((20, 6)), layers_of(4, 1)

        def loss(form, layers, grad):
            moved = Quantities(grad, q.param, q.state, q.step, PAPER)
            out = per_parameter_mlp.displacement(
                layers, features.SMALL_FC, moved, 0.1, Execution(form)
            )
            return jnp.sum(out**2)

        compiled = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)
        want, got = (
            compiled("plain", layers, q.grad),
            compiled("blocked", layers, q.grad),
        )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12 * np.abs(b).max())


@pytest.mark.parametrize(
    ("shape", "network"), [((37, 11), (32, 2)), ((5, 150), (5, 3))], ids=str
)
def test_kernel_in_interpret_mode_on_sizes_that_no_tile_divides(shape, network):
    q = quantities(shape, dtype=np.float32)
    layers = layers_of(*network, dtype=np.float32)
    want = displacement("plain", layers, q)
    got = displacement("kernel", layers, q)
    assert got.dtype == np.float32
    assert relative(got, want) < 1e-5


def test_kernel_under_vmap_over_particles():
    qs = [quantities((9, 20), seed, np.float32) for seed in range(2)]
    layers = [layers_of(4, 2, seed, np.float32) for seed in range(2)]
    want = [displacement("plain", *pair) for pair in zip(layers, qs, strict=True)]
    inputs = [
        (each, q.grad, q.param, q.state, q.step)
        for each, q in zip(layers, qs, strict=True)
    ]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *inputs)
    program = jax.vmap(kernels.program(features.SMALL_FC, PAPER, 0.1))
    got = jax.jit(program)(*stacked)
    assert relative(np.asarray(got), np.stack(want)) < 1e-5


def lowered_for_cuda(program, *inputs):
    """The program for a GPU that need not be there; JAX 0.12 asks which one."""
    gpu = AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=gpu)):
        traced = jax.jit(program).trace(*inputs)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def test_kernel_lowers_to_triton():
    """Triton knows every operation; the result is not tested here."""
    q, layers = quantities((37, 150), dtype=np.float32), layers_of(32, 2, 1, np.float32)
    program = jax.vmap(kernels.program(features.SMALL_FC, PAPER, 0.1, interpret=False))
    inputs = jax.tree.map(
        lambda x: jnp.stack([x, x]), (layers, q.grad, q.param, q.state, q.step)
    )
    assert "xla.gpu.triton" in lowered_for_cuda(program, *inputs)


def test_the_rule_on_a_cpu():
    assert jax.default_backend() == "cpu"
    f32 = jnp.dtype("float32")
    assert forms.choose((3072, 128), f32) == "blocked"
    assert forms.choose((128, 128), f32) == "blocked"
    assert forms.choose((127, 128), f32) == "plain"
    assert forms.choose((100_000,), f32) == "plain"
    assert forms.choose((0, 4096), f32) == "plain"
    assert forms.choose((3072, 128), f32, "plain") == "plain"
    assert forms.choose((37, 11), f32, "kernel") == "kernel"
    assert forms.choose((3, 2, 10, 6), f32, "kernel") == "plain"
    assert forms.choose((100_000,), f32, "blocked") == "plain"


def test_the_rule_on_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    f32 = jnp.dtype("float32")
    assert forms.choose((3072, 128), f32) == "kernel"
    assert forms.choose((3072, 128), jnp.dtype("float64")) == "plain"
    assert forms.choose((3, 3, 64, 64), f32) == "plain"
    assert forms.choose((32, 32), f32) == "plain"


def test_only_small_tensors_of_one_shape_are_stacked():
    shapes = {"a": (8, 8), "b": (512, 256), "c": (8, 8), "d": (512, 256)}
    specs = {n: ParamSpec(Axes.parse("width -> mlp"), s, s) for n, s in shapes.items()}
    values = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    groups = tensors.Arrangement(values, values, specs).groups
    assert [group.leaves for group in groups] == [(0, 2), (1,), (3,)]


def test_the_split_first_layer_leaves_sixteen_of_small_fc_s_inputs():
    q = quantities((4, 6), dtype=np.float32)
    layer = layers_of(3, 1, dtype=np.float32)["layer_0"]
    parts = first_layer.split(layer, features.SMALL_FC, q)
    assert first_layer.kernel_of(parts.places[None]).shape == (16, 3)
