"""Muon against NumPy in float64: matrices of any role's axes, both scalings, μP."""

import functools
import math

import jax
import numpy as np
import optax
import pytest

from lopt import Muon
from parametrization import ADAM_LIKE, COMPLETEP, STANDARD, Axes, ParamSpec

SHAPES = {
    "square": ("width -> width", (6, 6)),
    "tall": ("mlp -> width", (12, 5)),
    "conv": ("kernel kernel channels -> channels", (3, 2, 4, 5)),
    "query": ("width -> heads head_dim", (6, 2, 4)),
    "merge": ("heads head_dim -> width", (2, 4, 6)),
    "stacked": ("[layers] width -> mlp", (3, 4, 7)),
    "stacked_heads": ("[layers] width -> heads head_dim", (2, 5, 2, 3)),
}
ADAM = {
    "embedding": ("vocab -> width", (7, 4)),
    "readout": ("width -> classes", (4, 3)),
    "bias": ("-> heads head_dim", (2, 3)),
    "fixed": ("inputs -> outputs", (4, 4)),
    "gain": ("->", ()),
    "empty": ("width -> width", (0, 4)),
}
SPECS = {n: ParamSpec(Axes.parse(a), s, s) for n, (a, s) in (SHAPES | ADAM).items()}
NUM_STEPS = 3


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)

    def draw(shape):
        # A factor per axis: a transposed or a wrongly cut tensor gives another matrix.
        x = rng.normal(size=shape)
        for i, n in enumerate(shape):
            x = x * np.exp(rng.normal(size=n)).reshape(
                [-1 if j == i else 1 for j in range(len(shape))]
            )
        return np.float32(x)

    params = {n: draw(s.shape) for n, s in SPECS.items()}
    grads = {n: draw((NUM_STEPS, *s.shape)) for n, s in SPECS.items()}
    return params, grads


def matrices(name, x):
    """`[B, fan-in, fan-out]`, by hand for each of the shapes above."""
    reshaped = {
        "conv": lambda: x.reshape(1, 3 * 2 * 4, 5),
        "query": lambda: x.reshape(1, 6, 8),
        "merge": lambda: x.reshape(1, 8, 6),
        "stacked": lambda: x,
        "stacked_heads": lambda: x.reshape(2, 5, 6),
    }
    return reshaped.get(name, lambda: x[None])()


