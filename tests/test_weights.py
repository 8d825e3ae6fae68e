"""Fitted weights: true on data whose weights are known, the same however the data are written."""

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from morlaif_hub import PMBank, compare_scalarizers, fit_weights
from morlaif_hub.bank.artifact import write_bank
from morlaif_hub.bank.members import Member
from morlaif_hub.cli import labels as labelling
from morlaif_hub.comparisons import Comparison, write_comparisons
from morlaif_hub.errors import DataError, MorlaifHubError, OptionError, TrainingError
from morlaif_hub.feedback.collect import CollectSettings, collect_feedback
from morlaif_hub.feedback.dataset import FeedbackDataset
from morlaif_hub.hub.manifest import BankManifest, SourceRecord, read_manifest
from morlaif_hub.models.language_model import model_folder
from morlaif_hub.preference_models.preferences import human_preferences
from morlaif_hub.principles import load_constitution
from morlaif_hub.scalarizers import SCALARIZERS
from morlaif_hub.statistics import pairwise_accuracy, sigmoid
from morlaif_hub.weights import WeightFit, variance_inflation
from morlaif_hub.weights import fit as fitting
from morlaif_hub.workspace import Workspace
from tests.fake_judges import RuleJudge, longer
from tests.hub_server import LoopbackHub
from tests.hub_workspace import PRINCIPLES, Made, push_all
from tests.test_cli import passed, printed, put_back, run  # noqa: F401  # a fixture, by name
from tests.test_docs import generator

pytestmark = pytest.mark.usefixtures("put_back")

TRUE = np.array([0.5, 0.3, -0.2])
NAMES = ("empathy", "detail", "sycophancy")


