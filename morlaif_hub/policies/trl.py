"""Aligning a policy with TRL's GRPO, watched on held-out prompts.

The reward that is trained for rises by design. What matters beside it is measured at every check:
the other principles, how far the policy moved, how long its answers are and whether they end.

Source:
    arXiv:2402.03300 (GRPO); arXiv:2210.10760 (over-optimisation and its measure, the KL).
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from morlaif_hub.bank.adapters import save_adapter
from morlaif_hub.bank.artifact import objective_records
from morlaif_hub.bank.bank import PMBank
from morlaif_hub.comparisons import Message
from morlaif_hub.errors import OptionError
from morlaif_hub.figures import learning_curves, png
from morlaif_hub.hub.artifact import seal, stage
from morlaif_hub.hub.client import without_telemetry
from morlaif_hub.hub.manifest import (
    MANIFEST_NAME,
    BaseManifest,
    PolicyCheckpoint,
    PolicyManifest,
    WeightRecord,
    read_manifest,
)
from morlaif_hub.models.decoding import decode
from morlaif_hub.models.generation import SamplingSettings
from morlaif_hub.models.language_model import LanguageModel, ModelFolder, load_tokenizer
from morlaif_hub.policies.measure import HeldOut, measure
from morlaif_hub.policies.shared_prompts import share_prompts
from morlaif_hub.rewards import bind_scalarizer, reward_function, reward_functions

Progress = Callable[[int], None]
Algorithm = Literal["grpo"]
Prompts = Sequence[Sequence[Message]]
TOKENS_AT_ONCE = 4096
"""Of completions, whose activations are kept for one backward pass."""


@dataclass(frozen=True)
class PolicySettings:
    """How a policy is trained.

    Attributes:
        max_steps: Optimizer steps at the most.
        max_kl: Stop at the first check above this mean KL per token to the reference policy, in
            nats, and keep the last checkpoint below it; None for no limit.
        check_every: Steps between two checks on held-out prompts.
        prompts_per_step: Different prompts in a step.
        completions: Sampled per prompt in a step.
        max_new_tokens: Limit of a completion.
        temperature: Of sampling, in training and in checks.
        learning_rate: Of the LoRA.
        beta: Weight of the KL in the loss.
        rank: Of the LoRA.
        seed: Of everything that is drawn.
        dtype: Of the base; the LoRA is in float32.
    """

    max_steps: int = 10
    max_kl: float | None = None
    check_every: int = 2
    prompts_per_step: int = 4
    completions: int = 8
    max_new_tokens: int = 32
    temperature: float = 0.8
    learning_rate: float = 5e-4
    beta: float = 0.02
    rank: int = 8
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("max_steps", "check_every", "prompts_per_step", "rank", "learning_rate"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name} must be greater than 0, got {getattr(self, name)}")
        if self.completions < 2:
            raise OptionError(
                f"completions must be at least 2, got {self.completions}: GRPO compares the "
                "completions of one prompt"
            )
        if self.max_kl is not None and not self.max_kl > 0:
            raise OptionError(f"max_kl must be greater than 0, got {self.max_kl}")

    @property
    def sampling(self) -> SamplingSettings:
        """How responses to held-out prompts are sampled, at every check alike."""
        return SamplingSettings(
            responses=2,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            distinct=False,
        )


@dataclass(frozen=True)
class RewardSpec:
    """What a policy is trained for: a bank and how its scores become one reward.

    Attributes:
        bank: The preference models.
        scalarizer: A name in `SCALARIZERS`.
        weights: One per objective of the bank; none means 1/K each.
    """

    bank: PMBank
    scalarizer: str = "linear"
    weights: Mapping[str, float] | None = None

    @property
    def named_weights(self) -> dict[str, float]:
        """The weight of every objective, in the bank's order."""
        names = self.bank.objectives
        given = self.weights or dict.fromkeys(names, 1 / len(names))
        return {name: given[name] for name in names}

    def combine(self) -> Callable[[Tensor], Tensor]:
        """Return the function from scores to rewards, its weights checked."""
        return bind_scalarizer(self.scalarizer, self.bank.objectives, weights=self.weights)


