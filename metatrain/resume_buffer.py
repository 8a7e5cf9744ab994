"""A memory of moments before inner training went wrong, from which to begin again.

A learned optimizer fails late in a run and seldom, so most episodes say nothing of
failures. A pair therefore watches its losses, keeps the state in which a window began
that made them rise, and starts some of its later episodes from there.

What rises is a cumulative sum (CUSUM) of loss differences, for each member

    S ← max(0, S + x_i − x_{i−1} − drift),

without drift the height of the loss above its smallest so far. A window *struggles* if
the mean over the members of the largest S of the episode rises in it, and is above
`threshold`. The state at the window's beginning, of the member with the larger S, is
then stored, with its variant, in place of the oldest. An episode that is to begin does
so from a stored state with probability 1 − `fresh`, takes as many steps from there as a
new one would have in all, so ends later than it would have, and both members begin in
that one state.

**What it costs.** A warm-started episode is credited from its restart on: that state
depends on noise of before, and on older θ, for which nobody is credited. An estimator
that is unbiased stays so for the objective of *what is left* of such episodes, where
they begin being given; that θ also decides which states are stored is not in the
estimate. Each stored state is as large as a member's, so a buffer of two states doubles
the memory of a pair.

Buffers belong to pairs: nothing is exchanged between chunks or devices, and no result
depends on how these share the pairs.

References:
    ELO, arXiv:2607.06772. There a pair has a buffer as well; each member goes on from
    its own stored state, a state is stored at every end of an episode too, and neither
    drift nor threshold exist.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from configuration.fields import configuration


class Snapshot(NamedTuple):
    """Where one member stood, and on what."""

    variant: Any
    episode: Any


class Watch(NamedTuple):
    """What a pair remembers. All zeros: nothing yet, and no episode either."""

    snapshots: Snapshot  # [S] in front
    stored: jax.Array  # [] int32, snapshots ever stored
    last: jax.Array  # [2] the members' last losses
    cusum: jax.Array  # [2]
    peak: jax.Array  # [2] largest sums of the episode


@configuration
class ResumeBuffer:
    """When a window counts as struggling, and how often episodes begin from one."""

    slots: int = 0
    """States that a pair keeps; 0: there is no buffer. ELO keeps 2."""
    fresh: float = 0.2
    """Probability that an episode begins anew although there are stored states."""
    threshold: float = 0.1
    """Sums above this count as struggling, in units of the loss at chance."""
    drift: float = 0.0
    """What the loss may rise in a step without adding to the sum."""
    latest: int = 10_000
    """No state of a later inner step is stored, so that episodes have an end."""

    def __post_init__(self) -> None:
        for name, least in (("slots", 0), ("latest", 1)):
            value = getattr(self, name)
            if not least <= value <= 10**9:
                raise ValueError(
                    f"resume.{name} = {value} must be a whole number in [{least}, 10⁹]"
                )
        if not 0 <= self.fresh <= 1:
            raise ValueError(f"resume.fresh = {self.fresh} must lie in [0, 1]")
        for name in ("threshold", "drift"):
            value = getattr(self, name)
            if not 0 <= value <= 1e6:
                raise ValueError(f"resume.{name} = {value} must lie in [0, 1e6]")

    def unbegun(self, variants: Any, episodes: Any) -> Watch:
        """Of pairs that have seen nothing, `[N]` in front.

        Args:
            variants: `[N]`, of any values.
            episodes: `[N, 2]`, of any values.
        """
        num = episodes.step.shape[0]

        def empty(x: jax.Array, front: int) -> jax.Array:
            return jnp.zeros((num, self.slots, *x.shape[front:]), x.dtype)

        return Watch(
            Snapshot(
                jax.tree.map(lambda x: empty(x, 1), variants),
                jax.tree.map(lambda x: empty(x, 2), episodes),
            ),
            stored=jnp.zeros(num, jnp.int32),
            last=jnp.zeros((num, 2)),
            cusum=jnp.zeros((num, 2)),
            peak=jnp.zeros((num, 2)),
        )

    def observe(
        self, watch: Watch, variant: Any, episodes: Any, losses: jax.Array
    ) -> tuple[Watch, jax.Array]:
        """Takes note of a window.

        Args:
            watch: what is remembered.
            variant: of the episode.
            episodes: the members' states `[2]` *before* the window.
            losses: `[2, T]`, normalized and finite.

        Returns:
            What is remembered now, and whether the window struggled: `[]` bool.
        """
        cusum, peak = self._sums(watch, losses)
        rises = (peak.mean() > watch.peak.mean()) & (peak.mean() > self.threshold)
        worse = jnp.argmax(peak)
        snapshot = Snapshot(variant, jax.tree.map(lambda x: x[worse], episodes))
        # From a state that is lost already there is nothing to be learned.
        store = rises & _finite(snapshot.episode) & (episodes.step[0] <= self.latest)
        slot = watch.stored % self.slots
        snapshots = jax.tree.map(
            lambda old, new: old.at[slot].set(jnp.where(store, new, old[slot])),
            watch.snapshots,
            snapshot,
        )
        stored = watch.stored + store.astype(jnp.int32)
        return Watch(snapshots, stored, losses[:, -1], cusum, peak), rises

    def renewed(
        self, watch: Watch, key: jax.Array, begins: jax.Array, runs: tuple[Any, Any]
    ) -> tuple[Watch, tuple[Any, Any], jax.Array]:
        """Where an episode begins: in the given state, or in a stored one.

        Args:
            watch: what is remembered.
            key: consumed.
            begins: `[]` bool; where it is false, everything stays.
            runs: variant and members' states `[2]`; those of a new episode if one
                begins.

        Returns:
            What is remembered now, the runs, and whether they are stored ones now:
            `[]` bool.
        """
        choice_key, slot_key = jax.random.split(key)
        chosen = jax.random.uniform(choice_key) >= self.fresh
        warm = begins & (watch.stored > 0) & chosen
        full = jnp.clip(watch.stored, 1, self.slots)
        slot = jax.random.randint(slot_key, (), 0, full)
        old = jax.tree.map(lambda x: x[slot], watch.snapshots)
        longer = old.episode.step + runs[1].length[0]
        pair = jax.tree.map(
            lambda x: jnp.stack([x, x]), old.episode._replace(length=longer)
        )
        runs = jax.tree.map(
            lambda stored, new: jnp.where(warm, stored, new), (old.variant, pair), runs
        )
        watch = watch._replace(
            last=jnp.where(begins, jnp.inf, watch.last),
            cusum=jnp.where(begins, 0.0, watch.cusum),
            peak=jnp.where(begins, 0.0, watch.peak),
        )
        return watch, runs, warm

    def _sums(self, watch: Watch, losses: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The members' sums `[2]` after a window `[2, T]`, and the largest so far."""

        def step(carry: Any, loss: jax.Array) -> tuple[Any, None]:
            last, cusum, peak = carry
            cusum = jnp.maximum(cusum + loss - last - self.drift, 0.0)
            return (loss, cusum, jnp.maximum(peak, cusum)), None

        start = (watch.last, watch.cusum, watch.peak)
        (_, cusum, peak), _ = jax.lax.scan(step, start, losses.T)
        return cusum, peak


def _finite(tree: Any) -> jax.Array:
    """Whether all numbers of a tree are finite: `[]` bool."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))
