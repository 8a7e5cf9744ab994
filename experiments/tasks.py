"""Tasks to train on: `python -m experiments.tasks list | show NAME [--json]`.

`list` prints all families, distributions and suites; `show` prints each task of one of
them: parameters, FLOP of a step, memory, and the μP role of every parameter. Parameters
are not allocated and prepared data is not read, so large networks show in seconds.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import tyro

from configuration.fields import configuration
from experiments import command_line
from experiments.presets.inventory import (
    Entry,
    as_json,
    as_text,
    describe,
    entries,
    inventory,
)

PROGRAM = "python -m experiments.tasks"


@dataclasses.dataclass(frozen=True)
class List:
    """All families, distributions and suites."""

    json: bool = False
    """Print JSON."""


@configuration
class Show:
    """Each task of a family, a distribution or a suite."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """A name that `list` prints."""
    json: bool = False
    """Print JSON."""


COMMAND: Any = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
)


def _print_list(kinds: Mapping[str, Mapping[str, str]]) -> None:
    length = max(len(name) for names in kinds.values() for name in names)
    for kind, names in kinds.items():
        print(kind if names else f"{kind}: none")
        for name, text in names.items():
            print(f"  {name:<{length}}  {text}")


def _show(found: Iterable[Entry]) -> None:
    for number, entry in enumerate(found):
        print("\n" * bool(number) + as_text(describe(entry)), flush=True)


def main() -> None:
    """Command line."""
    given = command_line.parse(COMMAND, PROGRAM, sys.argv[1:])
    match given:
        case List(json=False):
            _print_list(inventory())
        case List():
            print(json.dumps(inventory(), indent=2, ensure_ascii=False))
        case Show(name=name, json=False):
            _show(entries(name))
        case Show(name=name):
            tasks = [as_json(describe(entry)) for entry in entries(name)]
            print(json.dumps(tasks, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    command_line.run(main)
