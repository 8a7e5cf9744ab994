"""Speed-ups and interquartile means against hand-made curves and plain loops."""

import math

import numpy as np
import pytest

from evaluation.plan import ADAM, ADAM_LONG, LEARNED, Skipped
from evaluation.report.aggregate import (
    aggregate_lines,
    final_ratios,
    interquartile_means,
    speed_ups,
)
from evaluation.report.speed_up import format_speed_up, smooth, speed_up
from evaluation.report.statistics import interquartile_mean

H = 100


def falling(num, rate=0.02):
    return np.exp(-rate * np.arange(num))


def test_the_average_begins_at_the_first_loss_and_forgets_at_the_stated_pace():
    averages = smooth([2.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(
        averages, [2.0, 2 * 0.95, 2 * 0.95**2, 2 * 0.95**3 + 0.05]
    )
    averages = smooth([1.0, math.nan, 0.5])
    assert averages[0] == 1.0 and np.isinf(averages[1:]).all()


def test_adam_against_itself_is_one_and_a_twice_as_fast_learner_two():
    adam = falling(4 * H)
    assert speed_up(adam[:H], [adam]) == 1.0
    # Levels: the learner's average at H is that of Adam at 2 H, or at H/2.
    goal = smooth(adam)
    for step, expected in ((2 * H, 2.0), (H // 2, 0.5), (3 * H + 17, 3.17)):
        constant = np.full(H, goal[step - 1])
        assert speed_up(constant, [adam]) == pytest.approx(expected)


def test_a_level_between_two_steps_is_reached_at_the_later_one():
    adam = falling(4 * H)
    goal = smooth(adam)
    between = np.full(H, 0.5 * (goal[48] + goal[49]))
    assert speed_up(between, [adam]) == 0.5


def test_the_running_minimum_counts_not_the_last_value():
    # Adam passes through the level early and goes up again for good.
    adam = np.concatenate([np.full(40, 0.1), np.full(4 * H - 40, 5.0)])
    assert speed_up(np.full(H, 0.1), [adam]) == 0.01
    adam = np.concatenate([falling(60, 0.1), np.full(4 * H - 60, 5.0)])
    level = smooth(adam).min()
    first = int(np.argmin(smooth(adam))) + 1
    assert speed_up(np.full(H, level), [adam]) == first / H


def test_what_adam_never_reaches_and_what_diverged():
    adam = falling(4 * H)
    assert speed_up(np.zeros(H), [adam]) == math.inf
    assert speed_up(adam[:H], [adam], diverged=True) == 0.0
    learner = adam[:H].copy()
    learner[30] = math.nan
    assert speed_up(learner, [adam]) == 0.0
    # Adam's own divergence does not undo what it had reached.
    broken = adam.copy()
    broken[60:] = math.nan
    assert speed_up(np.full(H, smooth(adam)[49]), [broken]) == 0.5
    assert speed_up(np.full(H, smooth(adam)[79]), [broken]) == math.inf
    assert [format_speed_up(x) for x in (math.inf, 0.0, 1.256)] == [
        "> 4",
        "0.00",
        "1.26",
    ]


def test_of_several_references_the_lowest_counts_at_each_step():
    short, long = falling(H, 0.05), falling(4 * H, 0.03)
    level = np.full(H, smooth(short)[59])
    assert speed_up(level, [long]) > 0.6
    assert speed_up(level, [short, long]) == speed_up(level, [long, short]) == 0.6
    beyond = np.full(H, smooth(long)[2 * H - 1])
    assert speed_up(beyond, [short, long]) == 2.0
    with pytest.raises(ValueError, match="needs"):
        speed_up(level, [])
    with pytest.raises(ValueError, match="needs"):
        speed_up([], [short])


def test_the_interquartile_mean_leaves_out_the_outer_quarters():
    figures = [[100.0, 1.0], [2.0, 3.0], [4.0, -50.0], [5.0, 6.0]]
    found = interquartile_mean(figures)
    # Sorted: −50 1 | 2 3 4 5 | 6 100
    assert found.mean == 3.5
    assert (found.num_cells, found.num_figures) == (4, 8)
    assert found.low < found.mean < found.high
    assert interquartile_mean(figures[::-1]).mean == 3.5
    assert interquartile_mean([[1.0, 2.0, 3.0, math.inf]]).mean == 2.5
    one = interquartile_mean([[1.0, 2.0, 3.0]])
    assert one.mean == 2.0 and math.isnan(one.low) and math.isnan(one.high)
    for bad in ([], [[]], [[1.0], [math.nan]], [[1.0], [1.0, 2.0]]):
        with pytest.raises(ValueError, match="interquartile"):
            interquartile_mean(bad)


def test_the_bootstrap_draws_cells_and_not_seeds():
    # Seeds of a cell agree: 20 figures carry the information of 4 cells.
    cells = [[float(cell)] * 5 for cell in range(8)]
    spread = interquartile_mean(cells)
    rng = np.random.default_rng(1)
    means = []
    for _ in range(2000):
        chosen = np.sort(np.concatenate([cells[i] for i in rng.integers(0, 8, 8)]))
        means.append(chosen[10:30].mean())
    expected = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose([spread.low, spread.high], expected, atol=0.35)
    # Had it drawn the 40 figures one by one, the interval would be far narrower.
    assert spread.high - spread.low > 2.0
    same = interquartile_mean([[1.0, 3.0, 3.0, 5.0]] * 6)
    assert (same.low, same.mean, same.high) == (3.0, 3.0, 3.0)
    assert interquartile_mean(cells) == spread


@pytest.fixture
def rows(make_row):
    """Three cells with two seeds: as fast as Adam, faster than 4 H, diverged."""
    adam = tuple(falling(4 * H).tolist())
    learners = {"a": adam[:H], "b": (0.0,) * H, "c": adam[:H]}
    found = []
    for cell, curve in learners.items():
        about = {"cell": cell, "axis": "held_out", "steps": H}
        for seed in (0, 1):
            about["seed"] = seed
            found += [
                make_row(LEARNED, curve=curve, loss=0.2, diverged=cell == "c", **about),
                make_row(ADAM, curve=adam[:H], loss=0.3, **about),
                make_row(ADAM_LONG, curve=adam, loss=9.0, **(about | {"steps": 4 * H})),
            ]
    return found


def test_figures_of_rows_are_by_cell_and_seed(rows):
    for cell, value in (("a", 1.0), ("b", math.inf), ("c", 0.0)):
        assert speed_ups(rows)[cell] == {0: value, 1: value}
        assert final_ratios(rows)[cell] == pytest.approx({0: 1.5, 1: 1.5})
    assert speed_ups([r for r in rows if r.optimizer != ADAM_LONG]) == {}
    lonely = [r for r in rows if r.seed == 0 or r.optimizer == LEARNED]
    assert speed_ups(lonely)["a"] == {0: 1.0}
    # A seed that one cell lacks is in no mean.
    partial = [r for r in rows if (r.cell, r.seed) != ("b", 1)]
    assert interquartile_means(partial)["speed-up over tuned Adam"].num_figures == 3


def test_the_two_figures_of_a_suite_say_what_is_not_in_them(rows):
    final, speed = interquartile_means(rows).values()
    assert final.mean == pytest.approx(1.5)
    # 0 0 1 1 4 4: a quarter of six is one on either side; infinity counts as 4.
    assert speed.mean == pytest.approx((0 + 1 + 1 + 4) / 4)
    text = " ".join(aggregate_lines(rows, [Skipped("d", "no data")]))
    assert "3 cells and 6 runs: 1.50" in text
    assert "1 of 4 cells were skipped and are not in these means" in text
    assert "skipped" not in " ".join(aggregate_lines(rows))
    assert aggregate_lines([r for r in rows if r.optimizer != ADAM_LONG]) == []
