"""What the folder of a prepared dataset declares, from its two JSON files.

Nothing is imported and no shard is opened: this is quick, and it is not to be trusted
further than it goes. Reading compares it with what is there (`tasks.data.prepared`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = "array_record"
INFO, FEATURES = "dataset_info.json", "features.json"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_NOT_UNDERSTOOD = (
    KeyError,
    TypeError,
    AttributeError,
    ValueError,
    OSError,
    OverflowError,
)
_FILE = re.compile(r"[\w+-][\w.+-]*", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Feature:
    """What a row holds under one name."""

    kind: str
    """`image`, `label`, `text`, or the class of TFDS for anything else."""
    shape: tuple[int | None, ...] = ()
    """Height, width and channels of an image; None where rows differ."""
    dtype: str = ""
    """Type of an image's pixels."""
    num_classes: int = 0
    """Number of labels."""
    names: tuple[str, ...] = ()
    """Names of the labels, where the dataset has them."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A version of a prepared dataset, as declared; its files are known to exist."""

    name: str
    """As TFDS writes it, without the version: `mnist`, `imagenet_resized/32x32`."""
    version: str
    """MAJOR.MINOR.PATCH."""
    path: Path
    """The folder of that version."""
    features: Mapping[str, Feature]
    """What a row holds."""
    splits: Mapping[str, int]
    """Number of rows of each split."""
    shards: Mapping[str, tuple[Path, ...]]
    """Files of each split, in order."""
    shard_lengths: Mapping[str, tuple[int, ...]]
    """Number of rows of each file."""
    fingerprint: Mapping[str, Any]
    """Name, version, all that is declared and the files' sizes, as plain JSON."""

    def __str__(self) -> str:
        """Name and version, as TFDS writes them."""
        return f"{self.name}:{self.version}"


def read_declaration(name: str, path: Path, root: Path) -> Prepared:
    """Reads the two files of a version's folder.

    Args:
        name: of the dataset, without the version.
        path: the folder of the version.
        root: the folder of all datasets, to say how this one is made.

    Raises:
        ValueError: in one line that names dataset, file and command, if a file is
            missing or not what TFDS writes, or the shards are not ArrayRecord.
    """
    full = f"{name}:{path.name}"
    info, info_digest = _read_json(path / INFO, full, root)
    described, features_digest = _read_json(path / FEATURES, full, root)
    try:
        formats = [info["fileFormat"], *info.get("alternativeFileFormats", ())]
        if info["name"] != name.partition("/")[0]:
            raise ValueError(f"it is of the dataset {info['name']!r}")
        lengths = {
            split["name"]: tuple(int(n) for n in split.get("shardLengths", ()))
            for split in info["splits"]
        }
        shards = {
            split["name"]: _shards(path, info["name"], split)
            for split in info["splits"]
        }
        features = {
            key: _feature(path, key, value)
            for key, value in described["featuresDict"]["features"].items()
        }
    except _NOT_UNDERSTOOD as error:
        what = f"says not what TFDS writes into {INFO} and {FEATURES}: {error!r}"
        raise damaged(full, path, what, root) from None
    if FORMAT not in formats:
        raise ValueError(
            f"dataset {full!r}: {path} is in the format {formats[0]!r}, but only "
            f"{FORMAT} is read; convert it with `tfds convert_format "
            f"--dataset_version_dir={path} --out_file_format={FORMAT}`, which needs "
            "TensorFlow"
        )
    sizes = {}
    for file in (file for files in shards.values() for file in files):
        if not file.is_file():
            raise damaged(full, file, "is missing", root)
        if file.name in sizes:
            raise damaged(full, file, "is declared as two shards", root)
        sizes[file.name] = file.stat().st_size
    for split, counts in lengths.items():
        for file, count in zip(shards[split], counts, strict=True):
            # An empty file is damaged too, which shows when it is read.
            if count < 0 or count > sizes[file.name] > 0:
                what = f"has {sizes[file.name]} bytes, not {count} rows as declared"
                raise damaged(full, file, what, root)
    return Prepared(
        name=name,
        version=path.name,
        path=path,
        features=features,
        splits={split: sum(counts) for split, counts in lengths.items()},
        shards=shards,
        shard_lengths=lengths,
        fingerprint={
            "name": name,
            "version": path.name,
            INFO: info_digest,
            FEATURES: features_digest,
            "shards": sizes,
        },
    )


def damaged(name: str, path: Path, what: str, root: Path) -> ValueError:
    """The error that something on disk is not as it should be.

    Args:
        name: of the dataset, with its version.
        path: of the file or folder.
        what: is wrong with it, as a predicate.
        root: the folder of all datasets.
    """
    return ValueError(
        f"dataset {name!r}: {path} {' '.join(what.split())[:200]}; make it again with "
        f"`{command(name, root)} --overwrite`, which needs TensorFlow"
    )


def command(name: str, root: Path) -> str:
    """The command that prepares a dataset, with or without a version."""
    return f"tfds build {name} --file_format={FORMAT} --data_dir={root}"


def _read_json(path: Path, name: str, root: Path) -> tuple[Any, str]:
    """The content, and its sha256."""
    try:
        content = path.read_bytes()
        return json.loads(content), hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise damaged(name, path, f"cannot be read: {error.strerror}", root) from None
    except (ValueError, RecursionError) as error:
        raise damaged(name, path, f"is not JSON: {error}", root) from None


def _shards(path: Path, dataset: str, split: Any) -> tuple[Path, ...]:
    num = len(split.get("shardLengths", ()))
    files = []
    for index in range(num):
        file = split.get("filepathTemplate") or _TEMPLATE
        for field, value in {
            "DATASET": dataset,
            "SPLIT": split["name"],
            "FILEFORMAT": FORMAT,
            "SHARD_X_OF_Y": f"{index:05d}-of-{num:05d}",
            "SHARD_INDEX": f"{index:05d}",
            "NUM_SHARDS": f"{num:05d}",
        }.items():
            file = file.replace("{" + field + "}", value)
        if not _FILE.fullmatch(file):
            raise ValueError(f"{file!r} is not the name of a file")
        files.append(path / file)
    return tuple(files)


def _feature(path: Path, key: str, value: Any) -> Feature:
    if "image" in value:
        dimensions = value["image"].get("shape", {}).get("dimensions", ())
        shape = tuple(int(n) if int(n) > 0 else None for n in dimensions)
        dtype = value["image"].get("dtype", "uint8")
        return Feature("image", shape or (None, None, 3), dtype)
    if "classLabel" in value:
        file = path / f"{key}.labels.txt"
        names = ()
        if _FILE.fullmatch(file.name) and file.is_file():
            names = tuple(file.read_text("utf-8").splitlines())
        num_classes = int(value["classLabel"].get("numClasses", len(names)))
        return Feature("label", num_classes=num_classes, names=names)
    kind = str(value["pythonClassName"]).rpartition(".")[2]
    return Feature("text" if kind == "Text" else kind)
