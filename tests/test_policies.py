"""Policies: what is measured while training, what stops it, and what is kept."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from morlaif_hub.bank.adapter_config import ADAPTER_CONFIG
from morlaif_hub.bank.adapters import ADAPTER_WEIGHTS
from morlaif_hub.bank.bank import PMBank
from morlaif_hub.errors import (
    ArtifactError,
    BaseMismatchError,
    ModelNotFoundError,
    ObjectiveMismatchError,
    OptionError,
)
from morlaif_hub.hub.artifact import open_artifact, seal, weights_sha256
from morlaif_hub.hub.manifest import BaseManifest, PolicyManifest
from morlaif_hub.models.language_model import LanguageModel, ModelFolder, model_folder
from morlaif_hub.policies.artifact import load_policy, policy_summary
from morlaif_hub.policies.measure import HeldOut, mean_kl, measure
from morlaif_hub.policies.train import PolicySettings, RewardSpec, TrainedPolicy, train_policy
from tests.test_bank import make_pm
from tests.test_models import silent
from tests.tiny import save_tiny, tiny_causal_lm

PROMPTS = [[{"role": "user", "content": f"Say {i}"}] for i in range(8)]
HELD_OUT = [[{"role": "user", "content": f"Tell {i}"}] for i in range(3)]
SETTINGS = PolicySettings(
    max_steps=2,
    check_every=1,
    prompts_per_step=2,
    completions=2,
    max_new_tokens=6,
    temperature=1.0,
    learning_rate=1e-2,
    rank=2,
    dtype="float32",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return model_folder(save_tiny(tmp_path_factory.mktemp("base"), layers=2))


@pytest.fixture(scope="module")
def bank(base: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> PMBank:
    folder = tmp_path_factory.mktemp("pms")
    pms = [
        make_pm(folder / name, base.path, name, layers=[1], seed=seed)
        for seed, name in enumerate(["toxicity", "detail"])
    ]
    return PMBank.from_pretrained(pms, base=base.path)


@pytest.fixture(scope="module")
def trained(
    base: ModelFolder, bank: PMBank, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TrainedPolicy]:
    folder = tmp_path_factory.mktemp("policies") / "mine"
    reward = RewardSpec(bank, "linear", {"toxicity": 1.0, "detail": 0.0})
    policy = train_policy(
        base, reward, prompts=PROMPTS, held_out=HELD_OUT, folder=folder, settings=SETTINGS
    )
    return folder, policy


def test_every_step_is_checked_from_before_the_first_one(
    trained: tuple[Path, TrainedPolicy],
) -> None:
    manifest = trained[1].manifest
    assert [point.step for point in manifest.curve] == [0, 1, 2]
    assert manifest.curve[0].kl == pytest.approx(0.0, abs=1e-9)
    assert manifest.curve[2].kl > 0
    assert (manifest.steps, manifest.stopped_by) == (2, "max_steps")


def test_the_reward_is_the_weighted_objective(trained: tuple[Path, TrainedPolicy]) -> None:
    for point in trained[1].manifest.curve:
        assert point.reward == pytest.approx(point.objectives["toxicity"], abs=1e-5)


def test_the_artifact_is_the_policy_that_was_measured(
    trained: tuple[Path, TrainedPolicy], bank: PMBank
) -> None:
    folder, policy = trained
    manifest = open_artifact(folder, PolicyManifest)
    assert manifest == policy.manifest
    loaded = load_policy(folder, dtype="float32")
    combine = RewardSpec(bank).combine()
    seen = measure(loaded, HELD_OUT, bank=bank, combine=combine, sampling=SETTINGS.sampling)
    assert seen.texts == policy.after.texts


def test_a_policy_whose_base_is_not_here_is_refused(
    trained: tuple[Path, TrainedPolicy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path))  # nothing was used there before
    with pytest.raises(ModelNotFoundError, match="has no repo id"):
        load_policy(trained[0])


def resealed(source: Path, folder: Path, change: Callable[[Path], None], **fields: Any) -> Path:
    """Copy an artifact, change its files, and declare what came of it as its own."""
    manifest = open_artifact(source, PolicyManifest)
    shutil.copytree(source, folder)
    change(folder)
    seal(folder, replace(manifest, files=(), **fields))
    return folder


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")  # PEFT loads it all the same
def test_a_lora_that_lacks_a_tensor_is_refused(
    trained: tuple[Path, TrainedPolicy], tmp_path: Path
) -> None:
    def drop(folder: Path) -> None:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        tensors.pop(min(tensors))
        save_file(tensors, folder / ADAPTER_WEIGHTS)

    folder = resealed(trained[0], tmp_path / "less", drop)
    with pytest.raises(BaseMismatchError, match="on one side only"):
        load_policy(folder)


def test_a_lora_of_another_shape_is_refused(
    trained: tuple[Path, TrainedPolicy], tmp_path: Path
) -> None:
    def widen(folder: Path) -> None:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        tensors[min(tensors)] = torch.zeros(2, 48)
        save_file(tensors, folder / ADAPTER_WEIGHTS)

    with pytest.raises(BaseMismatchError, match="does not fit its base"):
        load_policy(resealed(trained[0], tmp_path / "wide", widen))


@pytest.mark.parametrize(
    ("key", "value"),
    [("auto_mapping", {"parent_library": "os"}), ("task_type", "SEQ_CLS"), ("peft_type", "IA3")],
)
def test_a_configuration_that_is_no_plain_lora_is_refused(
    trained: tuple[Path, TrainedPolicy], tmp_path: Path, key: str, value: object
) -> None:
    def configure(folder: Path) -> None:
        path = folder / ADAPTER_CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    with pytest.raises(ArtifactError, match=key):
        load_policy(resealed(trained[0], tmp_path / "odd", configure))


def test_a_policy_in_full_is_its_own_weights(
    trained: tuple[Path, TrainedPolicy], tmp_path: Path
) -> None:
    def put_model(folder: Path) -> None:
        (folder / ADAPTER_CONFIG).unlink()
        (folder / ADAPTER_WEIGHTS).unlink()
        save_tiny(folder, seed=9)

    folder = resealed(trained[0], tmp_path / "full", put_model, form="full")
    policy = load_policy(folder, dtype="float32")
    expected = tiny_causal_lm(seed=9).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in policy.model.state_dict().items())
    assert (policy.base.weights_sha256, policy.name) == (weights_sha256(folder), str(folder))
    assert policy.base.weights_sha256 != trained[1].manifest.base.weights_sha256


def test_the_licence_is_that_of_the_base_where_it_is_known(
    base: ModelFolder, bank: PMBank, trained: tuple[Path, TrainedPolicy], tmp_path: Path
) -> None:
    assert trained[1].manifest.license == "other"
    licensed = save_tiny(tmp_path / "licensed", layers=2)
    seal(licensed, BaseManifest(license="gemma", base=base.base, made_from="seed", versions={}))
    policy = train_policy(
        model_folder(licensed),
        RewardSpec(bank),
        prompts=PROMPTS,
        held_out=HELD_OUT,
        folder=tmp_path / "mine",
        settings=replace(SETTINGS, max_steps=1),
    )
    assert policy.manifest.license == "gemma"


def test_the_summary_has_what_was_trained_for_and_the_others(
    trained: tuple[Path, TrainedPolicy],
) -> None:
    manifest = trained[1].manifest
    summary = policy_summary(manifest)
    assert set(summary) == {
        "reward_before",
        "reward_after",
        "delta_interval",
        "others",
        "kl",
        "words_before",
        "words_after",
    }
    first, last = manifest.curve[0], manifest.curve[-1]
    assert summary["others"] == {"detail": last.objectives["detail"] - first.objectives["detail"]}
    low, high = summary["delta_interval"]
    assert low <= summary["reward_after"] - summary["reward_before"] <= high


def test_the_last_checkpoint_below_the_limit_is_kept(
    base: ModelFolder, bank: PMBank, trained: tuple[Path, TrainedPolicy], tmp_path: Path
) -> None:
    reached = [point.kl for point in trained[1].manifest.curve]
    assert reached[1] < reached[2]
    limited = replace(SETTINGS, max_kl=(reached[1] + reached[2]) / 2)
    reward = RewardSpec(bank, "linear", {"toxicity": 1.0, "detail": 0.0})
    policy = train_policy(
        base,
        reward,
        prompts=PROMPTS,
        held_out=HELD_OUT,
        folder=tmp_path / "limited",
        settings=limited,
    )
    manifest = policy.manifest
    assert (manifest.steps, manifest.stopped_by) == (1, "max_kl")
    assert manifest.kl == pytest.approx(reached[1])
    assert manifest.kl <= limited.max_kl < manifest.curve[-1].kl
    weights = load_file(tmp_path / "limited/adapter_model.safetensors")
    longer = load_file(trained[0] / "adapter_model.safetensors")
    assert any(not torch.equal(weights[key], longer[key]) for key in weights)


def test_another_scalarizer_is_one_reward_function(
    base: ModelFolder, bank: PMBank, tmp_path: Path
) -> None:
    reward = RewardSpec(bank, "max_min", {"toxicity": 1.0, "detail": 2.0})
    settings = replace(SETTINGS, max_steps=1)
    policy = train_policy(
        base,
        reward,
        prompts=PROMPTS,
        held_out=HELD_OUT,
        folder=tmp_path / "worst",
        settings=settings,
    )
    scores = policy.after.scores
    expected = np.minimum(scores[:, 0], 2 * scores[:, 1])
    np.testing.assert_allclose(policy.after.rewards, expected, rtol=1e-5)
    assert policy.manifest.scalarizer == "max_min"
    assert set(policy_summary(policy.manifest)["others"]) == {"toxicity", "detail"}


def test_a_step_costs_one_pass_of_the_bank(
    base: ModelFolder, bank: PMBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    score = PMBank.score

    def counted(self: PMBank, prompts: list, responses: list, **options: Any) -> torch.Tensor:
        passes.append(len(responses))
        return score(self, prompts, responses, **options)

    monkeypatch.setattr(PMBank, "score", counted)
    train_policy(
        base,
        RewardSpec(bank),
        prompts=PROMPTS,
        held_out=HELD_OUT,
        folder=tmp_path / "counted",
        settings=replace(SETTINGS, check_every=2),
    )
    steps = [n for n in passes if n == SETTINGS.prompts_per_step * SETTINGS.completions]
    assert len(steps) == SETTINGS.max_steps
    assert len(passes) == SETTINGS.max_steps + 2  # and the checks before and after


@contextmanager
def standing_in(policy: LanguageModel, reference: LanguageModel) -> Iterator[None]:
    """Let the policy's model answer as the reference."""
    own = policy.model.__dict__
    policy.model.__dict__ = reference.model.__dict__
    try:
        yield
    finally:
        policy.model.__dict__ = own


