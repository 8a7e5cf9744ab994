"""A checkpoint is whole or not there, and what is damaged is never loaded."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import resource
import shutil

import jax
import numpy as np
import pytest

from configuration.files import SUMS, verify_sums, write_sums
from metatrain.checkpoint import Checkpoints
from tests.metatrain.killed_saves import state

# Threads of tensorstore that fail after orbax has given up say so, at any later time.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def same(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes()
        for a, b in ((np.asarray(a), np.asarray(b)) for a, b in pairs)
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Checkpoints of steps 1 and 2; a matrix of some pages is in each."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    for step in (1, 2):
        Checkpoints(folder).save(step, large(step))
    return folder


def large(mark):
    noise = np.random.default_rng(mark).integers(0, 2**32, (64, 64), np.uint32)
    return state(mark) | {"noise": noise}


@pytest.fixture
def copy(two, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    return Checkpoints(folder)


def flip(place):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[int(place * (len(data) - 1))] ^= 1
        path.write_bytes(data)

    return damage


def zero_page(path):
    """Zeroes the 4 KiB page in the middle, or the whole of a smaller file."""
    data = path.read_bytes()
    begin = (len(data) // 2) // 4096 * 4096
    end = min(begin + 4096, len(data))
    path.write_bytes(data[:begin] + bytes(end - begin) + data[end:])


def longer(path):
    with path.open("ab") as file:
        file.write(b"\0")


DAMAGES = {
    "first byte": flip(0.0),
    "inner byte": flip(0.4),
    "last byte": flip(1.0),
    "zeroed page": zero_page,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "longer": longer,
    "missing": lambda path: path.unlink(),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "dead link": lambda path: (path.unlink(), path.symlink_to("/nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_of_any_file_is_noticed_and_the_step_before_is_taken(copy, damage):
    newest = copy.folder / "step_00000002"
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    assert len(files) >= 8
    data = max(files, key=os.path.getsize)
    assert data.stat().st_size > 3 * 4096
    for path in files:
        kept = path.read_bytes()
        damage(path)
        if path.is_file() and path.read_bytes() == kept:
            assert damage is zero_page or not kept  # nothing to damage
            continue
        step, restored, warnings, _ = copy.restore(large(0))
        assert step == 1 and same(restored, large(1))
        [warning] = warnings
        assert warning.startswith("checkpoint of step 2 is skipped: ")
        # A damaged list accuses what it lists, or itself.
        assert str(newest) in warning and (str(path) in warning or path.name == SUMS)
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(kept)
    assert copy.restore(large(0)).step == 2


@pytest.mark.parametrize("text", ["{", "", "[]", "null", "[" * 100_000, "\xff"])
def test_a_broken_tree_under_a_right_checksum_is_damage(copy, text):
    newest = copy.folder / "step_00000002"
    (newest / "tree.json").write_text(text, encoding="latin-1")
    write_sums(newest)
    step, restored, [warning], _ = copy.restore(large(0))
    assert step == 1 and same(restored, large(1))
    assert f"step 2 is skipped: {newest / 'tree.json'} is damaged" in warning


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt"])
def test_what_orbax_cannot_read_under_a_right_checksum_is_damage(copy, name):
    newest = copy.folder / "step_00000002"
    for text in ("{", ""):
        (newest / "state" / name).write_text(text)
        write_sums(newest)
        step, restored, [warning], _ = copy.restore(large(0))
        assert step == 1 and same(restored, large(1))
        assert f"step 2 is skipped: {newest / 'state'} cannot be read" in warning


def test_if_all_are_damaged_it_says_so_for_each(copy):
    for step in copy.steps():
        (copy.folder / f"step_{step:08d}" / "tree.json").unlink()
    with pytest.raises(ValueError, match="is whole") as error:
        copy.restore(large(0))
    assert "move the folder away to start anew" in str(error.value)
    for step in (1, 2):
        assert f"checkpoint of step {step} is skipped: " in str(error.value)
        assert f"step_{step:08d}/tree.json is missing" in str(error.value)
    assert Checkpoints(copy.folder / "nothing").restore(large(0)) is None


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (
            lambda s: s["theta"].update(a=np.zeros((2, 3), np.float32)),
            ["1 leaves differ (['theta']['a']: stored float32[3, 2], expected f"],
        ),
        (
            lambda s: s.update(step=np.zeros((), np.int64), flags=np.zeros(2, np.int8)),
            [
                "2 leaves differ (['flags']: stored bool[2], expected int8[2]; ",
                "['step']: stored int32[], expected int64[])",
            ],
        ),
        (
            lambda s: (s.pop("flags"), s["theta"].pop("b"), s.update(new=s["step"])),
            [
                "3 leaves differ (['flags']: stored bool[2], expected nothing; ",
                "['new']: stored nothing, expected int32[]; ['theta']['b']: stored ",
            ],
        ),
        (
            lambda s: s.update({f"x{i}": s["step"] for i in range(7)}),
            ["7 leaves differ (['x0']: ", "['x4']: ", "; and 2 more)"],
        ),
    ],
    ids=["shape", "dtype", "tree", "many"],
)
def test_another_structure_is_refused_with_what_differs(copy, change, lines):
    wanted = large(0)
    change(wanted)
    with pytest.raises(ValueError, match="does not fit this run") as error:
        copy.restore(wanted)
    for line in lines:
        assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_future_pushes_no_good_checkpoint_out(copy):
    """Two damaged ones, and two are kept: what is saved then must stay."""
    for step in (10, 20):
        copy.save(step, large(step))
        longer(copy.folder / f"step_{step:08d}" / "tree.json")
    assert copy.steps() == [2, 10, 20] and copy.restore(large(0)).step == 2
    Checkpoints(copy.folder, keep=2).save(3, large(3))
    assert copy.steps() == [2, 3]
    assert copy.restore(large(0)).step == 3


def test_the_newest_stay_and_only_the_link_of_a_linked_one_goes(two, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    shutil.copytree(two / "step_00000001", tmp_path / "elsewhere")
    (folder / "step_00000001").symlink_to(tmp_path / "elsewhere")
    (folder / "step_00000004").symlink_to(tmp_path / "elsewhere")
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(4, large(4))
    assert os.listdir(folder) == ["step_00000004"]
    assert not (folder / "step_00000004").is_symlink()
    verify_sums(tmp_path / "elsewhere", ("tree.json",))


def test_other_names_are_none_of_its_business(copy):
    for name in (".step_00000009-note", "step_9", "notes", ".step_x-abcdefgh"):
        (copy.folder / name).mkdir()
    before = sorted(os.listdir(copy.folder))
    copy.save(3, large(3))
    assert sorted(os.listdir(copy.folder)) == sorted([*before, "step_00000003"])
    assert copy.steps() == [1, 2, 3]


@contextlib.contextmanager
def files_up_to(size):
    """No file may become larger than `size` bytes: a quota that is used up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 1000, 5000])
