"""Crops and mirror images, against a loop over images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.data.augmentation import Augmentation, AugmentationDraws

draw = jax.jit(Augmentation.draw, static_argnums=(0, 2, 3))
apply = jax.jit(Augmentation.apply, static_argnums=0)


def reference(images, offsets, flips, padding):
    """Pads, crops and mirrors one image after the other."""
    results = []
    for image, (row, column), flip in zip(images, offsets, flips, strict=True):
        height, width, _ = image.shape
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        crop = padded[row : row + height, column : column + width]
        results.append(crop[:, ::-1] if flip else crop)
    return np.stack(results)


def random_draws(augmentation, *shape):
    random = np.random.default_rng(0)
    ways = 2 * augmentation.crop_padding + 1
    offsets = random.integers(0, ways, (*shape, 2), np.int32)
    return AugmentationDraws(offsets, random.random(shape) < augmentation.flip / 2)


@pytest.mark.parametrize(
    ("shape", "augmentation"),
    [
        ((8, 8, 1), Augmentation(2, True)),
        ((5, 7, 3), Augmentation(3)),
        ((5, 7, 3), Augmentation(0, True)),
        ((2, 3, 1), Augmentation(20, True)),
        ((5, 7, 3), Augmentation()),
    ],
)
def test_images_are_cropped_and_mirrored(shape, augmentation):
    images = np.random.default_rng(0).normal(size=(60, *shape)).astype(np.float32)
    draws = random_draws(augmentation, 60)
    found = apply(augmentation, images, draws)
    want = reference(images, *draws, augmentation.crop_padding)
    np.testing.assert_array_equal(found, want)
    assert augmentation.active == (not np.array_equal(found, images))


def test_every_crop_is_inside_the_padding():
    """Every offset shows only the image and zeros."""
    padding, size = 3, 4
    ways = 2 * padding + 1
    offsets = np.stack(np.meshgrid(np.arange(ways), np.arange(ways)), -1).reshape(-1, 2)
    images = np.full((len(offsets), size, size, 1), 7, np.float32)
    for flip in (False, True):
        flips = np.full(len(offsets), flip)
        draws = AugmentationDraws(jnp.asarray(offsets), jnp.asarray(flips))
        found = np.asarray(apply(Augmentation(padding, True), images, draws))
        assert set(np.unique(found)) == {0, 7}
        np.testing.assert_array_equal(found, reference(images, offsets, flips, padding))
        # The centre is the image itself; a corner keeps one pixel of its four rows.
        assert (found[len(offsets) // 2] == 7).all()
        assert (found[0] == 7).sum() == (size - padding) ** 2


def test_draws_are_uniform_and_independent():
    augmentation = Augmentation(4, True)
    offsets, flips = draw(augmentation, jax.random.key(0), 100, 90)
    assert offsets.shape == (100, 90, 2) and offsets.dtype == jnp.int32
    assert flips.shape == (100, 90) and flips.dtype == jnp.bool_
    num = flips.size
    assert abs(float(flips.mean()) - 0.5) < 4.5 * 0.5 / np.sqrt(num)
    pairs = np.asarray(offsets).reshape(-1, 2) @ [9, 1]
    assert pairs.min() == 0 and pairs.max() == 80
    counts = np.bincount(pairs, minlength=81)
    chi_square = ((counts - num / 81) ** 2).sum() * 81 / num
    assert abs(chi_square - 80) < 4.5 * np.sqrt(160)
    flipped = np.asarray(flips).ravel()
    assert abs(np.corrcoef(pairs, flipped)[0, 1]) < 4.5 / np.sqrt(num)


def test_draws_follow_from_the_key():
    augmentation = Augmentation(4, True)
    first, again, other = (
        draw(augmentation, jax.random.key(s), 3, 8) for s in (7, 7, 8)
    )
    for one, two, three in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, two)
        assert not np.array_equal(one, three)


def test_one_setting_leaves_the_draws_of_the_other():
    key = jax.random.key(3)
    both = draw(Augmentation(4, True), key, 3, 8)
    crops, flips = (
        Augmentation(4).draw(key, 3, 8),
        Augmentation(0, True).draw(key, 3, 8),
    )
    np.testing.assert_array_equal(both.offsets, crops.offsets)
    np.testing.assert_array_equal(both.flips, flips.flips)
    assert not crops.flips.any() and not flips.offsets.any()


def test_it_is_vectorized_over_members():
    augmentation = Augmentation(2, True)
    images = np.random.default_rng(1).normal(size=(4, 6, 6, 3)).astype(np.float32)
    draws = random_draws(augmentation, 3, 4)
    found = jax.jit(jax.vmap(augmentation.apply, (None, 0)))(images, draws)
    for member in range(3):
        want = reference(images, draws.offsets[member], draws.flips[member], 2)
        np.testing.assert_array_equal(found[member], want)


@pytest.mark.parametrize("padding", [-1, 129])
def test_padding_out_of_range_is_refused(padding):
    with pytest.raises(ValueError, match=f"crop_padding = {padding} must be from 0"):
        Augmentation(padding)
