"""Evolution strategies on unrolls: truncated ES, PES and noise-reuse ES.

An episode of inner training is cut into windows of T steps. In each window every pair i
runs two members, at θ + ε_i and θ − ε_i, each from its own state, on the same batches;
their mean losses L⁺ and L⁻ give the term

    (L⁺ − L⁻) · credit_i / (2σ²),

and the estimate is the mean over pairs. What is credited makes the estimator:

* `fresh`: new noise in each window, credited for that window alone. This is truncated
  ES: biased, since noise also acts on the windows that follow it.
* `accumulated`: new noise in each window, credited with the sum of all noise since the
  episode began. This is PES: unbiased.
* `episode`: one noise for the whole episode. This is noise-reuse ES (ES-Single).

At fixed θ the sum of PES's estimates over an episode of M windows, divided by M, is
unbiased for the gradient of the episode's mean window loss, smoothed by independent
noise per window. Averaged over outer steps, *windows* weigh equally, not episodes: a
long episode counts for as many windows as it has.

References:
    Vicol et al., PES, arXiv:2112.13835, Algorithm 1; Vicol, ES-Single,
    arXiv:2304.11153; Li et al., noise-reuse ES, arXiv:2304.12180.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from lopt.base import Theta, frozen_parts
from metatrain.estimators.base import Estimate, Problem, Windowed
from metatrain.estimators.particles import (
    Reduce,
    ordered_mean,
    over_particles,
    sum_over_particles,
)
from metatrain.frozen import keep_frozen
from metatrain.keys import stream
from metatrain.truncation import EpisodeLengths

Credit = Literal["accumulated", "fresh", "episode"]


class PairState(NamedTuple):
    """One antithetic pair; `[N]` in front of everything in an estimator's state."""

    credit: jax.Array  # [D] noise so far that a term is credited with, θ raveled
    variant: Any  # what is particular about the episode; both members have the same
    episodes: Any  # the two members' episodes, `[2]` in front


