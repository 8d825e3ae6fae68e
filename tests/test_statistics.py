"""Textbook values, brute force and the properties that callers rely on."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from morlaif_hub.errors import OptionError
from morlaif_hub.statistics import (
    Z_95,
    Interval,
    bootstrap_interval,
    calibration_bins,
    combine_orders,
    correlation,
    entropy_bits,
    expected_calibration_error,
    fit_logistic,
    fit_temperature,
    log_odds,
    pairwise_accuracy,
    sigmoid,
    validation_verdict,
    wilson_interval,
)

probability = st.floats(0.0, 1.0)
number = st.floats(-100.0, 100.0)
pairs = st.lists(st.tuples(number, probability), min_size=1, max_size=30)


@st.composite
def regressions(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features (n, d) and soft labels (n,), from a seed: hypothesis need not draw each number."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d = draw(st.integers(1, 40)), draw(st.integers(1, 5))
    scale = 10.0 ** draw(st.integers(-2, 2))
    return generator.normal(size=(n, d)) * scale, generator.random(n)


class TestWilsonInterval:
    @pytest.mark.parametrize(
        ("successes", "n", "low", "high"),
        [
            (15, 20, 0.5313, 0.8881),  # reference values: R, prop.test(15, 20, correct = FALSE)
            (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I, method 3
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ],
    )
    def test_textbook_values(self, successes: int, n: int, low: float, high: float) -> None:
        assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)

    @given(st.integers(1, 500), st.data())
    def test_ends_solve_the_score_equation(self, n: int, data: st.DataObject) -> None:
        """At either end the observed share is exactly 1.96 standard errors away."""
        successes = data.draw(st.integers(0, n))
        share = successes / n
        for end in wilson_interval(successes, n):
            assert 0.0 <= end <= 1.0
            assert abs(share - end) == pytest.approx(Z_95 * np.sqrt(end * (1 - end) / n), abs=1e-7)

    @given(st.integers(1, 500), st.data())
    def test_failures_mirror_successes(self, n: int, data: st.DataObject) -> None:
        successes = data.draw(st.floats(0, n))
        low, high = wilson_interval(successes, n)
        assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)

    def test_no_trials_leave_everything_open(self) -> None:
        assert wilson_interval(0, 0) == Interval(0.0, 1.0)

    @pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 2), (1, 0), (0, -1)])
    def test_impossible_counts_are_refused(self, successes: float, n: int) -> None:
        with pytest.raises(OptionError, match="between 0 and n"):
            wilson_interval(successes, n)


class TestValidationVerdict:
    @pytest.mark.parametrize(
        ("interval", "verdict"),
        [
            ((0.51, 0.9), "fit"),
            ((0.5, 0.9), "unproven"),  # one half belongs to the interval
            ((0.4, 0.6), "unproven"),
            ((0.1, 0.5), "unproven"),
            ((0.1, 0.49), "wrong way"),
        ],
    )
    def test_by_where_one_half_lies(self, interval: tuple[float, float], verdict: str) -> None:
        assert validation_verdict(interval) == verdict

    def test_what_24_probes_can_show(self) -> None:
        verdicts = [validation_verdict(wilson_interval(right, 24)) for right in range(25)]
        assert verdicts == ["wrong way"] * 8 + ["unproven"] * 9 + ["fit"] * 8


class TestBootstrapInterval:
    def test_matches_a_plain_loop(self) -> None:
        generator = np.random.default_rng(3)
        values, groups = generator.normal(size=60), generator.integers(12, size=60)
        members = [values[groups == group] for group in np.unique(groups)]
        draws = np.random.default_rng(7)
        means = [
            np.concatenate([members[i] for i in draws.integers(len(members), size=len(members))])
            for _ in range(2000)
        ]
        expected = np.quantile([mean.mean() for mean in means], [0.025, 0.975])
        assert bootstrap_interval(values, groups, seed=7) == pytest.approx(tuple(expected))

    def test_agrees_with_the_normal_interval_on_many_independent_values(self) -> None:
        values = np.random.default_rng(0).normal(loc=2.0, size=2000)
        half = Z_95 * values.std() / np.sqrt(2000)
        low, high = bootstrap_interval(values, np.arange(2000))
        assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
        assert high == pytest.approx(values.mean() + half, abs=0.1 * half)

    def test_copies_within_a_prompt_add_no_certainty(self) -> None:
        """The trap: ten copies of each pair look like ten times the data if rows are drawn."""
        values = np.random.default_rng(1).normal(size=40)
        copies, prompts = values.repeat(10), np.arange(40).repeat(10)
        once = bootstrap_interval(values, np.arange(40))
        assert bootstrap_interval(copies, prompts) == pytest.approx(once)
        low, high = bootstrap_interval(copies, np.arange(400))
        assert high - low < 0.5 * (once.high - once.low)

    @given(st.lists(st.tuples(number, st.integers(0, 5)), min_size=1, max_size=30), st.randoms())
    def test_depends_on_neither_order_nor_names_of_groups(
        self, rows: list[tuple[float, int]], shuffler: Callable[[int], object]
    ) -> None:
        before = bootstrap_interval(*zip(*rows, strict=True), resamples=50)
        shuffler.shuffle(rows)  # type: ignore[attr-defined]
        values, groups = zip(*rows, strict=True)
        named = [f"prompt {group}" for group in groups]
        assert bootstrap_interval(values, named, resamples=50) == pytest.approx(before, abs=1e-9)
        assert min(values) - 1e-9 <= before.low <= before.high <= max(values) + 1e-9

    def test_the_seed_is_all_the_randomness(self) -> None:
        values, groups = np.arange(30.0), np.arange(30)
        np.random.seed(0)
        first = bootstrap_interval(values, groups, seed=1)
        np.random.seed(1)
        assert bootstrap_interval(values, groups, seed=1) == first
        assert bootstrap_interval(values, groups, seed=2) != first

    def test_one_group_has_no_known_spread(self) -> None:
        assert bootstrap_interval([1.0, 2.0], ["a", "a"]) == Interval(1.5, 1.5)

    def test_blocks_do_not_change_the_result(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Memory is bounded by drawing in blocks; how many rows a block has must not matter."""
        values, groups = np.random.default_rng(5).normal(size=50), np.arange(50)
        whole = bootstrap_interval(values, groups)
        monkeypatch.setattr("morlaif_hub.statistics.intervals._DRAWS_AT_ONCE", 128)
        assert bootstrap_interval(values, groups) == whole

    @pytest.mark.parametrize(
        ("values", "groups", "resamples", "reason"),
        [
            ([], [], 10, "at least 1"),
            ([1.0], ["a", "b"], 10, "same length"),
            ([1.0, float("nan")], ["a", "b"], 10, "finite"),
            ([1.0], ["a"], 0, "resamples"),
        ],
    )
    def test_refusals(
        self, values: list[float], groups: list[str], resamples: int, reason: str
    ) -> None:
        with pytest.raises(OptionError, match=reason):
            bootstrap_interval(values, groups, resamples=resamples)


