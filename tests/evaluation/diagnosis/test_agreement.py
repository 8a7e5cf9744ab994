"""Kappas and the intraclass correlation against published examples and closed forms."""

import itertools
import math
import warnings

import numpy as np
import pytest
from sklearn.exceptions import UndefinedMetricWarning

from evaluation.diagnosis.agreement import (
    cohen_kappa,
    fleiss_kappa,
    icc,
    mean_pairwise_kappa,
)

SCHEMES = ("none", "linear", "quadratic")

# Fleiss (1971), Table 1: how many of 6 psychiatrists gave each of 30 patients each of
# 5 diagnoses; kappa is .430.
FLEISS = """
00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050
02031 00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040
10500 00006
"""

# Shrout and Fleiss (1979), Table 2: 4 judges rate 6 targets; ICC(2,1) is .29.
JUDGES = [
    [9, 6, 8, 7, 10, 6],
    [2, 1, 4, 1, 5, 2],
    [5, 3, 6, 2, 6, 4],
    [8, 2, 8, 6, 9, 7],
]


def by_hand(a, b, num_grades, scheme):
    """1 minus observed over expected cost, from the table of counts."""
    table = np.zeros((num_grades, num_grades))
    for i, j in zip(a, b, strict=True):
        table[int(i), int(j)] += 1 / len(a)
    observed = expected = 0.0
    for i, j in itertools.product(range(num_grades), repeat=2):
        distance = abs(i - j)
        cost = {"none": distance > 0, "linear": distance, "quadratic": distance**2}
        observed += cost[scheme] * table[i, j]
        expected += cost[scheme] * table[i].sum() * table[:, j].sum()
    return 1 - observed / expected


def raters(n, seed=0, noise=0.8, m=2):
    """Grades 0 … 3 of raters who see the same cases, `[m, n]`."""
    rng = np.random.default_rng(seed)
    seen = rng.normal(size=n) + noise * rng.normal(size=(m, n))
    return np.digitize(seen, [-0.5, 0.3, 1.0])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_cohen_s_kappa_is_its_table(scheme):
    a, b = raters(57)
    assert cohen_kappa(a, b, 4, scheme) == pytest.approx(by_hand(a, b, 4, scheme))
    assert cohen_kappa(b, a, 4, scheme) == pytest.approx(cohen_kappa(a, b, 4, scheme))
    # A grade that nobody gives keeps its place: 3 is three from 0, not two.
    a, b = (np.where(x == 2, 3, x) for x in (a, b))
    assert cohen_kappa(a, b, 4, scheme) == pytest.approx(by_hand(a, b, 4, scheme))
    assert cohen_kappa(a > 0, b > 0, 2) == pytest.approx(
        by_hand(a > 0, b > 0, 2, scheme)
    )


