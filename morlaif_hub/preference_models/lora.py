"""Training one LoRA preference model with TRL's RewardTrainer, from a fitted head."""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback
from transformers.pytorch_utils import Conv1D
from trl import RewardConfig, RewardTrainer

from morlaif_hub.bank.layout import Ids
from morlaif_hub.bank.trunk import layer_list
from morlaif_hub.errors import OptionError, TrainingError
from morlaif_hub.hub.client import without_telemetry
from morlaif_hub.preference_models.features import FrozenFeatures

Array = NDArray[np.float64]

STEP_TOKENS = 4096
"""Padded tokens that are trained on at once. Attention's memory grows with the square of a length:
sixteen pairs of 1,024 tokens at once take 20 GB on eight layers of a model of 135M parameters."""


@dataclass(frozen=True)
class LoraSettings:
    """How a LoRA preference model is trained.

    Attributes:
        layers: `top:F` for the top fraction F of the layers, rounded up, or `all`. Layers below
            the first adapted one are shared by a whole bank.
        rank: Of the LoRA matrices.
        alpha: LoRA's scale is alpha / rank.
        learning_rate: Peak, with linear decay.
        epochs: Passes over the training pairs.
        batch_size: Pairs per step.
    """

    layers: str = "top:0.25"
    rank: int = 8
    alpha: float = 16.0
    learning_rate: float = 3e-4
    epochs: float = 1.0
    batch_size: int = 16

    def __post_init__(self) -> None:
        self.adapted(100)
        for name in ("rank", "alpha", "learning_rate", "epochs", "batch_size"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name} must be greater than 0, got {getattr(self, name)}")

    def adapted(self, depth: int) -> tuple[int, ...]:
        """Return the indices of the adapted layers of a model with `depth` layers."""
        if self.layers == "all":
            return tuple(range(depth))
        kind, _, text = self.layers.partition(":")
        try:
            fraction = float(text)
        except ValueError:
            fraction = -1.0
        if kind != "top" or not 0 < fraction <= 1:
            raise OptionError(
                f"layers must be 'all' or 'top:F' with F above 0 and at most 1, got {self.layers!r}"
            )
        return tuple(range(depth - math.ceil(fraction * depth), depth))


class TokenPairs(NamedTuple):
    """Pairs as token ids, the better response first, each with a weight."""

    better: list[Ids]
    worse: list[Ids]
    weights: Array


class Trained(NamedTuple):
    """What training gave: accuracies on validation pairs before and after, and what was kept.

    Without validation pairs the accuracies are None, and what was trained is kept.
    """

    start_accuracy: float | None
    trained_accuracy: float | None
    kept: Literal["trained", "start"]


def train_lora(
    model: PeftModel,
    features: FrozenFeatures,
    *,
    train: TokenPairs,
    validation: TokenPairs,
    settings: LoraSettings,
    seed: int,
    tokenizer: Any,
    progress: Callable[[int], None] | None = None,
) -> Trained:
    """Train an adapter in place; put its start back if it ends worse on the validation pairs.

    Args:
        model: From `new_adapter`.
        features: Holds the states of all pairs.
        train: What to learn from.
        validation: Pairs of other prompts. Without any, what was trained is kept.
        settings: How to train.
        seed: Of the order of the pairs.
        tokenizer: For TRL; the texts are tokenised already.
        progress: Told after every step.

    Raises:
        TrainingError: If the loss becomes NaN or infinite.
    """
    before = {k: v.clone() for k, v in get_peft_model_state_dict(model).items()}
    with features.trained_on(model) as announce:
        start = _accuracy(model, validation, announce, tokenizer.pad_token_id)
        trainer = _trainer(model, announce, train, settings, seed, tokenizer)
        if progress:
            trainer.add_callback(_Steps(progress))
        trainer.train()
        trained = _accuracy(model, validation, announce, tokenizer.pad_token_id)
    if start is None or trained is None or trained >= start:
        return Trained(start, trained, "trained")
    set_peft_model_state_dict(model, before)
    return Trained(start, trained, "start")


def new_adapter(base: Any, head: Array, settings: LoraSettings) -> PeftModel:
    """Return a classifier with a fresh LoRA whose scores are those of the fitted head.

    Args:
        base: A sequence classifier with one output.
        head: Shape (width,).
        settings: Which layers, rank and scale.
    """
    layers = layer_list(base)
    chosen = None
    if layers is not None and settings.layers != "all":
        chosen = list(settings.adapted(len(layers)))
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        layers_to_transform=chosen,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
    )
    model = get_peft_model(base, config)
    weight = next(p for n, p in model.named_parameters() if _is_head(n))
    weight.data = torch.tensor(head, dtype=torch.float32)[None]
    owner = model.get_submodule(_head_path(model))
    owner.register_forward_pre_hook(_in_float32)
    return model


