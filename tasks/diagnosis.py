"""Graded diagnosis: classification with ordered classes.

K grades make K − 1 dichotomies, "is the grade above k?", and the network has one logit
for each: independent cumulative links on shared features, as in Niu et al., Ordinal
Regression with Multiple Output CNN (CVPR 2016), after Frank and Hall, A Simple Approach
to Ordinal Classification (ECML 2001). So a dichotomy may use features of its own. That
"above 2" is never likelier than "above 1", which one score with ordered thresholds
guarantees (CORAL, arXiv:1901.07884), is ensured afterwards by a running minimum.

Outputs are added to the log-odds of the dichotomies in the training split, the best
constant. So a model with a zero readout starts at the loss at chance.
"""

from __future__ import annotations

from typing import NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configuration.fields import configuration
from tasks.base import Loss, Params, Split, shaped
from tasks.data import images
from tasks.data.speckle import Speckle
from tasks.image_rows import LabelledImageTask
from tasks.models.base import Model
from tasks.models.convolutional import ConvNet
from tasks.source import kept


class Graded(NamedTuple):
    """Graded images, and the best constant of the training split."""

    images: images.ImageDataset
    prior: jax.Array  # [K - 1] float32, log-odds of each dichotomy


class GradedBatch(NamedTuple):
    """A batch; the prior is repeated for each image, so that a batch can be cut."""

    images: jax.Array  # [B, height, width, channels] normalized
    labels: jax.Array  # [B] int32, the grade
    prior: jax.Array  # [B, K - 1] log-odds to which outputs are added


@final
@configuration
class GradedDiagnosis(LabelledImageTask):
    """Mean binary cross-entropy over images and dichotomies of the grade."""

    model: Model = ConvNet(width=16, base_width=16, strides=(2, 2, 1))
    """The model that is trained."""
    data: images.Images = Speckle()
    """The images; their labels are the grades, in order."""
    batch_size: int = 64
    """Images per batch, drawn with replacement."""

    unit = "nats per dichotomy"

    @property
    def loss_at_chance(self) -> float:
        """Loss of the best constant on the training split, in nats per dichotomy.

        This is the mean entropy of the dichotomies. The data is read at the first use,
        once per process.
        """
        return _load(self.data)[1]

    @property
    def num_outputs(self) -> int:
        """Number of dichotomies, one fewer than grades."""
        return self.data.num_classes - 1

    def load_data(self) -> Graded:
        """Returns the images and their prior (read once per process)."""
        return _load(self.data)[0]

    def batch_shapes(self) -> GradedBatch:
        """Returns the shapes of a training batch (see `Task.batch_shapes`)."""
        size = self.batch_size
        return GradedBatch(
            shaped(size, *self.input_shape),
            shaped(size, dtype=jnp.int32),
            shaped(size, self.num_outputs),
        )

    def examples(
        self, dataset: Graded, rows: jax.Array | slice, split: Split
    ) -> GradedBatch:
        """Returns the images of some rows and their grades."""
        pixels, labels = images.gather(dataset.images, rows, split)
        shape = (len(labels), self.num_outputs)
        return GradedBatch(pixels, labels, jnp.broadcast_to(dataset.prior, shape))

    def logits(self, params: Params, batch: GradedBatch) -> jax.Array:
        """Returns the log-odds of each dichotomy `[B, K - 1]`, as they are trained."""
        return self.model.apply(params, batch.images, self.num_outputs) + batch.prior

    def loss(self, params: Params, key: jax.Array, batch: GradedBatch) -> Loss:
        """Returns the mean cross-entropy `[]` in nats per dichotomy.

        The auxiliary scalars are the accuracy of the grade and its mean absolute error.
        """
        del key
        logits = self.logits(params, batch)
        targets = exceeds(batch.labels, self.num_outputs + 1)
        losses = optax.sigmoid_binary_cross_entropy(logits, targets)
        error = jnp.abs(grade(logits) - batch.labels)
        aux = {
            "accuracy": jnp.mean(error == 0),
            "grade_error": jnp.mean(error.astype(jnp.float32)),
        }
        return jnp.mean(losses), aux


def exceeds(labels: jax.Array, num_grades: int) -> jax.Array:
    """Returns whether grades `[...]` exceed 0, 1, …: `[..., K - 1]` bool."""
    return labels[..., None] > jnp.arange(num_grades - 1).reshape(
        (1,) * labels.ndim + (-1,)
    )


def scores(logits: jax.Array) -> jax.Array:
    """Returns log-odds that never rise from one dichotomy to the next, `[..., K - 1]`.

    A grade above 2 is also above 1, so it can be no likelier.
    """
    return jax.lax.cummin(logits, axis=logits.ndim - 1)


def grade(logits: jax.Array) -> jax.Array:
    """Returns the grade `[...]` int32: the number of dichotomies likelier than not.

    They are counted up to the first that is not, so raising any logit never lowers
    the grade.
    """
    return jnp.sum(scores(logits) > 0, axis=-1, dtype=jnp.int32)


@kept
def _load(data: images.Images) -> tuple[Graded, float]:
    """Returns the dataset of the task, and its loss at chance."""
    # Concrete even where a caller is being traced, as the result is kept.
    with jax.ensure_compile_time_eval():
        dataset = data.load()
        labels = np.asarray(dataset.train.labels)
        counts = np.bincount(labels, minlength=data.num_classes)
        above = 1.0 - np.cumsum(counts)[:-1] / len(labels)
        if counts[0] == 0 or counts[-1] == 0:
            missing = 0 if counts[0] == 0 else data.num_classes - 1
            raise ValueError(
                f"data = {data}: no training image has grade {missing}, so a dichotomy "
                "has one class only"
            )
        log_odds = np.log(above) - np.log1p(-above)
        entropy = -above * np.log(above) - (1.0 - above) * np.log1p(-above)
        return Graded(dataset, jnp.asarray(log_odds, jnp.float32)), float(
            entropy.mean()
        )
