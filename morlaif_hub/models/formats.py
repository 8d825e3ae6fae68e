"""Text in, tokens out: one place decides what a prompt and a response look like to a model."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from morlaif_hub.comparisons import Comparison, Message, prompt_messages
from morlaif_hub.errors import OptionError
from morlaif_hub.hub.manifest import InputFormat


def chat_text(tokenizer: Any, messages: Sequence[Message], *, generation_prompt: bool) -> str:
    """Return messages as the text that the tokenizer's chat template makes of them.

    Raises:
        OptionError: If the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise OptionError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template, so it takes plain "
            "text only; use the input format 'text' or a chat model"
        )
    text: str = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=generation_prompt
    )
    return text


def plain_text(messages: Sequence[Message]) -> str:
    """Return the contents of messages joined by line breaks, for models without a template."""
    return "\n".join(message["content"] for message in messages)


def prompt_text(tokenizer: Any, prompt: Sequence[Message]) -> str:
    """Return what a policy continues: the chat template's prompt, or plain text without one."""
    if getattr(tokenizer, "chat_template", None):
        return chat_text(tokenizer, prompt, generation_prompt=True)
    return plain_text(prompt)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return a text's token ids, with no special tokens added."""
    # Not verbose, since it would warn of texts that are cut later.
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def encode_pair(
    tokenizer: Any, prompt: str | Sequence[Message], response: str, input_format: InputFormat
) -> list[int]:
    """Return the token ids of a prompt and its response, as a preference model reads them.

    They are those of `encode_whole_pair`; what exceeds `max_length` is cut on the left, so that
    the response stays.
    """
    whole = encode_whole_pair(tokenizer, prompt, response, input_format)
    return whole[-input_format.max_length :]


def encode_whole_pair(
    tokenizer: Any, prompt: str | Sequence[Message], response: str, input_format: InputFormat
) -> list[int]:
    """Return the token ids of a prompt and its response, however many there are.

    As `chat`, a prompt that is a string is one user message. As `text`, a string and its response
    are joined as they are; messages go through the chat template where there is one. Both are
    tokenised together.
    """
    return encode(tokenizer, _pair_text(tokenizer, prompt, response, input_format))


def _pair_text(
    tokenizer: Any, prompt: str | Sequence[Message], response: str, input_format: InputFormat
) -> str:
    end = tokenizer.eos_token if input_format.append_eos else ""
    if input_format.kind == "text" and isinstance(prompt, str):
        return prompt + response + end
    messages = list(prompt_messages(prompt))
    if input_format.kind == "text" and not getattr(tokenizer, "chat_template", None):
        return plain_text(messages) + response + end
    if input_format.append_eos:
        turn = {"role": "assistant", "content": response}
        return chat_text(tokenizer, [*messages, turn], generation_prompt=False)
    return chat_text(tokenizer, messages, generation_prompt=True) + response


class Text(NamedTuple):
    """A prompt and its response as a preference model reads them.

    Attributes:
        ids: Of the tokens.
        start: Where the response begins among them, from 0 to that of the last token.
    """

    ids: tuple[int, ...]
    start: int

    def cut(self, max_length: int) -> "Text":
        """Return its last tokens, at most so many.

        Example:
            >>> Text((1, 2, 3, 4), start=2).cut(3)
            Text(ids=(2, 3, 4), start=1)
        """
        ids = self.ids[-max_length:]
        return Text(ids, max(0, self.start - len(self.ids) + len(ids)))


class Encoder:
    """Reads comparisons in one input format.

    Args:
        tokenizer: The base's.
        input_format: Chat or text, and how long.
    """

    def __init__(self, tokenizer: Any, input_format: InputFormat) -> None:
        self.tokenizer = tokenizer
        self.input_format = input_format
        self._prompts: dict[str, list[int]] = {}

    def ids(self, prompt: str | Sequence[Message], response: str) -> tuple[int, ...]:
        """Return the token ids of a prompt and a response."""
        return tuple(encode_pair(self.tokenizer, prompt, response, self.input_format))

    def both(self, comparison: Comparison) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the token ids of a comparison's prompt with response A and with response B."""
        prompt = comparison.prompt
        return self.ids(prompt, comparison.response_a), self.ids(prompt, comparison.response_b)

    def text(self, prompt: str | Sequence[Message], response: str) -> Text:
        """Return the ids of a prompt and a response, and where the response begins.

        The prompt reaches as far as the ids are those of the prompt alone as a policy continues it.
        A token that prompt and response share is the response's, as is what ends its turn.
        """
        return self.whole(prompt, response).cut(self.input_format.max_length)

    def texts(self, comparison: Comparison) -> tuple[Text, Text]:
        """Return a comparison's prompt with response A and with response B, as `text` does."""
        prompt = comparison.prompt
        return self.text(prompt, comparison.response_a), self.text(prompt, comparison.response_b)

    def whole(self, prompt: str | Sequence[Message], response: str) -> Text:
        """Return what `text` does, however many tokens there are."""
        ids = encode_whole_pair(self.tokenizer, prompt, response, self.input_format)
        before = self._prompt(prompt)
        shared = next(
            (i for i, (a, b) in enumerate(zip(ids, before, strict=False)) if a != b), None
        )
        start = min(len(ids), len(before)) if shared is None else shared
        return Text(tuple(ids), max(0, min(start, len(ids) - 1)))

    def _prompt(self, prompt: str | Sequence[Message]) -> list[int]:
        """Return the ids of what a policy continues; those of each prompt are kept."""
        if self.input_format.kind == "text" and isinstance(prompt, str):
            before = prompt
        else:
            before = prompt_text(self.tokenizer, prompt_messages(prompt))
        if before not in self._prompts:
            self._prompts[before] = encode(self.tokenizer, before)
        return self._prompts[before]


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many leading ids all sequences share, leaving at least one of each.

    Example:
        >>> common_prefix([[1, 2, 3], [1, 2, 4, 5]]), common_prefix([[1, 2], [1, 2]])
        (2, 1)
    """
    shortest = min(len(sequence) for sequence in sequences) - 1
    first = sequences[0]
    for i in range(shortest):
        if any(sequence[i] != first[i] for sequence in sequences):
            return i
    return max(shortest, 0)
