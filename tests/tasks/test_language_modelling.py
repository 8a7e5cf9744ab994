"""The language task: its loss is the mean over next tokens, and it can be learned."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from parametrization import ADAM_LIKE, STANDARD
from parametrization.rules import Rules
from tasks.base import SPLITS, Task, sample
from tasks.data import standard_library
from tasks.data.text import Text, TextBatch, TextDataset, token_dtype
from tasks.language_modelling import LanguageModelling
from tasks.models.base import Model, record
from tasks.models.layers import Embedding, readout
from tasks.models.mlp import MLP
from tasks.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Bigram(Model):
    """Predicts the next token from the last one: an embedding and a readout."""

    width: int = 8
    base_width: int = 8
    rules: Rules = ADAM_LIKE
    depth: ClassVar[int] = 0
    input_dtype: ClassVar = jnp.int32

    def at_width(self, width):
        return dataclasses.replace(self, width=width)

    def at_depth(self, depth):
        return self

    def forward(self, module, x, num_outputs):
        table = Embedding(num_outputs, self.width, name="embedding")()
        x = record(module, "embedded", table[x])
        return readout(self, num_outputs)(x)


@dataclasses.dataclass(frozen=True)
class Cycle(Text):
    """0, 1, … V-1, 0, 1, …: the next token follows from the last one."""

    vocab_size: int = 16
    sizes: tuple[int, ...] = (400, 50, 60, 70)

    def load(self):
        dtype = token_dtype(self.vocab_size)
        return TextDataset(
            *(jnp.arange(n).astype(dtype) % self.vocab_size for n in self.sizes)
        )


TASK: Task = LanguageModelling(Bigram(), Cycle(), length=8, batch_size=4)


@pytest.fixture(scope="module")
def data():
    return TASK.load_data()


def test_the_loss_at_chance_is_that_of_an_untrained_model():
    task = LanguageModelling(Bigram(), Cycle(300), 8, 4)
    assert task.loss_at_chance == math.log(300)
    np.testing.assert_allclose(first_loss(task), math.log(300), rtol=1e-6)


def first_loss(task):
    """The loss of initial parameters, in one small program."""

    @jax.jit
    def run(data):
        batch = sample(task, data, jax.random.key(1))
        return task.loss(task.init(jax.random.key(0)), jax.random.key(2), batch)[0]

    return run(task.load_data())


def test_the_loss_is_the_mean_of_minus_log_probabilities_of_the_next_tokens():
    """Against loops in float64."""
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda spec: jnp.float32(random.normal(size=spec.shape)), TASK.specs()
    )
    inputs, targets = random.integers(0, 16, (2, 4, 8))
    batch = TextBatch(jnp.int32(inputs), jnp.int32(targets))
    table, kernel, bias = (
        np.float64(x)
        for x in (
            params["embedding"]["table"],
            params["readout"]["kernel"],
            params["readout"]["bias"],
        )
    )
    total, hits = 0.0, 0
    for i in range(4):
        for j in range(8):
            logits = table[inputs[i, j]] @ kernel + bias
            total -= logits[targets[i, j]] - np.log(np.sum(np.exp(logits)))
            hits += int(np.argmax(logits)) == targets[i, j]
    loss, aux = jax.jit(TASK.loss)(params, jax.random.key(0), batch)
    assert loss.shape == () and set(aux) == {"accuracy"}
    np.testing.assert_allclose(loss, total / 32, rtol=1e-5)
    np.testing.assert_allclose(aux["accuracy"], hits / 32)


def test_training_learns_what_follows(data):
    optimizer = optax.adam(0.1)

    @jax.jit
    def train(data):
        params = TASK.init(jax.random.key(0))

        def step(carry, key):
            params, state = carry
            batch = sample(TASK, data, key)
            grads = jax.grad(lambda p: TASK.loss(p, key, batch)[0])(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(1), 150)
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return TASK.loss(params, keys[0], TASK.whole(data, "test"))

    loss, aux = train(data)
    assert loss < 0.1 and aux["accuracy"] == 1.0


def test_draws_are_integers_and_batches_are_cut_from_them(data):
    draws = TASK.draw(data, jax.random.key(0), "train", 5)
    assert draws.starts.shape == (5, 4) and draws.starts.dtype == jnp.int32
    draw = jax.tree.map(lambda x: x[2], draws)
    batch = TASK.batch(data, draw, "train")
    want = (np.asarray(draw.starts)[:, None] + np.arange(8)[None, :]) % 16
    np.testing.assert_array_equal(batch.inputs, want)
    np.testing.assert_array_equal(batch.targets, (want + 1) % 16)


@pytest.mark.parametrize("split, num", [("train", 6), ("inner_valid", 6), ("test", 6)])
def test_the_whole_of_a_split_is_evenly_spaced_windows(data, split, num):
    task = dataclasses.replace(TASK, evaluation_windows=num)
    batch = jax.jit(task.whole, static_argnums=1)(data, split)
    assert batch.inputs.shape == batch.targets.shape == (num, 8)
    tokens = np.asarray(data.split(split))
    np.testing.assert_array_equal(batch.inputs[0], tokens[:8])
    np.testing.assert_array_equal(batch.targets[-1], tokens[-8:])


def test_a_split_with_few_windows_is_taken_whole(data):
    assert TASK.whole(data, "inner_valid").inputs.shape == (49 // 8, 8)


def test_a_text_too_short_for_a_window_is_refused_when_loaded():
    task = dataclasses.replace(TASK, data=Cycle(sizes=(400, 50, 8, 70)))
    message = "split 'outer_valid' has 8 tokens, but a window of length = 8 .* need 9"
    with pytest.raises(ValueError, match=message):
        task.load_data()
    assert dataclasses.replace(task, length=7).load_data().outer_valid.shape == (8,)


def test_width_and_rules_are_those_of_the_model():
    wide = TASK.at_width(32)
    assert (TASK.width, wide.width, wide.model.base_width) == (8, 32, 8)
    assert (wide.data, wide.length, wide.batch_size) == (TASK.data, 8, 4)
    specs, params = wide.specs(), jax.eval_shape(wide.init, jax.random.key(0))
    assert specs["embedding"]["table"].kind == "input"
    assert specs["readout"]["kernel"].kind == "output"
    assert specs["readout"]["kernel"].fan_in_mult == 4.0
    assert jax.tree.structure(specs) == jax.tree.structure(params)
    assert TASK.with_rules(STANDARD).model.rules is STANDARD
    assert TASK.depth == 0 and TASK.at_depth(0) == TASK


def test_a_transformer_starts_at_chance_in_this_task():
    model = Transformer(width=16, depth=1, head_dim=8, base_width=8, base_head_dim=8)
    task = LanguageModelling(model, Cycle(), 8, 4)
    np.testing.assert_allclose(first_loss(task), math.log(16), rtol=1e-6)
    assert task.specs()["readout"]["kernel"].fan_in_mult == 2.0


class Flat(MLP):
    """Takes tokens, and makes logits for a window instead of for each place."""

    input_dtype = jnp.int32


def test_a_model_without_an_output_per_place_is_refused():
    with pytest.raises(
        ValueError, match="model = MLP takes no tokens; use Transformer"
    ):
        LanguageModelling(MLP((8,), base_width=8), Cycle(), 8, 4)
    task = LanguageModelling(Flat((8,), base_width=8), Cycle(), 8, 4)
    with pytest.raises(ValueError, match=r"model Flat .* \(4, 16\), .* \(4, 8, 16\)"):
        jax.eval_shape(lambda: first_loss(task))


def test_activations_are_those_of_the_model(data):
    def record(data):
        batch = sample(TASK, data, jax.random.key(1))
        params = TASK.init(jax.random.key(0))
        return TASK.activations(params, jax.random.key(2), batch)

    found = jax.eval_shape(record, data)
    assert found["embedded"].shape == (4, 8, 8)
    assert found["readout/out"].shape == (4, 8, 16)


@pytest.mark.parametrize("name", ["length", "batch_size", "evaluation_windows"])
def test_sizes_below_one_are_refused(name):
    for value in (0, -3):
        with pytest.raises(ValueError, match=f"{name} = {value} must be a positive"):
            dataclasses.replace(TASK, **{name: value})


def test_the_default_text_is_python_and_constructing_does_not_read_it(monkeypatch):
    def refuse(*_):
        raise AssertionError("the disk was read")

    with monkeypatch.context() as patch:
        patch.setattr(standard_library, "read_files", refuse)
        task = LanguageModelling(Bigram())
        assert task.loss_at_chance == math.log(256)
        assert hash(task) == hash(LanguageModelling(Bigram()))
    data = task.load_data()
    for split in SPLITS:
        assert task.whole(data, split).inputs.shape == (256, 64)
