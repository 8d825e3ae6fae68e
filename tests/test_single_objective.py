"""The baseline that draws one principle for each pair, worked examples, and thinking aloud."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_judges import RuleJudge, longer, shorter

from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import DataError, JudgeError, OptionError, UnknownNameError
from morlaif_hub.feedback.cache import CachedJudge, VerdictCache
from morlaif_hub.feedback.collect import collect_feedback
from morlaif_hub.feedback.dataset import FeedbackDataset
from morlaif_hub.hub.manifest import SourceRecord
from morlaif_hub.judges.base import (
    Answered,
    Judge,
    Question,
    RemoteJudge,
    StreamingJudge,
    Verdict,
    load_judge,
)
from morlaif_hub.judges.examples import ANSWER, Manner, worked_examples
from morlaif_hub.judges.single_objective import (
    SingleObjectiveJudge,
    drawn_principle,
    single_objective_judge,
)
from morlaif_hub.principles import Principle, load_constitution

UMBRELLA = load_constitution("constitutional").get("constitutional")
KIND = Principle("kindness", "The reply is kind.", "The reply is cruel.", "kinder")
OWN_SET = """
name = "own"
[[principles]]
name = "brief"
criterion = "The response is brief."
opposite = "The response rambles."
high_score = "A high score means briefer."
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "cache"))


def pairs(count: int) -> list[Comparison]:
    return [Comparison.from_choice(f"Why {i}?", f"Because of {i}", f"No {i}") for i in range(count)]


def questions(count: int) -> list[Question]:
    return [Question(pair, UMBRELLA) for pair in pairs(count)]


def tiny_language_model() -> Any:
    """Return a random model. Imports are inside, since most tests here need no torch."""
    from tiny import tiny_causal_lm, tiny_tokenizer

    from morlaif_hub.hub.manifest import BaseIdentity
    from morlaif_hub.models.language_model import LanguageModel

    base = BaseIdentity(repo_id=None, revision=None, weights_sha256="0" * 64, source="local")
    return LanguageModel(tiny_causal_lm(), tiny_tokenizer(), base, "tiny")


class Paid(RuleJudge):
    cost_usd = 1.5
    questions_at_once = 7


class Flowing(Paid):
    def stream(self, questions: Iterable[Question]) -> Iterator[list[Answered]]:
        for number, question in enumerate(questions):
            yield [Answered(number, self.verdicts([question])[0])]


class TestDraws:
    def test_each_pair_is_judged_on_the_sentence_drawn_for_it(self) -> None:
        inner = RuleJudge(longer)
        judge = single_objective_judge(inner)
        verdicts = judge.verdicts(questions(300))
        assert verdicts == RuleJudge(longer).verdicts(questions(300))
        asked = [question.principle for question in inner.asked]
        assert asked == [judge.drawn(pair) for pair in pairs(300)]
        counts = Counter(principle.name for principle in asked)
        sentences = load_constitution("single-objective").names
        assert set(counts) == set(sentences)
        assert max(counts.values()) < 2.2 * 300 / len(sentences)

    def test_a_draw_is_of_the_pair_and_the_seed_alone(self) -> None:
        judge, again = (single_objective_judge(RuleJudge(longer)) for _ in range(2))
        other = single_objective_judge(RuleJudge(longer), draw=1)
        drawn = [judge.drawn(pair).name for pair in pairs(50)]
        assert [again.drawn(pair).name for pair in reversed(pairs(50))] == drawn[::-1]
        assert [judge.drawn(pair.swap()).name for pair in pairs(50)] == drawn
        assert [other.drawn(pair).name for pair in pairs(50)] != drawn

    def test_another_principle_is_refused(self) -> None:
        """Its set would be labelled by what it is not about."""
        with pytest.raises(
            OptionError, match="cannot judge 'kindness'; it is for 'constitutional'"
        ):
            single_objective_judge(RuleJudge(longer)).verdicts([Question(pairs(1)[0], KIND)])

    def test_whoever_reads_a_verdict_learns_what_was_drawn(self, tmp_path: Path) -> None:
        judge = single_objective_judge(RuleJudge(longer), constitution="morlaif-5", draw=7)
        for pair in pairs(9):
            assert drawn_principle(judge.spec, pair) == judge.drawn(pair)
        assert drawn_principle("single-objective:fake:rule", pairs(1)[0]) is not None
        (own := tmp_path / "own.toml").write_text(OWN_SET)
        for spec in (
            "fake:rule",
            "fake:rule?constitution=morlaif-5",
            f"single-objective:fake:rule?constitution={own}",
            "single-objective:fake:rule?draw=1e9",
        ):
            assert drawn_principle(spec, pairs(1)[0]) is None


