"""Ways to put a question in words: with worked examples, with thinking aloud, or plainly.

A judge that answers with a letter can be shown a few questions with their answers first, and it can
be made to weigh both options before it answers. Any judge that takes messages can use this.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from morlaif_hub.comparisons import Message, Prompt
from morlaif_hub.errors import OptionError
from morlaif_hub.judges.prompts import Template, prompt_sha256

QUESTION = Template.read("local.txt")
REASONED = Template.read("reasoned.txt")
ANSWER = "Answer:"
"""What stands before the letter where a judge thinks aloud."""
LONGEST_REASONING = 1024


@dataclass(frozen=True)
class Example:
    """A question with its answer, as `examples.toml` has them."""

    prompt: str
    first: str
    second: str
    criterion: str
    reasoning: str
    answer: Literal["A", "B"]


@cache
def worked_examples() -> tuple[Example, ...]:
    """Return all worked examples, in their order."""
    text = (files("morlaif_hub") / "judges" / "examples.toml").read_text(encoding="utf-8")
    return tuple(Example(**row) for row in tomllib.loads(text)["examples"])


@dataclass(frozen=True)
class Manner:
    """How a judge is asked.

    Attributes:
        examples: Worked examples that are shown before the question.
        reasoning: Tokens that the judge may think aloud for before it names its letter; 0 for a
            letter at once.

    Raises:
        OptionError: If there are not so many examples, or a number is out of range.
    """

    examples: int = 0
    reasoning: int = 0

    def __post_init__(self) -> None:
        limits = {"examples": len(worked_examples()), "reasoning": LONGEST_REASONING}
        for name, most in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= most:
                raise OptionError(f"{name} must be a whole number from 0 to {most}, got {value!r}")

    @property
    def template(self) -> Template:
        """The text of a question."""
        return REASONED if self.reasoning else QUESTION

    @property
    def prompt_sha256(self) -> str:
        """Hash of all texts that are shown, whatever the question."""
        shown = [Template(turn["content"]) for turn in self.turns()]
        return prompt_sha256(self.template, *shown)

    def turns(self) -> list[Message]:
        """Return the worked examples as a dialogue, which comes before the question."""
        turns: list[Message] = []
        for example in worked_examples()[: self.examples]:
            prompt: Prompt = ({"role": "user", "content": example.prompt},)
            shown = (example.first, example.second)
            answer: str = example.answer
            if self.reasoning:
                answer = f"{example.reasoning}\n{ANSWER} {answer}"
            turns.append(
                {"role": "user", "content": self.question(prompt, shown, example.criterion)}
            )
            turns.append({"role": "assistant", "content": answer})
        return turns

    def question(self, prompt: Prompt, shown: tuple[str, str], criterion: str) -> str:
        """Return the question about two responses, in the order shown.

        Dialogue and options come first, so that all principles of a pair share them.
        """
        dialogue = "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in prompt)
        first, second = shown
        return self.template.fill(
            {"dialogue": dialogue, "first": first, "second": second, "criterion": criterion}
        )
