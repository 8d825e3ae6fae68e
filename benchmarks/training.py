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

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.adapters import SPREAD_OF_B, SPREAD_OF_HEAD
from benchmarks.floors import tokens, unique_tokens
from benchmarks.settings import ADAPTERS, DEPTHS, TOLERANCE
from benchmarks.texts import find_pairs
from morlaif_hub.bank.classifier import load_classifier
from morlaif_hub.bank.layout import Ids
from morlaif_hub.bank.training_rows import Item, TrainingRows
from morlaif_hub.cli.command import COUNT, Report, command, seed_option
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import Cell, paragraphs, table, wrapped
from morlaif_hub.errors import OptionError
from morlaif_hub.evaluation.wording import number
from morlaif_hub.hub.manifest import InputFormat
from morlaif_hub.models.embedded import embedded_model
from morlaif_hub.models.formats import Encoder
from morlaif_hub.models.language_model import load_tokenizer
from morlaif_hub.preference_models.learner import Learner, Work
from morlaif_hub.preference_models.losses import pair_losses
from morlaif_hub.preference_models.new_adapters import new_adapters, slot_of
from morlaif_hub.preference_models.settings import GradientSettings
from morlaif_hub.preference_models.together import ROW_TOKENS
from morlaif_hub.preference_models.tokens import TokenPairs
from morlaif_hub.workspace import Workspace
from tests.tiny import save_tiny

GOALS = {"quarter": 6.0, "all": 3.0}
"""How many times cheaper a step is to be, by a key of `DEPTHS`."""
TINY_LAYERS = 8
NAMES = tuple(f"principle-{i:02}" for i in range(ADAPTERS))


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


class Step(NamedTuple):
    """What one step of one adapter gave.

    Attributes:
        loss: Its mean over the pairs.
        gradients: By parameter, before they are cut.
    """

    loss: float
    gradients: dict[str, Tensor]


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


class Together:
    """One step of all adapters, by this package."""

    def __init__(self, model: Any, settings: GradientSettings, *, pad_token_id: int) -> None:
        self.rows = TrainingRows(model, [slot_of(n) for n in NAMES], pad_token_id=pad_token_id)
        self._settings = settings

    def step(self, pairs: TokenPairs) -> tuple[float, dict[str, Step]]:
        """Return the seconds of a step, and what it gave, by principle."""
        nothing = TokenPairs([], [], np.array([]))
        learners = {
            slot_of(name): Learner(
                name,
                slot_of(name),
                self.rows.parameters[slot_of(name)],
                work=Work(pairs, nothing),
                settings=self._settings,
            )
            for name in NAMES
        }
        everything = range(len(pairs))
        scores: dict[str, dict[Ids, Tensor]] = {slot: {} for slot in learners}
        start = clock()
        items = [
            (self.rows.read(a), self.rows.read(b))
            for a, b in zip(pairs.first, pairs.second, strict=True)
        ]
        places: dict[Item, list[int]] = {}
        for place, item in enumerate(items):
            places.setdefault(item, []).append(place)

        def look(row: list[Item], slot: str, its: dict[Ids, Tensor]) -> None:
            of_row = [place for item in row for place in places[item]]
            sides = [(its[items[i][0]], its[items[i][1]]) for i in of_row]
            learners[slot].learn(sides, of_row, everything)
            scores[slot].update({text: score.detach() for text, score in its.items()})

        with self.rows.ready():
            for row in self.rows.rows(list(places), ROW_TOKENS):
                self.rows.each(row, list(learners), partial(look, row))
        gradients = {slot: gradients_of(self.rows.parameters[slot]) for slot in learners}
        for learner in learners.values():
            learner.step(everything, 1.0)
        seconds = clock() - start
        labels = torch.tensor(pairs.probabilities, dtype=torch.float32)
        found = {}
        for slot, learner in learners.items():
            d = torch.stack([scores[slot][a] - scores[slot][b] for a, b in items])
            loss = float(pair_losses(d.cpu(), labels, loss=self._settings.loss).mean())
            found[learner.principle] = Step(loss, gradients[slot])
        return seconds, found


