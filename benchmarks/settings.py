"""One setting of the benchmark of a bank: where the adapters are, and which texts they score."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.adapters import (
    bank_engine,
    base_classifier,
    save_random_adapters,
    with_adapters,
)
from benchmarks.floors import Counts, Texts, Work, by_length, last_layer_share
from benchmarks.loops import BATCH, Loop, Opponents
from benchmarks.texts import natural_list
from morlaif_hub.bank.engine import Engine, EngineSettings
from morlaif_hub.bank.trunk import layer_list
from morlaif_hub.comparisons import Comparison
from morlaif_hub.hub.manifest import InputFormat
from morlaif_hub.models.formats import Encoder
from morlaif_hub.models.language_model import load_tokenizer
from morlaif_hub.preference_models.settings import GradientSettings

ADAPTERS = 12
RESPONSES = (1, 2, 8)
TOLERANCE = 1e-4
OVER_FLOOR = 1.1
FEW_TOKENS = 16


class Depth(NamedTuple):
    """Where adapters are.

    Attributes:
        words: The same in words.
        layers: The same as `GradientSettings` takes it.
        goals: How many times faster than opponent a the engine is to be, by responses to a prompt.
    """

    words: str
    layers: str
    goals: dict[int, float]


DEPTHS = {
    "all": Depth("all layers", "all", {1: 5, 2: 8, 8: 12}),
    "quarter": Depth("the top quarter", "top:0.25", {1: 17, 2: 25, 8: 40}),
    "tenth": Depth("the top tenth", "top:0.1", {1: 36, 2: 50, 8: 80}),
}


@dataclass(frozen=True)
class Plan:
    """What is measured, see the options of `python -m benchmarks.bank`."""

    layers: tuple[str, ...]
    responses: tuple[int, ...]
    texts: int
    max_length: int
    repeats: int
    adapters_timed: int
    opponents: tuple[str, ...]
    dtype: str
    seed: int

    def texts_of(
        self, base: Path, pairs: Sequence[Comparison], *, responses: int
    ) -> list[tuple[int, ...]]:
        """Return a list with so many responses to each prompt, as a base's tokens."""
        how = InputFormat(kind="chat", append_eos=True, max_length=self.max_length)
        encoder = Encoder(load_tokenizer(base), how)
        return natural_list(pairs, encoder, responses=responses, texts=self.texts)

    def timed(self, opponent: str) -> int:
        """Return on how many adapters an opponent is timed; a batch that is mixed has two."""
        return max(self.adapters_timed, 2 if opponent == "c" else 1)


class Goal(NamedTuple):
    """What a number is to be, at least or at most.

    Attributes:
        name: Of the number.
        value: What it is.
        limit: What it is to be.
        held: Whether it is.
    """

    name: str
    value: float
    limit: float
    held: bool


class Rounded(NamedTuple):
    """How far the scores of the engine in bfloat16 are off those in float32.

    Attributes:
        largest: Difference, in standard deviations of an adapter's scores.
        rms: The root of the mean square of the differences, in the same unit.
    """

    largest: float
    rms: float


