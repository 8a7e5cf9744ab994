"""The choice of tests by changed files."""

import subprocess

import pytest

from tests import changed


@pytest.fixture
def root(tmp_path):
    """A tree with a mirrored file, a folder of tests, and helpers."""
    for name in (
        "tests/conftest.py",
        "tests/lopt/trajectories.py",
        "tests/lopt/learned/test_celo.py",
        "tests/lopt/learned/test_velo_celo.py",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "tests"),
    [
        ("lopt/learned/celo.py", "tests/lopt/learned/test_celo.py"),
        ("lopt/learned/velo.py", "tests/lopt/learned"),
        ("lopt/release/weights.py", "tests/lopt"),
        (
            "tests/lopt/learned/test_velo_celo.py",
            "tests/lopt/learned/test_velo_celo.py",
        ),
        ("tests/lopt/trajectories.py", "tests/lopt"),
        ("tests/lopt/learned/test_removed.py", "tests/lopt/learned"),
        ("tests/conftest.py", None),
        ("benchmarks/families.py", None),
        ("README.md", None),
    ],
)
def test_a_change_has_the_tests_that_mirror_it(root, name, tests):
    found = changed.tests_of(name, root)
    assert (found and str(found)) == tests


def test_a_folder_stands_for_the_files_in_it(root):
    names = ["lopt/learned/celo.py", "lopt/learned/velo.py", "README.md"]
    assert changed.selected(names, root) == ["tests/lopt/learned"]


def test_committed_uncommitted_and_new_files_count(tmp_path, monkeypatch):
    def git(*arguments):
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *name, *arguments], cwd=tmp_path, check=True)

    for name in ("kept.py", "edited.py", "committed.py"):
        (tmp_path / name).write_text("1\n")
    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-qm", "first")
    git("switch", "-qc", "work")
    (tmp_path / "committed.py").write_text("2\n")
    git("commit", "-qam", "second")
    (tmp_path / "edited.py").write_text("2\n")
    (tmp_path / "new.py").write_text("2\n")
    monkeypatch.setattr("tests.changed.ROOT", tmp_path)
    assert changed.changed_files() == ["committed.py", "edited.py", "new.py"]
    with pytest.raises(SystemExit, match="none of trunk is here"):
        changed.changed_files(("trunk",))