@torch.no_grad()
def divergences(
    policy: LanguageModel, reference: LanguageModel, prompt: list, response: Sequence[int]
) -> list[float]:
    """Return the KL before every token of one response, from the definition."""
    text = policy.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    before = policy.tokenizer(text)["input_ids"]
    ids = torch.tensor([[*before, *response]])
    p = torch.log_softmax(policy.model(input_ids=ids).logits[0], -1)
    q = torch.log_softmax(reference.model(input_ids=ids).logits[0], -1)
    found: list[float] = (p.exp() * (p - q)).sum(-1)[len(before) - 1 : -1].tolist()
    return found


def test_kl_is_that_of_the_definition_with_the_end_of_the_turn(
    base: ModelFolder, tmp_path: Path
) -> None:
    policy = LanguageModel.load(base.path, dtype="float32")
    reference = LanguageModel.load(save_tiny(tmp_path / "other", seed=4), dtype="float32")
    tokenizer = policy.tokenizer
    pairs = [
        (PROMPTS[0], (*tokenizer("abc def")["input_ids"], tokenizer.eos_token_id)),
        (PROMPTS[1], tuple(tokenizer("a tree")["input_ids"])),
    ]
    expected = [kl for pair in pairs for kl in divergences(policy, reference, *pair)]
    assert len(expected) == len(pairs[0][1]) + len(pairs[1][1])
    swapped = partial(standing_in, policy, reference)
    assert mean_kl(policy, pairs, swapped) == pytest.approx(np.mean(expected), rel=1e-4)
    assert mean_kl(policy, pairs, nullcontext) == 0.0


