"""No job of a fleet is lost, done twice or counted twice, whoever dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import ClassVar

import pytest

from experiments import fleet
from experiments.command_line import INTERRUPTED, InputError
from experiments.fleet import FleetOptions, Slurm
from experiments.fleets.fleet_worker import Children, SlurmWorker, work
from experiments.fleets.job_file import Job
from experiments.fleets.job_folder import JobFolder
from experiments.run.run_directory import METRICS, read_rows

ROOT = Path(__file__).parents[3]
# Appends its name to a file, so that every start of a job is seen.
APPEND = "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + '\\n'); "


def jobs_named(*names):
    return [Job(name, ("experiments.train", name)) for name in names]


def runs(code, seen):
    """Commands that run some code, of which `sys.argv` is [-c, file, job]."""
    line = [sys.executable, "-I", "-S", "-c", APPEND + code, str(seen)]
    return lambda job: [*line, job.name]


def names_in(path):
    return path.read_text().splitlines() if path.exists() else []


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_fleets_at_once_share_the_jobs_and_do_none_twice(tmp_path):
    seen, jobs = tmp_path / "seen", jobs_named(*(f"job{i}" for i in range(12)))
    folder = JobFolder(tmp_path / "fleet")
    threads = [
        threading.Thread(target=work, args=(folder, order, Children(), runs("", seen)))
        for order in (jobs, jobs, jobs[::-1])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(names_in(seen)) == sorted(job.name for job in jobs)
    results = sorted(path.name for path in (tmp_path / "fleet/results").iterdir())
    assert results == sorted(f"{job.name}.json" for job in jobs)
    assert fleet.summary(folder, jobs) == "12 of 12 done"
    work(folder, jobs, Children(), runs("", seen))  # once more: nothing is left
    assert len(names_in(seen)) == 12


# Packages stand for themselves without their contents: a worker needs no JAX.
LIGHT = f"""
import sys, types
sys.path.insert(0, {str(ROOT)!r})
for name in ("lopt", "tasks", "tasks.data"):
    sys.modules[name] = module = types.ModuleType(name)
    module.__path__ = [{str(ROOT)!r} + "/" + name.replace(".", "/")]
import os, pathlib, threading
from experiments.fleets.fleet_worker import Children, work
from experiments.fleets.job_file import Job
from experiments.fleets.job_folder import JobFolder
"""
WORKERS = """
def start(name, code):
    job = Job(name, ("experiments.train", name))
    line = [sys.executable, "-I", "-S", "-c", code, seen, name]
    arguments = JobFolder(pathlib.Path(folder)), [job], Children(), lambda job: line
    threading.Thread(target=work, args=arguments).start()
