"""Watching a run of a trainer: when to end it, which weights to keep, and what to go on from.

With several processes all of them come to the same decisions, since they look at the same numbers.
"""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from morlaif_hub.errors import TrainingError
from morlaif_hub.preference_models.losses import Check, Selection, Trained, check_scores
from morlaif_hub.preference_models.padded_pairs import padded, scores
from morlaif_hub.preference_models.tokens import Array, TokenPairs
from morlaif_hub.workspace import write_text

CHECKS_PER_EPOCH = 4
MARK = "morlaif.json"
"""Written last into a checkpoint: one without it was not finished."""


@dataclass(frozen=True)
class Plan:
    """What a run is watched for.

    Attributes:
        validation: Pairs that decide which weights are kept; may be none.
        epoch_steps: Steps of an epoch.
        patience: Checks without a better one, after which the run ends.
        at_once: Pairs that are scored at once.
        checkpoints: Where a run can go on from; None for nowhere.
        progress: Told how many steps were done.
        checked: Told of every check: after which step, and what it found.
    """

    validation: TokenPairs
    epoch_steps: int
    patience: int
    at_once: int
    checkpoints: Path | None
    progress: Callable[[int], None] | None
    checked: Callable[[int, Check], None] | None = None

    def due(self, step: int, last: int) -> bool:
        """Return whether to check, and to save, after a step."""
        every = max(1, round(self.epoch_steps / CHECKS_PER_EPOCH))
        return step % every == 0 or step == last


class Watch(TrainerCallback):
    """Checks the weights on validation pairs, keeps the best ones and ends a run that has them.

    Args:
        trainer: Whose run is watched.
        plan: What for.
    """

    def __init__(self, trainer: Any, plan: Plan) -> None:
        self._trainer, self._plan = trainer, plan
        self._selection = Selection()
        self._best: dict[str, Tensor] = {}
        self._best_step = 0

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_others: Any) -> None:
        """Check the start, which is kept unless something better comes."""
        if state.global_step:
            self._tell(state.global_step)
        elif len(self._plan.validation):
            self._check(0)

    def on_step_end(self, _args: Any, state: Any, control: Any, **_others: Any) -> None:
        """Check, if it is time to, and end the run if it goes on in vain."""
        if self._in_vain():  # as a resumed run can be from the beginning
            control.should_training_stop = True
            return
        self._tell(1)
        if self._plan.due(state.global_step, state.max_steps):
            if len(self._plan.validation):
                self._check(state.global_step)
            control.should_training_stop |= self._in_vain()
            control.should_save = self._plan.checkpoints is not None

    def on_save(self, args: Any, state: Any, _control: Any, **_others: Any) -> None:
        """Complete a checkpoint by what was found so far."""
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if self._best and (args.process_index == 0 or _sharded(self._trainer.model)):
            save_file(self._best, folder / self._best_name())
        self._trainer.accelerator.wait_for_everyone()
        if args.process_index == 0:
            found = {"selection": asdict(self._selection), "best_step": self._best_step}
            write_text(folder / MARK, json.dumps(found) + "\n")

    def resume(self, checkpoint: Path) -> None:
        """Take over what a checkpoint's run had found."""
        found = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        selection = found["selection"]
        for name in ("start", "trained"):
            selection[name] = selection[name] and Check(*selection[name])
        self._selection, self._best_step = Selection(**selection), found["best_step"]
        if self._selection.start is not None:
            name = self._best_name()
            path = checkpoint / name
            self._best = load_file(path if path.is_file() else checkpoint / "best.safetensors")

    def finish(self) -> Trained:
        """Put the best weights in place; return what training gave.

        Raises:
            TrainingError: If a weight is not finite.
        """
        model, steps = self._trainer.model, self._trainer.state.global_step
        trained = _trained_parameters(model)
        with torch.no_grad():
            for name, kept in self._best.items():
                _local(trained[name]).copy_(kept)
        for name, parameter in trained.items():
            if not bool(_local(parameter).isfinite().all()):
                raise TrainingError(
                    f"the weight {name} is not finite after {steps} steps; lower the learning "
                    "rate, or train in float32"
                )
        if not len(self._plan.validation):
            return Trained(None, None, steps, "trained")
        return self._selection.result()

    def _in_vain(self) -> bool:
        return self._selection.without_better >= self._plan.patience

    def _tell(self, steps: int) -> None:
        if self._plan.progress:
            self._plan.progress(steps)

    def _check(self, step: int) -> None:
        pairs = self._plan.validation
        try:
            found = [check_scores(self._differences(), pairs.probabilities)]
        except TrainingError as error:
            raise TrainingError(f"at step {step}: {error}") from error
        # Processes on unlike machines may round differently, but have to agree.
        broadcast_object_list(found)
        if self._plan.checked:
            self._plan.checked(step, found[0])
        if self._selection.add(found[0], step):
            self._best_step = step
            self._best = {
                name: _local(parameter).detach().cpu().clone()
                for name, parameter in _trained_parameters(self._trainer.model).items()
            }

    @torch.no_grad()
    def _differences(self) -> Array:
        """Return what all processes together found for the validation pairs, shape (pairs,)."""
        pairs, accelerator = self._plan.validation, self._trainer.accelerator
        count, size = accelerator.num_processes, min(self._plan.at_once, len(self._plan.validation))
        # Each process has as many batches as the others, which models in shards need.
        rounds = math.ceil(len(pairs) / (size * count))
        model, pad = self._trainer.model, self._trainer.processing_class.pad_token_id
        model.eval()
        mine = []
        for turn in range(rounds):
            first = (turn * count + accelerator.process_index) * size
            batch = [(first + i) % len(pairs) for i in range(size)]
            texts = [*(pairs.first[i] for i in batch), *(pairs.second[i] for i in batch)]
            inputs = {name: t.to(accelerator.device) for name, t in padded(texts, pad).items()}
            a, b = scores(model, inputs).chunk(2)
            mine.append(a - b)
        gathered = accelerator.gather(torch.stack(mine))
        in_order = gathered.view(count, rounds, size).transpose(0, 1).flatten()[: len(pairs)]
        return np.asarray(in_order.double().cpu())

    def _best_name(self) -> str:
        if not _sharded(self._trainer.model) and not self._trainer.is_fsdp_enabled:
            return "best.safetensors"
        return f"best-{self._trainer.args.process_index}.safetensors"


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest finished checkpoint in a run's folder."""
    found = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / MARK).is_file()
    }
    return found[max(found)] if found else None


def remove_unfinished(folder: Path) -> None:
    """Remove checkpoints that a process was killed over."""
    for path in folder.glob("checkpoint-*"):
        if not (path / MARK).is_file():
            shutil.rmtree(path, ignore_errors=True)


def _trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what is trained, by name; of a model in shards this process's."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # after a pass some weights are left whole, in copies
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _local(parameter: Tensor) -> Tensor:
    """Return this process's part of a weight; all of it where it is not in shards."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