def data(
    pairs: int = 240, *, seed: int = 0, weights: np.ndarray = TRUE, scale: float = 4.0
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return differences, choices drawn from the model itself, and prompts of three pairs each."""
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(len(weights), len(weights))) * 0.3 + np.eye(len(weights))
    differences = generator.normal(size=(pairs, len(weights))) @ mixed
    choices = generator.random(pairs) < sigmoid(scale * differences @ weights)
    return differences, choices.astype(float), [f"prompt {n // 3}" for n in range(pairs)]


def fitted(
    differences: np.ndarray,
    probabilities: np.ndarray,
    prompts: Sequence[str],
    names: Sequence[str] = NAMES,
) -> WeightFit:
    return fit_weights(differences, probabilities, prompts, objectives=names)


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most properties do not depend on how many there are."""
    monkeypatch.setattr(fitting, "_MOST_RESAMPLES", 20)
    monkeypatch.setattr(fitting, "_FEWEST_RESAMPLES", 20)


# What is fitted.


def test_known_weights_are_found() -> None:
    fit = fitted(*data(4000))
    assert fit.weights == pytest.approx(TRUE, abs=0.03)
    assert np.abs(fit.weights).sum() == pytest.approx(1)
    assert fit.scale == pytest.approx(4.0, rel=0.1)
    for weight, interval, true in zip(fit.weights, fit.intervals, TRUE, strict=True):
        assert interval.low < weight < interval.high
        assert interval.low < true < interval.high
        assert interval.high - interval.low < 0.1


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 240 intervals of 95 %, 228 should; fewer than 215 are a chance of one in ten thousand."""
    held = 0
    for seed in range(80):
        fit = fitted(*data(450, seed=seed))
        held += sum(i.low <= t <= i.high for i, t in zip(fit.intervals, TRUE, strict=True))
    assert held >= 215


def test_intervals_are_over_prompts() -> None:
    """Every pair four times under one prompt is no more evidence; as other prompts it would be."""
    differences, choices, prompts = data(240)
    again = (np.tile(differences, (4, 1)), np.tile(choices, 4))
    alone = fitted(differences, choices, prompts)
    same = fitted(*again, prompts * 4)
    other = fitted(*again, [f"{copy} {p}" for copy in range(4) for p in prompts])

    def width(fit: WeightFit) -> float:
        return sum(high - low for low, high in fit.intervals)

    assert width(same) == pytest.approx(width(alone), rel=0.15)
    assert width(other) < 0.65 * width(alone)


def test_soft_labels_are_what_they_say() -> None:
    """Probabilities of the model itself give its weights back nearly exactly."""
    differences, _, prompts = data(600)
    fit = fitted(differences, sigmoid(4 * differences @ TRUE), prompts)
    assert fit.weights == pytest.approx(TRUE, abs=1e-3)
    assert fit.scale == pytest.approx(4.0, rel=0.01)
    assert fit.l2 == min(fitting.PENALTIES)


def same(one: WeightFit, other: WeightFit, **changed: Any) -> None:
    assert one.weights == pytest.approx(changed.get("weights", other.weights), abs=1e-6)
    assert one.l2 == other.l2
    assert one.quality.accuracy == other.quality.accuracy
    assert one.quality.log_loss == pytest.approx(other.quality.log_loss, abs=1e-6)


@pytest.mark.usefixtures("few_resamples")
def test_which_response_is_a_does_not_matter() -> None:
    differences, choices, prompts = data()
    flip = np.random.default_rng(1).random(len(choices)) < 0.5
    signs = np.where(flip, -1.0, 1.0)
    one = fitted(differences, choices, prompts)
    other = fitted(differences * signs[:, None], np.where(flip, 1 - choices, choices), prompts)
    same(other, one)
    assert np.allclose(one.intervals, other.intervals, atol=1e-6)
    assert other.inflation == pytest.approx(one.inflation)


@pytest.mark.usefixtures("few_resamples")
def test_the_order_of_objectives_does_not_matter() -> None:
    differences, choices, prompts = data()
    one = fitted(differences, choices, prompts)
    other = fitted(differences[:, [2, 0, 1]], choices, prompts, ["sycophancy", "empathy", "detail"])
    same(other, one, weights=one.weights[[2, 0, 1]])
    assert other.named == pytest.approx(one.named, abs=1e-6)
    assert np.allclose(np.array(one.intervals)[[2, 0, 1]], other.intervals, atol=1e-6)


@pytest.mark.usefixtures("few_resamples")
def test_the_order_of_pairs_does_not_matter() -> None:
    differences, choices, prompts = data()
    order = np.random.default_rng(1).permutation(len(choices))
    one = fitted(differences, choices, prompts)
    other = fitted(differences[order], choices[order], [prompts[i] for i in order])
    same(other, one)
    assert np.allclose(one.intervals, other.intervals, atol=1e-6)
    assert one.held_out_weights[order] == pytest.approx(other.held_out_weights, abs=1e-6)


@pytest.mark.usefixtures("few_resamples")
def test_the_scale_of_an_objective_moves_into_its_weight() -> None:
    differences, choices, prompts = data()
    factors = np.array([0.01, 1.0, 30.0])
    one = fitted(differences, choices, prompts)
    other = fitted(differences * factors, choices, prompts)
    expected = one.weights / factors
    same(other, one, weights=expected / np.abs(expected).sum())
    assert other.weights * other.scale * factors == pytest.approx(one.weights * one.scale, rel=1e-5)
    assert other.inflation == pytest.approx(one.inflation)


# How well it is known.


@pytest.mark.usefixtures("few_resamples")
def test_held_out_weights_do_not_know_their_prompts_labels() -> None:
    """Other labels of a fold's prompts change everybody's weights but theirs."""
    differences, choices, prompts = data()
    one = fitted(differences, choices, prompts)
    mine = (one.held_out_weights == one.held_out_weights[0]).all(axis=1)
    assert 0.1 < mine.mean() < 0.3
    assert (
        len(
            {p for p, m in zip(prompts, mine, strict=True) if m}
            & {p for p, m in zip(prompts, mine, strict=True) if not m}
        )
        == 0
    )
    other = fitted(differences, np.where(mine, 1 - choices, choices), prompts)
    assert np.array_equal(one.held_out_weights[mine], other.held_out_weights[mine])
    assert not np.isclose(one.held_out_weights[~mine], other.held_out_weights[~mine]).any()


@pytest.mark.usefixtures("few_resamples")
def test_what_is_measured_is_what_held_out_weights_get_right() -> None:
    differences, choices, prompts = data()
    choices[:30] = 0.5
    fit = fitted(differences, choices, prompts)
    decided = choices != 0.5
    sums = (differences * fit.held_out_weights).sum(axis=1)
    right = pairwise_accuracy(sums, choices)[decided]
    equal = pairwise_accuracy(differences.mean(axis=1), choices)[decided]
    assert fit.quality.accuracy.value == pytest.approx(right.mean())
    assert fit.quality.equal_accuracy.value == pytest.approx(equal.mean())
    assert fit.quality.gain.value == pytest.approx((right - equal).mean())
    assert (fit.quality.accuracy.n, fit.pairs, fit.prompts) == (210, 240, 80)
    assert fit.quality.log_loss < fit.quality.equal_log_loss < np.log(2)


@pytest.mark.usefixtures("few_resamples")
def test_noise_is_called_noise() -> None:
    differences, _, prompts = data()
    coin = np.random.default_rng(5).integers(0, 2, len(prompts)).astype(float)
    fit = fitted(differences, coin, prompts)
    assert fit.l2 > 10
    assert fit.quality.log_loss == pytest.approx(np.log(2), abs=0.02)
    said = " ".join(fit.warnings)
    assert "not shown to tell labels better than chance" in said
    assert "not shown to be better than equal ones" in said


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), objectives=st.integers(1, 6), pull=st.floats(0, 5))
def test_inflation_is_the_diagonal_of_the_inverse_correlations(
    seed: int, objectives: int, pull: float
) -> None:
    generator = np.random.default_rng(seed)
    differences = generator.normal(size=(60, objectives)) + pull * generator.normal(size=(60, 1))
    products = differences.T @ differences
    spread = np.sqrt(np.diag(products))
    expected = np.diag(np.linalg.inv(products / np.outer(spread, spread)))
    names = [str(i) for i in range(objectives)]
    assert variance_inflation(differences, objectives=names) == pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("few_resamples")
def test_warnings_say_what_people_prefer_and_what_is_not_known() -> None:
    differences, choices, prompts = data(1200)
    fit = fitted(differences, choices, prompts)
    assert len(fit.warnings) == 1
    assert fit.warnings[0].startswith("sycophancy has a negative weight, -0.")
    assert "the one with the lower score is preferred" in fit.warnings[0]
    generator = np.random.default_rng(2)
    twin = differences[:, :1] + 0.1 * generator.normal(size=(1200, 1))
    noise = generator.normal(size=(1200, 1))
    more = fitted(
        np.hstack([differences, twin, noise]), choices, prompts, [*NAMES, "warmth", "noise"]
    )
    said = {warning.partition(":")[0]: warning for warning in more.warnings}
    assert "noise" in said["whether these weights are above or below 0 is not shown"]
    (inflated,) = [warning for warning in more.warnings if "variance inflation" in warning]
    assert inflated.rpartition(": ")[2].startswith("empathy (")
    assert "warmth (" in inflated
    assert "detail" not in inflated


@pytest.mark.usefixtures("few_resamples")
def test_labels_of_one_side_are_fitted_and_pointed_at() -> None:
    """Chosen first is how many sets are written, and the fit does not care; but it may be a bug."""
    differences, choices, prompts = data()
    signs = np.where(choices == 1, 1.0, -1.0)[:, None]
    one, other = (
        fitted(differences, choices, prompts),
        fitted(differences * signs, np.ones(len(choices)), prompts),
    )
    same(other, one)
    assert other.warnings[0].startswith("every label prefers response A;")
    assert other.warnings[1:] == one.warnings
    assert (one.one_sided, other.one_sided) == (None, "A")


# What cannot be fitted.

DIFFERENCES, CHOICES, PROMPTS = data()


def with_column(column: np.ndarray) -> np.ndarray:
    return np.hstack([DIFFERENCES[:, :2], column.reshape(-1, 1)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((DIFFERENCES[:29], CHOICES[:29], PROMPTS[:29]), "29 .* of 10 prompts.* 30 pairs"),
        ((DIFFERENCES, CHOICES, ["one"] * 240), "of 1 prompts, are too few.* 10 prompts"),
        ((DIFFERENCES, np.full(240, 0.5), PROMPTS), "all 240 pairs are ties"),
        ((with_column(np.zeros(240)), CHOICES, PROMPTS), "^sycophancy scored both responses"),
        (
            (with_column(DIFFERENCES[:, 0] * 3), CHOICES, PROMPTS),
            "of empathy are a combination of those of sycophancy, so",
        ),
        (
            (with_column(DIFFERENCES[:, 0] - DIFFERENCES[:, 1]), CHOICES, PROMPTS),
            "of empathy are a combination of those of detail, sycophancy, so",
        ),
        (
            (
                np.vstack([DIFFERENCES, DIFFERENCES]),
                np.repeat([0.0, 1.0], 240),
                [*PROMPTS, *PROMPTS],
            ),
            "nothing to do with the scores of empathy, detail, sycophancy",
        ),
    ],
    ids=["pairs", "prompts", "ties", "constant", "multiple", "combination", "unrelated"],
)
def test_what_cannot_be_fitted_is_named(arguments: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        fitted(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((DIFFERENCES[:5], CHOICES, PROMPTS), r"got \(5, 3\), \(240,\)"),
        ((DIFFERENCES, CHOICES, PROMPTS[:5]), r"\(5,\)$"),
        ((DIFFERENCES, CHOICES + 1, PROMPTS), "must lie in"),
        ((np.full((240, 3), np.nan), CHOICES, PROMPTS), "differences must be finite"),
        ((DIFFERENCES, CHOICES, PROMPTS, ["a", "b"]), "3 different names, .* got a, b"),
        ((DIFFERENCES, CHOICES, PROMPTS, ["a", "b", "a"]), "different names"),
    ],
)
def test_wrong_arrays_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        fitted(*arguments)


# Scalarizers.


def brute_force(name: str, a: np.ndarray, b: np.ndarray, p: np.ndarray, w: np.ndarray) -> float:
    """Return an accuracy, pair by pair."""
    right = []
    for row_a, row_b, label, weights in zip(a, b, p, w, strict=True):
        if label != 0.5:
            first, second = (
                SCALARIZERS.get(name)(torch.tensor(row)[None], torch.tensor(weights)).item()
                for row in (row_a, row_b)
            )
            right.append(0.5 if first == second else float((first > second) == (label > 0.5)))
    return float(np.mean(right))


@pytest.mark.parametrize("own", [False, True], ids=["one set of weights", "weights of each pair"])
def test_every_scalarizer_is_measured(own: bool) -> None:
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=(2, 60, 3))
    p = generator.choice([0.0, 0.5, 1.0, 0.7], size=60)
    w = generator.random((60, 3)) if own else np.array([0.6, 0.3, 0.1])
    found = compare_scalarizers(a, b, p, [str(n // 2) for n in range(60)], weights=w)
    assert [one.name for one in found] == SCALARIZERS.names()
    linear = found[0].accuracy
    for one in found:
        assert one.problem is None
        assert one.accuracy is not None
        assert one.above_linear is not None
        assert linear is not None
        each = np.broadcast_to(w, a.shape)
        assert one.accuracy.value == pytest.approx(brute_force(one.name, a, b, p, each))
        assert one.above_linear.value == pytest.approx(one.accuracy.value - linear.value)
        assert one.accuracy.interval.low <= one.accuracy.value <= one.accuracy.interval.high
        assert one.accuracy.n == (p != 0.5).sum()
    swapped = compare_scalarizers(b, a, 1 - p, [str(n // 2) for n in range(60)], weights=w)
    assert swapped == found


def test_a_scalarizer_that_does_not_take_the_weights_says_so() -> None:
    found = {
        one.name: one
        for one in compare_scalarizers([[1.0, 0]], [[0, 1.0]], [1], ["x"], weights=[1.0, -0.5])
    }
    nash = found.pop("bernoulli_nash")
    assert nash.accuracy is nash.above_linear is None
    assert nash.problem is not None
    assert "weights of at least 0" in nash.problem
    assert all(one.accuracy is not None for one in found.values())


def test_shapes_that_do_not_go_together_are_refused() -> None:
    a = np.zeros((4, 2))
    for arguments, weights in (
        ((a, a[:3], [1] * 4, list("abcd")), [1, 1]),
        ((a, a, [1] * 3, list("abcd")), [1, 1]),
        ((a, a, [1] * 4, list("abcd")), [1, 1, 1]),
        ((a, a, [0.5] * 4, list("abcd")), [1, 1]),
    ):
        with pytest.raises(OptionError):
            compare_scalarizers(*arguments, weights=weights)


# The command.


def pairs(count: int = 44, about: str = "Tell me of the number") -> list[Comparison]:
    """Return pairs of two for each prompt; people mostly like the longer response."""
    return [
        Comparison(
            ({"role": "user", "content": f"{about} {n // 2}."},),
            f"It is {n}" + "!" * (n % 5),
            f"I think that {n} may well be a number, " + "or not, " * (1 + n % 4),
            human_choice="a" if n % 5 == 0 else "b",
        )
        for n in range(count)
    ]


@pytest.fixture
def workspace(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Return a workspace with two preference models and a bank; their base is known here."""
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "cache"))
    model_folder(made.base)
    return made.workspace


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.jsonl"
    write_comparisons(path, pairs())
    return path


