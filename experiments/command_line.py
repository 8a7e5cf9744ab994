"""Command lines that fail in one clear line, before anything is computed.

tyro reads the fields and writes the help. Its errors are reduced to one line that names
the field, the value and the remedy. Exit codes: 2 for bad input, 1 for a computation
that cannot go on, 130 for an interruption, after which the same command continues.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar, get_args, get_type_hints

import jax
import tyro

# Private, but tyro's only structured account of an error; the version is pinned.
from tyro import _errors as tyro_errors

from experiments.signals import discard_output, handled, tell
from tasks.data.prepared import VARIABLE as DATA_DIR

T = TypeVar("T")

COMMANDS = (
    "convert",
    "coordinate_check",
    "diagnose",
    "evaluate",
    "export",
    "fleet",
    "generate",
    "hosts",
    "learning_rate_transfer",
    "optimizers",
    "quickstart",
    "tasks",
    "train",
)
"""Modules of `experiments` that are commands: `python -m experiments.NAME`."""

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
UNREAD = 141
"""Exit code when the reader of the output is gone: 128 + SIGPIPE."""

Components: TypeAlias = Mapping[str, Mapping[str, Callable[[], Any]]]
"""By field and name, functions that make what the name stands for."""
_MOST_PLACES = 5


class InputError(Exception):
    """An error that the user can mend; the message is one line."""


class ComputationError(Exception):
    """A failure of a valid computation; the message is one line."""


def fail(message: str, code: int = BAD_INPUT) -> NoReturn:
    """Prints one line to standard error and exits."""
    line = " ".join(message.split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    try:
        print(f"error: {line}", file=sys.stderr, flush=True)
    except OSError:
        discard_output(2)
    raise SystemExit(code)


def run(main: Callable[[], None]) -> None:
    """Runs a command and turns its errors into one line and an exit code.

    An `OSError` (a full disk, a folder without permission) counts as bad input. Any
    other exception is a defect and keeps its traceback. SIGINT ends the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every terminal has every sign
            stream.reconfigure(errors="replace")
    try:
        with handled(_interrupt, (signal.SIGINT,)):
            _run_flushed(main)
    except InputError as error:
        fail(str(error))
    except ComputationError as error:
        fail(str(error), FAILED)
    except BrokenPipeError:
        os._exit(UNREAD)
    except OSError as error:
        if error.filename is None and not _can_print():
            discard_output(1)  # or the interpreter fails again when it ends
            fail(f"standard output: {_describe(error)}")
        fail(_describe(error))
    except MemoryError as error:
        fail(str(error) or "out of memory")
    except jax.errors.JaxRuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        with contextlib.suppress(SystemExit):
            fail(str(error).splitlines()[0])
        os._exit(BAD_INPUT)  # other devices may compute for long
    except KeyboardInterrupt:
        _interrupt()


def _run_flushed(main: Callable[[], None]) -> None:
    """Runs a command and writes all its output, also if it exits."""
    try:
        main()
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def _can_print() -> bool:
    """Whether standard output can be written, of which errors do not tell the name."""
    try:
        print(flush=True)
    except OSError:
        return False
    return True


def _interrupt(*arguments: Any) -> NoReturn:
    """Ends the process at once, as a handler of SIGINT.

    An exception could be raised inside a callback that drops it. Every file is whole,
    so there is no need to clean up or to wait for worker threads.
    """
    tell("interrupted; finished work is kept")
    with contextlib.suppress(OSError, RuntimeError):  # it may be printing
        sys.stdout.flush()
    os._exit(INTERRUPTED)


