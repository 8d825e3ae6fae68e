"""Verdicts as properties, specs, and both local judges against a computation of one text a time."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_judges import RuleJudge, always_first, longer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_causal_lm, tiny_tokenizer

from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import (
    DataError,
    JudgeError,
    OptionError,
    PluginError,
    UnknownNameError,
)
from morlaif_hub.hub.manifest import BaseIdentity
from morlaif_hub.judges import examples, likelihood, local
from morlaif_hub.judges.base import (
    JUDGES,
    Judge,
    Question,
    RemoteJudge,
    Verdict,
    ask,
    in_questions,
    load_judge,
    spec_of,
)
from morlaif_hub.judges.likelihood import LikelihoodJudge, context_text
from morlaif_hub.judges.local import LocalJudge, first_probabilities, letter_tokens, question_text
from morlaif_hub.judges.prompts import Template, prompt_sha256
from morlaif_hub.judges.validation import validate_judge
from morlaif_hub.models.language_model import LanguageModel
from morlaif_hub.principles import Principle, load_constitution

# A deadline would measure the machine's other work as well.
unhurried = settings(deadline=None)
# A grid, so that one minus a probability is exact enough to stay on its side of one half.
probabilities = st.integers(0, 10**6).map(lambda millionths: millionths / 10**6)

KIND = Principle("kindness", "The reply is kind.", "The reply is cruel.", "kinder")
SHORT = Principle("brevity", "The reply is brief.", "The reply rambles on.", "briefer")


def chat(*contents: str) -> tuple[dict[str, str], ...]:
    """Return turns that alternate between user and assistant."""
    roles = ("user", "assistant")
    return tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(contents))


PAIRS = [
    Comparison(chat("Hello"), "Hi, nice to see you!", "What?"),
    Comparison(chat("Hello"), "What?", "Go away, you."),
    Comparison(chat("How are you?", "Fine.", "Then tell me a story"), "Once upon a time", "No."),
    Comparison(({"role": "system", "content": "Be odd."}, *chat("Hello")), "Moo", "What? Never."),
]
QUESTIONS = [Question(pair, principle) for pair in PAIRS for principle in (KIND, SHORT)]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def tiny(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny_language_model(request.param)


def tiny_language_model(kind: str = "llama") -> LanguageModel:
    base = BaseIdentity(repo_id=None, revision=None, weights_sha256="0" * 64, source="local")
    return LanguageModel(tiny_causal_lm(kind), tiny_tokenizer(), base, f"tiny-{kind}")


class TestVerdict:
    @unhurried
    @given(probabilities, probabilities)
    def test_swapping_mirrors_it(self, first: float, second: float) -> None:
        verdict = Verdict(first, second)
        swapped = verdict.swap()
        assert swapped.probability_a == pytest.approx(1 - verdict.probability_a, abs=1e-9)
        assert swapped.first_share == verdict.first_share
        assert swapped.flipped == verdict.flipped
        assert swapped.swap().probability_a_first == pytest.approx(first, abs=1e-15)

    @unhurried
    @given(probabilities)
    def test_a_position_bias_cancels(self, first: float) -> None:
        verdict = Verdict(first, 1 - first)
        assert verdict.tie
        assert verdict.first_share == 0.5 + 0.5 * np.sign(first - 0.5)

    @unhurried
    @given(probabilities)
    def test_without_order_nothing_changes(self, probability: float) -> None:
        verdict = Verdict(probability, probability)
        assert verdict.probability_a == pytest.approx(probability, abs=2e-6)
        assert verdict.first_share == 0.5
        assert not verdict.flipped

    @unhurried
    @given(probabilities, probabilities)
    def test_lies_between_the_orders(self, first: float, second: float) -> None:
        low, high = sorted((first, second))
        assert low - 2e-6 <= Verdict(first, second).probability_a <= high + 2e-6

    @pytest.mark.parametrize(
        ("first", "second", "flipped", "tie"),
        [
            (0.9, 0.8, False, False),
            (0.9, 0.2, True, False),
            (0.9, 0.1, True, True),
            (0.9, 0.5, False, False),
            (0.5, 0.5, False, True),
        ],
    )
    def test_flipped_and_tie(self, first: float, second: float, flipped: bool, tie: bool) -> None:
        verdict = Verdict(first, second)
        assert (verdict.flipped, verdict.tie) == (flipped, tie)

    @pytest.mark.parametrize("bad", [math.nan, -0.01, 1.01, math.inf, None, "0.5", True])
    def test_refuses_what_is_no_probability(self, bad: Any) -> None:
        with pytest.raises(JudgeError, match="from 0 to 1"):
            Verdict(bad, 0.5)
        with pytest.raises(JudgeError, match="probability_a_second"):
            Verdict(0.5, bad)

    def test_takes_numbers_of_other_types(self) -> None:
        assert Verdict(np.float32(0.25), 1) == Verdict(0.25, 1.0)


class TestLoading:
    def test_names_the_nearest_kind(self) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean 'likelihood'"):
            load_judge("likelyhood:embedded")

    def test_passes_model_and_options(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given: list[Any] = []

        def factory(model: str, *, temperature: float = 1.0, dtype: str = "a") -> Judge:
            given.append((model, temperature, dtype))
            return RuleJudge(longer)

        monkeypatch.setitem(JUDGES._ours, "fake", factory)
        load_judge("fake:org/model@v1?temperature=0.5&dtype=float32")
        load_judge("fake:org/model@v1?temperature=0.5", temperature=2.0)
        load_judge("fake")
        assert given == [
            ("org/model@v1", 0.5, "float32"),
            ("org/model@v1", 2.0, "a"),
            ("", 1.0, "a"),
        ]

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("local:embedded?temperature=1", "takes no option 'temperature'; it takes: dtype"),
            ("local:embedded?dtype", "'dtype' is no option"),
            ("local:embedded?model=x", "takes no option 'model'"),
            ("likelihood:M?dtype=foo", "dtype must be one of bfloat16, float32, got 'foo'"),
            ("local:M?dtype=16", "dtype must be one of bfloat16, float32, got 16"),
        ],
    )
    def test_refuses_options_that_the_kind_does_not_take(self, spec: str, message: str) -> None:
        with pytest.raises(OptionError, match=message):
            load_judge(spec)

    def test_a_plugin_must_make_a_judge(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "acme_judges.py").write_text("def broken(model, **options): return 7\n")
        information = tmp_path / "acme-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(
            "[morlaif_hub.judges]\nbroken = acme_judges:broken\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delenv("MORLAIF_HUB_PLUGINS", raising=False)
        with pytest.raises(PluginError, match=r"'acme/broken' of acme 1.0 made a int, which lacks"):
            load_judge("acme/broken:anything?and=more")
        monkeypatch.delitem(sys.modules, "acme_judges")

    def test_a_spec_says_what_was_changed(self) -> None:
        changed = LikelihoodJudge(tiny_language_model(), temperature=3.0)
        assert spec_of("likelihood", "./m", temperature=3.0) == "likelihood:./m?temperature=3.0"
        assert isinstance(changed, Judge)
        assert not isinstance(changed, RemoteJudge)

    @pytest.mark.parametrize("temperature", [0, -1.0, math.nan, "warm"])
    def test_refuses_a_temperature_that_is_not_positive(self, temperature: Any) -> None:
        with pytest.raises(OptionError, match="temperature must be a number above 0"):
            LikelihoodJudge(tiny_language_model(), temperature=temperature)


class TestAsking:
    def test_refuses_another_number_of_answers(self) -> None:
        class Lazy(RuleJudge):
            def verdicts(self, questions: Sequence[Question], **_: Any) -> list[Verdict]:
                return super().verdicts(questions[1:])

        with pytest.raises(JudgeError, match="one Verdict for each of 8 questions; it gave 7"):
            ask(Lazy(always_first), QUESTIONS)

    def test_refuses_bare_numbers(self) -> None:
        class Bare(RuleJudge):
            def verdicts(self, questions: Sequence[Question], **_: Any) -> list[Any]:
                return [0.5 for _ in questions]

        with pytest.raises(JudgeError, match="fault of the judge"):
            ask(Bare(always_first), QUESTIONS)

    @unhurried
    @given(st.integers(1, 50), st.integers(1, 50))
    def test_progress_adds_up_to_the_questions(self, questions: int, pieces: int) -> None:
        told: list[int] = []
        tell = in_questions(told.append, questions=questions, pieces=pieces)
        assert tell is not None
        for _ in range(pieces):
            tell(1)
        assert sum(told) == questions
        assert all(count > 0 for count in told)


class TestTemplates:
    @unhurried
    @given(st.text(), st.text())
    def test_values_are_never_looked_at_again(self, one: str, other: str) -> None:
        template = Template("{one}|{other}|{unknown}|{one}")
        expected = f"{one}|{other}|{{unknown}}|{one}"
        assert template.fill({"one": one, "other": other}) == expected

    def test_a_response_cannot_place_another_text(self) -> None:
        options = ("{second} {criterion}", "{dialogue} {0} %s {")
        text = question_text(tiny_tokenizer(), chat("{first}"), options, criterion="{second}")
        assert text.count("Option A: {second} {criterion}\n") == 1
        assert text.count("Option B: {dialogue} {0} %s {\n") == 1
        assert text.count("User: {first}\n") == 1
        assert text.count("by this only: {second}\n") == 1

    def test_the_hash_is_that_of_the_texts(self) -> None:
        judges = [LocalJudge(tiny_language_model()), LikelihoodJudge(tiny_language_model())]
        hashes = {judge.prompt_sha256 for judge in judges}
        assert hashes == {prompt_sha256(examples.QUESTION), prompt_sha256(likelihood.REQUEST)}
        assert len(hashes) == 2
        assert prompt_sha256(Template("ab"), Template("c")) != prompt_sha256(
            Template("a"), Template("bc")
        )


def whole_text_log_probabilities(lm: LanguageModel, ids: Sequence[int]) -> torch.Tensor:
    """Return log-probabilities of the next token after each of one text's tokens."""
    with torch.inference_mode():
        logits = lm.model(input_ids=torch.tensor([list(ids)])).logits[0]
    return torch.log_softmax(logits.double(), dim=-1)


