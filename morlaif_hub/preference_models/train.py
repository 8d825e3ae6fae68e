"""From labelled comparisons to preference models that are ready to publish.

Every form begins with a logistic fit on the frozen base, for which all principles of a run share
one pass over their texts. For a probe that is all. Adapters are then trained together, in one run
over the texts; full models, and adapters on several processes, one after another by TRL.
"""

import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig

from morlaif_hub.errors import TrainingError
from morlaif_hub.hub.artifact import stage
from morlaif_hub.hub.manifest import InputFormat, PreferenceModelManifest
from morlaif_hub.messages import content_hash
from morlaif_hub.models.formats import Encoder
from morlaif_hub.models.language_model import ModelFolder, load_tokenizer
from morlaif_hub.preference_models.measure import Made, score_made, write_preference_model
from morlaif_hub.preference_models.preferences import Preferences
from morlaif_hub.preference_models.runs import Run
from morlaif_hub.preference_models.settings import TrainSettings
from morlaif_hub.preference_models.standing import Watcher
from morlaif_hub.preference_models.starts import Progress

__all__ = ["TrainSettings", "train_preference_models"]

_LOG = logging.getLogger("morlaif_hub.preference_models")


def train_preference_models(
    preferences: Sequence[Preferences],
    *,
    base: ModelFolder,
    folders: Sequence[Path],
    settings: TrainSettings | None = None,
    checkpoints: Path | None = None,
    progress: Progress | None = None,
    watch: Watcher | None = None,
) -> list[PreferenceModelManifest]:
    """Train one preference model per principle and write each as an artifact.

    Where several processes run this, as `accelerate launch` starts them, all of them train and the
    main one writes.

    Args:
        preferences: Labelled comparisons, one set per principle.
        base: What they are made of.
        folders: Where each goes. What was there before is replaced only by a finished one.
        settings: How to train.
        checkpoints: A folder that gets one of its own for each run, from which it goes on if it was
            killed; removed when the artifacts are written. None keeps nothing.
        progress: Told how far each stage is.
        watch: Told how good each preference model is on its validation pairs, a few times an epoch,
            and of each whose training ends early.

    Returns:
        The manifests, in the order of the preferences; in every process.

    Raises:
        TrainingError: If the base is of a kind that cannot be one, there are too few pairs, the
            labels are all on one side, all texts are too long, or the loss becomes NaN; the
            principle is named, and the other principles' models are finished first.
    """
    settings = settings or TrainSettings()
    _check_base(base, settings)
    encoder = _encoder(base, settings)
    _check(preferences, encoder)
    if checkpoints is not None:
        checkpoints = checkpoints / _key(preferences, base, settings)
    with TemporaryDirectory(prefix="morlaif-") as scratch:
        run = Run(
            base,
            encoder,
            settings,
            scratch=Path(scratch),
            checkpoints=checkpoints,
            progress=progress,
            watch=watch,
        )
        trained, failures = run.train(preferences)
        main = run.processes.main
        manifests = run.processes.together(
            lambda: _write(preferences, trained, folders, run) if main else []
        )[0]
    if failures:
        raise TrainingError("; ".join(map(str, failures)) + _kept(manifests))
    if checkpoints is not None and main:
        _forget(checkpoints)
    return manifests


def _forget(checkpoints: Path) -> None:
    shutil.rmtree(checkpoints, ignore_errors=True)
    with suppress(OSError):  # others' may be there
        checkpoints.parent.rmdir()


def _check_base(base: ModelFolder, settings: TrainSettings) -> None:
    """Check that a score head can be put on a base."""
    config = AutoConfig.from_pretrained(base.path, trust_remote_code=False)
    if config.is_encoder_decoder:
        raise TrainingError(
            f"{base.name}: {config.model_type} writes with a decoder what an encoder read, and a "
            "preference model has only one of them; use a decoder such as Llama, Qwen, Gemma or "
            "GPT-2, or an encoder such as BERT"
        )
    if settings.form != "probe" and type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise TrainingError(
            f"{base.name}: transformers has no sequence classifier for {config.model_type}, whose "
            "head would make the score; take the form 'probe', which needs none, or another base, "
            "such as Llama, Qwen, Gemma, GPT-2 or BERT"
        )


def _encoder(base: ModelFolder, settings: TrainSettings) -> Encoder:
    """Return how a base reads text: as chat where it can, closed where it has a token for that."""
    tokenizer = load_tokenizer(base.path)
    kind: Literal["chat", "text"] = "chat" if tokenizer.chat_template else "text"
    closed = settings.append_eos and tokenizer.eos_token is not None
    return Encoder(
        tokenizer, InputFormat(kind=kind, append_eos=closed, max_length=settings.max_length)
    )


def _key(preferences: Sequence[Preferences], base: ModelFolder, settings: TrainSettings) -> str:
    """Return a name for a run, by all that its result depends on."""
    facts = [
        [p.principle.sha256(), p.dataset.sha256, p.probabilities.tolist(), p.test.tolist()]
        for p in preferences
    ]
    return content_hash([facts, base.base.weights_sha256, asdict(settings)])[:16]


def _check(preferences: Sequence[Preferences], encoder: Encoder) -> None:
    """Check that there are enough pairs, and that something is seen of their texts.

    Responses that fill all that is read hide where they begin.
    """
    for given in preferences:
        given.check_enough()
    limit = encoder.input_format.max_length
    for given in preferences:
        texts = [text for c in given.comparisons for text in encoder.texts(c)]
        cut = sum(text.start == 0 and len(text.ids) == limit for text in texts)
        if cut == len(texts):
            raise TrainingError(
                f"{given.principle.name}: all {cut:,} responses have more than the {limit} tokens "
                "that are read, so no beginning of one would be seen; raise max_length"
            )
        if cut:
            _LOG.warning(
                "%s: %d of %d responses have more than %d tokens; their beginnings are not read",
                given.principle.name,
                cut,
                len(texts),
                limit,
            )


def _kept(manifests: Sequence[PreferenceModelManifest]) -> str:
    names = ", ".join(manifest.principle.name for manifest in manifests)
    return f" (finished and kept: {names})" if names else ""


def _write(
    preferences: Sequence[Preferences],
    trained: dict[int, Made],
    folders: Sequence[Path],
    run: Run,
) -> list[PreferenceModelManifest]:
    """Measure what was trained, and write the artifacts."""
    if not trained:
        return []
    scores = score_made(
        [preferences[k] for k in trained],
        list(trained.values()),
        base=run.base,
        encoder=run.encoder,
        progress=partial(run.tell, "measure"),
    )
    manifests = []
    for column, (k, made) in enumerate(trained.items()):
        with stage(folders[k]) as staging:
            shutil.copytree(made.folder, staging, dirs_exist_ok=True)
            manifests.append(
                write_preference_model(
                    preferences[k],
                    staging,
                    made,
                    scores=scores,
                    column=column,
                    base=run.base.base,
                )
            )
    return manifests
