"""Collecting as a stream: nothing is asked twice or lost, and what has no answer is told."""

import json
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fake_judges import RuleJudge, longer, shorter
from hypothesis import given, settings
from hypothesis import strategies as st

from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import DataError, JudgeError, WorkspaceError
from morlaif_hub.feedback import answers as answers_module
from morlaif_hub.feedback import cache as cache_module
from morlaif_hub.feedback import dataset as dataset_module
from morlaif_hub.feedback.cache import CachedJudge, VerdictCache
from morlaif_hub.feedback.collect import CollectSettings, collect_feedback, plan_feedback
from morlaif_hub.feedback.dataset import FeedbackDataset, held_out_prompts, held_out_rows
from morlaif_hub.feedback.spool import spooled
from morlaif_hub.hub.artifact import open_artifact
from morlaif_hub.hub.manifest import FeedbackManifest, SourceRecord, UnansweredRecord
from morlaif_hub.judges.base import (
    Answer,
    Answered,
    Question,
    StreamingJudge,
    Unanswered,
    Verdict,
)
from morlaif_hub.judges.validation import validate_judge
from morlaif_hub.principles import Principle, Probe

SOURCE = SourceRecord(name="pairs.jsonl", revision=None, sha256="c" * 64)
BRIEF = Principle("brevity", "The reply is brief.", "The reply rambles.", "briefer", "shorter")
KIND = Principle("kindness", "The reply is kind.", "The reply is cruel.", "kinder")
BOTH = (BRIEF, KIND)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "cache"))


def pairs(prompts: int = 10, *, each: int = 2, **more: Any) -> list[Comparison]:
    """Return comparisons of responses of different lengths, `each` on every prompt."""
    return [
        Comparison(
            ({"role": "user", "content": f"Question {i}?"},),
            f"Answer {i}{' and more' * (1 + (i + j) % 5)}",
            f"Reply {j}{' and on' * ((i * 7 + j) % 4)}",
            **more,
        )
        for i in range(prompts)
        for j in range(each)
    ]


def questions(count: int = 10) -> list[Question]:
    return [Question(pair, principle) for pair in pairs(count) for principle in BOTH]


def refuses(word: str) -> Callable[[Question], str | None]:
    """Return the rule of a judge that says nothing about prompts with a word."""

    def rule(question: Question) -> str | None:
        return "refused" if word in question.comparison.prompt[0]["content"] else None

    return rule


def answers_all(_question: Question) -> None:
    """Refuse nothing."""


