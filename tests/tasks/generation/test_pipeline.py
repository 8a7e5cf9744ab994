"""From a class to a picture: guidance, the order of the stages, their scales."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.generation import diffusion
from tasks.generation.latent_diffusion import LatentDataset
from tasks.generation.pipeline import Sampling, Stages, decode
from tests.tasks import families
from tests.tasks.families import KEY
from tests.tasks.generation.test_stages import A, B, C

LABELS = np.array([0, 3, 11, 5])
OTHERS = np.array([7, 3, 1, 2])


def scaled(channels, shift, scale):
    """A dataset of which only the scale of its channels counts."""
    pictures = A.load_data().images
    return pictures._replace(
        mean=tuple(jnp.float32(shift + i) for i in range(channels)),
        std=tuple(jnp.float32(scale + i) for i in range(channels)),
    )


@pytest.fixture(scope="module")
def stages():
    """Three stages away from the start."""
    pictures = A.load_data()
    return Stages(
        *(
            families.randomized(task.model, task.input_shape, task.num_outputs)
            for task in (A, B, C)
        ),
        pictures,
        LatentDataset(pictures.images, scaled(3, 0.5, 2.0)),
        scaled(2, -1.0, 0.5),
    )


def test_guidance_goes_from_no_class_past_the_class(stages):
    params = stages.params_c
    start = jax.random.split(KEY)[0]

    @jax.jit
    def compute(params):
        def codes(weight, labels):
            sampling = Sampling(code_steps=2, code_guidance=weight, sampler="ddim")
            return sampling.codes(C, params, labels, KEY)

        def by_hand(labels, weight):
            x = jax.random.normal(start, (4, 2, 2, 2))
            for now, then in ((1.0, 0.5), (0.5, None)):
                times = jnp.full(4, now)
                given = C.model.denoise(params, x, times, labels)
                none = C.model.denoise(params, x, times, jnp.full(4, 12))
                guess = none + weight * (given - none)
                clean = diffusion.undiffuse(x, guess, times)
                x = clean
                if then is not None:
                    x = diffusion.diffuse(clean, guess, jnp.full(4, then))
            return x

        labels, others = jnp.asarray(LABELS), jnp.asarray(OTHERS)
        found = codes(0.0, labels), codes(0.0, others), codes(3.0, labels)
        return *found, by_hand(labels, 3.0), codes(3.0, others)

    none, none_too, found, want, other = map(np.asarray, compute(params))
    assert np.array_equal(none, none_too)  # weight 0: the class does not matter
    # The first step divides by √ᾱ = .01, which makes large numbers of small params.
    np.testing.assert_allclose(found, want, rtol=2e-3, atol=2e-3 * np.abs(want).max())
    same = [np.allclose(a, b) for a, b in zip(found, other, strict=True)]
    assert same == [False, True, False, False]  # the second has the same class


@pytest.mark.slow
def test_a_picture_comes_of_all_three_stages_in_their_own_scales(stages):
    sampling = Sampling(code_steps=2, latent_steps=3)

    def compute(stages):
        for_codes, for_latents = jax.random.split(KEY)
        codes = sampling.codes(C, stages.params_c, jnp.asarray(LABELS), for_codes)
        codes = codes * jnp.asarray([[[[0.5, 1.5]]]]) + jnp.asarray([[[[-1.0, 0.0]]]])
        latents = sampling.latents(C, stages.params_b, codes, for_latents)
        raw = latents * jnp.asarray([[[[2.0, 3, 4]]]])
        raw = raw + jnp.asarray([[[[0.5, 1.5, 2.5]]]])
        whole = sampling.generate(C, stages, jnp.asarray(LABELS), KEY)
        return whole, decode(C, stages, raw)

    with jax.numpy_rank_promotion("allow"):
        whole, parts = map(np.asarray, jax.jit(compute)(stages))
    assert whole.shape == (4, 8, 8, 3) and whole.min() >= 0 and whole.max() <= 255
    np.testing.assert_allclose(whole, parts, atol=0.5)
    assert len({picture.tobytes() for picture in whole}) == 4
    free = dataclasses.replace(sampling, latent_guidance=0.0)
    codes = np.random.default_rng(1).normal(size=(2, 4, 2, 2, 2)).astype(np.float32)
    run = jax.jit(lambda codes: free.latents(C, stages.params_b, codes, KEY))
    assert np.array_equal(run(codes[0]), run(codes[1]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"code_steps": 0}, "code_steps = 0 must be a positive whole number"),
        ({"latent_guidance": -1.0}, "latent_guidance = -1.0 must not be negative"),
        ({"sampler": "euler"}, "sampler = 'euler' must be one of ddim, ddpm"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError) as info:
        Sampling(**fields)
    assert message in str(info.value)
