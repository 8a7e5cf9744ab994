"""Makes a task of two functions and some arrays, and meta-trains on it.

    python examples/own_task.py

The parameters are annotated, so the task exists at every width in μP.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.run import evaluate
from lopt import LearnableAdam
from metatrain import PES, EpisodeLengths, MetaTraining, OuterOptimizer
from parametrization import ADAM_LIKE, Named
from parametrization.rules import initializer
from tasks import FunctionTask

BASE_WIDTH = 32


def init(key: jax.Array, width: int) -> dict[str, Named]:
    """Annotated parameters of a network with one hidden layer."""
    first, second = jax.random.split(key)
    return {
        "hidden": initializer("inputs -> width")(first, (8, width)),
        "readout": initializer("width -> outputs")(second, (width, 1)),
    }


def loss(
    params: dict[str, jax.Array], key: jax.Array, batch: dict[str, jax.Array]
) -> jax.Array:
    """Mean squared error `[]`; `key` is for losses that are random."""
    hidden = jnp.tanh(batch["x"] @ params["hidden"])
    width = hidden.shape[1]
    outputs = BASE_WIDTH / width * (hidden @ params["readout"])[:, 0]
    return jnp.mean((outputs - batch["y"]) ** 2)


def main(num_steps: int = 100, wide: int = 128) -> dict[int, float]:
    """Meta-trains at the base width and evaluates at `wide` too.

    Returns:
        Final training loss by width.
    """
    x = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    data = {"x": x, "y": np.sin(x).sum(axis=1)}
    task = FunctionTask(init, loss, data, width=BASE_WIDTH, base_width=BASE_WIDTH)

    # Adam whose four hyperparameters are learned; SmallFC and others work the same.
    lopt = LearnableAdam(rules=ADAM_LIKE)
    lengths = EpisodeLengths(minimum=20, maximum=100)
    estimator = PES(num_pairs=4, truncation=20, lengths=lengths)
    outer = OuterOptimizer(learning_rate=1e-2, warmup_steps=min(10, num_steps - 1))
    training = MetaTraining.on(task, lopt, estimator, outer, num_steps)
    state, dataset = training.init(), task.load_data()
    for _ in range(num_steps):
        state, _ = training.step(state, {0: dataset})

    losses = {}
    for width in (BASE_WIDTH, wide):
        runs = evaluate(task.at_width(width), lopt, state.average, 100, seeds=[0, 1])
        losses[width] = float(runs.final_loss.mean())
    print(f"loss at chance {task.loss_at_chance:.3f}, final loss by width {losses}")
    return losses


if __name__ == "__main__":
    main()
