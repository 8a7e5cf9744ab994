"""Tunings on disk, under a hash of everything that determines them.

A file holds the description that was hashed, the result and the result's checksum. It
appears by one rename, so concurrent processes never see a part of a file, and the last
of them wins with the same content. A damaged file is reported and computed anew.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from configuration.digests import of_json
from configuration.files import read_text, write_text


def file_of(folder: str | Path, about: Any) -> Path:
    """Returns the path of the result with this canonical description."""
    return Path(folder) / f"{of_json(about)[:32]}.json"


def read(folder: str | Path, about: Any) -> dict[str, Any] | None:
    """Reads a result; None if there is none or, with a warning, if it is damaged."""
    path = file_of(folder, about)
    try:
        content = json.loads(read_text(path))
        stored = content["result"]
        if content["about"] != about or content["sha256"] != of_json(stored):
            raise ValueError("its checksum or its description does not agree")
        return stored
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        warnings.warn(
            f"the tuning cache {path} is damaged and is computed anew: {error!r}",
            stacklevel=3,
        )
        return None


def write(folder: str | Path, about: Any, result: dict[str, Any]) -> None:
    """Writes a result, replacing an earlier one."""
    content = {"about": about, "sha256": of_json(result), "result": result}
    text = json.dumps(content, indent=1, allow_nan=False)
    write_text(file_of(folder, about), text + "\n")
