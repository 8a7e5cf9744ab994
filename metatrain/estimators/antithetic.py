"""Antithetic evolution strategies over windows of an unroll: what they share.

An episode of inner training is cut into windows of T steps. In each window every pair i
runs two members, at θ + ε_i and θ − ε_i, each from its own state, on the same batches;
their mean losses L⁺ and L⁻ give the term

    (L⁺ − L⁻) · A_i / (2σ²),

and the estimate is the mean over pairs. An estimator says which noise ε_i a window uses
and which noise A_i its loss difference is credited with:

    estimator       ε_i                  A_i                             bias
    `PES`           new every K windows  sum of the episode's noises     none
    `NoiseReuseES`  one per episode      that noise                      none
    `TruncatedES`   new every window     the window's noise              yes

Full ES is any of them with windows as long as episodes (`NoiseReuseES.full`).

At fixed θ the sum of the estimates over an episode of M windows, divided by M, is
unbiased for the gradient of the episode's mean window loss, smoothed by independent
noises, one for each K windows. Averaged over outer steps, *windows* weigh equally, not
episodes: a long episode counts for as many windows as it has.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from configuration.fields import configuration
from configuration.ranges import check_range
from lopt.base import Theta, frozen_parts
from metatrain.estimators import base, perturbation
from metatrain.estimators.base import Estimator, Inputs, Metrics, ended
from metatrain.estimators.controls import Controls
from metatrain.estimators.particles import Reduce
from metatrain.frozen import keep_frozen
from metatrain.inner_training import InnerTraining, Unrolled
from metatrain.keys import stream
from metatrain.resume_buffer import ResumeBuffer, Watch
from metatrain.unroll import Windowed

_LARGEST = 2**31 - 1
"""Largest int32."""


class PairState(NamedTuple):
    """One antithetic pair; an estimator's state has `[N]` in front of everything."""

    credit: jax.Array  # [D] noise that a term is credited with, θ raveled
    variant: Any  # what is particular about the episode, shared by both members
    episodes: Any  # the two members' episodes, `[2]` in front
    noise: jax.Array | None = None  # [D] in use, where it is kept and is not the credit
    watch: Watch | None = None  # states to begin again from, where they are kept


