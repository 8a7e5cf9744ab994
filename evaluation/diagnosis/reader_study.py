"""A study of graded diagnosis: a model against readers.

The unit is the patient: a patient's score is the mean of the model's logits over their
images, and readers grade patients. For every dichotomy of the grade, AUCs of the model
and of each reader have DeLong's covariance, as all graded the same patients, so
differences are tested in pairs. A reader's score is the grade itself, ties counted
half, and their AUC the mean over sessions. Intervals and tests are over patients; the
readers are not a sample of readers.

Images of a patient resemble one another, so counting them as independent gives
intervals that are too narrow: `Dichotomy.images_naive` shows them beside those of a
bootstrap over patients.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.diagnosis.agreement import (
    cohen_kappa,
    fleiss_kappa,
    mean_pairwise_kappa,
)
from evaluation.diagnosis.auc import Comparison, Estimate, delong, placements
from evaluation.diagnosis.bootstrap import cluster_bootstrap
from evaluation.training import train_model
from lopt.base import LearnedOptimizer, Theta
from metatrain.inner import InnerLoop
from metatrain.keys import stream
from tasks import diagnosis as grading
from tasks.base import Split
from tasks.data.images import ImageDraws
from tasks.diagnosis import Graded, GradedDiagnosis

_PIECE = 100
"""Images whose logits are computed at once."""


class Study(NamedTuple):
    """Grades, readings and scores of each patient and image; numpy arrays."""

    grade: np.ndarray  # [n] int, reference
    readings: np.ndarray  # [sessions, readers, n] int
    image_logits: np.ndarray  # [rows, K - 1] model's scores
    patient_of_rows: np.ndarray  # [rows] int
    ceiling: np.ndarray  # [n] best score that the images allow

    @property
    def num_grades(self) -> int:
        """Number of grades (K)."""
        return self.image_logits.shape[1] + 1

    def patient_logits(self) -> np.ndarray:
        """Returns the mean over each patient's images, `[n, K - 1]`."""
        sums = np.zeros((len(self.grade), self.num_grades - 1))
        np.add.at(sums, self.patient_of_rows, self.image_logits)
        return sums / np.bincount(self.patient_of_rows)[:, None]

    def patient_scores(self) -> np.ndarray:
        """Returns log-odds of the dichotomies `[n, K - 1]`, non-increasing in k."""
        return np.asarray(grading.scores(jnp.asarray(self.patient_logits())))


