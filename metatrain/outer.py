"""The outer step: meta-gradients of groups of tasks, and how they move θ.

Tasks of one static shape form a group, which is compiled as a program of its own. An
outer step runs the programs of its groups one after the other, averages their
meta-gradients by weight, and moves θ in a last program. So each group costs one
compilation, and differences within a group cost none.

The state holds no key: all randomness follows from the root seed and the outer step, so
a resumed run continues as if it had never stopped.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from configuration.fields import OPEN, checked, configuration
from configuration.ranges import check_range
from lopt.base import (
    LearnedOptimizer,
    Theta,
    frozen_parts,
    learned_decays,
    own_theta,
)
from metatrain import devices
from metatrain.estimators.base import Estimator, Parts
from metatrain.expert import Expert
from metatrain.frozen import keep_frozen
from metatrain.inner import Precisions
from metatrain.inner_training import InnerTraining
from metatrain.keys import stream
from metatrain.objective import Objective
from metatrain.outer_optimizer import OuterOptimizer
from metatrain.unroll import Windowed
from tasks.base import Dataset, Task
from tasks.groups import EachStep, TaskDistribution


class OuterState(NamedTuple):
    """The complete state of meta-training."""

    theta: Theta
    average: Theta  # running average of θ over outer steps
    outer_opt_state: Any
    estimator_states: tuple[Any, ...]  # one for each group
    step: jax.Array  # [] int32, outer steps taken


_DEFAULT_OBJECTIVE = Objective()
_DEFAULT_PRECISION = Precisions()


@configuration
class ProblemGroup:
    """Tasks of one static shape under the learned optimizer."""

    name: str
    problem: Annotated[InnerTraining, OPEN]
    weight: float = 1.0


@configuration
class MetaTraining:
    """A run of meta-training, static under `jit`."""

    groups: tuple[ProblemGroup, ...]
    lopt: Annotated[LearnedOptimizer, OPEN]
    """The optimizer whose θ is learned. Only its `init` and `learned_decays` are used
    here; the problems hold what is run."""
    estimator: Estimator
    outer: OuterOptimizer
    num_steps: int
    seed: int = 0
    each_step: EachStep = "all"
    mesh: Mesh | None = None
    """Devices that share the particles; changes no result."""

    def __post_init__(self) -> None:
        check_range("num_steps", self.num_steps, "[1, 1e8)")
        check_range("seed", self.seed, "[0, 2147483648)")
        if self.outer.accumulate > self.num_steps:
            raise ValueError(
                f"accumulate = {self.outer.accumulate} outer steps for each update are "
                f"more than num_steps = {self.num_steps}: nothing would move"
            )
        if not self.groups:
            raise ValueError("groups = (): there must be at least one")
        names = [group.name for group in self.groups]
        if len(set(names)) < len(names):
            raise ValueError(f"groups: names {names} must differ")
        for group in self.groups:
            name = f"groups: weight of {group.name!r}"
            check_range(name, group.weight, "[1e-30, 1e30]")
        num_devices = 1 if self.mesh is None else self.mesh.size
        devices.check_shares(self.estimator.num_chunks, num_devices)
        if self._frozen:
            theta = jax.eval_shape(self.lopt.init, jax.random.key(0))
            jax.eval_shape(functools.partial(keep_frozen, parts=self._frozen), theta)

    @property
    def _frozen(self) -> tuple[str, ...]:
        return frozen_parts(self.lopt) + self.outer.frozen

    @classmethod
    def on(
        cls,
        tasks: Task | TaskDistribution,
        lopt: LearnedOptimizer,
        estimator: Estimator,
        outer: OuterOptimizer,
        num_steps: int,
        *,
        objective: Objective = _DEFAULT_OBJECTIVE,
        seed: int = 0,
        expert: Expert | None = None,
        precision: Precisions = _DEFAULT_PRECISION,
        mesh: Mesh | None = None,
    ) -> Self:
        """Builds meta-training on a task, or on the groups of a distribution.

        Args:
            tasks: one task, or a distribution of groups.
            lopt: the learned optimizer.
            estimator: estimates the meta-gradient.
            outer: moves θ.
            num_steps: outer steps of the run.
            objective: the meta-loss.
            seed: root of all randomness.
            expert: an optimizer to imitate at first.
            precision: of the inner models and of the per-parameter networks of `lopt`.
            mesh: devices that share the particles (see `metatrain.devices`).
        """
        checked("lopt", lopt, LearnedOptimizer)
        checked("estimator", estimator, Estimator)
        checked("outer", outer, OuterOptimizer)
        if not isinstance(tasks, TaskDistribution):
            tasks = TaskDistribution.single(tasks)
        groups = []
        for group in tasks.groups:
            judged = (group.task, lopt, objective, group.variation)
            problem = InnerTraining(*judged, outer.frozen, expert, precision)
            groups.append(ProblemGroup(group.name, problem, group.weight))
        fixed = (lopt, estimator, outer, num_steps, seed)
        return cls(tuple(groups), *fixed, tasks.each_step, mesh)

    @property
    def inner_steps_per_step(self) -> int:
        """Inner steps of one outer step, over all members of all particles."""
        groups = len(self.groups) if self.each_step == "all" else 1
        return groups * self.estimator.num_members * self.estimator.truncation

    def groups_at(self, step: int) -> tuple[int, ...]:
        """Returns the groups of an outer step: all, or one drawn by its weight."""
        if self.each_step == "all" or len(self.groups) == 1:
            return tuple(range(len(self.groups)))
        ends = list(itertools.accumulate(group.weight for group in self.groups))
        digest = hashlib.sha256(f"group {self.seed} {step}".encode()).digest()
        place = int.from_bytes(digest[:6], "big") / 2**48 * ends[-1]
        return (min(bisect.bisect_right(ends, place), len(ends) - 1),)

    def init(self, theta: Theta | None = None) -> OuterState:
        """Returns the state before the first outer step.

        Args:
            theta: where to begin; None takes `LearnedOptimizer.init`.

        Raises:
            ValueError: naming the leaf, if θ does not fit the optimizer or is not
                finite.
        """
        if theta is not None:
            theta = own_theta(self.lopt, theta)
            for path, leaf in jax.tree_util.tree_leaves_with_path(theta):
                if not bool(jnp.isfinite(leaf).all()):
                    name = jax.tree_util.keystr(path)
                    raise ValueError(f"theta{name} is not finite")
        core = devices.on_first(self._first_core(theta), self.mesh)
        return core._replace(estimator_states=self._first_particles())

    @functools.partial(jax.jit, static_argnums=0)
    def _first_core(self, theta: Theta | None) -> OuterState:
        fresh = self.lopt.init(stream(jax.random.key(self.seed), "theta"))
        begin: Any = fresh if theta is None else theta
        return OuterState(
            theta=jax.tree.map(jnp.copy, begin),
            average=jax.tree.map(jnp.copy, begin),
            outer_opt_state=self.outer.accumulated(self.num_steps).init(begin),
            estimator_states=(),
            step=jnp.zeros([], jnp.int32),
        )

    @functools.partial(jax.jit, static_argnums=0)
    def _first_particles(self) -> tuple[Any, ...]:
        # Particles depend on the shapes of θ alone.
        theta = self.lopt.init(jax.random.key(self.seed))
        states = [self.estimator.init(group.problem, theta) for group in self.groups]
        return devices.constrain(tuple(states), self.mesh)

    def place(self, state: OuterState) -> OuterState:
        """Puts a state, such as one from a checkpoint, where the devices expect it."""
        core = devices.on_first(state._replace(estimator_states=()), self.mesh)
        particles = devices.shard(state.estimator_states, self.mesh)
        return core._replace(estimator_states=particles)

    def step(
        self, state: OuterState, datasets: Mapping[int, Dataset | Windowed]
    ) -> tuple[OuterState, dict[str, jax.Array]]:
        """Takes one outer step; the given state is donated.

        Args:
            state: where meta-training stands.
            datasets: data of the step's groups (see `groups_at`), by their index.

        Returns:
            The next state, and scalar metrics `[]` of this step: means over its groups
            by weight, and with several groups also `NAME/GROUP` of each.
        """
        chosen = self._chosen(datasets)
        states = list(state.estimator_states)
        estimates: list[tuple[Theta, dict[str, jax.Array]]] = []
        for index in chosen:
            parts, states[index] = self._advance_all(
                index, state.theta, states[index], state.step, datasets[index]
            )
            estimates.append(self._estimate(parts))
        weights = np.asarray([self.groups[i].weight for i in chosen], np.float64)
        # Their sum must not overflow.
        weights /= weights.max()
        core, metrics = self._move(
            state._replace(estimator_states=()),
            estimates,
            np.asarray(weights / weights.sum(), np.float32),
        )
        if len(self.groups) > 1:
            for index, (_, of_group) in zip(chosen, estimates, strict=True):
                name = self.groups[index].name
                metrics |= {f"{k}/{name}": v for k, v in of_group.items()}
        return core._replace(estimator_states=tuple(states)), metrics

    def _chosen(self, datasets: Mapping[int, Any]) -> list[int]:
        """Returns the indices of the groups whose data is given, ascending."""
        places = range(len(self.groups))
        everyone = self.each_step == "all"
        known = isinstance(datasets, Mapping) and all(
            isinstance(place, int) and place in places for place in datasets
        )
        if not known or not datasets or (everyone and len(datasets) < len(places)):
            given = list(datasets) if isinstance(datasets, Mapping) else type(datasets)
            raise ValueError(
                f"datasets of the groups {given}: must be a mapping from "
                f"{'all' if everyone else 'some'} of the places {list(places)} to data"
            )
        return sorted(datasets)

    def group_key(self, index: int, step: int | jax.Array) -> jax.Array:
        """Returns the key of one group's estimate in an outer step."""
        root = stream(jax.random.key(self.seed), "outer steps")
        key = jax.random.fold_in(root, step)
        if len(self.groups) == 1:
            return key
        return stream(key, f"group {self.groups[index].name}")

    def _advance_all(
        self, index: int, theta: Theta, particles: Any, step: jax.Array, dataset: Any
    ) -> tuple[Parts, Any]:
        """Advances a group's particles, on each device those that lie there.

        Returns:
            The parts of all particles, on this process's first device; and the
            particles, where they were.
        """
        # The index of a device's first particle is traced: all run one program.
        if self.mesh is None:
            return self._advance(index, theta, particles, step, dataset, np.int32(0))
        num = jax.tree.leaves(particles)[0].shape[0]
        firsts = devices.own_part(num, self.mesh)
        shares = devices.shares((theta, particles, step, dataset), self.mesh)
        parts, particles = devices.assembled(
            devices.each(
                lambda share, first: self._advance(index, *share, np.int32(first)),
                shares,
                firsts,
            ),
            self.mesh,
        )
        terms, metrics = devices.whole((parts.terms, parts.metrics), self.mesh)
        total = devices.summed(parts.total, self.mesh)
        return Parts(terms, total, metrics), particles

    @functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
    def _advance(
        self,
        index: int,
        theta: Theta,
        particles: Any,
        step: jax.Array,
        dataset: Dataset | Windowed,
        first: int | jax.Array,
    ) -> tuple[Parts, Any]:
        """Advances the particles of a group on one device.

        The program is never partitioned over devices, so it rounds alike on any number.
        """
        return self.estimator.advance(
            self.groups[index].problem,
            theta,
            particles,
            dataset,
            self.group_key(index, step),
            outer_step=step,
            first=first,
        )

    @functools.partial(jax.jit, static_argnums=0)
    def _estimate(self, parts: Parts) -> tuple[Theta, dict[str, jax.Array]]:
        """Returns one group's meta-gradient and metrics."""
        estimate = parts.estimate()
        norm = optax.tree.norm(estimate.grad)
        metrics = estimate.metrics | {"grad_norm": norm}
        if estimate.terms is not None:
            together = getattr(self.estimator, "pairs_per_task", 1)
            metrics["signal_to_noise"] = signal_to_noise(
                estimate.terms, estimate.grad, together
            )
        grad = estimate.grad
        if self.outer.group_gradients == "normalized":
            scale = jnp.where(norm > 0.0, norm, 1.0)
            grad = jax.tree.map(lambda x: x / scale, grad)
        return grad, metrics

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _move(
        self,
        core: OuterState,
        estimates: list[tuple[Theta, dict[str, jax.Array]]],
        weights: np.ndarray,
    ) -> tuple[OuterState, dict[str, jax.Array]]:
        """Moves θ along the mean of meta-gradients, by weights `[G]` of sum 1."""

        def mean(*values: jax.Array) -> jax.Array:
            return sum(w * x for w, x in zip(weights, values, strict=True))  # pyright: ignore

        grad, metrics = jax.tree.map(mean, *estimates)
        updates, outer_opt_state = self.outer.accumulated(self.num_steps).update(
            grad, core.outer_opt_state, core.theta
        )
        updates = keep_frozen(updates, self._frozen)
        theta = optax.apply_updates(core.theta, updates)
        # A step with a non-finite gradient or θ is skipped.
        finite = jnp.isfinite(optax.tree.norm(theta)) & jnp.isfinite(
            optax.tree.norm(grad)
        )
        theta, outer_opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (theta, outer_opt_state),
            (core.theta, core.outer_opt_state),
        )
        update_norm = jnp.where(finite, optax.tree.norm(updates), 0.0)
        average = self._average(core.average, theta, core.step, update_norm > 0.0)
        metrics |= {
            "grad_norm": optax.tree.norm(grad),
            "update_norm": update_norm,
            "skipped": 1.0 - finite.astype(jnp.float32),
        }
        metrics |= _learned_decays(self.lopt, theta)
        return OuterState(theta, average, outer_opt_state, (), core.step + 1), metrics

    def _average(
        self, average: Theta, theta: Theta, step: jax.Array, moved: jax.Array
    ) -> Theta:
        """Returns the running average of θ after an outer step, over moves of θ."""
        moves = step // self.outer.accumulate
        # A young average decays faster, so that the initial θ does not linger.
        decay = jnp.minimum(self.outer.averaging, moves / (moves + 10.0))
        if self.outer.accumulate > 1:
            decay = jnp.where(moved, decay, 1.0)
        return jax.tree.map(
            lambda old, new: decay * old + (1.0 - decay) * new, average, theta
        )