folder, seen, *codes = sys.argv[1:]
start("stubborn", codes[0])
start("obedient", codes[1])
"""


def test_what_a_killed_worker_left_is_done_by_another_but_not_beside_it(
    tmp_path, capsys
):
    """One job dies with its worker; the other outlives it, and holds its claim."""
    seen, go = tmp_path / "seen", tmp_path / "go"
    wait = APPEND + f"import os, time\nwhile not os.path.exists({str(go)!r}):"
    wait += " time.sleep(.01)"
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + wait
    folder, jobs = JobFolder(tmp_path / "fleet"), jobs_named("stubborn", "obedient")
    line = [sys.executable, "-c", LIGHT + WORKERS, folder.path, seen, stubborn, wait]
    worker = subprocess.Popen(line)
    wait_until(lambda: len(names_in(seen)) == 2)
    assert [folder.state(job) for job in jobs] == ["running", "running"]
    assert folder.owner(jobs[0])["pid"] == worker.pid
    worker.send_signal(signal.SIGKILL)
    assert worker.wait(60) == -signal.SIGKILL
    if sys.platform == "linux":  # elsewhere it would wait for `go`
        wait_until(lambda: folder.state(jobs[1]) == "stale")
    # Nobody begins the stubborn one while its process lives.
    work(folder, jobs, Children(), runs("", seen))
    assert sorted(names_in(seen)) == ["obedient", "obedient", "stubborn"]
    assert fleet.summary(folder, jobs) == "1 of 2 done; running: stubborn"
    go.touch()
    wait_until(lambda: folder.state(jobs[0]) == "stale")
    work(folder, jobs, Children(), runs("", seen))
    assert names_in(seen).count("stubborn") == 2
    assert fleet.summary(folder, jobs) == "2 of 2 done"
    out = capsys.readouterr().out
    assert f"stubborn: taken over from process {worker.pid} of " in out
    result = json.loads((folder.path / "results/stubborn.json").read_text())
    assert (result["exit_code"], result["log"]) == (0, "logs/stubborn.log")
    assert result["sha256"] == jobs[0].sha256


def test_an_interrupted_job_waits_for_the_next_start(tmp_path, capsys):
    """It gets the signal, saves and exits with 130; one that ends well is done."""
    seen, folder = tmp_path / "seen", JobFolder(tmp_path / "fleet")
    saves = (
        "import signal, time\n"
        "def save(number, frame): sys.exit({'a': 130, 'b': 0, 'c': 7}[sys.argv[2]])\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "open(sys.argv[1] + sys.argv[2], 'w')\n"
        "while True: time.sleep(.01)\n"
    )
    for name, after in (("a", "waiting"), ("b", "done"), ("c", "waiting")):
        jobs, children = jobs_named(name, f"never_{name}"), Children()

        def interrupt(ready=Path(f"{seen}{name}"), children=children):
            wait_until(ready.exists)
            children.receive(signal.SIGTERM)

        thread = threading.Thread(target=interrupt)
        thread.start()
        work(folder, jobs, children, runs(saves, seen))
        thread.join()
        assert children.interrupted == signal.SIGTERM
        assert [folder.state(job) for job in jobs] == [after, "waiting"]
    assert names_in(seen) == ["a", "b", "c"]
    assert "a: interrupted; it continues at the next start" in capsys.readouterr().out
    work(folder, jobs_named("a", "b", "c"), Children(), runs("", seen))
    assert names_in(seen) == ["a", "b", "c", "a", "c"]


def test_a_job_that_ends_as_interrupted_by_itself_is_not_begun_forever(tmp_path):
    seen, folder, jobs = tmp_path / "seen", JobFolder(tmp_path / "f"), jobs_named("a")
    work(folder, jobs, Children(), runs("sys.exit(130)", seen))
    assert (names_in(seen), folder.state(jobs[0])) == (["a"], "waiting")


def test_failures_stay_until_they_are_asked_for_again(tmp_path):
    seen, folder = tmp_path / "seen", JobFolder(tmp_path / "fleet")
    jobs = jobs_named("good", "bad", "killed")
    code = (
        "print('so be it', flush=True); import os; n = sys.argv[2];"
        "n == 'killed' and os.kill(os.getpid(), 9); sys.exit(3 * (n == 'bad'))"
    )
    for _ in range(2):
        work(folder, jobs, Children(), runs(code, seen))
        assert names_in(seen) == ["good", "bad", "killed"]
    assert fleet.summary(folder, jobs) == "1 of 3 done; failed: bad, killed"
    codes = [folder.result(job).exit_code for job in jobs]  # pyright: ignore
    assert codes == [0, 3, -signal.SIGKILL]
    assert [folder.forget_failure(job) for job in jobs] == [False, True, True]
    assert fleet.summary(folder, jobs) == "1 of 3 done; waiting: bad, killed"
    work(folder, jobs, Children(), runs("", seen))
    assert names_in(seen)[3:] == ["bad", "killed"]
    assert fleet.summary(folder, jobs) == "3 of 3 done"
    first = json.loads((folder.path / "failed/bad/1.json").read_text())
    assert first["exit_code"] == 3
    log = folder.log(jobs[1]).read_text()
    assert log.count("--- ") == 2 and log.splitlines().count("so be it") == 1


@pytest.mark.parametrize(
    "text",
    ["", '{"name": "a", "exit_co', "[]", '{"name": 1}', "seconds", "command", "host"],
)
def test_a_partial_result_is_none_and_the_job_is_done_again(tmp_path, text):
    seen, folder, jobs = tmp_path / "seen", JobFolder(tmp_path / "f"), jobs_named("a")
    work(folder, jobs, Children(), runs("", seen))
    if text.isalpha():  # whole but for the type of one field
        stored = json.loads((folder.path / "results/a.json").read_text())
        text = json.dumps(stored | {text: {"of": "another type"}})
    (folder.path / "results/a.json").write_text(text)
    assert fleet.summary(folder, jobs) == "0 of 1 done; damaged: a"
    work(folder, jobs, Children(), runs("", seen))
    assert fleet.summary(folder, jobs) == "1 of 1 done"
    assert names_in(seen) == ["a", "a"]


def test_what_a_killed_writer_left_is_no_result(tmp_path):
    folder, jobs = JobFolder(tmp_path / "f"), jobs_named("a")
    (folder.path / "results").mkdir(parents=True)
    (folder.path / "results/tmpabc.tmp").write_text('{"name": "a", "exit_code": 0}')
    assert folder.state(jobs[0]) == "waiting"


def test_a_result_belongs_to_the_command_not_to_the_name_alone(tmp_path):
    seen, folder = tmp_path / "seen", JobFolder(tmp_path / "fleet")
    work(folder, jobs_named("a"), Children(), runs("", seen))
    other = Job("a", ("experiments.train", "quickstart"))
    for refused in (folder.result, folder.state, folder.claim):
        with pytest.raises(
            InputError, match=r"job 'a' has changed: .*train a'; rename"
        ):
            refused(other)
    assert names_in(seen) == ["a"]


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("experiments.fleets.job_folder.fcntl.flock", no_locks)
    with pytest.raises(InputError, match=r"cannot be locked .No locks available"):
        JobFolder(tmp_path).claim(jobs_named("a")[0])


def job_file(tmp_path, count=3):
    path = tmp_path / "sweep.json"
    entries = [
        {"name": f"seed{i}", "command": ["experiments.train", "quickstart", str(i)]}
        for i in range(count)
    ]
    path.write_text(json.dumps({"jobs": entries}))
    return path


def test_the_status_lists_every_job_and_writes_nothing(tmp_path, capsys):
    options = FleetOptions(job_file(tmp_path), tmp_path / "fleet", status=True)
    assert fleet.run(options) == 0
    assert not (tmp_path / "fleet").exists()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:5]] == [
        [f"seed{i}", "waiting"] for i in range(3)
    ]
    assert lines[5] == "0 of 3 done; waiting: seed0, seed1, seed2"


def test_the_pool_goes_on_when_a_worker_is_killed(tmp_path, monkeypatch, capsys):
    """The first worker dies with a job in its hands; the exit code tells the rest."""
    seen, once = tmp_path / "seen", tmp_path / "once"
    script = f"""{LIGHT}
