"""The quickstart at the smallest sizes: training, release, evaluation, report."""

import dataclasses

from experiments import quickstart
from experiments.presets.configs import RunOptions
from lopt import Artifact
from tasks import Quadratic
from tasks.suites import SUITES, Cell, Suite
from tests.experiments.tiny_run import TINY


def test_the_whole_workflow(monkeypatch, tmp_path, capsys, few_runs):
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "runs" / "quickstart"
    small = dataclasses.replace(TINY, run=RunOptions(directory=directory))
    monkeypatch.setattr(quickstart, "QUICKSTART", small)
    cell = Cell("trained", "trained", Quadratic(dimension=2, condition=10.0), 3)
    suite = Suite("quickstart", "for a test", lambda: (cell,))
    monkeypatch.setitem(SUITES, "quickstart", suite)
    quickstart.main()
    assert Artifact.load(directory / "artifact").optimizer == TINY.lopt
    report = directory / "report.html"
    assert "tuned Adam" in report.read_text()
    # The same command again has nothing to do.
    before = report.stat().st_mtime_ns
    capsys.readouterr()
    quickstart.main()
    assert "is up to date" in capsys.readouterr().out
    assert report.stat().st_mtime_ns == before
