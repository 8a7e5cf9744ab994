"""Jobs run until each is done, through submitit or without; none is done twice."""

from __future__ import annotations

import json
import os
import re
import shutil
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
from experiments.fleets.job_file import Job
from experiments.fleets.submission import calls_of, run_jobs, summary
from experiments.run.run_directory import METRICS, read_rows
from tests.special_files import put

pytest.importorskip("submitit")
ROOT = Path(__file__).parents[3]

# Appends its name to a file, so that every start of a job is seen.
PROGRAM = """
import os, signal, sys, time
name, what = sys.argv[1:]
with open(os.environ["SEEN"], "a") as file:
    file.write(name + "\\n")
gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
print("parent", os.getppid(), "gpus", gpus, flush=True)
def save(*_):
    print("saved", flush=True)
    sys.exit(130)
if what == "saves":
    signal.signal(signal.SIGTERM, save)
    with open(os.environ["SEEN"] + name, "w") as file:
        file.write(str(os.getpid()))
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
    assert " gpus 5\n" in log and log.count("--- ") == 1
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


@pytest.mark.parametrize("code", ["0.5", "false", '"0"', "1e400", "null"])
def test_a_record_without_an_exit_code_is_missing(tmp_path, code):
    jobs = jobs_that(one="0")
    (tmp_path / "results").mkdir()
    record = f'{{"sha256": "{jobs[0].sha256}", "exit_code": {code}}}'
    (tmp_path / "results/one.json").write_text(record)
    assert summary(calls_of(jobs, tmp_path)) == "0 of 1 done; missing: one"


@pytest.mark.parametrize("what", ["logs", "results", "logs/a.log", "results/a.json"])
@pytest.mark.parametrize("to", ["mine", "nowhere"])
def test_nothing_in_a_fleet_is_followed_through_a_link(tmp_path, seen, what, to):
    """The fleet's own folder may be a link."""
    mine = tmp_path / "mine"
    mine.mkdir() if what in ("logs", "results") else mine.write_text("years of work")
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "fleet"
    folder.symlink_to(tmp_path / "elsewhere")
    (folder / what).parent.mkdir(exist_ok=True)
    (folder / what).symlink_to(tmp_path / to)
    jobs = jobs_that(a="0")
    with pytest.raises(OSError, match="is a link, and is not followed") as error:
        run_jobs(jobs, folder, "inline", 1, ())
    assert error.value.filename == str(folder / what)
    with pytest.raises(OSError, match="is a link, and is not followed"):
        summary(calls_of(jobs, folder))
    assert not seen.exists() and not (tmp_path / "nowhere").exists()
    assert not any(mine.iterdir()) if mine.is_dir() else mine.read_text()


def test_a_link_that_appears_later_is_not_written_through(tmp_path, seen):
    (call,) = calls_of(jobs_that(a="0"), tmp_path / "fleet")
    call.log.parent.mkdir(parents=True)
    call.log.symlink_to(tmp_path / "thesis")
    for act in (call, call.is_running, call.state):
        with pytest.raises(OSError, match="is a link"):
            act()
    assert not (tmp_path / "thesis").exists()


@pytest.mark.parametrize("kind", ["FIFO", "folder", "socket"])
def test_a_log_that_is_no_file_is_named_and_not_waited_for(tmp_path, kind):
    (call,) = calls_of(jobs_that(a="0"), tmp_path / "fleet")
    call.log.parent.mkdir(parents=True)
    put(call.log, kind)
    with pytest.raises(OSError, match=f"is a {kind}, not a file") as error:
        run_jobs(jobs_that(a="0"), tmp_path / "fleet", "inline", 1, ())
    assert error.value.filename == str(call.log)


def test_a_record_that_is_no_file_is_missing_and_replaced(tmp_path, seen):
    record = tmp_path / "fleet" / "results" / "a.json"
    record.parent.mkdir(parents=True)
    put(record, "FIFO")
    assert run_jobs(jobs_that(a="0"), tmp_path / "fleet", "inline", 1, ()) == 0
    assert record.is_file()


def test_pickles_are_read_from_folders_of_ours_alone(tmp_path):
    jobs = jobs_that(one="0")
    linked, shared = tmp_path / "linked", tmp_path / "shared"
    for folder in (linked, shared, tmp_path / "elsewhere"):
        folder.mkdir()
    (linked / "submitit").symlink_to(tmp_path / "elsewhere")
    shared.chmod(0o777)
    for folder in (linked, shared):
        with pytest.raises(InputError, match="submitit reads pickles below it"):
            run_jobs(jobs, folder, "local", 1, ())
    assert not list((tmp_path / "elsewhere").iterdir())


def run_in_process(jobs, folder):
    """Starts an inline fleet as another process."""
    code = f"""
import pathlib, sys
from experiments.fleets.job_file import Job
from experiments.fleets.submission import run_jobs
jobs = [Job(*job) for job in {[(job.name, job.command) for job in jobs]}]
sys.exit(run_jobs(jobs, pathlib.Path({str(folder)!r}), "inline", 1, ()))
"""
    line = [sys.executable, "-c", code]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True)


