"""The transformer language model: causality, rotary positions, tied readout."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parametrization import ADAM_LIKE, STANDARD
from tasks.models.attention import rotate
from tasks.models.transformer import Transformer
from tests.tasks.models.transformers import randomized

LENGTH = 5
LM = Transformer(
    width=8, head_dim=4, base_width=8, base_head_dim=4, base_depth=1, mlp_ratio=2
)


@pytest.mark.parametrize("scan", [False, True], ids=["loop", "scan"])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_no_logit_depends_on_a_later_token(positions, scan):
    model = dataclasses.replace(LM, positions=positions, scan=scan)
    params = randomized(model, (LENGTH,), LENGTH)
    # Every token once, so a row of the table is the input at one place alone.
    tokens = np.array([[3, 0, 4, 1, 2]], np.int32)

    @jax.jit
    def gradients(table):
        def logits(table):
            tables = {**params, "embedding": {"table": table}}
            return model.apply(tables, tokens, LENGTH)[0]

        _, pullback = jax.vjp(logits, table)
        rng = np.random.default_rng(0)
        weights = rng.normal(size=(1, LENGTH)).astype(np.float32)
        one_place = np.eye(LENGTH, dtype=np.float32)[:, :, None] * weights[None]
        return jax.vmap(pullback)(one_place)[0]

    moved = np.asarray(gradients(params["embedding"]["table"]))[:, tokens[0]]
    assert moved.shape == (LENGTH, LENGTH, 8)
    for i in range(LENGTH):
        assert not moved[i, i + 1 :].any()
        assert (np.abs(moved[i, : i + 1]).max(-1) > 1e-6).all()


def test_rotary_attention_depends_on_the_distance_alone():
    rng = np.random.default_rng(1)
    query, key = (rng.normal(size=(2, 6, 3, 8)).astype(np.float32) for _ in "qk")

    @jax.jit
    def logits(places_of_queries, places_of_keys):
        q, k = rotate(query, places_of_queries), rotate(key, places_of_keys)
        return jnp.einsum("bihd,bjhd->bhij", q, k)

    places = np.arange(6)
    start = logits(places, places)
    np.testing.assert_allclose(logits(places + 7, places + 7), start, atol=1e-5)
    np.testing.assert_allclose(
        np.einsum("bihd,bihd->bhi", query, key),
        np.einsum("bhii->bhi", start),
        atol=1e-5,
    )
    assert np.abs(logits(places + 1, places) - start).max() > 0.5
    assert np.abs(logits(places, 2 * places) - start).max() > 0.5


def test_places_matter_with_rotary_positions_too():
    model = dataclasses.replace(LM, depth=1, positions="rotary")
    params = randomized(model, (LENGTH,), LENGTH)
    assert "positions" not in params
    tokens = np.array([[0, 1, 2, 3, 4], [1, 0, 3, 2, 4]], np.int32)
    last = jax.jit(lambda p, x: model.apply(p, x, LENGTH)[:, -1])(params, tokens)
    assert np.abs(last[0] - last[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("width", "rules", "std"),
    [(16, ADAM_LIKE, 0.25), (64, ADAM_LIKE, 0.125), (64, STANDARD, 0.5)],
    ids=str,
)
def test_tied_logits_are_of_size_a_quarter_at_the_base_width(width, rules, std):
    model = Transformer(width, depth=1, base_width=16, readout="tied", rules=rules)
    vocabulary = 400
    params = jax.tree.map(np.zeros_like, randomized(model, (LENGTH,), vocabulary))
    # Entries of the size at which the table of a tied model starts.
    table = 0.25 * 16**-0.5 * np.random.default_rng(0).normal(size=(vocabulary, width))
    params["embedding"]["table"] = np.float32(table)
    params["norm"]["gain"] = np.ones(width, np.float32)
    tokens = np.zeros((1, LENGTH), np.int32)
    logits = jax.jit(lambda p: model.apply(p, tokens, vocabulary))(params)
    # Of all tokens but the one that is read: sums of `width` independent products.
    others = np.asarray(logits)[0, 0, 1:]
    assert others.std() == pytest.approx(std, rel=4.5 / math.sqrt(2 * len(others)))


def test_inputs_that_are_no_tokens_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 8, 8, 1\) must be tokens \[B, L\]"):
        LM.specs((8, 8, 1), 10)


def test_a_token_beyond_the_vocabulary_is_not_another_one():
    model, params = dataclasses.replace(LM, depth=1), randomized(LM, (LENGTH,), LENGTH)
    tokens = np.array([[0, 1, 2, 3, 4], [0, 1, 2, 3, LENGTH]], np.int32)
    logits = jax.jit(lambda x: model.apply(params, x, LENGTH))(tokens)
    assert np.isfinite(logits[0]).all() and np.isnan(logits[1, 4]).all()


@pytest.mark.parametrize("name", ["head_dim", "base_head_dim"])
def test_rotary_heads_have_an_even_size(name):
    odd = {name: 1}
    assert getattr(dataclasses.replace(LM, **odd), name) == 1
    with pytest.raises(ValueError, match=f"^{name} = 1 must be even"):
        dataclasses.replace(LM, positions="rotary", **odd)


@pytest.mark.slow
def test_a_tied_table_starts_at_a_size_that_does_not_depend_on_the_width():
    for width in (16, 64):
        model = Transformer(width, depth=1, base_width=16, readout="tied")
        table = model.init(jax.random.key(2), (LENGTH,), 400)["embedding"]["table"]
        tolerance = 4.5 / math.sqrt(2 * table.size)
        assert float(jnp.std(table)) * 4 * 4 == pytest.approx(1, abs=tolerance)
