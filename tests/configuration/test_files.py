"""Folders appear as a whole, even with concurrent writers."""

import os

import pytest

from configuration import files as integrity
from configuration.files import SUMS, publish, verify_sums


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