def _is_head(name: str) -> bool:
    return ".modules_to_save.default." in name and name.endswith("weight")


def _head_path(model: PeftModel) -> str:
    name: str = next(n for n, _ in model.named_parameters() if _is_head(n))
    return name.rsplit(".", 1)[0]


def _in_float32(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The head is kept and trained in float32, whatever the base's type."""
    return (args[0].float(),)


class _WeightedRewardTrainer(RewardTrainer):
    """TRL's trainer with a weight on each pair's loss, starting from kept states."""

    announce: Callable[[Tensor, Tensor], None]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: object = None,  # noqa: ARG002 - Trainer passes it
    ) -> Any:
        """Return the weighted mean of -log sigmoid(better - worse): Bradley and Terry's loss."""
        self.announce(inputs["input_ids"], inputs["attention_mask"])
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        better, worse = outputs.logits.float().squeeze(-1).chunk(2)
        weights = inputs["margin"]
        loss = -(weights * nn.functional.logsigmoid(better - worse)).sum() / weights.sum()
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step}; lower the learning "
                "rate, or train in float32"
            )
        return (loss, outputs) if return_outputs else loss


class _Steps(TrainerCallback):
    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress

    def on_step_end(self, *_args: object, **_trainer: object) -> None:
        self._progress(1)


def _trainer(
    model: PeftModel,
    announce: Callable[[Tensor, Tensor], None],
    train: TokenPairs,
    settings: LoraSettings,
    seed: int,
    tokenizer: Any,
) -> RewardTrainer:
    rows = Dataset.from_dict(
        {
            "chosen_ids": [list(ids) for ids in train.better],
            "rejected_ids": [list(ids) for ids in train.worse],
            "margin": train.weights.tolist(),  # TRL's collator hands this column on; see the loss
        }
    )
    longest = max(len(ids) for ids in (*train.better, *train.worse))
    at_once = _pairs_at_once(longest, settings.batch_size)
    with tempfile.TemporaryDirectory() as folder, without_telemetry():
        trainer = _WeightedRewardTrainer(
            model=model,
            args=RewardConfig(
                folder,
                num_train_epochs=settings.epochs,
                per_device_train_batch_size=at_once,
                gradient_accumulation_steps=settings.batch_size // at_once,
                learning_rate=settings.learning_rate,
                max_length=longest,
                seed=seed,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                use_cpu=model.device.type == "cpu",
                bf16=False,
                gradient_checkpointing=False,
                dataloader_pin_memory=False,
            ),
            train_dataset=rows,
            processing_class=tokenizer,
        )
    trainer.announce = announce
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is for data
    return trainer


def _pairs_at_once(longest: int, batch_size: int) -> int:
    """Return how many of a step's pairs fit into `STEP_TOKENS`: a divisor of their number."""
    fitting = max(1, STEP_TOKENS // (2 * longest))
    return max(n for n in range(1, batch_size + 1) if batch_size % n == 0 and n <= fitting)


@torch.no_grad()
def _accuracy(
    model: PeftModel,
    pairs: TokenPairs,
    announce: Callable[[Tensor, Tensor], None],
    pad_token_id: int,
) -> float | None:
    """Return the weighted share of pairs whose better side scores higher; None without pairs."""
    if not pairs.better:
        return None
    model.eval()
    right = []
    for i in range(0, len(pairs.better), 16):
        better, worse = (
            _scores(model, side[i : i + 16], announce, pad_token_id)
            for side in (pairs.better, pairs.worse)
        )
        right.append((better > worse).double() + 0.5 * (better == worse).double())
    return float(np.average(torch.cat(right).numpy(), weights=pairs.weights))


def _scores(
    model: PeftModel,
    sequences: Sequence[Ids],
    announce: Callable[[Tensor, Tensor], None],
    pad_token_id: int,
) -> Tensor:
    width = max(len(ids) for ids in sequences)
    rows = [list(ids) + [pad_token_id] * (width - len(ids)) for ids in sequences]
    mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences]
    input_ids = torch.tensor(rows, device=model.device)
    attention_mask = torch.tensor(mask, device=model.device)
    announce(input_ids, attention_mask)
    scores: Tensor = model(input_ids=input_ids, attention_mask=attention_mask).logits
    return scores.float().squeeze(-1).cpu()
