"""The cache under crashes and company, the bias report on known judges, and datasets both ways."""

import math
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_judges import RuleJudge, always_first, always_tie, longer, prefers, shorter
from hypothesis import given, settings
from hypothesis import strategies as st

from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import (
    ArtifactError,
    DataError,
    JudgeError,
    MissingColumnError,
    OptionError,
    WorkspaceError,
    WrongWayError,
)
from morlaif_hub.feedback.bias import bias_report
from morlaif_hub.feedback.cache import CachedJudge, VerdictCache, _write_ahead
from morlaif_hub.feedback.collect import CollectSettings, collect_feedback, plan_feedback
from morlaif_hub.feedback.dataset import (
    COLUMNS,
    FeedbackDataset,
    Labelled,
    features,
    from_row,
    held_out_prompts,
    to_row,
)
from morlaif_hub.hub.artifact import open_artifact, seal
from morlaif_hub.hub.manifest import BaseIdentity, FeedbackManifest, SourceRecord
from morlaif_hub.judges.base import Question, Verdict
from morlaif_hub.principles import Principle, Probe

SOURCE = SourceRecord(name="pairs.jsonl", revision=None, sha256="c" * 64)
BRIEF = Principle("brevity", "The reply is brief.", "The reply rambles.", "briefer", "shorter")
KIND = Principle("kindness", "The reply is kind.", "The reply is cruel.", "kinder")

probabilities = st.integers(0, 10**6).map(lambda millionths: millionths / 10**6)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "cache"))


def pairs(prompts: int = 10, *, each: int = 2, **more: Any) -> list[Comparison]:
    """Return comparisons of responses of different lengths, `each` on every prompt."""
    return [
        Comparison(
            ({"role": "user", "content": f"Question {i}?"},),
            f"Answer {i}{' and more' * (i + j)}",
            f"Reply {j}{' and on' * (prompts - i)}",
            **more,
        )
        for i in range(prompts)
        for j in range(each)
    ]


def questions(*principles: Principle, count: int = 10) -> list[Question]:
    return [Question(pair, principle) for pair in pairs(count) for principle in principles]


class Stopped(BaseException):
    """Like a Ctrl-C: no Exception, so nothing handles it."""


class MortalJudge(RuleJudge):
    """Stops in the middle of a call when it has been asked too much."""

    limit = 10**9

    def verdicts(self, questions: Sequence[Question], **named: Any) -> list[Verdict]:
        if len(self.asked) + len(questions) > self.limit:
            raise Stopped
        return super().verdicts(questions, **named)


