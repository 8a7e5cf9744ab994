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
_SOURCES = "sources"
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
    return _Walk().of(value, "")


def sources(found: Any) -> dict[str, str]:
    """Returns the sources in an identity: digests of files by module."""
    if isinstance(found, list):
        return {name: x for item in found for name, x in sources(item).items()}
    if not isinstance(found, dict):
        return {}
    return sources(list(found.values())) | found.get(_SOURCES, {})


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
        array = _plain(leaf)
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


def _plain(array: Any) -> np.ndarray:
    """Returns an array of numbers; keys of JAX as their words."""
    if isinstance(array, jax.Array) and jnp.issubdtype(
        array.dtype, jax.dtypes.prng_key
    ):
        array = jax.random.key_data(array)
    return np.asarray(array)


def own_fields(value: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass, but those added later and left as before."""
    return {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)
        if not is_absent(field, getattr(value, field.name))
    }


class _Walk:
    """One walk over an object; what was met before is only named."""

    def __init__(self) -> None:
        self._met: list[Any] = []

    def of(self, value: Any, where: str) -> Any:
        """Returns the identity of a value; `where` is its place, for messages."""
        match value:
            case enum.Enum():
                return value.name
            case None | bool() | int() | str():
                return value
            case float():
                return value if math.isfinite(value) else {"float": str(value)}
            case bytes() | complex() | np.dtype() | range() | slice():
                return {type(value).__name__: repr(value)}
            case np.ndarray() | np.generic() | jax.Array():
                return {"sha256": of_arrays(value)}
            case Path():
                return str(value)
            case Mapping() if all(isinstance(key, str) for key in value):
                return {key: self.of(x, f"{where}.{key}") for key, x in value.items()}
            case Mapping():  # 1 and "1" are different keys
                pairs = {
                    repr(k): self.of(x, f"{where}[{k!r}]") for k, x in value.items()
                }
                return {"keys": pairs}
            case tuple() | list():
                return [self.of(x, f"{where}[{i}]") for i, x in enumerate(value)]
            case set() | frozenset():
                items = [self.of(x, where) for x in value]
                return {"set": sorted(items, key=digest)}
            case type():
                return self._of_class(value, where)
            case types.ModuleType():
                return {"module": value.__name__} | self._sources(value.__name__)
        if callable(value) and not dataclasses.is_dataclass(value):
            return self._of_callable(value, where)
        if isinstance(value, Identified):
            return self._of_object(value, value.identified_by(), where)
        if dataclasses.is_dataclass(value):
            return self._of_object(value, own_fields(value), where)
        raise _unknown(where, value, "has no fields and no identified_by()")

    def _of_object(
        self, value: Any, parts: Mapping[str, Any], where: str
    ) -> dict[str, Any]:
        inside = {
            name: self.of(part, f"{where}.{name}") for name, part in parts.items()
        }
        return self._of_class(type(value), where) | inside

    def _of_class(self, cls: type, where: str) -> dict[str, Any]:
        """Identifies a class; of one from outside its bases and members count, too."""
        named = {"class": f"{cls.__module__}.{cls.__qualname__}"}
        outside = [c for c in cls.__mro__ if not is_installed(c.__module__)]
        if not outside or self._is_met(cls):
            return named
        named |= self._sources(*(c.__module__ for c in outside))
        inside = {}
        for name, member in ((n, x) for c in outside[::-1] for n, x in vars(c).items()):
            part = _without_descriptor(member)
            counts = not name.startswith("__") and isinstance(part, _CONSTANTS)
            if counts or (callable(part) and not _is_made(part)):
                inside[name] = self.of(part, f"{where}.{name}")
        return named | {"members": inside}

    def _of_callable(self, value: Any, where: str) -> Any:
        if isinstance(value, functools.partial):
            return {"partial": self.of([value.func, value.args, value.keywords], where)}
        if isinstance(value, types.MethodType):
            return {"method": self.of([value.__self__, value.__func__], where)}
        if isinstance(value, types.FunctionType):
            return self._of_function(value, where)
        if not is_installed(type(value).__module__):
            raise _unknown(where, value, "is called, but no function: give a version")
        if type(value).__name__ == "PjitFunction":  # of jax.jit
            return self.of(value.__wrapped__, where)
        attributes = getattr(value, "__dict__", {})
        if inside := {n: x for n, x in attributes.items() if n != "__wrapped__"}:
            return self._of_object(value, inside, where)
        named = {"function": f"{value.__module__}.{value.__qualname__}"}
        owner = getattr(value, "__self__", None)  # of a method that is compiled
        bound = owner is not None and not isinstance(owner, types.ModuleType)
        return named | ({"self": self.of(owner, where)} if bound else {})

    def _of_function(self, function: types.FunctionType, where: str) -> dict[str, Any]:
        code, scope = function.__code__, function.__globals__
        module = scope.get("__name__", "builtins")
        if scope is not vars(sys.modules.get(module, function)):
            raise _unknown(where, function, "is of no module: give a version")
        # Decorated functions have the name of what they wrap, not their code.
        named: dict[str, Any] = {"function": f"{module}.{code.co_qualname}"}
        installed = is_installed(module)
        if self._is_met(function) or (installed and "<locals>" not in code.co_qualname):
            return named | self._defaults(function, where)
        parts: dict[str, Any] = {}
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        parts["closure"] = {name: cell.cell_contents for name, cell in cells}
        parts["attributes"] = vars(function)
        if not installed or "<locals>" in code.co_qualname:
            named["code"] = _code(code)
        if not installed:
            names = sorted(_names(code))
            parts["globals"] = {name: scope[name] for name in names if name in scope}
            named |= self._sources(module)
        inside = {n: self.of(x, f"{where}.{code.co_name}") for n, x in parts.items()}
        return named | self._defaults(function, where) | inside

    def _defaults(self, function: types.FunctionType, where: str) -> dict[str, Any]:
        given = [function.__defaults__, function.__kwdefaults__]
        return {"defaults": self.of(given, where)} if any(given) else {}

    def _is_met(self, value: Any) -> bool:
        if any(value is other for other in self._met):
            return True
        self._met.append(value)
        return False

    def _sources(self, *modules: str) -> dict[str, Any]:
        """Returns the files of modules from outside, and of those they refer to."""
        found: dict[str, str] = {}
        waiting = list(modules)
        while waiting:
            module = waiting.pop()
            if module in found or is_installed(module):
                continue
            found[module] = digests.of_file(_file_of(module))
            for value in vars(sys.modules[module]).values():
                if isinstance(value, types.ModuleType):
                    waiting.append(value.__name__)
                elif isinstance(value, type | types.FunctionType):
                    waiting.append(value.__module__)
        return {_SOURCES: dict(sorted(found.items()))} if found else {}


_CONSTANTS = (np.ndarray, jax.Array, int, float, str, tuple, list, dict)
"""Types of the attributes of a class that count."""


def _without_descriptor(member: Any) -> Any:
    """Returns the function of a method, a property and the like."""
    match member:
        case staticmethod() | classmethod():
            return member.__func__
        case property():
            return member.fget
        case functools.cached_property():
            return member.func
    return member


def _is_made(member: Any) -> bool:
    """Whether a function was made from text, as those of dataclasses are."""
    code = getattr(member, "__code__", None)
    return code is not None and code.co_filename.startswith("<")


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


def _file_of(module: str) -> Path:
    """Returns the file of a module.

    Raises:
        UnidentifiedError: if there is none, as of what is typed at a prompt.
    """
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or not os.path.isfile(file):
        raise UnidentifiedError(
            f"the module {module} has no file: what is typed at a prompt has no "
            "identity; put it into a module, or give a version where one can be given"
        )
    return Path(file)


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
