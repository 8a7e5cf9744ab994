"""Checkpoints of the complete training state, verified before they are used.

Orbax writes the arrays but notices neither a flipped byte nor a changed dtype. So each
checkpoint is a folder with a checksum of every file, published by one rename, and the
newest undamaged one is loaded. Each records its run and step, so a copied or renamed
folder is not mistaken for another.

The newest whole checkpoint can be found at every moment of a save, so a process may be
killed at any time. One process writes; others may read meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from configuration.files import (
    HIDDEN,
    SUMS,
    discard,
    publish,
    read_text,
    recover,
    verify_sums,
)

# Only the first process of a run reads and writes; orbax must not wait for the others.
_ALONE = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}, barrier_sync_key_prefix="metatrain"
)
_NAME = re.compile(r"step_(\d{8})")
_TREE = "tree.json"
_ORIGIN = "origin.json"
_SHOWN = 5  # differing leaves that an error lists
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")  # in messages of tensorstore
# Raised by orbax for files that it cannot parse.
_UNREADABLE = (ValueError, LookupError, TypeError, OSError)


class Restored(NamedTuple):
    """A restored checkpoint, and warnings about newer ones that were skipped."""

    step: int
    state: Any
    warnings: list[str]
    about: Any
    """What the checkpoint holds beside its state, as JSON; None in those of old."""


class Checkpoints:
    """The checkpoints of one run, in one folder."""

    def __init__(self, folder: Path, keep: int = 3, run: str | None = None) -> None:
        """Prepares to read and write checkpoints; of them the newest `keep` are kept.

        Checkpoints of runs with another identity than `run` are skipped, unless it is
        None. Each is saved with what `about` holds then, any JSON.
        """
        if keep < 1:
            raise ValueError(f"keep = {keep} checkpoints must be positive")
        self.folder = folder
        self.keep = keep
        self.run = run
        self.about: Any = None

    def steps(self) -> list[int]:
        """Returns the steps of all published checkpoints, ascending."""
        return sorted(self._published())

    def recover(self) -> None:
        """Completes a killed process's renames; only the writing process may call."""
        if self.folder.is_dir():
            hidden = (HIDDEN.fullmatch(path.name) for path in self.folder.iterdir())
            for name in {match["name"] for match in hidden if match}:
                if _NAME.fullmatch(name):
                    recover(self.folder / name)

    def save(self, step: int, state: Any) -> None:
        """Publishes the state of `step`, replacing any checkpoint of that step.

        Then deletes checkpoints of later steps, and the oldest beyond `keep`.

        Raises:
            OSError: naming the folder, if it cannot be written; earlier checkpoints
                are left intact.
        """
        self.recover()
        path = self._path(step)
        if os.path.lexists(path) and (path.is_symlink() or not (path / SUMS).is_file()):
            discard(path)

        def write(temporary: Path) -> None:
            try:
                with _quiet(), _checkpointer() as checkpointer:
                    checkpointer.save((temporary / "state").absolute(), state)
            except (ValueError, RuntimeError) as error:
                raise _as_os_error(error, path) from error
            tree = json.dumps(_describe(state), indent=1)
            (temporary / _TREE).write_text(tree, encoding="utf-8")
            origin = json.dumps(self._origin(step) | {"about": self.about})
            (temporary / _ORIGIN).write_text(origin, encoding="utf-8")

        publish(path, write, replace=True)
        earlier = [other for other in self.steps() if other <= step]
        for other in self.steps():
            if other not in earlier[-self.keep :]:
                discard(self._path(other))

    def restore(
        self,
        template: Any,
        check: Callable[[Path, Any], None] = lambda path, about: None,
    ) -> Restored | None:
        """Restores the newest whole checkpoint; None if there are no checkpoints.

        Args:
            template: a state of the same structure (arrays or `ShapeDtypeStruct`).
            check: takes the folder and what it was saved with (None in those of old),
                and raises `ValueError` if the state must not be used.

        Raises:
            ValueError: by `check`; if all checkpoints are damaged, or the newest whole
                one has another structure than the template, listing the leaves that
                differ.
        """
        warnings: list[str] = []
        for step, path in sorted(self._published().items(), reverse=True):
            try:
                verify_sums(path, (_TREE, _ORIGIN))
                stored = _read_object(path / _TREE)
                about = self._check_origin(path, step)
            except (ValueError, OSError) as error:
                warnings.append(f"checkpoint of step {step} is skipped: {error}")
                continue
            check(path, about)
            _check_tree(path, stored, _describe(template))
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
            try:
                with _quiet(), _checkpointer() as checkpointer:
                    state = checkpointer.restore((path / "state").absolute(), abstract)
            except _UNREADABLE as error:
                reason = f"{path / 'state'} cannot be read: {_first_line(error)}"
                warnings.append(f"checkpoint of step {step} is skipped: {reason}")
                continue
            return Restored(step, state, warnings, about)
        if warnings:
            raise ValueError(
                f"no checkpoint in {self.folder} is whole ({'; '.join(warnings)}); "
                "move the folder away to start anew"
            )
        return None

    def _published(self) -> dict[int, Path]:
        """Returns folders by step, hidden ones that are being replaced included."""
        if not self.folder.is_dir():
            return {}
        found: dict[int, Path] = {}
        for path in self.folder.iterdir():
            hidden = HIDDEN.fullmatch(path.name)
            name = hidden["name"] if hidden and hidden["old"] else path.name
            match = _NAME.fullmatch(name)
            if match and not (hidden and int(match[1]) in found):
                found[int(match[1])] = path
        return found

    def _origin(self, step: int) -> dict[str, Any]:
        return {"run": self.run, "step": step}

    def _check_origin(self, path: Path, step: int) -> Any:
        """Checks run and step, and returns what else the checkpoint says."""
        stored, expected = _read_object(path / _ORIGIN), self._origin(step)
        for name, value in expected.items():
            if stored.get(name) != value and (name == "step" or self.run is not None):
                raise ValueError(
                    f"{path / _ORIGIN}: it is of {name} {stored.get(name)!r}, not of "
                    f"{value!r}"
                )
        return stored.get("about")

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the tracebacks of threads, whose errors are raised as well."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    disabled, logger.disabled = logger.disabled, True
    sys.unraisablehook = lambda unraisable: None
    try:
        yield
    finally:
        logger.disabled, sys.unraisablehook = disabled, hook


