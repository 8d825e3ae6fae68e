"""What is sent to an OpenAI-compatible server for a question, and how its answer is read.

Nothing here uses the network, so that live requests and batch files share it.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from morlaif_hub.judges.base import Question, Unanswered, Verdict
from morlaif_hub.judges.examples import ANSWER, Manner

Method = Literal["logprobs", "structured", "samples"]
"""How a verdict is got: from the probabilities of the two letters, from an answer whose form the
server enforces, or from several answers."""

METHODS: tuple[Method, ...] = ("logprobs", "structured", "samples")
"""All of them, the most exact and cheapest first."""
PLAINLY = Manner()
NO_LETTER = "no letter in the answer"
REFUSED = "refused"
NOT_IN_FORM = "the answer is not in the form that was asked for"
CUT_OFF = "the answer was cut off before its letter"
THINKING_TOKENS = 2048
_TOKENS: dict[Method, int] = {"logprobs": 1, "structured": 24, "samples": 8}
_AROUND = " \t\r\n\"'`*_([{<>}]).,:;!"
_BEFORE_A_LETTER = ("the", "answer", "option", "is")
# `A good reply would be` and `The answer is a matter of taste` name no letter.
_ARTICLE = re.compile(
    r"[\W_]*(?:(?:the|answer|is)[\W_]+)*a +(?!(?:is|because|since|as)\b)[a-z]", re.IGNORECASE
)
_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": ["A", "B"]}},
    "required": ["answer"],
    "additionalProperties": False,
}


class MalformedError(ValueError):
    """A server's answer is not a completion, so that asking again may help."""


@dataclass(frozen=True)
class Dialect:
    """Which parameters a server takes for a model.

    Attributes:
        limit: Name of the parameter that limits the tokens of an answer.
        temperature: Whether a temperature can be set.
        top_logprobs: Of how many tokens it gives the log-probabilities.
        several: Whether it gives several choices for one request.
        thinking: Whether the model spends tokens on thoughts before it answers.
    """

    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: bool = True
    top_logprobs: int = 20
    several: bool = True
    thinking: bool = False

    def adjusted(self, message: str) -> "Dialect | None":
        """Return what to try after a server refused a request; None if there is nothing left.

        Args:
            message: The server's words, which name the parameter that it does not take.
        """
        text = message.casefold()
        if "output limit was reached" in text and not self.thinking:
            return replace(self, thinking=True)
        if "max_tokens" in text and self.limit == "max_tokens":
            return replace(self, limit="max_completion_tokens")
        if "max_completion_tokens" in text and self.limit == "max_completion_tokens":
            return replace(self, limit="max_tokens")
        if "temperature" in text and self.temperature:
            return replace(self, temperature=False)
        if "top_logprobs" in text and self.top_logprobs > 5:
            return replace(self, top_logprobs=5)
        names_n = any(name in text for name in ("'n'", '"n"', "`n`", "n > 1", "n must", " n="))
        if names_n and self.several:
            return replace(self, several=False)
        return None


@dataclass(frozen=True)
class Asking:
    """Everything that settles what is sent for a question.

    Attributes:
        model: The server's name for it.
        method: How the verdict is got.
        samples: Answers to each order, where the method is `samples`.
        manner: The words of the question.
        dialect: Which parameters the server takes.
    """

    model: str
    method: Method
    samples: int = 8
    manner: Manner = PLAINLY
    dialect: Dialect = field(default_factory=Dialect)

    @property
    def choices(self) -> int:
        """How many answers an order takes."""
        return self.samples if self.method == "samples" else 1

    @property
    def answer_tokens(self) -> int:
        """The most tokens that one answer may have."""
        if self.dialect.thinking:
            return THINKING_TOKENS
        return self.manner.reasoning + _TOKENS[self.method]


@dataclass(frozen=True)
class Reading:
    """What one completion says.

    Attributes:
        log_odds: Of the response shown first being better, in nats; None where letters are counted.
        first: Answers for the response shown first.
        second: Answers for the other.
        choices: Answers that came, with a letter or without.
    """

    log_odds: float | None = None
    first: int = 0
    second: int = 0
    choices: int = 1


def request_body(
    asking: Asking, question: Question, *, a_first: bool, n: int | None = None
) -> dict[str, Any]:
    """Return the body of a request to `/chat/completions`.

    The dialogue comes first, then both responses, and the principle last: a server that keeps
    what it has read reads a pair once in each order, whatever the number of principles.

    Args:
        asking: How to ask.
        question: What to ask.
        a_first: Whether response A is shown first.
        n: How many answers to ask for; by default all that the order takes.
    """
    comparison, principle = question
    pair = (comparison.response_a, comparison.response_b)
    shown = pair if a_first else pair[::-1]
    text = asking.manner.question(comparison.prompt, shown, principle.criterion)
    dialect = asking.dialect
    body: dict[str, Any] = {
        "model": asking.model,
        "messages": [*asking.manner.turns(), {"role": "user", "content": text}],
        dialect.limit: asking.answer_tokens,
    }
    if dialect.temperature:
        # Log-probabilities are read as they are; a server that scales them must not sharpen them.
        body["temperature"] = 0.0 if asking.method == "structured" else 1.0
    if asking.method == "logprobs":
        body |= {"logprobs": True, "top_logprobs": dialect.top_logprobs}
    elif asking.method == "structured":
        schema = {"name": "verdict", "strict": True, "schema": _SCHEMA}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    else:
        wanted = asking.choices if n is None else n
        if dialect.several and wanted > 1:
            body["n"] = wanted
    return body