def test_weights_are_written_into_the_workspaces_bank(workspace: Workspace, labels: Path) -> None:
    there = ("--workspace", workspace.root)
    found = printed("fit-weights", "--labels", labels, *there)
    assert list(found) == list(generator().JSON["fit-weights"])
    bank = PMBank.from_pretrained(workspace.bank)
    prompts = [pair.prompt for pair in pairs()]
    a, b = (
        bank.score(prompts, [getattr(pair, side) for pair in pairs()]).double().numpy()
        for side in ("response_a", "response_b")
    )
    chosen = [float(pair.human_choice == "a") for pair in pairs()]
    ids = [pair.prompt_id for pair in pairs()]
    fit = fit_weights(a - b, chosen, ids, objectives=bank.objectives)
    assert bank.weights == pytest.approx(fit.named, abs=1e-4)
    assert bank.weights == {name: row["weight"] for name, row in found["weights"].items()}
    assert sum(map(abs, bank.weights.values())) == pytest.approx(1)
    assert found["accuracy"]["value"] == pytest.approx(fit.quality.accuracy.value)
    assert [row["vif"] for row in found["weights"].values()] == pytest.approx(
        fit.inflation.tolist(), rel=1e-3
    )
    assert [row["scalarizer"] for row in found["scalarizers"]] == SCALARIZERS.names()
    assert (found["pairs"], found["prompts"], found["left_out"]) == (44, 22, 0)
    assert found["scalarizer"] == bank.scalarizer == "soft_max_min"  # as it was

    manifest = read_manifest(workspace.bank, BankManifest)
    for record in manifest.weights:
        assert record.interval == tuple(found["weights"][record.objective]["interval"])
    assert manifest.weights_fit is not None
    assert manifest.weights_fit.sources[0].name == "labels.jsonl"
    assert {f.path for f in manifest.files} == {"figures/correlations.png", "figures/weights.png"}
    card = (workspace.bank / "README.md").read_text()
    assert "fitted by logistic regression of people's choices" in card
    assert "](figures/weights.png)" in card

    again = printed("fit-weights", "--labels", labels, "--scalarizer", "linear", *there)
    assert again == {**found, "scalarizer": "linear"}
    assert PMBank.from_pretrained(workspace.bank).scalarizer == "linear"


