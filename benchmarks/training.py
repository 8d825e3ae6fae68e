"""How much cheaper a step of training 12 preference models together is than 12 separate steps.

Random LoRA adapters on one base take one step on the same natural pairs: once all together, and
once each alone, as TRL's RewardTrainer does it. Alone they are timed on some adapters only, other
ones in every turn, and the time is multiplied: each does the same work.

    python -m benchmarks.training --tiny                   # seconds, to see how it works
    python -m benchmarks.training --layers quarter         # on the embedded model
    python -m benchmarks.training --dtype bfloat16

Alone, 8 pairs are run at once and padded to the longest of their texts, as TRL does by default.
There is no gradient checkpointing, which TRL has on by default and with which a step would take
more than twice as long where few layers are adapted: without it PyTorch computes no gradients below
them. In bfloat16 attention is the plain one, which is faster on processors than PyTorch's own.

With one thread, seconds are those of the processor, which other programs do not change much.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from benchmarks.adapters import SPREAD_OF_B, SPREAD_OF_HEAD
from benchmarks.floors import tokens, unique_tokens
from benchmarks.options import (
    adapters_timed_option,
    dtype_option,
    layers_option,
    max_length_option,
    pairs_option,
    threads_option,
    tiny_option,
)
from benchmarks.settings import ADAPTERS, DEPTHS, TOLERANCE
from benchmarks.steps import NAMES, Alone, Together, furthest, micro_batches
from benchmarks.texts import find_pairs
from morlaif_hub.bank.classifier import load_classifier
from morlaif_hub.cli.command import COUNT, Report, command, seed_option
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import Cell, paragraphs, table, wrapped
from morlaif_hub.errors import OptionError
from morlaif_hub.evaluation.wording import number
from morlaif_hub.hub.manifest import InputFormat
from morlaif_hub.models.embedded import embedded_model
from morlaif_hub.models.formats import Encoder
from morlaif_hub.models.language_model import load_tokenizer
from morlaif_hub.preference_models.new_adapters import new_adapters
from morlaif_hub.preference_models.settings import GradientSettings
from morlaif_hub.preference_models.tokens import TokenPairs
from morlaif_hub.workspace import Workspace
from tests.tiny import save_tiny

GOALS = {"quarter": 6.0, "all": 3.0}
"""How many times cheaper a step is to be, by a key of `DEPTHS`."""
TINY_LAYERS = 8


@dataclass(frozen=True)
class Plan:
    """What is measured, see the options of `python -m benchmarks.training`."""

    layers: tuple[str, ...]
    batch_size: int
    max_length: int
    steps: int
    adapters_timed: int
    at_once: int
    dtype: str
    seed: int


class Counts(NamedTuple):
    """How many tokens the texts of all steps have.

    Attributes:
        tokens: Of all texts.
        padded: As they are padded alone.
        unique: When a beginning that texts of a step share is counted once.
    """

    tokens: int
    padded: int
    unique: int

    @classmethod
    def of(cls, batches: Sequence[TokenPairs], *, at_once: int) -> "Counts":
        """Return the counts of steps, alone with so many pairs at once."""
        texts = [[*pairs.first, *pairs.second] for pairs in batches]
        padded = 0
        for pairs in batches:
            for some in micro_batches(pairs, at_once):
                lengths = [len(side[i]) for i in some for side in (pairs.first, pairs.second)]
                padded += len(lengths) * max(lengths)
        return cls(sum(map(tokens, texts)), padded, sum(map(unique_tokens, texts)))


@dataclass(frozen=True)
class Found:
    """What was measured with adapters at one depth.

    Attributes:
        depth: A key of `DEPTHS`.
        counts: Of the texts.
        together: Seconds of each step, for all adapters.
        alone: The same, one adapter after the other.
        loss_difference: The largest, of the adapters that were timed alone.
        gradient_difference: The largest, as a share of the largest gradient of its matrix.
    """

    depth: str
    counts: Counts
    together: list[float]
    alone: list[float]
    loss_difference: float
    gradient_difference: float

    @property
    def times_cheaper(self) -> float:
        """How many times cheaper a step together is."""
        return median(self.alone) / median(self.together)

    @property
    def equal(self) -> bool:
        """Whether both ways give the same losses and gradients."""
        return max(self.loss_difference, self.gradient_difference) <= TOLERANCE

    def data(self, *, judged: bool) -> dict[str, Any]:
        """Return all of it as plain values; `judged` says whether the goals are for this base."""
        goal = GOALS.get(self.depth) if judged else None
        return asdict(self) | {
            "counts": self.counts._asdict(),
            "times_cheaper": self.times_cheaper,
            "equal": self.equal,
            "goal": goal,
            "held": None if goal is None else self.times_cheaper >= goal,
        }


class Bench:
    """A base with adapters at one depth, on which steps are measured.

    Args:
        plan: What is measured.
        base: The folder of the base.
        depth: A key of `DEPTHS`.
    """

    def __init__(self, plan: Plan, base: Path, depth: str) -> None:
        pad = load_tokenizer(base).pad_token_id
        settings = GradientSettings(layers=DEPTHS[depth].layers, batch_size=plan.batch_size)
        classifier = load_classifier(
            base,
            dtype=getattr(torch, plan.dtype),
            pad_token_id=pad,
            attention="eager" if plan.dtype == "bfloat16" else None,
        )
        heads = dict.fromkeys(NAMES, np.zeros(classifier.config.get_text_config().hidden_size))
        model = new_adapters(classifier, heads, settings, seed=plan.seed)
        self._plan, self._depth = plan, depth
        self._together = Together(model, settings, pad_token_id=pad)
        self._alone = Alone(
            self._together.rows, model, settings, pad_token_id=pad, at_once=plan.at_once
        )

    def measure(self, batches: Sequence[TokenPairs], *, done: Callable[[int], None]) -> Found:
        """Return what steps take, after one with little text that does not count."""
        self._turn(shortened(batches[0]), 0)
        turns = []
        for number_, pairs in enumerate(batches):
            turns.append(self._turn(pairs, number_))
            done(1)
        together, alone, losses, gradients = (list(its) for its in zip(*turns, strict=True))
        counts = Counts.of(batches, at_once=self._plan.at_once)
        return Found(self._depth, counts, together, alone, max(losses), max(gradients))

    def _turn(self, pairs: TokenPairs, turn: int) -> tuple[float, float, float, float]:
        """Return seconds together and alone, and differences of losses and of gradients."""
        self._draw()
        ours, steps = self._together.step(pairs)
        count = self._plan.adapters_timed
        names = [NAMES[(turn * count + i) % ADAPTERS] for i in range(count)]
        self._draw()
        theirs, losses, gradients = 0.0, [], []
        for name in names:
            seconds, expected = self._alone.step(pairs, name)
            theirs += seconds * ADAPTERS / count
            losses.append(abs(steps[name].loss - expected.loss))
            gradients.append(furthest(steps[name].gradients, expected.gradients))
        return ours, theirs, max(losses), max(gradients)

    @torch.no_grad()
    def _draw(self) -> None:
        """Give the adapters their start: random numbers that change scores as trained ones do."""
        generator = torch.Generator().manual_seed(self._plan.seed)
        for parameters in self._together.rows.parameters.values():
            for name, parameter in parameters.items():
                spread = SPREAD_OF_B if "lora_B" in name else SPREAD_OF_HEAD
                if "lora_A" in name:
                    spread = parameter.shape[1] ** -0.5
                parameter.normal_(0.0, spread, generator=generator)


def shortened(pairs: TokenPairs) -> TokenPairs:
    """Return pairs with their texts cut after a few tokens."""
    return TokenPairs(
        [ids[-8:] for ids in pairs.first], [ids[-9:] for ids in pairs.second], pairs.probabilities
    )


def batches_of(
    plan: Plan, base: Path, source: str | None, *, tiny: bool
) -> tuple[list[TokenPairs], str]:
    """Return a batch of pairs for each step, with random labels, and where the texts are from."""
    found = find_pairs(source, tiny=tiny, seed=plan.seed)
    needed = plan.batch_size * plan.steps
    if len(found.comparisons) < needed:
        raise OptionError(f"{needed} pairs are needed, {found.origin} has fewer")
    how = InputFormat(kind="chat", append_eos=True, max_length=plan.max_length)
    encoder = Encoder(load_tokenizer(base), how)
    draw = np.random.default_rng(plan.seed)
    batches = []
    for start in range(0, needed, plan.batch_size):
        both = [encoder.both(c) for c in found.comparisons[start : start + plan.batch_size]]
        labels = draw.choice([0.1, 0.5, 0.7, 0.9], size=len(both))
        batches.append(TokenPairs([a for a, _ in both], [b for _, b in both], labels))
    return batches, found.origin


@command("training", with_models=True)
@tiny_option
@layers_option(GOALS)
@pairs_option("train on")
@click.option(
    "--batch-size", type=COUNT, metavar="N", default=16, show_default=True, help="Pairs per step."
)
@max_length_option
@click.option("--steps", type=COUNT, metavar="N", help="The median counts. [default: 5; tiny: 1]")
@adapters_timed_option("that take a step alone in each turn")
@click.option(
    "--at-once",
    type=COUNT,
    metavar="N",
    default=8,
    show_default=True,
    help="Pairs that a step alone runs at once; 8 is TRL's default.",
)
@dtype_option("Of the base; adapters are float32.")
@threads_option
@seed_option
def main(
    workspace: Workspace,
    *,
    tiny: bool,
    pairs: str | None,
    **options: Any,
) -> Report:
    """Show how much cheaper a step of 12 preference models together is than 12 separate steps."""
    del workspace  # nothing of it is used
    options["steps"] = options["steps"] or (1 if tiny else 5)
    plan = Plan(**options)
    with TemporaryDirectory(prefix="morlaif-training-") as place:
        base = save_tiny(Path(place), layers=TINY_LAYERS) if tiny else embedded_model()
        batches, origin = batches_of(plan, base, pairs, tiny=tiny)
        found = []
        with Progress() as progress:
            for depth in plan.layers:
                progress.start(f"LoRA on {DEPTHS[depth].words}", plan.steps)
                found.append(Bench(plan, base, depth).measure(batches, done=progress.advance))
    return report(plan, found, origin=origin, tiny=tiny)


def report(plan: Plan, found: Sequence[Found], *, origin: str, tiny: bool) -> Report:
    """Return all of it as a report, which fails if float32 losses or gradients differ."""
    name = "a tiny model" if tiny else "the embedded model"
    equal = all(its.equal for its in found)
    data: dict[str, Any] = {
        "base": name,
        "adapters": ADAPTERS,
        "pairs_from": origin,
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "versions": {n: version(n) for n in ("torch", "transformers", "peft")},
        "plan": asdict(plan),
        "found": [its.data(judged=not tiny) for its in found],
        "equal": equal,
    }
    said = (
        f"{ADAPTERS} random adapters on {name} in {plan.dtype}, {data['threads']} threads; steps "
        f"of {plan.batch_size} pairs, medians of {plan.steps}. Pairs: {origin}. Alone, "
        f"{plan.adapters_timed} of the adapters took a step in each turn, and their time was "
        "multiplied."
    )
    rounded = plan.dtype != "float32"
    text = paragraphs(wrapped(said), shown(found, judged=not tiny))
    return Report(data, text, exit_code=int(not equal and not rounded))


def shown(found: Sequence[Found], *, judged: bool) -> str:
    """Return a table of what steps take."""
    header = ["layers", "padding", "sharing", "alone", "together", "x cheaper", "loss", "gradient"]
    rows: list[list[Cell]] = []
    for its in found:
        goal = GOALS.get(its.depth)
        verdict = f"{goal:g}: {'' if its.times_cheaper >= goal else 'NOT '}held" if goal else ""
        rows.append(
            [
                its.depth,
                its.counts.padded / its.counts.tokens,
                its.counts.tokens / its.counts.unique,
                number(median(its.alone), 2),
                number(median(its.together), 2),
                its.times_cheaper,
                f"{its.loss_difference:.1e}",
                f"{its.gradient_difference:.1e}",
                *([verdict] if judged else []),
            ]
        )
    said = (
        "padding: tokens with the padding that they have alone, over tokens; sharing: tokens over "
        "those that are left when shared beginnings are counted once; alone, together: seconds of "
        "a step of all; loss, gradient: the largest difference, of gradients as a share of the "
        "largest of a matrix."
    )
    return table((*header, "goal") if judged else tuple(header), rows) + "\n" + wrapped(said)


if __name__ == "__main__":
    main()