@pytest.mark.parametrize("distinct", [True, False])
def test_a_policy_that_fell_silent_is_measured_as_it_is(
    base: ModelFolder, bank: PMBank, distinct: bool
) -> None:
    policy = LanguageModel.load(base.path, dtype="float32")
    reference = LanguageModel.load(base.path, dtype="float32")
    with silent(policy):
        seen = measure(
            policy,
            HELD_OUT,
            bank=bank,
            combine=RewardSpec(bank).combine(),
            sampling=replace(SETTINGS.sampling, distinct=distinct),
            reference=partial(standing_in, policy, reference),
        )
        end = (policy.tokenizer.eos_token_id,)
        expected = [kl for p in HELD_OUT for kl in divergences(policy, reference, p, end)]
    assert seen.texts == ("",) * 6
    assert seen.prompts.tolist() == [0, 0, 1, 1, 2, 2]
    assert seen.kl == pytest.approx(np.mean(expected), rel=1e-4)
    assert seen.kl > 1
    point = seen.checkpoint(0, bank.objectives)
    assert (point.words, point.finished) == (0, 1)


def test_checks_keep_every_sample_as_it_comes() -> None:
    greedy = replace(SETTINGS, temperature=0.0).sampling
    assert (greedy.responses, greedy.distinct) == (2, False)