def test_the_table_is_for_people(workspace: Workspace, labels: Path) -> None:
    result = passed("fit-weights", "--labels", labels, "--workspace", workspace.root)
    for text in ("objective", "VIF", "above linear", "max_median", "people's choices in 44 pairs"):
        assert text in result.stdout
    assert "scoring (44 to do)" in result.stderr
    assert "resampling prompts (1,000 to do)" in result.stderr
    assert "morlaif-hub steer" in result.stderr


def test_scores_that_are_kept_are_used(
    workspace: Workspace, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = ("--workspace", workspace.root)
    passed("score", "--pairs", labels, *there)
    score, asked = PMBank.score, []

    def counted(bank: PMBank, prompts: Any, *rest: Any, **more: Any) -> Any:
        asked.append(len(prompts))
        return score(bank, prompts, *rest, **more)

    monkeypatch.setattr(PMBank, "score", counted)
    printed("fit-weights", "--labels", labels, "--limit", "40", *there)
    assert asked == []
    assert len(list(workspace.scores.iterdir())) == 1


@pytest.mark.parametrize("before", [0, 30], ids=["nothing kept", "some kept"])
def test_only_what_is_missing_is_scored(
    before: int, workspace: Workspace, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where `score --pairs` began with all of the source, and was killed on the way."""
    if before:
        passed("score", "--pairs", labels, "--workspace", workspace.root)
        (part,) = workspace.scores.glob("*/*.parquet")
        parquet.write_table(parquet.read_table(part).slice(0, before), part)
    bank = PMBank.from_pretrained(workspace.bank)
    read = labelling.read_labels(str(labels), workspace, bank.members, verdicts=False)
    wanted, scored, told = read.first(40), [], []
    score = bank.score

    def noted(prompts: Any, responses: Any, **more: Any) -> torch.Tensor:
        scored.extend(responses)
        return score(prompts, responses, **more)

    monkeypatch.setattr(bank, "score", noted)
    found = labelling.score_labels(bank, wanted, workspace, progress=told.append)
    missing = pairs()[before:40]
    assert scored == [text for pair in missing for text in (pair.response_a, pair.response_b)]
    assert sum(told) == 40
    for scores, side in zip(found, ("response_a", "response_b"), strict=True):
        expected = score([p.prompt for p in pairs()[:40]], [getattr(p, side) for p in pairs()[:40]])
        assert scores == pytest.approx(expected.double().numpy(), abs=1e-4)
    scored.clear()
    again = labelling.score_labels(bank, wanted, workspace, progress=told.append)
    assert scored == []
    np.testing.assert_array_equal(again, found)


def feedback(
    comparisons: Sequence[Comparison], folder: Path, *, name: str = "detail", sha256: str = "1" * 64
) -> Path:
    """Collect verdicts of a rule that likes length, as feedback on a principle."""
    principle = load_constitution().get(name)
    collect_feedback(
        [principle],
        comparisons,
        RuleJudge(longer),
        folder=folder,
        source=SourceRecord(name="numbers.jsonl", revision=None, sha256=sha256),
        settings=CollectSettings(unvalidated=True),
    )
    return folder / name


def test_peoples_choices_in_the_workspaces_feedback_are_the_default(
    workspace: Workspace,
) -> None:
    there = ("--workspace", workspace.root)
    refused = run("fit-weights", *there)
    assert refused.exit_code == 1
    assert "no feedback with people's choices; give --labels" in refused.stderr
    feedback(pairs(), workspace.all_feedback)
    found = printed("fit-weights", *there)
    assert (found["labels"], found["pairs"]) == ("human", 44)
    assert [source["name"] for source in found["sources"]] == ["sums.jsonl", "numbers.jsonl"]


def test_a_judges_verdicts_will_do_when_they_are_asked_for(
    workspace: Workspace, tmp_path: Path
) -> None:
    unlabelled = [replace(pair, human_choice=None) for pair in pairs()]
    place = feedback(unlabelled, tmp_path / "other")
    there = ("--workspace", workspace.root)
    refused = run("fit-weights", "--labels", place, *there)
    assert (refused.exit_code, "--verdicts" in refused.stderr) == (1, True)
    found = printed("fit-weights", "--labels", place, "--verdicts", *there)
    assert (found["labels"], found["pairs"], found["left_out"]) == ("feedback", 44, 0)
    assert found["sources"][0]["sha256"] == FeedbackDataset.load(place).reference.sha256
    card = (workspace.bank / "README.md").read_text()
    assert "logistic regression of a judge's verdicts" in card


def test_pairs_that_the_bank_learnt_from_are_left_out(workspace: Workspace, tmp_path: Path) -> None:
    place = workspace.feedback("detail")
    bank = PMBank.from_pretrained(workspace.bank)
    splits = FeedbackDataset.load(place).splits
    verdicts = labelling.read_labels(str(place), workspace, bank.members, verdicts=True)
    assert verdicts.left_out == len(splits.train)
    assert verdicts.prompts == [row.comparison.prompt_id for row in splits.test]
    # The same prompts in another file, with other responses, and some that are new.
    old = [
        Comparison(row.comparison.prompt, "Yes.", "No.", human_choice="a") for row in splits.train
    ]
    write_comparisons(tmp_path / "old.jsonl", [*old, *pairs()])
    source = str(tmp_path / "old.jsonl")
    human = labelling.read_labels(source, workspace, bank.members, verdicts=False)
    assert (human.left_out, human.comparisons) == (len(old), pairs())
    write_comparisons(tmp_path / "old.jsonl", old)
    with pytest.raises(MorlaifHubError, match="learnt from all"):
        labelling.read_labels(source, workspace, bank.members, verdicts=False)


def learner_of_choices(member: Member, sha256: str) -> Member:
    """Return a member that learnt from people's choices in the pairs of that hash, with seed 3."""
    assert member.manifest is not None
    training = replace(member.manifest.training, labels="human", seed=3)
    dataset = replace(member.manifest.dataset, sha256=sha256)
    return replace(
        member, manifest=replace(member.manifest, training=training, dataset=dataset, judge=None)
    )


def test_feedback_on_a_part_of_what_the_bank_learnt_from_is_left_out(workspace: Workspace) -> None:
    """Which pairs of the whole were held out cannot be told from a part of them."""
    others = pairs(20, "Now to")
    place = feedback(pairs(), workspace.all_feedback)
    feedback(others, workspace.all_feedback, name="empathy", sha256="2" * 64)
    learner = learner_of_choices(PMBank.from_pretrained(workspace.bank).members[0], "1" * 64)
    rest = labelling.read_labels(None, workspace, [learner], verdicts=False)
    assert {pair.id for pair in rest.comparisons} == {pair.id for pair in others}
    assert rest.left_out == 44
    for verdicts in (False, True):
        with pytest.raises(DataError, match="learnt from all 44"):
            labelling.read_labels(str(place), workspace, [learner], verdicts=verdicts)


def test_choices_that_the_bank_learnt_from_are_left_out(workspace: Workspace, labels: Path) -> None:
    """A preference model of people's choices names the file, and how it was split."""
    assert signature(human_preferences).parameters["test_fraction"].default == labelling.HELD_OUT
    bank = PMBank.from_pretrained(workspace.bank)
    everything = labelling.read_labels(str(labels), workspace, bank.members, verdicts=False)
    learner = learner_of_choices(bank.members[0], everything.sources[0].sha256)
    rest = labelling.read_labels(str(labels), workspace, [learner], verdicts=False)
    assert learner.manifest is not None
    learnt = human_preferences(
        load_constitution().get("detail"),
        everything.comparisons,
        dataset=learner.manifest.dataset,
        seed=3,
    )
    assert tuple(rest.comparisons) == learnt.held_out.comparisons
    assert rest.left_out == 44 - len(rest.comparisons) > 20


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda _: ["--verdicts"], 2, "--verdicts needs --labels"),
        (lambda labels: ["--labels", labels, "--verdicts"], 1, "is no feedback data set"),
        (lambda labels: ["--labels", labels, "--limit", "7"], 1, "7 labelled pairs.*20 pairs"),
        (lambda labels: ["--labels", labels, "--scalarizer", "lin"], 1, "Did you mean 'linear'"),
    ],
    ids=["no set", "no verdicts", "few", "scalarizer"],
)
def test_what_cannot_be_done_leaves_the_bank_as_it_is(
    change: Callable[[Path], list[Any]], code: int, message: str, workspace: Workspace, labels: Path
) -> None:
    before = (workspace.bank / "morlaif.json").read_bytes()
    result = run("fit-weights", *change(labels), "--workspace", workspace.root)
    assert result.exit_code == code, result.stdout
    assert re.search(message, " ".join(result.stderr.split()))
    assert (workspace.bank / "morlaif.json").read_bytes() == before