class TrainedPolicy(NamedTuple):
    """A policy's manifest, and what was measured before training and of the kept weights."""

    manifest: PolicyManifest
    before: HeldOut
    after: HeldOut


def train_policy(
    base: ModelFolder,
    reward: RewardSpec,
    *,
    prompts: Prompts,
    held_out: Prompts,
    folder: Path,
    settings: PolicySettings,
    progress: Progress | None = None,
) -> TrainedPolicy:
    """Train a LoRA policy with GRPO and write it as an artifact.

    Linear weights use TRL's own list of reward functions, so that every objective is logged by
    name; another scalarizer is one function. Either way a step costs one pass of the bank.

    Args:
        base: The model to align.
        reward: Bank, scalarizer and weights.
        prompts: What is trained on.
        held_out: What is measured on; no prompt of it may be trained on.
        folder: Where the artifact goes.
        settings: How to train.
        progress: Told after every step.

    Raises:
        ObjectiveMismatchError: If the weights do not match the bank.
        OptionError: If a held-out prompt is among the training prompts, or there are none.
    """
    combine = reward.combine()
    _check_apart(prompts, held_out)
    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        with without_telemetry():
            trainer = _trainer(base, reward, prompts, settings, Path(scratch))
        _do_shared_work_once(trainer.model)
        policy = LanguageModel(
            trainer.model.get_base_model(), trainer.processing_class, base.base, base.name
        )

        def look(step: int) -> HeldOut:
            trainer.model.eval()
            return measure(
                policy,
                held_out,
                bank=reward.bank,
                combine=combine,
                sampling=settings.sampling,
                # A LoRA that was not trained yet changes nothing.
                reference=trainer.model.disable_adapter if step else None,
            )

        watch = _Watch(trainer.model, look, settings, progress)
        trainer.add_callback(watch)
        trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is for data
        trainer.train()
        set_peft_model_state_dict(trainer.model, watch.kept.weights)
        with stage(folder) as staging:
            manifest = _save(trainer.model, staging, folder, base, reward, settings, watch)
    return TrainedPolicy(manifest, watch.checks[0].seen, watch.kept.seen)


class _Check(NamedTuple):
    step: int
    seen: HeldOut
    weights: dict[str, Tensor]


class _Watch(TrainerCallback):
    """Looks at held-out prompts before training and every few steps; stops above the KL limit."""

    def __init__(
        self,
        model: Any,
        look: Callable[[int], HeldOut],
        settings: PolicySettings,
        progress: Progress | None,
    ) -> None:
        self._model, self._look = model, look
        self._settings, self._progress = settings, progress
        self.checks: list[_Check] = []
        self.stopped = False

    @property
    def kept(self) -> _Check:
        """The last check that is not above the limit."""
        return self.checks[-2] if self.stopped else self.checks[-1]

    def on_train_begin(self, *_args: object, **_trainer: object) -> None:
        self._check(0)

    def on_step_end(self, _args: object, state: Any, control: Any, **_trainer: object) -> object:
        if self._progress:
            self._progress(1)
        step: int = state.global_step
        if step % self._settings.check_every == 0 or step == self._settings.max_steps:
            self._check(step)
            limit = self._settings.max_kl
            if limit is not None and self.checks[-1].seen.kl > limit:
                self.stopped = control.should_training_stop = True
        return control

    def _check(self, step: int) -> None:
        weights = {k: v.clone() for k, v in get_peft_model_state_dict(self._model).items()}
        self.checks.append(_Check(step, self._look(step), weights))
        self._model.train()


def _check_apart(prompts: Prompts, held_out: Prompts) -> None:
    if not prompts or not held_out:
        raise OptionError(
            f"prompts to train on and to measure on are needed, got {len(prompts)} and "
            f"{len(held_out)}"
        )
    known = {str(list(prompt)) for prompt in prompts}
    both = [prompt for prompt in held_out if str(list(prompt)) in known]
    if both:
        raise OptionError(f"held-out prompt {both[0][-1]['content']!r} is trained on as well")


