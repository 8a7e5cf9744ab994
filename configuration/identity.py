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
import dis
import enum
import functools
import hashlib
import math
import os
import re
import sys
import types
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from configuration import digests, modules
from configuration.encoding import is_absent
from configuration.files import read_text
from configuration.modules import is_installed, is_namespace

PACKAGE = "metatrain"
SETTINGS = (
    *("enable_x64", "explicit_x64_dtypes", "numpy_dtype_promotion"),
    *("default_prng_impl", "enable_custom_prng", "random_seed_offset"),
    *("threefry_partitionable", "threefry_gpu_kernel_lowering"),
    *("default_matmul_precision", "disable_most_optimizations", "optimization_level"),
    *("softmax_custom_jvp", "use_direct_linearize", "high_dynamic_range_gumbel"),
)
"""Settings of JAX (without `jax_`) that change arithmetic or randomness."""
VARIABLES = ("NVIDIA_TF32_OVERRIDE", "LIBTPU_INIT_ARGS")
"""Variables of the environment that change arithmetic."""
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
"""Libraries that compute; others count where something refers to them."""
HARMLESS = re.compile(r"--xla_(force_host_platform_device_count|dump_\w+)")
"""Flags of XLA that do not; all others count, known or not."""
ABSENT = "absent"
_CODE = "its code"  # no name of a field
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
    versions = {name: version(name) for name in (PACKAGE, *LIBRARIES)}
    settings = {name: _setting(name) for name in SETTINGS}
    settings["backend"] = jax.default_backend()
    return {"versions": versions, "settings": settings | environment()}


@functools.cache
def environment() -> dict[str, Any]:
    """Returns what the environment said when this process began to compute."""
    found: dict[str, Any] = {name: os.environ.get(name) for name in VARIABLES}
    return found | {"xla_flags": flags(os.environ.get("XLA_FLAGS", ""))}


def flags(text: str) -> dict[str, str]:
    """Returns the value of each flag of XLA, of which the last one counts.

    A text that does not begin with a dash is the name of a file with flags.
    """
    if text.strip() and not text.strip().startswith("-"):
        try:
            text = read_text(text.strip())
        except (OSError, ValueError):
            text = ""  # XLA reads no flags, too
    pairs = (word.partition("=") for word in text.split())
    return {n: x for n, _, x in pairs if not HARMLESS.fullmatch(n)}


def _setting(name: str) -> Any:
    # Attributes know contexts such as `jax.enable_x64`, but not every setting is one.
    name = f"jax_{name}"
    value = getattr(jax.config, name, jax.config.values.get(name))
    return value.name if isinstance(value, enum.Enum) else value


@functools.cache
def version(name: str) -> str:
    """Returns the version of a package; of this one also a digest of its code."""
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        found = "unknown"
    return f"{found}+{modules.own_code()[:_SHOWN]}" if name == PACKAGE else found


def of(value: Any) -> Any:
    """Returns the identity of an object.

    An object is its class, by module and name, and its fields; an array is its dtype,
    shape and content. A function is its code and what that refers to: arrays, numbers,
    other functions, modules and their files. So is a class that is installed nowhere.

    Raises:
        UnidentifiedError: naming what cannot be identified, and why.
    """
    try:
        return _Walk().of(value, "")
    except RecursionError:
        name = type(value).__name__
        raise UnidentifiedError(f"{name} contains itself, or too much") from None


def split(found: Any) -> tuple[Any, dict[str, str]]:
    """Splits the code off an identity: the rest, and digests by class or function."""
    if isinstance(found, list):
        pairs = [split(item) for item in found]
        return [x for x, _ in pairs], {
            n: x for _, code in pairs for n, x in code.items()
        }
    if not isinstance(found, dict):
        return found, {}
    rest, code = {}, {}
    for name, item in found.items():
        if name == _CODE:
            owner = found.get("class") or found.get("function") or found["module"]
            code[owner] = digest(item)
        else:
            rest[name], inside = split(item)
            code |= inside
    return rest, code


