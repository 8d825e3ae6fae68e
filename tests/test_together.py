"""Training together gives each preference model what training it alone would have given it."""

import copy
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from morlaif_hub.bank.adapters import check_adapter
from morlaif_hub.bank.attention import NotPackableError
from morlaif_hub.bank.engine import Engine
from morlaif_hub.bank.layout import Ids
from morlaif_hub.bank.training_rows import TrainingRows
from morlaif_hub.errors import TrainingError, WorkspaceError
from morlaif_hub.hub.manifest import BaseIdentity
from morlaif_hub.preference_models import learner, together
from morlaif_hub.preference_models.learner import Work
from morlaif_hub.preference_models.losses import Check, Selection, check_scores, pair_losses
from morlaif_hub.preference_models.new_adapters import new_adapters, save_new_adapter, slot_of
from morlaif_hub.preference_models.settings import GradientSettings
from morlaif_hub.preference_models.together import total_steps, train_together
from morlaif_hub.preference_models.tokens import TokenPairs
from tests.architectures import (
    _LLAMA,
    ARCHITECTURES,
    LAYERS,
    PARTS,
    random_texts,
    tiny_classifier,
)

NAMES = ("values", "detail", "detail-2")
"""Of principles: one is no name for a module, one is the start of another."""
TWO_TABLES = "phi3, long"
"""Has other positions for long texts."""
PACKED = [n for n, kind in ARCHITECTURES.items() if kind.packed and kind.adaptable]
PACKED.remove(TWO_TABLES)
QUICK = ("llama", "gpt2", "gemma2", "bert")
EXACT = 1e-4
SETTINGS = GradientSettings(batch_size=4, epochs=2, learning_rate=1e-2, patience=9)


def adapted(name: str, *, depths: Sequence[int] = (2, 2, 1), dtype: Any = None) -> PeftModel:
    """Return a tiny classifier with one random adapter for each of NAMES.

    Args:
        name: Of an architecture.
        depths: The first adapted layer of each.
        dtype: Of the base.
    """
    base = tiny_classifier(name).to(dtype or torch.float32)
    parts = PARTS.get(base.config.model_type, _LLAMA)
    transposed = any(isinstance(module, Conv1D) for module in base.modules())
    model: Any = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for principle, depth in zip(NAMES, depths, strict=True):
            config = LoraConfig(
                task_type=TaskType.SEQ_CLS,
                r=3,
                target_modules=[*parts.attention, *parts.feed_forward],
                layers_to_transform=list(range(depth, LAYERS)),
                fan_in_fan_out=transposed,
            )
            if model is None:
                model = get_peft_model(base, config, adapter_name=slot_of(principle))
            else:
                model.add_adapter(slot_of(principle), config)
        for parameter_name, parameter in model.named_parameters():
            if any(slot_of(n) in parameter_name.split(".") for n in NAMES):
                parameter.data = parameter.data.float()
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def pairs_of(name: str, *, count: int, seed: int) -> TokenPairs:
    """Return random pairs, many of which share a beginning or a text; among them are ties."""
    pad, draw = ARCHITECTURES[name].pad, random.Random(seed)
    texts = [tuple(ids) for ids in random_texts(pad, seed=seed, number=2 * count)]
    sides = [draw.sample(texts, 2) for _ in range(count)]
    p = np.array([draw.choice((0.0, 0.1, 0.5, 0.7, 1.0)) for _ in range(count)])
    return TokenPairs([a for a, _ in sides], [b for _, b in sides], p)


def items_of(rows: TrainingRows, pairs: TokenPairs) -> list[tuple[Ids, ...]]:
    """Return pairs as rows take them."""
    return [(rows.read(a), rows.read(b)) for a, b in zip(pairs.first, pairs.second, strict=True)]


def part(pairs: TokenPairs, places: Sequence[int], p: Any = None) -> TokenPairs:
    """Return some of some pairs, with other labels if there are."""
    labels = pairs.probabilities[list(places)] if p is None else np.asarray(p)
    return TokenPairs([pairs.first[i] for i in places], [pairs.second[i] for i in places], labels)