def tokens(lm: LanguageModel, text: str) -> list[int]:
    ids: list[int] = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


class TestLocalJudge:
    def test_equals_one_text_at_a_time(self, tiny: LanguageModel) -> None:
        verdicts = LocalJudge(tiny).verdicts(QUESTIONS)
        for (pair, principle), verdict in zip(QUESTIONS, verdicts, strict=True):
            a, b = pair.response_a, pair.response_b
            assert verdict.probability_a_first == pytest.approx(
                self.naive(tiny, pair, (a, b), principle), abs=1e-4
            )
            assert verdict.probability_a_second == pytest.approx(
                1 - self.naive(tiny, pair, (b, a), principle), abs=1e-4
            )
        spread = np.ptp([verdict.probability_a_first for verdict in verdicts])
        assert spread > 0.01  # or the equality would say little

    @staticmethod
    def naive(
        lm: LanguageModel, pair: Comparison, shown: tuple[str, str], principle: Principle
    ) -> float:
        text = question_text(lm.tokenizer, pair.prompt, shown, criterion=principle.criterion)
        last = whole_text_log_probabilities(lm, tokens(lm, text))[-1].exp()
        vocabulary = lm.tokenizer.get_vocab()
        letters = [
            sum(float(last[vocabulary[s]]) for s in (letter, "Ġ" + letter) if s in vocabulary)
            for letter in "AB"
        ]
        return letters[0] / sum(letters)

    def test_a_swapped_comparison_gets_the_mirrored_verdict(self, tiny: LanguageModel) -> None:
        judge = LocalJudge(tiny)
        swapped = [Question(pair.swap(), principle) for pair, principle in QUESTIONS]
        for one, other in zip(judge.verdicts(QUESTIONS), judge.verdicts(swapped), strict=True):
            mirrored = other.swap()
            assert one.probability_a_first == pytest.approx(mirrored.probability_a_first, abs=1e-5)
            assert one.probability_a_second == pytest.approx(
                mirrored.probability_a_second, abs=1e-5
            )

    def test_all_principles_share_dialogue_and_options(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Any] = []
        real = local.next_token_log_probabilities

        def spy(lm: LanguageModel, branches: Sequence[Any], *rest: Any, **named: Any) -> Any:
            seen.extend(branches)
            return real(lm, branches, *rest, **named)

        monkeypatch.setattr(local, "next_token_log_probabilities", spy)
        told: list[int] = []
        LocalJudge(tiny_language_model()).verdicts(QUESTIONS, progress=told.append)
        assert len(seen) == 2 * len(PAIRS)
        assert sum(told) == len(QUESTIONS)
        for branches in seen:
            assert len(branches.continuations) == 2
            assert len(branches.prefix) > max(map(len, branches.continuations))

    def test_reads_every_spelling_of_a_letter(self) -> None:
        class Vocabulary:
            name_or_path = "none"

            def __init__(self, *entries: str) -> None:
                self.entries = {entry: i for i, entry in enumerate(entries)}

            def get_vocab(self) -> dict[str, int]:
                return self.entries

        assert letter_tokens(Vocabulary("x", "ĠA", "A", "AB", "a"), "A") == [1, 2]
        assert letter_tokens(Vocabulary("▁A", "A", "B"), "A") == [0, 1]
        with pytest.raises(OptionError, match="no token for the letter 'B'"):
            letter_tokens(Vocabulary("A"), "B")

    def test_adds_up_the_spellings(self) -> None:
        log_probabilities = np.log([[0.1, 0.2, 0.05, 0.05], [0.0625, 0.0625, 0.125, 0.25]])
        assert first_probabilities(log_probabilities, 2) == pytest.approx([0.75, 0.25])

    def test_impossible_letters_are_no_verdict(self) -> None:
        (probability,) = first_probabilities(np.full((1, 4), -np.inf), 2)
        with pytest.raises(JudgeError):
            Verdict(probability, 0.5)


