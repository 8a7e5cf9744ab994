"""Reference data of the tests, as a plugin of pytest that needs no JAX.

Reference files live in two places. Small ones are copied into ``tests/golden/`` and
are always there; the others are found through ``METATRAIN_GOLDEN_DIR``, and prepared
TFDS datasets through ``METATRAIN_DATA_DIR``. A test whose file is in neither place is
skipped with a reason that names the variable.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN_DIR = Path(__file__).parent / "golden"


def _find(name: str, folders: list[Path], variable: str) -> Path:
    """Returns the first ``folder / name`` that exists, or skips the test."""
    if outside := os.environ.get(variable):
        folders = [*folders, Path(outside).expanduser()]
        hint = f"{variable}={outside} has none"
    else:
        hint = f"set {variable} to the folder that has it"
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"reference data {name!r} not found: {hint}")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of reference files that travel with the repository."""
    return GOLDEN_DIR


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Path]:
    """``golden(name)``: path of a reference file or folder, or a skipped test."""
    return lambda name: _find(name, [GOLDEN_DIR], "METATRAIN_GOLDEN_DIR")


@pytest.fixture(scope="session")
def data_dir() -> Callable[[str], Path]:
    """``data_dir(name)``: folder of a prepared TFDS dataset, or a skipped test."""
    return lambda name: _find(name, [], "METATRAIN_DATA_DIR")