class TestWrapping:
    def test_it_can_do_what_the_judge_that_it_asks_can(self) -> None:
        plain, paid, flowing = (
            single_objective_judge(kind(longer)) for kind in (RuleJudge, Paid, Flowing)
        )
        assert isinstance(plain, Judge)
        assert not isinstance(plain, RemoteJudge)
        assert isinstance(paid, RemoteJudge)
        assert not isinstance(paid, StreamingJudge)
        assert (paid.cost_usd, paid.questions_at_once) == (1.5, 7)
        assert isinstance(flowing, StreamingJudge)
        streamed = [answer for part in flowing.stream(questions(5)) for answer in part]
        assert [answer.number for answer in streamed] == list(range(5))
        assert [answer.answer for answer in streamed] == plain.verdicts(questions(5))
        assert {question.principle for question in flowing.judge.asked} == {  # type: ignore[attr-defined]
            flowing.drawn(pair) for pair in pairs(5)
        }

    @pytest.mark.parametrize(
        ("given", "spec"),
        [
            ("single-objective:likelihood:", "single-objective:likelihood:embedded"),
            (
                "single-objective:likelihood:embedded?draw=3&temperature=0.2",
                "single-objective:likelihood:embedded?temperature=0.2&draw=3",
            ),
            (
                "single-objective:local:?constitution=morlaif-5&examples=2",
                "single-objective:local:embedded?examples=2&constitution=morlaif-5",
            ),
        ],
    )
    def test_its_spec_makes_it_again(
        self, given: str, spec: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from morlaif_hub.judges.likelihood import LikelihoodJudge
        from morlaif_hub.judges.local import LocalJudge
        from morlaif_hub.models.language_model import LanguageModel

        model = tiny_language_model()
        monkeypatch.setattr(LanguageModel, "load", lambda *_args, **_named: model)
        judge = load_judge(given)
        assert isinstance(judge, SingleObjectiveJudge)
        assert isinstance(judge.judge, LikelihoodJudge | LocalJudge)
        assert judge.spec == spec
        assert load_judge(spec) == judge

    @pytest.mark.parametrize(
        ("spec", "error", "message"),
        [
            ("single-objective:", OptionError, "name it, as in single-objective:likelihood:"),
            ("single-objective:likelyhood:", UnknownNameError, "Did you mean 'likelihood'"),
            ("single-objective:likelihood:?warmth=2", OptionError, "takes no option 'warmth'"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, spec: str, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            load_judge(spec)

    def test_a_constitution_that_is_not_there_is_refused_before_asking(self) -> None:
        with pytest.raises(UnknownNameError, match="morlaif-6"):
            single_objective_judge(RuleJudge(longer), constitution="morlaif-6")
        with pytest.raises(DataError, match="nowhere"):
            single_objective_judge(RuleJudge(longer), constitution="./nowhere.toml")
        with pytest.raises(OptionError, match=r"draw must be a whole number, got 0\.5"):
            single_objective_judge(RuleJudge(longer), draw=0.5)  # type: ignore[arg-type]


class TestCache:
    def test_another_constitution_or_seed_finds_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "own.toml"
        path.write_text(OWN_SET)
        own = single_objective_judge(RuleJudge(longer), constitution=str(path))
        asked = questions(6)
        with VerdictCache() as cache:
            cache.put_many(own, asked, verdicts=list(own.verdicts(asked)))  # type: ignore[arg-type]
            assert None not in cache.get_many(own, asked)
            for change in ({"draw": 1}, {"constitution": "single-objective"}):
                assert cache.get_many(replace(own, **change), asked) == [None] * 6  # type: ignore[arg-type]
            path.write_text(OWN_SET.replace("rambles", "runs on"))
            changed = single_objective_judge(RuleJudge(longer), constitution=str(path))
            assert cache.get_many(changed, asked) == [None] * 6

    def test_who_is_stopped_goes_on_with_the_same_draws(self) -> None:
        inner = RuleJudge(longer)
        with VerdictCache() as cache:
            CachedJudge(single_objective_judge(inner), cache).verdicts(questions(10))
            CachedJudge(single_objective_judge(inner), cache).verdicts(questions(25))
        assert len(inner.asked) == 25
        judge = single_objective_judge(inner)
        assert all(judge.drawn(pair) == principle for pair, principle in inner.asked)


def test_it_makes_a_set_like_any_other(tmp_path: Path) -> None:
    judge = single_objective_judge(RuleJudge(shorter))
    source = SourceRecord(name="pairs.jsonl", revision=None, sha256="c" * 64)
    made = collect_feedback([UMBRELLA], pairs(20), judge, folder=tmp_path, source=source)
    assert made["constitutional"].judge.spec == "single-objective:fake:rule"
    loaded = FeedbackDataset.load(tmp_path / "constitutional")
    assert sum(map(len, loaded.splits)) == 20
    assert loaded.manifest.judge.validation is not None
    assert loaded.manifest.judge.validation.n == 24


class TestManner:
    def test_examples_are_balanced(self) -> None:
        """Neither a letter nor a length is right more often than the other."""
        for count in (2, 4):
            shown = worked_examples()[:count]
            assert Counter(example.answer for example in shown) == {"A": count / 2, "B": count / 2}
        is_longer = [
            (len(example.first) > len(example.second)) == (example.answer == "A")
            for example in worked_examples()
        ]
        assert sum(is_longer) == len(is_longer) / 2

    def test_turns_are_questions_with_their_answers(self) -> None:
        plain, aloud = Manner(examples=3).turns(), Manner(examples=3, reasoning=50).turns()
        assert [turn["role"] for turn in plain] == ["user", "assistant"] * 3
        assert [turn["content"] for turn in plain[1::2]] == ["A", "B", "B"]
        for turn, example in zip(aloud[1::2], worked_examples(), strict=False):
            assert turn["content"] == f"{example.reasoning}\n{ANSWER} {example.answer}"
        for turn in plain[::2]:
            assert turn["content"].endswith("Reply with one letter, A or B.")

    def test_the_hash_tells_manners_apart(self) -> None:
        manners = [Manner(), Manner(examples=1), Manner(examples=2), Manner(reasoning=8)]
        assert len({manner.prompt_sha256 for manner in manners}) == 4

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ({"examples": 5}, "examples must be a whole number from 0 to 4, got 5"),
            ({"examples": -1}, "got -1"),
            ({"reasoning": 0.5}, "reasoning must be a whole number"),
            ({"reasoning": True}, "got True"),
            ({"reasoning": 5000}, "from 0 to 1024"),
        ],
    )
    def test_numbers_are_checked(self, bad: dict[str, Any], message: str) -> None:
        with pytest.raises(OptionError, match=message):
            Manner(**bad)

    def test_braces_in_a_response_change_nothing_but_themselves(self) -> None:
        prompt = ({"role": "user", "content": "{first}"},)
        text = Manner(reasoning=9).question(prompt, ("{criterion}", "Option A: x"), "{second}")
        assert text.startswith("User: {first}\n\nOption A: {criterion}\n\nOption B: Option A: x")
        assert "Judge by this only: {second}" in text


class TestLocal:
    """With a real, tiny model."""

    @pytest.fixture
    def model(self) -> Any:
        return tiny_language_model()

    def ask(self, model: Any, manner: Manner, asked: Sequence[Question]) -> list[Verdict]:
        from morlaif_hub.judges.local import LocalJudge

        return LocalJudge(model, manner=manner).verdicts(asked)

    def test_examples_come_first_and_change_the_verdict(self, model: Any) -> None:
        from morlaif_hub.judges.local import PLAINLY, question_text

        prompt, shown = pairs(1)[0].prompt, ("one", "two")
        tokenizer = model.tokenizer
        plain = question_text(tokenizer, prompt, shown, criterion="Kind.", manner=PLAINLY)
        text = question_text(tokenizer, prompt, shown, criterion="Kind.", manner=Manner(examples=1))
        example = worked_examples()[0]
        assert text.index(example.prompt) < text.index(example.criterion) < text.index("Kind.")
        assert text.endswith(plain)

    def test_the_letter_is_read_after_what_was_said(
        self, model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from morlaif_hub.judges import local

        seen: list[Any] = []
        real = local.next_token_log_probabilities

        def spy(lm: Any, branches: Sequence[Any], *rest: Any, **named: Any) -> Any:
            seen.extend(branches)
            return real(lm, branches, *rest, **named)

        monkeypatch.setattr(local, "next_token_log_probabilities", spy)
        asked = [Question(pairs(2)[0], KIND), Question(pairs(2)[1], KIND)]
        manner = Manner(reasoning=6)
        verdicts = self.ask(model, manner, asked)
        assert len(seen) == 4
        for branches in seen:
            text = model.tokenizer.decode(branches.prefix + branches.continuations[0])
            question, _, said = text.partition('"Answer: A" or "Answer: B".')
            assert question.startswith("<|im_start|>user")
            thought = said.partition("<|im_start|>assistant\n")[2].removesuffix(f"\n{ANSWER}")
            assert thought.strip()
            assert said.endswith(f"{thought}\n{ANSWER}")
        assert verdicts == self.ask(model, manner, asked)  # greedy, so the same again
        assert verdicts != self.ask(model, Manner(), asked)

    def test_what_does_not_fit_is_refused_before_thinking(
        self, model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from morlaif_hub.judges import local

        monkeypatch.setattr(local, "sample_rows", lambda *_: pytest.fail("it thought"))
        long = Comparison.from_choice("word " * 600, "one", "two")
        with pytest.raises(JudgeError, match="does not fit the 512"):
            self.ask(model, Manner(reasoning=4), [Question(long, KIND)])
