"""Trains a Flax model with a released optimizer: once with NNX, once with linen.

    python examples/use_in_jax.py runs/quickstart/artifact

The optimizer needs to know what role each parameter has in μP. NNX parameters have no
annotations here, so roles are inferred from the same model at the width of
meta-training. In linen each parameter is annotated where it is born.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from lopt import Artifact
from parametrization import infer_specs, named, param_specs, unbox

Shape = tuple[int, ...]
BASE_WIDTH = 32
"""The width of meta-training; `optimizer.base` in the artifact's config.json."""


def digits() -> tuple[jax.Array, jax.Array]:
    """Standardized images `[1797, 64]` and labels `[1797]`."""
    images, labels = load_digits(return_X_y=True)
    images = (images - images.mean()) / images.std()
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross entropy `[]` of logits `[B, C]`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class NNXNet(nnx.Module):
    """An MLP with a zero readout, multiplied by base width over width."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        zeros = nnx.initializers.zeros
        self.hidden_0 = nnx.Linear(64, width, rngs=rngs)
        self.hidden_1 = nnx.Linear(width, width, rngs=rngs)
        self.readout = nnx.Linear(width, 10, kernel_init=zeros, rngs=rngs)
        self.multiplier = BASE_WIDTH / width

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[B, 10]` of images `[B, 64]`."""
        x = nnx.relu(self.hidden_1(nnx.relu(self.hidden_0(x))))
        return self.readout(self.multiplier * x)


def train_nnx(artifact: Artifact, width: int, num_steps: int) -> float:
    """Trains an NNX model; returns the last training loss."""
    model = NNXNet(width, nnx.Rngs(0))
    base = nnx.eval_shape(lambda: NNXNet(BASE_WIDTH, nnx.Rngs(0)))
    specs = infer_specs(nnx.state(model, nnx.Param), nnx.state(base, nnx.Param))
    transformation = artifact.as_optax(specs, num_steps)
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    images, labels = digits()

    @nnx.jit
    def step(model: NNXNet, optimizer: nnx.Optimizer, rows: jax.Array) -> jax.Array:
        def loss_of(model: NNXNet) -> jax.Array:
            return cross_entropy(model(images[rows]), labels[rows])

        loss, grads = nnx.value_and_grad(loss_of)(model)
        # Rules that need the loss take it as a keyword; the others ignore it.
        optimizer.update(model, grads, loss=loss)
        return loss

    loss = jnp.nan
    for rows in batches(num_steps):
        loss = step(model, optimizer, rows)
    return float(loss)


class LinenNet(nn.Module):
    """The same MLP without biases; the arrow separates fan-in from fan-out."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[B, 10]` of images `[B, 64]`."""
        lecun, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        width = self.width

        def weight(name: str, initializer: Any, axes: str, shape: Shape) -> Any:
            return self.param(name, named(initializer, axes), shape)

        x = nn.relu(x @ weight("hidden_0", lecun, "pixels -> width", (64, width)))
        x = nn.relu(x @ weight("hidden_1", lecun, "width -> width", (width, width)))
        logits = x @ weight("readout", zeros, "width -> classes", (width, 10))
        return BASE_WIDTH / width * logits


def train_linen(artifact: Artifact, width: int, num_steps: int) -> float:
    """Trains a linen model; returns the last training loss."""

    def init_at(width: int) -> Callable[[jax.Array], Any]:
        return lambda key: LinenNet(width).init(key, jnp.zeros((1, 64)))["params"]

    # Two shape evaluations: nothing is allocated.
    specs = param_specs(init_at(width), init_at(BASE_WIDTH))
    params = unbox(init_at(width)(jax.random.key(0)))
    optimizer = artifact.as_optax(specs, num_steps)
    images, labels = digits()

    state = optimizer.init(params)

    def loss_of(params: dict, rows: jax.Array) -> jax.Array:
        logits = LinenNet(width).apply({"params": params}, images[rows])
        return cross_entropy(jnp.asarray(logits), labels[rows])

    @jax.jit
    def step(params: Any, state: Any, rows: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_of)(params, rows)
        updates, state = optimizer.update(grads, state, params, loss=loss)
        return optax.apply_updates(params, updates), state, loss

    loss = jnp.nan
    for rows in batches(num_steps):
        params, state, loss = step(params, state, rows)
    return float(loss)


def batches(num_steps: int) -> Iterator[jax.Array]:
    """Random rows of the images, `[128]` for each step."""
    rng = np.random.default_rng(0)
    return (jnp.asarray(rng.integers(1797, size=128)) for _ in range(num_steps))


def main(
    folder: Path,
    width: int = 128,
    num_steps: int = 200,
) -> dict[str, float]:
    """Trains both models at `width`; returns their last training losses."""
    artifact = Artifact.load(folder)
    losses = {
        "NNX": train_nnx(artifact, width, num_steps),
        "linen": train_linen(artifact, width, num_steps),
    }
    print(losses)
    return losses


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart/artifact"))
