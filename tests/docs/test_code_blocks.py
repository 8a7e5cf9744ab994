"""What the documentation shows is what the program does.

*Run*: every Python block; the blocks of a page in one namespace, in order, in a
temporary folder where `tests/golden/artifact_schema_1` stands for the quickstart's
artifact. Command lines marked `run`, or `run with` (with the flags of the mark added).

*Parsed only*: every other `python -m experiments.…` (by the command's own parser, up to
the resolved configuration), `python -m benchmarks.…` (flags are looked up in the
module), `make` (targets), `pip` (requirement files, local folders and extras exist) and
`python -m pytest` (paths exist). Commands of other programs are known by name.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import sys
import tomllib
import types
from pathlib import Path

import pytest

from experiments import command_line, hosts
from tests.docs.pages import LANGUAGES, PAGES, ROOT, Block, blocks, commands, inline

ELSEWHERE = {"cd", "export", "git", "sha256sum", "source", "tensorboard", "tfds"}


class Parsed(BaseException):
    """Raised in place of a command's work, once its arguments are understood."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which the quickstart seems to have run."""
    golden = ROOT / "tests" / "golden"
    for name in ("pylo_metamlp", "artifact_schema_1", "run_schema_1"):
        shutil.copytree(golden / name, tmp_path / "tests" / "golden" / name)
    shutil.copytree(golden / "run_schema_1", tmp_path / "runs" / "quickstart")
    artifact = tmp_path / "runs" / "quickstart" / "artifact"
    shutil.rmtree(artifact)
    shutil.copytree(golden / "artifact_schema_1", artifact)
    (tmp_path / "DIR").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of(page: str, language: str) -> list[Block]:
    found = [b for b in blocks(page) if b.language == language]
    return [block for block in found if not block.is_skipped]


def having(language: str, slow: bool = False) -> list[str]:
    found = []
    for page in PAGES:
        marks = {block.mark == "slow" for block in of(page, language)}
        if marks and (True in marks if slow else False in marks):
            found.append(page)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page):
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.place}: {block.language!r}"
        if block.is_skipped:
            assert block.argument, f"{block.place}: say why it is not run"
        if block.language == "json":
            json.loads(block.text)
        if block.language == "toml":
            tomllib.loads(block.text)


@pytest.mark.parametrize("page", having("python"))
def test_python_blocks_run_in_order(page, folder):
    run_blocks([block for block in of(page, "python") if block.mark != "slow"])


@pytest.mark.slow
@pytest.mark.parametrize("page", having("python", slow=True))
def test_slow_python_blocks_run_in_order(page, folder):
    run_blocks(of(page, "python"))


def run_blocks(found: list[Block]) -> None:
    module = types.ModuleType("page")
    for block in found:
        # Line numbers of a traceback are those of the page.
        code = "\n" * block.line + block.text
        path = str(ROOT / block.page)
        exec(compile(code, path, "exec", dont_inherit=True), vars(module))


@pytest.mark.parametrize("page", having("sh"))
def test_command_lines_are_understood(page, folder, monkeypatch, capsys):
    for block in blocks(page):
        if block.mark == "file":
            (folder / block.argument).write_text(block.text)
    for block in of(page, "sh"):
        for words in commands(block):
            try:
                check(words, block, monkeypatch)
            except BaseException as error:
                line = " ".join(words)
                raise AssertionError(f"{block.place}: {line}: {error!r}") from error


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_are_understood(page, folder, monkeypatch):
    for text in inline(page):
        block = Block(page, 0, "sh", text)
        if text.startswith(("python -m ", "make ")) and "PRESET" not in text:
            for words in commands(block):
                if len(words) > 3 or words[0] == "make":
                    check(words, block, monkeypatch)
                else:
                    assert importlib.util.find_spec(words[2]), f"no {words[2]}"


