"""Evolution strategies on unrolls: one family, from truncated ES over PES to full ES.

An episode of inner training is cut into windows of T steps. In each window every pair i
runs two members, at θ + ε_i and θ − ε_i, each from its own state, on the same batches;
their mean losses L⁺ and L⁻ give the term

    (L⁺ − L⁻) · A_i / (2σ²),

and the estimate is the mean over pairs. Two fields make the estimator. `refresh` says
for how many windows K a noise is kept before the next is drawn, and `credit` what A_i
is: the sum of all noises drawn since the episode began, or the window's own alone.

* K = 1 is PES, K = the whole episode is noise-reuse ES (ES-Single), and what lies
  between is GPES_K: all unbiased, noise-reuse ES with the smallest variance.
* Full ES is any of them with windows as long as episodes.
* A window's own noise alone is truncated ES: biased, since noise also acts on the
  windows that follow it. It is there as a control.

At fixed θ the sum of the estimates over an episode of M windows, divided by M, is
unbiased for the gradient of the episode's mean window loss, smoothed by independent
noises, one for each K windows. Averaged over outer steps, *windows* weigh equally, not
episodes: a long episode counts for as many windows as it has.

References:
    Vicol et al., PES, arXiv:2112.13835, Algorithm 1; Vicol, ES-Single,
    arXiv:2304.11153; Li et al., noise-reuse ES and GPES, arXiv:2304.12180.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from configuration.fields import configuration
from lopt.base import Theta, frozen_parts
from metatrain.estimators import episodes, perturbation
from metatrain.estimators.base import Estimate, Parts, Problem, Unrolled, Windowed
from metatrain.estimators.episodes import data_key, particle_key
from metatrain.estimators.particles import Reduce
from metatrain.frozen import keep_frozen
from metatrain.keys import stream
from metatrain.resume_buffer import ResumeBuffer, Watch
from metatrain.truncation import EpisodeLengths

Credit = Literal["accumulated", "window"]


class PairState(NamedTuple):
    """One antithetic pair; `[N]` in front of everything in an estimator's state."""

    credit: jax.Array  # [D] noise that a term is credited with, θ raveled
    variant: Any  # what is particular about the episode; both members have the same
    episodes: Any  # the two members' episodes, `[2]` in front
    noise: jax.Array | None = None  # [D] in use, where it is kept and is not the credit
    watch: Watch | None = None  # states to begin again from, where they are kept