class TestPairwiseAccuracy:
    def test_each_case(self) -> None:
        differences = [1.0, 1.0, 1.0, 0.0, 0.0, -1.0, -1.0]
        probabilities = [0.9, 0.1, 0.5, 0.9, 0.5, 0.1, 0.9]
        expected = [1.0, 0.0, 0.5, 0.5, 0.5, 1.0, 0.0]
        assert pairwise_accuracy(differences, probabilities).tolist() == expected

    @given(pairs)
    def test_swapping_every_pair_changes_nothing(self, rows: list[tuple[float, float]]) -> None:
        differences, probabilities = map(np.array, zip(*rows, strict=True))
        probabilities = probabilities.round(6)  # so that p and 1 - p are on exact opposite sides
        np.testing.assert_array_equal(
            pairwise_accuracy(-differences, 1 - probabilities),
            pairwise_accuracy(differences, probabilities),
        )

    @given(pairs)
    def test_a_score_and_its_negative_share_each_pair(
        self, rows: list[tuple[float, float]]
    ) -> None:
        differences, probabilities = map(np.array, zip(*rows, strict=True))
        both = pairwise_accuracy(differences, probabilities) + pairwise_accuracy(
            -differences, probabilities
        )
        assert (both == 1.0).all()

    def test_unequal_lengths_are_refused(self) -> None:
        with pytest.raises(OptionError, match="differences and probabilities"):
            pairwise_accuracy([1.0, 2.0], [0.5])


