"""Where modules come from: this package, a library, Python, or outside."""

from __future__ import annotations

import functools
import hashlib
import sys
import sysconfig
import types
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPUTING = ("parametrization", "tasks", "lopt", "metatrain")
"""Rooms whose every module may change a figure."""
ROOMS = ("configuration", *COMPUTING, "evaluation", "experiments")
_PLACES = {"library": ("purelib", "platlib"), "Python": ("stdlib", "platstdlib")}


def own_code() -> str:
    """Returns the digest of the modules that compute: this package may be edited."""
    found = hashlib.sha256()
    paths = [path for room in COMPUTING for path in (ROOT / room).rglob("*.py")]
    paths += (ROOT / "evaluation").glob("*.py")
    for path in sorted(paths):
        found.update(f"{path.relative_to(ROOT).as_posix()}\0".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def is_namespace(module: str) -> bool:
    """Whether a module is a folder without a file."""
    found = sys.modules.get(module)
    return hasattr(found, "__path__") and getattr(found, "__file__", None) is None


def library_of(module: str) -> str | None:
    """Returns the library that a module belongs to, by its name for imports."""
    top = module.partition(".")[0]
    return top if _place(top) == "library" else None


@functools.cache
def version_of_import(top: str) -> str:
    """Returns the version of a library by its name for imports."""
    try:
        return metadata.version(top)
    except metadata.PackageNotFoundError:
        names = metadata.packages_distributions().get(top, [])
        return ", ".join(f"{name} {metadata.version(name)}" for name in sorted(names))


def is_installed(module: str) -> bool:
    """Whether a module is of this package, a library or Python: versions name them."""
    return _place(module.partition(".")[0]) is not None


@functools.cache
def _place(top: str) -> str | None:
    """Returns where a module of the top level comes from; None if from outside."""
    found = sys.modules.get(top)
    file = getattr(found, "__file__", None) or next(iter(_folders_of(found)), None)
    if top == "__main__" or (file is None and top not in sys.stdlib_module_names):
        return None
    if file is None:
        return "Python"
    path = Path(file).resolve()
    if top in ROOMS and path.is_relative_to(ROOT.resolve()):
        return "package"
    for kind, names in _PLACES.items():
        for name in names:
            if path.is_relative_to(Path(sysconfig.get_path(name)).resolve()):
                return kind
    return None


def _folders_of(module: types.ModuleType | None) -> list[str]:
    return list(getattr(module, "__path__", []))