class TestCache:
    def test_gives_back_exactly_what_was_put(self, tmp_path: Path) -> None:
        judge, asked = RuleJudge(longer), questions(BRIEF, KIND)
        verdicts = judge.verdicts(asked)
        with VerdictCache(tmp_path / "v.sqlite") as cache:
            assert cache.get_many(judge, asked) == [None] * len(asked)
            cache.put_many(judge, asked[1:], verdicts=verdicts[1:])
        with VerdictCache(tmp_path / "v.sqlite") as cache:
            assert cache.get_many(judge, asked) == [None, *verdicts[1:]]
            assert cache.get_many(judge, []) == []

    @pytest.mark.parametrize(
        "change",
        [
            {"spec": "fake:other"},
            {"prompt_sha256": "0" * 64},
            {
                "base": BaseIdentity(
                    repo_id=None, revision=None, weights_sha256="1" * 64, source="local"
                )
            },
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_another_judge_finds_nothing(self, change: dict[str, Any]) -> None:
        judge, asked = RuleJudge(longer), questions(BRIEF)
        with VerdictCache() as cache:
            cache.put_many(judge, asked, verdicts=judge.verdicts(asked))
            assert cache.get_many(replace(judge, **change), asked) == [None] * len(asked)

    def test_another_question_finds_nothing(self) -> None:
        judge, asked = RuleJudge(longer), questions(BRIEF, count=1)
        comparison, principle = asked[0]
        others = [
            Question(comparison, replace(principle, criterion="The reply is short.")),
            Question(comparison, replace(principle, opposite="The reply is long.")),
            Question(replace(comparison, response_a="Else"), principle),
            Question(comparison.swap(), principle),
        ]
        same = [
            Question(comparison, replace(principle, probes=(Probe("Why?", "So.", "No."),))),
            Question(replace(comparison, human_choice="a", split="test"), principle),
        ]
        with VerdictCache() as cache:
            cache.put_many(judge, asked, verdicts=judge.verdicts(asked))
            assert cache.get_many(judge, others) == [None] * 4
            assert None not in cache.get_many(judge, same)

    def test_only_the_owner_can_read(self, tmp_path: Path) -> None:
        path = tmp_path / "v.sqlite"
        path.touch(0o644)
        judge, asked = RuleJudge(longer), questions(BRIEF)
        with VerdictCache(path) as cache:
            cache.put_many(judge, asked, verdicts=judge.verdicts(asked))
            files = list(tmp_path.glob("v.sqlite*"))
            assert len(files) == 3  # the data, and two that SQLite keeps while it is open
            for file in files:
                assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_says_what_to_do_about_a_damaged_file(self, tmp_path: Path) -> None:
        path = tmp_path / "v.sqlite"
        path.write_text("this is no database, " * 100)
        with pytest.raises(WorkspaceError, match=r"v\.sqlite: .* delete it"):
            VerdictCache(path)

    def test_processes_share_it(self, tmp_path: Path) -> None:
        """Four processes open a new file at once and write; nothing is lost, nobody fails."""
        code = (
            "import sys; from pathlib import Path\n"
            "from test_feedback import BRIEF, questions\n"
            "from fake_judges import RuleJudge, longer\n"
            "from morlaif_hub.feedback.cache import VerdictCache\n"
            "judge = RuleJudge(longer, spec=sys.argv[1])\n"
            "sys.stdin.readline()\n"
            "with VerdictCache(Path(sys.argv[2])) as cache:\n"
            "    for question in questions(BRIEF, count=15):\n"
            "        cache.put_many(judge, [question], verdicts=judge.verdicts([question]))\n"
        )
        path = tmp_path / "v.sqlite"
        running = [
            subprocess.Popen(
                [sys.executable, "-c", code, f"fake:{i}", str(path)],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(),
            )
            for i in range(4)
        ]
        for process in running:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        for process in running:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
        with VerdictCache(path) as cache:
            for i in range(4):
                judge = RuleJudge(longer, spec=f"fake:{i}")
                assert None not in cache.get_many(judge, questions(BRIEF, count=15))

    def test_waits_for_a_process_that_switches_the_journal(self) -> None:
        class Connection:
            def __init__(self, *codes: int) -> None:
                self.codes = list(codes)

            def execute(self, _statement: str) -> None:
                if self.codes:
                    error = sqlite3.OperationalError("database is locked")
                    error.sqlite_errorcode = self.codes.pop(0)
                    raise error

        busy: Any = Connection(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY)
        _write_ahead(busy)
        assert busy.codes == []
        broken: Any = Connection(sqlite3.SQLITE_IOERR)
        with pytest.raises(sqlite3.OperationalError):
            _write_ahead(broken)


def environment() -> dict[str, str]:
    """Return an environment in which a new process finds the package and these tests."""
    import os

    tests = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}"}


class TestCachedJudge:
    def test_asks_nothing_twice(self) -> None:
        judge, asked = RuleJudge(longer), questions(BRIEF, KIND)
        told: list[int] = []
        with VerdictCache() as cache:
            cached = CachedJudge(judge, cache)
            first = cached.verdicts(asked[:7], progress=told.append)
            again = cached.verdicts(asked, progress=told.append)
        assert again[:7] == first
        assert again == RuleJudge(longer).verdicts(asked)
        assert len(judge.asked) == len(asked)
        assert cached.asked == {"brevity": 20, "kindness": 20}
        assert sum(told) == 7 + len(asked)

    def test_who_is_stopped_loses_at_most_one_portion(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("morlaif_hub.feedback.cache.QUESTIONS_AT_ONCE", 8)
        monkeypatch.setattr(MortalJudge, "limit", 25)
        judge, asked = MortalJudge(longer), questions(BRIEF, KIND)
        with VerdictCache() as cache, pytest.raises(Stopped):
            CachedJudge(judge, cache).verdicts(asked)
        with VerdictCache() as cache:
            kept = [v for v in cache.get_many(judge, asked) if v is not None]
            fresh = RuleJudge(longer)
            assert CachedJudge(fresh, cache).verdicts(asked) == RuleJudge(longer).verdicts(asked)
        assert len(kept) == len(judge.asked) == 24
        assert len(fresh.asked) == len(asked) - 24

    def test_a_kill_loses_nothing_that_was_kept(self) -> None:
        """The process dies by SIGKILL after two portions, with no chance to tidy up."""
        code = (
            "import os, signal; from pathlib import Path\n"
            "from test_feedback import BRIEF, questions\n"
            "from fake_judges import RuleJudge, longer\n"
            "from morlaif_hub.feedback import cache\n"
            "cache.QUESTIONS_AT_ONCE = 4\n"
            "class Deadly(RuleJudge):\n"
            "    def verdicts(self, questions, **named):\n"
            "        if len(self.asked) == 8: os.kill(os.getpid(), signal.SIGKILL)\n"
            "        return super().verdicts(questions, **named)\n"
            "cache.CachedJudge(Deadly(longer), cache.VerdictCache()).verdicts(questions(BRIEF))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(), capture_output=True, check=False
        )
        assert done.returncode == -9, done.stderr.decode()
        with VerdictCache() as cache:
            found = cache.get_many(RuleJudge(longer), questions(BRIEF))
        assert sum(verdict is not None for verdict in found) == 8

    def test_portions_keep_prompts_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("morlaif_hub.feedback.cache.QUESTIONS_AT_ONCE", 5)
        portions: list[Sequence[Question]] = []

        class Noting(RuleJudge):
            def verdicts(self, questions: Sequence[Question], **named: Any) -> list[Verdict]:
                portions.append(questions)
                return super().verdicts(questions, **named)

        judge = Noting(longer)
        # Interleaved, so that a prompt's questions are not neighbours.
        asked = [Question(pair, BRIEF) for j in range(3) for pair in pairs(4, each=3)[j::3]]
        with VerdictCache() as cache:
            CachedJudge(judge, cache).verdicts(asked)
        assert [len(portion) for portion in portions] == [3, 3, 3, 3]
        for portion in portions:
            assert len({question.comparison.prompt_id for question in portion}) == 1

    def test_a_remote_judge_says_how_many_at_once(self) -> None:
        sizes: list[int] = []

        class Remote(RuleJudge):
            cost_usd = 0.0
            questions_at_once = 10**6

            def verdicts(self, questions: Sequence[Question], **named: Any) -> list[Verdict]:
                sizes.append(len(questions))
                return super().verdicts(questions, **named)

        with VerdictCache() as cache:
            CachedJudge(Remote(longer), cache).verdicts(questions(BRIEF, count=100))
        assert sizes == [200]


class TestBias:
    def report(self, rule: Callable[..., float], comparisons: list[Comparison]) -> Any:
        asked = [Question(pair, BRIEF) for pair in comparisons]
        return bias_report(comparisons, RuleJudge(rule).verdicts(asked))

    def test_a_judge_that_sees_only_the_position(self) -> None:
        report = self.report(always_first, pairs())
        assert (report.position_bias.value, report.position_bias.interval) == (0.5, (0.5, 0.5))
        assert report.flip_rate.value == 1.0
        assert report.tie_rate == 1.0
        assert report.mean_entropy == 1.0
        assert report.human_agreement is None

    def test_a_consistent_judge(self) -> None:
        report = self.report(longer, pairs())
        assert report.position_bias.value == 0.0
        assert (report.flip_rate.value, report.flip_rate.n) == (0.0, 20)
        assert 0.0 < report.mean_entropy < 1.0

    def test_a_mixture(self) -> None:
        """Of four prompts one is judged by position alone: a quarter of the way to 0.5."""
        verdicts = [Verdict(0.9, 0.1)] + [Verdict(0.8, 0.8)] * 3
        report = bias_report(pairs(4, each=1), verdicts)
        assert report.position_bias.value == 0.125
        assert report.flip_rate.value == report.tie_rate == 0.25
        assert report.flip_rate.interval[0] < 0.25 < report.flip_rate.interval[1]
        entropy = -(0.8 * math.log2(0.8) + 0.2 * math.log2(0.2))
        assert report.mean_entropy == pytest.approx((1 + 3 * entropy) / 4)

    def test_agreement_with_people(self) -> None:
        labelled = [
            *pairs(2, each=1, human_choice="a"),
            *[pair.swap() for pair in pairs(2, each=1, human_choice="a")],
            *pairs(1, each=1),
        ]
        verdicts = [Verdict(0.9, 0.9), Verdict(0.2, 0.2), Verdict(0.3, 0.3), Verdict(0.5, 0.5)]
        report = bias_report(labelled, [*verdicts, Verdict(0.9, 0.9)])
        assert report.human_agreement is not None
        assert report.human_agreement.n == 4
        assert report.human_agreement.value == (1 + 0 + 1 + 0.5) / 4

    def test_intervals_resample_prompts(self) -> None:
        """Many pairs on two prompts are two observations, not many."""
        comparisons = pairs(2, each=50)
        verdicts = [Verdict(0.9, 0.1)] * 50 + [Verdict(0.9, 0.9)] * 50
        assert bias_report(comparisons, verdicts).flip_rate.interval == (0.0, 1.0)

    def test_nothing_to_report_on(self) -> None:
        with pytest.raises(DataError, match="no verdicts"):
            bias_report([], [])


class TestRows:
    @settings(deadline=None)
    @given(probabilities, probabilities, st.sampled_from(["a", "b", None]))
    def test_round_trip(self, first: float, second: float, choice: Any) -> None:
        labelled = Labelled(pairs(1, human_choice=choice)[0], Verdict(first, second))
        row = to_row(labelled)
        assert tuple(row) == COLUMNS
        assert from_row(row) == labelled
        assert row["margin"] >= 0
        better_is_a = row["probability_a"] >= 0.5
        assert row["chosen"][0]["content"] == row["response_a" if better_is_a else "response_b"]
        assert row["rejected"][0]["content"] == row["response_b" if better_is_a else "response_a"]
        assert row["tie"] == (row["margin"] == 0)

    def test_of_a_tie_a_is_chosen(self) -> None:
        row = to_row(Labelled(pairs(1)[0], Verdict(0.8, 0.2)))
        assert (row["tie"], row["flipped"], row["margin"]) == (True, True, 0.0)
        assert row["chosen"] == [{"role": "assistant", "content": row["response_a"]}]

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("id", "0" * 32),
            ("response_a", "Another answer"),
            ("probability_a", 0.4),
            ("probability_a", "0.8"),
            ("probability_a_first", math.nan),
            ("probability_a_second", 1.5),
            ("flipped", True),
            ("tie", None),
            ("chosen", [{"role": "assistant", "content": "Something else"}]),
            ("rejected", []),
            ("margin", -1.0),
            ("human_choice", "c"),
            ("prompt", []),
        ],
    )
    def test_a_row_that_contradicts_itself_is_refused(self, column: str, value: Any) -> None:
        row = to_row(Labelled(pairs(1)[0], Verdict(0.8, 0.8)))
        with pytest.raises(DataError):
            from_row({**row, column: value})

    def test_a_missing_column_is_named(self) -> None:
        row = to_row(Labelled(pairs(1)[0], Verdict(0.8, 0.8)))
        del row["margin"]
        with pytest.raises(MissingColumnError, match="'margin'"):
            from_row(row)