def check_folder(flag: str, path: Path | None) -> None:
    """Raises `InputError` if a path is given and is not a folder."""
    if path is not None and not path.is_dir():
        raise InputError(f"{flag} {path} is not a folder")


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turns a `ValueError` or an `OSError` into an `InputError`."""
    try:
        yield
    except BrokenPipeError:  # nobody reads the output any more: `run` ends
        raise
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
    named: Components | None = None,
) -> tuple[str, T]:
    """Reads `PRESET [--field.sub value]`.

    The preset may also follow options, where no word can be mistaken for it.

    Args:
        presets: by name, a description and a function that makes the value; only the
            chosen one is called.
        program: name of the program in the help.
        arguments: words of the command line.
        named: by field, what `--FIELD NAME` puts there; for errors.

    Raises:
        InputError: if the preset, a field or a value is wrong, or if the preset may
            be an option's value.
    """
    rest = take_data_dir(arguments)
    place = _place_of_preset(presets, rest)
    if place is None:
        _refuse_preset(presets, program, rest)
    name = rest[place]
    description, make = presets[name]
    with reported():
        preset = make()
    _check_not_a_value(rest[: place + 1], preset)
    del rest[place]
    rest, written = _in_wrapped(preset, rest)
    _check_no_positional(preset, rest)
    try:
        return name, _parse(
            type(preset),
            rest,
            partial(_places, presets, named or {}),
            prog=f"{program} {name}",
            description=description,
            default=preset,
            config=(tyro.conf.AvoidSubcommands,),
        )
    except InputError as error:
        message = str(error)
        for full, short in written.items():
            message = message.replace(full, short)
        raise InputError(message) from None


def _in_wrapped(preset: Any, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Writes options of wrapped optimizers in full.

    `--lopt.learning-rate` is that of the innermost optimizer that has one, so that an
    option means the same with and without wrappers.

    Returns:
        The words, and the options that were changed, as they stood, by their full form.
    """
    full: dict[str, str] = {}
    for flag in sorted(_leaves(preset), key=len, reverse=True):
        full.setdefault(re.sub(r"(\.inner)+\.", ".", flag), flag)
    found, written = [], {}
    for word in words:
        option, equals, value = word.partition("=")
        option = option.replace("_", "-") if option.startswith("--") else option
        plain = re.sub(r"\.no-([^.]*)$", r".\1", option)
        if plain in full and full[plain] != plain:
            path = full[plain].rpartition(".")[0]
            whole = f"{path}.{option.rpartition('.')[2]}"
            written[whole] = option
            word = f"{whole}{equals}{value}"
        found.append(word)
    return found, written


def _check_no_positional(preset: Any, words: Sequence[str]) -> None:
    """Refuses a word that is no option's value.

    tyro would take one as the value of a field that holds a name or a dataclass, such
    as a schedule.
    """
    leaves, rest = _leaves(preset), list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            raise InputError(
                f"unknown field or value: {word}; --help shows what is known"
            )
        flag = word.replace("_", "-")
        value = leaves.get(flag)
        if isinstance(value, bool) and rest and rest[0] in ("True", "False", "None"):
            if _hint(preset, flag) is bool:
                path, dot, name = flag.removeprefix("--").rpartition(".")
                no = f"--{path}{dot}no-{name}"
                raise InputError(f"{word} {rest[0]}: write {flag} or {no}")
            rest.pop(0)
        if "=" in word or isinstance(value, bool):
            continue
        # How many values None, a tuple or an unknown option take is tyro's to say.
        many = value is None or isinstance(value, tuple)
        while rest and not rest[0].startswith("--"):
            rest.pop(0)
            if not many:
                break


def _hint(preset: Any, flag: str) -> Any:
    """Returns the type of the field that an option sets."""
    *path, name = flag.removeprefix("--").replace("-", "_").split(".")
    owner = preset
    for part in path:
        owner = owner[int(part)] if part.isdigit() else getattr(owner, part)
    return get_type_hints(type(owner)).get(name)


def _places(
    presets: Mapping[str, tuple[str, Callable[[], Any]]], named: Components, flag: str
) -> str:
    """Returns `; FLAG exists for ...` with the components or presets that have it."""
    for field, makes in named.items():
        found = [
            name
            for name, make in makes.items()
            if flag in _leaves(make(), f"--{field}.")
        ]
        if found:
            return f"; {flag} exists for --{field} {', '.join(found)}"
    found = [name for name, (_, make) in presets.items() if _has(make, flag)]
    shown = [*found[:_MOST_PLACES], *["…"] * (len(found) > _MOST_PLACES)]
    return f"; {flag} exists for the presets {', '.join(shown)}" if found else ""


def _has(make: Callable[[], Any], flag: str) -> bool:
    with contextlib.suppress(ValueError, OSError):
        return flag in _leaves(make())
    return False


