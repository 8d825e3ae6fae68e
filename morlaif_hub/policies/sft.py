"""Supervised fine-tuning on dialogues: where the paper's path begins, and samples come from.

The loss is on what the assistant says in every turn and on what ends it. TRL's SFTTrainer needs
marks in the chat template for that and knows those of some models; here the tokens are found for
any template, in `turns`, and TRL is given them.

Source:
    arXiv:2406.07295 (MORLAIF), which begins with a model fine-tuned on openassistant-guanaco;
    https://huggingface.co/docs/trl/sft_trainer.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel

from morlaif_hub.bank.adapters import save_adapter
from morlaif_hub.errors import OptionError
from morlaif_hub.hub.artifact import seal, stage
from morlaif_hub.hub.manifest import (
    BaseManifest,
    LossRecord,
    PolicyManifest,
    SftRecord,
    manifest_kind,
    read_manifest,
)
from morlaif_hub.models.language_model import (
    Dtype,
    LanguageModel,
    ModelFolder,
    load_causal_lm,
    load_tokenizer,
)
from morlaif_hub.models.likelihood import Branches, continuation_log_probabilities
from morlaif_hub.policies.sft_data import Dialogues, Fitted, check_end, fit_dialogues
from morlaif_hub.policies.sft_trainer import (
    FineTuning,
    fine_tune,
    fine_tuning_trainer,
    forget,
    scratch_folder,
)
from morlaif_hub.policies.turns import IGNORED, Row, Template, use_template
from morlaif_hub.preference_models.saved_state import Digest
from morlaif_hub.preference_models.settings import BILLION
from morlaif_hub.scoring.processes import Processes
from morlaif_hub.statistics import bootstrap_interval, estimate_mean

__all__ = ["Dialogues", "SftSettings", "TrainedSft", "train_sft"]

Progress = Callable[[str, int, int], None]
"""Told a stage, how much of it is done, and of how much."""
Array = NDArray[np.float64]

LARGEST_BATCH = 64
FEWEST_STEPS = 16
"""Of an epoch, where a smaller batch allows for them."""
BYTES = 2
"""Of a weight, in the usual half precision."""


@dataclass(frozen=True)
class SftSettings:
    """How a policy is fine-tuned on dialogues.

    Attributes:
        form: A `lora` adapter on all linear layers, or the `full` model.
        epochs: Passes over the dialogues.
        batch_size: Dialogues in a step, of all processes together; None for 64, fewer where an
            epoch would have fewer than 16 steps.
        learning_rate: At its peak; None for 2e-4, from ten billion parameters on 1e-4, and 2e-5
            for a full model.
        max_length: In tokens, at most what the model reads; longer dialogues are cut at the end.
        rank: Of the LoRA.
        template: The model's `own` chat template, or the built-in `plain` one; None for its own if
            it has one.
        held_out: Share of the dialogues that the loss is measured on, at most 256 of them.
        seed: Of the split, the LoRA and the order of the dialogues.
        dtype: Of a LoRA's base; what is trained is in float32.
    """

    form: Literal["lora", "full"] = "lora"
    epochs: float = 1.0
    batch_size: int | None = None
    learning_rate: float | None = None
    max_length: int = 1024
    rank: int = 16
    template: Template | None = None
    held_out: float = 0.1
    seed: int = 0
    dtype: Dtype = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "rank"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise OptionError(f"{name} must be greater than 0 and finite, got {value}")
        if self.max_length < 8:
            raise OptionError(f"max_length must be at least 8 tokens, got {self.max_length}")
        if not 0 < self.held_out < 1:
            raise OptionError(f"held_out must be above 0 and below 1, got {self.held_out}")
        for name, accepted in (("form", ("lora", "full")), ("template", ("own", "plain", None))):
            if getattr(self, name) not in accepted:
                raise OptionError(f"{name} must be one of {accepted}, got {getattr(self, name)!r}")

    @property
    def loaded_dtype(self) -> Dtype:
        """The dtype of the base: what is trained itself is float32."""
        return self.dtype if self.form == "lora" else "float32"


class TrainedSft(NamedTuple):
    """A policy's manifest, what it says of the dialogues, and how many were left out, and why."""

    manifest: PolicyManifest
    record: SftRecord
    left_out: dict[str, int]


