"""Shapes: captions match pictures, seeds reproduce them, splits are disjoint."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from tasks.base import SPLITS
from tasks.data.shapes import COLOURS, SHAPES, Shapes, distance

SIZES = {"train": 3200, "inner_valid": 400, "outer_valid": 400, "test": 1000}
CLEAN = Shapes(num_train=1200, num_test=240, noise=0.0)


@pytest.fixture(scope="module")
def clean():
    """Pictures without noise, float64, and their labels."""
    images, labels = CLEAN.pixels()
    return images.astype(np.float64), labels


def test_it_is_a_source_of_images_and_quickly_made():
    source = Shapes()
    begin = time.process_time()
    data = source.load()
    assert time.process_time() - begin < 10  # about .6 s where nothing else runs
    assert (source.image_shape, source.num_classes) == ((32, 32, 3), 12)
    for name, size in SIZES.items():
        images, labels = data.split(name)
        assert images.shape == (size, 32, 32, 3) and images.dtype == jnp.uint8
        counts = np.bincount(labels, minlength=12)
        assert counts.min() >= size // 12 and counts.max() <= -(-size // 12)
    assert source.load() is data
    rows = np.concatenate([np.asarray(data.split(name).images) for name in SPLITS])
    assert len(np.unique(rows.reshape(len(rows), -1), axis=0)) == sum(SIZES.values())


def test_the_same_seed_makes_the_same_pictures(clean):
    images, labels = clean
    again, _ = CLEAN.pixels()
    assert np.array_equal(again, images)
    other, _ = Shapes(num_train=1200, num_test=240, noise=0.0, seed=1).pixels()
    assert not np.array_equal(other, images)
    # A change of the recipe shows here.
    means = [images[labels == label].mean() for label in (0, 5, 11)]
    np.testing.assert_allclose(means, [122.7289, 129.0907, 134.2765], atol=0.01)


def foreground(images):
    """Mask of the pixels that are not grey: `[n, size, size]` bool."""
    return np.ptp(images, axis=-1) > 20


def test_the_colour_is_that_of_the_caption(clean):
    images, labels = clean
    inside = foreground(images)[..., None]
    colour = (images * inside).sum((1, 2)) / inside.sum((1, 2))
    # Red, green and blue are the largest channel of their own colour.
    assert np.array_equal(colour.argmax(1), labels % len(COLOURS))
    assert [caption.split()[0] for caption in CLEAN.captions[:3]] == list(COLOURS)


def test_the_shape_is_that_of_the_caption(clean):
    images, labels = clean
    masks = foreground(images)
    for label, caption in enumerate(CLEAN.captions):
        assert caption.split()[1] == SHAPES[label // len(COLOURS)]
    # How much of its bounding box a shape fills: π/4, 1, 1/2 and that of a cross of
    # arms of .68; the edge is a pixel wide.
    wants = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5, "cross": 0.564}
    for index, name in enumerate(SHAPES):
        filled = []
        for mask in masks[labels // len(COLOURS) == index]:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            filled.append(box.mean())
        assert np.mean(filled) == pytest.approx(wants[name], abs=0.06), name
    # A triangle stands on its base, and nothing else has a preferred side.
    height = np.linspace(-1, 1, 32)[None, :, None]
    for index, name in enumerate(SHAPES):
        part = masks[labels // len(COLOURS) == index]
        box = [np.flatnonzero(mask.any(1)) for mask in part]
        middle = np.array([(rows[0] + rows[-1]) / 2 for rows in box])
        centre = ((part * height).sum((1, 2)) / part.sum((1, 2)) + 1) * 31 / 2
        below = (centre - middle).mean()
        assert (below > 1.0) if name == "triangle" else (abs(below) < 0.3), name


def test_shapes_are_inside_the_picture_and_move(clean):
    images, _ = clean
    masks = foreground(images)
    centre = np.stack(
        [(masks * axis).sum((1, 2)) / masks.sum((1, 2)) for axis in np.mgrid[:32, :32]]
    )
    assert (centre.std(1) > 2).all()
    # The ground is grey, and of many levels.
    ground = images[:, 0, 0]
    assert np.ptp(ground, axis=-1).max() <= 25 and len(np.unique(ground[:, 0])) > 50


def test_distances_near_the_edge_are_those_to_the_nearest_point_of_it():
    grid = np.linspace(-1.3, 1.3, 131)
    across, down = grid[None, None, :], grid[None, :, None]
    for index, name in enumerate(SHAPES):
        found = distance(np.array([index]), across, down)[0]
        inside = found < 0
        assert 0 < inside.mean() < 0.6
        slope = np.hypot(*np.gradient(found, grid[1] - grid[0]))
        near = np.abs(found) < 0.1
        # Of length one wherever the edge is straight or round.
        assert np.median(slope[near]) == pytest.approx(1, abs=0.02), name


def test_noise_has_its_deviation_and_is_grey(clean):
    noisy, _ = Shapes(num_train=1200, num_test=240, noise=6.0).pixels()
    noise = noisy.astype(np.float64) - clean[0]
    inner = noise[:, :4, :4]  # hardly ever cut at 0 or 255
    assert inner.std() == pytest.approx(6, rel=0.03)
    assert np.abs(noise - noise[..., :1]).max(-1).mean() < 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 4}, "size = 4 must be at least 8"),
        ({"num_train": 9}, "num_train = 9 must be at least 10"),
        ({"num_test": True}, "num_test = True must be a whole number"),
        ({"noise": -1.0}, "noise = -1.0 must not be negative"),
        ({"seed": -1}, "seed = -1 must be a whole number in"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError) as info:
        Shapes(**fields)
    assert message in str(info.value)
