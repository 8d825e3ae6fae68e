"""What a trainer's policy does on held-out prompts, found by all processes alike."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from accelerate.utils import broadcast_object_list
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule

from morlaif_hub.bank.classifier import quiet_loading
from morlaif_hub.models.generation import SamplingSettings
from morlaif_hub.models.language_model import LanguageModel, ModelFolder, load_causal_lm
from morlaif_hub.policies.measure import Combine, HeldOut, measure
from morlaif_hub.policies.referee import Referee, Shares
from morlaif_hub.policies.settings import Prompts
from morlaif_hub.policies.watch import Check
from morlaif_hub.rewards import Scorer
from morlaif_hub.scoring.processes import Processes


@dataclass(frozen=True)
class Measures:
    """What is measured, and on what.

    Attributes:
        base: The model that training begins with.
        tokenizer: The policy's, as it is when it answers.
        bank: Scores the answers.
        combine: Makes rewards of the scores.
        prompts: Held out.
        sampling: How they are answered.
        referee: The judge; None for none.
        processes: Those that train.
    """

    base: ModelFolder
    tokenizer: Any
    bank: Scorer
    combine: Combine
    prompts: Prompts
    sampling: SamplingSettings
    referee: Referee | None
    processes: Processes

    def language_model(self, model: Any) -> LanguageModel:
        """Return a model as one that answers."""
        return LanguageModel(model, self.tokenizer, self.base.base, self.base.name)


class Lookout:
    """Measures the policy of a trainer whenever it is called.

    Args:
        trainer: TRL's or ours.
        measures: What is measured.
    """

    def __init__(self, trainer: Any, measures: Measures) -> None:
        self._model, self._measures = trainer.model, measures
        lora = isinstance(trainer.model, PeftModel)
        inner = trainer.model.get_base_model() if lora else trainer.model
        self._policy = measures.language_model(inner)
        self._reference: Callable[[], AbstractContextManager[Any]]
        models = [inner]
        if lora:
            self._reference = trainer.model.disable_adapter
        else:
            other = self._other(getattr(trainer, "ref_model", None))
            self._reference = lambda: nullcontext(other)
            models += [other.model]
        # Embeddings and head, which are used one by one, stay whole; the layers stay in shards.
        self._sharded = [model for model in models if isinstance(model, FSDPModule)]
        for model in self._sharded:
            model.set_reshard_after_forward(False, recurse=False)

    def __call__(self, step: int, before: HeldOut | None) -> Check:
        """Return what is found after a step; `before` was found before training."""
        measures = self._measures
        self._model.eval()
        for model in self._sharded:
            model.unshard()
        seen = measure(
            self._policy,
            measures.prompts,
            bank=measures.bank,
            combine=measures.combine,
            sampling=measures.sampling,
            # What was not trained yet is its own reference.
            reference=self._reference if step else None,
        )
        shares = None
        if before is not None and measures.referee is not None:
            shares = measures.processes.together(lambda: self._shares(seen, before))[0]
        check = [Check(step, seen, shares)]
        if measures.processes.count > 1:
            broadcast_object_list(check)  # unlike machines may have rounded differently
        return check[0]

    def _shares(self, seen: HeldOut, before: HeldOut) -> Shares | None:
        """Ask the judge, which may be paid for, in the main process alone."""
        measures = self._measures
        if measures.referee is None or not measures.processes.main:
            return None
        return measures.referee.shares(measures.prompts, seen, before)

    def _other(self, model: Any) -> LanguageModel:
        """Return the reference of a model that is trained whole: the trainer's, or a copy."""
        if model is None:
            with quiet_loading():
                model = load_causal_lm(self._measures.base.path, dtype="float32")
        return self._measures.language_model(model.to(self._measures.processes.device))
