"""From labelled comparisons to preference models that are ready to publish.

All principles of a run share one pass of the frozen base over their texts. Each then gets a head
fitted on frozen features and a LoRA trained from there.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from morlaif_hub.bank.adapters import save_adapter
from morlaif_hub.bank.classifier import load_classifier
from morlaif_hub.bank.trunk import layer_list
from morlaif_hub.errors import OptionError, TrainingError
from morlaif_hub.hub.artifact import stage
from morlaif_hub.hub.manifest import InputFormat, PreferenceModelManifest, TrainingRecord
from morlaif_hub.models.formats import Encoder
from morlaif_hub.models.language_model import Dtype, ModelFolder, load_tokenizer
from morlaif_hub.preference_models.features import FrozenFeatures
from morlaif_hub.preference_models.head import fit_head
from morlaif_hub.preference_models.lora import (
    LoraSettings,
    TokenPairs,
    new_adapter,
    train_lora,
)
from morlaif_hub.preference_models.measure import score_adapters, write_preference_model
from morlaif_hub.preference_models.preferences import LabelledPairs, Preferences

Array = NDArray[np.float64]
Progress = Callable[[str, int, int], None]
"""Told a stage's name, how much of it is done, and of how much."""


@dataclass(frozen=True)
class TrainSettings:
    """How preference models are trained.

    Attributes:
        lora: Layers, rank, learning rate and so on.
        max_length: In tokens; longer texts are cut on the left.
        append_eos: Whether responses are closed, as TRL's trainers do it, or left open and read
            at their last token; see `InputFormat`.
        validation_fraction: Share of the training prompts that decides whether the trained
            adapter or its start is kept.
        seed: Of splits, initial weights and the order of the pairs.
        dtype: Of the base while training; scores are always measured in float32.
    """

    lora: LoraSettings = field(default_factory=LoraSettings)
    max_length: int = 1024
    append_eos: bool = True
    validation_fraction: float = 0.2
    seed: int = 0
    dtype: Dtype = "bfloat16"

    def __post_init__(self) -> None:
        if self.max_length < 8:
            raise OptionError(f"max_length must be at least 8 tokens, got {self.max_length}")
        if not 0 <= self.validation_fraction < 1:
            raise OptionError(
                f"validation_fraction must be in [0, 1), got {self.validation_fraction}"
            )


def train_preference_models(
    preferences: Sequence[Preferences],
    *,
    base: ModelFolder,
    folders: Sequence[Path],
    settings: TrainSettings,
    progress: Progress | None = None,
) -> list[PreferenceModelManifest]:
    """Train one preference model per principle and write each as an artifact.

    Args:
        preferences: Labelled comparisons, one set per principle.
        base: What they are adapters of.
        folders: Where each goes. What was there before is replaced only by a finished one.
        settings: How to train.
        progress: Told how far each stage is.

    Returns:
        The manifests, in the order of the preferences.

    Raises:
        TrainingError: If there are too few pairs, or the loss becomes NaN; the principle is named,
            and the other principles' models are finished first.
    """
    for given in preferences:
        given.check_enough()
    tell = progress or (lambda _stage, _done, _total: None)
    tokenizer = load_tokenizer(base.path)
    kind: Literal["chat", "text"] = "chat" if tokenizer.chat_template else "text"
    encoder = Encoder(
        tokenizer,
        InputFormat(kind=kind, append_eos=settings.append_eos, max_length=settings.max_length),
    )
    with TemporaryDirectory(prefix="morlaif-") as scratch:
        adapters = [Path(scratch, str(k)) for k in range(len(preferences))]
        trained, failures = _train_all(preferences, adapters, _Run(base, encoder, settings, tell))
        manifests = []
        if trained:
            scores = score_adapters(
                [preferences[k] for k in trained],
                [adapters[k] for k in trained],
                base=base,
                encoder=encoder,
                progress=partial(tell, "measure"),
            )
        for column, (k, record) in enumerate(trained.items()):
            with stage(folders[k]) as staging:
                shutil.copytree(adapters[k], staging, dirs_exist_ok=True)
                written = write_preference_model(
                    preferences[k],
                    staging,
                    scores=scores,
                    column=column,
                    base=base.base,
                    training=record,
                )
            manifests.append(written)
    if failures:
        raise TrainingError("; ".join(failures) + _kept(manifests))
    return manifests


