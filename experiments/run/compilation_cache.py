"""Compiled programs on disk, so that the second start of a command compiles nothing.

JAX asks its persistent compilation cache before it compiles. The files of its own
cache carry no checksum, and a damaged one is never replaced. So JAX is given this store
instead:

* an entry is a SHA-256 and a program. The digest covers JAX's key and the machine
  (jaxlib, the processor's model and features) too, so a damaged, renamed or foreign
  entry is as good as absent, and is replaced by what is compiled;
* entries appear by one rename, so that any number of processes share the folder;
* those that were not used for longest are deleted when all of them exceed `LIMIT`.

Programs are the same bytes however they come, so no result depends on the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import stat
import sys
from importlib import metadata
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from configuration.files import is_ours, read_bytes, write_bytes
from configuration.folders import VARIABLE, cache_dir

FOLDER = "compiled"
"""Name of the store in the cache folder."""
LIMIT = 2**30
"""Bytes of all entries, those of other machines and versions included."""
_ENTRIES = "[0-9a-f]" * 16 + "/" + "[0-9a-f]" * 64
_ROOM = LIMIT // 16  # bytes that a process may write between two looks at the folder
_DIGEST = hashlib.sha256().digest_size


def use(wanted: bool) -> None:
    """Keeps the programs that JAX compiles from now on, or else keeps none.

    JAX's own settings come first: its cache may be off (`JAX_ENABLE_COMPILATION_CACHE`)
    or have a folder of its own (`JAX_COMPILATION_CACHE_DIR`). A folder that cannot be
    used costs a warning, and compilations.
    """
    if not wanted:
        jax.config.update("jax_enable_compilation_cache", False)
    settings = jax.config.values
    if (
        not settings["jax_enable_compilation_cache"]
        or settings["jax_compilation_cache_dir"] is not None
    ):
        return
    try:
        # Private, but the only way to a store of one's own.
        from jax._src import compilation_cache as private

        _ = private.get_file_cache
        store = Store(cache_dir() / FOLDER)
    except (ImportError, AttributeError):
        _warn(f"JAX {jax.__version__} takes no store of compiled programs")
        return
    except OSError as error:
        _warn(error)
        return
    jax.config.update("jax_compilation_cache_dir", str(store.folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # XLA's own caches would put files beside the store, without bound or checksum.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    private.get_file_cache = lambda path: (store, path)
    # JAX may have decided already, before it was told of a folder.
    jax_cache.reset_cache()


def _warn(reason: str | OSError) -> None:
    if isinstance(reason, OSError):
        reason = (
            f"{reason.filename}: {reason.strerror}; {VARIABLE} names another folder"
        )
    print(f"warning: compiled programs are not kept: {reason}", file=sys.stderr)


class Store:
    """Programs by JAX's keys; the interface is that of JAX's caches."""

    def __init__(self, root: Path) -> None:
        """Creates the folder if needed.

        Raises:
            OSError: if it cannot be used, or others may put programs into it.
        """
        self._root, self._machine = root, _machine()
        self.folder = self._path = root / self._machine.hex()[:16]
        self._room = 0
        self._writes = True
        for folder in (root, self.folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not is_ours(folder, 0o022):
                reason = "others own it or may write to it"
                raise PermissionError(1, reason, str(folder))

    def get(self, key: str) -> bytes | None:
        """Returns a program, or None if there is none that is whole."""
        path = self._file(key)
        try:
            content = read_bytes(path, LIMIT + _DIGEST)
        except OSError:
            return None
        digest, program = content[:_DIGEST], content[_DIGEST:]
        if digest != self._digest(key, program):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return program

    def put(self, key: str, value: bytes) -> None:
        """Writes a program, in place of one that is there."""
        if not self._writes or len(value) > LIMIT:
            return
        try:
            if self._file(key).is_dir():  # somebody else's: this entry is not kept
                return
            self._reserve(len(value))
            write_bytes(self._file(key), self._digest(key, value) + value)
        except OSError as error:
            self._writes = False
            _warn(error)

    def _file(self, key: str) -> Path:
        return self.folder / hashlib.sha256(key.encode()).hexdigest()

    def _digest(self, key: str, program: bytes) -> bytes:
        about = hashlib.sha256(key.encode()).digest()
        return hashlib.sha256(self._machine + about + program).digest()

    def _reserve(self, size: int) -> None:
        """Deletes the entries that were not used for longest, if there is no room."""
        self._room -= size
        if self._room >= 0:
            return
        self._room = max(_ROOM - size, 0)
        files = []
        for path in self._root.glob(_ENTRIES):
            # Another process may delete it just now.
            with contextlib.suppress(OSError):
                found = path.lstat()
                if stat.S_ISREG(found.st_mode):
                    files.append((found.st_mtime_ns, found.st_size, path))
        excess = sum(length for _, length, _ in files) + size + self._room - LIMIT
        for _, length, path in sorted(files):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= length


def _machine() -> bytes:
    """Returns a digest of what machine code depends on: jaxlib and the processor."""
    names = ("vendor_id", "cpu family", "model", "flags")
    names += ("CPU implementer", "CPU part", "CPU variant", "Features")
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        processor = sorted({x for x in lines if x.partition(":")[0].strip() in names})
    except OSError:
        processor = [platform.machine(), platform.processor(), platform.node()]
    text = "\n".join([metadata.version("jaxlib"), *processor])
    return hashlib.sha256(text.encode()).digest()
