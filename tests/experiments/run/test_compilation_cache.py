"""Compiled programs on disk: a damaged or foreign one costs a compilation, no more."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax._src import compilation_cache as private

from experiments.run import compilation_cache
from experiments.run.compilation_cache import FOLDER, Store
from experiments.run.run_directory import METRICS, VALIDATION
from tasks.data.cache import VARIABLE
from tests.experiments.tiny_run import files_up_to

ROOT = Path(__file__).parents[3]
SETTINGS = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_enable_xla_caches",
)
HIT, MISS = (f"/jax/compilation_cache/cache_{x}" for x in ("hits", "misses"))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


def entry(store):
    (path,) = store.folder.iterdir()
    return path


def test_a_program_is_kept_for_other_processes(store, tmp_path):
    assert store.get("key") is None
    store.put("key", b"program")
    assert Store(tmp_path / "cache").get("key") == b"program"
    assert store.get("other") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"!",
        lambda content: b"",
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        lambda content: content[:-1] + bytes([content[-1] ^ 128]),
    ],
)
def test_a_damaged_entry_is_absent_and_replaced(store, damage):
    store.put("key", b"program")
    path = entry(store)
    path.write_bytes(damage(path.read_bytes()))
    assert store.get("key") is None
    store.put("key", b"program")
    assert store.get("key") == b"program"


def test_an_entry_of_another_key_machine_or_jaxlib_is_absent(
    store, tmp_path, monkeypatch
):
    store.put("key", b"program")
    content = entry(store).read_bytes()
    store._file("other").write_bytes(content)
    assert store.get("other") is None
    monkeypatch.setattr(compilation_cache.metadata, "version", lambda name: "0.0.0")
    elsewhere = Store(tmp_path / "cache")
    assert elsewhere.folder != store.folder and elsewhere.get("key") is None
    elsewhere.put("key", b"another")
    entry(elsewhere).write_bytes(content)
    assert elsewhere.get("key") is None


def test_the_longest_unused_entries_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "LIMIT", 1000)
    monkeypatch.setattr(compilation_cache, "_ROOM", 100)
    store = Store(tmp_path / "cache")
    for number in range(5):
        store.put(str(number), bytes(100))
        os.utime(store._file(str(number)), (number, number))
    assert store.get("0") == bytes(100)
    for number in range(5, 20):
        store.put(str(number), bytes(100))
        whole = sum(path.stat().st_size for path in store.folder.iterdir())
        assert whole <= 1000
        os.utime(store._file(str(number)), (number, number))
    assert store.get("0") and store.get("19") and not store.get("1")
    store.put("large", bytes(1001))
    assert store.get("large") is None and store.get("19")


def _use_much(root):
    store = Store(root)
    for number in range(100):
        key = str(number % 10)
        found = store.get(key)
        assert found in (None, key.encode() * 50)
        store.put(key, key.encode() * 50)


def test_users_of_a_folder_delete_what_others_write(tmp_path, monkeypatch):
    """Threads for processes: they share nothing but the files."""
    monkeypatch.setattr(compilation_cache, "LIMIT", 400)
    monkeypatch.setattr(compilation_cache, "_ROOM", 100)
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(_use_much, [tmp_path / "cache"] * 2)) == [None] * 2


def test_a_full_disk_ends_the_keeping_with_one_warning(store, capsys):
    with files_up_to(20):
        store.put("a", bytes(100))
        store.put("b", bytes(100))
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "compiled programs are not kept" in error
    assert store.get("a") is None and not list(store.folder.iterdir())


@pytest.fixture
def enabled(tmp_path, monkeypatch):
    """JAX as a user has it, with an empty cache folder."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(private, "get_file_cache", private.get_file_cache)
    before = {name: jax.config.values[name] for name in SETTINGS}
    jax.config.update("jax_enable_compilation_cache", True)
    yield tmp_path / "cache" / FOLDER
    for name, value in before.items():
        jax.config.update(name, value)
    private.reset_cache()


def compiled(events):
    """Traces, compiles and runs a program; returns what the cache did, and its value.

    Each call compiles, since its function is a new one.
    """
    del events[:]

    def program(x):
        return jnp.sin(x) * 3

    value = jax.jit(program)(jnp.float32(2))
    return [event for event in events if event in (HIT, MISS)][-1], value


@pytest.fixture
def events():
    found = []
    listen = lambda event, **_: found.append(event)  # noqa: E731
    jax.monitoring.register_event_listener(listen)
    yield found
    jax.monitoring.unregister_event_listener(listen)


