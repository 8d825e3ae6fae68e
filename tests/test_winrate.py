"""Two policies compared: what a judge prefers, what else is different, and nothing done twice."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from morlaif_hub.comparisons import Message
from morlaif_hub.errors import OptionError, UnknownNameError
from morlaif_hub.evaluation.answers import (
    PROMPTS_AT_ONCE,
    Answers,
    Contestant,
    answer,
    find_contestant,
)
from morlaif_hub.evaluation.winrate import (
    Comparisons,
    Contest,
    compare,
    draw_outcomes,
)
from morlaif_hub.hub.manifest import SourceRecord
from morlaif_hub.judges.base import Answer, Progress, Question, Unanswered
from morlaif_hub.models.generation import SamplingSettings
from morlaif_hub.models.language_model import ModelFolder, model_folder
from morlaif_hub.policies.artifact import load_policy
from morlaif_hub.policies.reference import reference_of
from morlaif_hub.policies.sft import SftSettings, train_sft
from morlaif_hub.policies.sft_data import Dialogues
from morlaif_hub.principles import load_constitution
from morlaif_hub.progress import Silent
from morlaif_hub.workspace import Workspace
from tests.fake_judges import RuleJudge, always_first, longer
from tests.test_bank import make_pm
from tests.test_cli import passed, printed, run
from tests.test_sft import talk
from tests.tiny import save_tiny

PROMPTS = [[{"role": "user", "content": f"Say {i}"}] for i in range(PROMPTS_AT_ONCE + 4)]
SAMPLING = SamplingSettings(responses=2, max_new_tokens=12, distinct=False)
PRINCIPLES = [load_constitution().get(name) for name in ("conciseness", "detail")]
SOURCE = SourceRecord(name="dialogues.jsonl", revision=None, sha256="0" * 64)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return model_folder(save_tiny(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def workspace(base: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two policies: one that says little, and one that says more."""
    made = Workspace(tmp_path_factory.mktemp("project"))
    said = {"brief": "a ring", "wordy": "the lead is the answer to you"}
    for name, text in said.items():
        train_sft(
            base,
            Dialogues([talk(f"Say {i}", text) for i in range(100, 130)], SOURCE),
            folder=made.policy(name),
            settings=SftSettings(
                form="lora" if name == "brief" else "full",
                epochs=6,
                batch_size=6,
                learning_rate=2e-2,
                dtype="float32",
            ),
        )
    return made


class FixedScores:
    """Scores texts by their number of letters, and by minus that."""

    objectives = ("long", "short")

    def score(
        self,
        prompts: Sequence[str | Sequence[Message]],
        responses: Sequence[str | Sequence[Message]],
    ) -> Tensor:
        assert len(prompts) == len(responses)
        sizes = torch.tensor([float(len(str(text))) for text in responses])
        return torch.stack([sizes, -sizes], 1)


def contest(judge: Any = None, **others: Any) -> Contest:
    given = {"principles": PRINCIPLES, "bank": FixedScores(), "sampling": SAMPLING, **others}
    return Contest(PROMPTS, judge=judge or RuleJudge(longer), **given)


@pytest.fixture(scope="module")
def sides(workspace: Workspace) -> tuple[Contestant, Contestant]:
    return find_contestant("wordy", workspace), find_contestant("brief", workspace)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("answers")


@pytest.fixture(scope="module")
def found(sides: tuple[Contestant, Contestant], folder: Path) -> Comparisons:
    return compare(*sides, contest(), folder=folder)


@pytest.fixture(scope="module")
def answers(sides: tuple[Contestant, Contestant], folder: Path) -> tuple[Answers, Answers]:
    first, second = (answer(s, PROMPTS, sampling=SAMPLING, folder=folder) for s in sides)
    return first, second


def test_each_outcome_is_that_of_the_judge(
    found: Comparisons, answers: tuple[Answers, Answers]
) -> None:
    pairs = list(zip(*(one.flat for one in answers), strict=True))
    assert len(pairs) == 2 * len(PROMPTS)
    wins = np.mean([len(a) > len(b) for a, b in pairs])
    ties = np.mean([len(a) == len(b) for a, b in pairs])
    assert wins > 0.5
    assert list(found.principles) == ["conciseness", "detail"]
    for outcome in found.principles.values():
        shares = outcome.win.value, outcome.tie.value, outcome.loss.value
        assert shares == pytest.approx((wins, ties, 1 - wins - ties))
        assert outcome.score.value == pytest.approx(wins + ties / 2)
        assert outcome.score.interval.low <= outcome.score.value <= outcome.score.interval.high
        assert (outcome.n, outcome.flipped) == (len(pairs), 0.0)
    assert found.overall is not None
    assert found.overall.n == 2 * len(pairs)
    assert found.overall.score.value == pytest.approx(wins + ties / 2)


