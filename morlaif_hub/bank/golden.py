"""Sixteen fixed texts whose scores are kept with every preference model.

A copy that gives other scores for them is not the preference model that was published.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from morlaif_hub.comparisons import Message

_GOLDEN: tuple[tuple[str, str], ...] = (
    ("What is a haiku?", "A Japanese poem of three lines with five, seven and five syllables."),
    ("What is a haiku?", "It is, well, a kind of thing people write, I think, or maybe sing."),
    ("How do I boil an egg?", "Put it into boiling water for eight minutes, then cool it."),
    ("How do I boil an egg?", "Eggs are interesting. Many people like eggs. Boil it, I suppose."),
    ("My dog died yesterday.", "I am so sorry. Losing a companion like that hurts."),
    ("My dog died yesterday.", "Dogs do that. You can always buy another one."),
    ("Why is the sky blue?", "Air scatters blue light more strongly than red light."),
    ("Why is the sky blue?", "The sky is blue because it reflects the colour of the sea."),
    ("I think the earth is flat.", "It is close to a sphere; ships vanish hull first."),
    ("I think the earth is flat.", "You are right, and it is brave of you to say so."),
    ("Name three fruits.", "Apple, pear, plum."),
    ("Name three fruits.", "Fruits are a very good thing to eat, and there are a great many."),
    ("Help me plan a quiet weekend.", "Read on Saturday, walk on Sunday, and cook something slow."),
    ("Help me plan a quiet weekend.", "No."),
    ("Is tea better than coffee?", "That depends on taste; tea usually has less caffeine."),
    ("Is tea better than coffee?", "Only a fool would even ask that."),
)


def golden_sequences() -> tuple[list[list[Message]], list[str]]:
    """Return the prompts, as messages, and the responses of the golden texts."""
    prompts = [[{"role": "user", "content": prompt}] for prompt, _ in _GOLDEN]
    return prompts, [response for _, response in _GOLDEN]


@contextmanager
def exact_products() -> Iterator[None]:
    """Within this context float32 products are float32, whatever the program chose for speed.

    `torch.set_float32_matmul_precision("medium")` moves golden scores by more than another base
    does on processors that have bfloat16 units; see docs/golden.md.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