def test_cohen_s_kappa_on_a_known_table():
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: .7 observed, .5 by chance.
    a = np.repeat([1, 1, 0, 0], [20, 5, 10, 15])
    b = np.repeat([1, 0, 1, 0], [20, 5, 10, 15])
    assert cohen_kappa(a, b, 2) == pytest.approx(0.4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_perfect_agreement_is_1_and_independence_0(scheme):
    n = 20_000
    a, b = raters(n, noise=1.0)
    b = np.random.default_rng(1).permutation(b)
    assert cohen_kappa(a, a, 4, scheme) == 1.0
    assert mean_pairwise_kappa([a, a, a], 4, scheme) == 1.0
    assert fleiss_kappa([a, a, a], 4) == pytest.approx(1.0) and icc([a, a]) == 1.0
    # The deviation under independence, from 40 permutations of its own.
    rng = np.random.default_rng(2)
    null = [
        cohen_kappa(a[:500], rng.permutation(a[:500]), 4, scheme) for _ in range(40)
    ]
    error = np.std(null) * math.sqrt(500 / n)
    assert abs(cohen_kappa(a, b, 4, scheme)) < 4.5 * error < 0.05
    assert abs(fleiss_kappa([a, b], 4)) < 0.05 and abs(icc([a, b])) < 0.05


def test_fleiss_and_shrout_s_published_examples():
    rows = [list(map(int, row)) for row in FLEISS.split()]
    assert len(rows) == 30 and all(sum(row) == 6 for row in rows)
    ratings = np.array([np.repeat(np.arange(5), row) for row in rows]).T
    assert fleiss_kappa(ratings, 5) == pytest.approx(0.430, abs=5e-4)
    # Who gave which rating does not matter.
    shuffled = np.random.default_rng(0).permuted(ratings, axis=0)
    assert fleiss_kappa(shuffled, 5) == pytest.approx(fleiss_kappa(ratings, 5))
    assert icc(JUDGES) == pytest.approx(0.29, abs=5e-3)


def test_quadratic_kappa_is_an_intraclass_correlation_up_to_1_over_n():
    a, b = raters(60, seed=4)
    b = np.minimum(b + (np.arange(60) % 3 == 0), 3)  # habits that differ
    kappa = cohen_kappa(a, b, 4, "quadratic")
    # Exactly Lin's concordance, with moments over n.
    cost = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    covariance = np.mean((a - a.mean()) * (b - b.mean()))
    assert kappa == pytest.approx(2 * covariance / cost, rel=1e-12)
    # Doubling the cases keeps kappa and halves the distance of the ICC.
    apart = []
    for times in (1, 2, 4, 64):
        many = np.tile([a, b], times)
        assert cohen_kappa(*many, 4, "quadratic") == pytest.approx(kappa)
        apart.append(icc(many) - kappa)
    assert 0 < abs(apart[0]) < 1 / 60
    assert apart[0] / apart[1] == pytest.approx(2, rel=0.03)
    assert apart[1] / apart[2] == pytest.approx(2, rel=0.02)
    assert abs(apart[3]) < 1e-3


def test_mean_over_pairs_and_fleiss_agree_for_raters_with_the_same_habits():
    ratings = raters(4000, m=4)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    for scheme in SCHEMES:
        each = [by_hand(ratings[i], ratings[j], 4, scheme) for i, j in pairs]
        mean = mean_pairwise_kappa(ratings, 4, scheme)
        assert mean == pytest.approx(np.mean(each)) and np.ptp(each) > 0.001
    plain = mean_pairwise_kappa(ratings, 4)
    assert fleiss_kappa(ratings, 4) == pytest.approx(plain, abs=2e-3)


@pytest.mark.parametrize(
    "function",
    [
        lambda same: cohen_kappa(same, same, 4),
        lambda same: cohen_kappa(same, same, 4, "quadratic"),
        lambda same: mean_pairwise_kappa([same] * 4, 4),
        lambda same: fleiss_kappa([same] * 3, 4),
        lambda same: icc([same, same]),
    ],
)
def test_one_grade_only_is_nan_with_one_warning(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert math.isnan(function(np.full(9, 2)))
    (warning,) = caught
    assert warning.category is UndefinedMetricWarning
    assert "beyond chance is not defined" in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ([[0, 4], [0, 1]], "ratings in [0, 4] must be integers from 0 to 3"),
        ([[0.5, 1], [0, 1]], "must be integers"),
        ([[0, 1]], "ratings of shape (1, 2) must be [raters, n]"),
    ],
)
def test_bad_input_is_refused(ratings, message):
    for function in (fleiss_kappa, mean_pairwise_kappa):
        with pytest.raises(ValueError) as info:
            function(ratings, 4)
        assert message in str(info.value)
    with pytest.raises(ValueError, match=r"\(1, 3\) must be \[raters, n\]"):
        icc([[1, 2, 3]])


def test_opposite_raters_have_no_intraclass_correlation():
    with pytest.warns(UndefinedMetricWarning, match="variances .* cancel"):
        assert math.isnan(icc([[0, 1], [1, 0]]))
