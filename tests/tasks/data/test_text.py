"""Windows of text: targets shifted by one, each split covered and none crossed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.base import SPLITS
from tasks.data import text
from tasks.data.text import TextDataset

SIZES = {"train": 200, "inner_valid": 40, "outer_valid": 41, "test": 9}
FIRST = dict(zip(SPLITS, (0, 1000, 2000, 3000), strict=True))
LENGTH = 8


@pytest.fixture(scope="module")
def data():
    """Token i of a split is `FIRST[split] + i`, so a window tells where it is from."""
    return TextDataset(
        *(jnp.arange(SIZES[s], dtype=jnp.uint16) + FIRST[s] for s in SPLITS)
    )


@pytest.fixture(scope="module")
def sample():
    """`(data, seed, split) -> (starts [500, 16], windows of the first 16)`, jitted."""

    def both(data, key, split):
        starts = text.draw_starts(data, key, split, 500, 16, LENGTH)
        return starts, text.gather(data, starts[0], split, LENGTH)

    jitted = jax.jit(both, static_argnums=2)
    return lambda data, seed, split: jitted(data, jax.random.key(seed), split)


@pytest.mark.parametrize("split", SPLITS)
def test_every_window_of_a_split_is_its_tokens_and_the_next_ones(data, split):
    tokens = np.arange(SIZES[split]) + FIRST[split]
    starts = np.arange(SIZES[split] - LENGTH)
    batch = jax.jit(text.gather, static_argnums=(2, 3))(data, starts, split, LENGTH)
    for start, inputs, targets in zip(starts, *map(np.asarray, batch), strict=True):
        np.testing.assert_array_equal(inputs, tokens[start : start + LENGTH])
        np.testing.assert_array_equal(targets, tokens[start + 1 : start + 1 + LENGTH])
    assert batch.inputs.dtype == batch.targets.dtype == jnp.int32
    assert int(batch.targets.max()) == tokens[-1]


@pytest.mark.parametrize("split", SPLITS)
def test_starts_are_uniform_and_reach_exactly_the_last_token(data, sample, split):
    starts = np.asarray(sample(data, 0, split)[0])
    windows = SIZES[split] - LENGTH
    assert starts.shape == (500, 16) and starts.dtype == np.int32
    # 8,000 draws miss the first or the last of 192 windows with probability 1e-18.
    assert starts.min() == 0 and starts.max() == windows - 1
    counts = np.bincount(starts.ravel(), minlength=windows)
    chi_square = ((counts - 8000 / windows) ** 2).sum() * windows / 8000
    assert abs(chi_square - (windows - 1)) <= 4.5 * np.sqrt(2 * (windows - 1))


@pytest.mark.parametrize("split", SPLITS)
def test_a_batch_is_of_its_split_and_a_function_of_its_key(data, sample, split):
    starts, batch = sample(data, 1, split)
    again = sample(data, 1, split)
    np.testing.assert_array_equal(batch.inputs[:, 0], FIRST[split] + starts[0])
    np.testing.assert_array_equal(batch.targets, batch.inputs + 1)
    np.testing.assert_array_equal(starts, again[0])
    np.testing.assert_array_equal(batch.inputs, again[1].inputs)
    if split != "test":  # it has one window
        assert (starts != sample(data, 2, split)[0]).any()


def test_windows_gather_over_a_leading_axis(data):
    starts = jnp.array([[0, 3], [5, 191]])
    many = jax.vmap(lambda s: text.gather(data, s, "train", LENGTH))(starts)
    one = text.gather(data, starts[1], "train", LENGTH)
    np.testing.assert_array_equal(many.inputs[1], one.inputs)
    np.testing.assert_array_equal(many.targets[1], one.targets)


@pytest.mark.parametrize(
    "split, most, want",
    [
        ("train", 3, [0, 95, 191]),
        ("train", 1, [0]),
        ("inner_valid", 256, [0, 10, 20, 31]),  # (40 - 1) // 8 = 4 have room
        ("outer_valid", 256, [0, 8, 16, 24, 32]),  # side by side, to the last token
        ("test", 256, [0]),
    ],
)
def test_even_windows_span_the_split_and_do_not_overlap(data, split, most, want):
    starts = text.even_starts(data, split, most, LENGTH)
    assert starts.tolist() == want and starts.dtype == np.int32
    assert all(b - a >= LENGTH for a, b in itertools.pairwise(starts))


def test_even_windows_never_overlap_whatever_the_sizes():
    for size, length, most in itertools.product(range(2, 60), range(1, 9), (2, 5, 99)):
        if size <= length:
            continue
        data = TextDataset(*[np.zeros(size, np.uint8)] * 4)
        starts = text.even_starts(data, "train", most, length)
        assert len(starts) == min(most, (size - 1) // length)
        assert starts[0] == 0 and starts[-1] in (0, size - 1 - length)
        assert (np.diff(starts) >= length).all()


def test_a_split_of_one_window_is_enough_and_a_shorter_one_is_refused(data):
    key = jax.random.key(0)
    assert not text.draw_starts(data, key, "test", 5, 4, 8).any()
    message = "split 'test' has 9 tokens, but a window of length = 9 .* need 10"
    with pytest.raises(ValueError, match=message):
        text.draw_starts(data, key, "test", 5, 4, 9)
    with pytest.raises(ValueError, match=message):
        text.even_starts(data, "test", 5, 9)
    # Refused while tracing, so before anything is compiled.
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: text.gather(data, jnp.zeros(4, int), "test", 9))


def test_an_unknown_split_is_refused(data):
    with pytest.raises(ValueError, match="unknown split 'valid'"):
        data.split("valid")


@pytest.mark.parametrize(
    "size, dtype",
    [(256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.int32)],
)
def test_tokens_take_the_smallest_type_that_holds_the_last_one(size, dtype):
    assert text.token_dtype(size) is dtype
    assert np.iinfo(dtype).max >= size - 1


def test_the_largest_tokens_survive_the_way_through_the_device():
    tokens = np.array([65535, 0, 65535], text.token_dtype(65536))
    data = text.to_device(dict.fromkeys(SPLITS, tokens))
    assert data.train.dtype == jnp.uint16
    batch = text.gather(data, jnp.array([0]), "train", 2)
    assert batch.inputs.tolist() == [[65535, 0]]
    assert batch.targets.tolist() == [[0, 65535]]


def test_the_device_does_not_see_the_file_of_a_memory_map(tmp_path):
    path = tmp_path / "tokens.npy"
    np.save(path, np.zeros(1 << 16, np.uint8))
    mapped = np.load(path, mmap_mode="r")
    data = text.to_device(dict.fromkeys(SPLITS, mapped))
    np.load(path, mmap_mode="r+")[:] = 1
    assert mapped.all() and not data.train.any()
