"""FLOP, bytes and roles against closed forms."""

import jax
import pytest

from evaluation import cost as module
from evaluation.cost import cost, flop_per_step, param_shapes, roles
from tasks import (
    MLP,
    Digits,
    ImageClassification,
    LanguageModelling,
    Quadratic,
    RandomTeacher,
    Recurrent,
    Signals,
    StandardLibrary,
    TFDSImages,
    TFDSText,
    Transformer,
)
from tasks.suites import mulo

WIDE = ImageClassification(MLP((96, 64), base_width=32), batch_size=10)
PAIRS = [(64, 96), (96, 64), (64, 10)]


def matrix_flop(batch, pairs):
    """2 per multiplication; backward again for weights and, but first, for inputs."""
    forward = sum(a * b for a, b in pairs)
    return 2 * batch * (3 * forward - pairs[0][0] * pairs[0][1])


@pytest.fixture(scope="module")
def wide():
    return cost(WIDE)


def test_parameters_and_bytes_of_an_mlp(wide):
    matrices = sum(a * b for a, b in PAIRS)
    vectors = 96 + 64 + 10
    assert wide.parameters == matrices + vectors
    assert wide.tensors == 6
    assert wide.parameter_bytes == wide.gradient_bytes == 4 * wide.parameters
    # Two moments and Adam's counter; the schedule has one too.
    assert wide.adam_bytes == 8 * wide.parameters + 8
    # Three momenta, a second moment, three factored ones, and a counter.
    factored = 3 * sum(a + b for a, b in PAIRS) + 3 * vectors
    assert wide.small_fc_bytes == 4 * (4 * wide.parameters + factored + 1)
    assert wide.activation_bytes == 4 * 10 * (96 + 64 + 10)
    assert wide.batch_bytes == 4 * 10 * 64 + 4 * 10
    assert wide.dataset_bytes == 1797 * (64 + 4) + 8


def test_flop_of_an_mlp_are_those_of_its_products_and_little_more(wide):
    products = matrix_flop(10, PAIRS)
    assert wide.flop_source == "XLA"
    assert products < wide.flop_per_step < 1.1 * products
    loss = jax.value_and_grad(lambda p, k, b: WIDE.loss(p, k, b)[0])
    arguments = (param_shapes(WIDE), module._key(), WIDE.batch_shapes())
    traced = jax.jit(loss).trace(*arguments).jaxpr.jaxpr
    assert module._matrix_flop(traced) == products


def transformer(scan):
    model = Transformer(width=16, depth=2, base_width=16, scan=scan)
    return LanguageModelling(model, length=4, batch_size=2)


def test_scanned_blocks_count_as_often_as_they_run():
    scanned = transformer(scan=True)
    assert module._unrolled(scanned) == transformer(scan=False)
    flop, source = flop_per_step(scanned)
    assert source == "XLA"
    # Per token: 12 width² in a block and the readout; queries times keys, weights times
    # values. A loop whose body counts once would have little more than half of it.
    width, length, depth, tokens = 16, 4, 2, 8
    products = depth * (12 * width**2 + 2 * length * width) + 256 * width
    assert 6 * tokens * products < flop < 1.6 * 6 * tokens * products
    loss = jax.value_and_grad(lambda p, k, b: scanned.loss(p, k, b)[0])
    arguments = (
        param_shapes(scanned),
        module._key(),
        scanned.batch_shapes(),
    )
    traced = jax.jit(loss).trace(*arguments).jaxpr.jaxpr
    # The tables are looked up: no product leads back to them.
    assert module._matrix_flop(traced) == 6 * tokens * products


def test_a_recurrent_network_counts_every_step():
    width, length, batch, vocab = 8, 7, 3, 256
    task = LanguageModelling(
        Recurrent("lstm", width=width), length=length, batch_size=batch
    )
    flop, source = flop_per_step(task)
    assert source == "matrix products"
    # Per token: both kernels of the gates and the readout; forward, and twice back.
    token = 2 * (4 * width * width) + width * vocab
    assert flop == pytest.approx(6 * batch * length * token, rel=1e-9)


def test_the_largest_tasks_are_described_without_being_made(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing is to be loaded")

    monkeypatch.setattr(TFDSText, "load", refuse)
    monkeypatch.setenv("METATRAIN_DATA_DIR", "/nowhere")
    text = cost(mulo.language_model(3072))
    # 3 blocks of 12 width², two tables of the vocabulary, norms, biases, positions.
    assert text.parameters == pytest.approx(36 * 3072**2 + 2 * 32_000 * 3072, rel=0.002)
    assert text.dataset_bytes is None
    tokens = 128 * 64
    products = 36 * 3072**2 + 32_000 * 3072 + 3 * 2 * 64 * 3072
    assert text.flop_per_step == pytest.approx(6 * tokens * products, rel=0.02)
    wide = ImageClassification(MLP((8192,) * 3, base_width=1), Signals(), 4096)
    sizes = [(40, 8192), (8192, 8192), (8192, 8192), (8192, 10)]
    assert cost(wide).flop_per_step == pytest.approx(matrix_flop(4096, sizes), rel=0.01)


def test_what_is_known_of_data(data_dir):
    data_dir("mnist")
    mnist = ImageClassification(MLP(), TFDSImages("mnist"))
    assert mnist.dataset_bytes() == 70_000 * (28 * 28 + 4)
    small = ImageClassification(MLP(), TFDSImages("mnist", size=8))
    assert small.dataset_bytes() == 70_000 * (64 + 4)
    text = LanguageModelling(Recurrent(), StandardLibrary(), length=4)
    assert text.dataset_bytes() == sum(x.nbytes for x in text.load_data())
    teacher = RandomTeacher(teacher=MLP((5,)), num_inputs=3, num_targets=2)
    assert teacher.dataset_bytes() == 4 * (3 * 5 + 5 + 5 * 2 + 2 + 2 * 2)
    assert ImageClassification(MLP(), TFDSImages("absent")).dataset_bytes() is None
    assert Quadratic(dimension=8).dataset_bytes() == 4 * 3 * 8
    assert ImageClassification(MLP(), Digits()).dataset_bytes() == 122_204


def test_roles_are_those_of_the_table():
    task = ImageClassification(MLP((64, 64, 64), base_width=16))
    found = {role.path: role for role in roles(task)}
    assert list(found) == [
        "hidden_*/bias",
        "hidden_0/kernel",
        "hidden_*/kernel",
        "readout/bias",
        "readout/kernel",
    ]
    hidden, out = found["hidden_*/kernel"], found["readout/kernel"]
    assert (hidden.count, found["hidden_*/bias"].count, out.count) == (2, 3, 1)
    assert (hidden.axes, hidden.kind) == ("width -> width", "hidden")
    assert (hidden.shape, hidden.base_shape) == ((64, 64), (16, 16))
    assert (hidden.fan_in_ratio, hidden.step_scale) == (4.0, 0.25)
    assert hidden.forward_scale is None
    assert (out.kind, out.step_scale, out.forward_scale) == ("output", 1.0, 0.25)
    assert found["hidden_0/kernel"].kind == "input"
    (position,) = roles(Quadratic())
    assert (position.path, position.kind, position.step_scale) == ("x", "vector", 1.0)


def test_blocks_that_are_alike_make_one_line():
    task = transformer(scan=False)
    found = roles(task)
    assert sum(role.count for role in found) == len(jax.tree.leaves(task.specs()))
    counts = {role.path: role.count for role in found}
    assert counts["residual/block_*/mlp/up/kernel"] == 2
    assert counts["embedding/table"] == 1
