"""Whenever a save is killed, the newest whole checkpoint is found, with the same bits.

The processes that are killed are those of `killed_saves.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configuration.files import recover, verify_sums
from metatrain.checkpoint import Checkpoints
from tests.metatrain.killed_saves import KEEP, MOMENTS, state


def make(root, *cases):
    command = [sys.executable, "-m", "tests.metatrain.killed_saves", root, *cases]
    subprocess.run(command, check=True, timeout=150, cwd=Path(__file__).parents[2])


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """`killed(CASE, STRIDE)`: folders in which a save was killed, and one without."""
    root = tmp_path_factory.mktemp("some")
    some = ("again", "8"), ("artifact", "1")
    make(root, *some[0], *some[1])  # by one process

    def folders(case, stride):
        folder = root / case
        if (case, stride) not in some:
            folder = tmp_path_factory.mktemp("all") / case
            make(folder.parent, case, stride)
        paths = [p for p in folder.iterdir() if p.name not in ("all", "start")]
        return paths, folder / "all"

    return folders


def holds(restored, marks):
    """Whether the state is that of one of these saves, to the bit."""
    return any(
        all(
            a.dtype == b.dtype and np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(restored), jax.tree.leaves(state(mark)), strict=True
            )
        )
        for mark in marks
    )


SAVED = {"next": (3, 3), "again": (2, 22), "damaged": (2, 22)}
"""By case: the step that is saved, and the mark of the new state."""
BEFORE = {"next": (2, 2), "again": (2, 2), "damaged": (1, 1)}
"""The newest whole checkpoint before."""


def check(folder, case):
    """The checkpoints that a reader, the next process and its next save find."""
    new, old = SAVED[case], BEFORE[case]
    checkpoints = Checkpoints(folder, KEEP)
    step, restored, _, _ = checkpoints.restore(state(0))
    # Steps that are the same twice may hold either state, but one of them whole.
    assert (step, True) in {(step, holds(restored, [m])) for step, m in (new, old)}
    checkpoints.recover()
    again = checkpoints.restore(state(0))
    assert again.step == step and holds(again.state, [new[1], old[1]])
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
    checkpoints.save(*new[:1], state(new[1]))
    assert holds(checkpoints.restore(state(0)).state, [new[1]])
    wanted = [2, 3] if case == "next" else [1, 2]
    assert sorted(os.listdir(folder)) == [f"step_{s:08d}" for s in wanted]


@pytest.mark.parametrize(
    ("case", "stride", "least"),
    [
        ("again", "8", 5),
        *(
            pytest.param(case, stride, least, marks=pytest.mark.slow)
            for case, stride, least in (
                ("next", "1", 45),
                ("again", "1", 45),
                ("damaged", "3", 15),
                ("next", "0", MOMENTS),
            )
        ),
    ],
)
def test_a_killed_save_of_a_checkpoint(killed, case, stride, least):
    folders, unharmed = killed(case, stride)
    assert len(folders) >= least
    for folder in [*folders, unharmed]:
        check(folder, case)


def test_a_killed_replacement_of_an_artifact(killed):
    texts = set()
    folders, unharmed = killed("artifact", "1")
    for folder in [*folders, unharmed]:
        artifact = folder / "artifact"
        if not artifact.exists():  # only between two renames, until the next start
            assert any(name.endswith("-old") for name in os.listdir(folder))
        recover(artifact)
        verify_sums(artifact, ("one", "two"))
        text = (artifact / "one").read_text()
        assert text == (artifact / "two").read_text()
        texts.add(text)
        assert os.listdir(folder) == ["artifact"]
    assert len(folders) > 12 and texts == {"old", "new"}