def signal_to_noise(terms: Theta, grad: Theta, together: int = 1) -> jax.Array:
    """Returns the signal-to-noise ratio of a meta-gradient, `[]`.

    ‖ĝ‖² over the trace of ĝ's covariance, estimated from the particles' terms: 1 for
    pure noise, infinite or NaN with one particle or without noise.

    Args:
        terms: of the particles, `[N]` in front.
        grad: their mean ĝ.
        together: neighbours that share a task and so are not independent.
    """
    if together > 1:
        terms = jax.tree.map(
            lambda x: x.reshape((-1, together, *x.shape[1:])).mean(axis=1), terms
        )
    num = jax.tree.leaves(terms)[0].shape[0]
    deviations = jax.tree.map(lambda x, mean: x - mean[None], terms, grad)
    variance = jnp.square(optax.tree.norm(deviations)) / jnp.float32((num - 1) * num)
    return jnp.square(optax.tree.norm(grad)) / variance


def _learned_decays(lopt: LearnedOptimizer, theta: Theta) -> dict[str, jax.Array]:
    """Returns the learned decays of an optimizer, scalars by name."""
    found = {}
    for name, x in learned_decays(lopt, theta).items():
        if x.ndim:
            found |= {f"decay/{name}_{k}": x[k] for k in range(x.shape[0])}
        else:
            found[f"decay/{name}"] = x
    return found
