"""Datasets prepared by TensorFlow Datasets, found by name and read without TensorFlow.

The only file that imports TFDS. Damage to a shard shows only where a record is read,
and `len()` of it can be wrong: every record is read and counted.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from configuration import digests
from tasks.data import known
from tasks.data.declared import (
    FORMAT,
    INFO,
    Prepared,
    command,
    damaged,
    read_declaration,
)

VARIABLE = "METATRAIN_DATA_DIR"
_NAME = re.compile(
    r"(?P<dataset>[a-z]\w*)(/(?P<config>[\w+.-]*\w[\w+.-]*))?"
    r"(:(?P<version>\d+\.\d+\.\d+))?",
    re.ASCII | re.IGNORECASE,
)
_PART = re.compile(r"[\w+.-]*\w[\w+.-]*", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)
_RECORDS_AT_ONCE = 256


class MissingError(ValueError):
    """A dataset is not on this machine, rather than damaged or of the wrong kind."""


def data_dir() -> Path:
    """Returns the folder of prepared datasets.

    Raises:
        MissingError: if the variable is unset and the default of TFDS does not exist.
    """
    if given := os.environ.get(VARIABLE):
        return Path(os.path.expanduser(given))  # keeps an unknown ~user
    default = Path("~/tensorflow_datasets").expanduser()
    if default.is_dir():
        return default
    raise MissingError(
        f"no folder of prepared datasets: set {VARIABLE} or pass --data-dir"
    )


def check_name(name: str) -> tuple[str, str | None]:
    """Splits a name into the dataset with its configuration, and the version or None.

    Raises:
        ValueError: if the name is not in the form of TFDS.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise ValueError(
            f"dataset name {name!r} is not of the form name, name/config, "
            "name:1.2.3 or name/config:1.2.3"
        )
    dataset, config, version = match["dataset"], match["config"], match["version"]
    if config and _VERSION.fullmatch(config):
        raise ValueError(
            f"dataset name {name!r} has a version after a slash: write "
            f"{dataset}:{config}"
        )
    return (f"{dataset}/{config}" if config else dataset), version


def open_dataset(name: str) -> Prepared:
    """Reads the declaration of a prepared dataset; its shards are not opened.

    Without a version, as in `imagenet_resized/32x32`, the newest one on disk is used.

    Raises:
        MissingError: in one line with the command that prepares the dataset, if it is
            not on disk.
        ValueError: in one line, if a file is missing, unreadable or not ArrayRecord.
    """
    plain, version = check_name(name)
    root = data_dir()
    versions = _subfolders(root / plain, _VERSION)
    versions.sort(key=lambda version: [int(part) for part in version.split(".")])
    if version in versions or (versions and not version):
        path = root / plain / (version or versions[-1])
        return read_declaration(plain, path, root)
    if not root.is_dir():
        raise MissingError(
            f"{root} is not a folder of datasets: set {VARIABLE} or pass --data-dir"
        )
    if versions:
        there = f"its versions are {', '.join(versions)}"
    elif configs := _subfolders(root / plain, _PART):
        there = f"there are {', '.join(f'{plain}/{config}' for config in configs)}"
    else:
        datasets = (name for name in _subfolders(root, _PART) if _holds(root / name))
        there = f"there are {', '.join(datasets) or 'none'}"
    raise MissingError(
        f"dataset {name!r} is not in {root}: {there}; make it with "
        f"`{command(name, root)}`, which needs TensorFlow{known.cost(plain)}"
    )


def missing(name: str) -> str | None:
    """Returns, in one line, why a dataset cannot be opened; None if it can."""
    try:
        open_dataset(name)
    except ValueError as error:
        return str(error)
    return None


def content(dataset: Prepared, shards: Sequence[Path]) -> str:
    """Returns the sha256 of a dataset's declaration and of some of its files.

    Raises:
        ValueError: if a file cannot be read.
    """
    try:
        names = [*dataset.declared, *shards]
        return digests.of_json([str(dataset), digests.of_files(names)])
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise _damaged(dataset, Path(error.filename), what) from None


def state(dataset: Prepared) -> tuple[tuple[int, ...], ...]:
    """Returns what differs once a file was replaced, for caches of this process.

    Raises:
        ValueError: if a file is missing.
    """
    shards = itertools.chain.from_iterable(dataset.shards.values())
    try:
        found = [path.stat() for path in (*dataset.declared, *shards)]
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise _damaged(dataset, Path(error.filename), what) from None
    return tuple(tuple(digests.state(each).values()) for each in found)


def read(prepared: Prepared, split: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a split in the order of the disk, images as encoded bytes.

    Damage may show late: the split is sound only if the iterator ends.

    Raises:
        ValueError: in one line that names dataset, file and command, if the split is
            unknown or empty, or a file differs from its declaration.
    """
    prepared.check_split(split)
    if prepared.splits[split] < 1:
        raise _damaged(prepared, prepared.path, f"has no rows in the split {split!r}")
    tfds, records = _readers()
    skip = {
        key: tfds.decode.SkipDecoding()
        for key, feature in prepared.features.items()
        if feature.kind == "image"
    }
    try:
        builder = tfds.builder_from_directory(prepared.path)
        source = builder.as_data_source(split, decoders=skip, file_format=FORMAT)
    # TFDS raises exceptions of many kinds.
    except Exception as error:
        what = f"is refused by TFDS: {error}"
        raise _damaged(prepared, prepared.path, what) from None
    end = 0
    counts = prepared.shard_lengths[split]
    for shard, count in zip(prepared.shards[split], counts, strict=True):
        start, end = end, end + count
        try:
            found = _count(records, shard)
            if found != count:
                raise ValueError(f"{found} rows, but {INFO} says {count}")
            for first in range(start, end, _RECORDS_AT_ONCE):
                rows = range(first, min(first + _RECORDS_AT_ONCE, end))
                yield from source.__getitems__(rows)
        except Exception as error:
            raise _damaged(prepared, shard, f"cannot be read: {error}") from None


def damaged_row(prepared: Prepared, split: str, row: int, what: object) -> ValueError:
    """Returns the error of a bad row; it names the row's file."""
    ends = itertools.accumulate(prepared.shard_lengths[split])
    shard = next(index for index, end in enumerate(ends) if row < end)
    path = prepared.shards[split][shard]
    return _damaged(prepared, path, f"has a bad row {row}: {what}")


def _damaged(prepared: Prepared, path: Path, what: str) -> ValueError:
    return damaged(str(prepared), path, what, data_dir())


def _count(records: Any, shard: Path) -> int:
    """Counts a file's own rows: those beyond the declared ones are never read."""
    with contextlib.closing(records.ArrayRecordReader(str(shard))) as reader:
        return reader.num_records()


def _readers() -> tuple[Any, Any]:
    try:
        import tensorflow_datasets as tfds
        from array_record.python import array_record_module  # pyright: ignore
    except ImportError as error:
        raise ValueError(
            f"reading prepared datasets needs a package that is missing ({error}): "
            "pip install tensorflow-datasets array_record pillow"
        ) from None
    return tfds, array_record_module


def _subfolders(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and pattern.fullmatch(path.name)
    )


def _holds(folder: Path) -> bool:
    """Whether the folder is a dataset, with configurations or without."""
    return any(any(folder.glob(f"{between}*/{INFO}")) for between in ("", "*/"))
