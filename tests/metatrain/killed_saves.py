"""Saves checkpoints again and again, and is killed at one moment after the other.

    python -m tests.metatrain.killed_saves ROOT CASE STRIDE [CASE STRIDE ...]

For k = 1, 1 + STRIDE, … the case's folder is copied to ROOT/CASE/k, and a forked
process that publishes there is killed, as by `kill -9`, just before its k-th file
operation; ROOT/CASE/all is where none was killed. Operations are what Python's audit
hooks see (opening for writing, renaming, making and removing), and `os.fsync`. With a
STRIDE of 0 the process is killed at MOMENTS moments instead, spread over the time that
a save takes.

Forking is safe as no JAX backend has been started before it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from configuration.files import publish
from metatrain.checkpoint import Checkpoints

OPERATIONS = (
    *("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate"),
    "shutil.rmtree",
)
WRITING = os.O_WRONLY | os.O_RDWR
KEEP = 2
MOMENTS = 16


def state(mark: float) -> dict:
    """Arrays of several kinds, all of which say which save they belong to."""
    return {
        "theta": {"a": np.full((3, 2), mark, np.float32), "b": np.array(float(mark))},
        "step": np.array(int(mark), np.int32),
        "flags": np.array([mark > 2, False]),
    }


def _begin(folder: Path) -> None:
    for step in (1, 2):
        Checkpoints(folder, KEEP).save(step, state(step))


def _begin_damaged(folder: Path) -> None:
    _begin(folder)
    with (folder / "step_00000002" / "tree.json").open("a") as file:
        file.write(" ")


def _begin_artifact(folder: Path) -> None:
    folder.mkdir()
    publish(folder / "artifact", lambda made: _write(made, "old"))


def _write(folder: Path, text: str) -> None:
    for name in ("one", "two"):
        (folder / name).write_text(text)


CASES = {
    "next": (_begin, lambda folder: Checkpoints(folder, KEEP).save(3, state(3))),
    "again": (_begin, lambda folder: Checkpoints(folder, KEEP).save(2, state(22))),
    "damaged": (
        _begin_damaged,
        lambda folder: Checkpoints(folder, KEEP).save(2, state(22)),
    ),
    "artifact": (
        _begin_artifact,
        lambda folder: publish(
            folder / "artifact", lambda made: _write(made, "new"), replace=True
        ),
    ),
}


def _forked(work: Callable[[], None], seconds: float | None = None) -> int:
    """Exit status of a forked process that does the work, killed after some time."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _killed_before(number: int) -> None:
    """From here on the process dies before its operation of this number."""
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # of a thread, until it is dead

    def hook(event: str, arguments: tuple) -> None:
        opened = event == "open" and isinstance(arguments[2], int)
        if event in OPERATIONS or (opened and arguments[2] & WRITING):
            count()

    def fsync(handle: int, real=os.fsync) -> None:
        count()
        real(handle)

    os.fsync = fsync
    sys.addaudithook(hook)


def _publish_killed(case: str, folder: Path, number: int) -> None:
    _killed_before(number)
    CASES[case][1](folder)


def make_folders(root: Path, case: str, stride: int) -> None:
    """Makes all folders of a case."""
    start = root / "start"
    root.mkdir()
    assert _forked(partial(CASES[case][0], start)) == 0

    def attempt(name: str, number: int, seconds: float | None = None) -> int:
        folder = root / name
        shutil.copytree(start, folder, symlinks=True)
        work = partial(_publish_killed, case, folder, number)
        return _forked(work, seconds)

    begin = time.monotonic()
    assert attempt("all", 0) == 0
    duration = time.monotonic() - begin
    if not stride:
        for moment in range(1, MOMENTS + 1):
            attempt(f"at{moment}", 0, duration * moment / MOMENTS)
        return
    for number in range(1, 1000, stride):
        if (status := attempt(str(number), number)) == 0:
            shutil.rmtree(root / str(number))
            return
        assert os.WTERMSIG(status) == signal.SIGKILL, status


def main() -> None:
    """Command line."""
    root, *cases = sys.argv[1:]
    for case, stride in zip(cases[::2], cases[1::2], strict=True):
        make_folders(Path(root) / case, case, int(stride))


if __name__ == "__main__":
    main()
