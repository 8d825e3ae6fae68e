"""What is reported of judges whose bias is known, and how they do on what people chose."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_judges import RuleJudge, always_first, always_tie, longer, prefers, shorter
from hypothesis import given, settings
from hypothesis import strategies as st

from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import OptionError
from morlaif_hub.feedback.bias import Judged, bias_figure, bias_of, bias_report
from morlaif_hub.feedback.collect import CollectSettings, collect_feedback
from morlaif_hub.hub.manifest import SourceRecord
from morlaif_hub.judges.base import Question, Unanswered, Verdict
from morlaif_hub.judges.validation import ChoiceSample, sample_choices, validate_on_choices
from morlaif_hub.principles import Principle
from morlaif_hub.statistics import entropy_bits, estimate_mean, estimate_means, wilson_interval

BRIEF = Principle("brevity", "The reply is brief.", "The reply rambles.", "briefer", "shorter")
KIND = Principle("kindness", "The reply is kind.", "The reply is cruel.", "kinder")

SOURCE = SourceRecord(name="pairs.jsonl", revision=None, sha256="c" * 64)

answers = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.6, 0.9, 1.0])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "cache"))


def chosen(count: int, *, each: int = 1) -> list[Comparison]:
    """Return pairs of which people chose the longer response."""
    return [
        Comparison.from_choice(f"Question {i}?", f"A long answer {j} to {i}", f"No {j}")
        for i in range(count)
        for j in range(each)
    ]


def judged(verdicts: Sequence[tuple[float, float]], prompts: Sequence[str] | None = None) -> Judged:
    first, second = zip(*verdicts, strict=True)
    labels = [str(i) for i in range(len(verdicts))] if prompts is None else prompts
    return Judged(first, second, labels, [0.0] * len(verdicts))


class TestReport:
    @pytest.mark.parametrize(
        ("rule", "first", "consistent", "flipped", "ties"),
        [
            (always_first, 1.0, 0.0, 1.0, 1.0),
            (longer, 0.5, 1.0, 0.0, 0.0),
            (always_tie, 0.5, 0.0, 0.0, 1.0),
        ],
    )
    def test_judges_that_are_known(
        self, rule: Any, first: float, consistent: float, flipped: float, ties: float
    ) -> None:
        pairs = chosen(12)
        verdicts = RuleJudge(rule).verdicts([Question(pair, BRIEF) for pair in pairs])
        report = bias_report(pairs, verdicts)
        assert report.first_share is not None
        assert report.consistency is not None
        assert report.first_share.value == 0.5 + report.position_bias.value == first
        assert (report.consistency.value, report.flip_rate.value) == (consistent, flipped)
        assert (report.tie_rate, report.tie_interval) == (ties, (ties, ties))

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.tuples(answers, answers), min_size=1, max_size=30))
    def test_consistent_flipped_and_undecided_are_all(
        self, verdicts: list[tuple[float, float]]
    ) -> None:
        report = bias_of(judged(verdicts))
        assert report.consistency is not None
        undecided = sum(0.5 in verdict for verdict in verdicts) / len(verdicts)
        total = report.consistency.value + report.flip_rate.value + undecided
        assert total == pytest.approx(1.0)

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.tuples(answers, answers), min_size=1, max_size=30))
    def test_agrees_with_the_verdicts_one_by_one(self, verdicts: list[tuple[float, float]]) -> None:
        report = bias_of(judged(verdicts))
        each = [Verdict(*verdict) for verdict in verdicts]
        assert report.first_share is not None
        assert report.first_share.value == pytest.approx(np.mean([v.first_share for v in each]))
        assert report.flip_rate.value == pytest.approx(np.mean([v.flipped for v in each]))
        assert report.tie_rate == pytest.approx(np.mean([v.tie for v in each]))
        entropies = entropy_bits([v.probability_a for v in each])
        assert report.mean_entropy == pytest.approx(float(np.mean(entropies)))

    def test_swapping_every_pair_changes_nothing(self) -> None:
        pairs = chosen(15, each=2)
        draws = np.random.default_rng(0).random((len(pairs), 2)).tolist()
        verdicts = [Verdict(*draw) for draw in draws]
        swapped = bias_report([p.swap() for p in pairs], [v.swap() for v in verdicts])
        report = asdict(bias_report(pairs, verdicts))
        for name, value in asdict(swapped).items():
            flat = value.values() if isinstance(value, dict) else [value]
            other = report[name].values() if isinstance(value, dict) else [report[name]]
            for one, two in zip(flat, other, strict=True):
                assert one == pytest.approx(two), name

    def test_every_interval_resamples_prompts(self) -> None:
        """Many pairs on two prompts are two observations: nothing is known in between."""
        verdicts = [(0.9, 0.1)] * 50 + [(1.0, 1.0)] * 50
        report = bias_of(judged(verdicts, ["one"] * 50 + ["other"] * 50))
        assert report.first_share is not None
        assert report.consistency is not None
        assert report.first_share.interval == (0.5, 1.0)
        assert report.consistency.interval == report.flip_rate.interval == (0.0, 1.0)
        assert report.tie_interval == (0.0, 1.0)
        assert report.entropy_interval == pytest.approx((0.0, 1.0), abs=1e-4)

    def test_the_figure_shows_what_was_measured(self) -> None:
        pairs = chosen(6)
        verdicts = RuleJudge(longer).verdicts([Question(pair, BRIEF) for pair in pairs])
        report = bias_report(pairs, verdicts)
        labels = [text.get_text() for text in bias_figure(report).axes[0].get_yticklabels()]
        assert len(labels) == 6
        assert labels[-1] == "agrees with people"
        old = replace(report, consistency=None, tie_interval=None, human_agreement=None)
        assert len(bias_figure(old).axes[0].get_yticklabels()) == 3


class TestMeansOfColumns:
    def test_each_is_what_it_would_be_alone(self) -> None:
        generator = np.random.default_rng(1)
        groups = generator.integers(7, size=40)
        columns = generator.random((40, 3))
        together = estimate_means(columns, groups, seed=4, resamples=500)
        for column, found in zip(columns.T, together, strict=True):
            alone = estimate_mean(column, groups, seed=4, resamples=500)
            assert (found.value, found.n) == (pytest.approx(alone.value), alone.n)
            assert found.interval == pytest.approx(alone.interval)

    def test_refuses_what_is_no_table(self) -> None:
        with pytest.raises(OptionError, match="two dimensions, got 1"):
            estimate_means([1.0, 2.0], ["a", "b"])
        with pytest.raises(OptionError, match="same length"):
            estimate_means([[1.0], [2.0]], ["a"])


class TestChoiceSample:
    def test_one_pair_of_each_prompt_whatever_the_order(self) -> None:
        pairs = chosen(40, each=3)
        drawn = sample_choices(pairs, n=10)
        assert len({pair.prompt_id for pair in drawn}) == 10
        assert sample_choices([*reversed(pairs), *pairs], n=10) == drawn
        assert sample_choices(pairs, n=10, seed=1) != drawn
        assert len(sample_choices(pairs)) == 40

    def test_pairs_that_nobody_chose_between_are_passed_over(self) -> None:
        unknown = [replace(pair, human_choice=None) for pair in chosen(20)]
        assert sample_choices(unknown) == []
        assert len(sample_choices([*unknown, *chosen(3)])) == 3

    def test_memory_stays_bounded(self) -> None:
        sample = ChoiceSample(5)
        for pair in chosen(200):
            sample.add(pair)
            assert len(sample._kept) <= 11


class TestOnChoices:
    def test_accuracy_and_verdict(self, caplog: pytest.LogCaptureFixture) -> None:
        """People chose the longer one: a judge of brevity is against them, and is no error."""
        pairs = chosen(24)
        with caplog.at_level("WARNING"):
            found = validate_on_choices(RuleJudge(shorter), [BRIEF, KIND], pairs)
        assert "AGAINST PEOPLE: on brevity, judge fake:rule prefers what people" in caplog.text
        assert "in 0 % of 24 pairs only (95 % interval 0 to 14 %)" in caplog.text
        assert set(found) == {"brevity", "kindness"}
        against = found["brevity"]
        assert (against.accuracy, against.verdict, against.n) == (0.0, "wrong way", 24)
        assert against.interval == pytest.approx(wilson_interval(0, 24))
        with_them = validate_on_choices(RuleJudge(longer), [BRIEF], pairs)["brevity"]
        assert (with_them.accuracy, with_them.verdict) == (1.0, "fit")
        caplog.clear()
        tied = validate_on_choices(RuleJudge(always_tie), [BRIEF], pairs)["brevity"]
        assert (tied.accuracy, tied.verdict) == (0.5, "unproven")
        assert not caplog.text

    def test_position_alone_gains_nothing(self) -> None:
        found = validate_on_choices(RuleJudge(always_first), [BRIEF], chosen(24))["brevity"]
        assert (found.accuracy, found.verdict) == (0.5, "unproven")

    def test_what_is_left_unanswered_does_not_count(self) -> None:
        class Shy(RuleJudge):
            def verdicts(self, questions: Sequence[Question], **named: Any) -> list[Any]:
                given: list[Any] = super().verdicts(questions, **named)
                return [
                    Unanswered("refused") if question.principle == KIND or i < 4 else verdict
                    for i, (question, verdict) in enumerate(zip(questions, given, strict=True))
                ]

        found = validate_on_choices(Shy(longer), [BRIEF, KIND], chosen(10))
        assert {name: record.n for name, record in found.items()} == {"brevity": 8}

    def test_nothing_chosen_is_nothing_found(self) -> None:
        assert validate_on_choices(RuleJudge(longer), [BRIEF], []) == {}


class TestBeforeLabelling:
    def collect(self, folder: Path, judge: RuleJudge, **changes: Any) -> Any:
        return collect_feedback(
            [BRIEF],
            changes.pop("pairs", chosen(90)),
            judge,
            folder=folder,
            source=SOURCE,
            settings=CollectSettings(**changes),
        )["brevity"]

    def test_what_people_chose_is_asked_once_and_written_down(self, tmp_path: Path) -> None:
        judge = RuleJudge(shorter)
        made = self.collect(tmp_path, judge)
        assert made.judge.choices is not None
        assert (made.judge.choices.verdict, made.judge.choices.n) == ("wrong way", 64)
        # Labelling goes on, and asks nothing again.
        assert made.train_pairs + made.test_pairs == len(judge.asked) == 90
        assert made.bias.human_agreement is not None
        assert (made.bias.human_agreement.value, made.bias.human_agreement.n) == (0.0, 90)

    def test_nothing_is_tried_unasked(self, tmp_path: Path) -> None:
        skipped = self.collect(tmp_path, RuleJudge(shorter), unvalidated=True)
        assert skipped.judge.choices is None
        unknown = [replace(pair, human_choice=None) for pair in chosen(9)]
        assert self.collect(tmp_path, RuleJudge(shorter), pairs=unknown).judge.choices is None


class TestOneOrder:
    """A set judged in one order only has the position bias in its labels."""

    def test_train_pm_refuses_it(self, tmp_path: Path) -> None:
        from click.testing import CliRunner

        from morlaif_hub.cli import cli
        from morlaif_hub.cli.preference_models import _preferences
        from morlaif_hub.hub.artifact import open_artifact, seal
        from morlaif_hub.hub.manifest import FeedbackManifest
        from morlaif_hub.principles import load_constitution
        from morlaif_hub.workspace import Workspace

        principle = load_constitution().get("conciseness")
        better = {probe.better for probe in principle.probes}
        collect_feedback(
            [principle],
            chosen(8),
            RuleJudge(prefers(better)),
            folder=tmp_path / "feedback",
            source=SOURCE,
            settings=CollectSettings(unvalidated=True),
        )
        folder = tmp_path / "feedback" / "conciseness"
        seal(folder, replace(open_artifact(folder, FeedbackManifest), orders=1))
        there = ["--workspace", str(tmp_path)]
        done = CliRunner().invoke(cli, ["train-pm", "conciseness", *there])
        assert done.exit_code == 1
        assert "was collected in one order only" in done.output
        assert not (tmp_path / "pms").exists()
        # Given as pairs it brings people's choices, and never the verdicts.
        (preferences,) = _preferences(
            [principle], Workspace.at(tmp_path), pairs=str(folder), seed=0
        )
        ids = [comparison.id for comparison in preferences.comparisons]
        labels = dict(zip(ids, preferences.probabilities, strict=True))
        assert labels == {item.id: float(item.human_choice == "a") for item in chosen(8)}
