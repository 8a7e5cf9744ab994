"""The standard library as text: every file whole, in one reproducible split."""

import sys
import sysconfig
from pathlib import Path

import jax
import numpy as np
import pytest

from tasks.base import SPLITS
from tasks.data import cache, standard_library
from tasks.data.standard_library import StandardLibrary, read_files, split_of
from tasks.data.tokenizers import BytePairs, load_tokens

ROOT = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def data():
    return StandardLibrary().load()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A standard library of a few files, and an empty cache."""
    files = {
        f"module_{i}.py": f"def f_{i}():\n    return {i}\n" * 20 for i in range(40)
    }
    content = {name: text.encode() for name, text in files.items()}
    monkeypatch.setattr(standard_library, "read_files", lambda: content)
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    load_tokens.cache_clear()
    yield content
    load_tokens.cache_clear()


def test_the_splits_are_the_files_byte_for_byte_and_none_is_in_two(data):
    found = []
    for split in SPLITS:
        tokens = data.split(split)
        assert isinstance(tokens, jax.Array) and tokens.dtype == np.uint8
        names = sorted(name for name in read_files() if split_of(name) == split)
        contents = np.asarray(tokens).tobytes().split(standard_library.SEPARATOR)
        # Read again from the disk: nothing was lost, and nothing decoded on the way.
        assert contents == [(ROOT / name).read_bytes() for name in names]
        found += names
    assert sorted(found) == sorted(set(found)) == list(read_files())


def test_it_is_the_library_alone_and_of_some_megabytes():
    files = read_files()
    assert {"os.py", "json/decoder.py", "asyncio/tasks.py"} <= set(files)
    assert not [
        n for n in files if {"site-packages", "test", "tests"} & {*n.split("/")}
    ]
    assert {name.partition("/")[0].removesuffix(".py") for name in files} <= {
        *sys.stdlib_module_names
    }
    assert 3e6 < sum(map(len, files.values())) < 12e6
    assert all(content.decode() is not None for content in files.values())


def test_shares_are_about_those_of_the_files():
    counts = dict.fromkeys(SPLITS, 0)
    for i in range(20000):
        counts[split_of(f"package/module_{i}.py")] += 1
    shares = np.array([counts[split] for split in SPLITS]) / 20000
    np.testing.assert_allclose(shares, [0.72, 0.09, 0.09, 0.10], atol=0.01)


@pytest.mark.parametrize(
    "name, split",
    [
        ("ast.py", "train"),
        ("re/_parser.py", "train"),
        ("abc.py", "inner_valid"),
        ("argparse.py", "inner_valid"),
        ("os.py", "outer_valid"),
    ],
)
def test_a_split_depends_on_the_name_alone(name, split):
    """Pinned: no version of Python or of this code moves a file to another split."""
    assert split_of(name) == split


def test_more_files_move_none_to_another_split(small):
    before = standard_library.read_splits()
    small["a_new_one.py"] = b"new\n"
    after = standard_library.read_splits()
    changed = [split for split in SPLITS if before[split] != after[split]]
    assert changed == [split_of("a_new_one.py")]


def test_the_content_follows_names_and_contents(small):
    seen = {StandardLibrary().content()}
    assert StandardLibrary(BytePairs()).content() in seen
    small["module_0.py"] += b"\n"
    seen.add(StandardLibrary().content())
    small["other.py"] = small.pop("module_0.py")
    seen.add(StandardLibrary().content())
    assert len(seen) == 3


def test_without_source_files_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ValueError, match=r"has no source files .* choose another"):
        read_files.__wrapped__()


def test_constructing_reads_nothing(monkeypatch):
    def refuse(*_):
        raise AssertionError("the disk was read")

    monkeypatch.setattr(standard_library, "read_files", refuse)
    assert StandardLibrary().vocab_size == 256
    source = StandardLibrary(BytePairs(300))
    assert source.vocab_size == 300
    assert hash(source) == hash(StandardLibrary(BytePairs(300)))


def test_decoding_shows_the_text(data):
    window = np.asarray(data.train[:200])
    assert StandardLibrary().decode(window) == window.tobytes().decode()


def test_byte_pairs_are_kept_and_the_library_is_not_asked_again(small, monkeypatch):
    pytest.importorskip("tokenizers")
    source = StandardLibrary(BytePairs(270))
    first = source.load()
    texts = standard_library.read_splits()
    assert first.train.dtype == np.uint16
    assert len(first.train) < len(texts["train"])
    for split in SPLITS:
        decoded = source.decode(np.asarray(first.split(split)))
        assert decoded.encode() == texts[split]
    load_tokens.cache_clear()

    def refuse(*_):
        raise AssertionError("learned again")

    with monkeypatch.context() as patch:
        patch.setattr(standard_library, "tokenize", refuse)
        again = source.load()
        same = jax.tree.map(lambda x, y: bool((x == y).all()), first, again)
        assert all(same)
        # Another tokenizer, and another text, are other entries.
        with pytest.raises(AssertionError, match="learned again"):
            StandardLibrary(BytePairs(271)).load()
        load_tokens.cache_clear()
        small["module_0.py"] += b"\n"
        with pytest.raises(AssertionError, match="learned again"):
            source.load()
