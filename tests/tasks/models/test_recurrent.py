"""Recurrent language models: roles, initialization, multipliers, cells."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parametrization import ADAM_LIKE, COMPLETEP, STANDARD
from tasks.models.recurrent import GATES, Recurrent
from tests.tasks import families

CELLS = ("lstm", "gru")
V = 11
TOKENS = np.random.default_rng(4).integers(0, V, (4, 8)).astype(np.int32)
LABELS = np.roll(TOKENS, -1, 1)


@pytest.mark.parametrize("cell", CELLS)
def test_every_parameter_has_its_role(cell):
    model = Recurrent(cell, width=12, depth=2, base_width=4)
    gates = {"lstm": 4, "gru": 3}[cell]
    hidden = "width -> gates width"
    roles = {
        "embedding/table": ("vocab -> width", "input", (V, 12), (V, 4), 1.0),
        "readout/kernel": ("width -> vocab", "output", (12, V), (4, V), 3.0),
        "readout/bias": ("-> vocab", "vector", (V,), (V,), 1.0),
    }
    for i in range(2):
        shapes = (12, gates, 12), (4, gates, 4)
        roles |= {
            f"layer_{i}/input/kernel": (hidden, "hidden", *shapes, 3.0),
            f"layer_{i}/input/bias": (
                "-> gates width",
                "vector",
                (gates, 12),
                (gates, 4),
                1.0,
            ),
            f"layer_{i}/recurrent_kernel": (hidden, "hidden", *shapes, 3.0),
        }
        if cell == "gru":
            row = ("-> width", "vector", (12,), (4,), 1.0)
            roles[f"layer_{i}/recurrent_bias"] = row
    assert families.described(model.specs((8,), V)) == roles


@pytest.mark.parametrize("cell", CELLS)
def test_the_loss_starts_at_ln_v_and_kernels_have_the_deviations_of_their_roles(cell):
    model = Recurrent(cell, width=48, depth=1, base_width=16)
    params = families.start(model, TOKENS, LABELS, 300)
    layer = params["layer_0"]
    for values, std in (
        (params["embedding"]["table"], 1.0),
        (layer["input"]["kernel"], 48**-0.5),
        (layer["recurrent_kernel"], 48**-0.5),
    ):
        values = np.asarray(values, np.float64)
        # 4.5 standard errors of the estimated deviation and mean.
        tolerance = 4.5 / math.sqrt(2 * values.size)
        assert values.std() / std == pytest.approx(1, abs=tolerance)
        assert abs(values.mean()) / std * math.sqrt(values.size) < 4.5
    biases = [*params["readout"].values(), layer["input"]["bias"]]
    biases += [layer["recurrent_bias"]] if cell == "gru" else []
    assert not any(np.asarray(x).any() for x in biases)


@pytest.mark.parametrize("cell", ["gru", pytest.param("lstm", marks=pytest.mark.slow)])
def test_at_the_base_shape_all_parametrizations_agree_bit_for_bit(cell):
    model = Recurrent(cell, width=8, base_width=8)
    families.assert_equal_bits(families.by_rules(model, TOKENS, LABELS, V))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(h, c, x, w, u, b):
    """One step for one example, gate by gate."""
    i, f, g, o = (x @ w[:, k] + h @ u[:, k] + b[k] for k in range(4))
    c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru(h, x, w, u, b, candidate_bias):
    """One step for one example, gate by gate."""
    r, z = (sigmoid(x @ w[:, k] + h @ u[:, k] + b[k]) for k in range(2))
    n = np.tanh(x @ w[:, 2] + b[2] + r * (h @ u[:, 2] + candidate_bias))
    return (1 - z) * n + z * h


def reference(model, params, tokens, mult):
    """Logits `[B, L, V]`, literally, one token after the other, in float64."""
    params = jax.tree.map(np.float64, params)
    logits = np.empty((*tokens.shape, len(params["embedding"]["table"])))
    for b, sequence in enumerate(tokens):
        xs = [params["embedding"]["table"][token] for token in sequence]
        for i in range(model.depth):
            layer = params[f"layer_{i}"]
            weights = layer["input"]["kernel"], layer["recurrent_kernel"]
            bias = layer["input"]["bias"]
            h = c = np.zeros(model.width)
            for t, x in enumerate(xs):
                if model.cell == "lstm":
                    h, c = lstm(h, c, x, *weights, bias)
                else:
                    h = gru(h, x, *weights, bias, layer["recurrent_bias"])
                xs[t] = h
        readout = params["readout"]
        logits[b] = mult * (np.stack(xs) @ readout["kernel"]) + readout["bias"]
    return logits


@pytest.mark.parametrize(
    ("cell", "rules", "mult"),
    [("lstm", STANDARD, 1.0), ("lstm", COMPLETEP, 0.5), ("gru", ADAM_LIKE, 0.5)],
)
def test_logits_are_those_of_the_definition(cell, rules, mult):
    model = Recurrent(cell, width=12, depth=2, base_width=6, rules=rules)
    params = families.randomized(model, (8,), V, scale=0.6)
    want = reference(model, params, TOKENS, mult)
    other = reference(model, params, TOKENS, 1.5 - mult)
    largest = np.abs(want).max()
    assert largest > 1 and np.abs(want - other).max() > 0.1 * largest
    logits = jax.jit(lambda params: model.apply(params, TOKENS, V))(params)
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5 * largest)


FLAX = {"lstm": (nn.LSTMCell, "ifgo"), "gru": (nn.GRUCell, "rzn")}


def flax_params(cell, layer):
    """Parameters of flax's cell, its forget bias with the constant 1 in it."""
    inputs, recurrent = layer["input"], layer["recurrent_kernel"]
    params = {}
    for k, gate in enumerate(FLAX[cell][1]):
        params[f"i{gate}"] = {"kernel": inputs["kernel"][:, k]}
        params[f"h{gate}"] = {"kernel": recurrent[:, k]}
        biased = f"h{gate}" if cell == "lstm" else f"i{gate}"
        params[biased]["bias"] = inputs["bias"][k] + np.float32(gate == "f")
    if cell == "gru":
        params["hn"]["bias"] = layer["recurrent_bias"]
    return params