def check(words: list[str], block: Block, monkeypatch) -> None:
    """Runs one command line, or sees that its program would take it."""
    if words[0] == "srun":
        words = words[1:]
    while "=" in words[0]:
        words = words[1:]
    if "|" in words:
        words = words[: words.index("|")]
    if words[0] in ("python", ".venv/bin/python") and words[1] == "-m":
        module, arguments = words[2], words[3:]
        area = module.split(".")[0]
        if area == "experiments":
            run_command(module, arguments, block, monkeypatch)
        elif area == "benchmarks":
            check_flags(module, arguments)
        elif area == "pip":
            check_pip(arguments)
        elif area == "pytest":
            for path in (word for word in arguments if "/" in word):
                assert (ROOT / path.split("::")[0]).exists(), f"{path} is missing"
        else:
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    elif words[0] == "pip":
        check_pip(words[1:])
    elif words[0] == "make":
        targets = (ROOT / "Makefile").read_text()
        for word in (w for w in words[1:] if "=" not in w):
            target = re.escape(word.replace(".venv", "$(VENV)"))
            assert re.search(rf"^{target}:", targets, re.MULTILINE), f"no {word}"
    elif words[0] == "bash":
        assert (ROOT / words[1]).exists(), f"{words[1]} is missing"
    else:
        assert words[0] in ELSEWHERE, f"unknown program {words[0]!r}"


def run_command(module: str, arguments: list[str], block: Block, monkeypatch) -> None:
    """Runs `python -m module`, up to its configuration unless its block is run."""
    command = importlib.import_module(module)
    runs = block.mark.startswith("run")
    given = [*arguments, *(block.argument.split() if runs else [])]
    monkeypatch.setattr(sys, "argv", [module, *given])
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        if not runs:
            for name in ("parse", "choose_preset"):
                patch.setattr(command_line, name, stopped(getattr(command_line, name)))
            patch.setattr(hosts, "launch", stopped(lambda *given: given))
        try:
            command.main()
        except Parsed:
            pass
        except SystemExit as end:
            assert not end.code, f"exit code {end.code}"


def stopped(parse):
    """The parser, with an end of the command behind it."""

    def parse_and_stop(*arguments):
        parse(*arguments)
        raise Parsed

    return parse_and_stop


def check_flags(module: str, arguments: list[str]) -> None:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin, f"no module {module}"
    source = Path(spec.origin).read_text()
    for flag in (word for word in arguments if word.startswith("--")):
        assert f'"{flag}"' in source, f"{module} knows no {flag}"


def check_pip(arguments: list[str]) -> None:
    """Sees that requirement files, local folders and extras exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before == "-r":
            assert (ROOT / word).exists(), f"{word} is missing"
        elif word.startswith("."):
            where, _, extras = word.partition("[")
            assert (ROOT / where / "pyproject.toml").exists(), f"{where} is missing"
            for extra in filter(None, extras.rstrip("]").split(",")):
                assert extra in project["optional-dependencies"], f"no extra {extra}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    """A path of the repository in a code span, and a relative link."""
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"runs", "build"}
    for text in inline(page):
        is_path = re.fullmatch(r"[A-Za-z_.]+(/[A-Za-z0-9_.]+)+/?", text)
        if is_path and text.split("/")[0] in rooms:
            assert (ROOT / text).exists(), f"{page}: {text} is missing"
    source = re.sub(r"`[^`]*`", "", (ROOT / page).read_text())
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", source):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_the_files_of_every_room_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = re.findall(r"^\| `(\w+)/` \|(.*)$", text, flags=re.MULTILINE)
    assert len(rooms) > 5
    for room, about in rooms:
        for name in re.findall(r"`(\w+\.py)`", about):
            assert list((ROOT / room).rglob(name)), f"{room}/ has no {name}"


def test_the_readme_fits_on_two_screens():
    assert len((ROOT / "README.md").read_bytes()) <= 8192
    assert len((ROOT / "ARCHITECTURE.md").read_bytes()) <= 10_240
