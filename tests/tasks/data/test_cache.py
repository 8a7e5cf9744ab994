"""The cache returns what was made, whatever happens to its files."""

import json
import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest

from configuration import digests
from tasks.data import cache
from tasks.data.cache import cached
from tests.special_files import put

ARRAYS = {
    "images": np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1), np.uint8),
    "labels": np.arange(50, dtype=np.int32),
    "weights": np.linspace(0, 1, 7),
    "flag": np.array(True),
    "none": np.zeros((0, 3), np.float32),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """Counts how often the arrays are made."""

    def __init__(self, arrays=ARRAYS):
        self.arrays, self.calls = arrays, 0

    def __call__(self):
        self.calls += 1
        return self.arrays


def get(make, key=1, sources=()):
    return cached("things:1.0", {"key": key}, make, sources)


def same(found, want=ARRAYS):
    assert list(found) == list(want)
    for name, array in want.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def entry(folder):
    (path,) = (p for p in folder.iterdir() if p.is_dir())
    return path


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_rights_of_an_entry_are_those_that_the_umask_leaves(folder, umask):
    before = os.umask(umask)
    try:
        get(Maker())
    finally:
        os.umask(before)
    assert entry(folder).stat().st_mode & 0o777 == 0o777 & ~umask
    modes = {path.stat().st_mode & 0o777 for path in entry(folder).iterdir()}
    assert modes == {0o666 & ~umask}


@pytest.mark.parametrize("name", ["labels.npy", cache.MANIFEST])
@pytest.mark.parametrize("kind", ["FIFO", "device", "folder"])
def test_a_file_that_is_none_is_made_again_and_not_waited_for(folder, name, kind):
    get(make := Maker())
    put(entry(folder) / name, kind)
    with pytest.warns(UserWarning, match="is made again"):
        same(get(make))
    assert make.calls == 2 and (entry(folder) / name).is_file()


def test_arrays_are_made_once(folder):
    make = Maker()
    for _ in range(3):
        same(get(make))
    assert make.calls == 1
    assert entry(folder).name.startswith("things-1.0-")
    assert not any(array.flags.writeable for array in get(make).values())


def test_a_manifest_says_what_it_is(folder):
    get(Maker())
    manifest = json.loads((entry(folder) / "manifest.json").read_text())
    assert manifest["name"] == "things:1.0" and manifest["fingerprint"]["identity"] == {
        "key": 1
    }
    assert manifest["arrays"]["images"]["shape"] == [50, 4, 4, 1]
    assert manifest["arrays"]["images"]["dtype"] == "uint8"


@pytest.mark.parametrize("key", [2, "1", None, [1], {"a": (1, 2)}])
def test_another_fingerprint_is_another_entry(key):
    one, other = Maker(), Maker({"x": np.zeros(2)})
    get(one)
    same(get(other, key), other.arrays)
    same(get(one))
    same(get(other, key), other.arrays)
    assert one.calls == other.calls == 1


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/b:1", "..", "", "ü\0 \n"])
def test_any_name_stays_inside_the_cache(name, folder, tmp_path):
    make = Maker()
    for _ in range(2):
        same(cached(name, {}, make))
    assert make.calls == 1
    assert list(tmp_path.iterdir()) == [folder] and entry(folder).parent == folder


def test_the_folder_is_that_of_the_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv(cache.VARIABLE, "~/own")
    assert cache.cache_dir() == tmp_path / "own"
    monkeypatch.delenv(cache.VARIABLE)
    assert cache.cache_dir() == tmp_path / "xdg" / "metatrain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_dir() == tmp_path / ".cache" / "metatrain"


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("place", [0, 8, 40, 130, 500, -1])
def test_a_flipped_byte_is_noticed_and_the_file_named(place, folder):
    make = Maker()
    get(make)
    path = entry(folder) / "images.npy"
    flip(path, place)
    with pytest.warns(UserWarning, match=rf"{path} is damaged.* made again"):
        same(get(make))
    same(get(make))
    assert make.calls == 2


def test_a_damaged_manifest_never_gives_other_arrays(folder):
    make = Maker()
    get(make)
    path = entry(folder) / "manifest.json"
    for place in range(0, path.stat().st_size, 23):
        flip(path, place)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            same(get(make))
    assert make.calls > 15


@pytest.mark.parametrize("file", ["manifest.json", "labels.npy"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1, 2]", b"\x93NUMPY"])
def test_files_that_are_missing_or_cut_are_made_again(file, content, folder):
    make = Maker()
    get(make)
    path = entry(folder) / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{path} is (damaged|missing).* made again"):
        same(get(make))
    same(get(make))
    assert make.calls == 2


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_nothing_is_ever_unpickled(folder, tmp_path):
    make = Maker()
    get(make)
    path = entry(folder) / "labels.npy"
    evil = np.array([Payload(str(tmp_path / "evil"))], object)
    np.save(path, evil, allow_pickle=True)
    manifest = entry(folder) / "manifest.json"
    content = json.loads(manifest.read_text())
    content["arrays"]["labels"]["sha256"] = cache._digest(path)
    del content["sha256"]
    content["sha256"] = digests.of_json(content)
    manifest.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"labels\.npy is damaged"):
        same(get(make))
    assert not (tmp_path / "evil").exists()


def test_objects_are_not_kept(folder):
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        get(Maker({"x": np.array([{}], object)}))
    assert not any(path.is_dir() for path in folder.iterdir())


