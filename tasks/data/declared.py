"""Declarations of prepared datasets, read from two JSON files without TFDS.

`tasks.data.prepared` checks them against the shards when it reads rows.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configuration.files import read_bytes, read_text

FORMAT = "array_record"
INFO, FEATURES = "dataset_info.json", "features.json"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_FILE = re.compile(r"[\w+-][\w.+-]*", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Feature:
    """One named feature of a row."""

    kind: str
    """`image`, `label`, `text`, or the TFDS class of anything else."""
    shape: tuple[int | None, ...] = ()
    """Height, width and channels of an image; None where rows differ."""
    dtype: str = ""
    """Type of an image's pixels."""
    num_classes: int = 0
    """Number of labels."""
    names: tuple[str, ...] = ()
    """Names of the labels, if the dataset has them."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A version of a prepared dataset, as declared; its files exist."""

    name: str
    """TFDS name without the version: `mnist`, `imagenet_resized/32x32`."""
    version: str
    """MAJOR.MINOR.PATCH."""
    path: Path
    """The folder of that version."""
    features: Mapping[str, Feature]
    """Features of a row."""
    splits: Mapping[str, int]
    """Number of rows of each split."""
    shards: Mapping[str, tuple[Path, ...]]
    """Files of each split, in order."""
    shard_lengths: Mapping[str, tuple[int, ...]]
    """Number of rows of each file."""
    declared: tuple[Path, ...]
    """The files that declare it: information, features and names of labels."""

    @property
    def held_out(self) -> str | None:
        """The split that becomes test: `test`, else `validation`, else None."""
        return next((s for s in ("test", "validation") if s in self.splits), None)

    @property
    def listing(self) -> str:
        """Names and kinds of the features, for messages."""
        return ", ".join(f"{k} ({f.kind})" for k, f in self.features.items())

    def check_split(self, split: str) -> None:
        """Raises ValueError if there is no such split."""
        if split not in self.splits:
            raise ValueError(
                f"dataset {str(self)!r} has no split {split!r}; there are "
                f"{', '.join(self.splits)}"
            )

    def __str__(self) -> str:
        """Returns name and version as TFDS writes them."""
        return f"{self.name}:{self.version}"


def read_declaration(name: str, path: Path, root: Path) -> Prepared:
    """Reads the declaration of the version in `path`, below the data folder `root`.

    Raises:
        ValueError: in one line that names dataset, file and command, if a file is
            missing or not what TFDS writes, or the shards are not ArrayRecord.
    """
    full = f"{name}:{path.name}"
    info = _read_json(path / INFO, full, root)
    described = _read_json(path / FEATURES, full, root)
    try:
        formats = [info["fileFormat"], *info.get("alternativeFileFormats", ())]
        if info["name"] != name.partition("/")[0]:
            raise ValueError(f"it belongs to the dataset {info['name']!r}")
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
    # Anything in the files may be missing or of another type.
    except Exception as error:
        what = f"does not say what TFDS writes into {INFO} and {FEATURES}: {error!r}"
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
            # An empty file is reported when it is read.
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
        declared=(path / INFO, path / FEATURES, *sorted(path.glob("*.labels.txt"))),
    )


def damaged(name: str, path: Path, what: str, root: Path) -> ValueError:
    """Returns the error of a damaged file or folder; `what` is a predicate."""
    return ValueError(
        f"dataset {name!r}: {path} {' '.join(what.split())[:200]}; make it again with "
        f"`{command(name, root)} --overwrite`, which needs TensorFlow"
    )


def command(name: str, root: Path) -> str:
    """Returns the command that prepares a dataset, with or without a version."""
    return f"tfds build {name} --file_format={FORMAT} --data_dir={root}"


def _read_json(path: Path, name: str, root: Path) -> Any:
    try:
        return json.loads(read_bytes(path))
    except OSError as error:
        raise damaged(name, path, f"cannot be read: {error.strerror}", root) from None
    except (ValueError, RecursionError) as error:
        raise damaged(name, path, f"is not JSON: {error}", root) from None


def _shards(path: Path, dataset: str, split: Any) -> tuple[Path, ...]:
    num = len(split.get("shardLengths", ()))
    template = split.get("filepathTemplate") or _TEMPLATE
    files = []
    for index in range(num):
        file = template.replace("{DATASET}", dataset).replace("{SPLIT}", split["name"])
        file = file.replace("{FILEFORMAT}", FORMAT)
        file = file.replace("{SHARD_X_OF_Y}", f"{index:05d}-of-{num:05d}")
        file = file.replace("{SHARD_INDEX}", f"{index:05d}")
        file = file.replace("{NUM_SHARDS}", f"{num:05d}")
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
            names = tuple(read_text(file).splitlines())
        num_classes = int(value["classLabel"].get("numClasses", len(names)))
        return Feature("label", num_classes=num_classes, names=names)
    kind = str(value["pythonClassName"]).rpartition(".")[2]
    return Feature("text" if kind == "Text" else kind)
