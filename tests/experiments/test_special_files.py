"""No reader waits for a FIFO, follows a link to a device or reads gigabytes."""

from __future__ import annotations

import pytest

from evaluation import results, tuning_cache
from experiments.command_line import InputError
from experiments.convert import Convert, read
from experiments.run import run_directory
from lopt.interchange import msgpack, pylo
from tasks.data.declared import read_declaration
from tests.special_files import SPECIAL, TOO_LARGE, put

# By the name of a file, what reads it in its folder.
READERS = {
    "theta.msgpack": lambda folder: msgpack.read_tree(folder / "theta.msgpack"),
    "celo.theta": lambda folder: read(Convert(folder / "celo.theta", folder / "to")),
    "config.json": run_directory.read_config,
    "parent.json": run_directory.read_parent,
    "metrics.jsonl": lambda folder: run_directory.read_rows(folder / "metrics.jsonl"),
    "rows.jsonl": lambda folder: results.read_rows(folder / "rows.jsonl"),
    "dataset_info.json": lambda folder: read_declaration("mnist", folder, folder),
}


@pytest.mark.parametrize("kind", [*SPECIAL, *TOO_LARGE])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_of_a_sensible_size_is_named(tmp_path, name, kind):
    if (name, kind) == ("celo.theta", "folder"):
        pytest.skip("a folder of PyLO")
    put(tmp_path / name, kind)
    with pytest.raises((InputError, ValueError, OSError), match=name):
        READERS[name](tmp_path)


@pytest.mark.parametrize("kind", [*SPECIAL, *TOO_LARGE])
def test_pylo_s_configuration_is_not_waited_for(tmp_path, kind):
    put(tmp_path / "config.json", kind)
    with pytest.raises(ValueError, match=r"config\.json cannot be read: "):
        pylo.read_config(tmp_path, {})


@pytest.mark.parametrize("kind", [*SPECIAL, *TOO_LARGE])
def test_a_tuning_that_is_no_file_is_computed_anew(tmp_path, kind):
    put(tuning_cache.file_of(tmp_path, "about"), kind)
    with pytest.warns(UserWarning, match="is damaged and is computed anew"):
        assert tuning_cache.read(tmp_path, "about") is None
