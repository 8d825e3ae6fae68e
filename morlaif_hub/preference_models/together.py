"""Training several LoRA preference models of one base in one run.

What the base does below the adapters is computed once for all of them, and so is what texts begin
with in common; padding is not computed at all. Losses and gradients are those of training each one
alone on the same batches, up to the order in which floats are added.

Source:
    arXiv:2312.02515 (mLoRA), which trains adapters of one base side by side, each on texts of its
    own; here the texts are the same, so that most of what the base makes of them is as well.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from morlaif_hub.bank.layout import Ids
from morlaif_hub.bank.training_rows import Item, TrainingRows
from morlaif_hub.bank.trunk import out_of_memory
from morlaif_hub.errors import TrainingError
from morlaif_hub.preference_models.learner import Learner, Work
from morlaif_hub.preference_models.losses import Check, Trained
from morlaif_hub.preference_models.new_adapters import slot_of
from morlaif_hub.preference_models.saved_state import Digest, SavedState, State
from morlaif_hub.preference_models.settings import GradientSettings
from morlaif_hub.preference_models.tokens import Array, TokenPairs

_LOG = logging.getLogger("morlaif_hub.preference_models")

ROW_TOKENS = 4096
"""That are computed at once with gradients, beginnings that texts share counted once."""
CHECKS_IN_EPOCH = 4
SAVE_SECONDS = 300.0
"""Between two states that are kept, apart from those at checks."""

Progress = Callable[[str, int], None]
"""Told a principle's name and how many of its `total_steps` are behind it since the last time."""
Checked = Callable[[int, Mapping[str, Check]], None]
"""Told after which step, and what was found on the validation pairs, by principle."""
Look = Callable[[list[Item], str, dict[Ids, Tensor]], None]


def total_steps(work: Mapping[str, Work], settings: GradientSettings) -> int:
    """Return how many steps `train_together` takes at most: those of the union of all pairs."""
    return _Plan(_comparisons(work, lambda ids: ids), settings, seed=0).total


def train_together(
    model: Any,
    work: Mapping[str, Work],
    *,
    settings: GradientSettings,
    seed: int,
    pad_token_id: int,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    checked: Checked | None = None,
) -> dict[str, Trained | TrainingError]:
    """Train adapters in place, all in one run; each ends up as its best checkpoint.

    A step takes a batch of the union of all pairs. A pair that is in several principles' sets is
    computed once; to a principle that has no label for it, it is not there, as is a whole batch
    without any. Trainings end one by one; one whose loss becomes NaN or infinite is given up, and
    the others go on.

    Args:
        model: A PEFT model with one LoRA adapter per principle, called `slot_of` it, whose score
            head is where training starts.
        work: What each principle's preference model learns from.
        settings: How to train.
        seed: Of the order of the pairs. The same seed gives the same result.
        pad_token_id: Where a text is read, such tokens at its end do not count.
        checkpoint: A folder for what a killed run goes on from, with the result that it would have
            had. Remove it when the result is safe. None keeps nothing.
        progress: Told after every step.
        checked: Told of every check.

    Returns:
        By principle: how it went, or why its training was given up, with the principle's name.

    Raises:
        NotPackableError: If texts of this model cannot be packed, or an adapter is not plain LoRA;
            train one after another then.
        TrainingError: If not even a single pair fits into memory, or there are no pairs.
        WorkspaceError: If the checkpoint cannot be written.
    """
    rows = TrainingRows(model, [slot_of(name) for name in work], pad_token_id=pad_token_id)
    learners = [
        Learner(name, slot_of(name), rows.parameters[slot_of(name)], work=given, settings=settings)
        for name, given in work.items()
    ]
    plan = _Plan(_comparisons(work, rows.read), settings, seed=seed)
    if not plan.total:
        raise TrainingError("there are no pairs to train on")
    saved = SavedState(checkpoint, _key(model, work, settings, seed))
    run = _Run(
        rows,
        learners,
        plan,
        saved=saved,
        progress=progress or (lambda _name, _steps: None),
        checked=checked or (lambda _step, _found: None),
    )
    with rows.ready():
        run.go()
    results = {learner.principle: learner.finish(run.done) for learner in learners}
    return results


class _Comparison(NamedTuple):
    """A pair of the union: its texts up to where they are read, its place in principles' sets."""

    item: Item
    places: dict[str, int]