def some_work(name: str, *, count: int = 10) -> dict[str, Work]:
    """Return work for each of NAMES: all pairs, the same with other labels, and some of them."""
    pairs, validation = pairs_of(name, count=count, seed=0), pairs_of(name, count=6, seed=1)
    everything = range(count)
    draw = random.Random(2)
    labels = [
        part(pairs, everything),
        part(pairs, everything, [draw.random() for _ in everything]),
        part(pairs, [i for i in everything if i % 3]),
    ]
    return {n: Work(train, validation) for n, train in zip(NAMES, labels, strict=True)}


def weights(model: Any, principle: str) -> dict[str, Tensor]:
    """Return copies of what is trained of a principle's adapter."""
    return {n: p.detach().clone() for n, p in trained_of(model, principle).items()}


def trained_of(model: Any, principle: str) -> dict[str, nn.Parameter]:
    """Return a principle's matrices and head; its bias is in both scores of every pair."""
    its = {n: p for n, p in model.named_parameters() if slot_of(principle) in n.split(".")}
    return {n: p for n, p in its.items() if not n.endswith("bias")}


def alone(model: Any, principle: str, text: Ids) -> Tensor:
    """Return a text's score by plain PEFT, with its graph."""
    model.set_adapter(slot_of(principle))
    ids = torch.tensor([text])
    score: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0]
    return score


