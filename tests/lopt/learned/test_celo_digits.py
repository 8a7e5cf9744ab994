"""Published Celo weights train a network on digits as the originals did.

Training amplifies rounding: the first 20 losses agree tightly, the end by level.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopt.learned.celo import Celo
from lopt.learned.celo_adam import CeloAdam
from parametrization import Axes, ParamSpec
from tests.lopt.learned.test_velo_celo import celo_theta
from tests.lopt.per_tensor.test_scheduler import tensor_lstm_theta

pytestmark = pytest.mark.slow

LAYERS = ["linear_0", "linear_1", "linear_2"]
RULES = {
    "celo": (Celo(), celo_theta),
    "celo_adam": (CeloAdam(), lambda x: {"scheduler": tensor_lstm_theta(x)}),
}


def read(path):
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def digits(golden):
    return read(golden("digits_training.npz"))


@pytest.fixture(scope="module")
def data(digits):
    """Images and labels, training rows first."""
    rows = digits["permutation"]
    images = digits["images_uint8"][rows].astype(np.float32) / 16
    return (images - digits["mean"]) / digits["std"], digits["labels"][rows]


def logits(params, images):
    x = images
    for i, layer in enumerate(LAYERS):
        x = x @ params[layer]["w"]
        x = x + jnp.broadcast_to(params[layer]["b"], x.shape)
        x = x if i == 2 else jnp.maximum(x, 0.0)
    return x


def loss_of(params, images, labels):
    each = optax.softmax_cross_entropy_with_integer_labels(
        logits(params, images), labels
    )
    return each.mean()


def train(optimizer, theta, digits, data):
    params = {
        layer: {kind: digits[f"init/{layer}/{kind}"] for kind in "wb"}
        for layer in LAYERS
    }
    specs = jax.tree.map(
        lambda p: ParamSpec(Axes((), ("fixed",) * p.ndim), p.shape, p.shape), params
    )
    images, labels = (x[:1437] for x in data)
    batches = digits["batch_indices"]

    @jax.jit
    def run(theta, params, images, labels):
        rule = optimizer.as_optax(theta, specs, len(batches))

        def step(carry, rows):
            params, state = carry
            loss, grads = jax.value_and_grad(loss_of)(
                params, images[rows], labels[rows]
            )
            updates, state = rule.update(grads, state, params, loss=loss)
            return (optax.apply_updates(params, updates), state), loss

        (params, _), losses = jax.lax.scan(step, (params, rule.init(params)), batches)
        return params, losses

    return jax.tree.map(np.asarray, run(theta, params, images, labels))


@pytest.mark.parametrize("name", RULES)
def test_published_weights_train_as_the_original(name, golden, digits, data):
    optimizer, make = RULES[name]
    theta = make(read(golden(f"{name}_theta.npz")))
    params, losses = train(optimizer, theta, digits, data)
    want = digits[f"{name}/train_loss_curve"]
    assert losses.shape == want.shape == (200,)
    np.testing.assert_allclose(losses[:20], want[:20], rtol=0, atol=1e-4)
    assert 0.5 < losses[-10:].mean() / want[-10:].mean() < 2.0
    images, labels = (x[1437:] for x in data)
    accuracy = np.mean(np.argmax(np.asarray(logits(params, images)), 1) == labels)
    assert abs(accuracy - digits[f"{name}/final_test_accuracy"]) <= 0.02