def orthogonalize(matrix, steps=5):
    """Newton and Schulz's quintic, from Jordan's description."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(steps):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x if wide else x.T


def reference(name, params, grads, scaling, nesterov, rate, decay):
    """Parameters after all steps."""
    beta = 0.95
    p, m = np.float64(params[name]), 0.0
    for t, g in enumerate(np.float64(grads[name]), 1):
        m = beta * m + (1 - beta) * g
        if nesterov:
            ahead = beta * m / (1 - beta ** (t + 1))
            ahead = ahead + (1 - beta) * g / (1 - beta**t)
        else:
            ahead = m / (1 - beta**t)
        cut = matrices(name, ahead)
        fan_in, fan_out = cut.shape[1:]
        factor = math.sqrt(max(1.0, fan_out / fan_in))
        if scaling == "consistent_rms":
            factor = 0.2 * math.sqrt(max(fan_in, fan_out))
        step = factor * np.stack([orthogonalize(x) for x in cut]).reshape(p.shape)
        p = p - rate * (step + decay * p)
    return p


@pytest.mark.parametrize(
    ("scaling", "nesterov"),
    [("aspect_ratio", True), ("consistent_rms", True), ("aspect_ratio", False)],
)
def test_hidden_tensors_against_numpy(run, data, scaling, nesterov):
    params, grads = data
    muon = Muon(0.03, scaling=scaling, nesterov=nesterov, weight_decay=0.1)
    path, _ = run(
        lambda theta: muon.as_optax(theta, SPECS, NUM_STEPS),
        params,
        grads,
        muon.init(None),
    )
    for name in SHAPES:
        want = reference(name, params, grads, scaling, nesterov, 0.03, 0.1)
        moved = np.abs(want - params[name]).max()
        assert moved > 0.01
        # float32 through five quintics: 2e-4 of the displacement.
        np.testing.assert_allclose(path[name][-1], want, atol=2e-4 * moved)


def test_other_roles_are_adam_s(run, data):
    muon = Muon(0.03, adam_ratio=0.5, b1=0.8, b2=0.9, weight_decay=0.1)
    specs = {n: SPECS[n] for n in (*ADAM, "square")}
    make = functools.partial(muon.as_optax, specs=specs, num_steps=NUM_STEPS)
    params, grads = ({n: x[n] for n in specs} for x in data)
    path, _ = run(make, params, grads, muon.init(None))
    adam = optax.chain(
        optax.scale_by_adam(0.8, 0.9, nesterov=True),
        optax.scale(0.5),
        optax.add_decayed_weights(0.1),
        optax.scale(-0.03),
    )
    others = ({n: x[n] for n in ADAM} for x in (params, grads))
    want, _ = run(lambda: adam, *others)
    for name in ADAM:
        np.testing.assert_allclose(path[name], want[name], rtol=1e-6, atol=1e-7)


def wider(name, n):
    """The spec of a tensor whose scaling axes are n times those of the base."""
    axes, shape = (SHAPES | ADAM)[name]
    axes = Axes.parse(axes)
    grows = {"width", "mlp", "channels", "heads"}
    now = tuple(
        s * n if a in grows else s for a, s in zip(axes.names, shape, strict=True)
    )
    return ParamSpec(axes, now, shape)


def spectral_norm(run, muon, name, n):
    spec = wider(name, n)
    rng = np.random.default_rng(1)
    grads = {"x": np.float32(rng.normal(size=(1, *spec.shape)))}
    params = {"x": np.zeros(spec.shape, np.float32)}
    make = functools.partial(muon.as_optax, specs={"x": spec}, num_steps=1)
    path, _ = run(make, params, grads, muon.init(None))
    width = math.prod(spec.shape[len(spec.axes.stacked) + len(spec.axes.fan_in) :])
    stacked = spec.shape[0] if spec.axes.stacked else 1
    cut = path["x"][0].reshape(stacked, -1, width)
    return np.linalg.norm(cut, ord=2, axis=(1, 2)).max()


@pytest.mark.parametrize(
    "name", [pytest.param("conv", marks=pytest.mark.slow), "stacked_heads"]
)
def test_the_spectral_norm_of_a_step_is_that_of_the_base_in_mup(run, name):
    # All sides grow 4 times, so √(n_out/n_in) = 1; singular values are .7 to 1.2.
    for scaling, growth in (("aspect_ratio", 1.0), ("consistent_rms", 2.0)):
        base = spectral_norm(run, Muon(1.0, scaling=scaling), name, 1)
        mup = Muon(1.0, scaling=scaling, rules=ADAM_LIKE)
        np.testing.assert_allclose(spectral_norm(run, mup, name, 4), base, rtol=0.2)
        plain = spectral_norm(run, Muon(1.0, scaling=scaling), name, 4)
        np.testing.assert_allclose(plain, growth * base, rtol=0.2)


def test_sides_that_grow_differently():
    # fan-in 4 times, fan-out 9 times: √(9/4) of the base's norm with either scaling.
    spec = ParamSpec(Axes.parse("width -> mlp"), (32, 18), (8, 2))
    assert ADAM_LIKE.spectral_scale(spec) == 1.5
    assert STANDARD.spectral_scale(spec) == 1.0
    aspect = Muon(rules=ADAM_LIKE)._factor(spec)
    rms = Muon(scaling="consistent_rms", rules=COMPLETEP)._factor(spec)
    np.testing.assert_allclose(aspect, 1.5)  # √max(1, out/in) is 1 at both
    np.testing.assert_allclose(rms, 1.5 * math.sqrt(8) / math.sqrt(32))


def test_at_the_base_shape_mup_is_standard(run, data):
    few = ("conv", "stacked_heads", "readout")
    params, grads = ({n: x[n] for n in few} for x in data)
    specs = {n: SPECS[n] for n in few}
    paths = []
    for rules in (STANDARD, ADAM_LIKE):
        muon = Muon(0.02, scaling="consistent_rms", rules=rules)
        make = functools.partial(muon.as_optax, specs=specs, num_steps=NUM_STEPS)
        paths.append(run(make, params, grads, muon.init(None))[0])
    jax.tree.map(np.testing.assert_array_equal, *paths)