def close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = EXACT) -> None:
    """Assert that tensors are equal up to a share of the largest of each."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        off = float((found[name] - tensor).abs().max())
        assert off <= tolerance * max(1.0, float(tensor.abs().max())), name


def quick_or_slow(names: Sequence[str]) -> list[Any]:
    """Return test parameters, those that are not quick marked as slow."""
    return [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", quick_or_slow(PACKED))
def test_scores_and_gradients_are_those_of_plain_peft_one_text_at_a_time(name: str) -> None:
    model, pad = adapted(name, depths=(0, 2, 3)), ARCHITECTURES[name].pad
    plain = copy.deepcopy(model)
    rows = TrainingRows(model, [slot_of(n) for n in NAMES], pad_token_id=pad)
    pairs = pairs_of(name, count=6, seed=3)
    items = items_of(rows, pairs)
    found: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}

    def look(slot: str, scores: dict[Ids, Tensor]) -> None:
        parameters = rows.parameters[slot]
        loss = sum((scores[a] - scores[b]).square() for a, b in items)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        both = torch.stack([scores[text] for item in items for text in item]).detach()
        found[slot] = (
            both,
            {
                n: torch.zeros_like(p) if g is None else g
                for (n, p), g in zip(parameters.items(), gradients, strict=True)
            },
        )

    with rows.ready():
        rows.each(items, [slot_of(n) for n in NAMES], look)
    for principle in NAMES:
        sides = [
            (alone(plain, principle, a), alone(plain, principle, b))
            for a, b in zip(pairs.first, pairs.second, strict=True)
        ]
        plain.zero_grad()
        sum((a - b).square() for a, b in sides).backward()
        expected = {
            n: torch.zeros_like(p) if p.grad is None else p.grad
            for n, p in trained_of(plain, principle).items()
        }
        scores, gradients = found[slot_of(principle)]
        together_ = torch.stack([s.detach() for side in sides for s in side])
        torch.testing.assert_close(scores, together_, atol=EXACT, rtol=0)
        assert any(g.abs().max() > 100 * EXACT for n, g in expected.items() if "lora_A" in n)
        close(gradients, expected)


def separately(
    model: Any, principle: str, train: TokenPairs, batches: Sequence[Sequence[int]]
) -> None:
    """Train an adapter by plain PEFT and PyTorch, one text at a time, as TRL's trainer does.

    Args:
        model: With the adapter.
        principle: Whose.
        train: What to learn from.
        batches: Places of pairs in it, none in some.
    """
    model.set_adapter(slot_of(principle))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=SETTINGS.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / len(batches))
    for batch in batches:
        if batch:
            losses = []
            for i in batch:
                d = alone(model, principle, train.first[i]) - alone(
                    model, principle, train.second[i]
                )
                p = float(train.probabilities[i])
                losses.append(
                    -p * nn.functional.logsigmoid(d) - (1 - p) * nn.functional.logsigmoid(-d)
                )
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        schedule.step()


def batches_of(work: dict[str, Work], principle: str, seed: int) -> list[list[int]]:
    """Return the batches that a principle is trained on, from the order of its first one."""
    union = work[NAMES[0]].train  # has all pairs
    train = work[principle].train
    places = {pair: i for i, pair in enumerate(zip(train.first, train.second, strict=True))}
    found = []
    for epoch in range(int(SETTINGS.epochs)):
        order = np.random.default_rng([seed, epoch]).permutation(len(union))
        pairs = [(union.first[i], union.second[i]) for i in order]
        for start in range(0, len(pairs), SETTINGS.batch_size):
            batch = pairs[start : start + SETTINGS.batch_size]
            found.append([places[pair] for pair in batch if pair in places])
    return found


@pytest.mark.parametrize("name", quick_or_slow(QUICK))
def test_training_is_that_of_each_alone(name: str) -> None:
    model, work = adapted(name), some_work(name)
    work = {n: Work(w.train, part(w.validation, [])) for n, w in work.items()}
    plain, before = copy.deepcopy(model), {n: weights(model, n) for n in NAMES}
    done = train_together(
        model, work, settings=SETTINGS, seed=5, pad_token_id=ARCHITECTURES[name].pad
    )
    assert total_steps(work, SETTINGS) == 6
    for principle in NAMES:
        assert done[principle] == (None, None, 6, "trained")
        separately(plain, principle, work[principle].train, batches_of(work, principle, 5))
        after = weights(model, principle)
        moved = max(float((after[n] - before[principle][n]).abs().max()) for n in after)
        assert moved > 0.02
        close(after, weights(plain, principle), 1e-3)  # Adam divides by small gradients' size


def train(name: str = "llama", **changes: Any) -> tuple[Any, dict[str, Any]]:
    """Return a model that was trained together, and how it went."""
    model = changes.pop("model", None) or adapted(name)
    work = changes.pop("work", None) or some_work(name)
    options = {"settings": SETTINGS, "seed": 0, "pad_token_id": ARCHITECTURES[name].pad}
    return model, train_together(model, work, **{**options, **changes})


def all_weights(model: Any) -> dict[str, Tensor]:
    """Return copies of what is trained."""
    return {n: t for principle in NAMES for n, t in weights(model, principle).items()}


def identical(one: Any, other: Any) -> bool:
    """Return whether two models have the same adapters."""
    first, second = all_weights(one), all_weights(other)
    return all(torch.equal(first[n], second[n]) for n in first)


def test_the_same_seed_gives_the_same_result_and_another_another() -> None:
    (one, first), (other, second), (third, _) = train(), train(), train(seed=1)
    assert identical(one, other)
    assert first == second
    assert not identical(one, third)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    train()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_is_left_frozen_and_as_it_was() -> None:
    model, _ = train()
    assert not any(p.requires_grad for p in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.active_adapter == slot_of(NAMES[0])


def test_the_base_does_not_change() -> None:
    model = adapted("llama")
    before = {n: p.clone() for n, p in model.named_parameters() if "pm-" not in n}
    train(model=model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


def test_a_base_in_half_precision_trains_float32_adapters() -> None:
    model = adapted("llama", dtype=torch.bfloat16)
    before = all_weights(model)
    _, done = train(model=model)
    assert all(isinstance(result, tuple) for result in done.values())
    after = all_weights(model)
    assert {t.dtype for t in after.values()} == {torch.float32}
    assert any(not torch.equal(after[n], before[n]) for n in after)


class Killed(Exception):
    """Ends a run in the middle."""


def killer(after: int) -> Callable[[str, int], None]:
    """Return a progress that ends a run after so many steps of the first principle."""
    done = 0

    def tell(principle: str, steps: int) -> None:
        nonlocal done
        done += steps if principle == NAMES[0] else 0
        if done >= after:
            raise Killed

    return tell


@pytest.mark.parametrize("after", [1, 5, 14])
@pytest.mark.parametrize("seconds", [0.0, 300.0])
def test_a_killed_run_goes_on_to_the_same_result(
    after: int, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "SAVE_SECONDS", seconds)
    folder, work = tmp_path / "unfinished", some_work("llama", count=40)
    settings = GradientSettings(batch_size=4, epochs=2, learning_rate=1e-2, patience=4)
    whole, expected = train(settings=settings, work=work)
    with pytest.raises(Killed):
        train(settings=settings, work=work, checkpoint=folder, progress=killer(after))
    told: dict[str, list[int]] = {}
    resumed, found = train(
        settings=settings,
        work=work,
        checkpoint=folder,
        progress=lambda principle, steps: told.setdefault(principle, []).append(steps),
    )
    assert found == expected
    assert identical(whole, resumed)
    assert {sum(steps) for steps in told.values()} == {total_steps(work, settings)} == {20}
    again, same = train(settings=settings, work=work, checkpoint=folder)
    assert same == expected  # a run that was killed after its last step is not done again
    assert identical(whole, again)
    first = {steps[0] for steps in told.values()}
    if seconds == 0:
        assert min(first) >= after
    elif after > 2:  # checks are at every other step
        assert min(first) == after - after % 2


def test_a_state_of_another_run_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(checkpoint=tmp_path, progress=killer(3))
    expected, _ = train(seed=9)
    found, _ = train(seed=9, checkpoint=tmp_path)
    assert identical(found, expected)


def test_a_state_of_another_base_is_not_taken(tmp_path: Path) -> None:
    def other() -> PeftModel:
        model = adapted("llama")
        model.get_base_model().model.embed_tokens.weight.data.mul_(1.1)
        return model

    with pytest.raises(Killed):
        train(checkpoint=tmp_path, progress=killer(3))
    expected, _ = train(model=other())
    found, _ = train(model=other(), checkpoint=tmp_path)
    assert identical(found, expected)


def test_a_damaged_state_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Killed):
        train(checkpoint=tmp_path, progress=killer(3))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    expected, _ = train()
    found, _ = train(checkpoint=tmp_path)
    assert identical(found, expected)
    assert "cannot be read, training begins anew" in caplog.text


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match="the state of training cannot be written"):
        train(checkpoint=tmp_path / "file" / "folder")


def test_nothing_of_a_state_is_pickled(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(checkpoint=tmp_path, progress=killer(3))
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_a_loss_that_is_nan_is_named_and_the_others_finish() -> None:
    work = some_work("llama")
    given, validation = work["detail"]
    poisoned = given.probabilities.copy()
    poisoned[3] = np.nan
    model, done = train(work={**work, "detail": Work(part(given, range(10), poisoned), validation)})
    failure = done["detail"]
    assert isinstance(failure, TrainingError)
    assert str(failure).startswith("detail: the loss is nan in the batch of training pairs ")
    batch = str(failure).split("pairs ")[1].split(";")[0].split(", ")
    assert "3" in batch
    assert len(batch) in (2, 4)
    expected, others = train(work=work)
    for principle in ("values", "detail-2"):
        assert done[principle] == others[principle]
        close(weights(model, principle), weights(expected, principle))


def test_pairs_of_those_alone_that_ended_are_passed_over() -> None:
    work = some_work("llama")
    pairs, validation = pairs_of("llama", count=8, seed=7), work["detail"].validation
    poisoned = np.full(8, np.nan)  # ends at its first batch
    own = Work(part(pairs, range(8), poisoned), validation)
    _, done = train(work={**work, "detail": own})
    assert isinstance(done["detail"], TrainingError)
    assert not isinstance(done["values"], TrainingError)


def test_weights_that_explode_are_found_by_a_check() -> None:
    model = adapted("llama")
    for name, parameter in model.named_parameters():
        if f"{slot_of('detail')}.weight" in name and "modules_to_save" in name:
            parameter.data.fill_(3e38)
    _, done = train(model=model)
    assert isinstance(done["detail"], TrainingError)
    assert "detail: at step 0: scores of validation pairs are not finite" in str(done["detail"])
    assert isinstance(done["values"], tuple)


@pytest.fixture
def short_of_memory() -> Any:
    """A model with room for 90 tokens at once in an adapted layer."""
    model = adapted("llama")
    layer = model.get_base_model().model.layers[LAYERS - 1]

    def limit(_module: nn.Module, given: tuple[Any, ...]) -> None:
        if given[0].shape[1] > 90:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    layer.register_forward_pre_hook(limit)
    return model


def test_when_memory_runs_out_smaller_rows_go_on(
    short_of_memory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    expected, first = train()
    with caplog.at_level(logging.WARNING, "morlaif_hub"):
        found, second = train(model=short_of_memory)
    close(all_weights(found), all_weights(expected), 1e-3)
    assert [r.steps for r in second.values()] == [r.steps for r in first.values()]
    assert caplog.messages[0].startswith("memory ran out: going on with rows of ")


def test_memory_that_runs_out_for_one_adapter_repeats_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradients of those before it are in already."""
    work = dict.fromkeys(NAMES, some_work("llama")["values"])
    expected, _ = train(work=work)
    learn, calls = learner.Learner.learn, 0
    learned: Counter[tuple[str, int]] = Counter()

    def fail_once(self: Any, scores: Any, pairs: Sequence[int], batch: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        learn(self, scores, pairs, batch)
        learned.update((self.principle, pair) for pair in pairs)

    monkeypatch.setattr(learner.Learner, "learn", fail_once)
    found, _ = train(work=work)
    assert learned == {(name, pair): SETTINGS.epochs for name in NAMES for pair in range(10)}
    close(all_weights(found), all_weights(expected), 1e-3)


def test_texts_that_do_not_fit_name_the_setting(short_of_memory: Any) -> None:
    long = TokenPairs([tuple(range(10, 70))], [tuple(range(70, 120))], np.array([1.0]))
    work = {n: Work(long, part(long, [])) for n in NAMES}
    with pytest.raises(TrainingError, match=r"texts of 110 tokens do not fit .* lower max_length"):
        train(model=short_of_memory, work=work)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    model = adapted("llama")

    def fail(*_given: Any) -> None:
        raise RuntimeError("another error")

    rows = TrainingRows(model, [slot_of(NAMES[0])], pad_token_id=3)
    model.get_base_model().model.layers[LAYERS - 1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="another error"), rows.ready():
        rows.each([((5, 6),)], [slot_of(NAMES[0])], lambda *_: None)


def test_short_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = train()
    monkeypatch.setattr(together, "ROW_TOKENS", 1)
    found, _ = train()
    close(all_weights(found), all_weights(expected), 1e-3)


def test_a_pair_that_is_labelled_twice_counts_twice() -> None:
    pairs = pairs_of("llama", count=1, seed=0)
    twice = part(pairs, [0, 0], [0.9, 0.5])
    once = part(pairs, [0], [0.7])
    trained = []
    for given in (twice, once):
        work = {n: Work(given, part(pairs, [])) for n in NAMES}
        trained.append(train(work=work)[0])
    close(all_weights(trained[0]), all_weights(trained[1]))


def test_labels_that_cannot_be_learned_keep_the_start() -> None:
    """What is learned from reversed labels makes validation worse from the first check on."""
    work = some_work("llama")
    model = adapted("llama")
    scores = {
        n: np.array(
            [
                float((alone(model, n, a) - alone(model, n, b)).detach())
                for a, b in zip(w.validation.first, w.validation.second, strict=True)
            ]
        )
        for n, w in work.items()
    }
    reversed_ = {
        n: Work(
            part(w.validation, range(6), (scores[n] < 0).astype(float)),
            part(w.validation, range(6), (scores[n] > 0).astype(float)),
        )
        for n, w in work.items()
    }
    before = all_weights(model)
    steps: dict[str, int] = dict.fromkeys(NAMES, 0)

    def tell(principle: str, more: int) -> None:
        steps[principle] += more

    settings = GradientSettings(batch_size=2, epochs=20, learning_rate=1e-2, patience=2)
    _, done = train(model=model, work=reversed_, settings=settings, progress=tell)
    assert all(torch.equal(t, before[n]) for n, t in all_weights(model).items())
    for principle in NAMES:
        result = done[principle]
        assert (result.kept, result.steps, result.start_accuracy) == ("start", 0, 1.0)
        assert result.trained_accuracy <= 1.0
        assert steps[principle] == total_steps(reversed_, settings) == 60


def test_the_best_checkpoint_is_the_one_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.6, 0.5, 0.55, 0.7, 0.7, 0.7])
    kept: list[dict[str, Tensor]] = []
    model = adapted("llama")

    def told(*_given: Any) -> Check:
        kept.append(weights(model, NAMES[0]))
        return Check(next(losses), 0.5)

    monkeypatch.setattr(learner, "check_scores", told)
    work = some_work("llama")
    given = {NAMES[0]: work[NAMES[0]]}
    settings = GradientSettings(batch_size=4, epochs=9, learning_rate=1e-2, patience=3)
    _, done = train(model=model, work=given, settings=settings)
    assert done[NAMES[0]] == (0.5, 0.5, 1, "trained")
    assert len(kept) == 5  # the start, the best, and three that are not better
    assert all(torch.equal(t, kept[1][n]) for n, t in weights(model, NAMES[0]).items())


