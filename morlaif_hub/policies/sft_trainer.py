"""The run of TRL's SFTTrainer: on one process or many, stopped and gone on with, checked.

What TRL does not do is here: a loss that is not finite stops the run in all processes with one
error, memory that runs out says what to lower, and a checkpoint counts only when it is whole.
"""

import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from morlaif_hub.bank.classifier import quiet_loading
from morlaif_hub.bank.trunk import out_of_memory
from morlaif_hub.errors import OptionError, TrainingError, WorkspaceError
from morlaif_hub.hub.client import without_telemetry
from morlaif_hub.policies.turns import Row
from morlaif_hub.preference_models.trl import gather_whole, random_states_kept, to_float32
from morlaif_hub.preference_models.watch import MARK, last_checkpoint, remove_unfinished
from morlaif_hub.scoring.processes import Processes
from morlaif_hub.workspace import write_text

STEP_TOKENS = 4096
"""Padded tokens that a process trains on at once."""
CHECKPOINTS = 10
"""How often a run is made sure of, at its last step among others."""
WARM_UP = 0.03
"""Share of the steps in which the learning rate rises to its peak; then it falls as a cosine."""


@dataclass(frozen=True)
class FineTuning:
    """How a model is fine-tuned.

    Attributes:
        rank: Of a LoRA on all linear layers; None to train all weights.
        epochs: Passes over the rows.
        batch_size: Rows in a step, of all processes together.
        learning_rate: At its peak.
        seed: Of the LoRA and the order of the rows.
        checkpoints: The folder of this run alone, from which it goes on when it was interrupted;
            None for none. What is in it is TRL's, in part pickled, and never to be published.
        progress: Told how many steps were done, of how many.
    """

    rank: int | None
    epochs: float
    batch_size: int
    learning_rate: float
    seed: int
    checkpoints: Path | None = None
    progress: Callable[[int, int], None] | None = None


