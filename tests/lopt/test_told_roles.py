"""Roles told to `infer_specs` give the steps that annotations give."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt import SGD, Muon, SmallFC
from lopt.learned.celo2 import Celo2
from parametrization import (
    ADAM_LIKE,
    SGD_LIKE,
    Axes,
    ParamSpec,
    infer_specs,
    specs_table,
)
from tasks import ConvNet, Transformer

TINY = {"hidden_size": 2, "hidden_layers": 1}
OPTIMIZERS = [
    Celo2(**TINY, rules=ADAM_LIKE),
    Muon(rules=ADAM_LIKE),
    SmallFC(**TINY, rules=ADAM_LIKE, factored_axes="matrix"),
]


def annotated(**tensors):
    """Specs from `name=(axes, shape, base shape)`."""
    return {n: ParamSpec(Axes.parse(a), s, b) for n, (a, s, b) in tensors.items()}


CASES = {
    "transformer": (
        Transformer(
            *(16, 2), head_dim=4, base_width=8, base_head_dim=4, scan=True
        ).specs((6,), 11),
        {
            "embedding/*": "lookup",
            "positions/*": "position",
            "*attention/out/kernel": "[layers] heads head_dim -> width",
            "*attention/*/kernel": "[layers] width -> heads head_dim",
            "residual/blocks/*": "stacked",
        },
    ),
    "convolutions": (
        ConvNet(width=8, base_width=4).specs((8, 8, 3), 10),
        {"conv_*/kernel": "convolution"},
    ),
    "experts and adapters": (
        annotated(
            router=("width -> experts", (8, 3), (4, 3)),
            up=("[layers experts] width -> mlp", (2, 3, 8, 16), (2, 3, 4, 8)),
            down=("[layers experts] mlp -> width", (2, 3, 16, 8), (2, 3, 8, 4)),
            bias=("[layers experts] -> mlp", (2, 3, 16), (2, 3, 8)),
            low=("[layers] width -> rank", (2, 8, 2), (2, 4, 2)),
            high=("[layers] rank -> width", (2, 2, 8), (2, 2, 4)),
        ),
        {
            "router": "readout",
            "low": "stacked readout",
            "high": "stacked input",
            "*": "stacked stacked",
        },
    ),
}


def shapes(specs, base=False):
    """Plain dictionaries of shapes, as of a model without annotations."""
    sizes = [s.base_shape if base else s.array_shape for s in jax.tree.leaves(specs)]
    leaves = [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes]
    return jax.tree.structure(specs).unflatten(leaves)


def program(optimizer, specs):
    """What a step computes: text and constants."""
    theta = jax.tree.map(jnp.zeros_like, optimizer.init(jax.random.key(0)))

    def step(params, grads):
        rule = optimizer.as_optax(theta, specs, 10)
        return rule.update(grads, rule.init(params), params)[0]

    closed = jax.make_jaxpr(step)(shapes(specs), shapes(specs))
    return str(closed.jaxpr), [np.asarray(x).tolist() for x in closed.consts]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("case", CASES)
def test_told_roles_step_as_annotations(case, optimizer):
    specs, kinds = CASES[case]
    told = infer_specs(shapes(specs), shapes(specs, base=True), kinds)
    assert program(optimizer, told) == program(optimizer, specs)


@pytest.mark.filterwarnings("ignore:infer_specs guesses")
@pytest.mark.parametrize("case", ["transformer", "experts and adapters"])
def test_untold_roles_step_otherwise(case):
    """So that the test above can fail."""
    specs, _ = CASES[case]
    guessed = infer_specs(shapes(specs), shapes(specs, base=True))
    assert program(OPTIMIZERS[1], guessed) != program(OPTIMIZERS[1], specs)


FORWARD = 0.25  # base width over width


@pytest.mark.parametrize(
    "optimizer", [SmallFC(**TINY, rules=ADAM_LIKE), SGD(0.1, rules=SGD_LIKE)]
)
def test_a_readout_without_multiplier_moves_its_product_as_one_with_it(optimizer):
    """W' = W/4 is W with the multiplier: its gradient is four times W's."""
    now, base = ({"w": jnp.zeros((n, 3))} for n in (16, 4))
    theta = optimizer.init(jax.random.key(0))
    grad = jax.random.normal(jax.random.key(1), (16, 3))

    def moved(readout, gradient):
        specs = infer_specs(now, base, readout=readout)
        rule = optimizer.as_optax(theta, specs, 10)
        update = jax.jit(lambda grads: rule.update(grads, rule.init(now), now)[0])
        return update({"w": gradient})["w"]

    if isinstance(optimizer, SGD):
        plain, scaled = moved("step", grad / FORWARD), moved("multiplier", grad)
    else:
        plain, scaled = moved("step", grad), moved("multiplier", grad)
    np.testing.assert_allclose(plain, FORWARD * scaled, rtol=1e-6)


def test_readouts_of_one_model_may_differ():
    now, base = (
        {n: jax.ShapeDtypeStruct((width, 8), "float32") for n in ("head", "router")}
        for width in (256, 64)
    )
    specs = infer_specs(now, base, readout={"router": "step"})
    assert ADAM_LIKE.step_scale(specs["head"]) == 1.0
    assert ADAM_LIKE.step_scale(specs["router"]) == 0.25
    assert ADAM_LIKE.gradient_scale(specs["head"]) == 0.25
    assert ADAM_LIKE.gradient_scale(specs["router"]) == 1.0
    assert ADAM_LIKE.spectral_scale(specs["head"]) == 2.0
    assert ADAM_LIKE.spectral_scale(specs["router"]) == 0.5
    assert SGD_LIKE.step_scale(specs["head"]) == 4.0
    assert SGD_LIKE.step_scale(specs["router"]) == 0.25
    with pytest.raises(ValueError, match=r"readout name parameters .*'haed'"):
        infer_specs(now, base, readout={"haed": "step"})
    with pytest.raises(ValueError, match="readout = 'none' must be one of"):
        infer_specs(now, base, readout="none")


OUT_IN = {
    "linear": ((16, 5), (8, 5), "input"),
    "head": ((3, 16), (3, 8), "output"),
    "conv": ((16, 8, 3, 3), (8, 4, 3, 3), "hidden"),
    "layers": ((2, 16, 24), (2, 8, 12), "hidden"),
    "table": ((7, 16), (7, 8), "input"),
    "bias": ((16,), (8,), "vector"),
}
MOVED = ("conv", "layers")


@pytest.mark.parametrize(
    "optimizer",
    [pytest.param(OPTIMIZERS[0], marks=pytest.mark.slow), *OPTIMIZERS[1:]],
    ids=lambda x: type(x).__name__,
)
def test_matrices_of_out_in_move_as_their_transposes(optimizer):
    now, base = (
        {n: jax.ShapeDtypeStruct(row[i], jnp.float32) for n, row in OUT_IN.items()}
        for i in (0, 1)
    )
    kinds = {"conv": "convolution", "layers": "stacked", "table": "lookup"}
    specs = infer_specs(now, base, kinds, order="out in")
    assert {n: s.kind for n, s in specs.items()} == {n: r[2] for n, r in OUT_IN.items()}
    in_order = {n: dataclasses.replace(s, order=None) for n, s in specs.items()}
    rng = np.random.default_rng(0)
    params, grads = (
        {n: jnp.asarray(rng.normal(size=OUT_IN[n][0]), jnp.float32) for n in MOVED}
        for _ in range(2)
    )
    theta = optimizer.init(jax.random.key(0))

    def step(specs, params, grads):
        rule = optimizer.as_optax(theta, specs, 10)
        return jax.jit(rule.update)(grads, rule.init(params), params)[0]

    def turned(tree):
        return {n: specs[n].canonical(x) for n, x in tree.items()}

    got = step(specs, params, grads)
    assert all(got[n].shape == OUT_IN[n][0] for n in MOVED)
    want = step(in_order, turned(params), turned(grads))
    for name, x in turned(got).items():
        np.testing.assert_allclose(x, want[name], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.filterwarnings("ignore:infer_specs guesses")
def test_the_table_shows_multipliers_and_guesses():
    specs, kinds = CASES["transformer"]
    del kinds
    some = {"embedding/*": "lookup", "residual/*": "stacked"}
    told = infer_specs(
        shapes(specs), shapes(specs, base=True), some, readout={"readout/*": "step"}
    )
    rows = {line.split()[0]: line for line in specs_table(told).splitlines()}
    assert len(rows) == 1 + len(jax.tree.leaves(specs))
    assert (
        rows["embedding/table"].endswith("×1") and "vocab ->" in rows["embedding/table"]
    )
    assert rows["positions/table"].endswith("guessed")
    assert "output, step" in rows["readout/kernel"] and "×0.5" in rows["readout/kernel"]


def test_guesses_that_shapes_cannot_confirm_are_told_once():
    def of(**sizes):
        return {n: jax.ShapeDtypeStruct(s, "float32") for n, s in sizes.items()}

    now = of(conv=(3, 3, 8, 8), heads=(8, 4, 4), square=(8, 8), flat=(5, 8))
    base = of(conv=(3, 3, 4, 4), heads=(4, 2, 4), square=(8, 4), flat=(5, 4))
    with pytest.warns(UserWarning, match="infer_specs guesses") as caught:
        specs = infer_specs(now, base)
    (warning,) = caught
    assert all(name in str(warning.message) for name in ("conv", "heads", "square"))
    assert "flat" not in str(warning.message) and warning.filename == __file__
    assert specs["conv"].axes == Axes.parse("kernel kernel width -> width")
    with pytest.warns(UserWarning, match="rows could be its columns"):
        infer_specs(of(t=(8, 8)), of(t=(8, 8)), {"t": "lookup"})