def _comparisons(work: Mapping[str, Work], read: Callable[[Ids], Ids]) -> list[_Comparison]:
    """Return the union of all training pairs; one that a set has twice is twice in it."""
    found: dict[tuple[Ids, Ids, int], _Comparison] = {}
    for name, (train, _) in work.items():
        seen: dict[tuple[Ids, Ids], int] = {}
        for place, pair in enumerate(zip(train.first, train.second, strict=True)):
            count = seen[pair] = seen.get(pair, -1) + 1
            if (*pair, count) not in found:
                found[*pair, count] = _Comparison((read(pair[0]), read(pair[1])), {})
            found[*pair, count].places[name] = place
    return list(found.values())


class _Plan:
    """Which pairs come in which step."""

    def __init__(
        self, comparisons: Sequence[_Comparison], settings: GradientSettings, *, seed: int
    ) -> None:
        self._comparisons, self._seed, self._size = comparisons, seed, settings.batch_size
        self._per_epoch = -(-len(comparisons) // settings.batch_size)
        self.total = int(np.ceil(self._per_epoch * settings.epochs))
        self._check_every = max(1, round(self._per_epoch / CHECKS_IN_EPOCH))

    def batch(self, step: int) -> list[_Comparison]:
        epoch, place = divmod(step, self._per_epoch)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._comparisons))
        chosen = order[place * self._size : (place + 1) * self._size]
        return [self._comparisons[i] for i in chosen]

    def is_check(self, done: int) -> bool:
        return done % self._check_every == 0 or done == self.total


