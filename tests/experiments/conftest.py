"""Evaluations of two seeds against few baselines."""

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
