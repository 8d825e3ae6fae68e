"""Reward functions: what they return, how often they ask the bank, and in real TRL trainers."""

import gc
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Kind, save_tiny, tiny_tokenizer
from torch import Tensor

from morlaif_hub.errors import ObjectiveMismatchError, OptionError, ScoreError, UnknownNameError
from morlaif_hub.rewards import (
    RewardFunction,
    Text,
    bind_scalarizer,
    reward_function,
    reward_functions,
    weight_tensor,
)
from morlaif_hub.scalarizers import SCALARIZERS, log_sigmoid

PROMPTS: list[Text] = ["Hello?", "Why is that?"]
COMPLETIONS: list[Text] = ["Oh, it is.", "because"]


class FakeBank:
    """Scores by counting letters, and remembers every pass.

    `scales` are those of its preference models' logits: as in a real bank, calibrated scores do
    not depend on them.
    """

    def __init__(self, *letters: str, scales: Sequence[float] | None = None) -> None:
        self.objectives = tuple(f"letter-{letter}" for letter in letters)
        self.letters = letters
        self.scales = torch.tensor([1.0] * len(letters) if scales is None else scales)
        self.passes: list[tuple[list[Text], list[Text]]] = []

    def score(
        self, prompts: Sequence[Text], responses: Sequence[Text], *, calibrated: bool = True
    ) -> Tensor:
        self.passes.append((list(prompts), list(responses)))
        raw = self.scales * self._count(responses)
        return raw / self.scales if calibrated else raw

    def _count(self, responses: Sequence[Text]) -> Tensor:
        texts = [r if isinstance(r, str) else r[-1]["content"] for r in responses]
        counts = [[float(text.count(letter)) for letter in self.letters] for text in texts]
        return torch.tensor(counts).reshape(len(texts), len(self.letters))


class FixedBank:
    """Gives these scores to whatever it is asked."""

    def __init__(self, scores: Tensor) -> None:
        self.objectives, self.scores = ("kindness", "brevity"), scores

    def score(self, prompts: Sequence[Text], responses: Sequence[Text]) -> Tensor:
        del prompts, responses
        return self.scores


def trl_extras(**more: Any) -> dict[str, Any]:
    """What TRL passes beside prompts and completions: ids, its state, and dataset columns."""
    return {"completion_ids": [[1], [2]], "trainer_state": None, "topic": ["a", "b"], **more}


# One function per objective


def test_functions_are_named_after_their_objectives_and_return_their_columns() -> None:
    functions = reward_functions(FakeBank("e", "i", "s"))
    assert [f.__name__ for f in functions] == ["letter-e", "letter-i", "letter-s"]
    columns = [f(prompts=PROMPTS, completions=COMPLETIONS, **trl_extras()) for f in functions]
    assert columns == [[0.0, 2.0], [2.0, 0.0], [1.0, 1.0]]
    assert all(type(value) is float for column in columns for value in column)


def test_a_step_is_one_pass_however_many_functions() -> None:
    bank = FakeBank(*"abcdefgh")
    functions = reward_functions(bank)
    for step in range(1, 4):
        prompts, completions = list(PROMPTS), [f"{step} b", "aa"]
        for f in functions:
            f(prompts=prompts, completions=completions, **trl_extras())
        assert len(bank.passes) == step
        assert bank.passes[-1] == (prompts, completions)


def test_equal_texts_in_other_lists_are_scored_again() -> None:
    """Only identity is compared: comparing texts would cost more than it saves."""
    bank = FakeBank("a", "b")
    first, second = reward_functions(bank)
    first(prompts=list(PROMPTS), completions=list(COMPLETIONS))
    second(prompts=list(PROMPTS), completions=list(COMPLETIONS))
    assert len(bank.passes) == 2


def test_new_prompts_with_the_same_completions_are_a_new_step() -> None:
    bank = FakeBank("a", "b")
    first, second = reward_functions(bank)
    first(prompts=list(PROMPTS), completions=COMPLETIONS)
    second(prompts=list(PROMPTS), completions=COMPLETIONS)
    assert len(bank.passes) == 2


def test_the_same_lists_filled_anew_are_scored_anew() -> None:
    bank = FakeBank("a", "b")
    functions = reward_functions(bank)
    completions: list[Text] = []
    for texts in (["a", "b"], ["bb", "aa"], ["", "ab"]):
        completions[:] = texts
        columns = [f(prompts=PROMPTS, completions=completions) for f in functions]
        assert columns == bank._count(completions).T.tolist()