def test_a_selection() -> None:
    selection = Selection()
    assert selection.add(Check(0.6, 0.6), 0)
    assert not selection.add(Check(0.7, 0.5), 1)
    assert not selection.add(Check(0.65, 0.55), 2)
    assert (selection.without_better, selection.kept) == (2, "start")
    assert selection.result() == (0.6, 0.55, 0, "start")
    assert selection.add(Check(0.5, 0.7), 3)
    assert (selection.without_better, selection.result()) == (0, (0.6, 0.7, 3, "trained"))


def test_no_pairs_are_an_error() -> None:
    nothing = part(pairs_of("llama", count=1, seed=0), [])
    with pytest.raises(TrainingError, match="there are no pairs to train on"):
        train(work={n: Work(nothing, nothing) for n in NAMES})


@pytest.mark.parametrize("name", ["bloom", "falcon", "deberta", TWO_TABLES])
def test_a_base_whose_texts_cannot_be_packed_says_so(name: str) -> None:
    with pytest.raises(NotPackableError):
        train(name)


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize(
    "options",
    [{"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.1}, {"modules_to_save": ["norm"]}],
    ids=str,
)
def test_what_is_not_plain_lora_says_so(options: dict[str, Any]) -> None:
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["q_proj"], **options)
    model = get_peft_model(tiny_classifier("llama"), config, adapter_name="one")
    with pytest.raises(NotPackableError, match=r"adapter one changes .* else than plain LoRA"):
        TrainingRows(model, ["one"], pad_token_id=3)


def test_adapted_embeddings_say_so() -> None:
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["embed_tokens"])
    model = get_peft_model(tiny_classifier("llama"), config, adapter_name="one")
    with pytest.raises(NotPackableError, match="embed_tokens"):
        TrainingRows(model, ["one"], pad_token_id=3)