class TestSplits:
    def test_the_sources_own_split_counts(self) -> None:
        given = [*pairs(3, split="train"), *pairs(6, split="test")[6:]]
        expected = {pair.prompt_id for pair in given if pair.split == "test"}
        assert held_out_prompts(given, test_fraction=0.5, seed=0) == expected
        assert len(expected) == 3

    def test_a_prompt_on_both_sides_is_trained_on(self) -> None:
        given = [*pairs(3, split="train"), *pairs(6, split="test")]
        held_out = held_out_prompts(given, test_fraction=0.5, seed=0)
        assert len(held_out) == 3
        assert not held_out & {pair.prompt_id for pair in given if pair.split == "train"}

    @pytest.mark.parametrize(
        "given",
        [
            pairs(10),
            pairs(10, split="train"),
            pairs(10, split="test"),
            [*pairs(3, split="train"), *pairs(6, split="test")[6:], *pairs(10)[12:]],
        ],
        ids=["none", "train only", "test only", "some"],
    )
    def test_otherwise_prompts_are_drawn(self, given: list[Comparison]) -> None:
        prompts = {pair.prompt_id for pair in given}
        held_out = held_out_prompts(given, test_fraction=0.2, seed=0)
        assert len(held_out) == 2
        assert held_out < prompts
        assert held_out != held_out_prompts(given, test_fraction=0.2, seed=1)