def held_out(rewards: list[float], prompts: list[int]) -> HeldOut:
    values = np.array(rewards)
    return HeldOut(
        scores=values[:, None],
        rewards=values,
        prompts=np.array(prompts),
        words=values,
        finished=np.zeros(len(rewards)),
        kl=0.0,
        texts=("",) * len(rewards),
    )


def test_the_change_and_its_interval_are_of_the_same_means() -> None:
    # Each prompt's mean rises by 1, where the mean over all responses falls from 6 to 4.
    before = held_out([0.0, 9.0, 9.0], [0, 1, 1])
    after = held_out([1.0, 1.0, 10.0], [0, 0, 1])
    first, last = before.checkpoint(0, ["toxicity"]), after.checkpoint(1, ["toxicity"])
    assert (first.reward, last.reward) == (4.5, 5.5)
    assert last.objectives["toxicity"] - first.objectives["toxicity"] == 1
    assert (first.words, last.words) == (4.5, 5.5)
    assert after.change_from(before) == (1, 1)
    uneven = held_out([2.0, 2.0, 9.0], [0, 0, 1])
    low, high = uneven.change_from(before)
    assert low == 0
    assert high == 2


def test_a_change_on_other_prompts_is_refused() -> None:
    with pytest.raises(OptionError, match="same prompts"):
        held_out([1.0, 2.0], [0, 1]).change_from(held_out([1.0, 2.0], [0, 2]))


def test_a_held_out_prompt_must_not_be_trained_on(
    base: ModelFolder, bank: PMBank, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="'Say 0' is trained on"):
        train_policy(
            base,
            RewardSpec(bank),
            prompts=PROMPTS,
            held_out=PROMPTS[:1],
            folder=tmp_path / "x",
            settings=SETTINGS,
        )
    assert not (tmp_path / "x").exists()


def test_weights_must_match_the_bank(base: ModelFolder, bank: PMBank, tmp_path: Path) -> None:
    with pytest.raises(ObjectiveMismatchError, match="missing: detail; extra: speed"):
        train_policy(
            base,
            RewardSpec(bank, "linear", {"toxicity": 1.0, "speed": 1.0}),
            prompts=PROMPTS,
            held_out=HELD_OUT,
            folder=tmp_path / "x",
            settings=SETTINGS,
        )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_steps": 0}, "max_steps"),
        ({"completions": 1}, "completions"),
        ({"max_kl": 0}, "max_kl"),
    ],
)
def test_impossible_settings_are_refused(change: dict, named: str) -> None:
    with pytest.raises(OptionError, match=named):
        replace(SETTINGS, **change)
