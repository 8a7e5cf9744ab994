"""Datasets prepared by TensorFlow Datasets, opened and read without TensorFlow.

The only file that knows TFDS. What a folder declares (features, splits, shards) is
read from its two JSON files, so that opening is quick and imports nothing. Reading
goes through the data source of TFDS and trusts nothing that was declared: the length of
a damaged shard lies, and its damage shows only where a record is touched. So every
record is read, and the number of records in every shard is compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

VARIABLE = "METATRAIN_DATA_DIR"
FORMAT = "array_record"
_NAME = re.compile(
    r"(?P<dataset>[a-z]\w*)(/(?P<config>[\w+.-]*\w[\w+.-]*))?"
    r"(:(?P<version>\d+\.\d+\.\d+))?",
    re.ASCII | re.IGNORECASE,
)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)
_RECORDS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class Feature:
    """What a row holds under one name."""

    kind: str
    """`image`, `label`, `text`, or the class of TFDS for anything else."""
    shape: tuple[int | None, ...] = ()
    """Shape of an image; None where it varies from row to row."""
    dtype: str = ""
    """Type of an image's channels."""
    num_classes: int = 0
    """Number of labels."""
    names: tuple[str, ...] = ()
    """Names of the labels, where the dataset has them."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a prepared dataset declares; nothing of it is verified but its presence."""

    name: str
    """As TFDS writes it, without the version: `mnist`, `imagenet_resized/32x32`."""
    version: str
    """MAJOR.MINOR.PATCH."""
    path: Path
    """The folder of that version."""
    features: Mapping[str, Feature]
    """What a row holds."""
    splits: Mapping[str, int]
    """Declared number of rows of each split."""
    shards: Mapping[str, tuple[Path, ...]]
    """Files of each split, in order."""
    shard_lengths: Mapping[str, tuple[int, ...]]
    """Declared number of rows of each file."""
    fingerprint: Mapping[str, Any]
    """Name, version, what is declared and the files' sizes, as plain JSON values."""

    def __str__(self) -> str:
        """Name and version, as TFDS writes them."""
        return f"{self.name}:{self.version}"


def data_dir() -> Path:
    """The folder of prepared datasets.

    Raises:
        ValueError: if the variable is unset, and the default of TFDS does not exist.
    """
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser()
    default = Path("~/tensorflow_datasets").expanduser()
    if default.is_dir():
        return default
    raise ValueError(
        f"no folder of prepared datasets: set {VARIABLE} or pass --data-dir"
    )


