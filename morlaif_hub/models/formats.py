"""Text in, tokens out: one place decides what a prompt and a response look like to a model."""

from collections.abc import Sequence
from typing import Any

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


class Encoder:
    """Reads comparisons in one input format.

    Args:
        tokenizer: The base's.
        input_format: Chat or text, and how long.
    """

    def __init__(self, tokenizer: Any, input_format: InputFormat) -> None:
        self.tokenizer = tokenizer
        self.input_format = input_format

    def ids(self, prompt: str | Sequence[Message], response: str) -> tuple[int, ...]:
        """Return the token ids of a prompt and a response."""
        return tuple(encode_pair(self.tokenizer, prompt, response, self.input_format))

    def both(self, comparison: Comparison) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the token ids of a comparison's prompt with response A and with response B."""
        prompt = comparison.prompt
        return self.ids(prompt, comparison.response_a), self.ids(prompt, comparison.response_b)


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