class TestLikelihoodJudge:
    def test_equals_one_text_at_a_time(self, tiny: LanguageModel) -> None:
        judge = LikelihoodJudge(tiny, temperature=2.0)
        differences = []
        for (pair, principle), verdict in zip(QUESTIONS, judge.verdicts(QUESTIONS), strict=True):
            difference = self.contrast(tiny, pair, pair.response_a, principle) - self.contrast(
                tiny, pair, pair.response_b, principle
            )
            expected = 1 / (1 + math.exp(-difference / 2.0))
            assert verdict.probability_a_first == pytest.approx(expected, abs=1e-4)
            assert verdict.probability_a_second == verdict.probability_a_first
            differences.append(difference)
        assert np.ptp(differences) > 0.1  # or the equality would say little

    @classmethod
    def contrast(
        cls, lm: LanguageModel, pair: Comparison, response: str, principle: Principle
    ) -> float:
        means = []
        for description in (principle.criterion, principle.opposite):
            prefix = tokens(lm, context_text(lm.tokenizer, pair.prompt, description))
            ids = tokens(lm, response)
            table = whole_text_log_probabilities(lm, prefix + ids)[len(prefix) - 1 : -1]
            means.append(float(table.gather(1, torch.tensor(ids)[:, None]).mean()))
        return means[0] - means[1]

    def test_a_response_is_scored_once_in_each_context(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Any] = []
        real = likelihood.continuation_log_probabilities

        def spy(lm: LanguageModel, branches: Sequence[Any], **named: Any) -> Any:
            seen.extend(branches)
            return real(lm, branches, **named)

        monkeypatch.setattr(likelihood, "continuation_log_probabilities", spy)
        responses = ["one", "two", "three", "four"]
        pairs = [
            Comparison(chat("Count"), a, b)
            for i, a in enumerate(responses)
            for b in responses[i + 1 :]
        ]
        told: list[int] = []
        questions = [Question(pair, principle) for pair in pairs for principle in (KIND, SHORT)]
        LikelihoodJudge(tiny_language_model()).verdicts(questions, progress=told.append)
        assert [len(branches.continuations) for branches in seen] == [4, 4, 4, 4]
        assert sum(told) == len(questions) == 12

    def test_swapping_mirrors_and_equal_contrasts_tie(self) -> None:
        judge = LikelihoodJudge(tiny_language_model())
        swapped = [Question(pair.swap(), principle) for pair, principle in QUESTIONS]
        for one, other in zip(judge.verdicts(QUESTIONS), judge.verdicts(swapped), strict=True):
            assert one.probability_a == pytest.approx(1 - other.probability_a, abs=1e-6)
        indifferent = Principle("none", "The same.", "The same.", "nothing")
        (verdict,) = judge.verdicts([Question(PAIRS[0], indifferent)])
        assert verdict.tie

    def test_the_description_comes_last_and_system_messages_are_left_out(self) -> None:
        tokenizer = tiny_tokenizer()
        text = context_text(tokenizer, PAIRS[3].prompt, "The reply is kind.")
        assert "system" not in text
        assert "Be odd." not in text
        assert text.index("Hello") < text.index("The reply is kind.")
        assert text.endswith("<|im_start|>assistant\n")

    def test_braces_in_a_prompt_are_no_placeholders(self) -> None:
        prompt = ({"role": "user", "content": "Say {description} and {message}."},)
        text = context_text(tiny_tokenizer(), prompt, "The reply is kind.")
        assert "Say {description} and {message}." in text
        assert text.count("The reply is kind.") == 1

    def test_a_template_that_refuses_the_prompt_is_reported(self) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
        with pytest.raises(OptionError, match="roles must alternate"):
            context_text(tokenizer, PAIRS[0].prompt, "The reply is kind.")

    def test_a_prompt_of_system_messages_alone_is_reported(self) -> None:
        prompt = ({"role": "system", "content": "Be odd."},)
        with pytest.raises(DataError, match=r"'Be odd\.'.*system messages alone"):
            context_text(tiny_tokenizer(), prompt, "The reply is kind.")

    def test_a_model_without_a_template_reads_plain_text(self) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = None
        asked = likelihood.REQUEST.fill({"message": "Hello", "description": "The reply is kind."})
        text = context_text(tokenizer, PAIRS[3].prompt, "The reply is kind.")
        assert text == f"{asked}\n"


@pytest.mark.parametrize("kind", [LocalJudge, LikelihoodJudge])
def test_a_dialogue_that_does_not_fit_is_refused(kind: Any) -> None:
    long = Comparison(chat("word " * 600), "yes", "no")
    with pytest.raises(JudgeError, match=r"\d+ tokens does not fit the 512 of 'tiny-llama'"):
        kind(tiny_language_model()).verdicts([Question(long, KIND)])


@pytest.mark.slow
def test_the_embedded_model_hears_conciseness_and_detail() -> None:
    constitution = load_constitution()
    principles = [constitution.get(name) for name in ("conciseness", "detail", "toxicity")]
    # In float32, since bfloat16 moves a few probes from one machine to the next.
    records = validate_judge(load_judge("likelihood:embedded", dtype="float32"), principles)
    assert {name: record.verdict for name, record in records.items()} == {
        "conciseness": "fit",
        "detail": "fit",
        "toxicity": "fit",
    }


@pytest.mark.slow
def test_the_embedded_model_asked_in_words_prefers_a_position() -> None:
    principle = load_constitution().get("conciseness")
    record = validate_judge(load_judge("local:"), [principle])["conciseness"]
    assert record.first_share is not None
    assert abs(record.first_share - 0.5) > 0.4
