"""A judge that asks a local model in words: which is better, A or B? In both orders.

The answer is not sampled: it is read from the probabilities of the letters as next token. A judge
that thinks aloud does so greedily first, and the letters are read after what it said.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from morlaif_hub.comparisons import Comparison, Prompt
from morlaif_hub.errors import OptionError
from morlaif_hub.hub.manifest import BaseIdentity
from morlaif_hub.judges.base import Progress, Question, Verdict, in_questions, spec_of
from morlaif_hub.judges.examples import ANSWER, Manner
from morlaif_hub.judges.likelihood import check_fits
from morlaif_hub.models.formats import common_prefix, encode, prompt_text
from morlaif_hub.models.generation import SamplingSettings, sample_rows
from morlaif_hub.models.language_model import Dtype, LanguageModel
from morlaif_hub.models.likelihood import Branches, next_token_log_probabilities
from morlaif_hub.statistics import sigmoid

PLAINLY = Manner()
THOUGHTS_AT_ONCE = 32
LETTERS = ("A", "B")
SPACES = ("", "Ġ", "▁")  # a leading space, as byte-level BPE and SentencePiece write it


class _Shown(NamedTuple):
    """Two responses to a prompt, in the order in which they are shown."""

    prompt_id: str
    first: str
    second: str


@dataclass(frozen=True)
class LocalJudge:
    """Asks which of two options is better on a principle, and reads the letter's probability.

    Attributes:
        language_model: Any causal language model; an instruction-tuned one is meant.
        spec: What makes this judge again.
        manner: Whether it is shown worked examples, and may think aloud.
    """

    language_model: LanguageModel
    spec: str = "local:embedded"
    orders: bool = True
    manner: Manner = field(default=PLAINLY)

    @classmethod
    def load(
        cls, model: str, *, dtype: Dtype = "bfloat16", manner: Manner = PLAINLY
    ) -> "LocalJudge":
        """Load the judge of a model by name; empty or `embedded` means the embedded one."""
        changed = None if dtype == "bfloat16" else dtype
        spec = spec_of(
            "local",
            model,
            dtype=changed,
            examples=manner.examples or None,
            reasoning=manner.reasoning or None,
        )
        return cls(LanguageModel.load(model or None, dtype=dtype), spec, manner=manner)

    @property
    def base(self) -> BaseIdentity:
        """The identity of the model's weights."""
        return self.language_model.base

    @property
    def prompt_sha256(self) -> str:
        """Hash of the prompt template and the worked examples."""
        return self.manner.prompt_sha256

    def verdicts(
        self, questions: Sequence[Question], *, progress: Progress | None = None
    ) -> list[Verdict]:
        """Return one verdict for each question, in order.

        Dialogue and options come before the principle, so that all principles of a comparison
        share them: they are read once in each order.

        Raises:
            JudgeError: If a dialogue does not fit the model, or an answer is no probability.
        """
        prompts: dict[str, Prompt] = {}
        asked: dict[_Shown, dict[str, None]] = {}
        for comparison, principle in questions:
            prompts[comparison.prompt_id] = comparison.prompt
            for shown in _orders(comparison):
                asked.setdefault(shown, {})[principle.criterion] = None
        texts = [
            self._texts(prompts[shown.prompt_id], shown, criteria=list(criteria))
            for shown, criteria in asked.items()
        ]
        branches = [self._branches(of_one) for of_one in self._thought_through(texts)]
        tell = in_questions(progress, questions=len(questions), pieces=len(branches))
        spellings = [self._spellings[letter] for letter in LETTERS]
        results = next_token_log_probabilities(
            self.language_model, branches, [*spellings[0], *spellings[1]], progress=tell
        )
        first_better = {
            (shown, criterion): probability
            for (shown, criteria), rows in zip(asked.items(), results, strict=True)
            for criterion, probability in zip(
                criteria, first_probabilities(rows, len(spellings[0])), strict=True
            )
        }
        verdicts = []
        for comparison, principle in questions:
            a_first, a_second = _orders(comparison)
            criterion = principle.criterion
            b_better = first_better[a_second, criterion]
            verdicts.append(Verdict(first_better[a_first, criterion], 1.0 - b_better))
        return verdicts

    def _texts(self, prompt: Prompt, shown: _Shown, *, criteria: Sequence[str]) -> list[str]:
        tokenizer, manner = self.language_model.tokenizer, self.manner
        return [
            question_text(tokenizer, prompt, shown[1:], criterion=criterion, manner=manner)
            for criterion in criteria
        ]

    def _thought_through(self, texts: Sequence[list[str]]) -> list[list[str]]:
        """Return the texts with what the model thinks of each, up to where its letter comes."""
        if not self.manner.reasoning:
            return list(texts)
        for of_one in texts:
            self._branches(of_one)  # refuses what is too long before any of it is thought about
        thoughts = self._thoughts([text for of_one in texts for text in of_one])
        return [[f"{text}{next(thoughts)}\n{ANSWER}" for text in of_one] for of_one in texts]

    def _thoughts(self, texts: Sequence[str]) -> Iterator[str]:
        """Yield what the model says after each text, greedily, before it names its letter."""
        settings = SamplingSettings(
            max_new_tokens=self.manner.reasoning,
            responses=1,
            temperature=0.0,
            stop=(ANSWER,),
            batch_size=THOUGHTS_AT_ONCE,
        )
        model, tokenizer = self.language_model.model, self.language_model.tokenizer
        encoded = [encode(tokenizer, text) for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        said = [""] * len(texts)
        for start in range(0, len(order), settings.batch_size):
            rows = order[start : start + settings.batch_size]
            answers = sample_rows(model, tokenizer, [encoded[i] for i in rows], settings)
            for i, answer in zip(rows, answers, strict=True):
                said[i] = answer.text
        return iter(said)

    def _branches(self, texts: Sequence[str]) -> Branches:
        encoded = [encode(self.language_model.tokenizer, text) for text in texts]
        shared = common_prefix(encoded)
        branches = Branches(encoded[0][:shared], [text[shared:] for text in encoded])
        check_fits(self.language_model, branches)
        return branches

    @cached_property
    def _spellings(self) -> dict[str, list[int]]:
        return {letter: letter_tokens(self.language_model.tokenizer, letter) for letter in LETTERS}


def _orders(comparison: Comparison) -> tuple[_Shown, _Shown]:
    prompt, a, b = comparison.prompt_id, comparison.response_a, comparison.response_b
    return _Shown(prompt, a, b), _Shown(prompt, b, a)


def question_text(
    tokenizer: Any,
    prompt: Prompt,
    shown: tuple[str, str],
    *,
    criterion: str,
    manner: Manner = PLAINLY,
) -> str:
    """Return the question about two responses, in the order shown, as the model reads it."""
    question = manner.question(prompt, shown, criterion)
    return prompt_text(tokenizer, [*manner.turns(), {"role": "user", "content": question}])


def letter_tokens(tokenizer: Any, letter: str) -> list[int]:
    """Return the ids of all tokens that are the letter, with or without a leading space.

    Raises:
        OptionError: If there is none.
    """
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(
        {vocabulary[space + letter] for space in SPACES if space + letter in vocabulary}
    )
    if not tokens:
        raise OptionError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no token for the letter {letter!r}, "
            "so its model cannot answer A or B; use the likelihood judge"
        )
    return tokens


def first_probabilities(log_probabilities: NDArray[np.float64], spellings: int) -> list[float]:
    """Return the probability of the first letter against the second, one for each row.

    Args:
        log_probabilities: Of the tokens that spell A, then of those that spell B; shape
            (rows, tokens), in nats.
        spellings: How many of the tokens spell A.
    """
    first, second = np.split(log_probabilities, [spellings], axis=1)
    with np.errstate(invalid="ignore"):  # both impossible is NaN, which a verdict refuses
        log_odds = np.logaddexp.reduce(first, axis=1) - np.logaddexp.reduce(second, axis=1)
    return [float(probability) for probability in sigmoid(log_odds)]
