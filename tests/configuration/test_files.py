"""Files are opened only if they are files, and appear as a whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configuration import files as integrity
from configuration.files import (
    SUMS,
    open_file,
    own_file,
    publish,
    read_text,
    verify_sums,
    write_text,
)
from tests.special_files import SPECIAL, TOO_LARGE, put


def writes(text):
    return lambda folder: (folder / "file").write_text(text)


def test_of_two_writers_one_wins_and_the_other_is_told(tmp_path):
    """A second writer begins and ends while the first is writing."""
    folder = tmp_path / "artifact"

    def slow(temporary):
        publish(folder, writes("quick"))
        writes("slow")(temporary)

    with pytest.raises(FileExistsError, match="artifact exists already"):
        publish(folder, slow)
    assert (folder / "file").read_text() == "quick"
    verify_sums(folder, ("file",))
    assert os.listdir(tmp_path) == ["artifact"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_only_what_was_published_is_replaced(tmp_path, kind):
    target = tmp_path / "mine"
    (tmp_path / "elsewhere").mkdir()
    if kind == "folder":
        target.mkdir()
        (target / "thesis.tex").write_text("years")
    elif kind == "file":
        target.write_text("years")
    else:
        publish(tmp_path / "other", writes("years"))
        target.symlink_to(tmp_path / "other")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match=f"mine is no folder with {SUMS}"):
        publish(target, writes("new"), replace=True)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_what_was_published_is_replaced_and_kept_if_that_fails(tmp_path, monkeypatch):
    folder = tmp_path / "artifact"
    publish(folder, writes("old"))
    publish(folder, writes("new"), replace=True)
    assert (folder / "file").read_text() == "new"
    monkeypatch.setattr(integrity, "write_sums", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        publish(folder, writes("newer"), replace=True)
    assert (folder / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["artifact"]


@pytest.mark.parametrize("kind", [*SPECIAL, *TOO_LARGE])
def test_what_is_no_file_of_a_sensible_size_is_never_read(tmp_path, kind):
    path = tmp_path / "config.json"
    put(path, kind)
    with pytest.raises(OSError) as error:
        read_text(path)
    assert kind in error.value.strerror and error.value.filename == str(path)


def test_a_link_to_a_file_is_read_but_not_written_through(tmp_path):
    (tmp_path / "blob").write_text("μ", encoding="utf-8")
    link = tmp_path / "config.json"
    link.symlink_to(tmp_path / "blob")
    assert read_text(link) == "μ"
    with pytest.raises(OSError, match="is a link, not a file"):
        open_file(link, follow=False)
    with pytest.raises(OSError, match="is a link, not a file"):
        own_file(link, os.O_WRONLY | os.O_TRUNC)
    write_text(link, "new")
    assert (tmp_path / "blob").read_text(encoding="utf-8") == "μ"


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "folder"])
def test_nothing_else_is_written_into(tmp_path, kind):
    path = tmp_path / "log"
    put(path, kind)
    with pytest.raises(OSError, match="not a file"):
        own_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


@pytest.mark.parametrize("name", ["file", SUMS])
@pytest.mark.parametrize("kind", ["FIFO", "device", "folder"])
def test_checksums_of_special_files_are_not_waited_for(tmp_path, name, kind):
    folder = tmp_path / "artifact"
    publish(folder, writes("text"))
    put(folder / name, kind)
    with pytest.raises(OSError, match=f"is a {kind}, not a file"):
        verify_sums(folder, ("file",))


def test_a_listed_file_larger_than_its_limit_is_not_digested(tmp_path):
    publish(tmp_path / "artifact", writes("text"))
    put(tmp_path / "artifact" / "file", "3,000,000,000 bytes")
    with pytest.raises(OSError, match="3,000,000,000 bytes, at most 10 are read"):
        verify_sums(tmp_path / "artifact", ("file",), lambda name: 10)


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line + line,
        lambda line: "\ufeff" + line,
        lambda line: line.replace("file", "fi\0le"),
        lambda line: line.replace("\n", "\r\n"),
        lambda line: line.replace("  ", " "),
        lambda line: line + "a comment\n",
    ],
    ids=["twice", "BOM", "NUL", "CR", "one blank", "foreign"],
)
def test_a_line_that_is_no_checksum_is_refused(tmp_path, change):
    publish(tmp_path / "artifact", writes("text"))
    sums = tmp_path / "artifact" / SUMS
    sums.write_bytes(change(sums.read_text(encoding="utf-8")).encode())
    with pytest.raises(ValueError, match=SUMS):
        verify_sums(tmp_path / "artifact", ("file",))


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_rights_are_those_that_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "one", "text")
        publish(tmp_path / "artifact", writes("text"))
        inner = tmp_path / "artifact" / "file"
        modes = [p.stat().st_mode & 0o777 for p in (tmp_path / "one", inner)]
        assert modes == [0o666 & ~umask] * 2
        assert (tmp_path / "artifact").stat().st_mode & 0o777 == 0o777 & ~umask
    finally:
        os.umask(before)


def test_text_is_utf_8_where_the_locale_is_ascii(tmp_path):
    code = """
import sys
from configuration.files import read_text, write_text
write_text(sys.argv[1], "\\u03bc" + read_text(sys.argv[1]))
"""
    path = tmp_path / "rows.jsonl"
    path.write_text("√", encoding="utf-8")
    ascii_only = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, str(path)]
    root = Path(__file__).parents[2]
    subprocess.run(command, check=True, cwd=root, env=os.environ | ascii_only)
    assert path.read_text(encoding="utf-8") == "μ√"
