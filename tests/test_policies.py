"""Policies: what is measured while training, what stops it, and what is kept."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from morlaif_hub.bank.bank import PMBank
from morlaif_hub.errors import ModelNotFoundError, ObjectiveMismatchError, OptionError
from morlaif_hub.hub.artifact import open_artifact
from morlaif_hub.hub.manifest import PolicyManifest
from morlaif_hub.models.generation import SamplingSettings
from morlaif_hub.models.language_model import LanguageModel, ModelFolder, model_folder
from morlaif_hub.policies.artifact import load_policy, policy_summary
from morlaif_hub.policies.measure import mean_kl, measure
from morlaif_hub.policies.trl import Objective, PolicySettings, TrainedPolicy, train_policy
from tests.test_bank import make_pm
from tests.tiny import save_tiny

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
    objective = Objective(bank, "linear", {"toxicity": 1.0, "detail": 0.0})
    policy = train_policy(
        base, objective, prompts=PROMPTS, held_out=HELD_OUT, folder=folder, settings=SETTINGS
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
    sampling = SamplingSettings(responses=2, max_new_tokens=6, temperature=1.0)
    seen = measure(
        loaded, HELD_OUT, bank=bank, combine=Objective(bank).combine(), sampling=sampling
    )
    assert seen.texts == policy.after.texts


def test_a_policy_whose_base_is_not_here_is_refused(
    trained: tuple[Path, TrainedPolicy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path))  # nothing was used there before
    with pytest.raises(ModelNotFoundError, match="has no repo id"):
        load_policy(trained[0])


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
    objective = Objective(bank, "linear", {"toxicity": 1.0, "detail": 0.0})
    policy = train_policy(
        base,
        objective,
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
    objective = Objective(bank, "max_min", {"toxicity": 1.0, "detail": 2.0})
    settings = replace(SETTINGS, max_steps=1)
    policy = train_policy(
        base,
        objective,
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
        Objective(bank),
        prompts=PROMPTS,
        held_out=HELD_OUT,
        folder=tmp_path / "counted",
        settings=replace(SETTINGS, check_every=2),
    )
    steps = [n for n in passes if n == SETTINGS.prompts_per_step * SETTINGS.completions]
    assert len(steps) == SETTINGS.max_steps
    assert len(passes) == SETTINGS.max_steps + 2  # and the checks before and after


@torch.no_grad()
def test_kl_is_that_of_the_definition(base: ModelFolder, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", seed=4)
    policy = LanguageModel.load(base.path, dtype="float32")
    reference = LanguageModel.load(other, dtype="float32")

    @contextmanager
    def swapped() -> Iterator[None]:
        policy_forward = policy.model.forward
        policy.model.forward = reference.model.forward
        yield
        policy.model.forward = policy_forward

    pairs = [(PROMPTS[0], "abc def"), (PROMPTS[1], "a tree")]
    total = tokens = 0.0
    for prompt, response in pairs:
        text = policy.tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True
        )
        start = len(policy.tokenizer(text)["input_ids"])
        ids = torch.tensor([policy.tokenizer(text + response)["input_ids"]])
        p = torch.log_softmax(policy.model(input_ids=ids).logits[0], -1)
        q = torch.log_softmax(reference.model(input_ids=ids).logits[0], -1)
        per_token = (p.exp() * (p - q)).sum(-1)[start - 1 : -1]
        total, tokens = total + float(per_token.sum()), tokens + len(per_token)
    assert mean_kl(policy, pairs, swapped) == pytest.approx(total / tokens, rel=1e-4)
    assert mean_kl(policy, pairs, nullcontext) == 0.0


def test_a_held_out_prompt_must_not_be_trained_on(
    base: ModelFolder, bank: PMBank, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="'Say 0' is trained on"):
        train_policy(
            base,
            Objective(bank),
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
            Objective(bank, "linear", {"toxicity": 1.0, "speed": 1.0}),
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