def test_the_other_way_round_everything_is_the_other_way_round(
    found: Comparisons, sides: tuple[Contestant, Contestant], folder: Path
) -> None:
    back = compare(sides[1], sides[0], contest(), folder=folder)
    for name, outcome in found.principles.items():
        other = back.principles[name]
        assert (outcome.win, outcome.tie, outcome.loss) == (other.loss, other.tie, other.win)
        assert outcome.score.value == pytest.approx(1 - other.score.value)
        assert outcome.score.interval.low == pytest.approx(1 - other.score.interval.high)
    pairs = [(found.objectives[n], back.objectives[n]) for n in found.objectives]
    for one, other in [*pairs, (found.words, back.words), (found.finished, back.finished)]:
        assert (one.a, one.b) == (other.b, other.a)
        assert one.difference.value == pytest.approx(-other.difference.value)
        assert one.difference.interval.low == pytest.approx(-other.difference.interval.high)
    assert found.kl == back.kl[::-1]


def test_what_else_is_different_is_measured_on_the_same_answers(
    found: Comparisons, answers: tuple[Answers, Answers]
) -> None:
    letters = [np.mean([len(text) for text in one.flat]) for one in answers]
    assert (found.objectives["long"].a, found.objectives["long"].b) == pytest.approx(letters)
    assert found.objectives["short"].difference.value == pytest.approx(letters[1] - letters[0])
    words = [np.mean([len(text.split()) for text in one.flat]) for one in answers]
    assert (found.words.a, found.words.b) == pytest.approx(words)
    ended = [one.finished.mean() for one in answers]
    assert (found.finished.a, found.finished.b) == pytest.approx(ended)
    assert all(kl is not None and kl > 0.1 for kl in found.kl)


def test_position_bias_alone_gives_ties(sides: tuple[Contestant, Contestant], folder: Path) -> None:
    found = compare(*sides, contest(RuleJudge(always_first)), folder=folder)
    for outcome in found.principles.values():
        assert (outcome.win.value, outcome.tie.value, outcome.loss.value) == (0, 1, 0)
        assert outcome.score == (0.5, (0.5, 0.5))
        assert outcome.flipped > 0.9


def test_a_policy_against_itself_is_a_tie_that_nobody_is_asked_about(
    sides: tuple[Contestant, Contestant], folder: Path
) -> None:
    judge = RuleJudge(longer)
    found = compare(sides[0], sides[0], contest(judge), folder=folder)
    assert judge.asked == []
    assert {outcome.tie.value for outcome in found.principles.values()} == {1.0}
    assert found.words.difference == (0.0, (0.0, 0.0))


def test_nothing_is_sampled_twice(
    found: Comparisons,
    sides: tuple[Contestant, Contestant],
    folder: Path,
    tmp_path: Path,
) -> None:
    """Not even the models are needed any more."""
    gone = [replace_spec(one, tmp_path / "gone") for one in sides]
    assert compare(*gone, contest(), folder=folder) == found
    other = replace(SAMPLING, seed=1)
    with pytest.raises(Exception, match="gone"):
        compare(*gone, contest(sampling=other), folder=folder)


def replace_spec(one: Contestant, spec: Path) -> Contestant:
    return one._replace(spec=spec, folder=spec)


class _Stop(Exception):
    pass


class Stopping(Silent):
    """Stops the work after a portion."""

    def advance(self, _count: int) -> None:
        raise _Stop


def test_whoever_is_stopped_goes_on(
    found: Comparisons, sides: tuple[Contestant, Contestant], tmp_path: Path
) -> None:
    with pytest.raises(_Stop):
        compare(*sides, contest(), folder=tmp_path, progress=Stopping())
    (kept,) = tmp_path.iterdir()
    before = kept.stat().st_mtime_ns
    assert compare(*sides, contest(), folder=tmp_path) == found
    assert kept.stat().st_mtime_ns == before
    kept.write_text("{")  # damaged: sampled again
    assert compare(*sides, contest(), folder=tmp_path) == found


def test_a_full_and_a_lora_policy_have_their_base_as_reference(
    base: ModelFolder, workspace: Workspace
) -> None:
    ids = torch.tensor([[5, 9, 40, 41, 42]])
    wanted = load_policy(base.path, dtype="float32").model(ids).logits
    for name in ("brief", "wordy"):
        policy = load_policy(workspace.policy(name), dtype="float32")
        reference = reference_of(policy, workspace.policy(name), dtype="float32")
        assert reference is not None
        now = policy.model(ids).logits
        assert not torch.allclose(now, wanted, atol=1e-2)
        with reference() as given:
            then = (given.model if given else policy.model)(ids).logits
            torch.testing.assert_close(then, wanted)
        torch.testing.assert_close(policy.model(ids).logits, now)
    assert reference_of(policy, base.path) is None


@dataclass(frozen=True)
class ShyJudge(RuleJudge):
    """Says nothing on what is on one principle, and on the first prompt."""

    def verdicts(  # type: ignore[override]
        self, questions: Sequence[Question], *, progress: Progress | None = None
    ) -> list[Answer]:
        found: list[Answer] = list(super().verdicts(questions, progress=progress))
        for i, (comparison, principle) in enumerate(questions):
            if principle.name == "detail":
                found[i] = Unanswered("refused")
            elif comparison.prompt[0]["content"] == "Say 0":
                found[i] = Unanswered("no letter")
        return found