from experiments.fleets.job_file import read_jobs
def command(job):
    if not os.path.exists({str(once)!r}):
        open({str(once)!r}, "w")
        os.kill(os.getpid(), 9)
    code = {APPEND!r} + "sys.exit(sys.argv[2] == 'seed1')"
    return [sys.executable, "-I", "-S", "-c", code, {str(seen)!r}, job.name]
work(JobFolder(pathlib.Path(sys.argv[2])), read_jobs(pathlib.Path(sys.argv[1])),
     Children(), command)
"""

    def line(jobs, folder):
        return [sys.executable, "-c", script, str(jobs), str(folder)]

    monkeypatch.setattr(fleet, "worker_command", line)
    options = FleetOptions(job_file(tmp_path), tmp_path / "fleet")
    assert fleet.run(options) == fleet.INCOMPLETE
    assert sorted(names_in(seen)) == ["seed0", "seed1", "seed2"]
    out, err = capsys.readouterr()
    assert "a worker ended with exit code -9" in err
    assert out.splitlines()[-1] == "2 of 3 done; failed: seed1"
    # Again: nothing is begun, and the code still says that a job is missing.
    assert fleet.run(options) == fleet.INCOMPLETE
    assert len(names_in(seen)) == 3


def test_slurm_without_submitit_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    slurm = Slurm(partition="gpu")
    options = FleetOptions(job_file(tmp_path), tmp_path / "fleet", slurm=slurm)
    with pytest.raises(InputError, match="pip install submitit"):
        fleet.run(options)
    assert not (tmp_path / "fleet").exists()


@pytest.fixture
def submitit(monkeypatch):
    """A module in the place of submitit that keeps what is submitted."""
    module = types.ModuleType("submitit")
    helpers = types.ModuleType("submitit.helpers")

    class AutoExecutor:
        made: ClassVar = []

        def __init__(self, folder, cluster):
            self.folder, self.cluster, self.calls = folder, cluster, []
            self.made.append(self)

        def update_parameters(self, **parameters):
            self.parameters = parameters

        def batch(self):
            return contextlib.nullcontext()

        def submit(self, call):
            self.calls.append(call)
            return types.SimpleNamespace(job_id=f"7_{len(self.calls) - 1}")

    module.AutoExecutor, module.helpers = AutoExecutor, helpers  # pyright: ignore
    helpers.DelayedSubmission = lambda call: ("again", call)  # pyright: ignore
    monkeypatch.setitem(sys.modules, "submitit", module)
    monkeypatch.setitem(sys.modules, "submitit.helpers", helpers)
    return AutoExecutor


def test_slurm_gets_no_more_workers_than_there_are_jobs(tmp_path, submitit, capsys):
    slurm = Slurm(partition="gpu", minutes=60, gpus=1, memory_gb=8)
    path, directory = job_file(tmp_path), tmp_path / "fleet"
    assert fleet.run(FleetOptions(path, directory, workers=8, slurm=slurm)) == 0
    (executor,) = submitit.made
    assert (executor.folder, executor.cluster) == (directory / "slurm", "slurm")
    assert executor.parameters == {
        "name": "sweep",
        "slurm_partition": "gpu",
        "timeout_min": 60,
        "gpus_per_node": 1,
        "mem_gb": 8,
    }
    assert [(w.jobs, w.directory) for w in executor.calls] == [
        (str(path), str(directory))
    ] * 3
    assert "SLURM jobs 7_0, 7_1, 7_2" in capsys.readouterr().out


def test_a_preempted_slurm_worker_saves_and_is_queued_again(
    tmp_path, submitit, monkeypatch
):
    """The signal comes, as in SLURM, to all its processes while it waits."""
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    code = (
        "import signal, sys, time\n"
        f"def save(*a): time.sleep(.2); open({str(saved)!r}, 'w'); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        f"open({str(ready)!r}, 'w'); time.sleep(600)"
    )
    line = [sys.executable, "-I", "-S", "-c", code]
    monkeypatch.setattr(
        "experiments.fleets.fleet_worker.worker_command", lambda *a: line
    )
    worker, queued = SlurmWorker("jobs", "folder"), []

    def preempt():
        wait_until(ready.exists)
        os.kill(worker._process.pid, signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR2)

    def handle(number, frame):
        queued.append((worker.checkpoint(), saved.exists()))

    old = signal.signal(signal.SIGUSR2, handle)
    try:
        thread = threading.Thread(target=preempt)
        thread.start()
        worker()
        thread.join(60)
    finally:
        signal.signal(signal.SIGUSR2, old)
    (((again, call), was_saved),) = queued
    assert again == "again" and was_saved
    assert (call.jobs, call.directory) == ("jobs", "folder")


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
            assert "0 of 2 done; waiting: seed=0, seed=1" in out
    # The orphans get SIGTERM by the kernel, save and end: then the fleet goes on.
    jobs = [
        Job("seed=0", ("experiments.train",)),
        Job("seed=1", ("experiments.train",)),
    ]
    folder = JobFolder(tmp_path / "fleet")
    wait_until(lambda: all(folder.state(job) != "running" for job in jobs))
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "2 of 2 done")
    for seed in (0, 1):
        rows = read_rows(runs_in / f"seed={seed}" / METRICS)
        assert [row["step"] for row in rows] == list(range(1, 2001))
    alone = [sys.executable, "-m", *command[:-1], str(tmp_path / "alone")]
    subprocess.run([*alone, "--seed", "1"], check=True, capture_output=True)
    text = (tmp_path / "alone" / METRICS).read_text()
    assert (runs_in / "seed=1" / METRICS).read_text() == text
