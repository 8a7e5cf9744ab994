"""Both transformers: base shape, forward pass, attention scale, scan."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from parametrization import ADAM_LIKE, COMPLETEP, STANDARD, Rules
from tasks.models.transformer import Transformer
from tasks.models.vit import ViT
from tests.tasks.models.transformers import (
    examples,
    loss_of,
    randomized,
    shapes,
)

BASE = {"base_width": 8, "base_head_dim": 4, "base_depth": 2, "mlp_ratio": 2}
LM = Transformer(width=8, head_dim=4, **BASE)
VIT = ViT(width=8, head_dim=4, patch=2, **BASE)
# One and a half times the base in every direction: two heads of 6, three blocks.
AWAY = {"width": 12, "head_dim": 6, "depth": 3}


@pytest.mark.parametrize(
    "model",
    [
        dataclasses.replace(LM, readout="tied"),
        pytest.param(dataclasses.replace(VIT, scan=True), marks=pytest.mark.slow),
    ],
    ids=["lm, tied", "vit, scanned"],
)
def test_at_the_base_shape_all_rules_agree_bit_for_bit(model):
    model = dataclasses.replace(model, depth=1, base_depth=1)
    params, (x, labels) = randomized(model), examples(model)
    # What lowers to the same program has the same bits: it need run only once.
    programs = {}
    for rules in Rules:
        grad = jax.jit(jax.value_and_grad(loss_of(model.with_rules(rules))))
        lowered = grad.lower(params, x, labels)
        programs[lowered.as_text()] = lowered
    first, *others = [p.compile()(params, x, labels) for p in programs.values()]
    assert all(np.asarray(grad).any() for grad in jax.tree.leaves(first))
    for other in others:
        same = jax.tree.map(np.array_equal, first, other)
        assert all(jax.tree.leaves(same))


@pytest.mark.slow
@pytest.mark.parametrize("model", [LM, VIT], ids=["lm", "vit"])
def test_away_from_the_base_there_are_three_forward_passes(model):
    model = dataclasses.replace(model, scan=True)

    def passes(**fields):
        programs = {}
        for rules in Rules:
            away = dataclasses.replace(model, rules=rules, **fields)
            apply = functools.partial(away.apply, num_outputs=shapes(away)[1])
            args = randomized(away), examples(away)[0]
            program = str(jax.make_jaxpr(apply)(*args))
            programs.setdefault(program, set()).add(rules.name)
        return sorted(map(sorted, programs.values()))

    mup, completep = ["ADAM_LIKE", "SGD_LIKE"], ["COMPLETEP", "COMPLETEP_SGD_LIKE"]
    assert passes(**AWAY) == [mup, completep, ["STANDARD"]]
    assert passes(width=16) == [sorted(mup + completep), ["STANDARD"]]
    assert passes(depth=3) == [[*mup, "STANDARD"], completep]
    assert passes() == [sorted([*mup, *completep, "STANDARD"])]


def layer_norm(x, params):
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return normal * params["gain"] + params["shift"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def turn(x):
    """Pairs of coordinates as complex numbers, turned by place times speed."""
    half = x.shape[-1] // 2
    pairs = x[:, :half] + 1j * x[:, half:]
    speeds = np.array([10_000 ** (-2 * k / x.shape[-1]) for k in range(half)])
    turned = pairs * np.exp(1j * np.arange(len(x))[:, None] * speeds[None])
    return np.concatenate([turned.real, turned.imag], -1)


def attention(x, params, scale, causal, rotary):
    """One sequence `[L, width]`, head by head and query by query."""
    out = np.zeros_like(x) + params["out"]["bias"]
    for head in range(params["query"]["kernel"].shape[1]):
        q, k, v = (x @ params[n]["kernel"][:, head] for n in ("query", "key", "value"))
        if rotary:
            q, k = turn(q), turn(k)
        for i in range(len(x)):
            seen = slice(0, i + 1 if causal else len(x))
            weights = np.exp(scale * (k[seen] @ q[i]))
            mixed = weights @ v[seen] / weights.sum()
            out[i] += mixed @ params["out"]["kernel"][head]
    return out


def layers(params, model):
    """Parameters of each block, first to last, in float64."""
    params = jax.tree.map(np.float64, params["residual"])
    if model.scan:
        leaves, structure = jax.tree.flatten(params["blocks"])
        return [structure.unflatten(layer) for layer in zip(*leaves, strict=True)]
    return [params[f"block_{i}"] for i in range(model.depth)]


def reference(params, x, model, scales):
    """Logits of one example, literally, in float64."""
    text = isinstance(model, Transformer)
    ends = jax.tree.map(np.float64, params)
    if text:
        x = ends["embedding"]["table"][x]
        x = x * 4 * math.sqrt(8) if model.readout == "tied" else x
        rotary = model.positions == "rotary"
    else:
        rotary, x = False, np.float64(x)
        cut = [x[i : i + 2, j : j + 2] for i in (0, 2) for j in (0, 2, 4)]
        x = np.stack([np.tensordot(p, ends["patches"]["kernel"], 3) for p in cut])
        x = x + ends["patches"]["bias"]
        if model.pooling == "class_token":
            x = np.concatenate([ends["class_token"][None], x])
    if not rotary:
        x = x + ends["positions"]["table"]
    for p in layers(params, model):
        h = layer_norm(x, p["attention_norm"])
        h = attention(h, p["attention"], scales["attention"], text, rotary)
        x = x + scales["residual"] * h
        h = layer_norm(x, p["mlp_norm"])
        h = gelu(h @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"])
        h = h @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"]
        x = x + scales["residual"] * h
    x = layer_norm(x, ends["norm"])
    if text and model.readout == "tied":
        return scales["readout"] * (x @ ends["embedding"]["table"].T)
    if not text:
        x = x[0] if model.pooling == "class_token" else x.mean(0)
    return scales["readout"] * (x @ ends["readout"]["kernel"]) + ends["readout"]["bias"]


UNSCALED = {"attention": 1 / math.sqrt(6), "residual": 1, "readout": 1}
MUP = {"attention": math.sqrt(4) / 6, "residual": 1, "readout": 2 / 3}
FORWARD = {
    "standard lm": (LM, {}, STANDARD, UNSCALED),
    "rotary lm": (LM, {"positions": "rotary"}, ADAM_LIKE, MUP),
    "tied lm": (
        *(LM, {"readout": "tied", "scan": True}, COMPLETEP),
        MUP | {"residual": 2 / 3},
    ),
    "standard vit": (VIT, {"pooling": "mean"}, STANDARD, UNSCALED),
    "vit": (VIT, {"scan": True}, COMPLETEP, MUP | {"residual": 2 / 3}),
}


@pytest.mark.parametrize("name", FORWARD)
def test_the_forward_pass_away_from_the_base_is_the_definition(name):
    model, fields, rules, scales = FORWARD[name]
    model = dataclasses.replace(model, rules=rules, **AWAY, **fields)
    params, (x, _) = randomized(model), examples(model)
    logits = jax.jit(lambda p, x: model.apply(p, x, shapes(model)[1]))(params, x)
    want = np.stack([reference(params, one, model, scales) for one in x])
    assert np.abs(want).max() > 0.4 and logits.shape == want.shape
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("width", "head_dim", "rules", "scale"),
    [
        (64, 16, STANDARD, 1 / 4),
        (64, 32, STANDARD, 1 / math.sqrt(32)),
        (64, 64, STANDARD, 1 / 8),
        (64, 16, ADAM_LIKE, 1 / 4),
        (64, 32, ADAM_LIKE, 1 / 8),
        (64, 64, ADAM_LIKE, 1 / 16),
        (128, 16, STANDARD, 1 / 4),
        (128, 16, ADAM_LIKE, 1 / 4),
    ],
)
def test_attention_is_scaled_by_the_size_of_a_head_alone(width, head_dim, rules, scale):
    model = Transformer(width, depth=1, head_dim=head_dim, rules=rules, mlp_ratio=1)
    params, (x, _) = randomized(model, scale=0.1), examples(model)
    seen = jax.jit(lambda p, x: model.activations(p, x, 7))(params, x)
    block = "residual/block_0/attention"
    query, key = (np.float64(seen[f"{block}/{name}/out"]) for name in ("query", "key"))
    assert query.shape == (2, 8, width // head_dim, head_dim)
    want = scale * np.einsum("bihd,bjhd->bhij", query, key)
    # Before the mask: every key of every query is there.
    np.testing.assert_allclose(
        seen[f"{block}/logits"], want, rtol=0, atol=1e-6 * np.abs(want).max()
    )


@pytest.mark.parametrize(
    "model",
    [dataclasses.replace(LM, positions="rotary"), VIT],
    ids=["lm", "vit"],
)
def test_scanned_blocks_compute_what_unscanned_ones_do(model):
    model = dataclasses.replace(model, base_depth=1, rules=COMPLETEP)
    scanned = dataclasses.replace(model, scan=True)
    params, (x, labels) = randomized(model), examples(model)

    def stack(tree):
        blocks = [tree["residual"][f"block_{i}"] for i in range(2)]
        stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *blocks)
        return {**tree, "residual": {"blocks": stacked}}

    def run(model, params):
        loss, grads = jax.value_and_grad(loss_of(model))(params, x, labels)
        seen = model.activations(params, x, shapes(model)[1])
        return loss, grads, seen

    loss, grads, seen = jax.jit(functools.partial(run, model))(params)
    got = jax.jit(functools.partial(run, scanned))(stack(params))
    ends = ("residual/out", "readout/out", "embedded")
    want = (loss, stack(grads), {name: seen[name] for name in ends})
    got = (*got[:2], {name: got[2][name] for name in ends})
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-6 * np.abs(a).max())
    assert jax.tree.structure(want) == jax.tree.structure(got)
