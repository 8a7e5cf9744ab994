"""Evaluations of two seeds against few baselines; signals as a terminal has them."""

import signal

import pytest

from evaluation import plan, suite, tune
from experiments import evaluate


@pytest.fixture
def few_runs(monkeypatch):
    """Two seeds, and three learning rates of one schedule."""
    monkeypatch.setattr(suite, "SEEDS", (0, 1))
    for module in (plan, evaluate):
        monkeypatch.setattr(module, "SEEDS", (0, 1))
    grid = tune.Grid(-12, -10, max_widenings=0)
    monkeypatch.setattr(tune, "grid_for", lambda baseline: grid)
    for function in (suite.evaluate_suite, plan.expected_runs):
        seeds = tuple(
            (0, 1) if value == (0, 1, 2, 3, 4) else value
            for value in function.__defaults__
        )
        monkeypatch.setattr(function, "__defaults__", seeds)


@pytest.fixture(autouse=True)
def no_signal_is_ignored():
    """Tests that are begun with nohup or in the background inherit ignored ones."""
    handlers = {
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    ignored = [n for n in handlers if signal.getsignal(n) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, handlers[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
