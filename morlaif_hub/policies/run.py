"""One training of a policy: what it is made of, its trainer, and what came of it."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from transformers.pytorch_utils import Conv1D

from morlaif_hub.bank.classifier import quiet_loading
from morlaif_hub.bank.trunk import out_of_memory
from morlaif_hub.errors import MorlaifHubError, TrainingError, WorkspaceError
from morlaif_hub.hub.client import without_telemetry
from morlaif_hub.judges.base import Judge
from morlaif_hub.messages import content_hash
from morlaif_hub.models.language_model import ModelFolder, load_causal_lm, load_tokenizer
from morlaif_hub.policies.lookout import Lookout, Measures
from morlaif_hub.policies.reading import fitting, limits, training_tokenizer
from morlaif_hub.policies.referee import Referee
from morlaif_hub.policies.rewarding import reward_calls, reward_weights
from morlaif_hub.policies.settings import PolicySettings, Progress, Prompts, RewardSpec
from morlaif_hub.policies.trl import Work, trl_trainer
from morlaif_hub.policies.watch import Watch
from morlaif_hub.policies.writing import Story
from morlaif_hub.preference_models.trl import gather_whole
from morlaif_hub.preference_models.watch import last_checkpoint, remove_unfinished
from morlaif_hub.principles import Principle
from morlaif_hub.scoring.processes import Processes

PPO_MINIBATCHES = 4
"""Optimizer steps in one of PPO's epochs over a step's completions."""


@dataclass(frozen=True)
class Trained:
    """What came of training.

    Attributes:
        model: With the kept weights.
        story: What to tell of it.
        failure: What ended it too early; None for nothing.
    """

    model: Any
    story: Story
    failure: MorlaifHubError | None

    @property
    def worth_writing(self) -> bool:
        """Whether there is more than what training began with, where it failed."""
        return self.failure is None or self.story.found.kept.step > 0


class Run:
    """One training of a policy, with what it is made of checked and read.

    Args:
        base: The model to align.
        reward: What for.
        settings: How.
        prompts: To train on; those that are too long for the model are left out.
        held_out: To measure on, likewise.

    Raises:
        OptionError: If no prompt is left, or a step cannot be divided as the settings say.
        ObjectiveMismatchError: If the weights do not match the bank.
    """

    def __init__(
        self,
        base: ModelFolder,
        reward: RewardSpec,
        settings: PolicySettings,
        *,
        prompts: Prompts,
        held_out: Prompts,
    ) -> None:
        self.base, self.reward = base, reward
        self.combine = reward.combine()
        self.processes = Processes()
        self.tokenizer = load_tokenizer(base.path)
        fit = partial(
            fitting, self.tokenizer, model=limits(base.path), new_tokens=settings.max_new_tokens
        )
        self._learnt = fit(prompts, what="train on")
        self._held_out = fit(held_out, what="measure on")
        self.settings = settings.planned(len(self._learnt.prompts))
        self.settings.rows_at_once(self.processes.count)

    def key(self, judge: tuple[Judge, Principle] | None) -> str:
        """Return a name for the run, by all that its result depends on."""
        members = [
            [member.source, member.revision, member.manifest and member.manifest.golden.scores]
            for member in self.reward.bank.members
        ]
        facts: list[Any] = [
            self.base.base.weights_sha256,
            [self.reward.scalarizer, self.reward.named_weights, members],
            [list(map(list, found.prompts)) for found in (self._learnt, self._held_out)],
            asdict(self.settings),
            self.processes.count,
        ]
        if judge is not None:
            facts.append([judge[0].spec, judge[0].prompt_sha256, judge[1].sha256()])
        return content_hash(facts)[:16]

    def train(
        self, folder: Path, *, referee: Referee | None, saves: bool, progress: Progress | None
    ) -> Trained:
        """Train, in all processes; what is trained has the kept weights then.

        Args:
            folder: Where the trainer keeps what it needs.
            referee: The judge; None for none.
            saves: Whether to go on from what is in the folder, and to save there.
            progress: Told after every step how many were just done.
        """
        trainer = self._trainer(folder)
        bank = self.reward.bank
        measures = Measures(
            base=self.base,
            tokenizer=self.tokenizer,
            bank=bank,
            combine=self.combine,
            prompts=self._held_out.prompts,
            sampling=self.settings.sampling,
            referee=referee,
            processes=self.processes,
        )
        watch = Watch(
            trainer.model,
            Lookout(trainer, measures),
            bank.objectives,
            self.settings,
            saves=saves,
            progress=progress,
        )
        trainer.add_callback(watch)
        failure = self._go(trainer, watch, folder if saves else None)
        watch.put_back()
        if self.settings.algorithm != "ppo":
            gather_whole(trainer)
        return Trained(trainer.model, self._story(watch, referee, failure), failure)

    def _story(
        self, watch: Watch, referee: Referee | None, failure: MorlaifHubError | None
    ) -> Story:
        reached = "max_kl" if watch.stopped else "max_steps"
        return Story(
            base=self.base,
            reward=self.reward,
            settings=self.settings,
            found=watch.found,
            stopped_by="failure" if failure else reached,
            counts=(
                len(self._learnt.prompts),
                len(self._held_out.prompts),
                self._learnt.left_out + self._held_out.left_out,
            ),
            referee=referee,
        )

    def _trainer(self, folder: Path) -> Any:
        settings, full = self.settings, self.settings.form == "full"
        with quiet_loading():
            model = load_causal_lm(self.base.path, dtype="float32" if full else settings.dtype)
        lora = None
        if not full:
            lora = LoraConfig(
                task_type="CAUSAL_LM",
                r=settings.rank,
                lora_alpha=settings.rank * 2,
                fan_in_fan_out=any(isinstance(part, Conv1D) for part in model.modules()),
            )
        tokenizer = training_tokenizer(self.base.path)
        if settings.algorithm == "ppo":
            return self._ppo(model, lora, tokenizer, folder)
        work = Work(
            prompts=self._learnt.prompts,
            longest=self._learnt.longest,
            functions=reward_calls(self.reward, self.processes),
            weights=reward_weights(self.reward),
            settings=settings,
            processes=self.processes.count,
            folder=folder,
        )
        with without_telemetry():
            return trl_trainer(model, lora, tokenizer, work)

    def _ppo(self, model: Any, lora: LoraConfig | None, tokenizer: Any, folder: Path) -> Any:
        from morlaif_hub.policies.ppo import PPOTrainer  # here, since the others need no PPO
        from morlaif_hub.policies.ppo_config import PPOConfig

        settings, count, rows = self.settings, self.processes.count, self.settings.step_rows
        parts = PPO_MINIBATCHES if rows % (PPO_MINIBATCHES * count) == 0 else 1
        each, at_once = rows // parts // count, settings.rows_at_once(count)
        torch.manual_seed(settings.seed)
        reference = None
        if lora is not None:
            model = get_peft_model(model, lora)
        else:
            with quiet_loading():
                reference = load_causal_lm(self.base.path, dtype="float32")
        config = PPOConfig(
            str(folder),
            max_steps=settings.max_steps,
            rollouts=rows,
            batch_size=rows // parts,
            micro_batch_size=max(n for n in range(1, each + 1) if each % n == 0 and n <= at_once),
            rollout_batch_size=at_once,
            learning_rate=settings.learning_rate or 0.0,
            kl_coef=settings.beta or 0.0,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            reward_weights=reward_weights(self.reward),
            seed=settings.seed,
        )
        return PPOTrainer(
            model.to(self.processes.device),
            reward_calls(self.reward, self.processes),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [list(p) for p in self._learnt.prompts]}),
            processing_class=tokenizer,
            ref_model=reference,
        )

    def _go(self, trainer: Any, watch: Watch, folder: Path | None) -> MorlaifHubError | None:
        """Train, from where a run before was killed; return what ended it too early."""
        checkpoint = last_checkpoint(folder) if folder else None
        trainer.accelerator.wait_for_everyone()
        if folder and self.processes.main:
            remove_unfinished(folder)
        if checkpoint is not None:
            watch.resume(checkpoint)
        resumed = None if checkpoint is None else str(checkpoint)
        failure: MorlaifHubError | None = None
        try:
            with quiet_loading():  # about tokens that the tokenizer has and the model did not know
                trainer.train(resume_from_checkpoint=resumed)
        except MorlaifHubError as error:
            failure = _in_our_words(error)
        except (RuntimeError, MemoryError, OSError, SafetensorError) as error:
            failure = self._explained(error, trainer.state.global_step + 1)
            if failure is None:
                raise
            failure.__cause__ = error
        if failure is not None and not watch.began:
            raise failure
        return failure

    def _explained(self, error: Exception, step: int) -> MorlaifHubError | None:
        """Return what to do about an error of the machine; None if it is a fault of the code."""
        if out_of_memory(error):
            at_once = self.settings.rows_at_once(self.processes.count)
            lower = "prompts_per_step, completions or max_new_tokens, or use a smaller model"
            return TrainingError(
                f"memory ran out at step {step}, with {at_once} completions of up to "
                f"{self.settings.max_new_tokens} tokens at once; lower "
                + (f"batch_size below {at_once}, or {lower}" if at_once > 1 else lower)
            )
        of_a_file = isinstance(error, OSError | SafetensorError)
        if not of_a_file and "PytorchStreamWriter" not in str(error):
            return None
        return WorkspaceError(
            f"the state of training cannot be written at step {step}: {error}; with room for it, "
            "the same command goes on from the checkpoint before"
        )


def _in_our_words(error: MorlaifHubError) -> MorlaifHubError:
    """Return an error that names what PPO calls otherwise by the name of the settings."""
    said = str(error)
    for name in ("rollout_batch_size", "micro_batch_size"):
        said = said.replace(name, "batch_size")
    return error if said == str(error) else TrainingError(said)