@configuration
class AntitheticES(Estimator):
    """Fields and window of the antithetic evolution strategies."""

    num_pairs: int = 8
    """Antithetic pairs N; each outer step unrolls 2N particles."""
    sigma: float = 0.01
    """Standard deviation of the perturbation of each meta-parameter."""
    pairs_per_task: int = 1
    """Pairs, each with a noise of its own, that share a task: its variant,
    initialization, episode length and batches."""
    sigma_factors: perturbation.Factors = ()
    """Factors of sigma by part of θ: a path, as layer_0 or layer_0/kernel, and a
    factor; of several that fit, the last counts."""
    controls: Controls = Controls()
    """Departures from plain antithetic sampling."""
    resume: ResumeBuffer = ResumeBuffer()
    """States in which episodes began to go wrong, to begin others from; by default none
    are kept."""
    reduce: Reduce = "ordered"
    """How pairs' terms are averaged. ordered: in their order, the same bits for any
    number of devices; psum: on each device, then over devices, for θ so large that no
    device should hold N terms; last bits then depend on the devices."""

    def __post_init__(self) -> None:
        base.check_counts(self, "num_pairs", "pairs_per_task")
        check_range("sigma", self.sigma, "[1e-18, 100]")
        if self.num_pairs % self.pairs_per_task:
            raise ValueError(
                f"pairs_per_task = {self.pairs_per_task} must divide "
                f"num_pairs = {self.num_pairs}"
            )
        perturbation.check_factors(self.sigma_factors, self.sigma)
        if self.resume.slots and self.pairs_per_task > 1:
            raise ValueError(
                f"pairs_per_task = {self.pairs_per_task} pairs share the beginning of "
                f"their episodes, which resume.slots = {self.resume.slots} would "
                "separate: set one of them to its default"
            )

    @abc.abstractmethod
    def perturb(
        self, fresh: jax.Array, pair: PairState, begins: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Chooses the noise ε `[D]` of a window and the noise A `[D]` it is credited.

        Args:
            fresh: newly drawn noise `[D]`.
            pair: before the window, its episode renewed.
            begins: `[]` bool, whether the episode begins with this window. A resumed
                episode begins at a later step than 0.
        """

    def draws(self, pair: PairState, every: int = 1) -> jax.Array:
        """Returns whether a window draws, where each `every`-th one does: `[]` bool.

        Windows begin at multiples of T, so every first one does. Traced rather than
        constant, so that all estimators compile to the same arithmetic.
        """
        return pair.episodes.step[0] % min(every * self.truncation, _LARGEST) == 0

    @property
    def particles(self) -> int:
        """Number of pairs."""
        return self.num_pairs

    @property
    def num_members(self) -> int:
        """Members of all pairs."""
        return 2 * self.num_pairs

    @property
    def reduction(self) -> Reduce:
        """See the field `reduce`."""
        return self.reduce

    def check(self, theta: Theta) -> None:
        """Checks that these fields fit a θ, given as arrays or their shapes.

        Raises:
            ValueError: naming the field.
        """
        perturbation.leaf_factors(theta, self.sigma_factors)
        size = sum(leaf.size for leaf in jax.tree.leaves(theta))
        if self.controls.orthogonal and self.pairs_per_task > size:
            raise ValueError(
                f"pairs_per_task = {self.pairs_per_task} orthogonal noises need as "
                f"many meta-parameters, and theta has {size}"
            )

    def init(self, problem: InnerTraining, theta: Theta) -> PairState:
        """See `Estimator.init`; the particles are pairs."""
        self.check(theta)
        variant, members = self.unbegun(problem, theta, members=2)
        flat = ravel_pytree(theta)[0]
        zeros = jnp.zeros((self.num_pairs, *flat.shape), flat.dtype)
        watch = self.resume.unbegun(variant, members) if self.resume.slots else None
        return PairState(zeros, variant, members, watch=watch)

    def task_key(self, key: jax.Array, index: jax.Array) -> jax.Array:
        """See `Estimator.task_key`; several pairs may share a task."""
        return base.particle_key(key, index // self.pairs_per_task)

    def data_keys(self, key: jax.Array) -> jax.Array:
        """See `Estimator.data_keys`; one key for each pair."""
        self.controls.check_streamed()
        return super().data_keys(key)

    def window(
        self, problem: InnerTraining, inputs: Inputs, pair: PairState, index: jax.Array
    ) -> tuple[PairState, Theta, Metrics]:
        """See `Estimator.window`; the particle is a pair."""
        theta = inputs.theta
        flat, unravel = ravel_pytree(theta)
        task_key = self.task_key(inputs.key, index)
        # Begin the next episode where the last one has ended.
        begins = ended(pair.episodes)
        pair, metrics = self._renewed(problem, inputs, pair, task_key)
        # Unroll the members at θ ± ε.
        fresh = self._draw(problem, theta, inputs.key, index)
        noise, credit = self.perturb(fresh, pair, begins)
        members = jax.vmap(unravel)(jnp.stack([flat + noise, flat - noise]))
        unrolled = self._unrolled(problem, members, pair, inputs, task_key)
        # A difference that is not finite says nothing about a direction.
        means = unrolled.contributions.mean(axis=1)
        difference = means[0] - means[1]
        finite = jnp.isfinite(difference)
        difference = jnp.where(finite, self.controls.difference(difference), 0.0)
        term = difference / (2.0 * self.sigma**2) * credit
        if self.sigma_factors:
            factors = perturbation.raveled_factors(theta, self.sigma_factors)
            term = term / jnp.asarray(factors**2, term.dtype)
        metrics = base.metrics_of(unrolled, unrolled.episode, ~finite) | metrics
        if pair.watch is not None:
            watch, struggles = self.resume.observe(
                pair.watch, pair.variant, pair.episodes, unrolled.losses
            )
            pair = pair._replace(watch=watch)
            metrics["struggling"] = struggles.astype(jnp.float32)
        if pair.noise is not None:
            pair = pair._replace(noise=noise)
        pair = pair._replace(credit=credit, episodes=unrolled.episode)
        return pair, unravel(term), metrics

    def _renewed(
        self, problem: InnerTraining, inputs: Inputs, pair: PairState, key: jax.Array
    ) -> tuple[PairState, Metrics]:
        """Begins an ended pair's next episode, anew or from a stored state."""
        begins = ended(pair.episodes)
        runs = (pair.variant, pair.episodes)
        variant, members = self.renewed(problem, inputs, runs, key)
        metrics: Metrics = {}
        if pair.watch is not None:
            watch, (variant, members), warm = self.resume.renewed(
                pair.watch, stream(key, "resume"), begins, (variant, members)
            )
            pair = pair._replace(watch=watch)
            metrics["resumed"] = warm.astype(jnp.float32)
        return pair._replace(variant=variant, episodes=members), metrics

    def _draw(
        self, problem: InnerTraining, theta: Theta, key: jax.Array, index: jax.Array
    ) -> jax.Array:
        """Draws the noise `[D]` of one pair: normal, scaled, zero where θ is frozen."""
        flat, unravel = ravel_pytree(theta)
        noise = self.controls.normal(key, index, self.pairs_per_task, flat)
        noise = self.sigma * noise
        if self.sigma_factors:
            factors = perturbation.raveled_factors(theta, self.sigma_factors)
            noise = noise * jnp.asarray(factors, noise.dtype)
        if frozen := frozen_parts(problem):
            noise = ravel_pytree(keep_frozen(unravel(noise), frozen))[0]
        return noise

    def _unrolled(
        self,
        problem: InnerTraining,
        members: Theta,
        pair: PairState,
        inputs: Inputs,
        key: jax.Array,
    ) -> Unrolled:
        """Unrolls both members by a window, `[2]` in front."""

        def one(member: Theta, episode: Any, key: jax.Array) -> Unrolled:
            return problem.unroll(
                member,
                episode,
                pair.variant,
                inputs.dataset,
                key,
                num_steps=self.truncation,
                outer_step=inputs.outer_step,
            )

        key = base.data_key(key)
        if self.controls.common_random_numbers:
            # The key is not mapped, so the batches are gathered once for both.
            return jax.vmap(one, (0, 0, None))(members, pair.episodes, key)
        if isinstance(inputs.dataset, Windowed):
            self.controls.check_streamed()
        return jax.vmap(one)(members, pair.episodes, jax.random.split(key))
