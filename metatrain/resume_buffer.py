"""A buffer of states from before inner training went wrong, to resume episodes from.

A learned optimizer fails late in a run and seldom, so most episodes say nothing about
failures. A pair therefore watches its losses, stores the state in which a window began
that made them rise, and starts some of its later episodes there.

The watched quantity is a cumulative sum (CUSUM) of loss differences, for each member

    S ← max(0, S + x_i − x_{i−1} − drift),

without drift the height of the loss above its minimum so far. A window *struggles* if
the mean over members of the episode's largest S rises in it, and exceeds `threshold`.
Then the state at the window's beginning of the member with the larger S replaces the
oldest stored one, with its variant. A new episode begins with probability 1 − `fresh`
in a stored state, both members in the same one, and takes as many steps from there as
a new one would take in all.

A resumed episode is credited only from its restart on. An unbiased estimator stays
unbiased for the objective of the *rest* of such episodes, given where they begin; the
influence of θ on which states are stored is not estimated. Two stored states double the
memory of a pair. Buffers belong to pairs, so no result depends on chunks or devices.

References:
    ELO, arXiv:2607.06772. There each member resumes its own stored state, states are
    stored at every end of an episode too, and neither drift nor threshold exist.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from configuration.fields import configuration
from configuration.ranges import check_range


class Snapshot(NamedTuple):
    """State of one member, and its variant."""

    variant: Any
    episode: Any


class Watch(NamedTuple):
    """Memory of a pair, all zeros before its first episode."""

    snapshots: Snapshot  # [S] in front
    stored: jax.Array  # [] int32, snapshots ever stored
    last: jax.Array  # [2] the members' last losses
    cusum: jax.Array  # [2]
    peak: jax.Array  # [2] largest sums of the episode


@configuration
class ResumeBuffer:
    """Conditions for struggling windows, and how often episodes resume from one."""

    slots: int = 0
    """States that a pair keeps; 0 disables the buffer. ELO keeps 2."""
    fresh: float = 0.2
    """Probability that an episode begins anew although there are stored states."""
    threshold: float = 0.1
    """Sums above this count as struggling, in units of the loss at chance."""
    drift: float = 0.0
    """Rise of the loss in a step that does not add to the sum."""
    latest: int = 10_000
    """Latest inner step whose state is stored, so that episodes have an end."""

    def __post_init__(self) -> None:
        check_range("resume.slots", self.slots, "[0, 1e9]")
        check_range("resume.latest", self.latest, "[1, 1e9]")
        check_range("resume.fresh", self.fresh, "[0, 1]")
        check_range("resume.threshold", self.threshold, "[0, 1e6]")
        check_range("resume.drift", self.drift, "[0, 1e6]")

    def unbegun(self, variants: Any, episodes: Any) -> Watch:
        """Returns the empty memory of pairs: variants `[N]`, episodes `[N, 2]`."""
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
        """Records a window.

        Args:
            watch: memory of the pair.
            variant: of the episode.
            episodes: the members' states `[2]` *before* the window.
            losses: `[2, T]`, normalized and finite.

        Returns:
            The new memory, and whether the window struggled: `[]` bool.
        """
        cusum, peak = self._sums(watch, losses)
        rises = (peak.mean() > watch.peak.mean()) & (peak.mean() > self.threshold)
        worse = jnp.argmax(peak)
        snapshot = Snapshot(variant, jax.tree.map(lambda x: x[worse], episodes))
        # Nothing can be learned from a state that has already diverged.
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
        """Chooses whether an episode begins in its given state or in a stored one.

        Args:
            watch: memory of the pair.
            key: consumed.
            begins: `[]` bool, whether an episode begins; otherwise nothing changes.
            runs: its variant and the members' states `[2]`.

        Returns:
            The new memory, the runs, and whether they are stored ones: `[]` bool.
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
        """Returns the members' sums `[2]` after a window `[2, T]`, and their peaks."""

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