def test_a_base_whose_layers_mix_tokens_is_found_out() -> None:
    model = adapted("llama")

    def mix(_module: nn.Module, _given: Any, result: Tensor) -> Tensor:
        return result + result.cumsum(1)

    model.get_base_model().model.layers[1].register_forward_hook(mix)
    with pytest.raises(NotPackableError, match="scores of packed texts would be off by"):
        train(model=model)


def note_gradients(
    rows: TrainingRows, to: dict[str, Tensor], slot: str, scores: dict[Ids, Tensor]
) -> None:
    """Note the gradients of the sum of an adapter's scores, by parameter."""
    named = rows.parameters[slot]
    found = torch.autograd.grad(sum(scores.values()), list(named.values()))
    to.update(zip(named, found, strict=True))


def test_gradients_go_through_onednn() -> None:
    slots = [slot_of(n) for n in NAMES]
    found = []
    for kernel in ("torch", "onednn"):
        rows = TrainingRows(adapted("llama"), slots, pad_token_id=3, kernel=kernel)
        items = items_of(rows, pairs_of("llama", count=6, seed=3))
        gradients: dict[str, Tensor] = {}
        with rows.ready():
            rows.each(items, slots, partial(note_gradients, rows, gradients))
        found.append(gradients)
    close(found[1], found[0])


