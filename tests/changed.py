"""Prints the test files of the modules that differ from the branch `main`.

`make test-fast` runs them. The tests of a module are the file that mirrors it
(tests/lopt/learned/test_celo.py for lopt/learned/celo.py) or else the folder that
mirrors its folder. A changed test file stands for itself, and a changed helper of tests
for its folder.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def changed_files(bases: tuple[str, ...] = ("main", "origin/main")) -> list[str]:
    """Returns files that differ from where HEAD left the first base, or are new.

    Raises:
        SystemExit: if there is none of the bases.
    """
    run = ["git", "-C", str(ROOT)]
    for base in bases:
        found = subprocess.run(
            [*run, "merge-base", "HEAD", base], capture_output=True, text=True
        )
        if found.returncode == 0:
            fork = found.stdout.strip()
            break
    else:
        sys.exit(f"error: none of {', '.join(bases)} is here: fetch one")
    commands = (
        [*run, "diff", "--name-only", fork],
        [*run, "ls-files", "--others", "--exclude-standard"],
    )
    texts = [subprocess.check_output(command, text=True) for command in commands]
    return sorted({name for text in texts for name in text.splitlines()})


def tests_of(name: str, root: Path = ROOT) -> Path | None:
    """Returns the test file or folder for one changed file, relative to `root`."""
    path = Path(name)
    if path.suffix != ".py":
        return None
    if path.parts[0] == "tests":
        exact = path if path.name.startswith("test_") else None
        folder = path.parent
    else:
        folder = Path("tests", *path.parent.parts)
        exact = folder / f"test_{path.name}"
    if exact is not None and (root / exact).is_file():
        return exact
    while not (root / folder).is_dir():
        folder = folder.parent
    # A file at the top, or a helper of all tests: nothing short of all would do.
    return folder if folder != Path("tests") else None


def selected(names: list[str], root: Path = ROOT) -> list[str]:
    """Returns test files and folders for changed files, none inside another."""
    found = {tests for name in names if (tests := tests_of(name, root)) is not None}
    return sorted(str(p) for p in found if not found & set(p.parents))


if __name__ == "__main__":
    print(" ".join(selected(changed_files())))