@pytest.mark.parametrize("cell", CELLS)
def test_hidden_states_are_those_of_flax(cell):
    model = Recurrent(cell, width=10)
    params = families.randomized(model, (8,), V, scale=0.6)
    theirs = nn.RNN(FLAX[cell][0](10))

    def both(params):
        recorded = model.activations(params, TOKENS, V)
        cells = {"cell": flax_params(cell, params["layer_0"])}
        return recorded, theirs.apply({"params": cells}, recorded["embedded"])

    recorded, want = jax.jit(both)(params)
    assert recorded["embedded"].shape == want.shape == (4, 8, 10)
    np.testing.assert_array_equal(
        recorded["embedded"], params["embedding"]["table"][TOKENS]
    )
    hidden = np.asarray(recorded["layer_0/hidden"])
    assert hidden.std() > 0.1
    np.testing.assert_allclose(hidden, want, rtol=1e-5, atol=1e-5)


def test_what_is_recorded_is_what_the_scan_computed():
    model = Recurrent("lstm", width=10, depth=2)
    params = families.randomized(model, (8,), V, scale=0.6)
    run = jax.jit(lambda params: model.activations(params, TOKENS, V))
    layers = {name: np.asarray(value) for name, value in run(params).items()}
    for i in range(2):
        gates = layers[f"layer_{i}/gates"]
        assert gates.shape == (4, 8, GATES["lstm"], 10)
        assert not layers[f"layer_{i}/recurrent"][:, 0].any()
        write, forget, candidate, output = np.moveaxis(gates, 2, 0)
        cell, hidden = layers[f"layer_{i}/cell"], layers[f"layer_{i}/hidden"]
        want = sigmoid(output) * np.tanh(cell)
        np.testing.assert_allclose(hidden, want, rtol=1e-5, atol=1e-6)
        before = np.concatenate([np.zeros((4, 1, 10)), cell[:, :-1]], 1)
        want = sigmoid(forget + 1) * before + sigmoid(write) * np.tanh(candidate)
        np.testing.assert_allclose(cell, want, rtol=1e-5, atol=1e-6)
    assert layers["readout/out"].shape == (4, 8, V)


@pytest.mark.parametrize("cell", CELLS)
def test_a_logit_depends_on_all_tokens_so_far_and_on_no_later_one(cell):
    model = Recurrent(cell, width=6, depth=2)
    params = families.randomized(model, (8,), V)
    tokens = jnp.asarray([[4, 0, 9, 3, 7, 1, 10]], jnp.int32)  # no two alike

    def logits(table):
        changed = params | {"embedding": {"table": table}}
        return model.apply(changed, tokens, V)[0].sum(-1)

    rows = jax.jit(jax.jacrev(logits))(params["embedding"]["table"])
    depends = np.asarray(rows).any(-1)[:, tokens[0]]  # [place, token]
    np.testing.assert_array_equal(depends, np.tri(7, dtype=bool))


def test_a_token_outside_the_vocabulary_makes_nan():
    model = Recurrent("gru", width=4)
    params = families.randomized(model, (8,), V)
    tokens = np.asarray([[1, 2, V, 3]], np.int32)
    run = jax.jit(lambda params: model.apply(params, tokens, V))
    logits = np.asarray(run(params))[0]
    assert np.isfinite(logits[:2]).all() and np.isnan(logits[2:]).all()


def test_other_widths_and_depths_keep_the_base():
    model = Recurrent("gru", width=16, depth=2, base_width=8)
    assert model.at_width(32) == Recurrent("gru", width=32, depth=2, base_width=8)
    assert model.at_depth(4) == Recurrent("gru", width=16, depth=4, base_width=8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cell": "rnn"}, "cell = 'rnn' must be one of lstm, gru"),
        ({"width": 0}, "width = 0 must be a positive"),
        ({"depth": 0}, "depth = 0 must be a positive"),
        ({"base_width": 2.0}, "base_width = 2.0 must be a whole number"),
        ({"rules": None}, "rules = None must be one of STANDARD"),
    ],
    ids=str,
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError) as info:
        Recurrent(**fields)
    assert message in str(info.value) and "\n" not in str(info.value)


def test_impossible_inputs_are_refused():
    with pytest.raises(ValueError, match=r"tokens \[B, L\]"):
        Recurrent().specs((4, 7), V)
