"""Checkpoints of the complete training state, verified before they are used.

Orbax writes the arrays; it notices neither a flipped byte nor a changed dtype. So each
checkpoint is a folder with a checksum of every file, published by one rename, and a
damaged one is never loaded: the newest good one is.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from lopt.integrity import publish, verify_sums

# The processes of a run have one folder, and its first process alone reads and writes
# it: orbax must not wait for the others.
_ALONE = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}, barrier_sync_key_prefix="metatrain"
)
_NAME = re.compile(r"step_(\d{8})")


class Restored(NamedTuple):
    """A checkpoint that was read, and what had to be skipped to get there."""

    step: int
    state: Any
    warnings: list[str]


class Checkpoints:
    """The checkpoints of one run, in one folder."""

    def __init__(self, folder: Path, keep: int = 3) -> None:
        """Args: folder: where they lie; keep: how many of the newest stay."""
        if keep < 1:
            raise ValueError(f"keep = {keep} checkpoints must be positive")
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of all published checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        matches = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def save(self, step: int, state: Any) -> None:
        """Publishes the state of `step`; a damaged folder of that step is replaced.

        Raises:
            OSError: if the folder cannot be written; earlier checkpoints stay as good
                as they were.
        """
        path = self._path(step)
        if path.exists():
            shutil.rmtree(path)
        for stale in self.folder.glob(".step_*"):
            shutil.rmtree(stale, ignore_errors=True)

        def write(temporary: Path) -> None:
            with _checkpointer() as checkpointer:
                checkpointer.save((temporary / "state").absolute(), state)
            (temporary / "tree.json").write_text(json.dumps(_describe(state), indent=1))

        publish(path, write)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self._path(old))

    def restore(self, template: Any) -> Restored | None:
        """The newest checkpoint that is whole, or None if there is none at all.

        Args:
            template: a state of the same structure (arrays or `ShapeDtypeStruct`).

        Raises:
            ValueError: if there are checkpoints but all are damaged, or the newest one
                holds another structure than the template.
        """
        warnings: list[str] = []
        for step in reversed(self.steps()):
            path = self._path(step)
            try:
                verify_sums(path, ("tree.json",))
            except (ValueError, OSError) as error:
                warnings.append(f"checkpoint of step {step} is skipped: {error}")
                continue
            _check_tree(path / "tree.json", _describe(template))
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
            with _checkpointer() as checkpointer:
                state = checkpointer.restore((path / "state").absolute(), abstract)
            return Restored(step, state, warnings)
        if warnings:
            raise ValueError(
                f"no checkpoint in {self.folder} is whole ({'; '.join(warnings)}); "
                "move the folder away to start anew"
            )
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"


def _checkpointer() -> ocp.StandardCheckpointer:
    return ocp.StandardCheckpointer(multiprocessing_options=_ALONE)


def _describe(state: Any) -> dict[str, list[Any]]:
    """Shape and dtype of every leaf by path: what orbax would silently cast."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): [list(leaf.shape), str(leaf.dtype)]
        for path, leaf in leaves
    }


def _check_tree(path: Path, expected: dict[str, list[Any]]) -> None:
    stored = json.loads(path.read_text())
    names = sorted(stored.keys() | expected.keys())
    differing = [name for name in names if stored.get(name) != expected.get(name)]
    if differing:
        first = differing[0]
        raise ValueError(
            f"{path.parent} does not fit this run: {len(differing)} leaves differ, "
            f"first {first}: stored {stored.get(first)}, expected {expected.get(first)}"
        )
