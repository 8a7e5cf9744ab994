"""Job files: lists and sweeps, and every wrong one refused in a line that names it."""

from __future__ import annotations

import json

import pytest

from experiments.command_line import InputError
from experiments.fleets import job_file
from experiments.fleets.job_file import Job, read_jobs
from tests.special_files import SPECIAL, TOO_LARGE, put

TRAIN = ["experiments.train", "quickstart"]


def read(tmp_path, data):
    path = tmp_path / "jobs.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return read_jobs(path)


def test_a_list_keeps_its_order_and_words(tmp_path):
    jobs = read(
        tmp_path,
        {
            "jobs": [
                {"name": "b", "command": [*TRAIN, "--run.directory", "runs/{name}"]},
                {"name": "a", "command": ["experiments.evaluate", "--seeds", 3, 1e-3]},
            ]
        },
    )
    assert jobs == (
        Job("b", (*TRAIN, "--run.directory", "runs/b")),
        Job("a", ("experiments.evaluate", "--seeds", "3", "0.001")),
    )


def test_a_sweep_is_every_combination_with_a_folder_for_each(tmp_path):
    sweep = {
        "command": [*TRAIN, "--run.directory", "runs/{name}"],
        "vary": {
            "--seed": [0, 1],
            "--outer.learning-rate": [1e-3, 3e-3],
            "--task.model.widths": [[4], [8, 16]],
        },
    }
    jobs = read(tmp_path, sweep)
    assert len(jobs) == 8 and len({job.sha256 for job in jobs}) == 8
    last = "seed=1,outer.learning-rate=0.003,task.model.widths=8x16"
    assert jobs[-1].name == last
    assert jobs[-1].command == (
        *(*TRAIN, "--run.directory", f"runs/{last}", "--seed", "1"),
        *("--outer.learning-rate", "0.003", "--task.model.widths", "8", "16"),
    )
    among = {"jobs": [{"name": "one", "command": TRAIN}, sweep | {"name": "all"}]}
    names = [job.name for job in read(tmp_path, among)]
    assert names == ["one", *(f"all,{job.name}" for job in jobs)]


def test_what_cannot_stand_in_a_file_name_is_replaced(tmp_path):
    sweep = {"command": TRAIN, "vary": {"--init": ["../a b/c"]}}
    (job,) = read(tmp_path, sweep)
    assert job.name == "init=_._a_b_c"
    assert job.command[-1] == "../a b/c"


def test_the_sha_is_that_of_the_command():
    job = Job("a", ("experiments.train", "x"))
    assert job.sha256 == Job("b", job.command).sha256
    assert job.sha256 != Job("a", ("experiments.train", "x", "")).sha256
    assert job.sha256 != Job("a", ("experiments.trainx",)).sha256


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "..", "a..b", "a\0b", "/a", ".a", "-a", "a b", "é", "a\n", "x" * 151],
)
def test_a_name_that_is_no_plain_file_name_is_refused(tmp_path, name):
    with pytest.raises(InputError) as error:
        read(tmp_path, {"jobs": [{"name": name, "command": TRAIN}]})
    assert f"name = {name!r}" in str(error.value)


@pytest.mark.parametrize(
    ("data", "needle"),
    [
        ('{"jobs": [', "jobs.json is damaged: Expecting value"),
        ("[" * 100_000, "jobs.json is damaged"),
        ('{"jobs": [], "jobs": []}', "the key 'jobs' stands twice"),
        ("[]", "the file = [] must be an object"),
        ({"jobs": []}, "jobs = [] must be a list of jobs, not empty"),
        ({"jobs": {}}, "jobs = {} must be a list"),
        ({"jobs": [1]}, "jobs[0] = 1 must be an object"),
        ({"jobs": [{"name": "a"}]}, "jobs[0] has no 'command'"),
        ({"jobs": [{"command": TRAIN}]}, "jobs[0] has no 'name'"),
        ({"jobs": [{"name": 1, "command": TRAIN}]}, "name = 1 must be a text"),
        ({"jobs": [{"name": "a", "command": []}]}, "command = () of job 'a'"),
        ({"jobs": [{"name": "a", "command": [True]}]}, "must be texts or numbers"),
        ({"jobs": [{"name": "a", "command": [1e999]}]}, "must be finite"),
        ({"jobs": [{"name": "a", "command": [*TRAIN, "\0"]}]}, "holds a NUL"),
        (
            {"jobs": [{"name": "a", "command": TRAIN}] * 2},
            "the name 'a' is that of several jobs",
        ),
        (
            {"jobs": [{"name": "a", "command": TRAIN, "env": {}}]},
            "jobs[0].env is unknown: known are command, name, vary",
        ),
        (
            {"jobs": [{"name": "a", "command": ["experiments.trian"]}]},
            "perhaps you meant 'experiments.train'",
        ),
        ({"jobs": [{"name": "a", "command": ["os"]}]}, "command 'os' is none of"),
        (
            {"jobs": [{"name": "a", "command": ["experiments.run.display"]}]},
            "'experiments.run.display' is none of",
        ),
        (
            {"jobs": [{"name": "a", "command": ["experiments.fleet"]}]},
            "'experiments.fleet' is none of",
        ),
        ({"command": TRAIN, "vary": {}}, "vary = {} must be an object"),
        ({"command": TRAIN, "vary": {"seed": [1]}}, "'seed' must be a flag"),
        ({"command": TRAIN, "vary": {"--seed": 1}}, "--seed = 1 must be a list"),
        (
            {"command": TRAIN, "vary": {f"--{i}": [0] * 100 for i in range(3)}},
            "makes 1,000,000 jobs",
        ),
        # Of thousands of flags the product alone takes seconds, and its digits more.
        (
            {"command": TRAIN, "vary": {f"--{i}": [0] * 9 for i in range(20_000)}},
            "makes 531,441 jobs or more",
        ),
        (
            {"jobs": [{"command": TRAIN, "vary": {"--a": [0] * 60_000}}] * 4},
            "jobs makes 120,000 jobs or more, at most 100,000 can run",
        ),
        (
            {"command": TRAIN, "vary": {"--a": ["x/y", "x y"]}},
            "the name 'a=x_y' is that of several jobs",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, data, needle):
    with pytest.raises(InputError) as error:
        read(tmp_path, data)
    assert needle in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [*SPECIAL, *TOO_LARGE])
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path, kind):
    put(tmp_path / "jobs.json", kind)
    with pytest.raises(InputError, match=rf"jobs.json: .*{kind}"):
        read_jobs(tmp_path / "jobs.json")


def test_sweeps_are_counted_before_any_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setattr(job_file, "Job", lambda *_: pytest.fail("a job was made"))
    sweep = {"command": TRAIN, "vary": {"--seed": list(range(60_000))}}
    with pytest.raises(InputError, match="makes 120,000 jobs or more"):
        read(tmp_path, {"jobs": [sweep, sweep]})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none.json: No such file"):
        read_jobs(tmp_path / "none.json")