@dataclasses.dataclass(frozen=True)
class EvolutionStrategy:
    """Antithetic evolution strategies over windows of an unroll."""

    num_pairs: int = 8
    """Antithetic pairs N; each outer step unrolls 2N particles."""
    truncation: int = 50
    """Inner steps T of a window; one outer step advances every particle by T."""
    sigma: float = 0.01
    """Standard deviation of the perturbation of each meta-parameter."""
    credit: Credit = "accumulated"
    """accumulated: PES; fresh: truncated ES (biased); episode: noise-reuse ES."""
    chunk: int = 8
    """Pairs that run in one vmapped program (all of them if there are fewer); chunks
    follow one another. Fixed, so that results do not depend on the devices."""
    lengths: EpisodeLengths = EpisodeLengths()
    """Lengths of the episodes."""
    reduce: Reduce = "ordered"
    """How pairs' terms are averaged. ordered: in their order, the same bits for any
    number of devices; psum: on each device, then over devices, for θ so large that no
    device should hold N terms; last bits then depend on the devices."""

    def __post_init__(self) -> None:
        for name in ("num_pairs", "truncation", "chunk"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} = {value} must be a positive whole number")
        if not 1e-18 <= self.sigma <= 100.0:
            raise ValueError(f"sigma = {self.sigma} must lie in [1e-18, 100]")
        if self.credit not in get_args(Credit):
            raise ValueError(
                f"credit = {self.credit!r} must be one of {', '.join(get_args(Credit))}"
            )
        if self.reduce not in get_args(Reduce):
            raise ValueError(
                f"reduce = {self.reduce!r} must be one of {', '.join(get_args(Reduce))}"
            )
        if self.num_pairs % min(self.chunk, self.num_pairs):
            raise ValueError(
                f"chunk = {self.chunk} must divide num_pairs = {self.num_pairs}"
            )

    @property
    def num_members(self) -> int:
        """Members of all pairs."""
        return 2 * self.num_pairs

    @property
    def num_chunks(self) -> int:
        """Chunks of pairs, which devices may share."""
        return self.num_pairs // min(self.chunk, self.num_pairs)

    def init(self, problem: Problem, theta: Theta) -> PairState:
        """Pairs that have not begun, `[N]` in front: their episodes have length 0.

        They begin in the first window, as finished ones do, so initialization is
        traced and compiled once.
        """
        shapes = jax.eval_shape(
            lambda: self._new_pair(
                problem,
                theta,
                jax.random.key(0),
                jnp.int32(0),
                first=jnp.asarray(True),
            )
        )
        return jax.tree.map(
            lambda x: jnp.zeros((self.num_pairs, *x.shape), x.dtype), shapes
        )

    def estimate(
        self,
        problem: Problem,
        theta: Theta,
        state: PairState,
        dataset: Any,
        key: jax.Array,
        outer_step: int | jax.Array = 0,
        mesh: Mesh | None = None,
    ) -> tuple[Estimate, PairState]:
        """See `Estimator.estimate`; the particles are pairs."""
        windows = None
        if isinstance(dataset, Windowed):
            dataset, windows = dataset

        def one(shared: Any, particle: Any) -> Any:
            theta, data, key, outer_step = shared
            pair, index, window = particle
            if window is not None:
                data = Windowed(data, window)
            pair_key = _pair_key(key, index)
            return self._window(problem, theta, pair, data, pair_key, outer_step)

        arguments = (
            (theta, dataset, key, outer_step),
            (state, jnp.arange(self.num_pairs), windows),
        )
        terms = None
        if self.reduce == "psum":

            def parted(shared: Any, particle: Any) -> Any:
                state, term, metrics = one(shared, particle)
                return (state, metrics), term

            (state, metrics), total = sum_over_particles(
                parted, *arguments, chunk=self.chunk, mesh=mesh
            )
            grad = jax.tree.map(lambda x: x / self.num_pairs, total)
            metrics, _ = ordered_mean(metrics, mesh)
        else:
            state, terms, metrics = over_particles(
                one, *arguments, chunk=self.chunk, mesh=mesh
            )
            (grad, metrics), (terms, _) = ordered_mean((terms, metrics), mesh)
        return Estimate(grad, metrics["meta_loss"], metrics, terms), state

    def data_keys(self, key: jax.Array) -> jax.Array:
        """The keys `[N]` of the unrolls of `estimate` with this key, pair by pair."""
        indices = jnp.arange(self.num_pairs)
        return jax.vmap(lambda index: _data_key(_pair_key(key, index)))(indices)

    def _window(
        self,
        problem: Problem,
        theta: Theta,
        pair: PairState,
        dataset: Any,
        key: jax.Array,
        outer_step: jax.Array,
    ) -> tuple[PairState, Theta, dict[str, jax.Array]]:
        finished = pair.episodes.step[0] >= pair.episodes.length[0]
        first = pair.episodes.length[0] == 0
        fresh = self._new_pair(problem, theta, key, outer_step, first=first)
        pair = jax.tree.map(lambda new, old: jnp.where(finished, new, old), fresh, pair)
        begins = pair.episodes.step[0] == 0
        flat, unravel = ravel_pytree(theta)
        noise = self._noise(flat, stream(key, "noise"))
        if frozen := frozen_parts(problem):  # else nothing is unraveled
            noise = ravel_pytree(keep_frozen(unravel(noise), frozen))[0]
        noise, credit = self._credited(noise, pair.credit, begins)
        members = jax.vmap(unravel)(jnp.stack([flat + noise, flat - noise]))
        unrolled = jax.vmap(
            lambda member, episode: problem.unroll(
                member, episode, pair.variant, dataset, _data_key(key), self.truncation
            )
        )(members, pair.episodes)
        episodes = unrolled.episode
        means = unrolled.contributions.mean(axis=1)
        weight = (means[0] - means[1]) / (2.0 * self.sigma**2)
        term = unravel(weight * credit)
        metrics = {
            "meta_loss": unrolled.losses.mean(),
            "diverged": unrolled.diverged.astype(jnp.float32).mean(),
            "finished": (episodes.step[0] >= episodes.length[0]).astype(jnp.float32),
            "episode_length": episodes.length[0].astype(jnp.float32),
        }
        return pair._replace(credit=credit, episodes=episodes), term, metrics

    def _noise(self, theta: jax.Array, key: jax.Array) -> jax.Array:
        """Noise `[D]` of one window."""
        return self.sigma * jax.random.normal(key, theta.shape, theta.dtype)

    def _credited(
        self, noise: jax.Array, credit: jax.Array, begins: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """This window's noise `[D]`, and what its loss difference is credited with."""
        if self.credit == "accumulated":
            return noise, credit + noise
        if self.credit == "episode":
            noise = jnp.where(begins, noise, credit)
        return noise, noise

    def _new_pair(
        self,
        problem: Problem,
        theta: Theta,
        key: jax.Array,
        outer_step: jax.Array,
        *,
        first: jax.Array,
    ) -> PairState:
        key = stream(key, "episode")
        length_key, stagger_key, start_key = jax.random.split(key, 3)
        length = self.lengths.sample(length_key, self.truncation, outer_step)
        shortened = self.lengths.stagger(stagger_key, length, self.truncation)
        length = jnp.where(first, shortened, length)
        variant = problem.sample(stream(key, "variant"))
        episode = problem.start(theta, variant, start_key, length)
        return PairState(
            credit=jnp.zeros_like(ravel_pytree(theta)[0]),
            variant=variant,
            episodes=jax.tree.map(lambda x: jnp.stack([x, x]), episode),
        )


def _pair_key(key: jax.Array, index: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, index)


def _data_key(pair_key: jax.Array) -> jax.Array:
    return stream(pair_key, "data")
