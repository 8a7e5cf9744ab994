"""Jobs run until each is done, through submitit or without; none is done twice."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from experiments import fleet
from experiments.command_line import FAILED, INTERRUPTED, InputError
from experiments.fleet import FleetOptions
from experiments.fleets.call import Call
from experiments.fleets.job_file import Job
from experiments.fleets.submission import calls_of, run_jobs, summary

pytest.importorskip("submitit")
ROOT = Path(__file__).parents[3]

# Appends its name to a file, so that every start of a job is seen.
PROGRAM = """
import os, signal, sys, time
name, what = sys.argv[1:]
with open(os.environ["SEEN"], "a") as file:
    file.write(name + "\\n")
print("gpus", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
if what in ("saves", "stubborn"):
    stop = signal.SIG_IGN if what == "stubborn" else lambda *_: sys.exit(130)
    signal.signal(signal.SIGTERM, stop)
    open(os.environ["SEEN"] + name, "w").close()
    while not os.path.exists(os.environ["SEEN"] + "go"):
        time.sleep(0.01)
sys.exit(int(what) if what.isdigit() else 0)
"""


@pytest.fixture
def seen(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    return tmp_path / "seen"


def jobs_that(**what):
    return [Job(name, ("program", name, do)) for name, do in what.items()]


def names_in(path):
    return sorted(path.read_text().split()) if path.exists() else []


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("cluster", ["local", "inline"])
def test_what_failed_or_is_missing_runs_again_and_only_that(
    tmp_path, seen, monkeypatch, capsys, cluster
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    folder = tmp_path / "fleet"

    def run(jobs):
        code = run_jobs(jobs, folder, cluster, 2, ())
        return code, capsys.readouterr().out.splitlines()[-1]

    jobs = jobs_that(good="0", bad="3")
    assert run(jobs) == (FAILED, "1 of 2 done; failed (3): bad")
    assert names_in(seen) == ["bad", "good"]
    log = (folder / "logs/good.log").read_text()
    assert "gpus 5" in log and log.count("--- ") == 1
    # Another command under the name of a job that is done is another job.
    jobs = jobs_that(good="0", bad="00")
    assert run(jobs) == (0, "2 of 2 done")
    assert names_in(seen) == ["bad", "bad", "good"]
    (folder / "results/bad.json").write_text('{"sha256": "')
    assert summary(calls_of(jobs, folder)) == "1 of 2 done; missing: bad"
    if cluster == "local":
        assert stat.S_IMODE((folder / "submitit").stat().st_mode) == 0o700
    else:
        assert not (folder / "submitit").exists()