def _refuse_preset(
    presets: Mapping[str, tuple[str, Any]], program: str, arguments: Sequence[str]
) -> NoReturn:
    """Prints the presets if there is no argument or help is asked for, or raises."""
    if not arguments or asks_for_help(arguments):
        print(f"usage: {program} PRESET [--field.sub value ...] [--data-dir DIR]\n")
        length = max(map(len, presets))
        for name, (description, _) in presets.items():
            print(f"  {name:<{length}}  {description}")
        print(f"\n{program} PRESET --help explains every field.")
        raise SystemExit(0 if arguments else BAD_INPUT)
    known = f"known are {', '.join(presets)}"
    pairs = zip(["", *arguments], arguments, strict=False)
    free = [x for last, x in pairs if not (x.startswith("-") or _is_option(last))]
    if free:
        near = suggestion(free[0], presets)
        raise InputError(f"unknown preset {free[0]!r}: {known}{near}")
    raise InputError(
        f"no preset is given, only options ({' '.join(arguments)}): put it first; "
        f"{known}"
    )


def _place_of_preset(
    presets: Mapping[str, tuple[str, Callable[[], Any]]], words: Sequence[str]
) -> int | None:
    """Returns the index of the positional word that names a preset, if there is one."""
    if words and not words[0].startswith("-"):
        return 0 if words[0] in presets else None
    named = [i for i, word in enumerate(words) if word in presets]
    places = [i for i in named if not _is_option(words[i - 1])]
    if not places:
        places = [i for i in named if _is_switch(words[i - 1], presets[words[i]][1])]
    if len(places) > 1:
        candidates = " and ".join(repr(words[i]) for i in places)
        raise InputError(f"{candidates} may each be the preset: put the preset first")
    return places[0] if places else None


def _is_option(word: str) -> bool:
    """Whether the next word may be this one's value."""
    return word.startswith("--") and "=" not in word and word != "--help"


def _is_switch(option: str, make: Callable[[], Any]) -> bool:
    """Whether an option is a truth value of the preset, which takes no word."""
    flag = re.sub(r"(^--|\.)no-([^.]*)$", r"\1\2", option.replace("_", "-"))
    with contextlib.suppress(ValueError, OSError):
        leaves = _leaves(make())
        return any(isinstance(leaves.get(name), bool) for name in (option, flag))
    return False


def _check_not_a_value(words: Sequence[str], preset: Any) -> None:
    """Refuses a last word that an option with any number of texts may take."""
    option = next((word for word in reversed(words) if word.startswith("--")), "")
    value = _leaves(preset).get(option.replace("_", "-"))
    # Entries of an empty tuple may be texts.
    if value == () or (
        isinstance(value, tuple) and not all(isinstance(x, int | float) for x in value)
    ):
        raise InputError(
            f"{words[-1]!r} may be the preset or a value of {option}: put the preset "
            "first"
        )


def parse(kind: Callable[..., T], program: str, arguments: Sequence[str]) -> T:
    """Reads the fields of a dataclass, or a union of subcommands, from `--field value`.

    Raises:
        InputError: if a field or a value is wrong.
    """
    return _parse(kind, take_data_dir(arguments), prog=program)


def suggestion(word: str, known: Collection[str]) -> str:
    """Returns `; perhaps you meant 'NAME'` for a close name, else an empty string."""
    # By their last parts first: any two fields with a long path in common are close.
    last = word.rpartition(".")[2]
    near = [
        name
        for name in known
        if difflib.get_close_matches(last, [name.rpartition(".")[2]], cutoff=0.7)
    ]
    close = difflib.get_close_matches(word, near, n=1, cutoff=0.7)
    return f"; perhaps you meant {close[0]!r}" if close else ""


def take_option(
    arguments: Sequence[str], flag: str, needs: str = "a value"
) -> tuple[str | None, list[str]]:
    """Takes `FLAG VALUE` or `FLAG=VALUE` out of a command line.

    Args:
        arguments: words of the command line.
        flag: with its dashes; underscores count as dashes, and `FLAG.FIELD` is another
            flag.
        needs: words for the value, for an error.

    Returns:
        The last value, or None if the flag is absent; and the other words.

    Raises:
        InputError: if the value is missing.
    """
    value, kept, words = None, [], iter(arguments)
    for word in words:
        given, equals, after = word.partition("=")
        if given.replace("_", "-") != flag:
            kept.append(word)
            continue
        value = after if equals else next(words, "--")
        if not equals and value.startswith("--"):
            raise InputError(f"{flag} needs {needs}")
    return value, kept