@dataclass(frozen=True)
class Setting:
    """What was measured in one setting.

    Attributes:
        depth: A key of `DEPTHS`.
        responses: To each prompt.
        counts: Of the list.
        work: Of the bank.
        seconds: Of each turn, of `engine`, `stock` (the engine with PyTorch's own product),
            `bfloat16`, `base` (one plain forward) and the opponents, for all adapters.
        difference: The largest of the engine's scores to those of the first opponent, on the
            adapters that it was timed on.
        how: How the engine scored: method, why it is not packed, kernel.
        rounded: Of bfloat16; None if it was not measured.
    """

    depth: str
    responses: int
    counts: Counts
    work: Work
    seconds: dict[str, list[float]]
    difference: float
    how: dict[str, str]
    rounded: Rounded | None

    @property
    def equal(self) -> bool:
        """Whether the engine's scores are those of the opponent."""
        return self.difference <= TOLERANCE

    def median(self, who: str) -> float:
        """Return the median of the seconds of somebody who was timed."""
        return median(self.seconds[who])

    def times_faster(self, opponent: str) -> float | None:
        """Return how many times faster the engine is; None if the opponent was not timed."""
        if opponent not in self.seconds:
            return None
        return self.median(opponent) / self.median("engine")

    def base_forwards(self, who: str) -> float:
        """Return a time in base forwards over the same texts without padding."""
        packed = self.median("base") * self.counts.tokens / self.counts.padded_to_batch
        return self.median(who) / packed

    @property
    def floor(self) -> float:
        """The base forwards that all scores take at least, without a faster matrix product."""
        return self.work.floor(self.counts.unique_share)

    @property
    def limit(self) -> float:
        """How many times faster than opponent a an engine at the floor is, with its product."""
        return self.work.adapters * self.counts.waste / self.floor

    @property
    def times_faster_in_bfloat16(self) -> float:
        """How many times faster the engine is in bfloat16 than in float32."""
        return self.median("engine") / self.median("bfloat16")

    @property
    def goals(self) -> list[Goal]:
        """What the numbers are to be, on the embedded model."""
        off = self.base_forwards("stock") / self.floor
        goals = [
            Goal("stock / floor", off, OVER_FLOOR, off <= OVER_FLOOR),
            Goal("difference", self.difference, TOLERANCE, self.equal),
        ]
        faster, limit = self.times_faster("a"), DEPTHS[self.depth].goals[self.responses]
        if faster is not None:
            goals.insert(0, Goal("times faster than a", faster, limit, faster >= limit))
        return goals

    def data(self, *, judged: bool) -> dict[str, Any]:
        """Return all of it as plain values.

        Args:
            judged: Whether the goals are for this base.
        """
        factors = {
            "padding_waste": self.counts.waste,
            "prefix_sharing": 1 / self.counts.unique_share,
            "trunk_sharing": self.work.trunk_factor,
        }
        others = [who for who in self.seconds if who != "engine"]
        return {
            "layers": self.depth,
            "responses": self.responses,
            "counts": asdict(self.counts),
            "work": asdict(self.work),
            "factors": factors,
            "engine": self.how,
            "seconds": {
                who: {"median": median(all_), "min": min(all_), "max": max(all_), "turns": all_}
                for who, all_ in self.seconds.items()
            },
            "times_faster_than": {who: self.times_faster(who) for who in others},
            "base_forwards": {who: self.base_forwards(who) for who in self.seconds},
            "floor": self.floor,
            "times_faster_than_a_at_the_floor": self.limit,
            "difference": self.difference,
            "bfloat16": self.rounded and self.rounded._asdict(),
            "goals": [goal._asdict() for goal in self.goals] if judged else [],
        }


