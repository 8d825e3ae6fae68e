"""A judge that listens to likelihoods: is a response likelier when asked for, or when asked not to?

The contrast of a response is its mean log-probability per token after a prompt that asks for the
criterion, minus that after one that asks for the opposite. What a model finds likely
anyway cancels, and so, per token, does length. No order is involved.
"""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jinja2 import TemplateError

from morlaif_hub.comparisons import Prompt
from morlaif_hub.errors import DataError, JudgeError, OptionError
from morlaif_hub.hub.manifest import BaseIdentity
from morlaif_hub.judges.base import Progress, Question, Verdict, in_questions, spec_of
from morlaif_hub.judges.prompts import Template, prompt_sha256
from morlaif_hub.models.formats import encode, prompt_text
from morlaif_hub.models.language_model import Dtype, LanguageModel
from morlaif_hub.models.likelihood import Branches, continuation_log_probabilities
from morlaif_hub.principles import Principle
from morlaif_hub.statistics import sigmoid

# Nats per token. On probes that the embedded model gets right as a rule, differences of contrasts
# are calibrated at 0.09; half of all differences are below 0.06.
TEMPERATURE = 0.1
REQUEST = Template.read("likelihood.txt")


class _Context(NamedTuple):
    """What comes before a response: a prompt, and a description of the response."""

    description: str
    prompt_id: str


@dataclass(frozen=True)
class LikelihoodJudge:
    """Prefers the response with the higher contrast of likelihoods.

    Attributes:
        language_model: Any causal language model; an instruction-tuned one with a chat template
            that takes a system message is meant.
        temperature: Nats per token: the probability that A is better is
            sigmoid((contrast of A - contrast of B) / temperature).
        spec: What makes this judge again.
    """

    language_model: LanguageModel
    temperature: float = TEMPERATURE
    spec: str = "likelihood:embedded"
    orders: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.temperature, int | float) or not self.temperature > 0:
            raise OptionError(f"temperature must be a number above 0, got {self.temperature!r}")

    @classmethod
    def load(
        cls, model: str, *, temperature: float | None = None, dtype: Dtype = "bfloat16"
    ) -> "LikelihoodJudge":
        """Load the judge of a model by name; empty or `embedded` means the embedded one.

        In bfloat16 a difference of contrasts is off by about 0.03 nats, which moves about one
        verdict in 25 to the other side; float32 takes three times as long.
        """
        changed = None if dtype == "bfloat16" else dtype
        spec = spec_of("likelihood", model, temperature=temperature, dtype=changed)
        language_model = LanguageModel.load(model or None, dtype=dtype)
        return cls(language_model, TEMPERATURE if temperature is None else temperature, spec)

    @property
    def base(self) -> BaseIdentity:
        """The identity of the model's weights."""
        return self.language_model.base

    @property
    def prompt_sha256(self) -> str:
        """Hash of the prompt template."""
        return prompt_sha256(REQUEST)

    def verdicts(
        self, questions: Sequence[Question], *, progress: Progress | None = None
    ) -> list[Verdict]:
        """Return one verdict for each question, in order.

        A response is scored once in each context, in however many questions it occurs, and a
        context is read once for all its responses.

        Raises:
            JudgeError: If a dialogue does not fit the model, or a likelihood is not finite.
            DataError: If a prompt is nothing but system messages.
        """
        prompts: dict[str, Prompt] = {}
        wanted: dict[_Context, dict[str, None]] = {}
        for comparison, principle in questions:
            prompts[comparison.prompt_id] = comparison.prompt
            for description in (principle.criterion, principle.opposite):
                responses = wanted.setdefault(_Context(description, comparison.prompt_id), {})
                responses.update({comparison.response_a: None, comparison.response_b: None})
        branches = [
            self._branches(prompts[context.prompt_id], context.description, list(responses))
            for context, responses in wanted.items()
        ]
        tell = in_questions(progress, questions=len(questions), pieces=len(branches))
        results = continuation_log_probabilities(self.language_model, branches, progress=tell)
        scores = {
            (context, response): float(tokens.mean())
            for (context, responses), rows in zip(wanted.items(), results, strict=True)
            for response, tokens in zip(responses, rows, strict=True)
        }

        def contrast(principle: Principle, prompt_id: str, response: str) -> float:
            good = scores[_Context(principle.criterion, prompt_id), response]
            return good - scores[_Context(principle.opposite, prompt_id), response]

        return [
            self._verdict(
                contrast(principle, comparison.prompt_id, comparison.response_a)
                - contrast(principle, comparison.prompt_id, comparison.response_b)
            )
            for comparison, principle in questions
        ]

    def _verdict(self, difference: float) -> Verdict:
        probability = float(sigmoid(difference / self.temperature))
        return Verdict(probability, probability)

    def _branches(self, prompt: Prompt, description: str, responses: Sequence[str]) -> Branches:
        tokenizer = self.language_model.tokenizer
        prefix = encode(tokenizer, context_text(tokenizer, prompt, description))
        branches = Branches(prefix, [encode(tokenizer, response) for response in responses])
        check_fits(self.language_model, branches)
        return branches


def context_text(tokenizer: Any, prompt: Prompt, description: str) -> str:
    """Return what comes before a response: the prompt, its last message followed by a description.

    A small model heeds best what it read last. A system message of the prompt's own is left out:
    it may ask for the opposite.

    Raises:
        DataError: If the prompt is nothing but system messages.
        OptionError: If the chat template refuses the prompt.
    """
    spoken = [message for message in prompt if message["role"] != "system"]
    if not spoken:
        raise DataError(
            f"the prompt {reprlib.repr([m['content'] for m in prompt])} has system messages alone, "
            "so there is nothing to respond to; add a message of the user, or leave it out"
        )
    *turns, last = spoken
    asked = REQUEST.fill({"message": last["content"], "description": description})
    try:
        text = prompt_text(tokenizer, [*turns, {"role": last["role"], "content": asked}])
    except TemplateError as error:
        raise OptionError(
            f"the chat template of {tokenizer.name_or_path!r} refuses this prompt ({error}); use "
            "another model as the judge"
        ) from error
    # Without a chat template nothing else separates the response from what comes before.
    return text if text.endswith("\n") else text + "\n"


def check_fits(language_model: LanguageModel, branches: Branches) -> None:
    """Refuse a text that is longer than the model's context.

    Raises:
        JudgeError: If it is; cutting it would make the verdict one on another text.
    """
    context = getattr(language_model.model.config, "max_position_embeddings", None)
    length = len(branches.prefix) + max(map(len, branches.continuations))
    if context is not None and length > context:
        start = language_model.tokenizer.decode(branches.prefix[-40:])
        raise JudgeError(
            f"a dialogue of {length} tokens does not fit the {context} of {language_model.name!r}; "
            f"leave it out or use a judge with a longer context. It ends with {start!r}"
        )