def take_name(
    arguments: Sequence[str], flag: str, what: str, known: Collection[str]
) -> tuple[str | None, list[str]]:
    """Takes `FLAG NAME` out of a command line, as `take_option`.

    Raises:
        InputError: if the name is missing or unknown.
    """
    names = ", ".join(known)
    name, rest = take_option(arguments, flag, f"a name: {names}")
    if name is not None and name not in known:
        raise InputError(f"unknown {what} {flag} {name!r}: known are {names}")
    return name, rest


def take_data_dir(arguments: Sequence[str]) -> list[str]:
    """Takes `--data-dir DIR` out of a command line and sets `DATA_DIR` to it.

    It is not a field of a configuration, since where the prepared datasets lie on a
    machine changes no result.

    Raises:
        InputError: if the folder is missing.
    """
    value, rest = take_option(
        arguments, "--data-dir", "the folder of prepared datasets"
    )
    if value is not None:
        folder = Path(os.path.expanduser(value)).absolute()
        if not value or not folder.is_dir():
            raise InputError(f"--data-dir {value!r} is not a folder")
        os.environ[DATA_DIR] = str(folder)
    return rest


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether help is among the words of a command line."""
    return bool({"-h", "--help"} & set(arguments))


def _parse(
    kind: Callable[..., T],
    arguments: Sequence[str],
    places: Callable[[str], str] = lambda flag: "",
    **options: Any,
) -> T:
    def refuse(event: tyro_errors.ParseErrorEvent) -> NoReturn:
        fields = _flags(options.get("default", kind))
        raise InputError(_message(event, fields, places)) from None

    try:
        with tyro_errors.on_parse_error(refuse):
            return tyro.cli(kind, args=list(arguments), **options)
    finally:
        if asks_for_help(arguments):
            print(f"--data-dir DIR: folder of prepared TFDS datasets (or {DATA_DIR})")


def _message(
    event: tyro_errors.ParseErrorEvent,
    flags: Sequence[str],
    places: Callable[[str], str],
) -> str:
    """Returns one line that names the field, the value and the remedy."""
    match event:
        case tyro_errors.UnrecognizedArgs(tokens=tokens):
            unknown = next((x for x in tokens if x.startswith("--")), "")
            flag = unknown.partition("=")[0].replace("_", "-")
            remedy = flag and (suggestion(flag, flags) or places(flag))
            remedy = remedy or "; --help shows what is known"
            return f"unknown field or value: {', '.join(tokens)}{remedy}"
        case tyro_errors.InstantiationFailure(message=message, argument=argument):
            if argument is None:
                # tyro gives the path of a nested dataclass only to its own exception.
                where = getattr(sys.exception(), "arg", "")
                return f"{where}: {message}" if where else message
            name, expected = argument.display_name(), argument.lowered.metavar
            return f"{name}: {message}; expected {name} {expected}"
        case tyro_errors.InvalidChoice(argument=argument, value=value, choices=choices):
            name = argument.display_name()
            return f"{name} {value!r} must be one of {', '.join(choices)}"
        case tyro_errors.BadValue(argument=argument):
            return f"{argument.display_name()} needs {argument.lowered.metavar}"
        case tyro_errors.MissingArgs(missing_arguments=missing):
            names = [given.arg.display_name() for given in missing]
            return f"{' and '.join(names)} must be given; --help explains every field"
        case tyro_errors.MissingSubcommand(subcommand_spec=known):
            return f"give one of {', '.join(known.parser_from_name)}"
    return f"wrong command line ({type(event).__name__}); --help explains every field"


def _flags(fields: Any) -> list[str]:
    """Returns the flags of a dataclass or its value, or of a union of subcommands."""
    if isinstance(fields, tuple) or dataclasses.is_dataclass(fields):
        return list(_leaves(fields))
    return [flag for member in get_args(fields) for flag in _flags(member)]


def _leaves(fields: Any, prefix: str = "--") -> dict[str, Any]:
    """Returns the values (None if there is none) of a dataclass's fields, by flag."""
    if isinstance(fields, tuple):
        named = {str(index): item for index, item in enumerate(fields)}
    else:
        # A class has the defaults of its fields as attributes.
        names = [field.name for field in dataclasses.fields(fields)]
        named = {name: getattr(fields, name, None) for name in names}
    found: dict[str, Any] = {}
    for name, value in named.items():
        flag = prefix + name.replace("_", "-")
        items = value if isinstance(value, tuple) else (value,)
        if any(map(dataclasses.is_dataclass, items)):
            found |= _leaves(value, f"{flag}.")
        else:
            found[flag] = value
    return found