@dataclasses.dataclass(frozen=True)
class Dichotomy:
    """Results for "is the grade above k?"; AUCs with logit-DeLong intervals."""

    name: str
    num_positive: int
    """Patients above k."""
    model: Estimate
    readers: tuple[Estimate, ...]
    """Mean over sessions, by reader."""
    readers_mean: Estimate
    ceiling: Estimate
    best: int
    """Index of the reader with the largest AUC on these patients."""
    versus_mean: Comparison
    """Model minus the mean of the readers."""
    versus_best: Comparison
    """Model minus the best reader, who was chosen on the same data."""
    images_naive: Estimate
    """AUC of single images as if they were independent."""
    images_clustered: Estimate
    """AUC of single images, percentile bootstrap over patients."""
    kappa: float
    """Cohen's kappa between readers, mean over pairs and sessions."""
    fleiss: Estimate
    """Fleiss' kappa of the first session, bootstrap over patients."""


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Results of a study; kappas of grades are quadratically weighted."""

    num_patients: int
    dichotomies: tuple[Dichotomy, ...]
    model_kappa: Estimate
    """Model against reference, bootstrap over patients."""
    reader_kappas: tuple[float, ...]
    """Reader against reference, mean over sessions."""
    between_readers: float
    """Mean over pairs and sessions."""
    within_readers: float | None
    """First session against second, mean over readers; None for one session."""
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
    """Trains a model and returns its parameters and losses `[num_steps]` in nats."""
    key = stream(jax.random.key(seed), "diagnosis")
    params, losses = train_model(InnerLoop(task, lopt), theta, num_steps, key, dataset)
    return params, np.asarray(losses)


def image_logits(
    task: GradedDiagnosis, params: Any, dataset: Graded, split: Split
) -> np.ndarray:
    """Returns the logits of all images of a split, float64 `[rows, K - 1]`."""

    @jax.jit
    def run(params: Any, dataset: Graded) -> jax.Array:
        def one(row: jax.Array) -> jax.Array:
            batch = task.batch(dataset, ImageDraws(row[None]), split)
            return task.logits(params, batch)[0]

        rows = jnp.arange(len(dataset.images.split(split).labels))
        return jax.lax.map(one, rows, batch_size=_PIECE)

    return np.asarray(run(params, dataset), np.float64)


def diagnose(study: Study, num_resamples: int = 1000, seed: int = 0) -> Diagnosis:
    """Computes all statistics of a study.

    Args:
        study: grades and scores, two patients or more on each side of every dichotomy.
        num_resamples: resamples of each bootstrap.
        seed: seed of the bootstraps.
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
    within = float(np.mean([kappa(*pair) for pair in twice])) if sessions > 1 else None
    parts = (_dichotomy(study, k, num_resamples, seed) for k in range(num - 1))
    return Diagnosis(
        num_patients=n,
        dichotomies=tuple(parts),
        model_kappa=cluster_bootstrap(
            model_kappa, np.arange(n), None, num_resamples, seed
        ),
        reader_kappas=tuple(against.reshape(sessions, readers).mean(0).tolist()),
        between_readers=float(np.mean(pairwise)),
        within_readers=within,
        model_with_readers=float(np.mean([kappa(grades, x) for x in flat])),
    )


def _dichotomy(study: Study, k: int, num_resamples: int, seed: int) -> Dichotomy:
    above = study.grade > k
    sessions, readers, n = study.readings.shape
    scores = study.patient_scores()[:, k]
    # In this order: the model, the ceiling, and all readers of each session.
    aucs = delong(
        above, np.stack([scores, study.ceiling, *study.readings.reshape(-1, n)])
    )
    # Of AUCs in this order, a reader's is the mean over the sessions.
    weights = np.zeros((readers, len(aucs.values)))
    for i in range(readers):
        weights[i, 2 + i :: readers] = 1.0 / sessions
    everyone = weights.mean(0)
    each = tuple(aucs.estimate(w) for w in weights)
    best = int(np.argmax([estimate.value for estimate in each]))
    called = (study.readings > k).astype(int)
    naive, clustered = _of_images(study, k, num_resamples, seed)

    def fleiss(rows: np.ndarray) -> float:
        return fleiss_kappa(called[0][:, rows], 2)

    return Dichotomy(
        name=dichotomy_name(k, study.num_grades),
        num_positive=int(above.sum()),
        model=aucs.estimate(0),
        readers=each,
        readers_mean=aucs.estimate(everyone),
        ceiling=aucs.estimate(1),
        best=best,
        versus_mean=aucs.compare(0, everyone),
        versus_best=aucs.compare(0, weights[best]),
        images_naive=naive,
        images_clustered=clustered,
        kappa=float(np.mean([mean_pairwise_kappa(session, 2) for session in called])),
        fleiss=cluster_bootstrap(fleiss, np.arange(n), above, num_resamples, seed),
    )


def _of_images(
    study: Study, k: int, num_resamples: int, seed: int
) -> tuple[Estimate, Estimate]:
    """AUC of single images: intervals by DeLong, and by a bootstrap over patients."""
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
    """Names the dichotomy, for example "S0-1 | S2-3"."""
    low = "S0" if k == 0 else f"S0-{k}"
    last = num_grades - 1
    return f"{low} | S{last}" if k + 1 == last else f"{low} | S{k + 1}-{last}"
