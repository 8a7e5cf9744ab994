"""The site builds without a warning, holds every page, and fetches nothing."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.docs.pages import PAGES, ROOT

SITE = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]


def pages_of(entries):
    for entry in entries:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else pages_of(value)


def test_the_navigation_holds_every_page():
    there = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    assert sorted(pages_of(SITE["nav"])) == sorted(there)


def test_every_picture_is_shown():
    text = "".join((ROOT / page).read_text() for page in PAGES)
    for picture in (ROOT / "docs" / "images").iterdir():
        assert f"images/{picture.name})" in text, f"{picture.name} is not shown"


def test_pictures_are_those_of_their_script(tmp_path):
    script = ROOT / "docs" / "pictures.py"
    spec = importlib.util.spec_from_file_location("pictures", script)
    assert spec is not None and spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    pictures.main(tmp_path)
    for made in tmp_path.iterdir():
        stored = (ROOT / "docs" / "images" / made.name).read_bytes()
        assert made.read_bytes() == stored, f"{made.name}: run docs/pictures.py"


def test_it_builds_without_warnings_and_fetches_nothing(tmp_path):
    pytest.importorskip("zensical", reason="make docs installs it")
    pytest.importorskip("mkdocstrings", reason="make docs installs it")
    ignored = shutil.ignore_patterns("__pycache__", "tests", "results")
    rooms = [path for path in ROOT.iterdir() if (path / "__init__.py").exists()]
    for folder in [*rooms, ROOT / "docs"]:
        shutil.copytree(folder, tmp_path / folder.name, ignore=ignored)
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "No issues found" in built.stdout + built.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"(https?:)", text)
        assert not loaded, f"{page.name} loads something from elsewhere"
    api = (tmp_path / "site" / "api" / "lopt.html").read_text()
    assert "as_optax" in api and "inner steps of the whole run" in api