def test_a_used_up_quota_names_the_folder_and_spoils_nothing(copy, size):
    with files_up_to(size), pytest.raises(OSError, match="step_00000003") as error:
        copy.save(3, large(3))
    assert error.value.errno == errno.EFBIG
    assert copy.steps() == [1, 2]
    step, restored, warnings, _ = copy.restore(large(0))
    assert (step, warnings) == (2, []) and same(restored, large(2))
    copy.save(3, large(3))
    assert copy.steps() == [1, 2, 3]
    assert same(copy.restore(large(0)).state, large(3))


def test_a_full_disk_at_any_operation_spoils_nothing(copy, monkeypatch):
    """Every call of `os.fsync` and `os.rename` in turn finds it full."""
    calls, failing = itertools.count(1), 0

    def refuse(name):
        real = getattr(os, name)

        def call(*arguments, **named):
            if next(calls) == failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **named)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "rename"):
        refuse(name)
    failed = 0
    while next(calls) > failing:  # the save before this one had as many calls
        failing += 1
        calls = itertools.count(1)
        try:
            copy.save(2, large(22))
        except OSError as error:
            assert "step_00000002" in str(error.filename), failing
            failed += 1
        left = sorted(name for name in os.listdir(copy.folder) if name[0] != ".")
        assert left == ["step_00000001", "step_00000002"]
        step, restored, _, _ = copy.restore(large(0))
        assert step == 2 and (same(restored, large(2)) or same(restored, large(22)))
    assert failed > 10
    assert same(copy.restore(large(0)).state, large(22))
    assert sorted(os.listdir(copy.folder)) == ["step_00000001", "step_00000002"]


def test_a_checkpoint_that_got_another_step_s_name_is_skipped(copy):
    (copy.folder / "step_00000002").rename(copy.folder / "step_00000005")
    restored = copy.restore(large(0))
    assert restored.step == 1 and same(restored.state, large(1))
    assert (
        "step_00000005/origin.json: it is of step 2, not of 5" in (restored.warnings[0])
    )


def test_checkpoints_of_another_run_are_skipped(copy):
    Checkpoints(copy.folder, run="ours").save(3, large(3))
    Checkpoints(copy.folder, run="theirs").save(4, large(4))
    restored = Checkpoints(copy.folder, run="ours").restore(large(0))
    assert restored.step == 3 and same(restored.state, large(3))
    assert "it is of run 'theirs', not of 'ours'" in restored.warnings[0]
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole \(.*'theirs'"):
        Checkpoints(copy.folder, run="nobody's").restore(large(0))
    assert copy.restore(large(0)).step == 4  # who asks for no run reads any


def test_sums_that_lead_elsewhere_are_damage(copy, tmp_path):
    newest = copy.folder / "step_00000002"
    (tmp_path / "secret").write_text("x")
    digest = "0" * 64
    for name in ("../../secret", str(tmp_path / "secret"), "a\0b", "", "state"):
        (newest / SUMS).write_text(f"{digest}  {name}\n")
        step, _, [warning], _ = copy.restore(large(0))
        assert step == 1 and str(newest) in warning
    assert json.loads((newest / "tree.json").read_text())