def probed(principle: Principle, *, count: int = 12) -> Principle:
    """Return a principle whose probes have the shorter side better."""
    made = [Probe(f"Why {i}?", f"Because {i}.", f"Well, because of {i}.") for i in range(count)]
    return replace(principle, probes=tuple(made))


class Recorder:
    """A StageProgress that remembers."""

    def __init__(self) -> None:
        self.stages: list[list[Any]] = []

    def start(self, stage: str, total: int) -> None:
        self.stages.append([stage, total, 0])

    def advance(self, count: int) -> None:
        self.stages[-1][2] += count


def collect(
    folder: Path, judge: Any, *principles: Principle, **more: Any
) -> dict[str, FeedbackManifest]:
    comparisons = more.pop("comparisons", pairs())
    return collect_feedback(principles, comparisons, judge, folder=folder, source=SOURCE, **more)


class TestCollect:
    def test_writes_a_checked_artifact_for_each_principle(self, tmp_path: Path) -> None:
        progress = Recorder()
        brief, kind = probed(BRIEF), KIND
        manifests = collect(tmp_path, RuleJudge(shorter), brief, kind, progress=progress)
        assert list(manifests) == ["brevity", "kindness"]
        for name, manifest in manifests.items():
            assert open_artifact(tmp_path / name, FeedbackManifest) == manifest
            assert {file.path for file in manifest.files} == {
                "data/test.parquet",
                "data/train.parquet",
                "figures/judge_bias.png",
            }
            assert (tmp_path / name / "README.md").read_text().count("position") > 0
        brevity = manifests["brevity"]
        assert brevity.judge.validated
        assert brevity.judge.validation is not None
        assert brevity.judge.validation.verdict == "fit"
        assert brevity.calls == 2 * (20 + 12)
        assert (brevity.train_pairs, brevity.test_pairs) == (16, 4)
        assert (brevity.train_prompts, brevity.test_prompts) == (8, 2)
        assert brevity.source == SOURCE
        assert progress.stages == [["validating the judge", 12, 12], ["judging", 40, 40]]

    def test_without_probes_nothing_is_claimed(self, tmp_path: Path) -> None:
        judge = collect(tmp_path, RuleJudge(shorter), KIND)["kindness"].judge
        assert (judge.validated, judge.validation) == (False, None)

    def test_the_wrong_way_stops_before_anything_is_labelled(self, tmp_path: Path) -> None:
        judge = RuleJudge(longer)
        with pytest.raises(WrongWayError) as caught:
            collect(tmp_path / "out", judge, probed(BRIEF), KIND)
        message = str(caught.value)
        for part in ("'fake:rule'", "brevity", "0.000", "12 probes", "0.000 to 0.242"):
            assert part in message
        assert "--unvalidated" in message
        assert "kindness" not in message
        assert len(judge.asked) == 12
        assert not (tmp_path / "out").exists()

    def test_unproven_goes_on_and_says_so(self, tmp_path: Path) -> None:
        manifest = collect(tmp_path, RuleJudge(always_tie), probed(BRIEF))["brevity"]
        assert manifest.judge.validation is not None
        assert manifest.judge.validation.verdict == "unproven"
        assert "unproven" in (tmp_path / "brevity" / "README.md").read_text()

    def test_unvalidated_skips_the_check_and_its_calls(self, tmp_path: Path) -> None:
        judge, skip = RuleJudge(longer), CollectSettings(unvalidated=True)
        manifest = collect(tmp_path, judge, probed(BRIEF), settings=skip)["brevity"]
        assert (manifest.judge.validated, manifest.judge.validation) == (False, None)
        assert len(judge.asked) == manifest.calls / 2 == 20

    def test_a_stopped_run_goes_on_and_ends_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        principles = [probed(BRIEF), KIND]
        whole = collect(tmp_path / "whole", RuleJudge(shorter, spec="fake:1"), *principles)
        monkeypatch.setattr("morlaif_hub.feedback.cache.QUESTIONS_AT_ONCE", 8)
        monkeypatch.setattr(MortalJudge, "limit", 30)
        with pytest.raises(Stopped):
            collect(tmp_path / "parts", MortalJudge(shorter), *principles)
        assert not (tmp_path / "parts").exists()
        again = RuleJudge(shorter)
        assert plan_feedback(principles, pairs(), again) == (40, 16)
        parts = collect(tmp_path / "parts", again, *principles)
        assert len(again.asked) == 24
        assert sum(manifest.calls for manifest in parts.values()) == 48
        for name in whole:
            for file in ("train", "test"):
                path = Path(name) / "data" / f"{file}.parquet"
                one, other = (tmp_path / run / path for run in ("whole", "parts"))
                assert one.read_bytes() == other.read_bytes()

    def test_a_paid_judge_is_accounted_for(self, tmp_path: Path) -> None:
        class Paid(RuleJudge):
            questions_at_once = 16

            @property
            def cost_usd(self) -> float:
                return 5.0 + 0.01 * len(self.asked)

        first = collect(tmp_path, Paid(shorter), probed(BRIEF), KIND)
        assert first["brevity"].cost_usd == pytest.approx(0.32)
        assert first["kindness"].cost_usd == pytest.approx(0.20)
        again = collect(tmp_path, Paid(shorter), probed(BRIEF), KIND)
        assert [(m.calls, m.cost_usd) for m in again.values()] == [(0, 0.0), (0, 0.0)]

    def test_a_bad_answer_stops_it(self, tmp_path: Path) -> None:
        judge = RuleJudge(lambda *_: math.nan)
        with pytest.raises(JudgeError, match="got nan"):
            collect(tmp_path / "out", judge, KIND)
        assert not (tmp_path / "out").exists()

    def test_limit_and_repeats(self, tmp_path: Path) -> None:
        repeated = [pair for pair in pairs() for _ in range(2)]
        repeated[1] = repeated[1].swap()
        judge = RuleJudge(shorter)
        few = CollectSettings(limit=7)
        manifest = collect(tmp_path, judge, KIND, settings=few, comparisons=iter(repeated))
        assert manifest["kindness"].train_pairs + manifest["kindness"].test_pairs == 7
        assert len(judge.asked) == 7

    def test_nothing_to_do_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no comparisons"):
            collect(tmp_path, RuleJudge(shorter), KIND, comparisons=[])
        with pytest.raises(OptionError, match="different names"):
            collect(tmp_path, RuleJudge(shorter))
        with pytest.raises(OptionError, match="different names"):
            collect(tmp_path, RuleJudge(shorter), KIND, KIND)

    @pytest.mark.parametrize(
        "bad", [{"test_fraction": 0.0}, {"test_fraction": 1.0}, {"limit": 0}, {"license": " "}]
    )
    def test_settings_are_checked(self, bad: dict[str, Any]) -> None:
        with pytest.raises(OptionError, match=next(iter(bad))):
            CollectSettings(**bad)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """Return the folder of a feedback dataset, some of it with human choices and ties."""
    comparisons = [
        replace(pair, human_choice=("a", "b", None)[i % 3]) for i, pair in enumerate(pairs())
    ]
    better = {pair.response_a for pair in comparisons[:12]}
    collect(tmp_path, RuleJudge(prefers(better)), KIND, comparisons=comparisons)
    return tmp_path / "kindness"


