"""Digests of files are those of their content, remembered only where that is sure."""

import hashlib
import mmap
import os

import pytest

from configuration import digests, folders


class Forgetful(dict):
    """Keeps nothing, as another process."""

    def __setitem__(self, key, value):
        pass


@pytest.fixture
def remembered(tmp_path, monkeypatch):
    """A function that lists what is remembered; every file counts as settled."""
    monkeypatch.setenv(folders.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED", -1)
    monkeypatch.setattr(digests, "_seen", Forgetful())
    monkeypatch.setattr(digests, "_file_system", lambda device: "ext4")
    return lambda: [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"one")
    return path


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_read_once_until_it_changes(file, remembered, monkeypatch):
    assert digests.of_file(file) == sha256(b"one")
    assert len(remembered()) == 1
    (entry,) = remembered()
    with monkeypatch.context() as patched:
        patched.setattr(digests, "_hashed", lambda file: pytest.fail("read again"))
        assert digests.of_file(file) == sha256(b"one")
        entry.unlink()
        with pytest.raises(pytest.fail.Exception):
            digests.of_file(file)
    times = file.stat()
    file.write_bytes(b"two")  # of the same size
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digests.of_file(file) == sha256(b"two")
    other = file.with_name("other")
    other.write_bytes(b"six")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(file)
    assert digests.of_file(file) == sha256(b"six")


@pytest.mark.parametrize("content", [b"", b"0" * 64, b"\xff", b"0" * 64 + b" 1\n"])
def test_a_damaged_memory_is_not_believed(content, file, remembered):
    digests.of_file(file)
    (entry,) = remembered()
    entry.write_bytes(content)
    assert digests.of_file(file) == sha256(b"one")


def test_a_memory_of_another_file_is_not_believed(file, remembered):
    digests.of_file(file)
    (one,) = remembered()
    file.write_bytes(b"three")
    digests.of_file(file)
    (two,) = set(remembered()) - {one}
    two.write_bytes(one.read_bytes())
    assert digests.of_file(file) == sha256(b"three")


def test_a_process_reads_a_file_once_on_every_file_system(
    file, remembered, monkeypatch
):
    monkeypatch.setattr(digests, "_file_system", lambda device: "nfs4")
    monkeypatch.setattr(digests, "_seen", {})
    assert digests.of_file(file) == sha256(b"one")
    with monkeypatch.context() as patched:
        patched.setattr(digests, "_hashed", lambda file: pytest.fail("read again"))
        assert digests.of_file(file) == sha256(b"one")
    file.write_bytes(b"another")
    assert digests.of_file(file) == sha256(b"another")
    assert remembered() == []


def test_writing_to_a_memory_map_is_noticed(tmp_path, monkeypatch):
    """Pages that are dirty already change no time when they are written again."""
    monkeypatch.setenv(folders.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED", -1)
    if digests._file_system(tmp_path.stat().st_dev) not in digests._RELIABLE:
        pytest.skip("the temporary folder is on no file system that keeps such times")
    path = tmp_path / "data"
    path.write_bytes(b"0" * 8192)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
        pages[0:3] = b"one"
        before = digests.of_file(path)
        pages[0:3] = b"two"
        assert digests.of_file(path) != before
        assert digests.of_file(path) == sha256(path.read_bytes())


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "9p", None])
def test_where_ctime_is_not_sure_nothing_is_remembered(
    kind, file, remembered, monkeypatch
):
    monkeypatch.setattr(digests, "_file_system", lambda device: kind)
    assert digests.of_file(file) == sha256(b"one")
    assert remembered() == []


def test_a_file_that_changed_just_now_is_not_remembered(file, remembered, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED", 10**12)
    assert digests.of_file(file) == sha256(b"one")
    assert remembered() == []


def test_only_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device", "."):
        with pytest.raises(OSError, match=r"FIFO|device|folder") as error:
            digests.of_file(tmp_path / name)
        assert error.value.filename == str(tmp_path / name)
