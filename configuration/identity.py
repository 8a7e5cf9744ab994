"""The identity of a result: what it depends on, as JSON.

Whatever is found again (a checkpoint, a tuning, a dataset, an evaluation) holds the
identity of what it was made from, and is used only where that is today's. There are two
parts: `of` identifies objects (configurations, data, functions), `surroundings` the
versions and settings that change arithmetic or randomness.

Paths, the order of dictionaries, hash seeds, locales and the number of devices are in
no identity.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import math
import os
import re
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from configuration import digests
from configuration.encoding import is_absent

PACKAGE = "metatrain"
SETTINGS = (
    *("enable_x64", "explicit_x64_dtypes", "numpy_dtype_promotion"),
    *("default_prng_impl", "enable_custom_prng", "random_seed_offset"),
    *("threefry_partitionable", "threefry_gpu_kernel_lowering"),
    *("default_matmul_precision", "disable_most_optimizations", "optimization_level"),
    *("softmax_custom_jvp", "use_direct_linearize"),
)
"""Settings of JAX (without `jax_`) that change arithmetic or randomness."""
VARIABLES = ("NVIDIA_TF32_OVERRIDE", "LIBTPU_INIT_ARGS")
"""Variables of the environment that change arithmetic."""
HARMLESS = re.compile(r"--xla_(force_host_platform_device_count|dump_\w+)(=.*)?")
"""Words of XLA_FLAGS that do not; all others count, known or not."""
ABSENT = "absent"
_SHOWN = 12  # characters of a digest in messages
_DIGEST = re.compile(r"[0-9a-f]{64}")


class UnidentifiedError(ValueError):
    """Something has no identity, so nothing that depends on it may be found again."""


@runtime_checkable
class Identified(Protocol):
    """An object that says what identifies it, in place of its fields."""

    def identified_by(self) -> Mapping[str, Any]:
        """Returns values, of which each has an identity, by name."""
        ...


def surroundings() -> dict[str, Any]:
    """Returns versions, and the settings that change arithmetic or randomness."""
    versions = {name: version(name) for name in (PACKAGE, "jax", "jaxlib")}
    settings = {name: _setting(name) for name in SETTINGS}
    settings |= {name: os.environ.get(name) for name in VARIABLES}
    flags = os.environ.get("XLA_FLAGS", "").split()
    settings["xla_flags"] = sorted(
        word for word in set(flags) if not HARMLESS.fullmatch(word)
    )
    settings["backend"] = jax.default_backend()
    return {"versions": versions, "settings": settings}


def _setting(name: str) -> Any:
    # Attributes know contexts such as `jax.enable_x64`, but not every setting is one.
    name = f"jax_{name}"
    value = getattr(jax.config, name, jax.config.values.get(name))
    return value.name if isinstance(value, enum.Enum) else value


@functools.cache
def version(name: str) -> str:
    """Returns the version of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def of(value: Any) -> Any:
    """Returns the identity of an object.

    An object is its class, by module and name, and its fields; an array is its dtype,
    shape and content; a function is its code, its module's source, and what it refers
    to. The source of classes that are installed nowhere is a part, too.

    Raises:
        UnidentifiedError: naming what cannot be identified, and why.
    """
    return _of(value, "", ())


def sources(found: Any) -> dict[str, str]:
    """Returns the sources in an identity: digests of files by class or function."""
    if isinstance(found, list):
        return {name: x for item in found for name, x in sources(item).items()}
    if not isinstance(found, dict):
        return {}
    inside = sources(list(found.values()))
    if "source" not in found:
        return inside
    return inside | {found.get("class") or found["function"]: found["source"]}


def differences(stored: Any, now: Any) -> dict[str, str]:
    """Returns `stored → now` for every leaf that differs, by dotted path."""
    left, right = dict(_leaves(stored)), dict(_leaves(now))
    found = {}
    for name in left | right:
        old, new = left.get(name, ABSENT), right.get(name, ABSENT)
        if old != new:
            found[name] = f"{_shown(old)} → {_shown(new)}"
    return found


def described(differing: Mapping[str, str], most: int = 3) -> str:
    """Returns differences as one line, which names at most so many."""
    lines = [f"{name}: {change}" for name, change in differing.items()]
    more = len(lines) - most
    return "; ".join(lines[:most]) + (f"; and {more} more" if more > 0 else "")


def digest(identity: Any) -> str:
    """Returns the digest of an identity."""
    return digests.of_json(identity)