def check_name(name: str) -> tuple[str, str | None]:
    """Cuts a name into the dataset with its configuration, and the version if given.

    Raises:
        ValueError: if that is not how TFDS writes a name.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise ValueError(
            f"dataset name {name!r} is not of the form name, name/config, "
            "name:1.2.3 or name/config:1.2.3"
        )
    config, version = match["config"], match["version"]
    if config and _VERSION.fullmatch(config):
        raise ValueError(
            f"dataset name {name!r} has a version after a slash: "
            f"write {match['dataset']}:{config}"
        )
    return (f"{match['dataset']}/{config}" if config else match["dataset"]), version


def open_dataset(name: str) -> Prepared:
    """What a prepared dataset declares, found by its name.

    Args:
        name: as TFDS writes it, `mnist` or `imagenet_resized/32x32:0.1.0`; without a
            version the newest one that is there.

    Raises:
        ValueError: naming the dataset, the file and the command that makes it, if the
            dataset or one of its files is missing, unreadable or not ArrayRecord.
    """
    plain, version = check_name(name)
    root = data_dir()
    folder = root / plain
    versions = sorted(_subfolders(folder, _VERSION), key=_by_number)
    if not versions or (version and version not in versions):
        raise ValueError(_missing(name, plain, version, root, versions))
    path = folder / (version or versions[-1])
    info, digest = _read_json(path / "dataset_info.json", name)
    declared, other = _read_json(path / "features.json", name)
    try:
        if info["name"] != plain.partition("/")[0]:
            raise _damaged(name, path / "dataset_info.json", f"is of {info['name']!r}")
        formats = {info["fileFormat"], *info.get("alternativeFileFormats", ())}
        if FORMAT not in formats:
            raise ValueError(
                f"dataset {name!r}: {path} is in the format {info['fileFormat']}, and "
                f"only {FORMAT} is read without TensorFlow; convert it with `tfds "
                f"convert_format --dataset_version_dir={path} "
                f"--out_file_format={FORMAT}`"
            )
        lengths, shards = {}, {}
        for split in info["splits"]:
            counts = tuple(int(n) for n in split.get("shardLengths", ()))
            lengths[split["name"]] = counts
            shards[split["name"]] = _shards(path, info["name"], split, len(counts))
        features = {
            key: _feature(path, key, value)
            for key, value in declared["featuresDict"]["features"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(name, path, f"declares no {error}") from None
    sizes = {
        file.name: _size(file, name) for files in shards.values() for file in files
    }
    return Prepared(
        name=plain,
        version=path.name,
        path=path,
        features=features,
        splits={split: sum(counts) for split, counts in lengths.items()},
        shards=shards,
        shard_lengths=lengths,
        fingerprint={
            "name": plain,
            "version": path.name,
            "dataset_info": digest,
            "features": other,
            "shards": sizes,
        },
    )


def read(prepared: Prepared, split: str) -> Iterator[dict[str, Any]]:
    """All rows of a split in the order of the disk, images as their encoded bytes.

    What is wrong may show after some rows: only an iterator that ends is complete.

    Raises:
        ValueError: in one line that names dataset, file and command, if the split is
            unknown or empty, or a file is not what was declared.
    """
    name = str(prepared)
    if split not in prepared.splits:
        raise ValueError(
            f"dataset {name!r} has no split {split!r}; there are "
            f"{', '.join(prepared.splits)}"
        )
    if prepared.splits[split] < 1:
        raise _damaged(name, prepared.path, f"has no rows in the split {split!r}")
    tfds, records = _readers()
    skip = {
        key: tfds.decode.SkipDecoding()
        for key, feature in prepared.features.items()
        if feature.kind == "image"
    }
    try:
        builder = tfds.builder_from_directory(prepared.path)
        source = builder.as_data_source(split, decoders=skip, file_format=FORMAT)
    except Exception as error:  # whatever TFDS raises over a folder it cannot use
        raise _damaged(name, prepared.path, f"is refused by TFDS: {error}") from None
    start = 0
    counts = prepared.shard_lengths[split]
    for shard, count in zip(prepared.shards[split], counts, strict=True):
        _count(records, shard, count, name)
        for first in range(start, start + count, _RECORDS_AT_ONCE):
            last = min(first + _RECORDS_AT_ONCE, start + count)
            try:
                rows = source.__getitems__(list(range(first, last)))
            except Exception as error:
                raise _damaged(name, shard, f"cannot be read: {error}") from None
            yield from rows
        start += count


def damaged_row(prepared: Prepared, split: str, row: int, what: object) -> ValueError:
    """The error that one row of a split is not what it should be: names its file."""
    last = itertools.accumulate(prepared.shard_lengths[split])
    shard = next(i for i, end in enumerate(last) if row < end)
    return _damaged(
        str(prepared), prepared.shards[split][shard], f"has a bad row {row}: {what}"
    )


def command(name: str, *, again: bool = False) -> str:
    """The command that prepares a dataset, or prepares it again."""
    overwrite = " --overwrite" if again else ""
    return (
        f"tfds build {name}{overwrite} --file_format={FORMAT} --data_dir={data_dir()}"
    )


def _count(records: Any, shard: Path, declared: int, name: str) -> None:
    """Compares what the file itself says: rows beyond the declared ones show here."""
    try:
        reader = records.ArrayRecordReader(str(shard))
        found = reader.num_records()
        reader.close()
    except Exception as error:
        raise _damaged(name, shard, f"cannot be read: {error}") from None
    if found != declared:
        raise _damaged(
            name, shard, f"has {found} rows, but dataset_info.json says {declared}"
        )


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


def _feature(path: Path, key: str, value: Any) -> Feature:
    if "image" in value:
        dimensions = value["image"].get("shape", {}).get("dimensions", ())
        shape = tuple(int(n) if int(n) > 0 else None for n in dimensions)
        dtype = value["image"].get("dtype", "uint8")
        return Feature("image", shape or (None, None, 3), dtype)
    if "classLabel" in value:
        names = path / f"{key}.labels.txt"
        lines = names.read_text("utf-8").splitlines() if names.is_file() else []
        classes = int(value["classLabel"].get("numClasses", len(lines)))
        return Feature("label", num_classes=classes, names=tuple(lines))
    kind = str(value["pythonClassName"]).rpartition(".")[2]
    return Feature("text" if kind == "Text" else kind)


def _shards(path: Path, dataset: str, split: Any, num: int) -> tuple[Path, ...]:
    files = []
    for index in range(num):
        fields = {
            "DATASET": dataset,
            "SPLIT": split["name"],
            "FILEFORMAT": FORMAT,
            "SHARD_INDEX": f"{index:05d}",
            "NUM_SHARDS": f"{num:05d}",
            "SHARD_X_OF_Y": f"{index:05d}-of-{num:05d}",
        }
        template = split.get("filepathTemplate")
        file = (template or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}").format(
            **fields
        )
        if Path(file).name != file:
            raise _damaged(dataset, path, f"declares a file outside itself, {file!r}")
        files.append(path / file)
    return tuple(files)


def _size(shard: Path, name: str) -> int:
    try:
        return shard.stat().st_size
    except OSError:
        raise _damaged(name, shard, "is missing") from None


def _read_json(path: Path, name: str) -> tuple[Any, str]:
    """The content and its sha256."""
    try:
        content = path.read_bytes()
        return json.loads(content), hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise _damaged(name, path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise _damaged(name, path, f"is not JSON: {error}") from None


def _damaged(name: str, path: Path, what: str) -> ValueError:
    return ValueError(
        f"dataset {name!r}: {path} {' '.join(what.split())[:200]}; make it again with "
        f"`{command(name, again=True)}`, which needs TensorFlow"
    )


def _missing(
    name: str, plain: str, version: str | None, root: Path, versions: list[str]
) -> str:
    if not root.is_dir():
        return f"{root} is not a folder of datasets: set {VARIABLE} or pass --data-dir"
    if versions:
        there = f"version {version} is not there, but {', '.join(versions)}"
    elif configs := _subfolders(root / plain, _NAME):
        there = f"it has configurations: {', '.join(f'{plain}/{c}' for c in configs)}"
    else:
        there = f"there are {', '.join(_subfolders(root, _NAME)) or 'no datasets'}"
    return (
        f"dataset {name!r} is not in {root}: {there}; make it with "
        f"`{command(name)}`, which needs TensorFlow"
    )


def _subfolders(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if pattern.fullmatch(p.name))


def _by_number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