def differences(stored: Any, now: Any) -> dict[str, str]:
    """Returns `stored → now` for every leaf that differs, by dotted path."""
    left, right = dict(_leaves(stored)), dict(_leaves(now))
    found = {}
    for name in left | right:
        old, new = left.get(name, ABSENT), right.get(name, ABSENT)
        if digest(old) != digest(new):  # 1 is not True
            found[name] = f"{_shown(old)} → {_shown(new)}"
    if not found and digest(stored) != digest(now):
        found["identity"] = "another form"  # only empty parts differ
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
    if isinstance(value, Mapping):
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
        self._looked_up: set[tuple[str, str]] = set()

    def of(self, value: Any, where: str) -> Any:
        """Returns the identity of a value; `where` is its place, for messages."""
        match value:
            case enum.Enum() if is_installed(type(value).__module__):
                return value.name
            case enum.Enum():
                return {"name": value.name, "value": self.of(value.value, where)}
            case np.ndarray() | np.generic() | jax.Array():
                return {"sha256": of_arrays(value)}
            case None | bool() | int() | str():
                return value
            case float():
                return value if math.isfinite(value) else {"float": str(value)}
            case bytes() | complex() | np.dtype() | range() | slice():
                return {type(value).__name__: repr(value)}
            case Path():
                return str(value)
            case Mapping() if all(isinstance(key, str) for key in value):
                return {key: self.of(x, f"{where}.{key}") for key, x in value.items()}
            case Mapping():  # 1 and "1" are different keys
                items = value.items()
                return {"keys": {repr(k): self.of(x, where) for k, x in items}}
            case tuple() | list():
                return [self.of(x, f"{where}[{i}]") for i, x in enumerate(value)]
            case set() | frozenset():
                items = [self.of(x, where) for x in value]
                return {"set": sorted(items, key=digest)}
            case type():
                return self._of_class(value, where)
            case types.ModuleType():
                return self._of_module(value, frozenset(), where)
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
        inside = {n: self.of(part, f"{where}.{n}") for n, part in parts.items()}
        return inside | self._of_class(type(value), where)

    def _of_class(self, cls: type, where: str) -> dict[str, Any]:
        named = {"class": f"{cls.__module__}.{cls.__qualname__}"}
        outside = [c for c in cls.__mro__ if not is_installed(c.__module__)]
        if not outside or self._is_met(cls):
            return named | _library(cls.__module__)
        inside = {}
        for name, member in ((n, x) for c in outside[::-1] for n, x in vars(c).items()):
            part = _without_descriptor(member)
            counts = not name.startswith("__") and isinstance(part, _CONSTANTS)
            if counts or (callable(part) and not _is_made(part)):
                inside[name] = self.of(part, f"{where}.{name}")
        files = self._files(*(c.__module__ for c in outside))
        return named | {_CODE: {"files": files, "members": inside}}

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
        if owner is not None and not isinstance(owner, types.ModuleType):
            named["self"] = self.of(owner, where)
        return named | _library(value.__module__ or "builtins")

    def _of_function(self, function: types.FunctionType, where: str) -> dict[str, Any]:
        code, scope = function.__code__, function.__globals__
        module = scope.get("__name__", "builtins")
        if scope is not vars(sys.modules.get(module, function)):
            raise _unknown(where, function, "is of no module: give a version")
        # Decorated functions have the name of what they wrap, not their code.
        named: dict[str, Any] = {"function": f"{module}.{code.co_qualname}"}
        installed, where = is_installed(module), f"{where}.{code.co_name}"
        named |= _library(module)
        if self._is_met(function):
            return named
        if any(given := [function.__defaults__, function.__kwdefaults__]):
            named["defaults"] = self.of(given, where)
        if installed and "<locals>" not in code.co_qualname:
            return named
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        closed = {name: cell.cell_contents for name, cell in cells}
        inside = {"words": _words(code), "attributes": self.of(vars(function), where)}
        inside["closure"] = self.of(closed, where)
        if not installed:
            inside["files"] = self._files(module)
            inside["globals"] = self._referred(function, where)
        return named | {_CODE: inside}

    def _referred(self, function: types.FunctionType, where: str) -> dict[str, Any]:
        """Identifies the globals that a function uses, and of modules what it uses."""
        uses, scope = _uses(function.__code__), function.__globals__
        if read := sorted(uses.attributes & _READS | uses.globals & {"open"}):
            what = f"uses {read[0]}, and may read anything: give a version"
            raise _unknown(where, function, what)
        names = frozenset(uses.attributes)
        found = {}
        for name in sorted(uses.globals & scope.keys()):
            found[name] = self._part(scope[name], names, f"{where}.{name}")
        package = scope.get("__package__") or ""
        for name in sorted(uses.modules):
            for whole in {name, f"{package}.{name}".strip(".")}:
                if whole in sys.modules and not is_installed(whole):
                    found[whole] = self._part(sys.modules[whole], names, where)
        return found

    def _part(self, value: Any, names: frozenset[str], where: str) -> Any:
        if isinstance(value, types.ModuleType):
            return self._of_module(value, names, where)
        return self.of(value, where)

    def _of_module(
        self, module: types.ModuleType, names: frozenset[str], where: str
    ) -> dict[str, Any]:
        """Identifies a module, and what some names mean in it."""
        title = module.__name__
        if is_installed(title):
            return {"module": title} | _library(title)
        inside = {}
        for name in sorted(names & vars(module).keys()):
            if (title, name) not in self._looked_up:
                self._looked_up.add((title, name))
                part = vars(module)[name]
                inside[name] = self._part(part, names, f"{where}.{name}")
        return {"module": title, _CODE: {"files": self._files(title), "values": inside}}

    def _is_met(self, value: Any) -> bool:
        if any(value is other for other in self._met):
            return True
        self._met.append(value)
        return False

    def _files(self, *titles: str) -> dict[str, str]:
        """Returns digests of the files of modules, and of those that they refer to."""
        found: dict[str, str] = {}
        waiting = list(titles)
        while waiting:
            module = waiting.pop()
            if module in found or is_installed(module) or is_namespace(module):
                continue
            found[module] = digests.of_file(_file_of(module))
            for value in vars(sys.modules[module]).values():
                if isinstance(value, types.ModuleType):
                    waiting.append(value.__name__)
                elif isinstance(value, type | types.FunctionType):
                    waiting.append(value.__module__ or "builtins")
        return dict(sorted(found.items()))