def test_weights_that_the_scalarizer_does_not_take_are_shown_and_not_written(
    workspace: Workspace, labels: Path
) -> None:
    """People here do not like detail, and a geometric mean takes no weight below 0."""
    before = (workspace.bank / "morlaif.json").read_bytes()
    command = ("fit-weights", "--labels", labels, "--limit", "40", "--workspace", workspace.root)
    refused = run(*command, "--scalarizer", "bernoulli_nash")
    assert refused.exit_code == 1
    shown = " ".join(refused.stdout.split())
    for text in ("VIF", "above linear", "NOT WRITTEN: the bank", "--scalarizer linear"):
        assert text in shown
    assert "weights of at least 0" in shown
    assert (workspace.bank / "morlaif.json").read_bytes() == before

    data = run(*command, "--scalarizer", "bernoulli_nash", "--json")
    assert data.exit_code == 1
    found = json.loads(data.stdout)
    assert list(found) == list(generator().JSON["fit-weights"])
    assert "weights of at least 0" in found["problem"]
    assert found["path"] is None
    assert min(row["weight"] for row in found["weights"].values()) < 0

    # The next step is that very command, with a scalarizer that takes them.
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("next: morlaif-hub fit-weights --labels")
    written = printed(*shlex.split(last)[2:])
    assert written["weights"] == found["weights"]
    assert (written["scalarizer"], written["problem"]) == ("linear", None)
    assert PMBank.from_pretrained(workspace.bank).scalarizer == "linear"


