"""Training a policy by every algorithm: what all of them do alike, and what can go wrong."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from morlaif_hub.bank.bank import PMBank
from morlaif_hub.cli import cli
from morlaif_hub.cli.policies import _policy_report
from morlaif_hub.cli.policies import train_policy as train_policy_command
from morlaif_hub.errors import OptionError, ScoreError, TrainingError
from morlaif_hub.hub.artifact import open_artifact
from morlaif_hub.hub.manifest import PolicyManifest
from morlaif_hub.judges.base import Unanswered
from morlaif_hub.models.formats import encode, plain_text
from morlaif_hub.models.language_model import ModelFolder, load_tokenizer, model_folder
from morlaif_hub.policies import trl
from morlaif_hub.policies.artifact import load_policy
from morlaif_hub.policies.measure import HeldOut, measure
from morlaif_hub.policies.reading import training_tokenizer
from morlaif_hub.policies.referee import Referee
from morlaif_hub.policies.rewarding import reward_calls
from morlaif_hub.policies.settings import Algorithm, PolicySettings, RewardSpec, TrainedPolicy
from morlaif_hub.policies.train import train_policy
from morlaif_hub.principles import load_constitution
from morlaif_hub.workspace import Workspace
from tests.architectures import ARCHITECTURES
from tests.fake_judges import RuleJudge, always_first, longer, shorter
from tests.manifests import policy_manifest
from tests.test_bank import make_pm
from tests.tiny import save_tiny, tiny_causal_lm, tiny_tokenizer

ROOT = Path(__file__).parent.parent
ALGORITHMS = get_args(Algorithm)


def slow(*values: str) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


Algorithms = pytest.mark.parametrize(
    "algorithm", ["grpo", *(slow(name) for name in ALGORITHMS if name != "grpo")]
)

PROMPTS = [[{"role": "user", "content": f"Say {i}"}] for i in range(8)]
HELD_OUT = [[{"role": "user", "content": f"Tell {i}"}] for i in range(3)]
SETTINGS = PolicySettings(
    max_steps=2,
    check_every=1,
    prompts_per_step=4,
    max_new_tokens=6,
    temperature=1.0,
    learning_rate=1e-2,
    rank=2,
    dtype="float32",
)
WEIGHTS = {"toxicity": 1.0, "detail": 0.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return model_folder(save_tiny(tmp_path_factory.mktemp("base"), layers=2))


@pytest.fixture(scope="module")
def members(base: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pms")
    return [
        make_pm(folder / name, base.path, name, layers=[1], seed=seed)
        for seed, name in enumerate(WEIGHTS)
    ]


@pytest.fixture(scope="module")
def bank(base: ModelFolder, members: list[Path]) -> PMBank:
    return PMBank.from_pretrained(members, base=base.path)


def train(base: ModelFolder, bank: PMBank, folder: Path, **changes: Any) -> TrainedPolicy:
    """Train as most tests here do; `changes` are of the settings or of what is trained for."""
    options: dict[str, Any] = {
        "prompts": PROMPTS,
        "held_out": HELD_OUT,
        "settings": SETTINGS,
    }
    reward = changes.pop("reward", RewardSpec(bank, "linear", WEIGHTS))
    options |= {name: changes.pop(name) for name in list(changes) if name not in vars(SETTINGS)}
    options["settings"] = replace(options["settings"], **changes)
    return train_policy(base, reward, folder=folder, **options)


# What all algorithms do alike.


@pytest.mark.parametrize(
    ("algorithm", "form"),
    [
        *((name, "lora") for name in ALGORITHMS),
        ("grpo", "full"),
        *(slow(name, "full") for name in ALGORITHMS if name != "grpo"),
    ],
)
def test_the_artifact_is_the_policy_that_was_measured(
    base: ModelFolder, bank: PMBank, tmp_path: Path, algorithm: Any, form: Any
) -> None:
    made = train(base, bank, tmp_path / "mine", algorithm=algorithm, form=form)
    manifest = open_artifact(tmp_path / "mine", PolicyManifest)
    assert manifest == made.manifest
    assert (manifest.algorithm, manifest.form) == (algorithm, form)
    assert [point.step for point in manifest.curve] == [0, 1, 2]
    assert manifest.curve[0].kl == 0 < manifest.curve[2].kl
    for point in manifest.curve:
        assert point.reward == pytest.approx(point.objectives["toxicity"], abs=1e-5)
        assert point.distinct
    loaded = load_policy(tmp_path / "mine", dtype="float32")
    seen = measure(
        loaded,
        HELD_OUT,
        bank=bank,
        combine=RewardSpec(bank).combine(),
        sampling=SETTINGS.sampling,
    )
    assert seen.texts == made.after.texts
    assert seen.texts != made.before.texts


class Killed(BaseException):
    """Stands for the end of a process."""


def killed_after(steps: int) -> Callable[[int], None]:
    done = 0

    def tell(more: int) -> None:
        nonlocal done
        done += more
        if done > steps:
            raise Killed

    return tell


@Algorithms
def test_a_run_that_was_killed_goes_on_as_if_it_had_not(
    base: ModelFolder, bank: PMBank, tmp_path: Path, algorithm: Any
) -> None:
    changes = {"algorithm": algorithm, "max_steps": 4, "check_every": 2}
    whole = train(base, bank, tmp_path / "whole", **changes)
    checkpoints = tmp_path / "training"
    with pytest.raises(Killed):
        train(
            base,
            bank,
            tmp_path / "mine",
            checkpoints=checkpoints,
            progress=killed_after(2),
            **changes,
        )
    assert not (tmp_path / "mine").exists()
    steps: list[int] = []
    made = train(
        base, bank, tmp_path / "mine", checkpoints=checkpoints, progress=steps.append, **changes
    )
    assert steps == [2, 1, 1]
    assert made.manifest.curve == whole.manifest.curve
    weights = load_file(tmp_path / "mine/adapter_model.safetensors")
    for name, weight in load_file(tmp_path / "whole/adapter_model.safetensors").items():
        assert torch.equal(weight, weights[name]), name
    assert not checkpoints.exists()


@pytest.mark.parametrize("algorithm", ["ppo", slow("grpo")])
def test_a_run_keeps_two_checkpoints(
    base: ModelFolder, bank: PMBank, tmp_path: Path, algorithm: Any
) -> None:
    with pytest.raises(Killed):
        train(
            base,
            bank,
            tmp_path / "mine",
            algorithm=algorithm,
            checkpoints=tmp_path / "training",
            max_steps=12,
            progress=killed_after(10),
        )
    (run,) = (tmp_path / "training").iterdir()
    assert {path.name for path in run.iterdir()} == {"checkpoint-9", "checkpoint-10"}


@pytest.mark.slow
def test_another_run_does_not_go_on_from_its_checkpoints(
    base: ModelFolder, bank: PMBank, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        train(
            base,
            bank,
            tmp_path / "mine",
            checkpoints=tmp_path / "training",
            progress=killed_after(1),
        )
    steps: list[int] = []
    train(
        base,
        bank,
        tmp_path / "mine",
        checkpoints=tmp_path / "training",
        progress=steps.append,
        seed=1,
    )
    assert steps == [1, 1]
    assert len(list((tmp_path / "training").iterdir())) == 1  # the one that was killed


# What can go wrong.


@Algorithms
def test_a_reward_that_is_no_number_stops_the_run_and_keeps_what_was_good(
    base: ModelFolder,
    bank: PMBank,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    algorithm: Any,
) -> None:
    score, batches = PMBank.score, 0

    def broken(self: PMBank, prompts: list, responses: list, **options: Any) -> torch.Tensor:
        nonlocal batches
        scores = score(self, prompts, responses, **options)
        batches += 1
        if batches == 6:  # a check, and then a step and a check, by turns: the third step
            scores[0, 1] = math.nan
        return scores

    monkeypatch.setattr(PMBank, "score", broken)
    with pytest.raises(TrainingError, match=r"'detail'.* of step 2 are kept in") as told:
        train(base, bank, tmp_path / "mine", algorithm=algorithm, max_steps=4)
    assert isinstance(told.value.__cause__, ScoreError)
    manifest = open_artifact(tmp_path / "mine", PolicyManifest)
    assert (manifest.steps, manifest.stopped_by) == (2, "failure")
    assert [point.step for point in manifest.curve] == [0, 1, 2]


def test_nothing_is_written_where_nothing_was_learnt(
    base: ModelFolder, bank: PMBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = PMBank.score

    def broken(self: PMBank, prompts: list, responses: list, **options: Any) -> torch.Tensor:
        scores = score(self, prompts, responses, **options)
        return scores * math.nan if len(scores) > 6 else scores  # a step's, not a check's

    monkeypatch.setattr(PMBank, "score", broken)
    with pytest.raises(TrainingError, match="'toxicity'") as told:
        train(base, bank, tmp_path / "mine", completions=4)
    assert "are kept" not in str(told.value)
    assert not (tmp_path / "mine").exists()


@Algorithms
def test_numbers_that_blow_up_stop_the_run_and_leave_what_was_finite(
    base: ModelFolder, bank: PMBank, tmp_path: Path, algorithm: Any
) -> None:
    with pytest.raises(TrainingError, match=r"not finite|nan|inf") as told:
        train(base, bank, tmp_path / "mine", algorithm=algorithm, learning_rate=1e30, max_steps=3)
    weights = tmp_path / "mine/adapter_model.safetensors"
    assert ("are kept in" in str(told.value)) == weights.exists()
    for weight in load_file(weights).values() if weights.exists() else ():
        assert weight.isfinite().all()


def test_memory_that_runs_out_names_what_to_lower(
    base: ModelFolder, bank: PMBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = PMBank.score

    def full(self: PMBank, prompts: list, responses: list, **options: Any) -> torch.Tensor:
        if len(responses) == 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return score(self, prompts, responses, **options)

    monkeypatch.setattr(PMBank, "score", full)
    with pytest.raises(TrainingError, match="memory ran out at step 1, with 16 completions of up"):
        train(base, bank, tmp_path / "mine", completions=4)
    with pytest.raises(TrainingError, match="lower batch_size below 4, or prompts_per_step"):
        train(base, bank, tmp_path / "mine", completions=4, batch_size=4)


def test_a_full_disk_is_told_and_the_checkpoint_before_stays(
    base: ModelFolder, bank: PMBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def full(what: Any, path: Any, *args: Any, **named: Any) -> None:
        if "checkpoint-2" in str(path):
            raise OSError(28, "No space left on device", str(path))
        save(what, path, *args, **named)

    monkeypatch.setattr(torch, "save", full)
    options = {"checkpoints": tmp_path / "training", "max_steps": 3}
    with pytest.raises(TrainingError, match=r"No space left.*step 2 are kept in"):
        train(base, bank, tmp_path / "mine", **options)
    monkeypatch.undo()
    steps: list[int] = []
    made = train(base, bank, tmp_path / "mine", progress=steps.append, **options)
    assert steps == [1, 1, 1]
    assert made.manifest.steps == 3


# How TRL's trainers are called.


def test_prompts_are_put_side_by_side_and_their_answers_put_back() -> None:
    seen: list[torch.Tensor] = []

    def generate(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        seen.extend((input_ids, attention_mask))
        answer = input_ids.sum(1, keepdim=True) + 10 * torch.arange(len(input_ids))[:, None]
        return torch.cat([input_ids, answer], 1)

    prompts = torch.tensor([[7, 1], [3, 2], [0, 4]])
    mask = torch.tensor([[1, 1], [1, 1], [0, 1]])
    rows = trl._side_by_side(
        generate, input_ids=prompts.repeat(2, 1), attention_mask=mask.repeat(2, 1)
    )
    pairs = seen[0].view(3, 2, 2)
    assert torch.equal(pairs[:, 0], pairs[:, 1])  # equal ones are neighbours
    assert torch.equal(seen[1] == 0, seen[0] == 0)  # each with its own mask
    assert torch.equal(rows[:, :2], prompts.repeat(2, 1))  # and back in their places
    assert len(set(rows[:, 2].tolist())) == 6
    assert [int(v) % 10 for v in rows[:, 2]] == [8, 5, 4, 8, 5, 4]


def test_steps_have_different_prompts_and_epochs_an_order_of_their_own() -> None:
    settings = replace(SETTINGS, prompts_per_step=3, max_steps=9).planned(8)
    work = trl.Work(PROMPTS, 10, [], None, settings, 1, Path())
    steps = np.array([row[0]["content"] for row in trl._in_order(work)["prompt"]]).reshape(9, 3)
    assert all(len(set(step)) == 3 for step in steps)
    epochs = steps[:8].reshape(4, 6)  # two steps of three prompts are all that eight allow
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len(set(steps.flatten())) == 8
    again = trl._in_order(replace(work, settings=replace(settings, max_steps=2)))["prompt"]
    assert [row[0]["content"] for row in again] == steps[:2].flatten().tolist()


# The independent judge.


def answers(*texts: str, prompts: tuple[int, ...] = ()) -> HeldOut:
    """Return what was seen of answers, two to each prompt."""
    numbers = np.array(prompts or [i // 2 for i in range(len(texts))])
    values = np.zeros(len(texts))
    return HeldOut(values[:, None], values, numbers, values, values, 0.0, texts)


def test_the_judges_share_is_that_of_answers_that_got_better() -> None:
    judge = RuleJudge(shorter)
    referee = Referee(judge, load_constitution().get("helpfulness"))
    before = answers("a long answer", "same", "short", "", "", "one")
    now = answers("brief", "same", "much longer", "spoke", "", "one and more")
    shares = referee.shares(HELD_OUT, now, before)
    assert shares.values.tolist() == [1.0, 0.5, 0.0, 1.0, 0.5, 0.0]
    assert shares.mean == 0.5
    assert len(judge.asked) == 3  # what is equal or empty needs no judge
    assert {question.principle.name for question in judge.asked} == {"helpfulness"}
    assert [q.comparison.prompt[0]["content"] for q in judge.asked] == [
        "Tell 0",
        "Tell 1",
        "Tell 2",
    ]
    referee.shares(HELD_OUT, now, before)
    assert len(judge.asked) == 3  # nor does what it said already


def test_a_judge_that_looks_at_the_place_alone_prefers_nothing() -> None:
    referee = Referee(RuleJudge(always_first), load_constitution().get("helpfulness"))
    shares = referee.shares(HELD_OUT, answers("a", "b"), answers("c", "d"))
    assert shares.values.tolist() == [0.5, 0.5]


def test_what_a_judge_leaves_unanswered_counts_for_neither() -> None:
    class Silent(RuleJudge):
        def verdicts(self, questions: Any, *, progress: Any = None) -> Any:
            found = super().verdicts(questions, progress=progress)
            return [Unanswered("refused"), *found[1:]]

    referee = Referee(Silent(longer), load_constitution().get("helpfulness"))
    shares = referee.shares(HELD_OUT, answers("aa", "bb"), answers("c", "d"))
    assert shares.answered.tolist() == [False, True]
    assert shares.mean == 1.0


@pytest.mark.parametrize("algorithm", ["grpo", slow("ppo")])
def test_a_judge_watches_and_the_manifest_tells(
    base: ModelFolder, bank: PMBank, tmp_path: Path, algorithm: Any
) -> None:
    judge, principle = RuleJudge(shorter), load_constitution().get("empathy")
    changes = {"algorithm": algorithm, "judge": (judge, principle), "max_steps": 4}
    made = train(base, bank, tmp_path / "whole", check_every=2, **changes)
    first, middle, last = made.manifest.curve
    assert first.judged is None
    assert middle.judged is not None
    better = [len(a) < len(b) for a, b in zip(made.after.texts, made.before.texts, strict=True)]
    equal = [len(a) == len(b) for a, b in zip(made.after.texts, made.before.texts, strict=True)]
    assert last.judged == pytest.approx(np.mean(better) + np.mean(equal) / 2)
    watched = made.manifest.watched
    assert watched is not None
    assert watched.judge is not None
    assert (watched.judge.spec, watched.judge.principle) == ("fake:rule", "empathy")
    low, high = watched.judge.interval
    assert low <= last.judged <= high
    with pytest.raises(Killed):
        train(
            base,
            bank,
            tmp_path / "mine",
            check_every=2,
            checkpoints=tmp_path / "training",
            progress=killed_after(3),
            **changes,
        )
    again = train(
        base, bank, tmp_path / "mine", check_every=2, checkpoints=tmp_path / "training", **changes
    )
    assert again.manifest.curve == made.manifest.curve
    assert again.manifest.watched == watched


# Prompts, models and settings of all kinds.


def save_family(name: str, folder: Path, *, template: bool) -> ModelFolder:
    """Save a tiny causal language model of a family that the bank's base is not of."""
    kind, tokenizer = ARCHITECTURES[name], tiny_tokenizer()
    config = AutoConfig.for_model(
        kind.model_type,
        vocab_size=len(tokenizer),
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **kind.options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    if not template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return model_folder(folder)


@pytest.mark.parametrize(
    ("family", "template", "algorithm"),
    [
        ("gpt2", False, "grpo"),
        ("llama", False, "ppo"),
        ("gemma2", True, "rloo"),
        ("qwen2", True, "online-dpo"),
        slow("gpt2", False, "ppo"),  # type: ignore[arg-type]
        slow("gemma2", True, "ppo"),  # type: ignore[arg-type]
        slow("qwen3", True, "grpo"),  # type: ignore[arg-type]
        slow("gpt2", False, "online-dpo"),  # type: ignore[arg-type]
    ],
)
def test_every_family_is_trained_whatever_the_banks_base_is(
    bank: PMBank, tmp_path: Path, family: str, template: bool, algorithm: Any
) -> None:
    policy = save_family(family, tmp_path / "base", template=template)
    made = train(policy, bank, tmp_path / "mine", algorithm=algorithm, max_steps=1)
    assert made.manifest.curve[1].kl > 0
    loaded = load_policy(tmp_path / "mine", dtype="float32")
    assert bool(loaded.tokenizer.chat_template) == template
    seen = measure(
        loaded,
        HELD_OUT,
        bank=bank,
        combine=RewardSpec(bank).combine(),
        sampling=SETTINGS.sampling,
    )
    assert seen.texts == made.after.texts


def test_a_policy_without_a_template_is_trained_on_plain_prompts(tmp_path: Path) -> None:
    folder = save_family("gpt2", tmp_path, template=False).path
    tokenizer = training_tokenizer(folder)
    messages = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "Say 1"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(ids) == plain_text(messages) == "Be brief. \nSay 1"
    assert ids == encode(load_tokenizer(folder), plain_text(messages))


def test_prompts_that_the_model_cannot_take_are_left_out_and_counted(
    base: ModelFolder, bank: PMBank, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = [{"role": "user", "content": "x" * 600}]
    made = train(
        base,
        bank,
        tmp_path / "mine",
        prompts=[*PROMPTS, long],
        held_out=[*HELD_OUT, [{"role": "user", "content": "y" * 600}]],
        max_steps=1,
    )
    watched = made.manifest.watched
    assert watched is not None
    assert (watched.trained_on, watched.held_out, watched.left_out) == (8, 3, 2)
    assert "1 of 9 prompts to train on are left out: they have more than the 506" in caplog.text
    with pytest.raises(OptionError, match="none of the 1 prompts to train on fits the model"):
        train(base, bank, tmp_path / "none", prompts=[long])


def test_a_template_that_refuses_a_prompt_is_named(bank: PMBank, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    tiny_causal_lm().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(OptionError, match=r"take the prompt 'Say 0'.*System role not"):
        train(model_folder(tmp_path), bank, tmp_path / "mine")


def test_a_tokenizer_of_another_model_is_told(bank: PMBank, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tiny_causal_lm().save_pretrained(tmp_path)
    tokenizer.add_tokens(["Say"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="makes the token 291 of a prompt, but the model has 291"):
        train(model_folder(tmp_path), bank, tmp_path / "mine")


@Algorithms
def test_a_policy_that_moves_too_far_is_stopped(
    base: ModelFolder, bank: PMBank, tmp_path: Path, algorithm: Any
) -> None:
    made = train(base, bank, tmp_path / "mine", algorithm=algorithm, max_kl=1e-9, max_steps=3)
    manifest = made.manifest
    assert [point.step for point in manifest.curve] == [0, 1]
    assert (manifest.steps, manifest.stopped_by, manifest.kl) == (0, "max_kl", 0.0)
    assert made.after.texts == made.before.texts
    weights = load_file(tmp_path / "mine/adapter_model.safetensors")
    assert not any(weight.any() for name, weight in weights.items() if "lora_B" in name)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_step_in_parts_learns_the_same(
    base: ModelFolder, bank: PMBank, tmp_path: Path, algorithm: Any
) -> None:
    for size in (16, 4):
        train(
            base,
            bank,
            tmp_path / str(size),
            algorithm=algorithm,
            completions=4,
            batch_size=size,
            max_steps=1,
            learning_rate=1e-3,
        )
    whole, parts = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("16", "4"))
    changed = [name for name, weight in whole.items() if "lora_B" in name and weight.any()]
    assert changed
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, atol=2e-5, rtol=1e-3)


def test_gdpo_is_another_way_to_sum_for_grpo_alone(
    base: ModelFolder, bank: PMBank, tmp_path: Path
) -> None:
    reward = RewardSpec(bank, "linear", {"toxicity": 1.0, "detail": 9.0})
    kept = {}
    for aggregation in ("sum_then_normalize", "normalize_then_sum"):
        folder = tmp_path / aggregation
        made = train(base, bank, folder, reward=reward, aggregation=aggregation, max_steps=1)
        assert made.manifest.settings["aggregation"] == aggregation
        kept[aggregation] = load_file(folder / "adapter_model.safetensors")
    one, other = kept.values()
    assert any(not torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(OptionError, match="'normalize_then_sum' is for grpo, not for rloo"):
        PolicySettings(algorithm="rloo", aggregation="normalize_then_sum")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm": "dpo"}, "one of grpo, rloo, online-dpo, ppo, got 'dpo'"),
        ({"algorithm": "online-dpo", "completions": 4}, "must be 2 for online-dpo, got 4"),
        ({"algorithm": "ppo", "completions": 2}, "must be 1 for ppo, got 2"),
        ({"completions": 1}, "at least 2, got 1"),
        ({"epochs": 0.0}, "epochs must be greater than 0, got 0.0"),
        ({"beta": -1.0}, "beta must not be negative, got -1.0"),
        ({"algorithm": "ppo", "vllm": "colocate"}, "ppo samples by itself"),
        ({"vllm": "localhost:8000"}, "or the URL of a server"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=re.escape(said)):
        PolicySettings(**changes)


@pytest.mark.parametrize(
    ("changes", "prompts", "said"),
    [
        ({"prompts_per_step": 9}, 8, "prompts_per_step is 9, but there are 8 prompts"),
        ({"temperature": 0.0}, 8, "temperature must be greater than 0 to train"),
    ],
)
def test_what_cannot_be_planned_is_named(changes: Any, prompts: int, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        PolicySettings(**changes).planned(prompts)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_step_has_as_many_completions_by_every_algorithm(algorithm: Any) -> None:
    planned = PolicySettings(algorithm=algorithm, epochs=2).planned(100)
    assert planned.step_rows == 32
    assert planned.max_steps == math.ceil(200 / (planned.prompts_per_step or 1))
    assert PolicySettings(algorithm=algorithm).planned(3).prompts_per_step == 3
    for processes in (1, 2, 4):
        each = 32 // processes
        assert planned.rows_at_once(processes) == each
        assert replace(planned, max_new_tokens=1024).rows_at_once(processes) == min(4, each)
    with pytest.raises(OptionError, match="32 completions cannot be shared by 3 processes"):
        planned.rows_at_once(3)
    with pytest.raises(OptionError, match="batch_size must divide the 32 completions"):
        replace(planned, batch_size=5).rows_at_once(1)


def test_vllm_that_is_not_there_is_told(base: ModelFolder, bank: PMBank, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="vLLM cannot be used"):
        train(base, bank, tmp_path / "mine", vllm="http://127.0.0.1:9")


# Several processes.


def command_line(
    base: ModelFolder, members: list[Path], workspace: Path, *options: str
) -> list[str]:
    workspace.mkdir(exist_ok=True)
    prompts = workspace / "prompts.txt"
    prompts.write_text("".join(f"Say {i}\n" for i in range(15)))
    banks = [word for member in members for word in ("--bank", str(member))]
    line = ["train-policy", "--model", str(base.path), "--prompts", str(prompts), *banks, "--json"]
    line += ["--max-new-tokens", "6", "--learning-rate", "1e-2", "--dtype", "float32"]
    line += ["--max-steps", "2", "--check-every", "1", "--workspace", str(workspace)]
    return [*line, *options]


def launched(line: list[str], processes: int = 2) -> "subprocess.CompletedProcess[str]":
    way = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    return subprocess.run(
        [*way, str(processes), "-m", "morlaif_hub", *line],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_two_processes_train_one_policy_and_one_of_them_speaks(
    base: ModelFolder, members: list[Path], tmp_path: Path, algorithm: str
) -> None:
    workspace = tmp_path / "two"
    line = command_line(base, members, workspace, "--algorithm", algorithm)
    done = launched([*line, "--prompts-per-step", "4"])
    assert done.returncode == 0, done.stderr[-3000:]
    data = json.loads(done.stdout)  # once, or this is no JSON
    assert done.stderr.count("reward: linear of") == 1
    manifest = open_artifact(workspace / "policies/policy", PolicyManifest)
    assert data["kl"] == manifest.kl > 0
    assert [point.step for point in manifest.curve] == [0, 1, 2]
    assert not (workspace / "training").exists()
    loaded = load_policy(workspace / "policies/policy", dtype="float32")
    held_out = manifest.watched and manifest.watched.held_out
    assert held_out == 3
    assert loaded.base.weights_sha256 == base.base.weights_sha256


def test_what_fails_in_one_process_fails_in_all(bank: PMBank) -> None:
    """A reward asks the others before it returns, and raises what one of them raised."""

    class Two:
        count, main = 2, False
        failure: Exception | None = None

        def together(self, work: Callable[[], object]) -> list[object]:
            work()
            if self.failure is not None:
                raise self.failure
            return [None, None]

    processes = Two()
    one, other = reward_calls(RewardSpec(bank), processes)  # type: ignore[arg-type]
    assert (one.__name__, other.__name__) == bank.objectives
    given = {"prompts": ["Say 1"], "completions": ["yes"]}
    assert one(**given) == bank.score(["Say 1"], ["yes"])[:, 0].tolist()
    processes.failure = ScoreError("in the other one")
    with pytest.raises(ScoreError, match="in the other one"):
        other(**given)


# The command.


def test_the_command_tells_what_the_judge_said_and_goes_on_where_it_was_killed(
    base: ModelFolder, members: list[Path], tmp_path: Path
) -> None:
    judge = ["--judge", f"local:{base.path}?dtype=float32", "--judge-on", "empathy"]
    line = command_line(base, members, tmp_path / "one", *judge, "--algorithm", "rloo")
    done = CliRunner().invoke(cli, line)
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    manifest = open_artifact(tmp_path / "one/policies/policy", PolicyManifest)
    assert manifest.algorithm == "rloo"
    assert manifest.watched is not None
    assert manifest.watched.judge is not None
    assert data["judge"] == {
        "spec": manifest.watched.judge.spec,
        "principle": "empathy",
        "preferred": manifest.curve[-1].judged,
        "interval": list(manifest.watched.judge.interval),
    }
    assert set(data["change_intervals"]) == set(WEIGHTS)
    assert data["distinct_before"] == manifest.curve[0].distinct
    assert not (tmp_path / "one/training").exists()


def test_a_warning_stands_below_the_table(tmp_path: Path) -> None:
    report = _policy_report(policy_manifest(), Workspace(tmp_path))
    shown = " ".join(report.text.split())
    assert "preferred by the judge - 30 %" in shown
    assert "WARNING: The reward rose by 1.01, but the answers became alike: 75% of them" in shown
    assert len(report.data["warnings"]) == 2
    json.dumps(report.data)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--judge", "local:", "--judge-on", "wit"), "unknown principle 'wit'"),
        (("--algorithm", "ppo", "--completions", "3"), "completions must be 1 for ppo, got 3"),
        (("--prompts-per-step", "99"), "prompts_per_step is 99, but there are 12 prompts"),
        (("--weights", "toxicity=1,speed=1"), "missing: detail; extra: speed"),
    ],
)
def test_bad_options_are_one_line(
    base: ModelFolder, members: list[Path], tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    done = CliRunner().invoke(cli, command_line(base, members, tmp_path / "bad", *options))
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert said in done.stderr
    assert not (tmp_path / "bad/policies").exists()


# The examples.


def commands(script: Path) -> list[list[str]]:
    """Return the words of every line of a shell script, continued lines as one."""
    text = script.read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines()]


SCRIPTS = sorted((ROOT / "examples/train_policy").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_examples_are_what_shell_accelerate_and_command_take(script: Path) -> None:
    assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0
    launches = [words for words in commands(script) if "train-policy" in words]
    assert launches
    for words in launches:
        config = load_config_from_file(str(ROOT / words[words.index("--config_file") + 1]))
        several = script.stem in ("several_gpus", "fsdp")
        assert (config.num_processes > 1) == several
        assert (config.distributed_type == "FSDP") == (script.stem == "fsdp")
        given = [word.replace("$algorithm", "ppo") for word in words]
        given = given[given.index("train-policy") + 1 :]
        context = train_policy_command.make_context("train-policy", given)
        names = {field.name for field in fields(PolicySettings)}
        chosen = {name: value for name, value in context.params.items() if name in names}
        settings = PolicySettings(**chosen).planned(1000)
        assert settings.rows_at_once(config.num_processes) > 0


def test_there_is_an_example_for_every_way() -> None:
    assert {path.stem for path in SCRIPTS} == {"one_gpu", "several_gpus", "fsdp", "vllm"}
