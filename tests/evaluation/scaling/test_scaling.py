"""Feature checks and learning-rate transfer across widths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.report.plots import png
from evaluation.scaling.coordinate_check import CoordinateCheck
from evaluation.scaling.feature_check import FeatureCheck, feature_check
from evaluation.scaling.plots import plot_coordinates, plot_features, plot_transfer
from evaluation.scaling.transfer import Transfer, learning_rate_transfer
from lopt import Adam, SmallFC
from lopt.per_parameter.epsilons import PAPER, WIDTH_SAFE
from metatrain.keys import stream
from parametrization import ADAM_LIKE, STANDARD
from tasks import MLP, ImageClassification
from tasks.base import sample

WIDTHS = (32, 128)
SMALL_FC = SmallFC(hidden_size=4, step_mult=0.01, rules=ADAM_LIKE)
THETA = SMALL_FC.init(jax.random.key(1))


@pytest.fixture(scope="module")
def task():
    return ImageClassification(MLP((32, 32), base_width=32), batch_size=32)


@pytest.fixture(scope="module")
def batch(task):
    return sample(task, task.load_data(), jax.random.key(0))


@pytest.fixture(scope="module")
def checks(task, batch):
    tasks = {width: task.at_width(width) for width in WIDTHS}

    def run(epsilons, **kwargs):
        lopt = dataclasses.replace(SMALL_FC, epsilons=epsilons)
        return feature_check(tasks, lopt, THETA, batch, 4, (0, 1), **kwargs)

    return {
        "paper": run(PAPER),
        "width_safe": run(WIDTH_SAFE),
        "unscaled": run(PAPER, unscaled=True),
    }


def slopes(check, statistic, feature):
    """Slopes of the input and the hidden matrix, whose gradients fall as 1/width."""
    rows = [check.tensors.index(f"hidden_{i}/kernel") for i in (0, 1)]
    return check.slopes(statistic)[rows, check.features.index(feature)]


@pytest.mark.slow
def test_the_statistics_are_those_of_the_optimizer_s_own_inputs(task, batch, checks):
    # At one width and seed, step by step, without scan or map.
    wide = task.at_width(128)
    rule = SMALL_FC.as_optax(THETA, wide.specs(), 4)
    params = wide.init(jax.random.key(1))
    state = rule.init(params)
    grad = jax.jit(jax.grad(lambda p: wide.loss(p, None, batch)[0]))
    for _ in range(4):
        updates, state = rule.update(grad(params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    features = SMALL_FC.features(THETA, state, grad(params), params)
    kernel = np.asarray(features["hidden_1"]["kernel"], np.float64)
    check = checks["paper"]
    index = check.tensors.index("hidden_1/kernel")
    assert len(check.features) == 28 and kernel.shape == (128, 128, 39)
    want = kernel.reshape(-1, 39)[:, :28]
    got = check.rms[WIDTHS.index(128), 1, index]
    np.testing.assert_allclose(got, np.sqrt((want**2).mean(0)), rtol=2e-4, atol=1e-7)
    got = check.spread[WIDTHS.index(128), 1, index]
    np.testing.assert_allclose(got, want.std(0), rtol=2e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statistic", "feature"),
    [
        ("rms", "gradient"),
        ("rms", "second_moment_0"),
        ("rms", "row_0"),
        ("spread", "reciprocal_root_0"),
    ],
)
def test_the_paper_s_floors_break_with_width(checks, statistic, feature):
    assert slopes(checks["paper"], statistic, feature).max() < -0.4
    assert np.abs(slopes(checks["width_safe"], statistic, feature)).max() < 0.15


@pytest.mark.slow
def test_width_safe_floors_leave_every_input_its_size(checks):
    assert np.nanmax(np.abs(checks["width_safe"].slopes("rms"))) < 0.01


@pytest.mark.slow
def test_gradients_of_the_base_s_size_mend_the_paper_s_floors(checks):
    paper = np.abs(checks["paper"].slopes("rms"))
    unscaled = np.abs(checks["unscaled"].slopes("rms"))
    assert np.nanmax(paper) > 1.5 and np.nanmax(unscaled) < 0.5


@pytest.mark.slow
def test_transfer_finds_the_losses_of_evaluation_and_their_minima(task):
    tasks = {w: task.at_width(w).with_rules(STANDARD) for w in (32, 64)}
    rates = (1e-5, 2e-3, 1e-2)
    lines = []
    result = learning_rate_transfer(
        tasks, Adam(), rates, num_steps=6, seeds=(0, 3), report=lines.append
    )
    assert result.losses.shape == (2, 3, 2) and len(lines) == 2
    # The figure of one run, by a plain loop with the keys of an evaluation.
    wide, lopt = tasks[64], Adam()
    key = stream(jax.random.key(3), "evaluation")
    data = wide.load_data()
    params = wide.init(stream(key, "init"))
    rule = lopt.as_optax({"learning_rate": jnp.float32(2e-3)}, wide.specs(), 6)
    state = rule.init(params)
    draws = wide.draw(data, stream(stream(key, "unroll"), "batches"), "train", 6)
    grad = jax.jit(jax.value_and_grad(lambda p, b: wide.loss(p, None, b)[0]))
    losses = []
    for t in range(6):
        draw = jax.tree.map(lambda x, t=t: x[t], draws)
        loss, grads = grad(params, wide.batch(data, draw, "train"))
        losses.append(float(loss))
        updates, state = rule.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    assert result.losses[1, 1, 1] == pytest.approx(np.mean(losses), rel=1e-4)
    assert result.best() == (1e-2, 1e-2) and result.shift() == 0.0


def transfer(losses):
    losses = np.asarray(losses)[..., None]
    return Transfer((8, 16), (0.25, 0.5, 1.0), losses, losses == 4.0)


def test_shift_and_penalty_in_closed_form():
    moved = transfer([[3.0, 2.0, 1.0], [1.0, 1.5, 4.0]])
    assert moved.best() == (1.0, 0.25)
    assert moved.shift() == -2.0 and moved.penalty() == 3.0
    still = transfer([[3.0, 1.0, 2.0], [2.0, 0.5, 2.0]])
    assert still.shift() == 0.0 and still.penalty() == 0.0
    line = still.table().splitlines()[2]
    assert line.split() == ["0.50000", "1.0000*", "0.5000*"]
    assert "†" not in still.table()
    *_, line, note = moved.table().splitlines()
    assert line.split() == ["1.00000", "1.0000*", "4.0000†"]
    assert note.startswith("† a run diverged")


def test_one_width_is_no_transfer(task):
    with pytest.raises(ValueError, match=r"widths \(32,\)"):
        learning_rate_transfer({32: task}, Adam(), (0.1, 0.2), 1, (0,))


@pytest.mark.slow
def test_figures_are_pictures(checks):
    change = np.ones((2, 2, 4, 2))
    check = CoordinateCheck(WIDTHS, ("a", "b"), change[:, :, 0], change, change[..., 0])
    transfers = {"Adam": transfer([[3.0, 2.0, 1.0], [1.0, 1.5, 4.0]])}
    figures = [
        plot_coordinates({"μP": check, r"$\frac{$": check}, axis="$$"),
        plot_features({f"$\\{label}$": value for label, value in checks.items()}),
        plot_transfer(transfers | {r"$\frac{$": transfers["Adam"]}),
    ]
    for figure in figures:
        assert png(figure).startswith(b"\x89PNG") and len(png(figure)) > 5000


def test_slopes_are_per_tensor_and_input():
    values = np.ones((2, 1, 2, 3))
    values[1, 0, 1, 2] = 4.0
    check = FeatureCheck((8, 16), ("a", "b"), ("x", "y", "z"), values, 0 * values)
    assert check.slopes().tolist() == [[0, 0, 0], [0, 0, 2]]
    assert np.isnan(check.slopes("spread")).all()
