"""Autoencoding: a model reproduces its input; labels are ignored.

The network sees the normalized image, and its outputs are added to the best constant
image: the constant per pixel with the smallest loss on the training split. So a model
with a zero readout starts at the loss at chance, as a classifier does. (Otherwise every
run on the digits would begin above the cap of the normalized loss.)

Every loss is a mean over images *and pixels*, so it does not depend on the resolution.
A `VAE` adds the KL divergence of its posterior, also divided by the number of pixels:
its loss is the negative ELBO in nats per pixel. The values of `reconstruction`:

* "mse": squared error of the normalized image, in units of a channel's variance over
  the training split. For a `VAE` it is the negative log-likelihood of a Gaussian of
  variance ½, without the constant ½ ln π.
* "bernoulli": cross-entropy in nats of logits. Targets are raw pixels mapped to [0, 1]
  by the smallest and the largest training pixel and clipped; a grey pixel is a
  probability.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from configuration.fields import configuration
from tasks.base import Batch, Loss, Params, Split, shaped
from tasks.data import images
from tasks.data.embedded import Digits
from tasks.image_rows import ImageTask
from tasks.models.autoencoder import VAE, AutoEncoder, Inference
from tasks.models.base import Model
from tasks.source import kept

Reconstruction = Literal["mse", "bernoulli"]

_ROWS_AT_ONCE = 4096


class Pictures(NamedTuple):
    """Images, and statistics of the training split that the targets need."""

    images: images.ImageDataset
    low: jax.Array  # [] float32, the smallest raw pixel
    high: jax.Array  # [] float32, the largest
    best: jax.Array  # [pixels] float32, the best constant: normalized, or logits


class Pairs(NamedTuple):
    """A batch."""

    inputs: jax.Array  # [B, height, width, channels] normalized
    targets: jax.Array  # [B, pixels] normalized, or in [0, 1]
    best: jax.Array  # [pixels] the constant to which outputs are added


@final
@configuration
class Autoencoding(ImageTask):
    """Mean reconstruction loss per pixel, or the negative ELBO per pixel of a `VAE`."""

    model: Model = AutoEncoder()
    """The model that is trained."""
    data: images.Images = Digits()
    """The images."""
    batch_size: int = 128
    """Images per batch, drawn with replacement."""
    reconstruction: Reconstruction = "mse"
    """mse: squared error of normalized pixels; bernoulli: cross-entropy in nats."""

    @property
    def loss_at_chance(self) -> float:
        """Loss of the best constant image on the training split.

        A new `VAE` starts there too, as its divergence is 0. The data is read at the
        first use, once per process.
        """
        return load_pictures(self.data, self.reconstruction)[1]

    @property
    def num_outputs(self) -> int:
        """Number of pixels, over all channels."""
        return math.prod(self.data.image_shape)

    def inputs(self, batch: Batch) -> jax.Array:
        """Returns normalized images `[B, height, width, channels]`."""
        return batch.inputs

    def load_data(self) -> Pictures:
        """Returns the images and their best constant (read once per process)."""
        return load_pictures(self.data, self.reconstruction)[0]

    def examples(
        self, dataset: Pictures, rows: jax.Array | slice, split: Split
    ) -> Pairs:
        """Returns the images of some rows and their targets."""
        inputs = images.gather(dataset.images, rows, split).images
        if self.reconstruction == "mse":
            return Pairs(inputs, inputs.reshape(-1, self.num_outputs), dataset.best)
        raw = dataset.images.split(split).images
        raw = raw.reshape(-1, self.num_outputs)[rows].astype(jnp.float32)
        targets = (raw - dataset.low) / (dataset.high - dataset.low)
        return Pairs(inputs, jnp.clip(targets, 0.0, 1.0), dataset.best)

    @property
    def unit(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Unit of the loss.

        A squared error is in squared deviations of a channel. A `VAE` adds a divergence
        in nats, so that all of its loss is a negative log-likelihood.
        """
        likelihood = self.reconstruction == "bernoulli" or isinstance(self.model, VAE)
        return "nats per pixel" if likelihood else "squared deviations"

    def batch_shapes(self) -> Pairs:
        """Returns the shapes of a training batch (see `Task.batch_shapes`)."""
        size, pixels = self.batch_size, self.num_outputs
        return Pairs(
            shaped(size, *self.input_shape), shaped(size, pixels), shaped(pixels)
        )

    def loss(self, params: Params, key: jax.Array, batch: Pairs) -> Loss:
        """Returns the mean loss per pixel `[]`, and the two parts of a `VAE`'s."""
        outputs = self.model.apply(params, batch.inputs, self.num_outputs, key)
        sampled = isinstance(outputs, Inference)
        error = reconstruction_loss(
            self.reconstruction,
            outputs.outputs if sampled else outputs,
            batch.targets,
            batch.best,
        )
        if not sampled:
            return error, {}
        divergence = jnp.mean(outputs.divergence()) / self.num_outputs
        parts = {"reconstruction_loss": error, "divergence": divergence}
        return error + divergence, parts


def reconstruction_loss(
    kind: Reconstruction, outputs: jax.Array, targets: jax.Array, best: jax.Array
) -> jax.Array:
    """Returns the mean over images and pixels `[]`.

    Args:
        kind: mse or bernoulli.
        outputs: `[B, pixels]` relative to the best constant.
        targets: `[B, pixels]`; probabilities in [0, 1] for "bernoulli".
        best: `[pixels]`; logits for "bernoulli".
    """
    guess = outputs + jnp.broadcast_to(best, outputs.shape)
    if kind == "mse":
        return jnp.mean((guess - targets) ** 2)
    # −t ln σ(g) − (1 − t) ln σ(−g)
    return jnp.mean(jax.nn.softplus(guess) - targets * guess)


@kept
def load_pictures(data: images.Images, kind: Reconstruction) -> tuple[Pictures, float]:
    """Returns the dataset of the task, and its loss at chance."""
    # Concrete even where a caller is being traced, as the result is kept.
    with jax.ensure_compile_time_eval():
        dataset = data.load()
        pixels = np.asarray(dataset.train.images)
        low, high = float(pixels.min()), float(pixels.max())
        if low == high:
            raise ValueError(f"data = {data}: all training pixels are {low}")
        mean, variance = _moments(pixels)
        # One statistic, or one for each channel, the last axis.
        shift, scale = (np.asarray(x, np.float64) for x in (dataset.mean, dataset.std))
        if kind == "mse":
            best, loss = (mean - shift) / scale, variance / scale**2
        else:
            on = (mean - low) / (high - low)
            # Half a pixel on and half a pixel off are added, so that a pixel that is
            # always off has finite log-odds.
            smooth = (len(pixels) * on + 0.5) / (len(pixels) + 1.0)
            best = np.log(smooth) - np.log1p(-smooth)
            loss = np.logaddexp(0.0, best) - on * best
        numbers = (jnp.asarray(x, jnp.float32) for x in (low, high, best.ravel()))
        return Pictures(dataset, *numbers), float(loss.mean())


def _moments(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and variance of each pixel, float64 `[h, w, channels]`."""
    sums = np.zeros((2, *pixels.shape[1:]))
    for begin in range(0, len(pixels), _ROWS_AT_ONCE):
        rows = pixels[begin : begin + _ROWS_AT_ONCE].astype(np.float64)
        sums += np.stack([rows.sum(0), (rows**2).sum(0)])
    mean, square = sums / len(pixels)
    return mean, square - mean**2