_CONSTANTS = (np.ndarray, jax.Array, int, float, str, tuple, list, dict)
"""Types of the attributes of a class that count."""
_READS = {"environ", "getenv", "load", "loadtxt", "genfromtxt", "fromfile", "memmap"}
_READS |= {"read_text", "read_bytes", "read_csv"}
"""Attributes by which a function may depend on what has no identity here."""


class _Uses(NamedTuple):
    """Names in the code of a function and of those inside it."""

    globals: set[str]
    attributes: set[str]
    modules: set[str]


def _uses(code: types.CodeType) -> _Uses:
    found = _Uses(set(), set(), set())
    for step in dis.get_instructions(code):
        name = step.argval
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found.globals.add(name)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
            found.attributes.add(name)
        elif step.opname == "IMPORT_NAME" or isinstance(name, str):
            # A text may be a name for importlib.
            found.modules.add(name)
        elif isinstance(name, types.CodeType):
            for mine, inner in zip(found, _uses(name), strict=True):
                mine |= inner
    return found


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


def _words(code: types.CodeType) -> str:
    """Returns the digest of what runs, which may be older than the source."""
    found = hashlib.sha256(code.co_code)
    for constant in code.co_consts:
        inner = isinstance(constant, types.CodeType)
        text = _words(constant) if inner else repr(_ordered(constant))
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


def _library(module: str) -> dict[str, str]:
    """Returns the version of a library that `LIBRARIES` does not hold."""
    library = modules.library_of(module)
    if library is None or library in LIBRARIES:
        return {}
    return {"version": modules.version_of_import(library)}