class TestCorrelation:
    @given(st.lists(st.tuples(number, number), min_size=3, max_size=20))
    def test_matches_numpy(self, rows: list[tuple[float, float]]) -> None:
        x, y = map(np.array, zip(*rows, strict=True))
        ours = correlation(x, y)
        if min(np.ptp(x), np.ptp(y)) < 1e-6:
            return  # too close to constant for a reference to be trusted
        assert ours == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)

    @given(st.lists(st.tuples(number, number), max_size=20))
    def test_is_symmetric_and_bounded(self, rows: list[tuple[float, float]]) -> None:
        x, y = [a for a, _ in rows], [b for _, b in rows]
        forward, back = correlation(x, y), correlation(y, x)
        assert (forward is None) == (back is None)
        if forward is not None:
            assert -1.0 <= forward <= 1.0
            assert forward == pytest.approx(back)

    @pytest.mark.parametrize(
        ("x", "y"),
        [
            ([], []),
            ([1.0, 2.0], [1.0, 2.0]),
            ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]),
            ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]),
            ([0.1 + 0.2, 0.3, 0.3], [1.0, 2.0, 3.0]),  # constant but for rounding
        ],
    )
    def test_none_where_undefined(self, x: list[float], y: list[float]) -> None:
        assert correlation(x, y) is None

    @pytest.mark.parametrize("scale", [1e-160, 1e160])
    def test_squares_neither_vanish_nor_overflow(self, scale: float) -> None:
        x = np.array([1.0, 2.0, 4.0]) * scale
        assert correlation(x, [1.0, 2.0, 4.0]) == pytest.approx(1.0)


class TestExpectedCalibrationError:
    @given(st.lists(st.tuples(probability, probability), min_size=1), st.integers(1, 20))
    def test_matches_a_plain_loop(self, rows: list[tuple[float, float]], bins: int) -> None:
        expected = 0.0
        for i in range(bins):
            inside = [(p, y) for p, y in rows if calibration_bins(p, bins) == i]
            if inside:
                p, y = map(np.mean, zip(*inside, strict=True))
                expected += len(inside) / len(rows) * abs(p - y)
        ours = expected_calibration_error(*zip(*rows, strict=True), bins=bins)
        assert ours == pytest.approx(expected, abs=1e-9)

    def test_bins_have_equal_width_and_hold_both_ends(self) -> None:
        edges = [0.0, 0.19, 0.2, 0.59, 0.6, 0.99, 1.0]
        assert calibration_bins(edges, 5).tolist() == [0, 0, 1, 2, 3, 4, 4]

    def test_known_cases(self) -> None:
        assert expected_calibration_error([0.25] * 4, [1, 0, 0, 0]) == pytest.approx(0.0)
        assert expected_calibration_error([1.0, 0.0], [0, 1]) == pytest.approx(1.0)

    @pytest.mark.parametrize(
        ("probabilities", "outcomes", "bins"), [([], [], 10), ([0.5], [1], 0), ([1.5], [1], 10)]
    )
    def test_refusals(self, probabilities: list[float], outcomes: list[float], bins: int) -> None:
        with pytest.raises(OptionError):
            expected_calibration_error(probabilities, outcomes, bins=bins)


class TestLogOdds:
    @given(st.floats(-13.0, 13.0))
    def test_sigmoid_is_the_inverse(self, value: float) -> None:
        assert float(log_odds(sigmoid(value))) == pytest.approx(value, abs=1e-8)

    @given(probability)
    def test_sides_mirror_and_stay_finite(self, p: float) -> None:
        assert np.isfinite(log_odds(p))
        assert float(log_odds(1 - p)) == pytest.approx(-float(log_odds(p)), abs=1e-8)

    def test_sigmoid_does_not_overflow(self) -> None:
        assert sigmoid([-1e9, 0.0, 1e9]).tolist() == [0.0, 0.5, 1.0]

    @pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
    def test_what_is_no_probability_is_refused(self, p: float) -> None:
        with pytest.raises(OptionError, match="probabilities"):
            log_odds(p)


class TestCombineOrders:
    @given(probability)
    def test_a_judge_of_position_alone_gives_exact_ties(self, p: float) -> None:
        """Whatever it gives to the first place, both orders together say nothing of A."""
        assert float(combine_orders(p, 1 - p)) == 0.5

    @given(st.floats(-5, 5), st.floats(-5, 5))
    def test_a_constant_bias_cancels(self, signal: float, bias: float) -> None:
        first, second = sigmoid(signal + bias), sigmoid(signal - bias)
        assert float(combine_orders(first, second)) == pytest.approx(float(sigmoid(signal)))

    @given(probability, probability)
    def test_order_of_orders_and_sides(self, first: float, second: float) -> None:
        combined = float(combine_orders(first, second))
        assert float(combine_orders(second, first)) == combined
        assert float(combine_orders(1 - first, 1 - second)) == pytest.approx(1 - combined)
        assert min(first, second) - 1e-5 <= combined <= max(first, second) + 1e-5

    def test_an_unbiased_judge_is_left_alone(self) -> None:
        assert combine_orders([0.8, 0.3], [0.8, 0.3]) == pytest.approx([0.8, 0.3])

    def test_unequal_lengths_are_refused(self) -> None:
        with pytest.raises(OptionError, match="first and second"):
            combine_orders([0.5, 0.5], [0.5])


