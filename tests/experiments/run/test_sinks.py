"""Sinks show the record of a run, and can neither end nor change it."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import shutil
import struct
import sys
import types

import numpy as np
import pytest

from experiments.command_line import InputError
from experiments.presets import configs
from experiments.presets.serialization import encode
from experiments.run import sinks
from experiments.run.run_directory import METRICS, VALIDATION, read_rows
from experiments.run.sinks import Sinks, TensorBoard, open_sinks
from experiments.run.training_state import load_trained
from experiments.train import train
from lopt.learned.learnable import LearnableSGD
from metatrain.estimators.pes import PES
from metatrain.outer import OuterOptimizer
from metatrain.truncation import EpisodeLengths
from tasks.synthetic.quadratics import Quadratic

TINY = configs.TrainConfig(
    task=Quadratic(dimension=4),
    lopt=LearnableSGD(),
    estimator=PES(num_pairs=2, chunk=2, truncation=2, lengths=EpisodeLengths(2, 4)),
    outer=OuterOptimizer(warmup_steps=2),
    num_steps=8,
    validation=configs.Validation(every=4, num_steps=2, num_seeds=1),
)


def config(path, **fields):
    run = configs.RunOptions(directory=path, checkpoint_every=3, log_every=2, **fields)
    return dataclasses.replace(TINY, run=run)


def needs_tensorboard():
    if importlib.util.find_spec("tensorboardX") is None:
        pytest.skip("tensorboardX is not installed")


def events(folder):
    """All events, in the order in which TensorBoard reads them."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
            body, crc = data[12 : 12 + size], data[12 + size : 16 + size]
            assert struct.unpack("<I", crc)[0] == masked_crc32c(body)
            yield Event.FromString(body)
            data = data[16 + size :]


def shown(folder):
    """Returns the values that TensorBoard shows, by step and tag."""
    found = {}
    for event in events(folder):
        if event.HasField("session_log"):  # its reader forgets what is done again
            found = {k: v for k, v in found.items() if k[0] < event.step}
        for value in event.summary.value:
            found.setdefault((event.step, value.tag), []).append(value.simple_value)
    return found


def recorded(path):
    rows = [(row, "") for row in read_rows(path / METRICS)]
    rows += [(row, "validation/") for row in read_rows(path / VALIDATION)]
    return {
        (row["step"], prefix + name): [np.float32(value)]
        for row, prefix in rows
        for name, value in row.items()
        if name != "step" and value is not None
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "run"
    train(config(path), "tiny")
    return path


def test_a_resumed_run_shows_every_step_once_and_keeps_its_bits(plain, tmp_path):
    needs_tensorboard()
    path = tmp_path / "run"
    train(config(path, tensorboard=True, stop_after=3), "tiny")
    folder = path / sinks.TENSORBOARD
    # What a killed process has shown of steps after its last checkpoint.
    killed = TensorBoard(folder, 3)
    killed.write(4, {"meta_loss": 123.0})
    killed.write(5, {"meta_loss": 124.0})
    killed.close()
    assert shown(folder)[4, "meta_loss"] == [123.0]
    train(config(path, tensorboard=True), "tiny")
    assert len(list(folder.iterdir())) == 3
    assert shown(folder) == recorded(path)
    assert len(recorded(path)) > 8 * 5
    for name in (METRICS, VALIDATION):
        assert (path / name).read_text() == (plain / name).read_text()
    assert not (plain / sinks.TENSORBOARD).exists()


def test_what_is_no_finite_number_is_left_out(tmp_path):
    needs_tensorboard()
    row = {"step": 7, "a": 1.5, "b": None, "c": float("inf"), "d": float("nan")}
    with Sinks({"TensorBoard": lambda: TensorBoard(tmp_path, 6)}) as opened:
        opened.write([row | {"e": True, "f": "text"}], "x/")
    assert shown(tmp_path) == {(7, "x/a"): [1.5], (7, "x/e"): [1.0]}


def test_fields_added_later_are_stored_only_if_they_say_something_new(plain, tmp_path):
    """A run is the same whether they are written out, as once, or left out."""
    shutil.copytree(plain, tmp_path / "run")
    path = tmp_path / "run/config.json"
    stored = json.loads(path.read_text())
    assert not {"tensorboard", "wandb"} & stored["run"].keys()
    assert "feature_precision" not in stored
    stored["run"] |= {"tensorboard": False, "wandb": None}
    stored |= {"feature_precision": "float32"}
    path.write_text(json.dumps(stored))
    assert load_trained(tmp_path / "run")[0] == config(plain)
    train(config(tmp_path / "run"), "tiny")


class Failing:
    """Fails from its second row on, and when it is closed."""

    def __init__(self):
        self.rows = []

    def write(self, step, row):
        if self.rows:
            raise OSError(28, "No space left on device")
        self.rows.append((step, row))

    def flush(self):
        pass

    def close(self):
        raise RuntimeError("closed badly")


def test_a_failing_sink_is_off_after_one_warning_and_the_others_go_on(capsys):
    failing, whole = Failing(), Failing()
    whole.write = lambda step, row: whole.rows.append((step, row))

    def never():
        raise ConnectionError("no\nnetwork")

    with Sinks({"a": lambda: failing, "b": lambda: whole, "c": never}) as opened:
        for step in (1, 2, 3):
            opened.write([{"step": step, "loss": 1.0}])
    assert failing.rows == [(1, {"loss": 1.0})]
    assert whole.rows == [(step, {"loss": 1.0}) for step in (1, 2, 3)]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "warning: c is off, ConnectionError: no network; the record is whole"
    )
    assert "warning: a is off, OSError: [Errno 28] No space left" in lines[1]
    assert "warning: b is off, RuntimeError: closed badly" in lines[2]
    assert len(lines) == 3


