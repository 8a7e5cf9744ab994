"""The three tasks: what a batch is, its loss, and what that does not depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parametrization import STANDARD
from tasks.base import SPLITS, sample
from tasks.data.images import gather
from tasks.data.shapes import Shapes
from tasks.generation import encoding
from tasks.generation.latent_diffusion import (
    LatentDiffusion,
    draw_code_noise,
    encode_latents,
)
from tasks.generation.prior import SemanticPrior, drop_labels, encode_codes
from tasks.generation.vector_quantization import VectorQuantization
from tasks.models.code_prior import CodePrior
from tasks.models.latent_denoiser import LatentDenoiser
from tasks.models.vq_autoencoder import VQAutoEncoder
from tests.tasks import families
from tests.tasks.families import KEY
from tests.tasks.generation.test_diffusion import alpha_bar

SIZES = {"width": 4, "base_width": 4, "depth": 1, "base_depth": 1}
DATA = Shapes(size=8, num_train=60, num_test=24)
A = VectorQuantization(
    VQAutoEncoder(**SIZES, latent_channels=3, num_codes=9), DATA, batch_size=5
)
B = LatentDiffusion(
    LatentDenoiser(**SIZES, code_channels=2, code_stride=4), A, batch_size=5
)
C = SemanticPrior(CodePrior(**SIZES), B, batch_size=7)


@dataclasses.dataclass
class Trained:
    """Stages A and B with random parameters, and what they make of all pictures."""

    params_a: object
    params_b: object
    latents: object
    codes: object


@pytest.fixture(scope="module")
def trained():
    before, encoding.ROWS_AT_ONCE = encoding.ROWS_AT_ONCE, 11  # divides no split
    params_a = families.randomized(A.model, A.input_shape, A.num_outputs)
    params_b = families.randomized(B.model, B.input_shape, B.num_outputs)
    made = Trained(
        *(params_a, params_b), encode_latents(A, params_a), encode_codes(B, params_b)
    )
    encoding.ROWS_AT_ONCE = before
    return made


def test_all_pictures_are_encoded_in_their_order_and_normalized(trained):
    pictures = A.load_data().images
    encode = jax.jit(
        lambda x: (A.encode(trained.params_a, x), B.model.compress(trained.params_b, x))
    )
    for split in SPLITS:
        images, labels = gather(pictures, slice(None), split)
        wants = encode(images)
        for found, want in zip(
            (trained.latents.latents, trained.codes), wants, strict=True
        ):
            np.testing.assert_allclose(found.split(split).images, want, atol=1e-5)
            assert np.array_equal(found.split(split).labels, labels)
    for found, channels in ((trained.latents.latents, 3), (trained.codes, 2)):
        assert found.train.images.shape == (48, 2, 2, channels)
        raw = np.float64(found.train.images)
        np.testing.assert_allclose(found.mean, raw.mean((0, 1, 2)), rtol=1e-5)
        np.testing.assert_allclose(found.std, raw.std((0, 1, 2)), rtol=1e-5)
        normal = np.float64(gather(found, slice(None), "train").images)
        np.testing.assert_allclose(normal.mean((0, 1, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(normal.std((0, 1, 2)), 1, atol=1e-5)
    assert trained.latents.images is pictures


def test_stage_a_starts_at_chance_and_its_loss_is_its_definition(trained):
    data = A.load_data()
    batch = A.whole(data, "train")
    pixels = np.float64(data.images.train.images)
    unit = np.float64(np.asarray(data.images.std))
    best = pixels.mean(0)
    assert A.loss_at_chance == pytest.approx(
        (((pixels - best) / unit) ** 2).mean(), rel=1e-6
    )
    np.testing.assert_allclose(batch.targets, (pixels - best) / unit, atol=1e-5)

    def compute(key, params):
        start = A.loss(A.init(key), key, batch)
        made = A.model.apply(params, batch.inputs, 3)
        return start, A.loss(params, key, batch), made

    (start, at_start), (loss, parts), made = jax.tree.map(
        np.asarray, jax.jit(compute)(KEY, trained.params_a)
    )
    assert float(at_start["reconstruction_loss"]) == pytest.approx(
        A.loss_at_chance, rel=1e-5
    )
    assert float(at_start["perplexity"]) == pytest.approx(1)
    assert A.loss_at_chance < float(start) < 1.2 * A.loss_at_chance
    error = ((np.float64(made.outputs) - np.float64(batch.targets)) ** 2).mean()
    distance = ((np.float64(made.latents) - np.float64(made.entries)) ** 2).mean()
    assert float(loss) == pytest.approx(error + 1.25 * distance, rel=1e-5)
    assert float(parts["codebook_loss"]) == pytest.approx(distance, rel=1e-5)
    used = np.unique(made.indices).size
    assert 1 < float(parts["perplexity"]) <= used + 1e-4


def test_the_entries_come_to_the_latents_and_the_latents_are_held_back(trained):
    batch = A.whole(A.load_data(), "test")

    def compute(params, commitment):
        task = dataclasses.replace(A, commitment=commitment)
        return jax.grad(lambda p: task.loss(p, KEY, batch)[0])(params)

    grads = jax.jit(lambda p: (compute(p, 0.25), compute(p, 0.75)))(trained.params_a)
    small, large = grads
    # The commitment does not reach the codebook or the decoder.
    for name in ("codebook", "decoder"):
        for one, other in zip(
            jax.tree.leaves(small[name]), jax.tree.leaves(large[name]), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    moved = np.abs(
        small["encoder"]["fold"]["kernel"] - large["encoder"]["fold"]["kernel"]
    )
    assert moved.max() > 1e-4
    # Entry by entry, the gradient is that of the mean squared distance.
    made = jax.jit(lambda p: A.model.apply(p, batch.inputs, 3))(trained.params_a)
    difference = np.float64(made.entries) - np.float64(made.latents)
    want = np.zeros((9, 3))
    np.add.at(want, np.asarray(made.indices).ravel(), difference.reshape(-1, 3))
    want *= 2 / difference.size
    np.testing.assert_allclose(small["codebook"], want, atol=1e-5)


def frequencies(name, hits, share):
    """4.5 standard errors of a frequency over all draws."""
    error = 4.5 * np.sqrt(share * (1 - share) / hits.size)
    assert hits.mean() == pytest.approx(share, abs=error), name


def test_codes_are_dropped_and_noised_as_often_as_said():
    draw = jax.jit(draw_code_noise, static_argnums=1)
    scale, spread = (np.float64(x) for x in draw(KEY, 100_000))
    dropped = scale == 0
    frequencies("dropped", dropped, 0.05)
    assert not spread[dropped].any()
    kept = spread[~dropped]
    frequencies("noised", kept > 0, 0.3)
    assert (scale[~dropped][kept == 0] == 1).all()
    # Signal and noise are those of a time uniform in [0, ½].
    np.testing.assert_allclose(
        scale[~dropped] ** 2 + kept**2, np.ones(kept.size), atol=1e-6
    )
    levels = np.sort(kept[kept > 0])
    want = np.sqrt(1 - alpha_bar((np.arange(levels.size) + 0.5) / levels.size / 2))
    # Kolmogorov and Smirnov's bound, in deviations rather than in ranks.
    rank = np.searchsorted(want, levels) / levels.size
    assert np.abs(rank - np.arange(levels.size) / levels.size).max() < 2 / np.sqrt(
        levels.size
    )


def test_classes_are_left_out_as_often_as_said():
    labels = np.arange(120_000) % 12
    found = np.asarray(jax.jit(drop_labels, static_argnums=2)(KEY, labels, 12))
    frequencies("dropped", found == 12, 0.05)
    assert np.array_equal(found[found < 12], labels[found < 12])
    for label in range(12):  # whatever the class
        frequencies(label, found[labels == label] == 12, 0.05)


def test_losses_of_diffusion_at_the_start_are_their_definition(trained):
    batches = B.whole(trained.latents, "train"), C.whole(trained.codes, "train")

    wide = C.at_width(8)

    def compute(key):
        results = []
        for task, batch in zip((B, C), batches, strict=True):
            loss, parts = task.loss(task.init(key), key, batch)
            results.append((loss, parts, *task.corrupt(key, batch)))
        return results, wide.loss(wide.init(key), key, batches[1])[0]

    results, wider = jax.tree.map(np.asarray, jax.jit(compute)(KEY))
    clean = batches[0].latents, batches[1].images
    for index, (loss, parts, inputs, noise) in enumerate(results):
        share = alpha_bar(inputs.times).reshape(-1, 1, 1, 1)
        want = np.sqrt(share) * np.float64(clean[index]) + np.sqrt(1 - share) * noise
        np.testing.assert_allclose(inputs.noisy, want, atol=1e-5)
        guess = np.float64(inputs.noisy) * (2.0, 1 / (1 + 1e-5))[index]
        errors = ((guess - noise) ** 2).mean((1, 2, 3))
        assert float(parts["unweighted_loss"]) == pytest.approx(errors.mean(), rel=1e-5)
        want = ((1 - share.ravel()) * errors).mean()
        assert float(loss) == pytest.approx(want, rel=1e-4)
    # The head is zero at every width: one loss at chance is that of all.
    assert float(wider) == pytest.approx(float(results[1][0]), rel=1e-6)


def test_the_loss_of_stage_c_knows_nothing_of_latents(trained):
    # Another stage A and another denoiser: the codes are the same bits.
    other = {
        "compressor": trained.params_b["compressor"],
        "denoiser": jax.tree.map(lambda x: x + 1.0, trained.params_b["denoiser"]),
    }
    codes = encode_codes(B, other)
    same = jax.tree.map(np.array_equal, codes, encode_codes(B, trained.params_b))
    assert all(jax.tree.leaves(same))
    shapes = {leaf.shape[1:] for leaf in jax.tree.leaves(codes)}
    assert shapes == {(), (2, 2, 2)}  # codes, labels and scalars: no latents of 3
    params = families.randomized(C.model, C.input_shape, C.num_outputs)
    loss = jax.jit(lambda data: C.loss(params, KEY, C.whole(data, "test"))[0])
    assert float(loss(codes)) == float(loss(encode_codes(B, trained.params_b)))
    changed = jax.tree.map(lambda x: x + 1.0, trained.params_b["compressor"])
    elsewhere = encode_codes(B, {"compressor": changed})
    assert float(loss(elsewhere)) != float(loss(codes))


def test_batches_are_rows_of_the_splits(trained):
    for task, data, num in ((B, trained.latents, 5), (C, trained.codes, 7)):
        run = jax.jit(
            lambda key, data, task=task: (
                task.draw(data, key, "test", 3),
                sample(task, data, key, "test"),
                task.whole(data, "test"),
            )
        )
        draws, batch, whole = run(KEY, data)
        assert draws.shape == (3, num) and int(draws.max()) < 24
        rows = np.asarray(task.draw(data, KEY, "test", 1))[0]
        for found, want in zip(batch, whole, strict=True):
            assert len(found) == num and len(want) == 24
            np.testing.assert_allclose(found, np.asarray(want)[rows], rtol=1e-6)


def test_models_are_reached_through_the_tasks():
    for task in (A, B, C):
        assert (task.width, task.depth) == (4, 1)
        assert task.at_width(8).model == dataclasses.replace(task.model, width=8)
        assert task.at_depth(3).model == dataclasses.replace(task.model, depth=3)
        assert task.with_rules(STANDARD).model.rules is STANDARD
    # The frozen stages stay what they are.
    assert C.at_width(8).stage_b == B and B.with_rules(STANDARD).stage_a == A


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        (A, {"batch_size": 0}, "batch_size = 0 must be a positive whole number"),
        (A, {"commitment": 0.0}, "commitment = 0.0 must lie in (0, 100]"),
        (A, {"model": CodePrior()}, "must be of type VQAutoEncoder"),
        (A, {"data": Shapes(size=10)}, "images of 10 x 10 pixels must have a height"),
        (B, {"stage_a": B}, "must be of type VectorQuantization"),
        (B, {"pretraining": 100}, "pretraining = 100 must be of type Pretraining"),
        (
            C,
            {"model": CodePrior(num_classes=10)},
            "num_classes = 10 of the model must be that of the data, 12",
        ),
    ],
    ids=str,
)
def test_impossible_fields_are_refused(task, fields, message):
    with pytest.raises(ValueError) as info:
        dataclasses.replace(task, **fields)
    assert message in str(info.value) and "\n" not in str(info.value)


def test_activations_are_those_of_the_loss(trained):
    params = families.randomized(C.model, C.input_shape, C.num_outputs)
    batch = C.whole(trained.codes, "test")

    @jax.jit
    def compute(key):
        found = C.activations(params, key, batch)
        inputs, noise = C.corrupt(key, batch)
        a, b = jnp.split(found["readout/out"], 2, axis=-1)
        guess = (inputs.noisy - a) / (jnp.abs(1 - b) + 1e-5)
        share = jnp.mean((guess - noise) ** 2)
        return found["stream"], share, C.loss(params, key, batch)[1]

    stream, error, parts = compute(KEY)
    assert stream.shape == (24, 2, 2, 4)
    assert float(error) == pytest.approx(float(parts["unweighted_loss"]), rel=1e-5)