class TestEntropy:
    def test_known_values(self) -> None:
        expected = [0.0, 0.811278, 1.0, 0.811278, 0.0]
        assert entropy_bits([0.0, 0.25, 0.5, 0.75, 1.0]) == pytest.approx(expected, abs=1e-6)

    @given(probability)
    def test_bounded_and_blind_to_sides(self, p: float) -> None:
        bits = float(entropy_bits(p))
        assert 0.0 <= bits <= 1.0
        assert float(entropy_bits(1 - p)) == pytest.approx(bits, abs=1e-9)


class TestFitLogistic:
    @given(regressions())
    def test_the_gradient_vanishes(
        self, data: tuple[NDArray[np.float64], NDArray[np.float64]]
    ) -> None:
        """The loss is strictly convex, so a zero gradient is the one minimum."""
        features, labels = data
        fitted = fit_logistic(features, labels, l2=0.1)
        residual = sigmoid(features @ fitted) - labels
        gradient = features.T @ residual + 0.1 * fitted
        assert np.abs(gradient).max() < 1e-5 * (1 + np.abs(features).sum())

    def test_no_point_nearby_has_a_smaller_loss(self) -> None:
        generator = np.random.default_rng(2)
        features, labels = generator.normal(size=(50, 3)), generator.random(50)
        weights = generator.random(50)

        def loss(coefficients: NDArray[np.float64]) -> float:
            p = np.asarray(sigmoid(features @ coefficients))
            cross_entropy = -(labels * np.log(p) + (1 - labels) * np.log(1 - p))
            return float(weights @ cross_entropy + 0.5 * 0.3 * coefficients @ coefficients)

        fitted = fit_logistic(features, labels, weights=weights, l2=0.3)
        steps = generator.normal(size=(200, 3)) * 0.01
        assert min(loss(fitted + step) for step in steps) > loss(fitted)

    @given(regressions(), st.floats(0.01, 100.0))
    def test_scaling_a_feature_scales_its_coefficient_back(
        self, data: tuple[NDArray[np.float64], NDArray[np.float64]], scale: float
    ) -> None:
        features, labels = data
        plain = fit_logistic(features, labels, l2=0.1)
        scaled = fit_logistic(features * scale, labels, l2=0.1 * scale**2)
        np.testing.assert_allclose(scaled * scale, plain, rtol=1e-4, atol=1e-6)

    @given(regressions())
    def test_swapping_pairs_changes_nothing(
        self, data: tuple[NDArray[np.float64], NDArray[np.float64]]
    ) -> None:
        features, labels = data
        swap = np.arange(len(labels)) % 2 == 0
        swapped = fit_logistic(
            np.where(swap[:, None], -features, features), np.where(swap, 1 - labels, labels), l2=0.1
        )
        plain = fit_logistic(features, labels, l2=0.1)
        np.testing.assert_allclose(swapped, plain, rtol=1e-5, atol=1e-7)

    @given(regressions())
    def test_a_weight_of_two_is_a_copy(
        self, data: tuple[NDArray[np.float64], NDArray[np.float64]]
    ) -> None:
        features, labels = data
        copied = fit_logistic(np.vstack([features] * 2), np.tile(labels, 2), l2=0.1)
        weighted = fit_logistic(features, labels, weights=np.full(len(labels), 2.0), l2=0.1)
        np.testing.assert_allclose(weighted, copied, rtol=1e-5, atol=1e-7)

    def test_a_soft_label_is_a_weighted_mix_of_hard_ones(self) -> None:
        features = np.random.default_rng(4).normal(size=(30, 2))
        labels = np.random.default_rng(5).random(30)
        hard = fit_logistic(
            np.vstack([features, features]),
            np.repeat([1.0, 0.0], 30),
            weights=np.concatenate([labels, 1 - labels]),
            l2=0.5,
        )
        np.testing.assert_allclose(fit_logistic(features, labels, l2=0.5), hard, rtol=1e-6)

    def test_recovers_the_coefficients_of_exact_probabilities(self) -> None:
        features, truth = np.random.default_rng(6).normal(size=(200, 3)), np.array([1.0, -2.0, 0.5])
        fitted = fit_logistic(features, sigmoid(features @ truth), l2=1e-9)
        np.testing.assert_allclose(fitted, truth, rtol=1e-6)

    def test_separable_labels_stay_finite(self) -> None:
        features = np.array([[1e3, 1.0], [-1e3, 2.0], [2e3, -1.0]])
        fitted = fit_logistic(features, [1.0, 0.0, 1.0], l2=1e-6)
        assert np.isfinite(fitted).all()
        assert fitted[0] > 0

    def test_more_features_than_pairs(self) -> None:
        """As for a head on a model's hidden states: the fit lies in the span of the rows."""
        features = np.random.default_rng(8).normal(size=(5, 60))
        fitted = fit_logistic(features, [0.9, 0.2, 0.7, 0.4, 0.1], l2=1.0)
        _, residual, *_ = np.linalg.lstsq(features.T, fitted, rcond=None)
        assert residual == pytest.approx([0.0], abs=1e-12)

    @pytest.mark.parametrize(
        ("features", "labels", "options", "reason"),
        [
            ([1.0, 2.0], [1.0, 0.0], {}, r"\(n, d\)"),
            ([[1.0]], [1.0, 0.0], {}, r"\(n, d\)"),
            (np.zeros((0, 2)), [], {}, "at least 1 pair"),
            ([[float("inf")]], [1.0], {}, "finite"),
            ([[1.0]], [2.0], {}, r"\[0, 1\]"),
            ([[1.0]], [1.0], {"l2": 0.0}, "l2"),
            ([[1.0]], [1.0], {"weights": [-1.0]}, "weights"),
            ([[1.0]], [1.0], {"weights": [0.0]}, "weights"),
            ([[1.0]], [1.0], {"weights": [1.0, 1.0]}, "weights"),
        ],
    )
    def test_refusals(
        self, features: object, labels: list[float], options: dict[str, object], reason: str
    ) -> None:
        with pytest.raises(OptionError, match=reason):
            fit_logistic(features, labels, **{"l2": 1.0, **options})  # type: ignore[arg-type]