def test_rows_have_at_most_so_many_tokens_and_all_items() -> None:
    rows = TrainingRows(adapted("llama"), [slot_of(NAMES[0])], pad_token_id=3)
    pairs = pairs_of("llama", count=40, seed=4)
    items = items_of(rows, pairs)
    for tokens in (1, 50, 120, 10_000):
        made = rows.rows(items, tokens)
        assert sorted(item for row in made for item in row) == sorted(items)
        for row in made:
            prefixes = {text[: i + 1] for item in row for text in item for i in range(len(text))}
            assert len(row) == 1 or len(prefixes) <= tokens


def test_new_adapters_score_as_their_heads_and_are_loaded_by_a_bank(tmp_path: Path) -> None:
    base = tiny_classifier("llama")
    base.requires_grad_(False)
    heads = {n: np.random.default_rng(i).normal(size=32) for i, n in enumerate(NAMES)}
    model = new_adapters(base, heads, GradientSettings(layers="top:0.5"), seed=0)
    settings = GradientSettings(batch_size=4, learning_rate=1e-2)
    train(model=model, settings=settings)
    identity = BaseIdentity(
        repo_id="org/base", revision="0" * 40, weights_sha256="a" * 64, source="hub"
    )
    files = {}
    for name in NAMES:
        save_new_adapter(model, name, tmp_path / name, identity)
        files[name] = check_adapter(tmp_path / name, name)
        assert files[name].config["base_model_name_or_path"] == "org/base"
    texts = [tuple(ids) for ids in random_texts(3, seed=0)]
    scores = Engine(tiny_classifier("llama"), pad_token_id=3, adapters=files).score(texts)
    for column, name in enumerate(NAMES):
        model.set_adapter(slot_of(name))
        with torch.no_grad():
            expected = torch.stack([alone(model, name, text) for text in texts])
        torch.testing.assert_close(scores[:, column], expected, atol=EXACT, rtol=0)


