"""One step of training 12 adapters: all together, as this package does it, and each alone."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.settings import ADAPTERS
from morlaif_hub.bank.layout import Ids
from morlaif_hub.bank.training_rows import Item, TrainingRows
from morlaif_hub.preference_models.learner import Learner, Work
from morlaif_hub.preference_models.losses import pair_losses
from morlaif_hub.preference_models.new_adapters import slot_of
from morlaif_hub.preference_models.settings import GradientSettings
from morlaif_hub.preference_models.together import ROW_TOKENS
from morlaif_hub.preference_models.tokens import TokenPairs

NAMES = tuple(f"principle-{i:02}" for i in range(ADAPTERS))


class Step(NamedTuple):
    """What one step of one adapter gave.

    Attributes:
        loss: Its mean over the pairs.
        gradients: By parameter, before they are cut.
    """

    loss: float
    gradients: dict[str, Tensor]


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