class _Run:
    """The steps of a run, from its beginning or from where a killed one was."""

    def __init__(
        self,
        rows: TrainingRows,
        learners: Sequence[Learner],
        plan: _Plan,
        *,
        saved: SavedState,
        progress: Progress,
        checked: Checked,
    ) -> None:
        self.done = 0
        self._rows, self._learners, self._plan = rows, learners, plan
        self._saved, self._progress, self._checked = saved, progress, checked
        self._of_slot = {learner.slot: learner for learner in learners}
        self._row_tokens = ROW_TOKENS

    def go(self) -> None:
        """Take all steps."""
        found = self._saved.load()
        if found is None:
            self._check()
        else:
            self._restore(found)
        last = time.monotonic()
        told = dict.fromkeys((learner.principle for learner in self._learners), 0)
        while True:
            for learner in self._learners:
                behind = self.done if learner.going else self._plan.total
                if behind > told[learner.principle]:
                    self._progress(learner.principle, behind - told[learner.principle])
                    told[learner.principle] = behind
            if self.done == self._plan.total or not any(one.going for one in self._learners):
                return
            self._step()
            self.done += 1
            check = self._plan.is_check(self.done)
            if check:
                self._check()
            if check or time.monotonic() - last >= SAVE_SECONDS:
                self._saved.save(self._state())
                last = time.monotonic()

    def _step(self) -> None:
        going = [learner for learner in self._learners if learner.going]
        batch = self._plan.batch(self.done)
        places = {
            one.principle: [c.places[one.principle] for c in batch if one.principle in c.places]
            for one in going
        }
        pairs: dict[Item, list[_Comparison]] = {}
        for comparison in batch:
            pairs.setdefault(comparison.item, []).append(comparison)
        # A row is run by all that have labels for it, so those with the same labels go together.
        rows: dict[tuple[str, ...], list[Item]] = {}
        for item, its in pairs.items():
            slots = tuple(o.slot for o in going if any(o.principle in c.places for c in its))
            if slots:  # those with labels for a pair may all have ended
                rows.setdefault(slots, []).append(item)

        def learn(row: list[Item], slot: str, scores: dict[Ids, Tensor]) -> None:
            learner = self._of_slot[slot]
            name = learner.principle
            its = [c for item in row for c in pairs[item] if name in c.places]
            if learner.going:
                learner.learn(
                    [(scores[c.item[0]], scores[c.item[1]]) for c in its],
                    [c.places[name] for c in its],
                    places[name],
                )

        for slots, items in rows.items():
            self._in_rows(items, slots, learn)
        for learner in going:
            if learner.going and places[learner.principle]:
                learner.step(places[learner.principle], 1 - self.done / self._plan.total)

    @torch.no_grad()
    def _check(self) -> None:
        going = [one for one in self._learners if one.going and len(one.work.validation)]
        wanted: dict[Ids, list[str]] = {}
        for learner in going:
            for text in self._texts(learner.work.validation):
                wanted.setdefault(text, []).append(learner.slot)
        rows: dict[tuple[str, ...], list[Item]] = {}
        for text, slots in wanted.items():
            rows.setdefault(tuple(slots), []).append((text,))
        found: dict[str, dict[Ids, float]] = {learner.slot: {} for learner in going}

        def note(_row: list[Item], slot: str, scores: dict[Ids, Tensor]) -> None:
            found[slot].update({text: float(score) for text, score in scores.items()})

        for chosen, items in rows.items():
            self._in_rows(items, chosen, note)
        told = {}
        for learner in going:
            check = learner.check(self._differences(learner, found[learner.slot]), self.done)
            if check is not None:
                told[learner.principle] = check
        self._checked(self.done, told)

    def _texts(self, pairs: TokenPairs) -> dict[Ids, None]:
        return dict.fromkeys(self._rows.read(ids) for ids in (*pairs.first, *pairs.second))

    def _differences(self, learner: Learner, scores: Mapping[Ids, float]) -> Array:
        pairs, read = learner.work.validation, self._rows.read
        sides = [[scores[read(ids)] for ids in side] for side in (pairs.first, pairs.second)]
        differences: Array = np.array(sides[0]) - np.array(sides[1])
        return differences

    def _in_rows(self, items: Sequence[Item], slots: Sequence[str], look: Look) -> None:
        """Show every item's scores by every adapter once; in smaller rows once memory ran out."""
        waiting = [(row, slots) for row in self._rows.rows(items, self._row_tokens)]
        while waiting:
            row, left = waiting.pop()
            seen: list[str] = []

            def show(slot: str, scores: dict[Ids, Tensor], row: list[Item] = row) -> None:
                look(row, slot, scores)
                seen.append(slot)  # noqa: B023 - called before the next turn

            try:
                self._rows.each(row, left, show)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._shrink(row, error)
            else:
                continue
            left = [slot for slot in left if slot not in seen]
            waiting += [(smaller, left) for smaller in self._rows.rows(row, self._row_tokens)]

    def _shrink(self, row: list[Item], error: BaseException) -> None:
        tokens = sum(len(text) for text in {text for item in row for text in item})
        if len(row) == 1:
            raise TrainingError(
                f"texts of {tokens:,} tokens do not fit into memory, and have to be trained on at "
                "once; lower max_length, or adapt fewer layers"
            ) from error
        self._row_tokens = min(self._row_tokens, tokens) // 2
        _LOG.warning("memory ran out: going on with rows of %d tokens", self._row_tokens)

    def _state(self) -> State:
        tensors: dict[str, Tensor] = {}
        facts: dict[str, Any] = {}
        for learner in self._learners:
            its = learner.state()
            tensors |= {f"{learner.principle}/{name}": t for name, t in its.tensors.items()}
            facts[learner.principle] = its.facts
        return State(
            tensors, {"done": self.done, "row_tokens": self._row_tokens, "learners": facts}
        )

    def _restore(self, state: State) -> None:
        self.done, self._row_tokens = state.facts["done"], state.facts["row_tokens"]
        for learner in self._learners:
            start = f"{learner.principle}/"
            tensors = {
                name.removeprefix(start): tensor
                for name, tensor in state.tensors.items()
                if name.startswith(start)
            }
            learner.restore(State(tensors, state.facts["learners"][learner.principle]))
        _LOG.info("training goes on after step %d of %d", self.done, self._plan.total)


def _key(model: Any, work: Mapping[str, Work], settings: GradientSettings, seed: int) -> str:
    digest = Digest()
    digest.add(asdict(settings), seed, model.config.get_text_config().to_dict())
    for name, sets in work.items():
        digest.add(name)
        for pairs in sets:
            digest.add_texts(pairs.first)
            digest.add_texts(pairs.second)
            digest.add(pairs.probabilities.tolist())
    # PEFT keeps the head that the adapters' own replace, which is random.
    digest.add_weights({n: p for n, p in model.named_parameters() if ".original_" not in n})
    return str(digest)
