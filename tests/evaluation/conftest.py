"""Tasks with runs in closed form, and rows without runs."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from evaluation.results import EvalRow
from parametrization import Axes, ParamSpec
from tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Quadratic(Task):
    """½·mean(x²) from x = 1: gradient descent with rate `4` on 4 elements ends it."""

    @property
    def loss_at_chance(self):
        return 1.0

    def init(self, key):
        return {"x": jnp.ones(4)}

    def specs(self):
        return {"x": ParamSpec(Axes.parse("-> width"), (4,), (4,))}

    def load_data(self):
        return jnp.zeros(1)

    def draw(self, dataset, key, split, num):
        return jax.random.normal(key, (num,))

    def batch(self, dataset, draw, split):
        return draw

    def whole(self, dataset, split):
        return jnp.zeros([])

    def loss(self, params, key, batch):
        return 0.5 * jnp.mean(params["x"] ** 2), {}


@dataclasses.dataclass(frozen=True)
class Echo(Quadratic):
    """The loss is the batch, independent of the parameters: positive, below the cap."""

    def loss(self, params, key, batch):
        return jnp.abs(jnp.sin(batch)) + 0.0 * jnp.sum(params["x"]), {}


@dataclasses.dataclass(frozen=True)
class Spike(Quadratic):
    """The loss is ½ except for 100 at one step."""

    def draw(self, dataset, key, split, num):
        return jnp.where(jnp.arange(num) == 2, 100.0, 0.5)

    def loss(self, params, key, batch):
        return batch + 0.0 * jnp.sum(params["x"]), {}


@pytest.fixture
def tasks():
    return SimpleNamespace(quadratic=Quadratic(), echo=Echo(), spike=Spike())


@pytest.fixture
def make_row():
    def make(optimizer="learned", cell="trained", seed=0, loss=0.1, **fields):
        values = {
            "optimizer": optimizer,
            "cell": cell,
            "axis": "trained" if cell == "trained" else cell.split()[0],
            "task": "ImageClassification",
            "family": "MLP",
            "widths": (32, 32),
            "depth": 2,
            "base_width": 32,
            "parametrization": "ADAM_LIKE",
            "batch_size": 128,
            "dataset": "Digits",
            "resolution": "8×8×1",
            "unit": "nats",
            "loss_at_chance": math.log(10),
            "steps": 5,
            "seed": seed,
            "curve": (2.3, 1.0, 0.5, 0.1, 0.05),
            "mean_loss": loss,
            "final_loss": loss / 2,
            "valid_loss": 0.2,
            "valid_accuracy": 0.95,
            "test_loss": 0.3,
            "test_accuracy": 0.94,
            "diverged": False,
            "capped_steps": 0,
            "seconds": 0.5,
            "provenance": {"class": "SmallFC"},
        }
        return EvalRow(**(values | fields))

    return make
