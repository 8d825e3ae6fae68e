"""One run of training: from labelled pairs to weights in files."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from morlaif_hub.bank.attention import NotPackableError
from morlaif_hub.bank.classifier import load_base, load_classifier
from morlaif_hub.bank.probes import write_probe
from morlaif_hub.errors import TrainingError
from morlaif_hub.hub.manifest import GradientRecord, TrainingRecord
from morlaif_hub.models.formats import Encoder
from morlaif_hub.models.language_model import ModelFolder
from morlaif_hub.preference_models.features import FrozenStates, middle, probe_candidates
from morlaif_hub.preference_models.full import new_full_model, save_full_model
from morlaif_hub.preference_models.learner import Work
from morlaif_hub.preference_models.losses import Trained
from morlaif_hub.preference_models.measure import Made
from morlaif_hub.preference_models.new_adapters import new_adapters, save_new_adapter, set_head
from morlaif_hub.preference_models.preferences import LabelledPairs, Preferences
from morlaif_hub.preference_models.settings import TrainSettings, default_learning_rate
from morlaif_hub.preference_models.standing import Standings, Watcher
from morlaif_hub.preference_models.starts import (
    MOST_PAIRS,
    Counter,
    Progress,
    Start,
    fit_probes,
    fit_score_head,
    fit_teacher,
)
from morlaif_hub.preference_models.together import total_steps, train_together
from morlaif_hub.preference_models.tokens import token_pairs
from morlaif_hub.preference_models.trl import train_with_trl
from morlaif_hub.scoring.processes import Processes

_LOG = logging.getLogger("morlaif_hub.preference_models")


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass


@dataclass(frozen=True)
class _Job:
    """One principle's training.

    Attributes:
        given: What is learnt from.
        folder: Gets what was made.
        begin: Where training begins.
        work: The pairs as token ids.
    """

    given: Preferences
    folder: Path
    begin: "_Begin"
    work: Work

    @property
    def name(self) -> str:
        return self.given.principle.name


class _Begin(NamedTuple):
    """Where gradient descent begins.

    Attributes:
        head: The score head.
        teacher: The probe that it learnt from, and whose predictions labels are drawn to; None for
            none.
    """

    head: Start
    teacher: Start | None


class Run:
    """One training of preference models of a form on a base, up to their weights.

    Args:
        base: What they are made of.
        encoder: How it reads text.
        settings: How to train.
        scratch: Gets a folder for each preference model.
        checkpoints: As for `train_preference_models`.
        progress: As there; told by the main process.
        watch: The same.
    """

    def __init__(
        self,
        base: ModelFolder,
        encoder: Encoder,
        settings: TrainSettings,
        *,
        scratch: Path,
        checkpoints: Path | None,
        progress: Progress | None,
        watch: Watcher | None = None,
    ) -> None:
        self.base, self.encoder, self.settings = base, encoder, settings
        self.processes = Processes()
        self.tell = progress if progress and self.processes.main else _silent
        self._watch: Watcher = watch if watch and self.processes.main else (lambda _standings: None)
        self._scratch, self._checkpoints = scratch, checkpoints
        self._depth, self._gradient = 0, settings.gradient
        self._trainer: Literal["together", "trl"] = "trl"

    def train(
        self, preferences: Sequence[Preferences]
    ) -> tuple[dict[int, Made], list[TrainingError]]:
        """Train every preference model; return those that succeeded, and why others did not."""
        if self.settings.form == "probe":
            return self._probes(preferences), []
        states = self._states(preferences)
        jobs = [self._job(given, states, k) for k, given in enumerate(preferences)]
        outcomes = self._together(jobs, states) if self._go_together() else None
        if outcomes is None:
            outcomes = [self._alone(job, states) for job in jobs]
        made: dict[int, Made] = {}
        failures = []
        for k, outcome in enumerate(outcomes):
            if isinstance(outcome, TrainingError):
                failures.append(outcome)
            else:
                made[k] = outcome
        return made, failures

    def _probes(self, preferences: Sequence[Preferences]) -> dict[int, Made]:
        model = load_base(
            self.base.path, dtype=self._dtype, pad_token_id=self.encoder.tokenizer.pad_token_id
        )
        states = FrozenStates(model.to(self.processes.device), self.encoder)
        starts = fit_probes(
            states,
            [(given.principle.name, given.training) for given in preferences],
            probe_candidates(model.config.get_text_config().num_hidden_layers),
            seed=self.settings.seed,
            progress=self.tell,
        )
        made = {}
        for k, (given, start) in enumerate(zip(preferences, starts, strict=True)):
            folder = self._scratch / str(k)
            write_probe(folder, start.weight)
            made[k] = Made(
                "probe", folder, self._record(given, _Begin(start, None), None), start.probe
            )
        return made

    def _states(self, preferences: Sequence[Preferences]) -> FrozenStates:
        """Return what score heads read of the training pairs, or of samples of large sets."""
        model = self._classifier()
        self._depth = model.config.get_text_config().num_hidden_layers
        self._gradient = replace(
            self.settings.gradient,
            learning_rate=self.settings.gradient.learning_rate
            or default_learning_rate(self.settings.form, model.num_parameters()),
        )
        states = FrozenStates(model, self.encoder)
        sets = [part for given in preferences for part in self._parts(given)]
        layers = [middle(self._depth).layer] if self._gradient.distillation else []
        states.add(sets, layers=layers, head=True, progress=partial(self.tell, "read"))
        return states

    def _parts(self, given: Preferences) -> tuple[LabelledPairs, LabelledPairs]:
        """Return the pairs that a head is fitted on, without and with the validation pairs."""
        pairs, validation = self._split(given)
        sample = pairs.sample(MOST_PAIRS, self.settings.seed)
        rest = validation.sample(max(1, MOST_PAIRS // 4), self.settings.seed)
        return sample, sample.joined(rest)

    def _split(self, given: Preferences) -> tuple[LabelledPairs, LabelledPairs]:
        return given.training.split(self.settings.validation_fraction, self.settings.seed)

    def _job(self, given: Preferences, states: FrozenStates, k: int) -> _Job:
        pairs, validation = self._split(given)
        begin = self._begin(states, self._parts(given)[0])
        train = token_pairs(pairs, self.encoder)
        if begin.teacher and begin.teacher.predicted is not None and len(pairs) <= MOST_PAIRS:
            share = self._gradient.distillation
            drawn = (1 - share) * pairs.probabilities + share * begin.teacher.predicted
            train = replace(train, probabilities=drawn)
        work = Work(train, token_pairs(validation, self.encoder))
        return _Job(given, self._scratch / str(k), begin, work)

    def _begin(self, states: FrozenStates, pairs: LabelledPairs) -> _Begin:
        """Return a head that says what a probe of the middle says, as far as it can."""
        seed, teacher, targets = self.settings.seed, None, pairs.probabilities
        if self._gradient.distillation:
            fitted = fit_teacher(states, pairs, middle(self._depth), seed=seed)
            if fitted.predicted is not None:  # with one prompt there is nothing to predict
                teacher, targets = fitted, fitted.predicted
        head = fit_score_head(states, pairs, targets, depth=self._depth, seed=seed)
        return _Begin(head, teacher)

    def _go_together(self) -> bool:
        settings = self.settings
        if settings.form != "lora" or settings.trainer == "trl":
            return False
        return settings.trainer == "together" or self.processes.count == 1

    def _together(
        self, jobs: Sequence[_Job], states: FrozenStates
    ) -> list[Made | TrainingError] | None:
        """Train all adapters in one run; return None where the base's texts cannot be packed."""
        gradient, seed = self._gradient, self.settings.seed
        work = {job.name: job.work for job in jobs}
        heads = {job.name: job.begin.head.weight for job in jobs}
        model = new_adapters(self._classifier(), heads, gradient, seed=seed)
        total = total_steps(work, gradient)
        count = Counter(partial(self.tell, f"train {', '.join(work)}"), total * len(jobs))
        count(0)  # checks of the start come before the first step
        standings = Standings(total, self._watch)

        def advance(name: str, steps: int) -> None:
            count(steps)
            standings.advance(name, steps)

        try:
            results = train_together(
                model,
                work,
                settings=gradient,
                seed=seed,
                pad_token_id=self.encoder.tokenizer.pad_token_id,
                checkpoint=self._checkpoints,
                progress=advance,
                checked=standings.checked,
            )
        except NotPackableError as error:
            if self.settings.trainer == "together":
                raise TrainingError(
                    f"adapters of this base cannot be trained together: {error}; train with TRL"
                ) from error
            _LOG.warning("trained one after another with TRL: %s", error)
            return None
        self._trainer = "together"
        return [self._finished(job, results[job.name], model, states) for job in jobs]

    def _alone(self, job: _Job, states: FrozenStates) -> Made | TrainingError:
        """Train one preference model with TRL, in all processes."""
        settings, gradient = self.settings, self._gradient
        full = settings.form == "full"
        base, head = self._classifier(), job.begin.head.weight
        if full:
            model: Any = new_full_model(base, head)
        else:
            model = new_adapters(base, {job.name: head}, gradient, seed=settings.seed)
        rows = len(job.work.train)
        steps = max(1, round(-(-rows // gradient.batch_size) * gradient.epochs))
        standings, name = Standings(steps, self._watch), job.name
        count = Counter(partial(self.tell, f"train {name}"), steps)
        count(0)

        def advance(more: int) -> None:
            count(more)
            standings.advance(name, more)

        try:
            result: Trained | TrainingError = train_with_trl(
                model,
                train=job.work.train,
                validation=job.work.validation,
                settings=gradient,
                seed=settings.seed,
                tokenizer=self.encoder.tokenizer,
                checkpoints=self._checkpoints,
                autocast=full and settings.dtype == "bfloat16",
                progress=advance,
                checked=lambda step, found: standings.checked(step, {name: found}),
            )
            count(standings.left(name))
        except TrainingError as error:
            if self.processes.count > 1:
                raise  # the others may not have failed, and would wait for this one
            result = TrainingError(f"{job.name}: {error}")
        return self._finished(job, result, model, states)

    def _finished(
        self, job: _Job, result: Trained | TrainingError, model: Any, states: FrozenStates
    ) -> Made | TrainingError:
        """Write the files of a trained model into its job's folder."""
        if isinstance(result, TrainingError):
            return result
        begin = job.begin
        if result.kept == "start":
            # Nothing is left to be validated, so those pairs can be learnt from as well.
            begin = self._begin(states, self._parts(job.given)[1])
            set_head(model, job.name, begin.head.weight)
        if self.processes.main and self.settings.form == "full":
            save_full_model(model, job.folder, self.encoder.tokenizer)
        elif self.processes.main:
            save_new_adapter(model, job.name, job.folder, self.base.base)
        record = self._record(job.given, begin, self._gradient_record(job, result))
        return Made(self.settings.form, job.folder, record, None)

    def _gradient_record(self, job: _Job, result: Trained) -> GradientRecord:
        settings, full = self._gradient, self.settings.form == "full"
        taught = job.begin.teacher is not None and len(job.work.train) <= MOST_PAIRS
        return GradientRecord(
            trainer=self._trainer,
            layers=tuple(range(self._depth)) if full else settings.adapted(self._depth),
            rank=None if full else settings.rank,
            alpha=None if full else settings.alpha,
            learning_rate=settings.rate,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            label_smoothing=settings.label_smoothing,
            distillation=settings.distillation if taught else 0.0,
            loss=settings.loss,
            validation_pairs=len(job.work.validation),
            start_accuracy=result.start_accuracy,
            trained_accuracy=result.trained_accuracy,
            steps=result.steps,
            kept=result.kept,
        )

    def _record(
        self, given: Preferences, begin: _Begin, gradient: GradientRecord | None
    ) -> TrainingRecord:
        apart = gradient.validation_pairs if gradient and gradient.kept == "trained" else 0
        return TrainingRecord(
            labels="human" if given.judge is None else "feedback",
            seed=self.settings.seed,
            pairs=len(given.training) - apart,
            head=begin.head.record,
            teacher=begin.teacher.record if begin.teacher else None,
            gradient=gradient,
        )

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.settings.dtype)
        return dtype

    def _classifier(self) -> Any:
        model = load_classifier(
            self.base.path, dtype=self._dtype, pad_token_id=self.encoder.tokenizer.pad_token_id
        )
        return model.requires_grad_(False).to(self.processes.device)