def test_a_sink_that_cannot_open_does_not_change_the_run(plain, tmp_path, capsys):
    needs_tensorboard()
    path = tmp_path / "run"
    path.mkdir()
    (path / sinks.TENSORBOARD).write_text("a file stands in the way")
    train(config(path, tensorboard=True), "tiny")
    assert capsys.readouterr().err.count("TensorBoard is off") == 1
    assert (path / METRICS).read_text() == (plain / METRICS).read_text()


class FakeRun:
    def __init__(self, server, **settings):
        self.server, self.settings, self.open = server, settings, True
        self.step = 1 + max((step for step, _ in server), default=-1)

    def log(self, row, step):
        assert step >= self.step  # the real one drops it and warns
        self.step = step
        self.server.append((step, row))

    def finish(self):
        self.open = False


@pytest.fixture
def wandb(monkeypatch):
    """A module in the place of wandb that keeps what its runs log, by their id."""
    module = types.ModuleType("wandb")
    servers, runs = {}, []

    def init(**settings):
        run = FakeRun(servers.setdefault(settings["id"], []), **settings)
        runs.append(run)
        return run

    module.init, module.servers, module.runs = init, servers, runs  # pyright: ignore
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_resumed_run_is_one_run_at_wandb_without_double_steps(wandb, tmp_path):
    asked = config(tmp_path, wandb="project")
    with open_sinks(asked.run, encode(asked), tmp_path, 0) as opened:
        opened.write([{"step": s, "loss": float(s)} for s in (1, 2, 3)])
        opened.write([{"step": 3, "loss": 0.5}], "validation/")
    with open_sinks(asked.run, encode(asked), tmp_path, 2) as opened:
        opened.write([{"step": s, "loss": float(s)} for s in (3, 4)])
    (rows,) = wandb.servers.values()
    assert [step for step, _ in rows] == [1, 2, 3, 3, 4]
    assert rows[3] == (3, {"validation/loss": 0.5})
    first, second = wandb.runs
    assert first.settings["id"] == second.settings["id"]
    assert second.settings["project"] == "project"
    assert second.settings["resume"] == "allow"
    assert json.dumps(second.settings["config"]["estimator"]["sigma"]) == "0.01"
    assert not first.open and not second.open


@pytest.mark.parametrize(
    ("package", "fields", "pip"),
    [
        ("wandb", {"wandb": "project"}, "pip install 'wandb'"),
        ("tensorboardX", {"tensorboard": True}, "pip install 'tensorboardX=="),
    ],
)
def test_a_missing_package_is_one_line_with_the_command(
    monkeypatch, tmp_path, package, fields, pip
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as error:
        open_sinks(config(tmp_path, **fields).run, {}, tmp_path, 0)
    assert pip in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_no_sink_loads_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with sinks._torch_hidden(), pytest.raises(ImportError):
        importlib.import_module("torch")
    assert "torch" not in sys.modules
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    with sinks._torch_hidden():  # what is loaded already stays
        assert importlib.import_module("torch").__name__ == "torch"


def test_a_project_needs_a_name():
    with pytest.raises(ValueError, match="wandb = ' ' must be the name"):
        configs.RunOptions(wandb=" ")