@configuration
class EvolutionStrategy:
    """Antithetic evolution strategies over windows of an unroll."""

    num_pairs: int = 8
    """Antithetic pairs N; each outer step unrolls 2N particles."""
    truncation: int = 50
    """Inner steps T of a window; one outer step advances every particle by T."""
    sigma: float = 0.01
    """Standard deviation of the perturbation of each meta-parameter."""
    refresh: int | Literal["episode"] = 1
    """Windows for which a noise is kept: 1 is PES, episode is noise-reuse ES."""
    credit: Credit = "accumulated"
    """accumulated: all noises of the episode; window: that of the window alone, which
    is truncated ES (biased)."""
    chunk: int = 4
    """Pairs that run in one vmapped program (all of them if there are fewer); chunks
    follow one another, and devices share them. Fixed, so that results do not depend on
    the devices. On CPUs 4 stay in the cache where 8 do not; one GPU may want all."""
    lengths: EpisodeLengths = EpisodeLengths()
    """Lengths of the episodes."""
    pairs_per_task: int = 1
    """Pairs, each with a noise of its own, that share a task: its variant,
    initialization, episode length and batches."""
    sigma_factors: perturbation.Factors = ()
    """Factors of sigma by part of θ: a path, as layer_0 or layer_0/kernel, and a
    factor; of several that fit, the last counts."""
    sign_difference: float | None = None
    """Replaces the difference of a pair's losses by its sign times this."""
    clip_difference: float | None = None
    """Largest absolute difference of a pair's losses; what is above is cut."""
    common_random_numbers: bool = True
    """Whether both members of a pair see the same batches; False is a control."""
    orthogonal: bool = False
    """Whether the noises of a task's pairs are orthogonal to each other."""
    resume: ResumeBuffer = ResumeBuffer()
    """States in which episodes began to go wrong, to begin others from; by default none
    are kept."""
    reduce: Reduce = "ordered"
    """How pairs' terms are averaged. ordered: in their order, the same bits for any
    number of devices; psum: on each device, then over devices, for θ so large that no
    device should hold N terms; last bits then depend on the devices."""

    def __post_init__(self) -> None:
        episodes.check_counts(self, "num_pairs", "pairs_per_task")
        if not 1e-18 <= self.sigma <= 100.0:
            raise ValueError(f"sigma = {self.sigma} must lie in [1e-18, 100]")
        if self.refresh != "episode" and self.refresh < 1:
            raise ValueError(
                f"refresh = {self.refresh!r} must be a positive whole number of "
                "windows, or 'episode'"
            )
        if self.num_pairs % self.pairs_per_task:
            raise ValueError(
                f"pairs_per_task = {self.pairs_per_task} must divide "
                f"num_pairs = {self.num_pairs}"
            )
        perturbation.check_factors(self.sigma_factors, self.sigma)
        for name in ("sign_difference", "clip_difference"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < float("inf"):
                raise ValueError(f"{name} = {value} must be positive and finite")
        if self.resume.slots and self.pairs_per_task > 1:
            raise ValueError(
                f"pairs_per_task = {self.pairs_per_task} pairs share their episodes' "
                f"beginnings, which resume.slots = {self.resume.slots} would tear "
                "apart: one of them must be its default"
            )
        if self.sign_difference is not None and self.clip_difference is not None:
            raise ValueError(
                f"clip_difference = {self.clip_difference} has no effect on signs: "
                "leave it or sign_difference out"
            )

    @classmethod
    def pes(cls, **fields: Any) -> Self:
        """Persistent ES: new noise in each window, all of it credited."""
        return cls(**fields, refresh=1, credit="accumulated")

    @classmethod
    def noise_reuse_es(cls, **fields: Any) -> Self:
        """Noise-reuse ES (ES-Single): one noise for each episode."""
        return cls(**fields, refresh="episode", credit="accumulated")

    @classmethod
    def truncated_es(cls, **fields: Any) -> Self:
        """Truncated ES, the biased control: noise is credited in its window alone."""
        return cls(**fields, refresh=1, credit="window")

    @classmethod
    def full_es(cls, length: int, **fields: Any) -> Self:
        """ES on whole episodes of `length` inner steps, one in each outer step."""
        lengths = EpisodeLengths(length, length, staggered=False)
        return cls(
            **fields,
            truncation=length,
            lengths=lengths,
            refresh="episode",
            credit="accumulated",
        )

    @property
    def num_members(self) -> int:
        """Members of all pairs."""
        return 2 * self.num_pairs

    @property
    def num_chunks(self) -> int:
        """Chunks of pairs, which devices may share."""
        return self.num_pairs // min(self.chunk, self.num_pairs)

    def check(self, theta: Theta) -> None:
        """Refuses a θ, arrays or their shapes, that these fields do not fit.

        Raises:
            ValueError: naming the field.
        """
        perturbation.leaf_factors(theta, self.sigma_factors)
        size = sum(leaf.size for leaf in jax.tree.leaves(theta))
        if self.orthogonal and self.pairs_per_task > size:
            raise ValueError(
                f"pairs_per_task = {self.pairs_per_task} orthogonal noises need as "
                f"many meta-parameters, and theta has {size}"
            )

    def init(self, problem: Problem, theta: Theta) -> PairState:
        """See `Estimator.init`; the particles are pairs."""
        self.check(theta)
        variant, members = episodes.unbegun(problem, theta, self.num_pairs, members=2)
        flat = ravel_pytree(theta)[0]
        zeros = jnp.zeros((self.num_pairs, *flat.shape), flat.dtype)
        apart = self.refresh not in (1, "episode") and self.credit == "accumulated"
        noise = jnp.copy(zeros) if apart else None
        watch = self.resume.unbegun(variant, members) if self.resume.slots else None
        return PairState(zeros, variant, members, noise, watch)

    def advance(
        self,
        problem: Problem,
        theta: Theta,
        state: PairState,
        dataset: Any,
        key: jax.Array,
        outer_step: int | jax.Array = 0,
        first: int | jax.Array = 0,
    ) -> tuple[Parts, PairState]:
        """See `Estimator.advance`; the particles are pairs."""
        if isinstance(dataset, Windowed):
            self._check_streamed()
        return episodes.advanced(
            partial(self._window, problem),
            theta,
            state,
            dataset,
            key,
            outer_step,
            first,
            chunk=self.chunk,
            reduce=self.reduce,
        )

    def estimate(
        self,
        problem: Problem,
        theta: Theta,
        state: PairState,
        dataset: Any,
        key: jax.Array,
        outer_step: int | jax.Array = 0,
    ) -> tuple[Estimate, PairState]:
        """See `Estimator.estimate`."""
        parts, state = self.advance(problem, theta, state, dataset, key, outer_step)
        return parts.estimate(), state

    def data_keys(self, key: jax.Array) -> jax.Array:
        """The keys `[N]` of the unrolls of `estimate` with this key, pair by pair."""
        self._check_streamed()
        tasks = jnp.arange(self.num_pairs) // self.pairs_per_task
        return jax.vmap(lambda task: data_key(particle_key(key, task)))(tasks)

    def _check_streamed(self) -> None:
        if not self.common_random_numbers:
            raise ValueError(
                "common_random_numbers = False: streamed data holds the same batches "
                "for both members; keep the data on the device"
            )

    def _window(
        self,
        problem: Problem,
        theta: Theta,
        pair: PairState,
        dataset: Any,
        key: jax.Array,
        index: jax.Array,
        outer_step: jax.Array,
    ) -> tuple[PairState, Theta, dict[str, jax.Array]]:
        task_key = particle_key(key, index // self.pairs_per_task)
        begins = pair.episodes.step[0] >= pair.episodes.length[0]
        pair, resumed = self._renewed(problem, theta, pair, task_key, outer_step)
        before = pair
        flat, unravel = ravel_pytree(theta)
        noise = self._fresh(problem, theta, key, index)
        noise, credit = self._credited(noise, pair, begins)
        members = jax.vmap(unravel)(jnp.stack([flat + noise, flat - noise]))
        unrolled = self._unrolled(problem, members, pair, dataset, task_key, outer_step)
        difference, finite = self._difference(unrolled.contributions)
        term = difference / (2.0 * self.sigma**2) * credit
        if self.sigma_factors:
            factors = perturbation.raveled_factors(theta, self.sigma_factors)
            term = term / jnp.asarray(factors**2, term.dtype)
        metrics = episodes.seen(unrolled, unrolled.episode, ~finite) | resumed
        pair = pair._replace(credit=credit, episodes=unrolled.episode)
        if before.watch is not None:
            watch, struggles = self.resume.observe(
                before.watch, before.variant, before.episodes, unrolled.losses
            )
            pair = pair._replace(watch=watch)
            metrics["struggling"] = struggles.astype(jnp.float32)
        if pair.noise is not None:
            pair = pair._replace(noise=noise)
        return pair, unravel(term), metrics

    def _renewed(
        self,
        problem: Problem,
        theta: Theta,
        pair: PairState,
        key: jax.Array,
        outer_step: jax.Array,
    ) -> tuple[PairState, dict[str, jax.Array]]:
        """A pair whose episodes begin, anew or from a stored state, if they ended."""
        begins = pair.episodes.step[0] >= pair.episodes.length[0]
        runs = episodes.renewed(
            problem,
            theta,
            (pair.variant, pair.episodes),
            self.lengths,
            self.truncation,
            key,
            outer_step,
        )
        metrics: dict[str, jax.Array] = {}
        if pair.watch is not None:
            watch, runs, warm = self.resume.renewed(
                pair.watch, stream(key, "resume"), begins, runs
            )
            pair = pair._replace(watch=watch)
            metrics["resumed"] = warm.astype(jnp.float32)
        return pair._replace(variant=runs[0], episodes=runs[1]), metrics

    def _fresh(
        self, problem: Problem, theta: Theta, key: jax.Array, index: jax.Array
    ) -> jax.Array:
        """Noise `[D]` of one pair, as if each window drew its own."""
        flat, unravel = ravel_pytree(theta)
        pairs = self.pairs_per_task
        if self.orthogonal:
            task_key = stream(particle_key(key, index // pairs), "noise")
            noise = perturbation.orthogonal_normal(task_key, pairs, index % pairs, flat)
        else:
            pair_key = stream(particle_key(key, index), "noise")
            noise = jax.random.normal(pair_key, flat.shape, flat.dtype)
        noise = self.sigma * noise
        if self.sigma_factors:
            factors = perturbation.raveled_factors(theta, self.sigma_factors)
            noise = noise * jnp.asarray(factors, noise.dtype)
        if frozen := frozen_parts(problem):  # else nothing is unraveled
            noise = ravel_pytree(keep_frozen(unravel(noise), frozen))[0]
        return noise

    def _credited(
        self, fresh: jax.Array, pair: PairState, begins: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """This window's noise `[D]`, and what its loss difference is credited with.

        Args:
            fresh: noise `[D]` of this window.
            pair: before the window.
            begins: `[]` bool, whether the episode does; it may begin in a later step.
        """
        step = pair.episodes.step[0]
        accumulated = jnp.where(begins, 0.0, pair.credit)
        if self.refresh == "episode":
            draws = begins
        elif self.refresh == 1:
            # Always, but not so that the compiler knows: with a choice in it, and so
            # the same roundings, the whole family is the same bits in a first window.
            draws = step >= 0
        else:
            draws = begins | ((step // self.truncation) % self.refresh == 0)
        kept = pair.credit if pair.noise is None else pair.noise
        noise = jnp.where(draws, fresh, kept)
        if self.credit == "window" or self.refresh == "episode":
            return noise, noise
        return noise, jnp.where(draws, accumulated + noise, accumulated)

    def _unrolled(
        self,
        problem: Problem,
        members: Theta,
        pair: PairState,
        dataset: Any,
        key: jax.Array,
        outer_step: jax.Array,
    ) -> Unrolled:
        """The window of both members, `[2]` in front."""

        def one(member: Theta, episode: Any, key: jax.Array) -> Unrolled:
            return problem.unroll(
                member,
                episode,
                pair.variant,
                dataset,
                key,
                self.truncation,
                outer_step=outer_step,
            )

        key = data_key(key)
        if self.common_random_numbers:  # the key is not mapped: batches are made once
            return jax.vmap(one, (0, 0, None))(members, pair.episodes, key)
        return jax.vmap(one)(members, pair.episodes, jax.random.split(key))

    def _difference(self, contributions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """L⁺ − L⁻ `[]` of contributions `[2, T]` as it counts; whether it was finite.

        What is not finite says nothing about a direction: it counts as zero.
        """
        means = contributions.mean(axis=1)
        difference = means[0] - means[1]
        finite = jnp.isfinite(difference)
        if self.sign_difference is not None:
            difference = self.sign_difference * jnp.sign(difference)
        if self.clip_difference is not None:
            bound = self.clip_difference
            difference = jnp.clip(difference, -bound, bound)
        return jnp.where(finite, difference, 0.0), finite
