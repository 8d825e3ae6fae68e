"""How preference models are trained: what can be chosen, and what it is by default."""

import math
from dataclasses import dataclass, field
from typing import Literal

from morlaif_hub.errors import OptionError
from morlaif_hub.hub.manifest import Form
from morlaif_hub.models.language_model import Dtype

Loss = Literal["soft", "margin"]
Trainer = Literal["auto", "together", "trl"]


BILLION = 1e9


def default_learning_rate(form: Form, parameters: int) -> float:
    """Return the learning rate for a form, on a base with so many parameters.

    Larger models take smaller steps, and whole models far smaller ones than adapters: the field's
    usual rates, none of them tuned here.
    """
    if form == "full":
        return 1e-5 if parameters < BILLION else 5e-6
    if parameters < BILLION:
        return 3e-4
    return 1e-4 if parameters < 10 * BILLION else 5e-5


@dataclass(frozen=True)
class GradientSettings:
    """How weights are trained by gradient descent.

    Attributes:
        layers: `top:F` for the top fraction F of the layers, rounded up, or `all`. Layers below
            the first adapted one are shared by a whole bank. Full models train all.
        rank: Of the LoRA matrices.
        alpha: LoRA's scale is alpha / rank.
        learning_rate: Peak, with linear decay; None for `default_learning_rate`.
        epochs: Passes over the training pairs, at most.
        batch_size: Pairs per step, of all processes together.
        loss: `soft` is the cross-entropy to the verdicts' probabilities, ties included; `margin`
            is TRL's: the better response has to lead by the verdict's log-odds.
        label_smoothing: How far probabilities are drawn to one half, in [0, 1).
        distillation: How far probabilities are drawn to those of a probe on the frozen base that
            was fitted on other prompts, in [0, 1]. It knows what labels of single pairs are too
            noisy to tell. Sets of more than 4,096 pairs tell enough, and are learnt as they are.
        patience: Checks on the validation pairs without a better one, after which training ends.
    """

    layers: str = "top:0.25"
    rank: int = 8
    alpha: float = 16.0
    learning_rate: float | None = None
    epochs: float = 1.0
    batch_size: int = 16
    loss: Loss = "soft"
    label_smoothing: float = 0.0
    distillation: float = 0.5
    patience: int = 3

    def __post_init__(self) -> None:
        self.adapted(100)
        for name in ("rank", "alpha", "learning_rate", "epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise OptionError(f"{name} must be greater than 0 and finite, got {value}")
        if self.loss not in ("soft", "margin"):
            raise OptionError(f"loss must be 'soft' or 'margin', got {self.loss!r}")
        if not 0 <= self.label_smoothing < 1:
            raise OptionError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if not 0 <= self.distillation <= 1:
            raise OptionError(f"distillation must be in [0, 1], got {self.distillation}")

    @property
    def rate(self) -> float:
        """The learning rate; where none was chosen, that of a small base's adapter."""
        if self.learning_rate is None:
            return default_learning_rate("lora", 0)
        return self.learning_rate

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


@dataclass(frozen=True)
class TrainSettings:
    """How preference models are made.

    Attributes:
        form: A `lora` adapter, a `probe` on the frozen base, or a `full` model.
        gradient: For the forms that are trained by gradient descent.
        trainer: `together` trains all principles in one pass, `trl` one after another with TRL's
            RewardTrainer; `auto` takes `together` for adapters of a base whose texts can be packed,
            in one process.
        max_length: In tokens; longer texts are cut on the left.
        append_eos: Whether responses are closed, as TRL's trainers do it, or left open and read
            at their last token; see `InputFormat`.
        validation_fraction: Share of the training prompts that decides when training ends, and
            whether its result or its start is kept.
        seed: Of splits, initial weights and the order of the pairs.
        dtype: Of the base while training; scores are always measured in float32.
    """

    form: Form = "lora"
    gradient: GradientSettings = field(default_factory=GradientSettings)
    trainer: Trainer = "auto"
    max_length: int = 1024
    append_eos: bool = True
    validation_fraction: float = 0.2
    seed: int = 0
    dtype: Dtype = "bfloat16"

    def __post_init__(self) -> None:
        if self.form not in ("lora", "probe", "full"):
            raise OptionError(f"form must be 'lora', 'probe' or 'full', got {self.form!r}")
        if self.form == "full" and self.trainer == "together":
            raise OptionError("whole models are trained one after another; use the trainer 'trl'")
        if self.max_length < 8:
            raise OptionError(f"max_length must be at least 8 tokens, got {self.max_length}")
        if not 0 <= self.validation_fraction < 1:
            raise OptionError(
                f"validation_fraction must be in [0, 1), got {self.validation_fraction}"
            )
