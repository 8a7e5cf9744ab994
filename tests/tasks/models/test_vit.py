"""The vision transformer: patches, positions, resolutions."""

import dataclasses

import jax
import numpy as np
import pytest

from tasks import ImageClassification
from tasks.models.layers import space_to_depth
from tasks.models.vit import ViT
from tests.tasks.models.transformers import randomized

VIT = ViT(*(8, 1, 4), base_width=8, base_head_dim=4, base_depth=1, mlp_ratio=2, patch=2)


@pytest.mark.parametrize("pooling", ["class_token", "mean"])
def test_patches_may_be_permuted_together_with_their_places(pooling):
    model = dataclasses.replace(VIT, pooling=pooling)
    params = randomized(model)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 4, 6, 3)).astype(np.float32)
    order = np.array([4, 2, 0, 5, 1, 3])
    blocks = images.reshape(2, 2, 2, 3, 2, 3).swapaxes(2, 3).reshape(2, 6, 2, 2, 3)
    moved = blocks[:, order].reshape(2, 2, 3, 2, 2, 3).swapaxes(2, 3)
    moved = moved.reshape(images.shape)

    places = params["positions"]["table"]
    own = places[:1] if pooling == "class_token" else places[:0]
    with_them = np.concatenate([own, places[len(own) :][order]])
    assert len(places) == 6 + len(own)

    @jax.jit
    def apply(table, images):
        return model.apply({**params, "positions": {"table": table}}, images, 10)

    want = apply(places, images)
    np.testing.assert_allclose(apply(with_them, moved), want, rtol=1e-5, atol=1e-5)
    assert np.abs(apply(places, moved) - want).max() > 1e-2
    assert np.abs(apply(with_them, images) - want).max() > 1e-2


def test_a_patch_is_a_square_of_the_image():
    images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = np.asarray(space_to_depth(images, 2)).reshape(2, 6, 2, 2, 3)
    for row, column in np.ndindex(2, 3):
        square = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert np.array_equal(patches[:, 3 * row + column], square)


@pytest.mark.parametrize("pooling", ["class_token", "mean"])
@pytest.mark.parametrize(
    ("shape", "patch", "patches"),
    [
        ((8, 8, 1), 2, 16),
        ((8, 8, 1), 4, 4),
        ((28, 28, 1), 4, 49),
        ((28, 28, 1), 7, 16),
        ((32, 32, 3), 4, 64),
        ((64, 64, 3), 8, 64),
        ((32, 64, 3), 16, 8),
        ((8, 8, 3), 8, 1),
    ],
    ids=str,
)
def test_any_resolution_that_the_patch_divides(shape, patch, patches, pooling):
    model = dataclasses.replace(VIT, patch=patch, pooling=pooling)
    specs = model.specs(shape, 10)
    tokens = patches + (pooling == "class_token")
    assert specs["positions"]["table"].shape == (tokens, 8)
    assert specs["patches"]["kernel"].shape == (patch, patch, shape[-1], 8)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), shape, 10))
    images = jax.ShapeDtypeStruct((5, *shape), np.float32)
    seen = jax.eval_shape(lambda p, x: model.activations(p, x, 10), params, images)
    assert seen["residual/out"].shape == (5, tokens, 8)
    assert seen["readout/out"].shape == (5, 10)


def test_a_patch_that_does_not_divide_the_image_is_refused():
    wide = "patch = 3 must divide the resolution 6 x 8 of the images"
    with pytest.raises(ValueError, match=wide):
        dataclasses.replace(VIT, patch=3).specs((6, 8, 1), 10)
    with pytest.raises(ValueError, match=r"patch = 5 .* resolution 8 x 8"):
        ImageClassification(model=dataclasses.replace(VIT, patch=5))
    with pytest.raises(ValueError, match=r"\(64,\) must be images \[height"):
        VIT.specs((64,), 10)