def train_sft(
    base: ModelFolder,
    data: Dialogues,
    *,
    folder: Path,
    settings: SftSettings,
    checkpoints: Path | None = None,
    progress: Progress | None = None,
) -> TrainedSft | None:
    """Fine-tune a policy on dialogues and write it as an artifact.

    Every process of a run calls it alike. A failed write is a WorkspaceError.

    Args:
        base: The model to begin with.
        data: Dialogues of at least two different prompts.
        folder: Where the artifact goes.
        settings: How to train.
        checkpoints: A folder from which a run that was interrupted goes on; None for none.
        progress: Told how far each stage is.

    Returns: What came of it; None in processes other than the main one.

    Raises:
        DataError: If no dialogue can be learnt from, or all of them have the same prompt.
        OptionError: If the template cannot be used, the model would not stop where turns end, or
            the batch size is no multiple of the number of processes.
        TrainingError: If a loss or a weight becomes NaN or infinite, or memory runs out.
    """
    tell = progress or _silent
    tokenizer = load_tokenizer(base.path)
    template = use_template(tokenizer, settings.template)
    model = load_causal_lm(base.path, dtype=settings.loaded_dtype)
    fitted = fit_dialogues(
        tokenizer,
        data.dialogues,
        max_length=_room(model, settings),
        held_out=settings.held_out,
        seed=settings.seed,
    )
    check_end(model, tokenizer, fitted)
    plan = _plan(base, fitted, settings, checkpoints, progress=partial(tell, "training"))
    with scratch_folder() as scratch:
        trainer = fine_tuning_trainer(
            model, fitted.rows, tokenizer, plan=plan, scratch=Path(scratch)
        )
        tuned = _Tuned(trainer.model, tokenizer, base)
        losses = [tuned.losses(fitted.held_out, partial(tell, "loss before"))]
        steps = fine_tune(trainer, plan)
        losses.append(tuned.losses(fitted.held_out, partial(tell, "loss after")))
    if not Processes().main:
        return None
    record = _record(data, fitted, template, losses)
    used = replace(settings, batch_size=plan.batch_size, learning_rate=plan.learning_rate)
    made = _manifest(folder.name, base, used, record, steps, data.license or _license(base))
    with stage(folder) as staging:
        tuned.save(staging, plain=template == "plain")
        manifest = seal(staging, made)
    forget(plan)
    return TrainedSft(manifest, record, fitted.left_out)


@dataclass(frozen=True)
class _Tuned:
    """A model in training, with what it is measured and written with."""

    model: Any
    tokenizer: Any
    base: ModelFolder

    def losses(
        self, dialogues: Sequence[Sequence[Row]], progress: Callable[[int, int], None]
    ) -> list[Array]:
        """Return the cross-entropy of each learnt token of each dialogue, in nats.

        The main process does it, and the others have none.
        """
        processes = Processes()
        if not processes.main:
            return []
        self.model.eval().to(processes.device)
        inner = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        rows = [row for rows in dialogues for row in rows]
        begins = [_first(row) for row in rows]
        branches = [
            Branches(row.ids[:n], [row.ids[n:]]) for row, n in zip(rows, begins, strict=True)
        ]
        done = 0

        def tell(more: int) -> None:
            nonlocal done
            done += more
            progress(done, len(rows))

        found = continuation_log_probabilities(
            LanguageModel(inner, self.tokenizer, self.base.base, self.base.name),
            branches,
            progress=tell,
        )
        of_rows = iter(
            -values[0][np.array(row.labels[n:]) != IGNORED]
            for row, n, values in zip(rows, begins, found, strict=True)
        )
        return [np.concatenate([next(of_rows) for _ in rows]) for rows in dialogues]

    def save(self, folder: Path, *, plain: bool) -> None:
        """Write the weights, and the tokenizer where it is not the base's as it is."""
        if isinstance(self.model, PeftModel):
            save_adapter(self.model, folder, self.base.base)
        else:
            self.model.save_pretrained(folder)
        if plain or not isinstance(self.model, PeftModel):
            self.tokenizer.save_pretrained(folder)