def test_a_list_at_an_address_used_before_is_not_mistaken() -> None:
    first, second = reward_functions(FakeBank("a", "b"))
    prompts, addresses = ["p"], []
    for count in range(20):
        completions: list[Text] = ["b"]
        first(prompts=prompts, completions=completions)
        addresses.append(id(completions))
        del completions
        completions = ["b" * count]  # where the last list was, if that one was not kept
        assert second(prompts=prompts, completions=completions) == [float(count)]
        del completions
    assert len(addresses) > len(set(addresses))  # so it is worth a test


def test_a_finished_step_is_not_kept() -> None:
    class Completions(list[Text]):
        """A list that a weak reference could watch; here its deletion is counted."""

        deleted = 0

        def __del__(self) -> None:
            Completions.deleted += 1

    functions = reward_functions(FakeBank("a", "b"))
    completions = Completions(COMPLETIONS)
    for f in functions:
        f(prompts=PROMPTS, completions=completions)
    del completions
    gc.collect()
    assert Completions.deleted == 1


def test_message_lists_reach_the_bank_as_they_are() -> None:
    bank = FakeBank("a")
    prompts: list[Text] = [[{"role": "user", "content": "Hi"}]]
    completions: list[Text] = [[{"role": "assistant", "content": "aha"}]]
    (f,) = reward_functions(bank)
    assert f(prompts=prompts, completions=completions) == [2.0]
    assert bank.passes == [(prompts, completions)]


def test_threads_share_one_pass() -> None:
    class SlowBank(FakeBank):
        def score(
            self, prompts: Sequence[Text], responses: Sequence[Text], *, calibrated: bool = True
        ) -> Tensor:
            time.sleep(0.05)
            return super().score(prompts, responses, calibrated=calibrated)

    bank = SlowBank(*"abcdefgh")
    columns = in_threads(
        [
            lambda f=f: f(prompts=PROMPTS, completions=COMPLETIONS)  # type: ignore[misc]
            for f in reward_functions(bank)
        ]
    )
    assert len(bank.passes) == 1
    assert columns == bank._count(COMPLETIONS).T.tolist()


def test_threads_with_steps_of_their_own_get_their_own_scores() -> None:
    functions = reward_functions(FakeBank("a", "b"))

    def train(count: int) -> list[list[float]]:
        found = []
        for step in range(40):
            prompts, completions = ["p"], ["a" * count + "b" * step]
            found.append([f(prompts=prompts, completions=completions)[0] for f in functions])
        return found

    for count, found in enumerate(in_threads([lambda c=c: train(c) for c in range(4)])):  # type: ignore[misc]
        assert found == [[float(count), float(step)] for step in range(40)]


