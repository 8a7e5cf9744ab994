"""Fleets and several processes on a real SLURM of one machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.run.run_directory import METRICS, read_rows
from tests.slurm.cluster import Cluster, missing, running

pytest.importorskip("submitit")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

ROOT = Path(__file__).parents[2]
TRAIN = [
    *("experiments.train", "quadratic", "--lopt", "learnable_sgd"),
    *("--task.dimension", "4", "--estimator.num-pairs", "2", "--estimator.chunk", "2"),
    *("--estimator.truncation", "2", "--estimator.lengths.minimum", "2"),
    *("--estimator.lengths.maximum", "4", "--validation.num-steps", "2"),
    *("--run.checkpoint-every", "200", "--run.devices", "1"),
]

LIST = ("squeue", "-h", "-t", "RUNNING", "-o", "%K %A")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with running(tmp_path_factory.mktemp("slurm")) as made:
        made.environment["PYTHONPATH"] = str(ROOT)
        yield made


def start(cluster: Cluster, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_jobs_that_are_killed_preempted_and_left_alone_are_all_done_once(
    cluster, tmp_path
):
    """One process is killed, one job is queued again, slurmd restarts meanwhile."""
    steps, runs = 3000, tmp_path / "runs"
    command = [*TRAIN, "--num-steps", str(steps), "--run.directory", f"{runs}/{{name}}"]
    jobs = tmp_path / "jobs.json"
    jobs.write_text(json.dumps({"command": command, "vary": {"--seed": [*range(6)]}}))
    fleet = [sys.executable, "-m", "experiments.fleet", str(jobs), "--cluster", "slurm"]
    fleet += ["--workers", "2", "--directory", str(tmp_path / "fleet")]
    fleet += ["--slurm", "timeout_min=60", "cpus_per_task=1"]
    first = start(cluster, *fleet)

    def saved(seed: int) -> bool:
        return any((runs / f"seed={seed}" / "checkpoints").glob("step_*"))

    cluster.until(lambda: saved(0) and saved(1), "two jobs have saved", 120)
    os.kill(int((runs / "seed=0/.lock").read_text().split()[0]), signal.SIGKILL)
    # To a step: scancel repeats a signal to a task of an array until it has ended.
    numbers = dict(row.split() for row in cluster.run(*LIST).splitlines())
    cluster.run("scancel", "--signal=USR2", f"{numbers['1']}.0")
    cluster.stop("slurmd")
    cluster.start("slurmd", "-D")
    out, _ = first.communicate(timeout=300)
    assert "seed=0: failed (-9), see " in out
    assert out.splitlines()[-1] == "5 of 6 done; failed (-9): seed=0"
    assert first.returncode == 1
    again = start(cluster, *fleet)
    out, _ = again.communicate(timeout=200)
    assert (again.returncode, out.splitlines()[-1]) == (0, "6 of 6 done")

    for seed in range(6):
        rows = read_rows(runs / f"seed={seed}" / METRICS)
        assert [row["step"] for row in rows] == list(range(1, steps + 1))
        log = (tmp_path / f"fleet/logs/seed={seed}.log").read_text()
        assert log.count("--- ") == (2 if seed < 2 else 1), log
        assert log.count("continuing from step") == (1 if seed < 2 else 0)
    stopped = (tmp_path / "fleet/logs/seed=1.log").read_text()
    step = stopped.split("interrupted at step ")[1].split(";")[0]
    assert f"continuing from step {step}\n" in stopped  # nothing is computed twice
    alone = [*TRAIN, "--num-steps", str(steps), "--run.directory", f"{tmp_path}/alone"]
    process = start(cluster, sys.executable, "-m", *alone, "--seed", "1")
    assert process.wait(120) == 0
    text = (tmp_path / "alone" / METRICS).read_text()
    assert (runs / "seed=1" / METRICS).read_text() == text


def test_a_job_outlives_its_fleet_and_the_next_one_waits_for_it(cluster, tmp_path):
    run = tmp_path / "run"
    command = [*TRAIN, "--num-steps", "6000", "--run.directory", str(run)]
    jobs = tmp_path / "jobs.json"
    jobs.write_text(json.dumps({"name": "a", "command": command}))
    fleet = [sys.executable, "-m", "experiments.fleet", str(jobs), "--cluster", "slurm"]
    fleet += ["--directory", str(tmp_path / "fleet")]
    fleet += ["--slurm", "timeout_min=60", "cpus_per_task=1"]
    first = start(cluster, *fleet)
    cluster.until(lambda: any(run.glob("checkpoints/step_*")), "the job has saved", 120)
    first.send_signal(signal.SIGINT)
    out, _ = first.communicate(timeout=60)
    assert (first.returncode, "jobs stay in SLURM's queue" in out) == (130, True)
    assert out.splitlines()[-1] == "0 of 1 done; running: a"
    again = start(cluster, *fleet)
    out, _ = again.communicate(timeout=200)
    assert (again.returncode, out.splitlines()[-1]) == (0, "1 of 1 done")
    assert (tmp_path / "fleet/logs/a.log").read_text().count("--- ") == 1
    steps = [row["step"] for row in read_rows(run / METRICS)]
    assert steps == list(range(1, 6001))


def test_two_processes_that_srun_starts_train_the_same_bits_as_one(cluster, tmp_path):
    command = [sys.executable, "-m", *TRAIN, "--num-steps", "20"]
    command += ["--estimator.num-pairs", "4", "--run.directory"]
    alone = start(cluster, *command, str(tmp_path / "one"))
    out, _ = alone.communicate(timeout=200)
    assert alone.returncode == 0, out
    srun = ["srun", "-n", "2", "-c", "1", *command, str(tmp_path / "two")]
    both = start(cluster, *srun, "--run.hosts", "auto")
    out, _ = both.communicate(timeout=200)
    assert both.returncode == 0, out
    for name in ("metrics.jsonl", "validation.jsonl", "artifact/model.safetensors"):
        one, two = ((tmp_path / x / name).read_bytes() for x in ("one", "two"))
        assert one == two, name


def test_sbatch_refuses_in_one_line(cluster, tmp_path):
    jobs = tmp_path / "jobs.json"
    jobs.write_text(
        '{"jobs": [{"name": "a", "command": ["experiments.tasks", "list"]}]}'
    )
    fleet = [sys.executable, "-m", "experiments.fleet", str(jobs), "--cluster", "slurm"]
    fleet += ["--directory", str(tmp_path / "fleet"), "--slurm", "timeout_min=1"]
    for word, reason in (("partition=none", "invalid partition"), ("qoss=1", "qoss")):
        process = start(cluster, *fleet, word)
        out, _ = process.communicate(timeout=100)
        assert process.returncode == 2
        (line,) = [row for row in out.splitlines() if row.startswith("error: ")]
        assert reason in line