def of_arrays(tree: Any) -> str:
    """Returns the sha256 of all arrays of a tree, in order, with their places."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        if array.dtype == object:
            where = jax.tree_util.keystr(path)
            raise UnidentifiedError(f"{where} is a {type(leaf).__name__}, no array")
        head = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape} "
        found.update(head.encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value


def _shown(value: Any) -> str:
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return f"{value[:_SHOWN]}…"
    return value if isinstance(value, str) else repr(value)


def _of(value: Any, where: str, seen: tuple[Any, ...]) -> Any:
    """`seen` are the functions that the value is a part of."""
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | complex | np.dtype | range | slice):
        return {type(value).__name__: repr(value)}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return {"sha256": of_arrays(_plain(value))}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        # As pairs if keys are no texts: 1 and "1" are different keys.
        named = all(isinstance(key, str) for key in value)
        pairs = {str(k): _of(x, f"{where}.{k}", seen) for k, x in value.items()}
        return pairs if named else {"keys": sorted(map(repr, value))} | pairs
    if isinstance(value, tuple | list):
        return [_of(x, f"{where}[{i}]", seen) for i, x in enumerate(value)]
    if isinstance(value, set | frozenset):
        items = [_of(x, where, seen) for x in value]
        return {"set": sorted(items, key=digest)}
    if isinstance(value, type):
        return _of_class(value)
    if isinstance(value, types.ModuleType):
        return {"module": value.__name__} | _source(value.__name__)
    if callable(value) and not dataclasses.is_dataclass(value):
        return _of_function(value, where, seen)
    return _of_object(value, where, seen)


def _plain(array: Any) -> np.ndarray:
    """Returns an array of numbers; keys of JAX as their words."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(array)


def _of_object(value: Any, where: str, seen: tuple[Any, ...]) -> dict[str, Any]:
    if isinstance(value, Identified):
        parts = value.identified_by()
    elif dataclasses.is_dataclass(value):
        parts = own_fields(value)
    else:
        raise _unknown(where, value, "has no fields and no identified_by()")
    inside = {name: _of(part, f"{where}.{name}", seen) for name, part in parts.items()}
    return _of_class(type(value)) | inside


def own_fields(value: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass, but those added later and left as before."""
    return {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)
        if not is_absent(field, getattr(value, field.name))
    }


def _of_class(cls: type) -> dict[str, Any]:
    return {"class": f"{cls.__module__}.{cls.__qualname__}"} | _source(cls.__module__)


def _of_function(function: Any, where: str, seen: tuple[Any, ...]) -> dict[str, Any]:
    if isinstance(function, functools.partial):
        parts = (function.func, function.args, function.keywords)
        return {"partial": _of(parts, where, seen)}
    if isinstance(function, types.MethodType):
        parts = (function.__self__, function.__func__)
        return {"method": _of(parts, where, seen)}
    inner = inspect.unwrap(function)
    scope = getattr(inner, "__globals__", {})
    module = scope.get("__name__") or getattr(inner, "__module__", None) or "builtins"
    name = getattr(inner, "__qualname__", None) or getattr(inner, "__name__", None)
    if name is None or (scope and scope is not vars(sys.modules.get(module, inner))):
        raise _unknown(where, inner, "is of no module: give a version")
    named = {"function": f"{module}.{name}"} | _source(module)
    if any(inner is other for other in seen):
        return named
    installed = is_installed(module)
    if not isinstance(inner, types.FunctionType):  # compiled, as NumPy's are
        if not installed:
            raise _unknown(where, inner, "is no function of Python: give a version")
        return named
    if installed and "<locals>" not in name:
        return named
    code, cells = inner.__code__, inner.__closure__ or ()
    parts = {
        "closure": {
            free: cell.cell_contents
            for free, cell in zip(code.co_freevars, cells, strict=True)
        },
        "defaults": (inner.__defaults__, inner.__kwdefaults__),
    }
    if not installed:
        known = inner.__globals__
        parts["globals"] = {n: known[n] for n in sorted(_names(code)) if n in known}
        named["code"] = _code(code)
    inside = {
        part: _of(given, f"{where}.{name}", (*seen, inner))
        for part, given in parts.items()
    }
    return named | inside


def _names(code: types.CodeType) -> set[str]:
    """Returns the names that a function and those inside it refer to."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _code(code: types.CodeType) -> str:
    """Returns the digest of what runs, which may be older than the source."""
    found = hashlib.sha256(code.co_code)
    for constant in code.co_consts:
        inner = isinstance(constant, types.CodeType)
        text = _code(constant) if inner else repr(_ordered(constant))
        found.update(text.encode())
    found.update(repr((code.co_names, code.co_varnames)).encode())
    return found.hexdigest()


def _ordered(constant: Any) -> Any:
    return sorted(constant, key=repr) if isinstance(constant, frozenset) else constant


def _unknown(where: str, value: Any, reason: str) -> UnidentifiedError:
    title = getattr(value, "__qualname__", type(value).__name__)
    place = f"{where.lstrip('.')}: " if where else ""
    return UnidentifiedError(f"{place}{title} {reason}")


def _source(module: str) -> dict[str, str]:
    """Returns the digest of a module's file; nothing for what is installed.

    Raises:
        UnidentifiedError: if there is no such file, as of what is typed at a prompt.
    """
    if is_installed(module):
        return {}
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or not os.path.isfile(file):
        raise UnidentifiedError(
            f"the module {module} has no file: what is typed at a prompt has no "
            "identity; put it into a module, or give a version where one can be given"
        )
    return {"source": digests.of_file(Path(file))}


_OURS = (
    *("configuration", "parametrization", "tasks", "lopt", "metatrain"),
    *("evaluation", "experiments"),
)


@functools.cache
def is_installed(module: str) -> bool:
    """Whether a module is of this package, a library or Python: versions name them."""
    top = module.partition(".")[0]
    if top == "__main__":
        return False
    if top in _OURS or top in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(top), "__file__", None)
    places = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    return file is not None and any(Path(file).is_relative_to(p) for p in places)
