"""Lists of texts as a bank meets them: people's pairs, or made-up ones of similar lengths."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from morlaif_hub.comparisons import Comparison, Prompt, read_comparisons, read_prompts
from morlaif_hub.errors import OptionError
from morlaif_hub.models.formats import Encoder, Text

BESIDE = Path(__file__).parents[2] / "shared/data/hh-rlhf-harmless-dev.jsonl.gz"

# Of hh-rlhf in tokens, at most 512 each: the median is 129, the 95th percentile 424, and a prompt
# is three quarters of its text. A word is 1.3 tokens.
MEDIAN_WORDS = 100
SPREAD = 0.72
PROMPT_SHARE = 0.75
MADE_UP = 1000


@dataclass(frozen=True)
class Pairs:
    """Comparisons, and where they are from.

    Attributes:
        comparisons: Each of a prompt and two responses.
        origin: In words.
    """

    comparisons: tuple[Comparison, ...]
    origin: str


def find_pairs(source: str | None, *, tiny: bool, seed: int) -> Pairs:
    """Return the pairs of a source, else those beside the repository, else made-up ones.

    Args:
        source: As `read_comparisons` takes it; None if none was named.
        tiny: Whether they are for a tiny model, whose tokens are hardly more than letters: made-up
            ones are then short, and only a named source is read.
        seed: Of what is made up, and of the order.

    Raises:
        DataError, MissingColumnError, HubError: As for `read_comparisons`; rows that cannot be
            read are left out.
    """
    beside = str(BESIDE) if BESIDE.is_file() and not tiny else None
    chosen = source or beside
    if chosen is None:
        made = made_up_pairs(MADE_UP, median=MEDIAN_WORDS / (10 if tiny else 1), seed=seed)
        return Pairs(tuple(made), "made up, with lengths like those of hh-rlhf")
    bad: list[str] = []
    comparisons = list(read_comparisons(chosen, on_bad=bad.append))
    random.Random(seed).shuffle(comparisons)
    origin = f"{Path(chosen).name}, {len(comparisons):,} pairs in an order of the seed"
    if bad:
        origin += f", {len(bad):,} rows left out that cannot be read"
    return Pairs(tuple(comparisons), origin)


def made_up_pairs(count: int, *, median: float, seed: int) -> list[Comparison]:
    """Return pairs of random words whose lengths are distributed as those of real ones.

    Args:
        count: How many.
        median: Words of a prompt with its response.
        seed: Of all that is drawn.
    """
    draw = random.Random(seed)
    words = sorted({w for prompt in read_prompts("everyday") for w in prompt[0]["content"].split()})

    def text(median_words: float) -> str:
        length = max(round(draw.lognormvariate(math.log(median_words), SPREAD)), 3)
        return " ".join(draw.choices(words, k=length))

    return [
        Comparison.from_choice(
            text(median * PROMPT_SHARE),
            f"{number} {text(median * (1 - PROMPT_SHARE))}",
            f"{number + 1} {text(median * (1 - PROMPT_SHARE))}",
        )
        for number in range(0, 2 * count, 2)
    ]


def natural_list(
    pairs: Sequence[Comparison], encoder: Encoder, *, responses: int, texts: int
) -> list[tuple[int, ...]]:
    """Return the token ids of `natural_texts`."""
    found = natural_texts(pairs, encoder, responses=responses, texts=texts)
    return [text.ids for text in found]


def natural_texts(
    pairs: Sequence[Comparison], encoder: Encoder, *, responses: int, texts: int
) -> list[Text]:
    """Return a list of texts, some responses to each prompt, prompt by prompt.

    The first two responses to a prompt are its own. Further ones are those of the pairs after it:
    they do not answer it, but have the lengths of responses.

    Args:
        pairs: Each serves for one prompt, from the first one on.
        encoder: Makes tokens of them.
        responses: To each prompt.
        texts: How many there are in all, at the most.

    Raises:
        OptionError: If there are too few pairs, or `texts` is not enough for one prompt.
    """
    prompts = texts // responses
    if not 0 < prompts <= len(pairs):
        raise OptionError(
            f"{texts} texts with {responses} responses to a prompt need {prompts} pairs and at "
            f"least one; there are {len(pairs)}"
        )
    made = []
    for index in range(prompts):
        prompt = pairs[index].prompt
        made += [encoder.text(prompt, r) for r in _responses(pairs, index, count=responses)]
    return made


def _responses(pairs: Sequence[Comparison], index: int, *, count: int) -> list[str]:
    found: dict[str, None] = {}
    for ahead in range(len(pairs)):
        pair = pairs[(index + ahead) % len(pairs)]
        found |= dict.fromkeys((pair.response_a, pair.response_b))
        if len(found) >= count:
            break
    return list(found)[:count]


def prompts_up_to(
    pairs: Sequence[Comparison], encoder: Encoder, *, tokens: int, count: int
) -> list[Prompt]:
    """Return the first different prompts that are not longer than so many tokens.

    Raises:
        OptionError: If there are fewer than `count`.
    """
    short: dict[str, Prompt] = {}
    for pair in pairs:
        if len(short) == count:
            break
        if len(encoder.ids(pair.prompt, "")) <= tokens:
            short.setdefault(pair.prompt_id, pair.prompt)
    if len(short) < count:
        raise OptionError(
            f"{count} prompts of at most {tokens} tokens are needed, there are {len(short)}"
        )
    return list(short.values())
