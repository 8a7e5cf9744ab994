"""Decoding: pixels against NumPy, and files that are no such image."""

import struct
import zlib

import numpy as np
import pytest

from tasks.data.decoding import decoder, shrink

Image = pytest.importorskip("PIL.Image")


def random_image(height, width, channels, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (height, width, channels), np.uint8)


def to_grey(pixels):
    """ITU-R 601-2 luma, the nearest integer, in the fixed point that Pillow uses."""
    red, green, blue = np.moveaxis(pixels.astype(np.int64), -1, 0)
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    exact = (299 * red + 587 * green + 114 * blue) / 1000
    assert np.abs(luma - exact).max() < 0.51
    return luma[..., None].astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {})]
)
def test_lossless_files_give_their_pixels(channels, kind, options, encode):
    pixels = random_image(5, 7, channels)
    if kind == "WEBP" and channels == 1:
        pixels = np.repeat(pixels[..., :1], 3, -1)  # WebP is always coloured
    decode = decoder((5, 7, pixels.shape[-1]), size=None, grey=False)
    found = decode(encode(pixels, kind, **options))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_close(channels, encode):
    pixels = np.broadcast_to(np.arange(0, 160, 5)[:, None, None], (32, 32, channels))
    pixels = pixels.astype(np.uint8)
    decode = decoder((None, None, channels), size=None, grey=False)
    found = decode(encode(pixels, "JPEG", quality=95)).astype(int)
    assert found.shape == pixels.shape
    assert np.abs(found - pixels).max() <= 4


def test_grey_is_luma(encode):
    pixels = random_image(40, 40, 3)
    pixels[0, :4] = [[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    found = decoder((40, 40, 3), size=None, grey=True)(encode(pixels))
    np.testing.assert_array_equal(found, to_grey(pixels))
    assert found[0, :4, 0].tolist() == [255, 76, 150, 29]


def test_grey_leaves_grey_as_it_is(encode):
    pixels = random_image(6, 6, 1)
    found = decoder((6, 6, 1), size=None, grey=True)(encode(pixels))
    np.testing.assert_array_equal(found, pixels)


def blocks(pixels, size):
    """Means over blocks by loops, halves rounded up."""
    rows, columns = pixels.shape[0] // size, pixels.shape[1] // size
    small = np.empty((size, size, pixels.shape[-1]), np.uint8)
    for i in range(size):
        for j in range(size):
            block = pixels[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            small[i, j] = np.floor(block.astype(float).mean((0, 1)) + 0.5)
    return small


@pytest.mark.parametrize(
    ("shape", "size"),
    [((28, 28, 1), 14), ((28, 28, 1), 7), ((32, 32, 3), 8), ((12, 6, 3), 3)],
)
@pytest.mark.parametrize("high", [2, 256])
def test_shrinking_by_whole_factors_takes_means(shape, size, high, encode):
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, high, shape, np.uint8)
        found = decoder(shape, size=size, grey=False)(encode(pixels))
        np.testing.assert_array_equal(found, blocks(pixels, size))


def test_halves_are_rounded_up():
    pixels = np.array([[0, 1], [0, 1]], np.uint8)[..., None]
    assert shrink(pixels, 1).item() == 1
    assert shrink(pixels // 2 * 0 + 255, 1).item() == 255


def bilinear(pixels, size):
    """Triangles as wide as a pixel of the output, or of the input if that is wider."""

    def weights(num):
        scale = num / size
        centres = (np.arange(size) + 0.5) * scale
        distance = np.abs(np.arange(num)[None] + 0.5 - centres[:, None])
        triangle = np.maximum(0, 1 - distance / max(scale, 1))
        return triangle / triangle.sum(1, keepdims=True)

    rows, columns = weights(pixels.shape[0]), weights(pixels.shape[1])
    return np.einsum("ih,hwc,jw->ijc", rows, pixels.astype(float), columns)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((28, 28, 1), 20), ((28, 28, 1), 40), ((9, 13, 3), 5), ((4, 6, 3), 6)],
)
def test_other_sizes_are_interpolated(shape, size, encode):
    pixels = random_image(*shape)
    found = decoder(shape, size=size, grey=False)(encode(pixels))
    assert found.shape == (size, size, shape[-1]) and found.dtype == np.uint8
    # Pillow rounds after each axis.
    assert np.abs(found - bilinear(pixels, size)).max() <= 1.01


def test_grey_comes_before_the_size(encode):
    pixels = random_image(8, 8, 3)
    found = decoder((8, 8, 3), size=2, grey=True)(encode(pixels))
    np.testing.assert_array_equal(found, blocks(to_grey(pixels), 2))


def test_the_own_size_changes_nothing(encode):
    pixels = random_image(8, 8, 3)
    found = decoder((8, 8, 3), size=8, grey=False)(encode(pixels))
    np.testing.assert_array_equal(found, pixels)


def test_other_modes_become_what_is_declared(encode):
    grey, colour = random_image(5, 5, 1), random_image(5, 5, 3)
    alpha = np.concatenate([colour, random_image(5, 5, 1, seed=1)], -1)
    as_colour = decoder((5, 5, 3), size=None, grey=False)
    np.testing.assert_array_equal(as_colour(encode(grey)), np.repeat(grey, 3, -1))
    np.testing.assert_array_equal(as_colour(encode(alpha)), colour)
    as_grey = decoder((5, 5, 1), size=None, grey=False)
    np.testing.assert_array_equal(as_grey(encode(colour)), to_grey(colour))


def test_images_of_another_shape_are_refused(encode):
    file = encode(random_image(5, 6, 3))
    decode = decoder((6, 5, 3), size=None, grey=False)
    with pytest.raises(ValueError, match="image of 5×6 pixels instead of 6×5"):
        decode(file)
    for shape in ((None, None, 3), (5, None, 3), (None, 6, 3)):
        assert decoder(shape, size=4, grey=False)(file).shape == (4, 4, 3)


@pytest.mark.parametrize("cut", [0, 1, 20, 60, 100])
def test_files_that_are_no_images_are_refused(cut, encode):
    decode = decoder((8, 8, 3), size=None, grey=False)
    with pytest.raises((OSError, ValueError, SyntaxError)):
        decode(encode(random_image(8, 8, 3))[:cut])
    with pytest.raises(OSError, match="cannot identify"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n")


def declared_png(height, width):
    """A PNG of a few bytes whose header declares these sizes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(bytes(1000)), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data
        + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((60_000, 60_000), r"Image size \(3600000000 pixels\) exceeds limit"),
        ((13_000, 12_000), "^image of 13000×12000 pixels; at most 67,108,864 are read"),
        ((8_193, 8_192), "^image of 8193×8192 pixels; at most"),
        ((8_192, 8_192), "decoded"),
    ],
)
@pytest.mark.parametrize("declared", [False, True])
def test_sizes_that_fill_memory_are_refused_before_decoding(
    monkeypatch, shape, message, declared
):
    def convert(*_):
        raise OSError("decoded")

    monkeypatch.setattr(Image.Image, "convert", convert)
    sizes = shape if declared else (None, None)
    decode = decoder((*sizes, 3), size=8, grey=False)
    with pytest.raises(Exception, match=message):
        decode(declared_png(*shape))