def test_what_the_judge_leaves_open_is_counted_and_in_no_share(
    sides: tuple[Contestant, Contestant], folder: Path
) -> None:
    shy = compare(*sides, contest(ShyJudge(longer)), folder=folder)
    equal = [p for p in ("conciseness", "detail") if p in shy.principles]
    assert set(shy.unanswered) == {"refused", "no letter"}
    asked = shy.unanswered["refused"]
    assert shy.principles["conciseness"].n == 2 * len(PROMPTS) - shy.unanswered["no letter"]
    assert equal == (["conciseness"] if asked == 2 * len(PROMPTS) else ["conciseness", "detail"])


def test_a_comparison_needs_something_to_compare() -> None:
    with pytest.raises(OptionError, match="prompts must be at least one"):
        Contest([], PRINCIPLES, RuleJudge(longer))
    with pytest.raises(OptionError, match="principles or a bank"):
        Contest(PROMPTS, [], RuleJudge(longer))


def test_policies_are_found_by_name_folder_and_as_the_embedded_one(
    base: ModelFolder, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MORLAIF_EMBEDDED_MODEL", str(base.path))
    own = find_contestant("brief", workspace)
    assert find_contestant(str(workspace.policy("brief")), workspace).identity == own.identity
    assert find_contestant("embedded", workspace).identity == base.base.weights_sha256
    assert find_contestant(str(base.path), workspace).identity == base.base.weights_sha256
    with pytest.raises(UnknownNameError, match=r"'breif'; known: brief, embedded, wordy\. Did"):
        find_contestant("breif", workspace)


def test_the_outcomes_are_drawn(found: Comparisons) -> None:
    drawn = draw_outcomes(found, ("wordy", "brief"))
    assert drawn is not None
    assert drawn.startswith(b"\x89PNG")
    assert draw_outcomes(replace(found, principles={}, overall=None), ("a", "b")) is None


# The command.


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"Say {i}" for i in range(20)) + "\n")
    return path


def test_the_command_compares_and_keeps_a_report(
    base: ModelFolder,
    workspace: Workspace,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MORLAIF_EMBEDDED_MODEL", str(base.path))
    pms = [
        make_pm(tmp_path / name, base.path, name, layers=[1], seed=seed)
        for seed, name in enumerate(["toxicity", "detail"])
    ]
    banks = [part for pm in pms for part in ("--bank", pm)]
    line = ("evaluate", "winrate", "wordy", "brief", "--judge", "likelihood:", *banks)
    line += ("--prompts", prompts, "--max-new-tokens", "8", "--workspace", workspace.root)
    data = printed(*line)
    from tests.test_docs import generator

    assert list(data) == list(generator().JSON["evaluate winrate"])
    assert (data["prompts"], list(data["principles"])) == (4, ["toxicity", "detail"])
    report = workspace.reports / "winrate-wordy-brief.json"
    kept = json.loads(report.read_text(encoding="utf-8"))
    assert kept == {name: value for name, value in data.items() if name != "path"}
    assert report.with_suffix(".png").is_file()
    text = passed(*line).stdout
    assert "wins: pairs in which the answer of wordy is preferred" in " ".join(text.split())
    assert "KL to its base" in text
    everything = printed(*line, "--all-prompts", "--limit", "7", "--principle", "empathy")
    assert (everything["prompts"], list(everything["principles"])) == (7, ["empathy"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("breif", "wordy", "--principle", "detail"), 1, "unknown policy 'breif'"),
        (("brief", "wordy"), 2, "name some with --principle"),
        (("brief", "wordy", "--principle", "detial"), 1, "Did you mean 'detail'?"),
        (("brief", "wordy", "--prompts", "./nowhere.txt"), 1, "no such file or folder"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], code: int, said: str, workspace: Workspace
) -> None:
    line = ("evaluate", "winrate", *arguments, "--judge", "likelihood:")
    result = run(*line, "--workspace", workspace.root)
    assert (result.exit_code, said in result.stderr) == (code, True), result.stderr


def test_a_judge_that_taught_the_bank_is_no_independent_one(
    base: ModelFolder,
    workspace: Workspace,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MORLAIF_EMBEDDED_MODEL", str(base.path))
    prompts.write_text("\n".join(f"Say {i}" for i in range(40)) + "\n")
    there = tmp_path / "w"
    shutil.copytree(workspace.root / "policies", there / "policies")
    chain: list[tuple[Any, ...]] = [
        ("sample-pairs", "--prompts", prompts, "--max-new-tokens", "8"),
        ("collect-feedback", "detail", "--judge", "likelihood:", "--unvalidated"),
        ("train-pm", "detail", "--form", "probe"),
    ]
    for command in chain:
        passed(*command, "--workspace", there)
    line = ("evaluate", "winrate", "wordy", "brief", "--judge", "likelihood:")
    line += ("--prompts", prompts, "--max-new-tokens", "8", "--workspace", there)
    assert printed(*line)["taught"] == ["detail"]
    assert "NOT INDEPENDENT: the preference models of detail learnt" in passed(*line).stdout