def _trainer(
    base: ModelFolder,
    reward: RewardSpec,
    prompts: Prompts,
    settings: PolicySettings,
    scratch: Path,
) -> GRPOTrainer:
    linear = reward.scalarizer == "linear"
    weights = reward.named_weights
    tokens = settings.prompts_per_step * settings.completions * settings.max_new_tokens
    # A step's gradient is that of all its completions, at once or one prompt after the other.
    together = settings.prompts_per_step if tokens <= TOKENS_AT_ONCE else 1
    functions = (
        reward_functions(reward.bank)
        if linear
        else reward_function(reward.bank, scalarizer=reward.scalarizer, weights=reward.weights)
    )
    return GRPOTrainer(
        model=str(base.path),
        reward_funcs=functions,
        args=GRPOConfig(
            str(scratch),
            max_steps=settings.max_steps,
            per_device_train_batch_size=settings.completions * together,
            gradient_accumulation_steps=settings.prompts_per_step // together,
            num_generations=settings.completions,
            max_completion_length=settings.max_new_tokens,
            temperature=settings.temperature,
            beta=settings.beta,
            learning_rate=settings.learning_rate,
            reward_weights=list(weights.values()) if linear else None,
            model_init_kwargs={"dtype": settings.dtype},
            lr_scheduler_type="constant",
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=False,
            disable_dropout=True,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            seed=settings.seed,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": [list(prompt) for prompt in prompts]}),
        processing_class=_left_padding(base.path),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=settings.rank, lora_alpha=settings.rank * 2
        ),
    )


def _do_shared_work_once(model: Any) -> None:
    """Let completions of one prompt share its work, in sampling and in the loss."""
    share_prompts(model.get_base_model())
    # TRL offers no way to choose how `generate` decodes.
    model.generate = partial(model.generate, custom_generate=decode)


def _left_padding(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder)
    tokenizer.padding_side = "left"
    return tokenizer


def _save(
    model: Any,
    staging: Path,
    folder: Path,
    base: ModelFolder,
    reward: RewardSpec,
    settings: PolicySettings,
    watch: _Watch,
) -> PolicyManifest:
    save_adapter(model, staging, base.base)
    curve = tuple(c.seen.checkpoint(c.step, reward.bank.objectives) for c in watch.checks)
    _draw(curve, staging / "figures")
    change = watch.kept.seen.change_from(watch.checks[0].seen)
    manifest = PolicyManifest(
        license=_license(base.path),
        name=folder.name,
        form="lora",
        base=base.base,
        algorithm="grpo",
        objectives=objective_records(reward.bank, beside=folder),
        scalarizer=reward.scalarizer,
        weights=tuple(
            WeightRecord(objective=name, value=value, interval=None)
            for name, value in reward.named_weights.items()
        ),
        seed=settings.seed,
        steps=watch.kept.step,
        stopped_by="max_kl" if watch.stopped else "max_steps",
        max_kl=settings.max_kl,
        kl=watch.kept.seen.kl,
        settings=asdict(settings),
        curve=curve,
        delta_interval=(change.low, change.high),
        versions={n: version(n) for n in ("morlaif-hub", "torch", "transformers", "trl", "peft")},
    )
    return seal(staging, manifest)


def _license(base: Path) -> str:
    """Return the base's licence, which a LoRA on it inherits; `other` where it is not known."""
    if not (base / MANIFEST_NAME).is_file():
        return "other"
    return read_manifest(base, BaseManifest).license


def _draw(curve: Sequence[PolicyCheckpoint], folder: Path) -> None:
    folder.mkdir()
    steps = [point.step for point in curve]
    objectives = {name: [point.objectives[name] for point in curve] for name in curve[0].objectives}
    scores = learning_curves(steps, objectives, y_label="held-out score (calibrated)")
    moved = learning_curves(
        steps, {"KL": [point.kl for point in curve]}, y_label="KL per token (nats)"
    )
    (folder / "objectives.png").write_bytes(png(scores))
    (folder / "kl.png").write_bytes(png(moved))
