"""A model against readers: a study of graded diagnosis with its statistics.

The unit is the patient. A patient's score is the mean over their images of the model's
logits; readers grade patients. For every dichotomy of the grade the study has AUCs of
the model and of each reader with DeLong's covariance (all graded the same patients), so
differences are tested in pairs. A reader's score for a dichotomy is the grade itself,
ties counted half, and their AUC the mean over sessions. Intervals and tests are over
patients; the readers are these readers, not a sample of readers.

The same images counted as if they were independent give narrower intervals that are
wrong, because images of a patient resemble one another; `Dichotomy.images_naive` shows
them beside those of a bootstrap that draws patients.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.diagnosis.agreement import (
    cohen_kappa,
    fleiss_kappa,
    mean_pairwise_kappa,
)
from evaluation.diagnosis.auc import AUCs, Comparison, Estimate, delong, placements
from evaluation.diagnosis.bootstrap import cluster_bootstrap
from lopt.base import LearnedOptimizer, Theta
from lopt.baselines import evaluation_params
from metatrain.inner import InnerLoop, start
from metatrain.keys import stream
from metatrain.unroll import unroll
from tasks import diagnosis as grading
from tasks.base import Split
from tasks.data.images import ImageDraws
from tasks.diagnosis import Graded, GradedDiagnosis

_PIECE = 100
"""Images whose logits are computed at once."""


class Study(NamedTuple):
    """What is known of each patient and image; numpy arrays."""

    grade: np.ndarray  # [n] int, the reference
    readings: np.ndarray  # [sessions, readers, n] int
    image_logits: np.ndarray  # [rows, K - 1] of the model
    patient_of_rows: np.ndarray  # [rows] int, index of a patient
    ceiling: np.ndarray  # [n] a score that no reader of the images can beat

    @property
    def num_grades(self) -> int:
        """Grades (K)."""
        return self.image_logits.shape[1] + 1

    def patient_logits(self) -> np.ndarray:
        """Mean over the images of each patient, `[n, K - 1]`."""
        sums = np.zeros((len(self.grade), self.num_grades - 1))
        np.add.at(sums, self.patient_of_rows, self.image_logits)
        return sums / np.bincount(self.patient_of_rows)[:, None]

    def patient_scores(self) -> np.ndarray:
        """Log-odds of each dichotomy `[n, K - 1]`, which never rise along a row."""
        return np.asarray(grading.scores(jnp.asarray(self.patient_logits())))


@dataclasses.dataclass(frozen=True)
class Dichotomy:
    """Results of "is the grade above k?"; AUCs with logit-DeLong intervals."""

    name: str
    num_positive: int
    """Patients above k."""
    model: Estimate
    readers: tuple[Estimate, ...]
    """Each the mean over the sessions."""
    readers_mean: Estimate
    ceiling: Estimate
    best: int
    """Index of the reader with the largest AUC on these very patients."""
    versus_mean: Comparison
    """Model minus the mean of the readers."""
    versus_best: Comparison
    """Model minus the best reader, who was chosen by the same data."""
    images_naive: Estimate
    """Of single images, as if they were independent."""
    images_clustered: Estimate
    """Of single images, patients being drawn; the percentile bootstrap."""
    kappa: float
    """Between readers: mean of Cohen's over pairs, then over sessions."""
    fleiss: Estimate
    """Between readers of the first session: Fleiss', patients being drawn."""


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Results of a study; kappas of grades have quadratic weights."""

    num_patients: int
    dichotomies: tuple[Dichotomy, ...]
    model_kappa: Estimate
    """Model against the reference; patients are drawn."""
    reader_kappas: tuple[float, ...]
    """Each reader against the reference, mean over sessions."""
    between_readers: float
    """Mean over pairs and sessions."""
    within_readers: float | None
    """First session against the second, mean over readers; None without a second."""
    model_with_readers: float
    """Model against reader, mean over readers and sessions."""


def train(
    task: GradedDiagnosis,
    lopt: LearnedOptimizer,
    theta: Theta,
    num_steps: int,
    seed: int,
    dataset: Graded,
) -> tuple[Any, np.ndarray]:
    """Trains a model.

    Returns:
        Parameters, and the losses `[num_steps]` of the training batches in nats.
    """

    @functools.partial(jax.jit, static_argnums=2)
    def run(key: jax.Array, dataset: Graded, num_steps: int) -> tuple[Any, jax.Array]:
        loop = InnerLoop(task, lopt)
        state = start(loop, theta, stream(key, "init"), num_steps)
        unroll_key = stream(key, "unroll")
        state, losses, _ = unroll(
            loop, theta, state, dataset, unroll_key, num_steps=num_steps
        )
        return evaluation_params(state.opt_state, state.params), losses

    key = stream(jax.random.key(seed), "diagnosis")
    params, losses = run(key, dataset, num_steps)
    return params, np.asarray(losses)


def image_logits(
    task: GradedDiagnosis, params: Any, dataset: Graded, split: Split
) -> np.ndarray:
    """Logits of all images of a split, float64 `[rows, K - 1]`."""

    @jax.jit
    def run(params: Any, dataset: Graded) -> jax.Array:
        rows = jnp.arange(len(dataset.images.split(split).labels))
        one = functools.partial(_logits_of_row, task, params, dataset, split)
        return jax.lax.map(one, rows, batch_size=_PIECE)

    return np.asarray(run(params, dataset), np.float64)


def _logits_of_row(
    task: GradedDiagnosis, params: Any, dataset: Graded, split: Split, row: jax.Array
) -> jax.Array:
    return task.logits(params, task.batch(dataset, ImageDraws(row[None]), split))[0]


def diagnose(study: Study, num_resamples: int = 1000, seed: int = 0) -> Diagnosis:
    """All statistics of a study.

    Args:
        study: at least two patients on each side of every dichotomy.
        num_resamples: of each bootstrap.
        seed: of the bootstraps.
    """
    logits = study.patient_logits()
    grades = np.asarray(grading.grade(jnp.asarray(logits)))
    sessions, readers, n = study.readings.shape
    num = study.num_grades

    def kappa(a: np.ndarray, b: np.ndarray) -> float:
        return cohen_kappa(a, b, num, "quadratic")

    def model_kappa(rows: np.ndarray) -> float:
        return kappa(grades[rows], study.grade[rows])

    flat = study.readings.reshape(-1, n)
    against = np.array([kappa(reading, study.grade) for reading in flat])
    pairwise = [mean_pairwise_kappa(s, num, "quadratic") for s in study.readings]
    twice = zip(*study.readings[:2], strict=True) if sessions > 1 else ()
    return Diagnosis(
        n,
        tuple(
            _dichotomy(study, k, num_resamples, seed)
            for k in range(study.num_grades - 1)
        ),
        cluster_bootstrap(model_kappa, np.arange(n), None, num_resamples, seed),
        tuple(against.reshape(sessions, readers).mean(0).tolist()),
        float(np.mean(pairwise)),
        float(np.mean([kappa(*pair) for pair in twice])) if sessions > 1 else None,
        float(np.mean([kappa(grades, reading) for reading in flat])),
    )


def _dichotomy(study: Study, k: int, num_resamples: int, seed: int) -> Dichotomy:
    """Results of "is the grade above k?"."""
    above = study.grade > k
    sessions, readers, n = study.readings.shape
    scores = study.patient_scores()[:, k]
    # In this order: the model, the ceiling, and all readers of each session.
    aucs = delong(
        above, np.stack([scores, study.ceiling, *study.readings.reshape(-1, n)])
    )
    weights = [_reader_weights(aucs, sessions, readers, [i]) for i in range(readers)]
    everyone = _reader_weights(aucs, sessions, readers, range(readers))
    each = tuple(aucs.estimate(w) for w in weights)
    best = int(np.argmax([estimate.value for estimate in each]))
    called = (study.readings > k).astype(int)
    return Dichotomy(
        dichotomy_name(k, study.num_grades),
        int(above.sum()),
        aucs.estimate(0),
        each,
        aucs.estimate(everyone),
        aucs.estimate(1),
        best,
        aucs.compare(0, everyone),
        aucs.compare(0, weights[best]),
        *_of_images(study, k, num_resamples, seed),
        float(np.mean([mean_pairwise_kappa(session, 2) for session in called])),
        cluster_bootstrap(
            lambda rows: fleiss_kappa(called[0][:, rows], 2),
            np.arange(n),
            above,
            num_resamples,
            seed,
        ),
    )


def _reader_weights(
    aucs: AUCs, sessions: int, readers: int, chosen: Sequence[int]
) -> list[float]:
    """Weights of the mean over sessions and the chosen readers."""
    weights = np.zeros((sessions, readers))
    weights[:, list(chosen)] = 1.0 / (sessions * len(chosen))
    return [0.0] * (len(aucs.values) - weights.size) + weights.ravel().tolist()


def _of_images(
    study: Study, k: int, num_resamples: int, seed: int
) -> tuple[Estimate, Estimate]:
    """The AUC of single images: intervals by DeLong, and by drawing patients."""
    scores = np.asarray(grading.scores(jnp.asarray(study.image_logits)))[:, k]
    above = (study.grade > k)[study.patient_of_rows]

    def auc(rows: np.ndarray) -> float:
        positive = above[rows]
        below, _ = placements(scores[rows[positive]], scores[rows[~positive]])
        return float(below.mean()) if below.size else math.nan

    patients = study.patient_of_rows
    return delong(above, scores).estimate(), cluster_bootstrap(
        auc, patients, above, num_resamples, seed
    )


def dichotomy_name(k: int, num_grades: int) -> str:
    """For example "S0-1 | S2-3"."""
    low = "S0" if k == 0 else f"S0-{k}"
    last = num_grades - 1
    return f"{low} | S{last}" if k + 1 == last else f"{low} | S{k + 1}-{last}"