class Bench:
    """A base and lists of texts for it, on which settings are measured.

    Args:
        plan: What is measured.
        base: The folder of the base.
        pairs: What the texts are from.
        scratch: Where adapters are written.
    """

    def __init__(
        self, plan: Plan, base: Path, pairs: Sequence[Comparison], *, scratch: Path
    ) -> None:
        self._plan = plan
        self._base = base
        self._scratch = scratch
        self._lists = {n: plan.texts_of(base, pairs, responses=n) for n in plan.responses}
        model = base_classifier(base, dtype=torch.float32)
        self._layers = len(layer_list(model) or ())
        self._share = last_layer_share(model)
        self._pad = model.config.get_text_config().pad_token_id
        self._seconds_per_token = self._pace(model)

    def estimate(self) -> float:
        """Return about how many seconds all settings take, loading not counted."""
        tokens = 0.0
        for depth in self._plan.layers:
            for texts in self._lists.values():
                counts = Counts.of(texts, batch=BATCH)
                engines = 3 if self._plan.dtype == "bfloat16" else 2
                floor = self._work(depth).floor(counts.unique_share)
                tokens += engines * floor * counts.tokens + counts.padded_to_batch
                for who in self._plan.opponents:
                    padded = counts.padded_to_list if who == "a" else counts.padded_to_batch
                    tokens += self._plan.timed(who) * padded
        return tokens * self._plan.repeats * self._seconds_per_token

    def settings(self, depth: str, *, done: Callable[[int], None]) -> Iterator[Setting]:
        """Yield what was measured with adapters at one depth, for each list.

        Args:
            depth: A key of `DEPTHS`.
            done: Told after each turn.
        """
        adapters = save_random_adapters(
            self._scratch / depth,
            self._base,
            count=ADAPTERS,
            layers=DEPTHS[depth].layers,
            seed=self._plan.seed,
        )
        engines = {"engine": bank_engine(self._base, adapters)}
        if engines["engine"].kernel != "torch":
            stock = EngineSettings(kernel="torch")
            engines["stock"] = bank_engine(self._base, adapters, settings=stock)
        if self._plan.dtype == "bfloat16":
            engines["bfloat16"] = bank_engine(self._base, adapters, dtype=torch.bfloat16)
        model = with_adapters(base_classifier(self._base, dtype=torch.float32), adapters)
        contest = Contest(
            engines, Opponents(model, pad_token_id=self._pad), list(adapters), self._plan
        )
        how = {name: str(getattr(engines["engine"], name)) for name in ("method", "why", "kernel")}
        for responses, texts in self._lists.items():
            outcome = contest.run(texts, done=done)
            yield Setting(
                depth=depth,
                responses=responses,
                counts=Counts.of(texts, batch=BATCH),
                work=self._work(depth),
                how=how,
                **outcome._asdict(),
            )

    def _work(self, depth: str) -> Work:
        first = GradientSettings(layers=DEPTHS[depth].layers).adapted(self._layers)[0]
        return Work(first, self._layers, ADAPTERS, self._share)

    def _pace(self, model: Any) -> float:
        """Return the seconds that a base forward takes for a token, by one batch of usual texts."""
        texts = next(iter(self._lists.values()))
        middle = by_length(texts)[(len(texts) - BATCH) // 2 :][:BATCH]
        batch = torch.tensor([list(texts[middle[0]])] * len(middle))
        with torch.inference_mode():
            model(input_ids=batch[:1], use_cache=False)  # the first call is slower
            seconds, _ = _timed(lambda: model(input_ids=batch, use_cache=False))
        return seconds / batch.numel()


class Outcome(NamedTuple):
    """What a contest gave, see `Setting`."""

    seconds: dict[str, list[float]]
    difference: float
    rounded: Rounded | None


class Contest:
    """Engines and opponents that score the same texts in turns.

    Args:
        engines: By name; `engine` is the one that counts, and also `stock` if that is not there.
        opponents: Score with some of the adapters.
        names: Of all adapters, in the engines' order.
        plan: How often, and on how many adapters.
    """

    def __init__(
        self, engines: dict[str, Engine], opponents: Opponents, names: list[str], plan: Plan
    ) -> None:
        self._engines = engines
        self._opponents = opponents
        self._names = names
        self._plan = plan
        ways: dict[str, Loop] = {
            "a": opponents.hot_swap,
            "b": opponents.sorted_hot_swap,
            "c": opponents.mixed,
        }
        self._ways = {who: ways[who] for who in sorted(plan.opponents)}

    def run(self, texts: Texts, *, done: Callable[[int], None]) -> Outcome:
        """Return what a list takes, after a first turn with little text that does not count."""
        self._turn([text[:FEW_TOKENS] for text in texts[:BATCH]], 0)
        seconds: dict[str, list[float]] = {}
        difference, rounded = 0.0, None
        for turn in range(self._plan.repeats):
            taken, scores = self._turn(texts, turn)
            for who, its in taken.items():
                seconds.setdefault(who, []).append(its)
            difference = max(difference, self._difference(scores, turn))
            if "bfloat16" in scores:
                rounded = rounding(scores["bfloat16"], scores["engine"])
            done(1)
        seconds.setdefault("stock", seconds["engine"])
        return Outcome(seconds, difference, rounded)

    def _turn(self, texts: Texts, turn: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Return the seconds for all adapters, and scores, of each engine and opponent."""
        seconds: dict[str, float] = {}
        scores: dict[str, Tensor] = {}
        for who, engine in self._engines.items():
            seconds[who], scores[who] = _timed(partial(engine.score, texts))
        seconds["base"], _ = _timed(partial(self._opponents.base_forward, texts))
        for who, way in self._ways.items():
            names = self._timed_names(who, turn)
            taken, scores[who] = _timed(partial(way, texts, names))
            seconds[who] = taken * len(self._names) / len(names)
        return seconds, scores

    def _timed_names(self, who: str, turn: int) -> list[str]:
        """Return the adapters on which an opponent is timed: others in each turn."""
        count = self._plan.timed(who)
        return [self._names[(turn * count + i) % len(self._names)] for i in range(count)]

    def _difference(self, scores: dict[str, Tensor], turn: int) -> float:
        who = next(iter(self._ways))
        columns = [self._names.index(name) for name in self._timed_names(who, turn)]
        ours = [scores[name][:, columns] for name in ("engine", "stock") if name in scores]
        return max(float((its - scores[who]).abs().max().nan_to_num(torch.inf)) for its in ours)


def rounding(rounded: Tensor, exact: Tensor) -> Rounded:
    """Return how far scores in bfloat16 are off, both of shape (texts, adapters)."""
    off = (rounded - exact) / exact.std(dim=0)
    return Rounded(float(off.abs().max()), float(off.square().mean().sqrt()))


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result