def test_an_adapter_starts_as_it_would_without_the_others() -> None:
    heads = {n: np.ones(32) for n in NAMES}
    several = new_adapters(tiny_classifier("llama"), heads, SETTINGS, seed=7)
    (one,) = (n for n in NAMES if n == "detail")
    single = new_adapters(tiny_classifier("llama"), {one: heads[one]}, SETTINGS, seed=7)
    first, second = weights(several, one), weights(single, one)
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("loss", ["soft", "margin"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_losses_by_hand(loss: Any, smoothing: float) -> None:
    d = torch.tensor([2.0, -1.0, 0.7, 0.3])
    p = torch.tensor([0.9, 0.2, 0.5, 1.0])
    found = pair_losses(d, p, loss=loss, label_smoothing=smoothing)
    expected = []
    for lead, probability in zip(d.tolist(), p.tolist(), strict=True):
        q = probability * (1 - smoothing) + smoothing / 2
        if loss == "soft" or q == 0.5:
            expected.append(-q * log_sigmoid(lead) - (1 - q) * log_sigmoid(-lead))
        else:
            odds = np.log(min(q, 1 - 1e-6)) - np.log(max(1 - q, 1e-6))
            expected.append(-log_sigmoid(np.sign(q - 0.5) * lead - abs(odds)))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def log_sigmoid(x: float) -> float:
    """Return log(1 / (1 + exp(-x)))."""
    return float(-np.logaddexp(0.0, -x))


def test_which_response_is_first_does_not_matter() -> None:
    d, p = torch.randn(50), torch.rand(50)
    for loss in ("soft", "margin"):
        torch.testing.assert_close(
            pair_losses(d, p, loss=loss), pair_losses(-d, 1 - p, loss=loss), atol=1e-5, rtol=1e-5
        )


def test_a_check_does_not_depend_on_the_scores_size() -> None:
    rng = np.random.default_rng(0)
    d, p = rng.normal(size=40), rng.choice([0.1, 0.5, 0.8], size=40)
    one, other = check_scores(d, p), check_scores(1000 * d, p)
    assert one.log_loss == pytest.approx(other.log_loss)
    assert one.accuracy == other.accuracy
    assert check_scores(d, np.full(40, 0.5)).accuracy is None
