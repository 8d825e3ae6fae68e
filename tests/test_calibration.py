"""Calibration errors of models whose true error is known, and what a manifest says of them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.calibration import MODELS, measure
from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import OptionError
from morlaif_hub.hub.manifest import DatasetReference
from morlaif_hub.preference_models.calibrate import (
    calibrate,
    evaluate_calibration,
    evaluate_held_out,
)
from morlaif_hub.preference_models.preferences import Preferences
from morlaif_hub.principles import Principle
from morlaif_hub.statistics import (
    calibration_error,
    cross_fitted_temperatures,
    expected_calibration_error,
    fit_temperature,
    sigmoid,
)

Array = NDArray[np.float64]
PRINCIPLE = Principle("brevity", "It is short.", "It is long.", "shorter", "none")
DATASET = DatasetReference(repo_id=None, revision=None, sha256="0" * 64)


def drawn(
    pairs: int, *, seed: int = 0, scale: float = 1.0, soft: bool = False
) -> tuple[Array, Array, NDArray[np.intp]]:
    """Return differences, labels and prompts; sigmoid(difference / scale) is the probability."""
    generator = np.random.default_rng(seed)
    differences = scale * generator.normal(size=pairs)
    p = np.asarray(sigmoid(differences / scale))
    labels = generator.beta(4 * p, 4 * (1 - p)) if soft else (generator.random(pairs) < p) * 1.0
    return differences, labels, np.arange(pairs) // 4


@st.composite
def judged(draw: st.DrawFn) -> tuple[Array, Array, list[str]]:
    """Probabilities, soft or hard labels and prompts; ties and equal numbers among them."""
    n = draw(st.integers(1, 60))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    p, y = generator.random(n), generator.random(n)
    if draw(st.booleans()):
        p, y = p.round(1), y.round()
    return p, y, [f"p{i}" for i in generator.integers(1 + n // 3, size=n)]


class TestCalibrationError:
    @given(judged(), st.integers(0, 2**60 - 1))
    def test_which_response_is_called_a_changes_nothing(
        self, data: tuple[Array, Array, list[str]], swapped: int
    ) -> None:
        p, y, prompts = data
        swap = np.array([bool(swapped >> i & 1) for i in range(len(p))])
        turned = np.where(swap, 1 - p, p), np.where(swap, 1 - y, y)
        found = calibration_error(p, y, prompts, resamples=50)
        again = calibration_error(*turned, prompts, resamples=50)
        assert again.value == pytest.approx(found.value, abs=1e-9)
        assert again.interval == pytest.approx(found.interval, abs=1e-9)

    def test_equal_differences_share_a_bin_whatever_their_sign(self) -> None:
        """Where the sigmoids of d and -d do not add up to one, by rounding."""
        generator = np.random.default_rng(0)
        differences, labels = generator.integers(1, 4, size=90) / 7, generator.random(90)
        found = calibration_error(sigmoid(differences), labels).value
        for _ in range(20):
            sign = generator.choice([-1, 1], size=90)
            turned = sigmoid(sign * differences), np.where(sign < 0, 1 - labels, labels)
            assert calibration_error(*turned).value == pytest.approx(found, abs=1e-9)

    @given(judged(), st.randoms(use_true_random=False))
    def test_the_order_of_the_pairs_changes_nothing(
        self, data: tuple[Array, Array, list[str]], random: np.random.Generator
    ) -> None:
        rows = list(zip(*data, strict=True))
        random.shuffle(rows)
        found = calibration_error(*data, resamples=50)
        again = calibration_error(*zip(*rows, strict=True), resamples=50)
        assert again.value == pytest.approx(found.value, abs=1e-9)
        assert again.interval == pytest.approx(found.interval, abs=1e-9)

    @given(judged())
    def test_lies_in_its_interval_and_below_the_plain_error(
        self, data: tuple[Array, Array, list[str]]
    ) -> None:
        value, (low, high), n = calibration_error(*data, resamples=50)
        assert 0 <= low <= value <= high <= 1
        assert n == len(data[0])
        # All pairs apart: the largest that any bins can make of them.
        p, y, _ = data
        confidence = np.maximum(p, 1 - p)
        outcome = 0.5 + np.sign(p - 0.5) * (y - 0.5)
        assert value <= np.abs(confidence - outcome).mean() + 1e-9

    @pytest.mark.parametrize("soft", [False, True])
    def test_exact_probabilities_have_next_to_no_error(self, soft: bool) -> None:
        differences, labels, prompts = drawn(40_000, soft=soft)
        found = calibration_error(sigmoid(differences), labels, prompts)
        assert found.value < 0.01
        assert found.interval.low == 0.0

    def test_labels_that_are_the_probabilities_have_none(self) -> None:
        p = np.linspace(0, 1, 101)
        value, interval, _ = calibration_error(p, p)
        assert (value, *interval) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)

    @pytest.mark.parametrize("factor", [0.5, 2.0])
    def test_a_known_error_is_found(self, factor: float) -> None:
        differences, labels, prompts = drawn(20_000)
        true = float(np.abs(sigmoid(factor * differences) - sigmoid(differences)).mean())
        found = calibration_error(sigmoid(factor * differences), labels, prompts)
        assert found.value == pytest.approx(true, abs=0.01)
        assert found.interval.low <= true <= found.interval.high

    def test_over_and_underconfidence_do_not_cancel(self) -> None:
        """Half of the pairs are too sure by 0.2, the other half too unsure by 0.2."""
        p = np.repeat([0.9, 0.6], 1000)
        y = np.concatenate([np.arange(1000) % 10 < 7, np.arange(1000) % 10 < 8]).astype(float)
        assert calibration_error(p, y).value == pytest.approx(0.2, abs=1e-3)
        assert float(np.mean(p - y)) == pytest.approx(0.0, abs=1e-9)

    def test_what_noise_adds_is_subtracted(self) -> None:
        """Five hundred pairs of a perfectly calibrated model, two hundred times."""
        ours, plain = [], []
        for seed in range(200):
            differences, labels, prompts = drawn(500, seed=seed)
            p = sigmoid(differences)
            ours.append(calibration_error(p, labels, prompts, resamples=2).value)
            plain.append(expected_calibration_error(p, labels))
        assert np.mean(plain) > 0.04
        assert np.mean(ours) < 0.025
        assert np.mean(np.array(ours) < 0.05) > 0.9

    def test_pairs_of_one_prompt_are_no_news(self) -> None:
        """Each pair four times says as much as once, if the prompts are known."""
        differences, labels, _ = drawn(300, seed=3)
        p, prompts = sigmoid(differences), np.arange(300)
        once = calibration_error(p, labels, prompts)
        times = [np.tile(v, 4) for v in (p, labels, prompts)]
        assert calibration_error(*times).value == pytest.approx(once.value, abs=1e-3)
        assert calibration_error(*times).interval == pytest.approx(once.interval, abs=1e-3)
        unaware = calibration_error(times[0], times[1]).interval
        assert unaware.high - unaware.low < once.interval.high - once.interval.low

    def test_one_prompt_has_no_spread(self) -> None:
        value, interval, _ = calibration_error([0.9, 0.8], [1, 0], ["a", "a"])
        assert interval == pytest.approx((value, value))

    def test_probabilities_of_one_half_predict_nothing(self) -> None:
        assert calibration_error([0.5] * 30, [1.0, 0.0, 1.0] * 10).value == 0.0

    @pytest.mark.parametrize(
        ("probabilities", "outcomes", "groups"),
        [
            ([], [], None),
            ([1.2], [1], None),
            ([0.5], [-1], None),
            ([0.5], [1, 0], None),
            ([0.5, 0.5], [1, 0], ["a"]),
            ([float("nan")], [1], None),
        ],
    )
    def test_refusals(
        self, probabilities: list[float], outcomes: list[float], groups: list[str] | None
    ) -> None:
        with pytest.raises(OptionError):
            calibration_error(probabilities, outcomes, groups)

    def test_no_resamples(self) -> None:
        with pytest.raises(OptionError, match="resamples must be at least 1, got 0"):
            calibration_error([0.5], [1], resamples=0)

    @pytest.mark.slow
    @pytest.mark.parametrize("fitted", [False, True])
    @pytest.mark.parametrize("model", MODELS)
    def test_the_interval_holds_the_true_error(self, model: str, fitted: bool) -> None:
        row = measure(model, 500, fitted=fitted, soft=False, samples=200)
        assert row.covered > 0.92
        assert -0.01 < row.ours[0] < 0.03
        assert row.ours[0] < row.plain[0] + 0.015


class TestCrossFittedTemperatures:
    def test_a_pair_has_no_say_in_its_own(self) -> None:
        """Turning all labels of a prompt round leaves the temperature of its pairs as it was."""
        differences, labels, prompts = drawn(200)
        before = cross_fitted_temperatures(differences, labels, prompts)
        for prompt in (0, 7, 49):
            own = prompts == prompt
            after = cross_fitted_temperatures(
                differences, np.where(own, 1 - labels, labels), prompts
            )
            np.testing.assert_array_equal(after[own], before[own])
            assert (after != before).any()

    def test_pairs_of_a_prompt_share_one(self) -> None:
        differences, labels, prompts = drawn(200)
        temperatures = cross_fitted_temperatures(differences, labels, prompts)
        by_prompt = [set(temperatures[prompts == p]) for p in np.unique(prompts)]
        assert all(len(values) == 1 for values in by_prompt)
        assert len(set.union(*by_prompt)) == 5

    def test_the_order_of_the_pairs_changes_nothing(self) -> None:
        data = drawn(120)
        order = np.random.default_rng(1).permutation(120)
        shuffled = cross_fitted_temperatures(*(values[order] for values in data))
        np.testing.assert_allclose(shuffled, cross_fitted_temperatures(*data)[order], rtol=1e-9)

    def test_two_prompts_judge_each_other(self) -> None:
        d, y = np.array([1.0, 2.0, 1.0, 2.0]), np.array([0.6, 0.9, 0.7, 0.6])
        temperatures = cross_fitted_temperatures(d, y, ["a", "a", "b", "b"])
        assert temperatures[0] == fit_temperature(d[2:], y[2:])
        assert temperatures[2] == fit_temperature(d[:2], y[:2])

    def test_refusals(self) -> None:
        with pytest.raises(OptionError, match="got 1 and 5"):
            cross_fitted_temperatures([1.0, 2.0], [1, 0], ["a", "a"])
        with pytest.raises(OptionError, match="got 2 and 1"):
            cross_fitted_temperatures([1.0, 2.0], [1, 0], ["a", "b"], folds=1)


def compared(prompts: NDArray[np.intp], *, words: int = 3) -> list[Comparison]:
    return [
        Comparison(
            ({"role": "user", "content": f"Question {p}?"},),
            f"a{i} {'yes ' * (1 + i % words)}",
            f"b{i} {'no ' * (1 + i % 2)}",
            "a",
        )
        for i, p in enumerate(prompts)
    ]


class TestEvaluations:
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
    def test_honest_scores_are_well_calibrated_in_any_unit(self, scale: float) -> None:
        differences, labels, prompts = drawn(2000, scale=scale)
        (found,) = evaluate_calibration(compared(prompts), differences, labels, split="test")
        assert (found.metric, found.n, found.length_baseline) == ("calibration_error", 2000, None)
        assert found.value < 0.03
        assert found.interval[0] == 0.0
        assert found.interval[1] < 0.05

    def test_what_no_temperature_puts_right_is_reported(self) -> None:
        """Scores of a few pairs are right, of the others a coin, at the same size."""
        generator = np.random.default_rng(0)
        differences = np.sign(generator.normal(size=1000)) * np.tile([0.2, 3.0], 500)
        right = np.tile([0.95, 0.5], 500)
        labels = np.where(generator.random(1000) < right, differences > 0, differences < 0) * 1.0
        (found,) = evaluate_calibration(
            compared(np.arange(1000) // 4), differences, labels, split="test"
        )
        assert found.value > 0.2
        assert found.interval[0] > 0.15

    def test_one_prompt_has_no_other_to_be_judged_by(self) -> None:
        pairs = compared(np.zeros(8, np.intp))
        assert evaluate_calibration(pairs, np.ones(8), np.ones(8), split="test") == ()

    @pytest.mark.parametrize("labels", ["wrong way", "no information"])
    def test_scores_without_information_give_one_half(self, labels: str) -> None:
        generator = np.random.default_rng(0)
        a, b = generator.normal(size=(2, 600))
        better = np.where(a > b, 0.2, 0.8) if labels == "wrong way" else np.tile([0.0, 1.0], 300)
        calibration = calibrate(a, b, better)
        probabilities = sigmoid((a - b) / calibration.temperature)
        assert np.abs(probabilities - 0.5).max() < (0.01 if labels == "wrong way" else 0.15)
        (found,) = evaluate_calibration(compared(np.arange(600) // 4), a - b, better, split="test")
        assert np.isfinite(found.value)
        if labels == "no information":
            assert found.interval[0] < 0.02

    def test_scores_in_other_units_become_the_same(self) -> None:
        """That is what makes preference models comparable."""
        generator = np.random.default_rng(0)
        a, b = generator.normal(size=(2, 100))
        labels = np.asarray(sigmoid(a - b))
        first, second = calibrate(a, b, labels), calibrate(7 * a - 3, 7 * b - 3, labels)
        np.testing.assert_allclose(
            (7 * a - 3 - second.mean) / second.std, (a - first.mean) / first.std
        )
        assert second.temperature == pytest.approx(7 * first.temperature)

    def test_ties_count_for_the_calibration_alone(self) -> None:
        differences, labels, prompts = drawn(80)
        labels[::4] = 0.5
        given = Preferences(
            PRINCIPLE, tuple(compared(prompts)), labels, np.ones(80, bool), DATASET, judge=None
        )
        found = {e.metric: e for e in evaluate_held_out(given, differences, np.zeros(80))}
        assert list(found) == ["accuracy", "accuracy_equal_length", "calibration_error"]
        assert (found["accuracy"].n, found["calibration_error"].n) == (60, 80)
        tied = replace(given, probabilities=np.full(80, 0.5))
        (alone,) = evaluate_held_out(tied, differences, np.zeros(80))
        assert alone.metric == "calibration_error"
        assert alone.value < 0.01  # the temperature has made one half of everything
