"""The three tasks: what is dropped, what is frozen, what the losses are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.data.images import gather
from tasks.data.shapes import Shapes
from tasks.generation import latent_diffusion, pretraining, prior
from tasks.generation.latent_diffusion import LatentDiffusion, draw_code_noise
from tasks.generation.pretraining import Pretraining
from tasks.generation.prior import SemanticPrior, drop_labels, encode_codes
from tasks.generation.vector_quantization import VectorQuantization
from tasks.models.code_prior import CodePrior
from tasks.models.latent_denoiser import LatentDenoiser
from tasks.models.vq_autoencoder import VQAutoEncoder
from tests.tasks.families import QUICK_TO_COMPILE

KEY = jax.random.key(4)
TINY = {"width": 8, "base_width": 8, "depth": 1, "base_depth": 1}
DATA = Shapes(num_train=48, num_test=12)
RECIPE = Pretraining(num_steps=2)
STAGE_A = VectorQuantization(VQAutoEncoder(num_codes=16, **TINY), DATA, 4)
STAGE_B = LatentDiffusion(LatentDenoiser(**TINY), STAGE_A, RECIPE, 4)
STAGE_C = SemanticPrior(CodePrior(**TINY), STAGE_B, RECIPE, 6)


def jit(function):
    return jax.jit(function, compiler_options=QUICK_TO_COMPILE)


@pytest.fixture(scope="module")
def compressor():
    """Parameters of stage B, at their start."""
    return jit(STAGE_B.init)(KEY)


@pytest.fixture(scope="module")
def codes(compressor):
    return encode_codes(STAGE_B, compressor)


def within(share, expected, num):
    """Whether a share of `num` draws is within 4 standard errors."""
    return abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / num)


def test_codes_are_dropped_and_noised_as_often_as_in_the_paper():
    num = 40000
    scale, spread = map(np.asarray, draw_code_noise(KEY, num))
    dropped = scale == 0
    assert within(dropped.mean(), 0.05, num)
    assert not spread[dropped].any()
    noised = (spread > 0)[~dropped]
    assert within(noised.mean(), 0.3, len(noised))
    np.testing.assert_allclose((scale**2 + spread**2)[~dropped], 1.0, rtol=1e-5)
    np.testing.assert_array_equal(scale[~dropped][~noised], 1.0)
    # Times up to one half: the signal's share is at least that of t = .5.
    assert 0.48 < (scale[~dropped][noised] ** 2).min() < 0.51


def test_labels_are_left_out_as_often_as_in_the_paper():
    num = 40000
    labels = jnp.arange(num) % 12
    got = np.asarray(drop_labels(KEY, labels, 12))
    out = got == 12
    assert within(out.mean(), 0.05, num)
    np.testing.assert_array_equal(got[~out], np.asarray(labels)[~out])


def test_codes_know_nothing_of_the_latents(compressor, codes, monkeypatch):
    # Stage C sees the compressor's codes alone: whatever the latents of the frozen
    # stage B are, its data and so its loss are the same bits.
    def no_latents(*args):
        raise AssertionError("the latents were asked for")

    monkeypatch.setattr(latent_diffusion, "_load", no_latents)
    again = encode_codes(STAGE_B, compressor)
    params = jit(STAGE_C.init)(KEY)
    loss = jit(
        lambda data: STAGE_C.loss(
            params, KEY, STAGE_C.batch(data, jnp.arange(6), "train")
        )[0]
    )
    assert float(loss(codes)) == float(loss(again))
    moved = again._replace(train=again.train._replace(images=again.train.images + 1.0))
    assert float(loss(moved)) != float(loss(codes))


def test_the_prior_starts_at_the_noisy_code_itself(codes):
    batch = gather(codes, jnp.arange(6), "train")
    inputs, noise = STAGE_C.corrupt(KEY, batch)
    params = jit(STAGE_C.init)(KEY)
    guess = jit(lambda p, x: STAGE_C.model.apply(p, x, STAGE_C.num_outputs))(
        params, inputs
    )
    np.testing.assert_allclose(guess, inputs.noisy / (1 + 1e-5), rtol=1e-6)
    exact = np.asarray(inputs.noisy, np.float64) / (1 + 1e-5) - np.asarray(noise)
    angle = (np.asarray(inputs.times, np.float64) + 0.008) / 1.008 * np.pi / 2
    share = np.cos(angle) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    weight = 1 - np.clip(share, 1e-4, 0.9999)
    want = (weight * (exact**2).mean((1, 2, 3))).mean()
    loss, aux = jit(STAGE_C.loss)(params, KEY, batch)
    assert float(loss) == pytest.approx(want, rel=1e-4)
    assert float(aux["unweighted_loss"]) == pytest.approx((exact**2).mean(), rel=1e-4)


@pytest.mark.slow
def test_the_loss_of_stage_a_has_three_parts():
    data = STAGE_A.load_data()
    draw = jax.tree.map(lambda x: x[0], STAGE_A.draw(data, KEY, "train", 1))
    batch = STAGE_A.batch(data, draw, "train")
    params = jit(STAGE_A.init)(KEY)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), params
    )
    made = jit(lambda p: STAGE_A.model.apply(p, batch.inputs, 3))(params)
    outputs, latents, entries, targets = (
        np.asarray(x, np.float64)
        for x in (made.outputs, made.latents, made.entries, batch.targets)
    )
    error, distance = (
        np.mean((outputs - targets) ** 2),
        np.mean((latents - entries) ** 2),
    )
    loss, aux = jit(STAGE_A.loss)(params, KEY, batch)
    assert float(loss) == pytest.approx(error + 1.25 * distance, rel=1e-5)
    assert float(aux["codebook_loss"]) == pytest.approx(distance, rel=1e-5)
    # Entries are moved by the second part alone, latents by a quarter of it and the
    # first.
    doubled = dataclasses.replace(STAGE_A, commitment=0.5)
    grads, more = (
        jit(jax.grad(lambda p, t=t: t.loss(p, KEY, batch)[0]))(params)
        for t in (STAGE_A, doubled)
    )
    np.testing.assert_array_equal(grads["codebook"], more["codebook"])
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(
            *map(jax.tree.leaves, (grads["encoder"], more["encoder"])), strict=True
        )
    )


@pytest.mark.slow
def test_a_frozen_stage_is_trained_once_and_kept(monkeypatch):
    first = jax.device_get(RECIPE.train(STAGE_A))
    pretraining._train.cache_clear()  # as if the process were new

    def again(*args):
        raise AssertionError("it was trained again")

    monkeypatch.setattr(pretraining, "_run", again)
    second = jax.device_get(RECIPE.train(STAGE_A))
    same = jax.tree.map(np.array_equal, first, second)
    assert all(jax.tree.leaves(same))
    for other in (Pretraining(num_steps=3), Pretraining(num_steps=2, seed=1)):
        with pytest.raises(AssertionError, match="trained again"):
            other.train(STAGE_A)


@pytest.mark.slow
def test_a_training_that_diverges_is_refused():
    with pytest.raises(ValueError, match="ended in numbers that are not finite"):
        Pretraining(num_steps=8, learning_rate=1e30).train(STAGE_A)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pretraining(num_steps=0), "num_steps = 0"),
        (lambda: Pretraining(learning_rate=float("nan")), "learning_rate = nan"),
        (lambda: dataclasses.replace(STAGE_A, commitment=-1.0), "commitment = -1.0"),
        (lambda: dataclasses.replace(STAGE_B, stage_a=STAGE_C), "stage_a"),
        (
            lambda: dataclasses.replace(
                STAGE_C, model=CodePrior(num_classes=3, **TINY)
            ),
            "num_classes = 3",
        ),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_share_that_is_dropped_is_that_of_both_stages():
    assert latent_diffusion.DROPPED == prior.DROPPED == 0.05