def rewrite(folder: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change a split's rows and seal the folder again, as a careless or hostile author might."""
    path = folder / "data" / "train.parquet"
    manifest = open_artifact(folder, FeedbackManifest)
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=features().arrow_schema), path)
    seal(folder, manifest)


class TestLoading:
    def test_reads_what_was_written(self, artifact: Path) -> None:
        loaded = FeedbackDataset.load(artifact)
        found = {item.comparison.id: item for items in loaded.splits for item in items}
        assert set(found) == {pair.id for pair in pairs()}
        choices = [item.comparison.human_choice for item in found.values()]
        assert (choices.count("a"), choices.count("b"), choices.count(None)) == (7, 7, 6)
        assert any(item.verdict.tie for item in found.values())
        assert {item.comparison.split for item in loaded.splits.test} == {"test"}
        assert loaded.reference.repo_id is None
        copy = artifact.parent / "copy"
        shutil.copytree(artifact, copy)
        assert FeedbackDataset.load(str(copy)).reference == loaded.reference

    def test_to_datasets_and_load_dataset_agree(
        self, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        ours = FeedbackDataset.load(artifact).to_datasets()
        theirs = datasets.load_dataset(str(artifact), cache_dir=str(tmp_path / "datasets"))
        for split in ("train", "test"):
            assert tuple(ours[split].column_names) == COLUMNS
            assert ours[split].features == theirs[split].features
            assert ours[split].to_list() == theirs[split].to_list()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda rows: rows[2].update(probability_a_first=0.99), r"train.parquet: row 3: "),
            (lambda rows: rows.pop(), "but the manifest says"),
            (lambda rows: rows.__setitem__(0, rows[1]), "manifest says|twice"),
            (lambda rows: rows[0].update(tie=None), "row 1: tie is None"),
        ],
    )
    def test_rows_that_contradict_are_refused(
        self, artifact: Path, change: Callable[..., object], message: str
    ) -> None:
        rewrite(artifact, change)
        with pytest.raises(DataError, match=message):
            FeedbackDataset.load(artifact)

    def test_a_prompt_in_both_splits_is_refused(self, artifact: Path) -> None:
        test = pq.read_table(artifact / "data" / "test.parquet").to_pylist()
        manifest = open_artifact(artifact, FeedbackManifest)
        rewrite(artifact, lambda rows: rows.append(test[0]))
        more = {"train_pairs": manifest.train_pairs + 1}
        more["train_prompts"] = manifest.train_prompts + 1
        seal(artifact, replace(manifest, **more))
        with pytest.raises(DataError, match="in both splits"):
            FeedbackDataset.load(artifact)

    def test_changed_bytes_are_refused(self, artifact: Path) -> None:
        path = artifact / "data" / "train.parquet"
        path.write_bytes(path.read_bytes()[::-1])
        with pytest.raises(ArtifactError, match=r"train\.parquet"):
            FeedbackDataset.load(artifact)

    def test_a_file_that_is_no_parquet_is_refused(self, artifact: Path) -> None:
        (artifact / "data" / "train.parquet").write_text("rows")
        seal(artifact, open_manifest(artifact))
        with pytest.raises(DataError, match="not a readable parquet file"):
            FeedbackDataset.load(artifact)

    def test_data_that_the_manifest_does_not_list_are_refused(self, artifact: Path) -> None:
        path = artifact / "data" / "test.parquet"
        content = path.read_bytes()
        path.unlink()
        seal(artifact, open_manifest(artifact))
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"lists no data/test\.parquet"):
            FeedbackDataset.load(artifact)

    def test_a_single_prompt_leaves_an_empty_test_split(self, tmp_path: Path) -> None:
        collect(tmp_path, RuleJudge(shorter), KIND, comparisons=pairs(1))
        loaded = FeedbackDataset.load(tmp_path / "kindness")
        assert (len(loaded.splits.train), loaded.splits.test) == (2, [])
        assert loaded.to_datasets()["test"].features == features()