def in_threads(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run the tasks at the same time; return their results in order."""
    barrier, results = threading.Barrier(len(tasks)), [None] * len(tasks)

    def run(i: int) -> None:
        barrier.wait()
        results[i] = tasks[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


# One function for them all


@pytest.mark.parametrize("name", [n for n in SCALARIZERS.names() if "/" not in n])
def test_the_reward_is_the_scalarizers(name: str) -> None:
    bank = FakeBank("e", "i", "s")
    f = reward_function(
        bank, scalarizer=name, weights={"letter-s": 0.5, "letter-e": 2.0, "letter-i": 1.0}
    )
    assert f.__name__ == name
    rewards = f(prompts=PROMPTS, completions=COMPLETIONS, **trl_extras())
    scores = torch.tensor([[0.0, 2.0, 1.0], [2.0, 0.0, 1.0]])
    expected = SCALARIZERS.get(name)(scores, torch.tensor([2.0, 1.0, 0.5]))
    assert rewards == pytest.approx(expected.tolist())
    assert all(type(reward) is float for reward in rewards)
    assert len(bank.passes) == 1


def test_no_weights_mean_one_kth_each() -> None:
    f = reward_function(FakeBank("e", "i", "s", "x"))
    assert f(prompts=PROMPTS, completions=COMPLETIONS) == [0.75, 0.75]


def test_options_reach_the_scalarizer() -> None:
    bank = FakeBank("e", "i", "s")
    weights = dict.fromkeys(bank.objectives, 1.0)
    f = reward_function(bank, scalarizer="lower_quantile", weights=weights, quantile=2 / 3)
    assert f(prompts=PROMPTS, completions=COMPLETIONS) == [0.5, 0.5]


def test_a_transform_goes_first() -> None:
    f = reward_function(FakeBank("e"), weights={"letter-e": 3.0}, transform=log_sigmoid)
    expected = 3 * log_sigmoid(torch.tensor([[0.0], [2.0]]))[:, 0]
    assert f(prompts=PROMPTS, completions=COMPLETIONS) == pytest.approx(expected.tolist())


def test_every_objective_is_logged_when_the_trainer_can() -> None:
    logged: dict[str, float] = {}
    log_metric = logged.__setitem__
    f = reward_function(FakeBank("e", "i"), scalarizer="max_min", transform=log_sigmoid)
    f(prompts=PROMPTS, completions=COMPLETIONS, **trl_extras(log_metric=log_metric))
    assert logged == {"objective/letter-e": 1.0, "objective/letter-i": 1.0}
    logged.clear()
    assert f(prompts=[], completions=[], log_metric=log_metric) == []
    assert logged == {}


def test_unequal_scales_of_logits_do_not_matter() -> None:
    """The original weighed raw logits, so that the model with the largest ones decided."""
    even, uneven = FakeBank("e", "i"), FakeBank("e", "i", scales=[1.0, 100.0])
    texts = ["eee i", "iii"]
    assert not torch.equal(
        even.score(PROMPTS, texts, calibrated=False), uneven.score(PROMPTS, texts, calibrated=False)
    )
    for name in ("linear", "max_min", "bernoulli_nash"):
        rewards = [reward_function(b, scalarizer=name)(PROMPTS, texts) for b in (even, uneven)]
        assert rewards[0] == rewards[1]
    columns = [[f(PROMPTS, texts) for f in reward_functions(bank)] for bank in (even, uneven)]
    assert columns[0] == columns[1]


# Refusals


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_names_its_objective(value: float) -> None:
    bank = FixedBank(torch.tensor([[0.0, 0.0], [0.0, value]]))
    functions: list[RewardFunction] = [reward_function(bank), *reward_functions(bank)]
    for f in functions:  # kindness is refused too: its neighbour's fault would go unseen
        with pytest.raises(ScoreError, match=r"'brevity' in row 1 is .*(nan|inf)"):
            f(prompts=PROMPTS, completions=COMPLETIONS)


@pytest.mark.parametrize("shape", [(2, 1), (2, 3), (1, 2), (2,)])
def test_a_bank_that_lost_an_objective_or_a_row_is_refused(shape: tuple[int, ...]) -> None:
    bank = FixedBank(torch.zeros(shape))
    functions: list[RewardFunction] = [reward_function(bank), *reward_functions(bank)]
    for f in functions:
        with pytest.raises(OptionError, match=r"\(batch, objectives\) = \(2, 2\)"):
            f(prompts=PROMPTS, completions=COMPLETIONS)


def test_mistakes_show_before_training_starts() -> None:
    bank = FakeBank("a", "b")
    with pytest.raises(UnknownNameError, match="'max_min'"):
        reward_function(bank, scalarizer="max_mni")
    with pytest.raises(ObjectiveMismatchError, match="missing: letter-b; extra: letter-c"):
        reward_function(bank, weights={"letter-a": 1.0, "letter-c": 1.0})
    with pytest.raises(OptionError, match=r"takes no option temperatur; its options: temperature"):
        reward_function(bank, scalarizer="soft_max_min", temperatur=2.0)
    with pytest.raises(OptionError, match="its options: none"):
        reward_function(bank, scalarizer="linear", temperature=2.0)
    with pytest.raises(OptionError, match=r"temperature must be positive and finite, got 0\.0"):
        reward_function(bank, scalarizer="soft_max_min", temperature=0.0)
    with pytest.raises(OptionError, match="at least 0"):
        reward_function(
            bank, scalarizer="bernoulli_nash", weights={"letter-a": -1.0, "letter-b": 1.0}
        )
    with pytest.raises(OptionError, match="shape"):
        reward_function(bank, transform=lambda scores: scores[:, :1])
    assert bank.passes == []


def test_a_scalarizer_that_pools_the_batch_is_refused(scalarizer: Callable[..., str]) -> None:
    name = scalarizer(lambda scores, weights: (scores * weights).mean())
    with pytest.raises(OptionError, match=rf"'{name}' .*must return shape \(batch,\) = \(2,\)"):
        bind_scalarizer(name, ["a", "b"])


def test_a_reward_that_is_not_finite_is_refused(scalarizer: Callable[..., str]) -> None:
    name = scalarizer(lambda scores, weights: (scores * weights).sum(dim=1) / scores[:, 0])
    with pytest.raises(ScoreError, match=f"'{name}' returned a reward that is NaN or infinite"):
        bind_scalarizer(name, ["a", "b"])


def test_a_scalarizer_may_take_any_option(scalarizer: Callable[..., str]) -> None:
    name = scalarizer(lambda scores, weights, **options: (scores * weights).sum(1) + options["x"])
    combine = bind_scalarizer(name, ["a"], options={"x": 5.0})
    assert combine(torch.tensor([[1.0]])).tolist() == [6.0]


@pytest.fixture
def scalarizer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that registers a scalarizer for one test and returns its name."""

    def register(function: Callable[..., Tensor]) -> str:
        monkeypatch.setitem(SCALARIZERS._ours, "for_one_test", function)
        return "for_one_test"

    return register


# Names become tensors


def test_weights_follow_the_objectives() -> None:
    tensor = weight_tensor({"b": 2.0, "c": -1.0, "a": 0.0}, ("a", "b", "c"))
    assert (tensor.tolist(), tensor.dtype) == ([0.0, 2.0, -1.0], torch.float32)
    assert weight_tensor(None, ("a", "b", "c", "d")).tolist() == [0.25] * 4
    assert weight_tensor(None, ("a",)).tolist() == [1.0]


@pytest.mark.parametrize("names", [[], ["a"], ["a", "b", "c"], ["a", "c"]])
def test_weights_must_name_every_objective_and_no_other(names: list[str]) -> None:
    with pytest.raises(ObjectiveMismatchError):
        weight_tensor(dict.fromkeys(names, 1.0), ("a", "b"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_weights_must_be_finite(value: float) -> None:
    with pytest.raises(OptionError, match=r"weight of 'b' must be a finite"):
        weight_tensor({"a": 1.0, "b": value}, ("a", "b"))


def test_there_must_be_objectives() -> None:
    with pytest.raises(OptionError, match="at least one"):
        weight_tensor(None, ())


# In real trainers

# TRL sets and reads names that transformers is about to rename.
trl_warns = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

TEXTS = ["Name a fruit.", "What is rain?"]
STRINGS: list[Text] = list(TEXTS)
MESSAGES: list[Text] = [[{"role": "user", "content": text}] for text in TEXTS]


def train(
    algorithm: str, folder: Path, *, kind: Kind, prompts: list[Text], functions: Any, **more: Any
) -> list[dict[str, float]]:
    """Train a tiny model for two steps on four completions each; return what was logged."""
    import trl
    from datasets import Dataset

    arguments = {
        "output_dir": str(folder / "out"),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 6,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        **more,
    }
    trainer = getattr(trl, f"{algorithm}Trainer")(
        model=str(save_tiny(folder / "model", kind)),  # RLOO loads it twice: for reference
        reward_funcs=functions,
        args=getattr(trl, f"{algorithm}Config")(**arguments),
        train_dataset=Dataset.from_dict({"prompt": prompts, "topic": ["food", "weather"]}),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    return [row for row in trainer.state.log_history if "reward" in row]


@trl_warns
@pytest.mark.parametrize(("kind", "prompts"), [("llama", STRINGS), ("gpt2", MESSAGES)])
def test_grpo_asks_the_bank_once_a_step(kind: Kind, prompts: list[Text], tmp_path: Path) -> None:
    bank = FakeBank("a", "e", "\n")
    logs = train(
        "GRPO",
        tmp_path,
        kind=kind,
        prompts=prompts,
        functions=reward_functions(bank),
        reward_weights=[1.0, 0.5, 2.0],
        multi_objective_aggregation="normalize_then_sum",
    )
    assert len(logs) == len(bank.passes) == 2
    for row, (asked, responses) in zip(logs, bank.passes, strict=True):
        assert len(asked) == len(responses) == 4
        assert all(prompt in prompts for prompt in asked)
        means = bank._count(responses).mean(dim=0).tolist()
        for objective, mean in zip(bank.objectives, means, strict=True):
            assert row[f"rewards/{objective}/mean"] == pytest.approx(mean)


@trl_warns
@pytest.mark.parametrize(
    ("algorithm", "kind", "prompts"), [("GRPO", "llama", MESSAGES), ("RLOO", "gpt2", STRINGS)]
)
def test_trainers_log_every_objective_of_a_scalarizer(
    algorithm: str, kind: Kind, prompts: list[Text], tmp_path: Path
) -> None:
    bank = FakeBank("a", "e", "i")
    function = reward_function(bank, scalarizer="soft_max_min", temperature=0.5)
    logs = train(algorithm, tmp_path, kind=kind, prompts=prompts, functions=function)
    assert len(logs) == len(bank.passes) == 2
    for row, (_, responses) in zip(logs, bank.passes, strict=True):
        scores = bank._count(responses)
        for objective, mean in zip(bank.objectives, scores.mean(dim=0).tolist(), strict=True):
            assert row[f"objective/{objective}"] == pytest.approx(mean)
        combine = bind_scalarizer("soft_max_min", bank.objectives, options={"temperature": 0.5})
        assert row["rewards/soft_max_min/mean"] == pytest.approx(combine(scores).mean().item())