def _train_all(
    preferences: Sequence[Preferences], adapters: Sequence[Path], run: "_Run"
) -> tuple[dict[int, TrainingRecord], list[str]]:
    """Train every adapter; return the records of those that succeeded, and why others did not."""
    trained: dict[int, TrainingRecord] = {}
    failures = []
    with _seeded(run.settings.seed):
        features = run.features(preferences)
        for k, (given, folder) in enumerate(zip(preferences, adapters, strict=True)):
            try:
                trained[k] = run.train(given, features, folder)
            except TrainingError as error:
                failures.append(f"{given.principle.name}: {error}")
    return trained, failures


def _kept(manifests: Sequence[PreferenceModelManifest]) -> str:
    names = ", ".join(manifest.principle.name for manifest in manifests)
    return f" (finished and kept: {names})" if names else ""


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Make PEFT's and TRL's use of torch's global generator repeatable, then put it back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class _Run:
    """What all principles of one training run have in common."""

    def __init__(
        self, base: ModelFolder, encoder: Encoder, settings: TrainSettings, tell: Progress
    ) -> None:
        self._base, self._encoder, self._tell = base, encoder, tell
        self.settings = settings
        layers = layer_list(self._classifier())
        self._layers = settings.lora.adapted(len(layers)) if layers is not None else ()

    def features(self, preferences: Sequence[Preferences]) -> FrozenFeatures:
        """Return the frozen base's states of all training texts."""
        features = FrozenFeatures(
            self._classifier(),
            depth=min(self._layers, default=0),
            pad_token_id=self._encoder.tokenizer.pad_token_id,
        )
        pairs = [self._encoder.both(c) for given in preferences for c in given.decided.comparisons]
        texts = sorted({ids for pair in pairs for ids in pair})
        features.add(texts, progress=self._counter("read", len(texts)))
        return features

    def train(self, given: Preferences, features: FrozenFeatures, folder: Path) -> TrainingRecord:
        """Train one principle's adapter into a folder; return how it went."""
        settings, lora = self.settings, self.settings.lora
        pairs, validation = given.decided.split(settings.validation_fraction, settings.seed)
        model = new_adapter(self._classifier(), self._head(pairs, features), lora)
        steps = int(np.ceil(np.ceil(len(pairs) / lora.batch_size) * lora.epochs))
        result = train_lora(
            model,
            features,
            train=self._tokens(pairs),
            validation=self._tokens(validation),
            settings=lora,
            seed=settings.seed,
            tokenizer=self._encoder.tokenizer,
            progress=self._counter(f"train {given.principle.name}", steps),
        )
        save_adapter(model, folder, self._base.base)
        return TrainingRecord(
            labels="human" if given.judge is None else "feedback",
            seed=settings.seed,
            layers=self._layers,
            rank=lora.rank,
            alpha=lora.alpha,
            learning_rate=lora.learning_rate,
            epochs=lora.epochs,
            batch_size=lora.batch_size,
            pairs=len(pairs),
            validation_pairs=len(validation),
            start_accuracy=result.start_accuracy,
            trained_accuracy=result.trained_accuracy,
            kept=result.kept,
        )

    def _classifier(self) -> Any:
        # On a CPU the plain attention trains faster in bfloat16, by about a quarter.
        return load_classifier(
            self._base.path,
            dtype=getattr(torch, self.settings.dtype),
            pad_token_id=self._encoder.tokenizer.pad_token_id,
            attention=None if torch.cuda.is_available() else "eager",
        ).requires_grad_(False)

    def _head(self, pairs: LabelledPairs, features: FrozenFeatures) -> Array:
        both = [self._encoder.both(c) for c in pairs.comparisons]
        a = features.read_out([first for first, _ in both])
        b = features.read_out([second for _, second in both])
        return fit_head(
            (a - b).double().numpy(),
            (pairs.probabilities > 0.5).astype(float),
            pairs.weights,
            pairs.prompts,
            seed=self.settings.seed,
        )

    def _tokens(self, pairs: LabelledPairs) -> TokenPairs:
        both = [self._encoder.both(c) for c in pairs.comparisons]
        better_first = [
            pair if probability > 0.5 else pair[::-1]
            for pair, probability in zip(both, pairs.probabilities, strict=True)
        ]
        better, worse = [p[0] for p in better_first], [p[1] for p in better_first]
        return TokenPairs(better, worse, pairs.weights)

    def _counter(self, stage: str, total: int) -> Callable[[int], None]:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            self._tell(stage, done, total)

        return count