def touch_when(path, condition):
    """Creates a file when a condition holds, while this process runs a fleet."""

    def wait():
        wait_until(condition)
        path.touch()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("cluster", ["local", "inline"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_job_saves_and_the_same_command_goes_on(
    tmp_path, seen, capsys, cluster, number
):
    folder, jobs = tmp_path / "fleet", jobs_that(a="saves", b="0")
    # It failed before: that is no longer how it ended.
    record = {"sha256": jobs[0].sha256, "exit_code": 3}
    (folder / "results").mkdir(parents=True)
    (folder / "results/a.json").write_text(json.dumps(record))
    assert summary(calls_of(jobs, folder)) == "0 of 2 done; failed (3): a; missing: b"

    def interrupt():
        wait_until(Path(f"{seen}a").exists)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert run_jobs(jobs, folder, cluster, 1, ()) == INTERRUPTED
    thread.join()
    assert capsys.readouterr().out == "0 of 2 done; missing: a, b\n"
    assert names_in(seen) == ["a"]
    assert "saved" in (folder / "logs/a.log").read_text()
    Path(f"{seen}go").touch()
    assert run_jobs(jobs, folder, cluster, 1, ()) == 0
    assert names_in(seen) == ["a", "a", "b"]


def test_a_job_that_ends_as_interrupted_by_itself_is_begun_once(tmp_path, seen):
    jobs = jobs_that(a="130")
    assert run_jobs(jobs, tmp_path / "fleet", "inline", 1, ()) == FAILED
    assert summary(calls_of(jobs, tmp_path / "fleet")) == "0 of 1 done; missing: a"
    assert names_in(seen) == ["a"]


def test_a_preempted_job_saves_and_is_begun_again_by_submitit(tmp_path, seen):
    """SIGUSR2, as SLURM sends it: to the job's own process, too."""
    folder, jobs = tmp_path / "fleet", jobs_that(a="saves")

    def preempt():
        wait_until(Path(f"{seen}a").exists)
        log = (folder / "logs/a.log").read_text()
        parent = int(re.search(r"parent (\d+)", log)[1])  # pyright: ignore
        for pid in (int(Path(f"{seen}a").read_text()), parent):
            os.kill(pid, signal.SIGUSR2)
        wait_until(lambda: len(names_in(seen)) == 2)
        Path(f"{seen}go").touch()

    thread = threading.Thread(target=preempt)
    thread.start()
    assert run_jobs(jobs, folder, "local", 1, ()) == 0
    thread.join()
    assert names_in(seen) == ["a", "a"]
    assert (folder / "logs/a.log").read_text().count("saved") == 1


def test_two_fleets_at_once_do_each_job_once_and_both_wait_for_it(
    tmp_path, seen, capsys
):
    folder, jobs = tmp_path / "fleet", jobs_that(a="saves", b="0", c="0")
    other = run_in_process(jobs[:1], folder)
    wait_until(Path(f"{seen}a").exists)
    assert summary(calls_of(jobs, folder)) == "0 of 3 done; missing: b, c; running: a"
    # Until all three calls of ours have ended, one of which found the job running.
    thread = touch_when(
        Path(f"{seen}go"), lambda: len([*folder.glob("submitit/*_result.pkl")]) == 3
    )
    assert run_jobs(jobs, folder, "local", 3, ()) == 0
    thread.join()
    assert capsys.readouterr().out == "3 of 3 done\n"
    assert other.communicate(timeout=60)[0] == "1 of 1 done\n"
    assert names_in(seen) == ["a", "b", "c"]


def test_a_job_outlives_a_killed_fleet_and_is_not_begun_beside_itself(
    tmp_path, seen, capsys
):
    folder, jobs = tmp_path / "fleet", jobs_that(a="saves")
    first = run_in_process(jobs, folder)
    wait_until(Path(f"{seen}a").exists)
    first.kill()
    first.communicate()
    thread = touch_when(
        Path(f"{seen}go"), lambda: any(folder.glob("submitit/*_result.pkl"))
    )
    assert run_jobs(jobs, folder, "local", 1, ()) == FAILED
    thread.join()
    # Nobody saw how it ended, so it is missing: the same command runs it.
    assert capsys.readouterr().out == "0 of 1 done; missing: a\n"
    assert names_in(seen) == ["a"]
    assert run_jobs(jobs, folder, "local", 1, ()) == 0
    assert names_in(seen) == ["a", "a"]


def test_a_training_job_is_done_while_its_run_directory_is_finished(tmp_path):
    """Golden runs stand for those of the job; a stopped run has no artifact."""
    run, folder = tmp_path / "run", tmp_path / "fleet"
    shutil.copytree(ROOT / "tests/golden/run_schema_1", run)
    job = Job("a", ("experiments.train", "quickstart", "--run.directory", str(run)))
    (call,) = calls_of([job], folder)
    assert call.exit_code() is None  # a run by another command is no proof
    record = {"sha256": job.sha256, "exit_code": 0}
    (folder / "results").mkdir(parents=True)
    (folder / "results/a.json").write_text(json.dumps(record))
    assert call.exit_code() == 0
    config = json.loads((run / "config.json").read_text())
    shutil.rmtree(run / "artifact")
    assert call.exit_code() is None
    config["run"]["stop_after"] = 2
    (run / "config.json").write_text(json.dumps(config))
    assert call.exit_code() == 0
    (run / "config.json").write_text("{")
    assert call.exit_code() is None
    out = Job("b", ("experiments.generate", f"--out-dir={tmp_path}/out"))
    (call,) = calls_of([out], folder)
    record = {"sha256": out.sha256, "exit_code": 0}
    (folder / "results/b.json").write_text(json.dumps(record))
    assert call.exit_code() is None
    (tmp_path / "out").mkdir()
    assert call.exit_code() == 0


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("experiments.fleets.call.fcntl.flock", no_locks)
    with pytest.raises(OSError, match=r"No locks.*needs .*: '.*/logs/a.log'"):
        run_jobs(jobs_that(a="0"), tmp_path, "inline", 1, ())


def test_the_status_writes_nothing(tmp_path, capsys):
    path = tmp_path / "sweep.json"
    sweep = {"command": ["experiments.train", "quickstart"], "vary": {"--seed": [0, 1]}}
    path.write_text(json.dumps(sweep))
    assert fleet.run(FleetOptions(path, tmp_path / "fleet", status=True)) == 0
    assert capsys.readouterr().out == "0 of 2 done; missing: seed=0, seed=1\n"
    assert not (tmp_path / "fleet").exists()


def test_a_missing_submitit_is_one_line_and_inline_needs_none(
    tmp_path, seen, monkeypatch
):
    monkeypatch.setitem(sys.modules, "submitit", None)
    jobs = jobs_that(a="0")
    for cluster in ("local", "slurm"):
        with pytest.raises(InputError, match=f"{cluster}' needs .* pip install submi"):
            run_jobs(jobs, tmp_path / "fleet", cluster, 1, ())
    assert not (tmp_path / "fleet").exists()
    assert run_jobs(jobs, tmp_path / "fleet", "inline", 1, ()) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, r"workers = 0 must lie in \[1, 1000\] on 'local'"),
        ({"slurm": ("mem_gb=1",)}, "slurm = .'mem_gb=1',. is only for a fleet on 'sl"),
        ({"cluster": "slurm"}, r"slurm = \(\) must hold timeout_min=MINUTES"),
        ({"cluster": "slurm", "slurm": ("gpu",)}, "slurm = 'gpu' must be NAME=VALUE"),
        ({"cluster": "slurm", "slurm": ("=1",)}, "slurm = '=1' must be NAME=VALUE"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FleetOptions(Path("jobs.json"), **options)


SMALL = [
    *("--task.dimension", "4", "--estimator.num-pairs", "2", "--estimator.chunk", "2"),
    *("--estimator.truncation", "2", "--estimator.lengths.minimum", "2"),
    *("--estimator.lengths.maximum", "4", "--validation.num-steps", "2"),
    *("--run.checkpoint-every", "200", "--num-steps", "2000"),
]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_runs_of_a_fleet_that_is_stopped_and_killed_are_whole(tmp_path):
    """SIGTERM and kill -9 of the fleet: the runs are those of undisturbed commands."""
    path, runs_in = tmp_path / "jobs.json", tmp_path / "runs"
    command = ["experiments.train", "quadratic", "--lopt", "learnable_sgd", *SMALL]
    command += ["--run.directory", f"{runs_in}/{{name}}"]
    path.write_text(json.dumps({"command": command, "vary": {"--seed": [0, 1]}}))
    line = [sys.executable, "-m", "experiments.fleet", path, "--workers", "2"]
    line += ["--directory", tmp_path / "fleet"]

    def newest():
        return max((p.name for p in runs_in.glob("*/checkpoints/step_*")), default="")

    for number, code in ((signal.SIGTERM, INTERRUPTED), (signal.SIGKILL, -9)):
        before = newest()
        process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        wait_until(lambda before=before: newest() > before, 240)
        process.send_signal(number)
        out, _ = process.communicate(timeout=120)
        assert process.returncode == code
        if number == signal.SIGTERM:
            assert "0 of 2 done; missing: seed=0, seed=1" in out
    # Its jobs go on; the next fleet waits for them.
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "2 of 2 done")
    for seed in (0, 1):
        rows = read_rows(runs_in / f"seed={seed}" / METRICS)
        assert [row["step"] for row in rows] == list(range(1, 2001))
        assert (tmp_path / f"fleet/logs/seed={seed}.log").read_text().count("--- ") == 2
    alone = [sys.executable, "-m", *command[:-1], str(tmp_path / "alone")]
    subprocess.run([*alone, "--seed", "1"], check=True, capture_output=True)
    text = (tmp_path / "alone" / METRICS).read_text()
    assert (runs_in / "seed=1" / METRICS).read_text() == text
