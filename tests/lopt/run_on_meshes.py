"""Runs every optimizer on four virtual devices; started by `test_meshes.py`.

Arguments: names of cases. A line of JSON follows: for each case, what fell short.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from parametrization import Axes, ParamSpec
from tests.lopt.test_properties import CASES

AXES = {
    "bias": "-> width",
    "kernel": "width -> width",
    "layers": "[layers] width -> mlp",
    "query": "width -> heads head_dim",
    "table": "vocab -> width",
}
SHAPES = {
    "bias": (8,),
    "kernel": (8, 8),
    "layers": (4, 8, 6),
    "query": (8, 4, 2),
    "table": (6, 8),
}
SPLIT = {
    "bias": P("x"),
    "kernel": P("x", None),
    "layers": P("x", None, None),
    "query": P(None, "x", None),
    "table": P(None, "x"),
}
SPECS = {n: ParamSpec(Axes.parse(AXES[n]), s, s) for n, s in SHAPES.items()}
BIG = {"w": (256, 64)}  # walked in blocks
BIG_SPECS = {"w": ParamSpec(Axes.parse("width -> width"), BIG["w"], BIG["w"])}


def values(shapes, seed):
    rng = np.random.default_rng(seed)
    return {n: np.float32(rng.normal(size=s)) for n, s in shapes.items()}


def optimizer_of(case, theta, specs):
    rule = case.optimizer.as_optax(theta, specs, 10)
    extra = {"loss": jnp.float32(1.5)} if case.loss else {}

    def step(params, state, grads):
        updates, state = rule.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return rule, step


def two_steps(case, theta, specs, params, grads):
    rule, step = optimizer_of(case, theta, specs)
    carry = params, rule.init(params)
    # A loop, whose carry keeps its type.
    return jax.lax.fori_loop(0, 2, lambda _, c: step(*c, grads), carry)


def place(tree, mesh):
    where = {n: NamedSharding(mesh, SPLIT[n]) for n in tree}
    return jax.tree.map(jax.device_put, tree, where)


def differs(got, want):
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return any(not np.allclose(*pair, rtol=1e-3, atol=1e-5) for pair in pairs)


def split_over(x):
    spec = x.sharding.spec if isinstance(x.sharding, NamedSharding) else ()
    return [i for i, names in enumerate(spec) if names]


def born_split(case, theta, mesh):
    """A state beside parameters that are split, and one of typed parameters."""
    params = place(values(SHAPES, 0), mesh)
    rule, _ = optimizer_of(case, theta, SPECS)
    state = rule.init(params)
    alone = jax.eval_shape(rule.init, params)
    assert jax.tree.structure(alone) == jax.tree.structure(state)
    whole = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = next((k.key for k in path if getattr(k, "key", None) in SHAPES), None)
        # Row factors of a matrix that is split by columns have nothing to split.
        if name in ("bias", "layers") and leaf.size >= 8 and not split_over(leaf):
            whole.append(jax.tree_util.keystr(path))
        if name in ("kernel", "query") and leaf.size >= 64 and not split_over(leaf):
            whole.append(jax.tree_util.keystr(path))
    assert not whole, f"not split: {whole}"


def explicit(case, theta, want):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params, grads = (place(values(SHAPES, i), mesh) for i in (0, 1))
        run = jax.jit(functools.partial(two_steps, case, theta, SPECS))
        got, _ = run(params, grads)
        assert all(jax.typeof(x).sharding.spec == SPLIT[n] for n, x in got.items())
        inside = jax.jit(lambda t, p, g: two_steps(case, t, SPECS, p, g))
        inside(theta, params, grads)
    if not case.random and not case.global_norm:
        assert not differs(got, want), "other steps under an explicit mesh"


def local(case, theta):
    """Parameters of each device's own, small and large."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    shapes, specs = SHAPES | BIG, SPECS | BIG_SPECS
    params, grads = (values(shapes, i) for i in (2, 3))

    def one(params, grads):
        params, grads = jax.tree.map(lambda x: x[0], (params, grads))
        carry = two_steps(case, theta, specs, params, grads)
        return jax.tree.map(lambda x: x[None], carry)

    run = jax.shard_map(one, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    jax.jit(run)(*jax.tree.map(lambda x: np.stack([x, 2 * x]), (params, grads)))


def main():
    # Programs of one device each, in turn: with few cores, collectives of two deadlock.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    found = {}
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    for name in sys.argv[1:]:
        case, found[name] = CASES[name], []
        theta = case.optimizer.init(jax.random.key(0))
        run = jax.jit(functools.partial(two_steps, case, theta, SPECS))
        want, _ = run(values(SHAPES, 0), values(SHAPES, 1))
        checks = ((born_split, mesh), (explicit, want), (local,))
        for check, *arguments in checks:
            try:
                check(case, theta, *arguments)
            except Exception as error:
                found[name].append(f"{type(error).__name__}: {error}"[:600])
        print(name, found[name], file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