class Alone:
    """One step of one adapter after the other, by PEFT and PyTorch, as TRL does it.

    Args:
        rows: Of the same model; its heads read float32 there and here.
        model: A PEFT model with the adapters.
        settings: How to train.
        pad_token_id: What texts are padded with.
        at_once: Pairs of a step that are run at once.
    """

    def __init__(
        self,
        rows: TrainingRows,
        model: Any,
        settings: GradientSettings,
        *,
        pad_token_id: int,
        at_once: int,
    ) -> None:
        self._rows, self._model = rows, model
        self._settings, self._pad, self._at_once = settings, pad_token_id, at_once

    def step(self, pairs: TokenPairs, name: str) -> tuple[float, Step]:
        """Return the seconds of a step of one adapter, and what it gave."""
        with self._rows.ready():
            self._model.set_adapter(slot_of(name))
            return self._step(pairs, self._rows.parameters[slot_of(name)])

    def _step(self, pairs: TokenPairs, trained: dict[str, nn.Parameter]) -> tuple[float, Step]:
        rate = self._settings.rate
        optimizer = torch.optim.AdamW(trained.values(), lr=rate, weight_decay=0.0)
        labels = torch.tensor(pairs.probabilities, dtype=torch.float32)
        loss = 0.0
        start = clock()
        for some in micro_batches(pairs, self._at_once):
            texts = [pairs.first[i] for i in some] + [pairs.second[i] for i in some]
            first, second = self._scores(texts).chunk(2)
            losses = pair_losses(first - second, labels[some], loss=self._settings.loss)
            part = losses.sum() / len(pairs)
            part.backward()
            loss += part.item()
        gradients = gradients_of(trained)
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return clock() - start, Step(loss, gradients)

    def _scores(self, texts: Sequence[Ids]) -> Tensor:
        rows = [torch.tensor(text) for text in texts]
        ids = pad_sequence(rows, batch_first=True, padding_value=self._pad)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        outputs = self._model(input_ids=ids, attention_mask=mask, use_cache=False)
        logits: Tensor = outputs.logits[:, 0].float()
        return logits


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


def clock() -> float:
    """Return seconds since some moment: of the processor, if there is one thread."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def micro_batches(pairs: TokenPairs, at_once: int) -> Iterator[list[int]]:
    """Yield the places of pairs that are run at once alone."""
    for start in range(0, len(pairs), at_once):
        yield list(range(start, min(start + at_once, len(pairs))))


def gradients_of(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return copies of gradients by parameter."""
    return {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return how far gradients are apart, as a share of the largest of their parameter."""
    shares = [
        float((found[name] - its).abs().max() / its.abs().max().clamp(min=1e-30))
        for name, its in expected.items()
    ]
    return max(shares)


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
@click.option("--tiny", is_flag=True, help="On a tiny model and short texts; else on the embedded.")
@click.option(
    "--layers",
    type=click.Choice(list(DEPTHS)),
    multiple=True,
    default=list(GOALS),
    show_default=True,
    help="Where the adapters are, from the top; can be given several times.",
)
@click.option("--pairs", metavar="SOURCE", help="Comparisons to train on.")
@click.option(
    "--batch-size", type=COUNT, metavar="N", default=16, show_default=True, help="Pairs per step."
)
@click.option(
    "--max-length", type=COUNT, metavar="N", default=512, show_default=True, help="In tokens."
)
@click.option("--steps", type=COUNT, metavar="N", help="The median counts. [default: 5; tiny: 1]")
@click.option(
    "--adapters-timed",
    type=click.IntRange(1, ADAPTERS),
    metavar="N",
    default=1,
    show_default=True,
    help="Of the 12, that take a step alone in each turn.",
)
@click.option(
    "--at-once",
    type=COUNT,
    metavar="N",
    default=8,
    show_default=True,
    help="Pairs that a step alone runs at once; 8 is TRL's default.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the base; adapters are float32.",
)
@click.option("--threads", type=COUNT, metavar="N", help="Of torch. [default: torch's own choice]")
@seed_option
def main(
    workspace: Workspace,
    *,
    tiny: bool,
    pairs: str | None,
    threads: int | None,
    **options: Any,
) -> Report:
    """Show how much cheaper a step of 12 preference models together is than 12 separate steps."""
    del workspace  # nothing of it is used
    if threads:
        torch.set_num_threads(threads)
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