class TestFitTemperature:
    @given(st.floats(0.05, 20.0), st.integers(0, 1000))
    def test_recovers_the_temperature_of_exact_probabilities(
        self, temperature: float, seed: int
    ) -> None:
        differences = np.random.default_rng(seed).normal(size=40)
        probabilities = sigmoid(differences / temperature)
        assert fit_temperature(differences, probabilities) == pytest.approx(temperature, rel=1e-6)

    def test_is_the_best_of_a_grid(self) -> None:
        generator = np.random.default_rng(9)
        differences = generator.normal(size=80)
        labels = (generator.random(80) < np.asarray(sigmoid(differences))).astype(float)
        weights = generator.random(80)

        def loss(temperature: float) -> float:
            margins = differences / temperature
            return float(weights @ (np.logaddexp(0, margins) - labels * margins))

        fitted = fit_temperature(differences, labels, weights=weights)
        assert loss(fitted) <= min(loss(t) for t in np.geomspace(0.01, 100, 2000))

    @given(regressions(), st.floats(0.01, 100.0))
    def test_is_in_units_of_the_score(
        self, data: tuple[NDArray[np.float64], NDArray[np.float64]], scale: float
    ) -> None:
        differences, labels = data[0][:, 0], data[1]
        plain = fit_temperature(differences, labels)
        assert plain > 0
        scaled = fit_temperature(differences * scale, labels)
        assert scaled == pytest.approx(plain * scale, rel=1e-6)

    def test_scores_that_point_the_wrong_way_get_the_highest(self) -> None:
        assert fit_temperature([2.0, -2.0], [0.1, 0.9]) == pytest.approx(2000.0)

    def test_scores_that_are_never_wrong_get_the_lowest(self) -> None:
        assert fit_temperature([2.0, -2.0], [1.0, 0.0]) == pytest.approx(0.002)

    def test_no_differences_at_all(self) -> None:
        assert fit_temperature([0.0, 0.0], [0.2, 0.9]) == 1.0
