"""Training one preference model with TRL's RewardTrainer, on one machine or any cluster.

What shares the work is accelerate's: `accelerate launch` and torchrun start the processes, with
replicas (DDP) or shards (FSDP) of the model. Here is what TRL does not do: verdicts that are
probabilities, ties, label smoothing, a start that is kept if training makes it worse, and errors
that say what to change.

Source:
    https://huggingface.co/docs/trl/reward_trainer
"""

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PrinterCallback
from trl import RewardConfig, RewardTrainer

from morlaif_hub.bank.classifier import quiet_loading, score_head
from morlaif_hub.bank.trunk import out_of_memory
from morlaif_hub.errors import OptionError, TrainingError
from morlaif_hub.hub.client import without_telemetry
from morlaif_hub.preference_models.losses import Check, Trained, pair_losses
from morlaif_hub.preference_models.padded_pairs import PairCollator, pair_rows, scores
from morlaif_hub.preference_models.saved_state import Digest
from morlaif_hub.preference_models.settings import GradientSettings
from morlaif_hub.preference_models.tokens import TokenPairs
from morlaif_hub.preference_models.watch import (
    Plan,
    Watch,
    last_checkpoint,
    remove_unfinished,
)
from morlaif_hub.scoring.processes import Processes

STEP_TOKENS = 4096
"""Padded tokens that a process trains on at once. Attention's memory grows with the square of a
length: sixteen pairs of 1,024 tokens at once take 20 GB on eight layers of a model of 135M
parameters."""
MOST_NAMED = 8


def train_with_trl(
    model: Any,
    *,
    train: TokenPairs,
    validation: TokenPairs,
    settings: GradientSettings,
    seed: int,
    tokenizer: Any,
    checkpoints: Path | None = None,
    autocast: bool = False,
    progress: Callable[[int], None] | None = None,
    checked: Callable[[int, Check], None] | None = None,
) -> Trained:
    """Train a preference model in place, with all processes of this run; keep its best weights.

    Every process calls it alike, with the same model and pairs. When it returns, the main process
    has the whole model, to be saved; where the weights were in shards, the others do not.

    Args:
        model: A classifier with one output: a PEFT model with one adapter, or one of which all
            weights are trained. What is trained becomes float32.
        train: What to learn from, at least one pair.
        validation: Pairs of other prompts. Without any, what was trained last is kept.
        settings: How to train.
        seed: Of the order of the pairs; the global random states are left alone.
        tokenizer: For its padding; the texts are tokenised already.
        checkpoints: A folder from which a run that was interrupted goes on; None for none. What is
            in it is TRL's, in part pickled, and never to be published. Remove it when the result is
            safe.
        autocast: Whether a full model computes in bfloat16; its weights stay float32.
        progress: Told how many steps were just done, in every process.
        checked: Told of every check on the validation pairs: after which step, and what it found.

    Raises:
        OptionError: If the batch size is no multiple of the number of processes, or there is
            nothing to train on.
        TrainingError: If a loss, a score or a weight becomes NaN or infinite, if memory runs out,
            or if the model has no head of a known kind.
    """
    if not len(train):
        raise OptionError("there are no pairs to train on; at least one is needed")
    to_float32(model)
    sizes = _sizes(train, settings, Processes().count)
    plan = Plan(
        validation=validation,
        epoch_steps=sizes.filled // settings.batch_size,
        patience=settings.patience,
        at_once=sizes.at_once,
        checkpoints=checkpoints and checkpoints / _key(model, (train, validation), settings, seed),
        progress=progress,
        checked=checked,
    )
    with (
        tempfile.TemporaryDirectory(prefix="morlaif-") as scratch,
        random_states_kept(seed),
        _head_in_its_type(model),
    ):
        config = _config(plan.checkpoints or Path(scratch), settings, seed, sizes, autocast)
        trainer = _trainer(model, train, settings, tokenizer, config)
        return _run(trainer, plan, sizes)


@dataclass(frozen=True)
class _Sizes:
    """How a step is divided.

    Attributes:
        longest: Tokens of the longest text.
        at_once: Pairs that one process trains on at once.
        parts: How often it does that in a step.
        filled: Pairs of an epoch, filled up to whole steps.
    """

    longest: int
    at_once: int
    parts: int
    filled: int