def test_the_second_compilation_is_read(enabled, events):
    compilation_cache.use(True)
    first, value = compiled(events)
    second, again = compiled(events)
    assert (first, second) == (MISS, HIT) and value == again
    for path in enabled.glob("*/*"):
        path.write_bytes(path.read_bytes()[:-1])
    third, again = compiled(events)
    assert third == MISS and value == again
    assert compiled(events)[0] == HIT
    assert enabled.stat().st_mode & 0o777 == 0o700


def test_it_is_off_by_the_field(enabled):
    compilation_cache.use(False)
    assert jax.jit(lambda x: x * 5)(1) == 5
    assert not jax.config.values["jax_enable_compilation_cache"]
    assert not enabled.exists()


def test_a_folder_of_jaxs_own_stays(enabled, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    compilation_cache.use(True)
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "own")
    assert not enabled.exists()


def _file_in_the_way(root, monkeypatch):
    root.parent.write_text("x")
    return "METATRAIN_CACHE_DIR names another folder"


def _open_to_others(root, monkeypatch):
    root.mkdir(parents=True)
    root.chmod(0o777)
    return "others own it or may write to it"


def _another_jax(root, monkeypatch):
    monkeypatch.delattr(private, "get_file_cache")
    return "takes no store of compiled programs"


@pytest.mark.parametrize("prevent", [_file_in_the_way, _open_to_others, _another_jax])
def test_what_cannot_be_used_is_one_warning(enabled, monkeypatch, capsys, prevent):
    needle = prevent(enabled, monkeypatch)
    compilation_cache.use(True)
    error = capsys.readouterr().err
    assert error.startswith("warning: compiled programs are not kept: ")
    assert needle in error and error.count("\n") == 1
    assert jax.config.values["jax_compilation_cache_dir"] is None
    assert jax.jit(lambda x: x + 1)(1) == 2


def test_no_test_and_none_of_its_processes_uses_the_users_cache():
    assert os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "0"
    assert not jax.config.values["jax_enable_compilation_cache"]
    compilation_cache.use(True)
    assert jax.config.values["jax_compilation_cache_dir"] is None


PROGRAM = """
import sys
from pathlib import Path
from experiments import command_line
from experiments.run import compilation_cache
from experiments.train import train
from tests.experiments.tiny_run import options
config = options(Path(sys.argv[1]), compilation_cache=sys.argv[2] == "on")
compilation_cache.use(config.run.compilation_cache)
command_line.run(lambda: train(config, "tiny") and None)
"""


@pytest.mark.slow
def test_a_run_releases_the_same_bytes_with_and_without(tmp_path):
    """Cold, warm and damaged."""
    cache = tmp_path / "cache"
    env = os.environ | {VARIABLE: str(cache), "JAX_ENABLE_COMPILATION_CACHE": "1"}

    def run(name, wanted):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / name), wanted]
        subprocess.run(command, check=True, cwd=ROOT, env=env)
        names = [METRICS, VALIDATION, "artifact/SHA256SUMS"]
        return [(tmp_path / name / file).read_bytes() for file in names]

    without = run("without", "off")
    assert not (cache / FOLDER).exists()
    assert run("cold", "on") == without
    entries = list((cache / FOLDER).glob("*/*"))
    before = {path: path.stat().st_mtime_ns for path in entries}
    assert len(entries) > 10 and run("warm", "on") == without
    assert set((cache / FOLDER).glob("*/*")) == set(entries)
    # Reading an entry marks it as used.
    assert all(path.stat().st_mtime_ns > before[path] for path in entries)
    for path in entries:
        path.write_bytes(path.read_bytes()[:-9])
    assert run("damaged", "on") == without


def test_what_is_not_an_entry_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "LIMIT", 1000)
    monkeypatch.setattr(compilation_cache, "_ROOM", 100)
    store = Store(tmp_path / "cache")
    mine = tmp_path / "cache" / "mine" / "thesis"
    mine.parent.mkdir()
    mine.write_bytes(bytes(2000))
    os.utime(mine, (0, 0))
    store._file("taken").mkdir()
    for key in ("taken", "other"):
        store.put(key, bytes(100))
    assert mine.exists()
    assert store.get("taken") is None and store.get("other") == bytes(100)


def test_a_folder_of_a_machine_that_others_may_write_to_is_not_used(store, tmp_path):
    store.folder.chmod(0o777)
    with pytest.raises(PermissionError, match="others own it or may write to it"):
        Store(tmp_path / "cache")