def fine_tuning_trainer(
    model: Any, rows: Sequence[Row], tokenizer: Any, *, plan: FineTuning, scratch: Path
) -> SFTTrainer:
    """Return a trainer of a model, which is now under a LoRA or is trained whole.

    Args:
        model: A causal language model. What is trained of it becomes float32.
        rows: What to learn from, at least one.
        tokenizer: For its padding; the rows are tokens already.
        plan: How to train.
        scratch: A folder for what the trainer writes when it keeps no checkpoints.

    Raises:
        OptionError: If the batch size is no multiple of the number of processes.
    """
    processes = Processes()
    each, rest = divmod(plan.batch_size, processes.count)
    if rest:
        raise OptionError(
            f"batch_size must be a multiple of the {processes.count} processes, got "
            f"{plan.batch_size}"
        )
    at_once = _rows_at_once(max(len(row.ids) for row in rows), each)
    lora = plan.rank and LoraConfig(
        task_type="CAUSAL_LM",
        r=plan.rank,
        lora_alpha=2 * plan.rank,
        target_modules="all-linear",
    )
    with random_states_kept(plan.seed), without_telemetry(), warnings.catch_warnings():
        # Of GPT-2's layers, whose weights lie the other way round; PEFT heeds that by itself.
        warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)
        trainer = _CheckedTrainer(
            model=model,
            args=_config(plan, scratch, at_once=at_once, parts=each // at_once),
            train_dataset=Dataset.from_dict(
                {"input_ids": [r.ids for r in rows], "labels": [r.labels for r in rows]}
            ),
            processing_class=tokenizer,
            peft_config=lora or None,
        )
    to_float32(trainer.model)
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is for data
    return trainer


def fine_tune(trainer: SFTTrainer, plan: FineTuning) -> int:
    """Run a trainer to its end, from where it was interrupted if it was; return the last step.

    When it returns, the main process has the whole model; where the weights were in shards, the
    others do not.

    Raises:
        TrainingError: If a loss or a weight becomes NaN or infinite, or memory runs out.
        WorkspaceError: If a checkpoint cannot be written.
    """
    trainer.add_callback(_Marks(plan))
    checkpoint = last_checkpoint(plan.checkpoints) if plan.checkpoints else None
    trainer.accelerator.wait_for_everyone()
    if plan.checkpoints and trainer.accelerator.is_main_process:
        remove_unfinished(plan.checkpoints)
    try:
        with random_states_kept(plan.seed), quiet_loading():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, TrainingError) or not out_of_memory(error):
            raise
        at_once = trainer.args.per_device_train_batch_size
        raise TrainingError(
            f"memory ran out at step {trainer.state.global_step + 1}, with {at_once} dialogues at "
            "once; lower "
            + ("batch_size, max_length" if at_once > 1 else "max_length")
            + " or use a smaller model"
        ) from error
    except OSError as error:
        raise WorkspaceError(
            f"the state of training cannot be written to {trainer.args.output_dir}: {error}; make "
            "room there and run the command again, which goes on from the last whole checkpoint"
        ) from error
    steps: int = trainer.state.global_step
    gather_whole(trainer)
    _check_weights(trainer, steps)
    trainer.accelerator.free_memory()
    return steps


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder, as a context."""
    return tempfile.TemporaryDirectory(prefix="morlaif-")


def forget(plan: FineTuning) -> None:
    """Remove the checkpoints of a run whose result is safe."""
    if plan.checkpoints is not None:
        shutil.rmtree(plan.checkpoints, ignore_errors=True)


def _rows_at_once(longest: int, batch_size: int) -> int:
    """Return how many of a step's rows fit into `STEP_TOKENS`: a divisor of their number."""
    fitting = max(1, STEP_TOKENS // longest)
    return max(n for n in range(1, batch_size + 1) if batch_size % n == 0 and n <= fitting)


def _config(plan: FineTuning, scratch: Path, *, at_once: int, parts: int) -> SFTConfig:
    config = SFTConfig(
        str(plan.checkpoints or scratch),
        num_train_epochs=plan.epochs,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=parts,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=WARM_UP,
        max_length=None,  # rows are cut already
        seed=plan.seed,
        report_to="none",
        save_strategy="no",  # the callback says when
        save_total_limit=2,  # the second one is whole while the first is written
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available(),
        bf16=plan.rank is None and torch.cuda.is_available(),
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )
    # One process takes one GPU, however many there are.
    config._n_gpu = min(config.n_gpu, 1)
    return config


class _CheckedTrainer(SFTTrainer):
    """TRL's trainer, stopped by a loss that is not finite."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return TRL's loss."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = (found[0] if return_outputs else found).detach()
        everyone = self.accelerator.gather(loss.reshape(1))
        bad = everyone[~everyone.isfinite()]
        if len(bad):
            raise TrainingError(
                f"the loss is {float(bad[0])} at step {self.state.global_step + 1}; lower the "
                "learning rate, train in float32, or look at the dialogues. The checkpoint before "
                "is kept"
            )
        return found

    def create_model_card(self, *_args: object, **_named: object) -> None:
        """Write none: a checkpoint is for nobody to see."""


class _Marks(TrainerCallback):
    """Says when to keep a checkpoint, and marks it when it is whole."""

    def __init__(self, plan: FineTuning) -> None:
        self._plan = plan

    def on_step_end(self, _args: Any, state: Any, control: Any, **_others: Any) -> None:
        """Tell the progress, and save if it is time to."""
        if self._plan.progress:
            self._plan.progress(state.global_step, state.max_steps)
        every = max(1, round(state.max_steps / CHECKPOINTS))
        due = state.global_step % every == 0 or state.global_step == state.max_steps
        control.should_save = due and self._plan.checkpoints is not None

    def on_save(self, args: Any, state: Any, _control: Any, **_others: Any) -> None:
        """Mark a checkpoint."""
        if args.process_index == 0:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            write_text(folder / MARK, '{"complete": true}\n')


def _check_weights(trainer: SFTTrainer, steps: int) -> None:
    if not trainer.accelerator.is_main_process:
        return
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad and not bool(parameter.isfinite().all()):
            raise TrainingError(
                f"the weight {name} is not finite after {steps} steps; lower the learning rate, or "
                "train in float32"
            )