def _sizes(train: TokenPairs, settings: GradientSettings, processes: int) -> _Sizes:
    each, rest = divmod(settings.batch_size, processes)
    if rest:
        raise OptionError(
            f"batch_size must be a multiple of the {processes} processes, got {settings.batch_size}"
        )
    longest = max(len(ids) for ids in (*train.first, *train.second))
    at_once = _pairs_at_once(longest, each)
    filled = -(-len(train) // settings.batch_size) * settings.batch_size
    return _Sizes(longest, at_once, each // at_once, filled)


def _pairs_at_once(longest: int, batch_size: int) -> int:
    """Return how many of a step's pairs fit into `STEP_TOKENS`: a divisor of their number."""
    fitting = max(1, STEP_TOKENS // (2 * longest))
    return max(n for n in range(1, batch_size + 1) if batch_size % n == 0 and n <= fitting)


def _config(
    folder: Path, settings: GradientSettings, seed: int, sizes: _Sizes, autocast: bool
) -> RewardConfig:
    config = RewardConfig(
        str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=sizes.at_once,
        gradient_accumulation_steps=sizes.parts,
        learning_rate=settings.rate,
        max_length=None,  # texts are cut already; TRL would drop long ones
        seed=seed,
        report_to="none",
        save_strategy="no",  # the watch says when
        save_total_limit=2,  # the second one is whole while the first is written
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available(),
        bf16=autocast,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    # One process takes one GPU, however many there are: TRL refuses to use several.
    config._n_gpu = min(config.n_gpu, 1)
    return config


class _SoftRewardTrainer(RewardTrainer):
    """TRL's trainer with the loss of probabilities."""

    settings: GradientSettings

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: object = None,  # noqa: ARG002 - Trainer passes it
    ) -> Any:
        """Return the mean loss of a batch of pairs."""
        texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        found = scores(model, texts)
        first, second = found.chunk(2)
        losses = pair_losses(
            first - second,
            inputs["probability"],
            loss=self.settings.loss,
            label_smoothing=self.settings.label_smoothing,
        )
        self._check_finite(losses.detach(), inputs["pair"])
        loss = (losses * inputs["weight"]).mean()
        return (loss, {"logits": found}) if return_outputs else loss

    def _check_finite(self, losses: Tensor, pairs: Tensor) -> None:
        """Raise the same error in all processes if one of them has a loss that is not finite."""
        bad = torch.where(losses.isfinite(), -1, pairs)
        everyone = self.accelerator.gather(torch.stack([bad.double(), losses.double()]))
        places, values = everyone.view(-1, 2, len(losses)).transpose(0, 1).flatten(1)
        found = {int(p): float(v) for p, v in zip(places, values, strict=True) if p >= 0}
        if not found:
            return
        names = ", ".join(map(str, sorted(found)[:MOST_NAMED]))
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise TrainingError(
            f"the loss is {next(iter(found.values()))} at step {self.state.global_step + 1}, in a "
            f"batch with the training pairs {names}{more}; lower the learning rate, train in "
            "float32, or look at those pairs"
        )

    def create_model_card(self, *_args: object, **_named: object) -> None:
        """Write none: a checkpoint is for nobody to see."""


def _trainer(
    model: Any, train: TokenPairs, settings: GradientSettings, tokenizer: Any, config: RewardConfig
) -> RewardTrainer:
    with without_telemetry():
        trainer = _SoftRewardTrainer(
            model=model,
            args=config,
            data_collator=PairCollator(tokenizer.pad_token_id),
            train_dataset=pair_rows(train, settings.batch_size),
            processing_class=tokenizer,
        )
    trainer.settings = settings
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is for data
    return trainer


def _run(trainer: RewardTrainer, plan: Plan, sizes: _Sizes) -> Trained:
    watch = Watch(trainer, plan)
    trainer.add_callback(watch)
    checkpoint = last_checkpoint(plan.checkpoints) if plan.checkpoints else None
    trainer.accelerator.wait_for_everyone()
    if plan.checkpoints and trainer.accelerator.is_main_process:
        remove_unfinished(plan.checkpoints)
    if checkpoint is not None:
        watch.resume(checkpoint)
    try:
        with quiet_loading():  # about tokens that the tokenizer has and the model did not know
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, TrainingError) or not out_of_memory(error):
            raise
        lower = "max_length, train fewer layers or use a smaller base"
        raise TrainingError(
            f"memory ran out at step {trainer.state.global_step + 1}, with {sizes.at_once} pairs "
            f"of up to {sizes.longest:,} tokens at once; lower "
            + (f"batch_size or {lower}" if sizes.at_once > 1 else lower)
        ) from error
    result = watch.finish()
    gather_whole(trainer)
    trainer.accelerator.free_memory()
    return result


def gather_whole(trainer: RewardTrainer) -> None:
    """Give the main process a model in shards as a whole."""
    if not trainer.is_fsdp_enabled:
        return
    whole = trainer.accelerator.get_state_dict(trainer.model)
    if trainer.accelerator.is_main_process:
        put_whole(trainer.model, whole)


def put_whole(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put whole weights in the place of a model's shards, by name."""
    for path, module in model.named_modules():
        for name, shard in list(module.named_parameters(recurse=False)):
            whole = weights[f"{path}.{name}".removeprefix(".")]
            setattr(module, name, nn.Parameter(whole, requires_grad=shard.requires_grad))


def to_float32(model: nn.Module) -> None:
    """Make float32 what is trained: in half precision most steps are too small to change it."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _head(model: Any) -> nn.Module:
    """Return the module that makes the score, a wrapper of PEFT's around it included."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    for name in ("score", "classifier"):
        found = getattr(base, name, None)
        if isinstance(found, ModulesToSaveWrapper):
            wrapper: nn.Module = found
            return wrapper
    return score_head(base)


@contextmanager
def _head_in_its_type(model: Any) -> Iterator[None]:
    """Within this context the head is given the type of its weights, whatever the base's is."""

    def in_its_type(module: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if isinstance(module, ModulesToSaveWrapper):
            module = module.modules_to_save[module.active_adapters[0]]
        return (given[0].to(module.weight.dtype),)

    hook = _head(model).register_forward_pre_hook(in_its_type)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def random_states_kept(seed: int) -> Iterator[None]:
    """Put back, at the end, the random states that TRL sets."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


def _key(model: Any, sets: tuple[TokenPairs, ...], settings: GradientSettings, seed: int) -> str:
    """Return a hash of what a run's result depends on, so that none goes on from another's."""
    digest = Digest()
    digest.add(asdict(settings), seed, model.config.get_text_config().to_dict())
    for pairs in sets:
        digest.add_texts(pairs.first)
        digest.add_texts(pairs.second)
        digest.add(pairs.probabilities.tolist())
    # PEFT keeps the head that an adapter's own replaces, which is random.
    weights = {n: p for n, p in model.named_parameters() if ".original_module." not in n}
    digest.add_weights(weights)
    key = [str(digest)[:32]]
    broadcast_object_list(key)  # unlike machines may have rounded differently
    return key[0]