def _as_os_error(error: Exception, path: Path) -> OSError:
    """Converts tensorstore's error about a file that it could not write."""
    if match := _OS_ERROR.search(str(error)):
        return OSError(int(match[1]), os.strerror(int(match[1])), str(path))
    return OSError(errno.EIO, f"cannot be written: {_first_line(error)}", str(path))


def _checkpointer() -> ocp.StandardCheckpointer:
    return ocp.StandardCheckpointer(multiprocessing_options=_ALONE)


def _describe(state: Any) -> dict[str, list[Any]]:
    """Returns shape and dtype of every leaf by path; orbax would silently cast them."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): [list(leaf.shape), str(leaf.dtype)]
        for path, leaf in leaves
    }


def _read_object(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(stored, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    return stored


def _check_tree(path: Path, stored: dict[str, Any], expected: dict[str, Any]) -> None:
    names = sorted(stored.keys() | expected.keys())
    differing = [
        f"{name}: stored {_leaf(stored, name)}, expected {_leaf(expected, name)}"
        for name in names
        if stored.get(name) != expected.get(name)
    ]
    if differing:
        more = len(differing) - _SHOWN
        listed = "; ".join(differing[:_SHOWN]) + (f"; and {more} more" * (more > 0))
        raise ValueError(
            f"{path} does not fit this run: {len(differing)} leaves differ ({listed})"
        )


def _leaf(tree: dict[str, Any], name: str) -> str:
    match tree.get(name):
        case None:
            return "nothing"
        case [list(shape), str(dtype)]:
            return f"{dtype}{shape}"
        case other:
            return repr(other)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