def test_what_make_raises_passes_through_and_nothing_is_kept(folder):
    def fail():
        raise OSError(28, "from make")

    with pytest.raises(OSError, match="from make"):
        get(fail)
    assert not any(path.is_dir() for path in folder.iterdir())
    same(get(Maker()))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(b"content")
    os.utime(path, ns=(1, 1))
    return path


def test_a_source_of_the_same_content_at_another_time_is_the_same(source, folder):
    make = Maker()
    get(make, sources=[source])
    os.utime(source, ns=(2, 2))
    same(get(make, sources=[source]))
    assert make.calls == 1


def test_of_sources_that_may_be_left_out_only_those_read_count(
    source, tmp_path, monkeypatch
):
    other = tmp_path / "other"
    other.write_bytes(b"never read")
    hashed, digest = [], digests.of_file
    monkeypatch.setattr(digests, "of_file", lambda p: hashed.append(p) or digest(p))

    def get_part(make):
        return cached("things", {}, make, [source, other], read=lambda: [source])

    make = Maker()
    same(get_part(make))
    other.write_bytes(b"another content")
    same(get_part(make))
    assert make.calls == 1 and source in hashed and other not in hashed
    source.write_bytes(b"another content")
    with pytest.warns(UserWarning, match=f"{source} has changed"):
        same(get_part(make))
    assert make.calls == 2


@pytest.mark.parametrize("content", [b"CONTENT", b"more content"])
def test_a_source_with_another_content_is_read_again(content, source):
    make = Maker()
    get(make, sources=[source])
    source.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{source} has changed since it was cached"):
        same(get(make, sources=[source]))
    same(get(make, sources=[source]))
    assert make.calls == 2


def test_a_source_that_changes_while_it_is_read_is_noticed(source):
    def replaced():
        source.write_bytes(b"newer content")
        return ARRAYS

    def removed():
        source.unlink()
        return ARRAYS

    for change in (replaced, removed):
        get(change, key=change.__name__, sources=[source])
        if not source.exists():
            source.write_bytes(b"newer content")
        make = Maker()
        with pytest.warns(UserWarning, match="has changed since it was cached"):
            get(make, key=change.__name__, sources=[source])
        assert make.calls == 1


def test_arrays_survive_a_source_that_cannot_be_read_any_more(source, folder):
    """An entry is replaced only by a complete one."""
    get(Maker(), sources=[source])
    before = sorted(path.name for path in entry(folder).iterdir())
    source.write_bytes(b"damaged")

    def refuse():
        raise ValueError("the source is damaged")

    for _ in range(2):
        with (
            pytest.warns(UserWarning, match="has changed"),
            pytest.raises(ValueError, match="the source is damaged"),
        ):
            get(refuse, sources=[source])
    assert sorted(path.name for path in entry(folder).iterdir()) == before
    source.write_bytes(b"content")
    same(get(refuse, sources=[source]))


@pytest.mark.parametrize("place", ["file/cache", "file", "/proc/none"])
def test_without_a_place_to_write_data_is_used_from_memory(
    place, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / place))
    make = Maker()
    for calls in (1, 2):
        with pytest.warns(UserWarning, match="cannot be written") as caught:
            same(get(make))
        assert len(caught) == 1 and make.calls == calls
        assert cache.VARIABLE in str(caught[0].message)


def run(code, folder, *arguments):
    """Another process with `cached` and an array."""
    # From its file: importing the package would load JAX, for seconds.
    begin = f"""
import importlib.util, os, sys, time, numpy as np
spec = importlib.util.spec_from_file_location("cache", {cache.__file__!r})
cache = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cache)
array = {{"x": np.arange(100000)}}
"""
    return subprocess.Popen(
        [sys.executable, "-c", begin + code, *map(str, arguments)],
        env={**os.environ, cache.VARIABLE: str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out, err


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
print(cache.cached('x', {}, lambda: array)['x'].sum())
"""


def test_a_full_disk_leaves_nothing_and_costs_nothing_but_time(folder):
    out, err = finish(run(FULL, folder))
    assert int(out) == 4999950000
    assert err.count("cannot be written (") == 1
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


TOGETHER = """
def make():
    print('made', flush=True)
    time.sleep(0.5)
    return array
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
print(cache.cached('x', {}, make)['x'].sum())
"""


def test_of_two_processes_at_once_one_makes_and_both_have_it(folder, tmp_path):
    processes = [run(TOGETHER, folder, tmp_path / "go") for _ in range(2)]
    (tmp_path / "go").touch()
    outs = [finish(process)[0].split() for process in processes]
    assert sorted(map(len, outs)) == [1, 2]
    assert [out[-1] for out in outs] == ["4999950000"] * 2


KILLED = """
sync = os.fsync
def hang(handle):
    sync(handle)
    print('writing', flush=True)
    time.sleep(60)
os.fsync = hang
cache.cached('things:1.0', {'key': 1}, lambda: array)
"""


def test_a_process_killed_while_it_writes_leaves_nothing_wrong(folder):
    process = run(KILLED, folder)
    assert process.stdout.readline() == "writing\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert sum(path.is_dir() for path in folder.iterdir()) == 1
    make = Maker()
    for _ in range(2):
        same(get(make))
    assert make.calls == 1
    assert sum(path.is_dir() for path in folder.iterdir()) == 1


WAITS = """
def make():
    print('making', flush=True)
    time.sleep(60)
cache.cached('things:1.0', {'key': 1}, make)
"""


def test_the_lock_of_a_killed_process_is_free(folder):
    process = run(WAITS, folder)
    assert process.stdout.readline() == "making\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    same(get(Maker()))