def open_manifest(folder: Path) -> FeedbackManifest:
    from morlaif_hub.hub.manifest import read_manifest

    return read_manifest(folder, FeedbackManifest)


CPU = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "logging_steps": 1,
}


class TestTrainersTakeIt:
    """What is written goes into TRL's trainers unchanged.

    Imports are inside: other processes import this file too, and need no torch.
    """

    def test_reward_trainer(self, artifact: Path, tmp_path: Path) -> None:
        from tiny import save_tiny, tiny_tokenizer
        from transformers import AutoModelForSequenceClassification
        from trl import RewardConfig, RewardTrainer

        data = FeedbackDataset.load(artifact).to_datasets()
        folder = save_tiny(tmp_path / "model")
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(str(tmp_path / "out"), **CPU),
            train_dataset=data["train"],
            eval_dataset=data["test"],
            processing_class=tiny_tokenizer(),
        )
        assert len(trainer.train_dataset) == len(data["train"])
        assert math.isfinite(trainer.train().training_loss)

    # TRL 1.16 itself reads the old name.
    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
    def test_dpo_trainer(self, artifact: Path, tmp_path: Path) -> None:
        from tiny import save_tiny, tiny_tokenizer
        from transformers import AutoModelForCausalLM
        from trl import DPOConfig, DPOTrainer

        data = FeedbackDataset.load(artifact).to_datasets()
        model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "model"))
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(str(tmp_path / "out"), **CPU),
            train_dataset=data["train"],
            processing_class=tiny_tokenizer(),
        )
        assert len(trainer.train_dataset) == len(data["train"])
        assert math.isfinite(trainer.train().training_loss)


def test_sqlite_is_new_enough_for_the_look_up() -> None:
    """`json_each` is part of SQLite since 3.38; older ones may lack it."""
    assert sqlite3.sqlite_version_info >= (3, 38)
