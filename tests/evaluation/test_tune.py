"""Tuning finds the optimum, widens grids and ignores damaged caches."""

import dataclasses
import json
import math
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from evaluation import run, tuning_cache
from evaluation.tune import ADAM_GRID, SGD_GRID, Grid, Scheduled, scheduled_theta, tune
from lopt import SGD, Adam

BEST = 4.0  # 2^(4/2): one step of descent lands on the quadratic's minimum


def test_grids_are_as_defined():
    assert (2 ** (ADAM_GRID.low / 2), 2 ** (ADAM_GRID.high / 2)) == (2**-10, 2**-3)
    assert ADAM_GRID.high - ADAM_GRID.low + 1 == 15
    assert SGD_GRID.high - SGD_GRID.low + 1 == 15


def test_the_best_rate_of_a_grid_is_chosen_and_the_budget_stated(tasks):
    tuning = tune(tasks.quadratic, SGD(), 6, grid=Grid(1, 7))
    assert tuning.learning_rate == BEST
    assert len(tuning.points) == 14
    assert tuning.num_runs == 14 * 3
    assert tuning.inner_steps == 14 * 3 * 6
    assert tuning.widenings == 0
    assert not tuning.at_edge
    assert tuning.mean_loss == min(point.mean_loss for point in tuning.points)
    # Beyond rate 8 each step grows: those runs are counted, at the cap.
    diverged = {p.learning_rate: p.diverged for p in tuning.points[:7]}
    assert diverged[2.0 ** (7 / 2)] == 3
    assert diverged[BEST] == 0


def test_an_optimum_at_the_edge_widens_the_grid(tasks):
    tuning = tune(tasks.quadratic, SGD(), 6, grid=Grid(-3, 1), schedules=("constant",))
    assert tuning.learning_rate == BEST
    assert tuning.widenings == 2
    exponents = [2 * math.log2(point.learning_rate) for point in tuning.points]
    assert exponents == pytest.approx(list(range(-3, 6)))
    assert not tuning.at_edge


def test_the_bound_on_widening_is_reported(tasks):
    grid = Grid(-6, -2, max_widenings=1)
    tuning = tune(tasks.quadratic, SGD(), 6, grid=grid, schedules=("constant",))
    assert tuning.at_edge
    assert tuning.learning_rate == 1.0
    with pytest.raises(ValueError, match=r"grid\.high"):
        Grid(0, 1)


@pytest.mark.parametrize("baseline", [SGD(momentum=0.9), Adam(weight_decay=0.1)])
def test_the_schedule_in_theta_is_the_schedule_of_the_baseline(tasks, baseline):
    for schedule in ("constant", "cosine"):
        lopt = dataclasses.replace(baseline, schedule=schedule, learning_rate=0.3)
        theta = lopt.init(jax.random.key(0))
        plain = run.evaluate(tasks.quadratic, lopt, theta, 7, (0,))
        scheduled = run.evaluate_each(
            tasks.quadratic,
            Scheduled(baseline),
            scheduled_theta([0.3], [schedule]),
            7,
            [0],
        )
        np.testing.assert_allclose(plain.curve, scheduled.curve, rtol=1e-5)


@pytest.fixture
def counted(monkeypatch):
    """Counts how often runs are computed."""
    calls = []
    original = run.evaluate_each

    def evaluate_each(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(run, "evaluate_each", evaluate_each)
    return calls


def test_a_cached_tuning_is_not_computed_again(tasks, tmp_path, counted):
    def tuned(steps=4, baseline=None, **options):
        options = {"grid": Grid(2, 6), "cache_dir": tmp_path} | options
        return tune(tasks.quadratic, baseline or SGD(), steps, **options)

    first = tuned()
    num = len(counted)
    assert tuned() == first
    # The learning rate that a baseline comes with is not part of a tuning.
    assert tuned(baseline=SGD(learning_rate=7.0)) == first
    assert len(counted) == num
    tuned(seeds=(1000, 1001))
    assert len(counted) == 2 * num
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "figure", "text", "list"])
def test_a_damaged_cache_is_recomputed(tasks, tmp_path, counted, damage):
    options = {"grid": Grid(2, 6), "cache_dir": tmp_path}
    first = tune(tasks.quadratic, SGD(), 4, **options)
    num = len(counted)
    (path,) = tmp_path.iterdir()
    text = path.read_text()
    content = json.loads(text)
    content["result"]["learning_rate"] = 1e-3
    damaged = {
        "cut": text[: len(text) // 2],
        "figure": json.dumps(content),
        "text": "not JSON",
        "list": "[1, 2]",
    }
    path.write_text(damaged[damage])
    with pytest.warns(UserWarning, match="damaged"):
        again = tune(tasks.quadratic, SGD(), 4, **options)
    assert len(counted) == 2 * num
    assert again.learning_rate == first.learning_rate
    assert tune(tasks.quadratic, SGD(), 4, **options) == again
    assert len(counted) == 2 * num


def test_readers_never_see_half_a_file(tmp_path):
    about, result = {"a": 1}, {"values": list(range(2000))}

    def write_and_read(_):
        tuning_cache.write(tmp_path, about, result)
        return tuning_cache.read(tmp_path, about)

    with ThreadPoolExecutor(8) as pool:
        assert all(found == result for found in pool.map(write_and_read, range(60)))
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