def test_a_bank_by_its_repository_is_pinned_by_a_new_one(
    made: Made, ann: LoopbackHub, labels: Path, tmp_path: Path
) -> None:
    assert ann
    bank = push_all(made)["bank"]
    there = tmp_path / "another"
    found = printed("fit-weights", "--bank", bank.repo_id, "--labels", labels, "--workspace", there)
    manifest = read_manifest(there / "bank", BankManifest)
    assert [part.name for part in manifest.objectives] == list(PRINCIPLES)
    for part in manifest.objectives:
        assert part.repo_id.startswith(f"ann/morlaif-pm-{part.name}-")
        assert part.revision is not None
        assert len(part.revision) == 40
    again = PMBank.from_pretrained(there / "bank")
    assert again.weights == {name: row["weight"] for name, row in found["weights"].items()}


def test_chosen_weights_have_no_interval_and_no_figure(workspace: Workspace) -> None:
    bank = PMBank.from_pretrained(workspace.bank)
    weights = dict.fromkeys(bank.objectives, 0.5)
    manifest = write_bank(bank, workspace.bank, scores=[[0.0, 1.0]] * 3, weights=weights)
    assert manifest.weights_fit is None
    assert [f.path for f in manifest.files] == ["figures/correlations.png"]
    assert "| not fitted |" in (workspace.bank / "README.md").read_text()
    plain = json.loads((workspace.bank / "morlaif.json").read_text())
    assert plain["weights_fit"] is None
