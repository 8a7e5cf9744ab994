"""AUC and DeLong's variance against counted pairs, bootstraps and permutations."""

import math
import warnings

import numpy as np
import pytest
from scipy.special import expit, logit, ndtri
from sklearn.exceptions import UndefinedMetricWarning

from evaluation.diagnosis.auc import AUCs, auc, delong, placements
from evaluation.diagnosis.bootstrap import cluster_bootstrap

Z = 1.959963984540054


def cases(n, seed=0, ties=False, m=3):
    """Labels, a third of them true, and informative scores `[m, n]`."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3 == 0
    common = rng.normal(size=n)
    quality = np.linspace(1.2, 0.3, m)[:, None]
    scores = quality * labels[None] + 0.7 * common[None] + 0.7 * rng.normal(size=(m, n))
    return labels, np.round(2 * scores) if ties else scores


def kernel(positives, negatives):
    """1 where a positive is above a negative, ½ at a tie, `[n1, n0]`."""
    difference = positives[:, None] - negatives[None]
    return (difference > 0) + 0.5 * (difference == 0)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_and_covariance_are_those_of_the_pairs(ties):
    labels, scores = cases(61, ties=ties)
    result = delong(labels, scores)
    pairs = [kernel(s[labels], s[~labels]) for s in scores]
    n1, n0 = pairs[0].shape
    assert (n1, n0) == (21, 40)
    for i in range(3):
        assert result.values[i] == pytest.approx(pairs[i].mean(), abs=1e-14)
        assert auc(labels, scores[i]) == pytest.approx(pairs[i].mean(), abs=1e-14)
        for j in range(3):
            # DeLong, DeLong and Clarke-Pearson (1988), the sums S10 and S01.
            a, b = pairs[i], pairs[j]
            of_positives = (a.mean(1) - a.mean()) @ (b.mean(1) - b.mean()) / (n1 - 1)
            of_negatives = (a.mean(0) - a.mean()) @ (b.mean(0) - b.mean()) / (n0 - 1)
            want = of_positives / n1 + of_negatives / n0
            assert result.covariance[i, j] == pytest.approx(want, rel=1e-10)
    assert len(np.unique(scores)) < 25 if ties else len(np.unique(scores)) == 183


@pytest.mark.parametrize("ties", [False, True])
def test_only_the_order_counts_and_a_flip_is_the_complement(ties):
    labels, scores = cases(80, ties=ties)
    result = delong(labels, scores)
    for monotone in (lambda x: np.exp(x / 3), lambda x: 7 * x - 2, np.arctan):
        other = delong(labels, monotone(scores))
        np.testing.assert_array_equal(other.values, result.values)
        np.testing.assert_array_equal(other.covariance, result.covariance)
        assert auc(labels, monotone(scores[0])) == auc(labels, scores[0])
    for flipped in (delong(~labels, scores), delong(labels, -scores)):
        np.testing.assert_allclose(flipped.values, 1 - result.values, atol=1e-14)
        np.testing.assert_allclose(flipped.covariance, result.covariance, atol=1e-15)
    assert auc(~labels, scores[0]) == pytest.approx(1 - auc(labels, scores[0]))
    assert delong(labels, scores[0]).values[0] == result.values[0]


def mann_whitney(labels, scores):
    def statistic(rows):
        positive = labels[rows]
        above = placements(scores[rows[positive]], scores[rows[~positive]])[0]
        return above.mean()

    return statistic


def test_delong_s_error_is_the_bootstrap_s_for_2000_cases():
    labels, scores = cases(2000, seed=1, m=1)
    estimate = delong(labels, scores).estimate()
    num = 1000
    resampled = cluster_bootstrap(
        mann_whitney(labels, scores[0]), np.arange(2000), labels, num
    )
    # A deviation of B values is off by 1/√2B, 2.2 %; terms of 1/n are below 0.2 %.
    tolerance = 4.5 / math.sqrt(2 * num) + 0.002
    assert resampled.standard_error == pytest.approx(
        estimate.standard_error, rel=tolerance
    )
    assert resampled.value == estimate.value == pytest.approx(0.8, abs=0.06)
    plain = delong(labels, scores).estimate(method="plain")
    # Its ends are quantiles, each known to about 2.7 errors / √B.
    slack = 4.5 * 2.7 * estimate.standard_error / math.sqrt(num)
    for end in ("low", "high"):
        assert getattr(resampled, end) == pytest.approx(getattr(plain, end), abs=slack)


def test_intervals_are_their_formulas():
    labels, scores = cases(52)
    result = delong(labels, scores)
    value, error = result.values[0], math.sqrt(result.covariance[0, 0])
    plain = result.estimate(0, "plain")
    assert (plain.low, plain.high) == pytest.approx(
        (value - Z * error, value + Z * error)
    )
    ends = expit(logit(value) + np.array([-Z, Z]) * error / (value * (1 - value)))
    smooth = result.estimate(0)
    assert (smooth.low, smooth.high) == pytest.approx(tuple(ends))
    assert smooth.standard_error == plain.standard_error == pytest.approx(error)
    assert result.estimate(0, level=0.5).high < smooth.high
    assert str(smooth) == f"{value:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"


def test_coverage_with_52_cases_is_92_percent_and_95_on_the_logit_scale():
    # 17 positive, true AUC 0.8; the study's size and its half-width of about .12.
    repeats, n1, n0, true = 20_000, 17, 35, 0.8
    rng = np.random.default_rng(5)
    positives = rng.normal(math.sqrt(2) * ndtri(true), 1, (repeats, n1))
    negatives = rng.normal(size=(repeats, n0))
    below, above = placements(positives, negatives)
    values = below.mean(1)
    errors = np.sqrt(below.var(1, ddof=1) / n1 + above.var(1, ddof=1) / n0)
    plain = np.abs(values - true) < Z * errors
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.abs(logit(values) - logit(true))
        smooth = distance < Z * errors / (values * (1 - values))
    # A sample that is ordered perfectly has no interval and counts as not covered.
    for i in range(5):  # what is simulated is what the functions return
        labels = np.arange(n1 + n0) < n1
        result = delong(labels, np.concatenate([positives[i], negatives[i]]))
        ends = result.estimate(0, "plain"), result.estimate(0, "logit")
        assert [e.low < true < e.high for e in ends] == [plain[i], smooth[i]]
        assert result.values[0] == values[i]
    # Rounded to a percent they are .92 and .95 (.922 and .954 over 600,000 repeats).
    for covered, want in ((plain, 0.92), (smooth, 0.95)):
        error = math.sqrt(want * (1 - want) / repeats)  # .2 %
        assert covered.mean() == pytest.approx(want, abs=0.005 + 4.5 * error)
    gained = smooth.astype(int) - plain
    error = gained.std() / math.sqrt(repeats)
    assert abs(plain.mean() - 0.95) - abs(smooth.mean() - 0.95) > 4.5 * error
    assert (Z * errors).mean() == pytest.approx(0.12, abs=0.01)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_paired_test_is_a_permutation_test(seed):
    # Two scorers that are exchangeable in truth, and correlated. Under the hypothesis
    # the two scores of any case may change places (Bandos et al., Statistics in
    # Medicine 2005).
    n, num = 300, 2500
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3 == 0
    scores = 0.8 * labels + 0.8 * rng.normal(size=n) + 0.6 * rng.normal(size=(2, n))
    result = delong(labels, scores).compare(0, 1)
    swap = rng.random((num, n)) < 0.5
    a, b = (
        np.where(swap, scores[:1], scores[1:]),
        np.where(swap, scores[1:], scores[:1]),
    )

    def aucs(s):
        return placements(s[:, labels], s[:, ~labels])[0].mean(1)

    differences = aucs(a) - aucs(b)
    tolerance = 4.5 / math.sqrt(2 * num) + 1 / n
    assert result.standard_error == pytest.approx(differences.std(), rel=tolerance)
    p = (np.abs(differences) >= abs(result.difference)).mean()
    error = math.sqrt(p * (1 - p) / num)
    assert result.p_value == pytest.approx(p, abs=4.5 * error + 1 / n)
    apart = np.diag(delong(labels, scores).covariance).sum()
    assert result.standard_error < 0.8 * math.sqrt(apart)  # pairing pays


def test_a_true_difference_is_found_and_weights_are_means():
    labels, scores = cases(400, seed=3)
    result = delong(labels, scores)
    comparison = result.compare(0, 2)
    want = result.values[0] - result.values[2]
    assert comparison.difference == pytest.approx(want) and comparison.p_value < 1e-6
    assert comparison.low > 0
    assert result.compare(2, 0).high == pytest.approx(-comparison.low)
    # A mean of scorers: the variance of a mean of correlated variables.
    c = result.covariance
    both = result.estimate([0.0, 0.5, 0.5])
    assert both.value == pytest.approx(result.values[1:].mean())
    variance = (c[1, 1] + c[2, 2] + 2 * c[1, 2]) / 4
    assert both.standard_error == pytest.approx(math.sqrt(variance))
    versus = result.compare(0, [0.0, 0.5, 0.5])
    variance += c[0, 0] - c[0, 1] - c[0, 2]
    assert versus.standard_error == pytest.approx(math.sqrt(variance))
    assert versus.p_value == pytest.approx(
        math.erfc(versus.difference / versus.standard_error / math.sqrt(2))
    )
    with pytest.raises(ValueError, match="3 numbers with sum 1"):
        result.estimate([0.5, 0.5, 0.5])
    with pytest.raises(ValueError, match=r"level = 95 must lie in \(0, 1\)"):
        result.estimate(0, level=95)
    with pytest.raises(ValueError, match="method = 'wald' must be one of"):
        result.estimate(0, "wald")


@pytest.mark.parametrize("function", [auc, lambda y, s: delong(y, s).values[0]])
@pytest.mark.parametrize("label", [True, False])
def test_one_class_is_nan_with_one_warning(function, label):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert math.isnan(function(np.full(5, label), np.arange(5.0)))
    (warning,) = caught
    assert warning.category is UndefinedMetricWarning
    assert "one class" in str(warning.message)
    assert warning.filename == __file__


def test_what_is_not_known_is_nan():
    one = np.arange(5) == 4
    with pytest.warns(UndefinedMetricWarning, match="one case only") as caught:
        result = delong(one, np.array([0.0, 1, 2, 3, 2.5]))
    assert len(caught) == 1 and result.values[0] == 0.75
    estimate = result.estimate()
    assert estimate.value == 0.75 and math.isnan(estimate.low + estimate.high)
    assert math.isnan(result.compare(0, 0).low)
    # Perfect order: DeLong's variance is 0, which must not be read as certainty.
    perfect = delong(np.arange(6) > 2, np.arange(6.0)).estimate()
    assert perfect.value == 1.0 and math.isnan(perfect.low)
    # A scorer against itself.
    same = AUCs(np.array([0.7, 0.7]), np.full((2, 2), 0.01)).compare(0, 1)
    assert (same.difference, same.p_value) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [1.0, 2.0], "must be [n] bool"),
        ([True, False], [1.0, 2.0, 3.0], "scores of shape (3,) must be"),
        ([True, False], [1.0, math.nan], "scores must be finite"),
    ],
)
def test_bad_input_is_refused(labels, scores, message):
    for function in (auc, delong):
        with pytest.raises(ValueError) as info:
            function(labels, scores)
        assert message in str(info.value)