def read_answer(asking: Asking, completion: object) -> Reading | Unanswered:
    """Return what a completion says about the response shown first.

    Raises:
        MalformedError: If it is no completion, or lacks the log-probabilities that were asked for.
    """
    choices = completion.get("choices") if isinstance(completion, Mapping) else None
    if not isinstance(choices, list) or not choices:
        raise MalformedError("the server's answer has no choices")
    if not all(isinstance(c, Mapping) and isinstance(c.get("message"), Mapping) for c in choices):
        raise MalformedError("a choice in the server's answer has no message")
    refused = [_refused(choice) for choice in choices]
    if all(refused):
        return Unanswered(REFUSED)
    if asking.method == "logprobs":
        return _from_log_probabilities(choices[0])
    read = _structured_letter if asking.method == "structured" else _spoken_letter
    letters = [read(asking, choice) for choice in choices]
    counted = Reading(None, letters.count("A"), letters.count("B"), len(choices))
    if not counted.first + counted.second:
        cut_off = all(choice.get("finish_reason") == "length" for choice in choices)
        said = [text for text in map(_content, choices) if text.strip()]
        if asking.method == "structured":
            begun = all(text.lstrip().startswith("{") for text in said)
            return Unanswered(CUT_OFF if cut_off and begun else NOT_IN_FORM)
        if cut_off and not said:
            return Unanswered(CUT_OFF)
    return counted


def share_of(readings: Sequence[Reading]) -> float | Unanswered:
    """Return the probability that the response shown first is better, over all completions.

    Where answers are counted, one is added to each side (Laplace's rule of succession): no number
    of answers is certainty, and the mean in log-odds needs none that is infinite.
    """
    exact = [reading.log_odds for reading in readings if reading.log_odds is not None]
    if exact:
        return _sigmoid(sum(exact) / len(exact))
    first = sum(reading.first for reading in readings)
    second = sum(reading.second for reading in readings)
    if not first + second:
        return Unanswered(NO_LETTER)
    return (first + 1) / (first + second + 2)


def verdict_of(a_first: float, b_first: float) -> Verdict:
    """Return the verdict of both orders.

    Args:
        a_first: Probability that the response shown first is better, where that was A.
        b_first: The same where that was B.
    """
    return Verdict(a_first, 1.0 - b_first)


def letter_of(text: str) -> Literal["A", "B"] | None:
    """Return the letter that a token or a short answer spells, whatever its case or decoration.

    Example:
        >>> letter_of(" **b**."), letter_of("Both")
        ('B', None)
    """
    bare = text.replace("Ġ", " ").replace("▁", " ").replace("Ċ", " ").strip(_AROUND).upper()
    if bare == "A":
        return "A"
    return "B" if bare == "B" else None


def _from_log_probabilities(choice: Mapping[str, Any]) -> Reading | Unanswered:
    try:
        rows = choice["logprobs"]["content"][0]["top_logprobs"]
        listed = [(str(row["token"]), float(row["logprob"])) for row in rows]
    except (KeyError, IndexError, TypeError, ValueError):
        raise MalformedError("the server's answer has no log-probabilities") from None
    if not listed or any(math.isnan(value) or value > 1e-3 for _, value in listed):
        raise MalformedError("the server's log-probabilities are none")
    spelt: dict[str, list[float]] = {"A": [], "B": []}
    for token, value in listed:
        letter = letter_of(token)
        if letter and value > -math.inf:
            spelt[letter].append(value)
    if not spelt["A"] and not spelt["B"]:
        return Unanswered(NO_LETTER)
    # A letter that is not listed has at most the probability of the last one that is.
    least = min(value for _, value in listed if value > -math.inf)
    first, second = (_log_sum(spelt[letter]) if spelt[letter] else least for letter in "AB")
    return Reading(first - second)


def _log_sum(values: Iterable[float]) -> float:
    values = list(values)
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))


def _sigmoid(log_odds: float) -> float:
    if log_odds < 0:
        return math.exp(log_odds) / (1.0 + math.exp(log_odds))
    return 1.0 / (1.0 + math.exp(-log_odds))


def _refused(choice: Mapping[str, Any]) -> bool:
    return bool(choice["message"].get("refusal")) or choice.get("finish_reason") == "content_filter"


def _content(choice: Mapping[str, Any]) -> str:
    content = choice["message"].get("content")
    return content if isinstance(content, str) else ""


def _structured_letter(_: Asking, choice: Mapping[str, Any]) -> str | None:
    try:
        answer = json.loads(_content(choice))["answer"]
    except (ValueError, TypeError, KeyError):
        return None
    return answer if answer in ("A", "B") else None


def _spoken_letter(asking: Asking, choice: Mapping[str, Any]) -> str | None:
    text = _content(choice)
    if asking.manner.reasoning:
        _, answered, text = text.rpartition(ANSWER)
        if not answered:
            return None
    if _ARTICLE.match(text):
        return None
    words = text.replace(":", " ").split()
    while words and words[0].strip(_AROUND).casefold() in _BEFORE_A_LETTER:
        del words[0]
    return letter_of(words[0]) if words else None