def _first(row: Row) -> int:
    return next(i for i, label in enumerate(row.labels) if label != IGNORED)


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Tell nobody."""


def _room(model: Any, settings: SftSettings) -> int:
    """Return how many tokens of a dialogue are read."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(settings.max_length, context or settings.max_length)


def _plan(
    base: ModelFolder,
    fitted: Fitted,
    settings: SftSettings,
    checkpoints: Path | None,
    *,
    progress: Callable[[int, int], None],
) -> FineTuning:
    plan = FineTuning(
        rank=settings.rank if settings.form == "lora" else None,
        epochs=settings.epochs,
        batch_size=settings.batch_size or _batch_size(len(fitted.rows)),
        learning_rate=settings.learning_rate or _learning_rate(base, settings),
        seed=settings.seed,
        progress=progress,
    )
    if checkpoints is None:
        return plan
    digest = Digest()
    digest.add(base.base.weights_sha256, settings.dtype, Processes().count)
    digest.add(plan.rank, plan.epochs, plan.batch_size, plan.learning_rate, plan.seed)
    digest.add_texts([tuple(row.ids) for row in fitted.rows])
    digest.add_texts([tuple(row.labels) for row in fitted.rows])
    return replace(plan, checkpoints=checkpoints / f"sft-{str(digest)[:32]}")


def _batch_size(rows: int) -> int:
    """Return 64, or less where that makes for few steps; a multiple of the processes' number."""
    processes = Processes().count
    wanted = min(LARGEST_BATCH, max(1, rows // FEWEST_STEPS))
    return max(1, wanted // processes) * processes


def _learning_rate(base: ModelFolder, settings: SftSettings) -> float:
    if settings.form == "full":
        return 2e-5
    size = sum(path.stat().st_size for path in base.path.glob("*.safetensors"))
    return 2e-4 if size < 10 * BILLION * BYTES else 1e-4


def _record(
    data: Dialogues, fitted: Fitted, template: Template, losses: Sequence[list[Array]]
) -> SftRecord:
    return SftRecord(
        source=data.source,
        dialogues=len(fitted.learnt),
        left_out=sum(fitted.left_out.values()),
        tokens=sum(row.learnt for row in fitted.rows),
        template=template,
        loss_before=_loss(losses[0]),
        loss_after=_loss(losses[1]),
        change=_change(*losses),
    )


def _loss(losses: Sequence[Array]) -> LossRecord:
    found = estimate_mean(np.concatenate(losses), _owners(losses))
    return LossRecord(value=found.value, interval=found.interval, n=len(losses))


def _change(before: Sequence[Array], after: Sequence[Array]) -> tuple[float, float]:
    differences = np.concatenate(after) - np.concatenate(before)
    low, high = bootstrap_interval(differences, _owners(before))
    return low, high


def _owners(losses: Sequence[Array]) -> NDArray[np.intp]:
    return np.repeat(np.arange(len(losses)), [len(found) for found in losses])


def _manifest(
    name: str,
    base: ModelFolder,
    settings: SftSettings,
    record: SftRecord,
    steps: int,
    license: str,
) -> PolicyManifest:
    return PolicyManifest(
        license=license,
        name=name,
        form=settings.form,
        base=base.base,
        algorithm="sft",
        objectives=(),
        scalarizer=None,
        weights=(),
        seed=settings.seed,
        steps=steps,
        stopped_by="max_steps",
        max_kl=None,
        kl=None,
        settings=asdict(settings),
        curve=(),
        delta_interval=None,
        versions={n: version(n) for n in ("morlaif-hub", "torch", "transformers", "trl", "peft")},
        sft=record,
    )


def _license(base: ModelFolder) -> str:
    """Return the base's licence, which its policies inherit; `other` where it is not known."""
    if manifest_kind(base.path) != "base":
        return "other"
    return read_manifest(base.path, BaseManifest).license
