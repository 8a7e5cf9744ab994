"""Command lines that fail in one clear line, before anything is computed.

tyro reads the fields and writes the help; its framed, many-line errors are reduced to
one line that names the field, the value and what would be right. Exit code 2 means bad
input, 1 a computation that cannot go on, 130 an interruption that lost nothing.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from tasks.data.prepared import VARIABLE as DATA_DIR

T = TypeVar("T")

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
UNREAD = 141
"""Of a process whose output nobody reads any more: 128 and the number of SIGPIPE."""


class InputError(Exception):
    """Something that the user can mend; the message is one line."""


class ComputationError(Exception):
    """What was asked for is right, but went wrong; the message is one line."""


def fail(message: str, code: int = BAD_INPUT) -> NoReturn:
    """Prints one line to standard error and exits."""
    line = " ".join(message.split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(code)


def run(main: Callable[[], None]) -> None:
    """Runs a command; what the user can mend ends in one line and exit code 2.

    An `OSError` (a full disk, a folder without permission) counts as such; an error
    that nobody turned into an `InputError` is a defect and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every terminal has every sign
            stream.reconfigure(errors="replace")
    try:
        main()
    except InputError as error:
        fail(str(error))
    except ComputationError as error:
        fail(str(error), FAILED)
    except BrokenPipeError:  # whoever reads our output has seen enough
        os._exit(UNREAD)
    except OSError as error:
        fail(_describe(error))
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # every file is whole: no need to wait for workers


@contextlib.contextmanager
def reported() -> Any:
    """Turns the `ValueError` or `OSError` of checking user input into one line."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise InputError(_describe(error)) from None


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return str(error)


def choose_preset(
    presets: Mapping[str, tuple[str, Callable[[], T]]],
    program: str,
    arguments: Sequence[str],
) -> tuple[str, T]:
    """Reads `PRESET [--field.sub value]`: the preset's name and the resolved value.

    Args:
        presets: by name, a line of description and what makes the value; only the one
            that is asked for is made.
        program: for the help.
        arguments: of the command line.

    Raises:
        InputError: one line that names what is wrong.
    """
    arguments = take_data_dir(arguments)
    name = next((word for word in arguments if word in presets), None)
    if name is None:
        return _refuse_preset(presets, program, arguments)
    description, make = presets[name]
    with reported():
        chosen = {name: (description, make())}
    value = _parse(
        lambda: tyro.extras.overridable_config_cli(
            chosen, prog=program, args=list(arguments)
        ),
        arguments,
    )
    return name, value


def _refuse_preset(
    presets: Mapping[str, tuple[str, Any]], program: str, arguments: Sequence[str]
) -> NoReturn:
    """No known preset is named: help if that was asked for, else one line."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(f"usage: {program} PRESET [--field.sub value ...] [--data-dir DIR]\n")
        length = max(map(len, presets))
        for name, (description, _) in presets.items():
            print(f"  {name:<{length}}  {description}")
        print(f"\n{program} PRESET --help explains every field.")
        raise SystemExit(0 if arguments else BAD_INPUT)
    word = next((w for w in arguments if not w.startswith("-")), arguments[0])
    close = difflib.get_close_matches(word, presets, n=1)
    hint = f"; perhaps you meant {close[0]!r}" if close else ""
    raise InputError(f"unknown preset {word!r}: known are {', '.join(presets)}{hint}")


def parse(kind: Callable[..., T], program: str, arguments: Sequence[str]) -> T:
    """Reads the fields of a dataclass from `--field value`."""
    arguments = take_data_dir(arguments)
    return _parse(lambda: tyro.cli(kind, prog=program, args=list(arguments)), arguments)


def take_data_dir(arguments: Sequence[str]) -> list[str]:
    """Obeys `--data-dir DIR`, which every command understands, and takes it out.

    It is no field of a configuration: where the prepared datasets lie on this machine
    changes no result, so it must not be stored with one.

    Raises:
        InputError: if the folder is missing.
    """
    kept, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if flag not in ("--data-dir", "--data_dir"):
            kept.append(word)
            continue
        if not equals:
            if not rest:
                raise InputError("--data-dir needs the folder of prepared datasets")
            value = rest.pop(0)
        folder = Path(os.path.expanduser(value)).absolute()
        if not value or not folder.is_dir():
            raise InputError(f"--data-dir {value!r} is not a folder")
        os.environ[DATA_DIR] = str(folder)
    return kept


def take_name(
    arguments: Sequence[str], flag: str, what: str, known: Collection[str]
) -> tuple[str | None, list[str]]:
    """Takes `FLAG NAME` out of a command line: the last name, and what is left.

    Args:
        arguments: of the command line.
        flag: with its dashes; `FLAG.FIELD` is left alone.
        what: a word for what is named.
        known: the names.

    Raises:
        InputError: if the name is missing or unknown.
    """
    chosen, kept, rest = None, [], list(arguments)
    names = ", ".join(known)
    while rest:
        word = rest.pop(0)
        given, equals, value = word.partition("=")
        if given != flag:
            kept.append(word)
            continue
        if not equals:
            if not rest or rest[0].startswith("-"):
                raise InputError(f"{flag} needs a name: {names}")
            value = rest.pop(0)
        if value not in known:
            raise InputError(f"unknown {what} {flag} {value!r}: known are {names}")
        chosen = value
    return chosen, kept


def _parse(read: Callable[[], T], arguments: Sequence[str]) -> T:
    if {"-h", "--help"} & set(arguments):
        try:
            return read()
        finally:
            print(f"--data-dir DIR: folder of prepared TFDS datasets (or {DATA_DIR})")
    output, width = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"  # no line of an error is wrapped
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            return read()
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_one_line(output.getvalue())) from None
    finally:
        os.environ.pop("COLUMNS")
        if width is not None:
            os.environ["COLUMNS"] = width


def _one_line(text: str) -> str:
    """The first block of tyro's framed message, with its suggestion if it has one."""
    frame = "│╭╮╰╯─|+- "
    lines = [line.strip("│| ") for line in text.splitlines()]
    blocks: list[list[str]] = [[]]
    for line in lines[1:]:  # the first line is the frame's title
        if line and not line.strip(frame):
            blocks.append([])
        elif line:
            blocks[-1].append(line.strip())
    blocks = [block for block in blocks if block] or [[text]]
    message = " ".join(blocks[0])
    message = re.sub(r"Error parsing (__tyro-dummy-inner__\.?|\{[^}]*\})", "", message)
    message = re.sub(r"^:? ?\w+Config: |^: ", "", message)
    message = message.replace("Unrecognized options:", "unknown field or value:")
    message = message.replace("Error parsing ", "")
    for block in blocks[1:]:
        if block[0].startswith(("Perhaps you meant", "Argument helptext")):
            flags = [line for line in block if line.startswith("-")]
            expected = flags[0] if flags else " ".join(block[1:])
            word = "perhaps you meant" if "Perhaps" in block[0] else "expected"
            return f"{message}; {word} {expected}"
        if block[0].startswith("Available subcommands"):
            return f"{message}; {block[0]}"
    return message