@dataclass(frozen=True)
class StreamJudge(RuleJudge):
    """Has several questions open, answers them in any order, and watches who uses it.

    Attributes:
        refuse: Why a question gets no verdict, or None if it gets one.
        before_drawing: Called with all verdicts yielded so far, before a question is drawn.
        most_open, least_open: Of the questions at once, while there were more to draw.
        closed: How often a stream was ended by its user.
    """

    questions_at_once: int = 8
    cost_usd: float = 0.0
    seed: int = 0
    refuse: Callable[[Question], str | None] = answers_all
    before_drawing: Callable[[list[tuple[Question, Answer]]], None] = lambda _given: None
    open_counts: list[int] = field(default_factory=list)
    closed: list[None] = field(default_factory=list)

    def verdicts(self, *_questions: Any, **_named: Any) -> list[Any]:
        raise AssertionError("a streaming judge is asked by its stream")

    def stream(self, questions: Iterable[Question]) -> Generator[list[Answered]]:
        chance, iterator = random.Random(self.seed), iter(questions)
        waiting: list[tuple[int, Question]] = []
        given: list[tuple[Question, Answer]] = []
        more = True
        try:
            while more or waiting:
                while more and len(waiting) < self.questions_at_once:
                    self.before_drawing(given)
                    question = next(iterator, None)
                    more = question is not None
                    if question is not None:
                        waiting.append((len(self.asked), question))
                        self.asked.append(question)
                if more:
                    self.open_counts.append(len(waiting))
                chance.shuffle(waiting)
                ready, waiting = _split(waiting, chance.randint(1, max(1, len(waiting) // 2)))
                answers = [(number, question, self._answer(question)) for number, question in ready]
                given.extend((question, answer) for _, question, answer in answers)
                if answers:
                    yield [Answered(number, answer) for number, _, answer in answers]
        except GeneratorExit:
            self.closed.append(None)
            raise

    def _answer(self, question: Question) -> Answer:
        reason = self.refuse(question)
        if reason is not None:
            return Unanswered(reason)
        a, b = question.comparison.response_a, question.comparison.response_b
        principle = question.principle
        return Verdict(self.rule(a, b, principle), 1 - self.rule(b, a, principle))


@dataclass(frozen=True)
class ForgetfulJudge(StreamJudge):
    """Does not keep what it was asked."""

    def stream(self, questions: Iterable[Question]) -> Generator[list[Answered]]:
        for number, question in enumerate(questions):
            yield [Answered(number, self._answer(question))]


def _split(items: list[Any], count: int) -> tuple[list[Any], list[Any]]:
    return items[:count], items[count:]


def collect(folder: Path, judge: Any, *principles: Principle, **more: Any) -> Any:
    comparisons = more.pop("comparisons", pairs())
    return collect_feedback(principles, comparisons, judge, folder=folder, source=SOURCE, **more)


def data(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all parquet files below a folder."""
    found = sorted(folder.rglob("*.parquet"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


class TestStream:
    def test_what_counts_as_a_streaming_judge(self) -> None:
        assert isinstance(StreamJudge(longer), StreamingJudge)
        assert not isinstance(RuleJudge(longer), StreamingJudge)

    @pytest.mark.parametrize("seed", range(15))
    def test_every_order_of_answers_gives_the_same_verdicts(
        self, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chance = random.Random(seed)
        asked = [question for question in questions() for _ in range(2)]
        chance.shuffle(asked)
        judge = StreamJudge(longer, questions_at_once=chance.randint(1, 30), seed=seed)
        monkeypatch.setattr(cache_module, "_LOOKED_UP", chance.randint(1, 30))
        told: list[int] = []
        with VerdictCache() as cache:
            cached = CachedJudge(judge, cache)
            assert cached.verdicts(asked, progress=told.append) == RuleJudge(longer).verdicts(asked)
        asked_once = [(pair.id, principle.name) for pair, principle in judge.asked]
        assert len(set(asked_once)) == len(asked_once) == len(questions())
        assert sum(told) == len(asked)
        assert cached.asked == {"brevity": 20, "kindness": 20}

    def test_the_end_of_a_portion_does_not_drain_the_judge(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cache_module, "_LOOKED_UP", 16)
        judge = StreamJudge(longer, questions_at_once=10)
        with VerdictCache() as cache:
            CachedJudge(judge, cache).fill(iter(questions(60)))
        assert set(judge.open_counts) == {10}
        assert len(judge.open_counts) > 20

    def test_answers_are_kept_before_the_next_question_is_drawn(self, tmp_path: Path) -> None:
        """Another process would find them: whoever is killed loses what is open at most."""
        path, checked = tmp_path / "v.sqlite", []

        def check(given: list[tuple[Question, Answer]]) -> None:
            with VerdictCache(path) as other:
                kept = other.get_many(judge, [question for question, _ in given])
            assert kept == [answer for _, answer in given]
            checked.append(len(given))

        judge = StreamJudge(longer, questions_at_once=6, before_drawing=check)
        with VerdictCache(path) as cache:
            CachedJudge(judge, cache).fill(questions())
        assert max(checked) > 30

    def test_whoever_stops_closes_the_stream_and_keeps_what_came(self) -> None:
        class Stopped(BaseException):
            pass

        def stop(_count: int) -> None:
            raise Stopped

        streams = []

        class Holding(StreamJudge):
            def stream(self, questions: Iterable[Question]) -> Generator[list[Answered]]:
                streams.append(super().stream(questions))  # or it would end by itself, unused
                return streams[0]

        judge = Holding(longer)
        with VerdictCache() as cache, pytest.raises(Stopped):
            CachedJudge(judge, cache).fill(questions(), progress=stop)
        assert judge.closed == [None]
        with VerdictCache() as cache:
            kept = [v for v in cache.get_many(judge, questions()) if v is not None]
        assert len(kept) > 0

    @pytest.mark.parametrize(
        ("answers", "message"),
        [
            ([[0], [0]], "answered question 0, which is not open"),
            ([[7]], "answered question 7, which is not open"),
            ([[0, 1]], "ended before it had answered all"),
            ([], "ended before it had answered all"),
        ],
    )
    def test_a_judge_that_breaks_the_rules_is_named(
        self, answers: list[list[int]], message: str
    ) -> None:
        class Broken(StreamJudge):
            def stream(self, questions: Iterable[Question]) -> Generator[list[Answered]]:
                _drawn = [next(iter(questions)) for _ in range(2)]
                for numbers in answers:
                    yield [Answered(number, Verdict(0.5, 0.5)) for number in numbers]

        with VerdictCache() as cache, pytest.raises(JudgeError, match=f"'fake:rule' {message}"):
            CachedJudge(Broken(longer), cache).fill(questions())

    def test_what_is_no_answer_becomes_no_label(self) -> None:
        class Vague(StreamJudge):
            def stream(self, questions: Iterable[Question]) -> Generator[list[Answered]]:
                for number, _ in enumerate(questions):
                    maybe: Any = 0.5
                    yield [Answered(number, maybe)]

        with VerdictCache() as cache, pytest.raises(JudgeError, match=r"gave 0\.5, which is no"):
            CachedJudge(Vague(longer), cache).fill(questions())

    def test_judges_with_one_cache_spec_share_their_verdicts(self) -> None:
        @dataclass(frozen=True)
        class Shared(StreamJudge):
            cache_spec: str = "fake:shared"

        live, batch = Shared(longer, spec="fake:live"), Shared(shorter, spec="fake-batch:x")
        with VerdictCache() as cache:
            CachedJudge(live, cache).fill(questions())
            CachedJudge(batch, cache).fill(questions())
            assert cache.get_many(replace(live, cache_spec="fake:1"), questions(1)) == [None] * 4
        assert (len(live.asked), len(batch.asked)) == (40, 0)

    def test_the_data_set_does_not_depend_on_how_the_judge_was_asked(self, tmp_path: Path) -> None:
        collect(tmp_path / "portions", RuleJudge(shorter, spec="fake:1"), *BOTH)
        collect(tmp_path / "stream", StreamJudge(shorter, spec="fake:2", seed=3), *BOTH)
        assert data(tmp_path / "portions") == data(tmp_path / "stream") != {}


class TestUnanswered:
    def test_it_is_no_label_is_counted_and_is_asked_again(self, tmp_path: Path) -> None:
        whole = tmp_path / "whole"
        collect(whole, RuleJudge(shorter, spec="fake:whole"), *BOTH)
        judge = StreamJudge(shorter, refuse=refuses("3"))
        manifests = collect(tmp_path / "some", judge, *BOTH)
        for name, manifest in manifests.items():
            assert manifest.unanswered == (UnansweredRecord(reason="refused", n=2),)
            assert manifest.train_pairs + manifest.test_pairs == 18
            assert manifest.bias.flip_rate.n == 18
            assert manifest.calls == 2 * 20
            assert open_artifact(tmp_path / "some" / name, FeedbackManifest) == manifest
            assert "2 pairs: refused" in (tmp_path / "some" / name / "README.md").read_text()
            rows = FeedbackDataset.load(tmp_path / "some" / name).splits
            asked = [item.comparison.prompt[0]["content"] for side in rows for item in side]
            assert len(asked) == 18
            assert not any("3" in prompt for prompt in asked)
        again = StreamJudge(shorter)
        assert plan_feedback(BOTH, pairs(), again) == (40, 36)
        complete = collect(tmp_path / "some", again, *BOTH)
        assert len(again.asked) == 4
        assert [manifest.unanswered for manifest in complete.values()] == [(), ()]
        assert data(tmp_path / "some") == data(whole)

    def test_judges_without_a_stream_may_leave_questions_unanswered_too(
        self, tmp_path: Path
    ) -> None:
        class Shy(RuleJudge):
            def verdicts(self, questions: Sequence[Question], **named: Any) -> list[Any]:
                given = super().verdicts(questions, **named)
                return [Unanswered("shy") if i % 4 == 0 else v for i, v in enumerate(given)]

        manifest = collect(tmp_path, Shy(shorter), KIND)["kindness"]
        assert manifest.unanswered == (UnansweredRecord(reason="shy", n=5),)

    def test_reasons_are_counted_apart_and_hold_no_strangers_commands(self, tmp_path: Path) -> None:
        def reason(question: Question) -> str | None:
            number = int(question.comparison.prompt[0]["content"].split()[1].rstrip("?"))
            return {0: "late", 1: "rude \x1b[31m\n" + "x" * 999, 2: "late"}.get(number)

        manifest = collect(tmp_path, StreamJudge(shorter, refuse=reason), KIND)["kindness"]
        assert [record.n for record in manifest.unanswered] == [4, 2]
        assert manifest.unanswered[0].reason == "late"
        assert manifest.unanswered[1].reason.startswith("rude \ufffd[31m x")
        assert len(manifest.unanswered[1].reason) == 200
        assert open_artifact(tmp_path / "kindness", FeedbackManifest) == manifest

    def test_without_any_answer_nothing_is_written(self, tmp_path: Path) -> None:
        def refuse(question: Question) -> str | None:
            return "HTTP 400: no" if question.principle is KIND else None

        judge = StreamJudge(shorter, refuse=refuse)
        with pytest.raises(
            JudgeError, match=r"none of 20 questions on kindness: HTTP 400: no \(20\)"
        ):
            collect(tmp_path / "out", judge, *BOTH)
        assert not (tmp_path / "out").exists()
        again = StreamJudge(shorter)
        collect(tmp_path / "out", again, BRIEF)
        assert again.asked == [], "what was answered is kept"

    def test_probes_without_an_answer_do_not_count(self) -> None:
        probes = tuple(Probe(f"Why {i}?", f"Since {i}.", f"Well, since {i}.") for i in range(12))
        principle = replace(BRIEF, probes=probes)
        judge = StreamJudge(shorter, refuse=refuses("7"))
        with VerdictCache() as cache:
            records = validate_judge(CachedJudge(judge, cache), [principle, replace(KIND)])
        assert (records["brevity"].n, records["brevity"].accuracy) == (11, 1.0)
        silent = StreamJudge(shorter, refuse=refuses("Why"))
        with VerdictCache() as cache:
            assert validate_judge(CachedJudge(silent, cache), [principle]) == records
        nobody = StreamJudge(shorter, spec="fake:nobody", refuse=refuses("Why"))
        with VerdictCache() as cache:
            assert validate_judge(CachedJudge(nobody, cache), [principle]) == {}


class TestPasses:
    @settings(deadline=None, max_examples=50)
    @given(
        given_pairs=st.lists(
            st.tuples(st.integers(0, 6), st.integers(0, 2), st.sampled_from(["train", "test"])),
            min_size=1,
            max_size=25,
        ),
        unknown=st.sampled_from(["none", "some", "all"]),
        seed=st.integers(0, 5),
    )
    def test_the_split_is_that_of_comparisons_in_memory(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        given_pairs: list[tuple[int, int, Any]],
        unknown: str,
        seed: int,
    ) -> None:
        sides = {"none": lambda side, _: side, "all": lambda *_: None}
        side_of = sides.get(unknown, lambda side, number: side if number else None)
        distinct = {
            item.id: item
            for prompt, number, side in reversed(given_pairs)
            for item in pairs(prompt + 1, each=number + 1, split=side_of(side, number))[-1:]
        }
        items = list(distinct.values())
        options: dict[str, Any] = {"test_fraction": 0.3, "seed": seed}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MORLAIF_CACHE", str(tmp_path_factory.getbasetemp() / "spool"))
            with spooled(items) as spool:
                rows = held_out_rows(spool, **options)
                assert list(spool) == items == list(spool)
        held_out = held_out_prompts(items, **options)
        assert rows.tolist() == [item.prompt_id in held_out for item in items]

    def test_portions_of_rows_hold_what_one_would(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        collect(tmp_path / "one", RuleJudge(shorter), KIND, comparisons=pairs(40))
        monkeypatch.setattr(dataset_module, "ROWS_AT_ONCE", 7)
        collect(tmp_path / "many", RuleJudge(shorter), KIND, comparisons=pairs(40))
        for side in ("train", "test"):
            one, many = (tmp_path / n / f"kindness/data/{side}.parquet" for n in ("one", "many"))
            assert pq.read_table(one).equals(pq.read_table(many))
        assert pq.ParquetFile(many).metadata.num_row_groups > 1

    def test_a_full_disk_is_named(self) -> None:
        class Full:
            def write(self, _line: bytes) -> None:
                raise OSError(28, "No space left on device")

        from morlaif_hub.feedback.spool import Spool

        full: Any = Full()
        with pytest.raises(WorkspaceError, match=r"No space left.* MORLAIF_CACHE"):
            Spool(full, pairs())

    def test_an_unreadable_source_ends_it_before_the_judge_is_asked(self, tmp_path: Path) -> None:
        def broken() -> Iterator[Comparison]:
            yield from pairs(3)
            raise DataError("line 7 is no pair")

        judge = RuleJudge(shorter)
        with pytest.raises(DataError, match="line 7"):
            collect(tmp_path / "out", judge, KIND, comparisons=broken())
        assert judge.asked == []
        assert not (tmp_path / "out").exists()

    def test_a_plan_tells_of_each_question_that_is_to_be_asked(self, tmp_path: Path) -> None:
        few = CollectSettings(limit=4)
        collect(tmp_path, RuleJudge(shorter), KIND, settings=few)
        told: list[Question] = []
        repeated = [pair for pair in pairs() for _ in range(2)]
        plan = plan_feedback(BOTH, iter(repeated), RuleJudge(shorter), each=told.append)
        assert plan == (40, 4)
        cached = [Question(pair, KIND) for pair in pairs()[:4]]
        assert told == [question for question in questions() if question not in cached]


class TestMemory:
    def test_what_is_collected_is_not_held(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of the 20,000 characters of each pair, memory holds a few."""
        monkeypatch.setattr(dataset_module, "ROWS_AT_ONCE", 20)
        monkeypatch.setattr(cache_module, "_LOOKED_UP", 20)
        monkeypatch.setattr(answers_module, "_AT_ONCE", 20)

        def long(count: int) -> Iterator[Comparison]:
            for i, pair in enumerate(pairs(10, each=count // 10)):
                text = f"{i} " * 5_000
                yield replace(pair, response_a=f"A {text[:10_000]}", response_b=text[:10_000])

        def peak(count: int) -> int:
            judge = ForgetfulJudge(shorter, spec=f"fake:{count}")
            tracemalloc.start()
            try:
                collect(tmp_path / str(count), judge, KIND, comparisons=long(count))
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        collect(tmp_path / "first", RuleJudge(shorter), KIND)  # pays for what is imported
        few, many = 40, 160
        assert peak(many) - peak(few) < (many - few) * 1_000

    @pytest.mark.slow
    def test_reading_takes_the_same_memory_for_any_number_of_rows(self, tmp_path: Path) -> None:
        """In processes of their own: fifteen times as many rows, and less than twice the memory."""
        code = (
            "import resource, sys\n"
            "from morlaif_hub.comparisons import read_comparisons\n"
            "count = sum(1 for _ in read_comparisons(sys.argv[1]))\n"
            "print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        )
        peaks = {}
        for count in (10_000, 150_000):
            path = tmp_path / f"{count}.jsonl"
            with path.open("w") as file:
                for i in range(count):
                    row = {"prompt": f"Question {i}?", "chosen": f"{i} yes", "rejected": f"{i} no"}
                    file.write(json.dumps(row) + "\n")
            done = subprocess.run(
                [sys.executable, "-c", code, str(path)], capture_output=True, check=True
            )
            read, peak = map(int, done.stdout.split())
            assert read == count
            peaks[count] = peak / 1024
        growth = peaks[150_000] - peaks[10_000]
        assert growth < 25, f"{peaks} MiB"  # 16 of them hold pages of the ids' file
