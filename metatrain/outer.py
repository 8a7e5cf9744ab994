"""The outer step: meta-gradient, clipping, AdamW on θ.

`MetaTraining.step` is the only jitted function of meta-training. Its state holds no
key: all randomness follows from the root seed and the outer step, so a run that is
resumed goes on as if it had never stopped.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopt.base import LearnedOptimizer, Theta
from metatrain import inner
from metatrain.estimators.base import Problem
from metatrain.estimators.es import EvolutionStrategy
from metatrain.inner import InnerState
from metatrain.keys import stream
from metatrain.objective import Objective
from metatrain.unroll import unroll
from tasks.base import Dataset, Task


@dataclasses.dataclass(frozen=True)
class InnerTraining:
    """The `Problem` of meta-training: a task trained by a learned optimizer."""

    task: Task
    lopt: LearnedOptimizer
    objective: Objective

    def start(self, theta: Theta, key: jax.Array, length: jax.Array) -> InnerState:
        """A new episode (see `Problem.start`)."""
        return inner.start(self.task, self.lopt, theta, key, length)

    def unroll(
        self,
        theta: Theta,
        episode: InnerState,
        dataset: Dataset,
        key: jax.Array,
        num_steps: int,
    ) -> tuple[InnerState, jax.Array, jax.Array]:
        """Advances an episode (see `Problem.unroll`)."""
        episode, losses, _ = unroll(
            self.task,
            self.lopt,
            theta,
            episode,
            dataset,
            key,
            num_steps,
            self.objective.split,
        )
        losses = self.objective.normalize(losses, self.task.loss_at_chance)
        return episode, losses, self.objective.diverged(losses[-1])


@dataclasses.dataclass(frozen=True)
class OuterOptimizer:
    """AdamW on θ after clipping the meta-gradient, warm-up and cosine decay.

    Clipping comes first: behind AdamW, whose updates are bounded anyway, it would not
    protect from the spikes of a PES gradient.
    """

    learning_rate: float = 3e-3
    """Peak learning rate."""
    warmup_steps: int = 100
    """Outer steps of linear warm-up."""
    final_fraction: float = 1.0 / 3.0
    """Learning rate at the end, as a fraction of the peak."""
    clip_norm: float = 1.0
    """Largest global norm of the meta-gradient."""
    b1: float = 0.9
    """Decay of AdamW's momentum."""
    b2: float = 0.999
    """Decay of AdamW's second moment."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of θ."""
    averaging: float = 0.98
    """Decay of the running average of θ that is validated and released."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if not 0.0 < value <= 1e6:
                raise ValueError(f"{name} = {value} must lie in (0, 1e6]")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps = {self.warmup_steps} must not be negative")
        if not 0.0 <= self.weight_decay <= 1e6:
            raise ValueError(f"weight_decay = {self.weight_decay} must lie in [0, 1e6]")
        for name in ("b1", "b2", "averaging"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} = {getattr(self, name)} must lie in [0, 1)")
        if not 0.0 <= self.final_fraction <= 1.0:
            raise ValueError(
                f"final_fraction = {self.final_fraction} must lie in [0, 1]"
            )

    def build(self, num_steps: int) -> optax.GradientTransformation:
        """The transformation for a run of `num_steps` outer steps."""
        warmup = min(self.warmup_steps, max(num_steps - 1, 0))
        schedule = optax.warmup_cosine_decay_schedule(
            init_value=self.learning_rate / (warmup + 1),
            peak_value=self.learning_rate,
            warmup_steps=warmup,
            decay_steps=max(num_steps, warmup + 1),
            end_value=self.learning_rate * self.final_fraction,
        )
        chain = optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(
                schedule, b1=self.b1, b2=self.b2, weight_decay=self.weight_decay
            ),
        )
        # One vector instead of θ's many small arrays: less to compile and to launch.
        return optax.flatten(chain)


class OuterState(NamedTuple):
    """The complete state of meta-training; no key, no position in the data."""

    theta: Theta
    average: Theta  # running average of θ over outer steps
    outer_opt_state: Any
    estimator_state: Any
    step: jax.Array  # [] int32, outer steps taken


@dataclasses.dataclass(frozen=True)
class MetaTraining:
    """Everything that determines a run of meta-training, static under `jit`."""

    problem: Problem
    lopt: LearnedOptimizer
    estimator: EvolutionStrategy
    outer: OuterOptimizer
    num_steps: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps < 10**8:
            raise ValueError(f"num_steps = {self.num_steps} must lie in [1, 10⁸)")

    @property
    def inner_steps_per_step(self) -> int:
        """Inner steps of one outer step, both members of every pair counted."""
        return 2 * self.estimator.num_pairs * self.estimator.truncation

    @functools.partial(jax.jit, static_argnums=0)
    def init(self) -> OuterState:
        """The state before the first outer step."""
        key = jax.random.key(self.seed)
        theta = self.lopt.init(stream(key, "theta"))
        return OuterState(
            theta=theta,
            average=jax.tree.map(jnp.copy, theta),
            outer_opt_state=self.outer.build(self.num_steps).init(theta),
            estimator_state=self.estimator.init(self.problem, theta),
            step=jnp.zeros([], jnp.int32),
        )

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def step(
        self, state: OuterState, dataset: Dataset
    ) -> tuple[OuterState, dict[str, jax.Array]]:
        """One outer step; the given state is consumed.

        Returns:
            The next state, and scalar metrics `[]` of this step.
        """
        root = stream(jax.random.key(self.seed), "outer steps")
        key = jax.random.fold_in(root, state.step)
        estimate, estimator_state = self.estimator.estimate(
            self.problem, state.theta, state.estimator_state, dataset, key
        )
        updates, outer_opt_state = self.outer.build(self.num_steps).update(
            estimate.grad, state.outer_opt_state, state.theta
        )
        theta = optax.apply_updates(state.theta, updates)
        # θ must stay finite whatever happens: a step that would spoil it is not taken.
        finite = jnp.isfinite(optax.tree.norm(theta))
        theta, outer_opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (theta, outer_opt_state),
            (state.theta, state.outer_opt_state),
        )
        # A young average forgets faster, so that the initial θ does not linger.
        decay = jnp.minimum(self.outer.averaging, state.step / (state.step + 10.0))
        average = jax.tree.map(
            lambda old, new: decay * old + (1.0 - decay) * new, state.average, theta
        )
        metrics = estimate.metrics | {
            "grad_norm": optax.tree.norm(estimate.grad),
            "update_norm": jnp.where(finite, optax.tree.norm(updates), 0.0),
            "skipped": 1.0 - finite.astype(jnp.float32),
        }
        new_state = OuterState(
            theta, average, outer_opt_state, estimator_state, state.step + 1
        )
        return new_state, metrics
