"""Watching a policy learn: what it does on held-out prompts, when to stop, which weights to keep.

The reward that is trained for rises by design. What matters beside it is measured at every check:
the other principles, what an independent judge says, how far the policy moved, how long and how
different its answers are and whether they end.

Source:
    arXiv:2210.10760 (over-optimisation and its measure, the KL).
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from morlaif_hub.errors import TrainingError
from morlaif_hub.hub.manifest import PolicyCheckpoint
from morlaif_hub.policies.measure import HeldOut
from morlaif_hub.policies.referee import Shares
from morlaif_hub.policies.settings import PolicySettings, Progress
from morlaif_hub.preference_models.watch import MARK
from morlaif_hub.workspace import write_text


class Check(NamedTuple):
    """What was found on held-out prompts after a step.

    Attributes:
        step: Of training; 0 is before it.
        seen: What was measured.
        shares: What the judge said of the answers; None without a judge, and before training.
    """

    step: int
    seen: HeldOut
    shares: Shares | None

    def point(self, objectives: Sequence[str]) -> PolicyCheckpoint:
        """Return the means, for a manifest."""
        judged = self.shares.mean if self.shares else None
        return self.seen.checkpoint(self.step, objectives, judged=judged)


KEPT = 2
"""Checkpoints of a run: the second one is whole while the first is written."""

Look = Callable[[int, HeldOut | None], Check]
"""Takes the step, and what was seen before training (None then); returns what is seen now."""


@dataclass
class Found:
    """What a run has found so far.

    Attributes:
        first: The check before training.
        kept: The last one that is not above the limit.
        curve: All of them.
    """

    first: Check
    kept: Check
    curve: list[PolicyCheckpoint]


class Watch(TrainerCallback):
    """Looks at held-out prompts before training and every few steps; stops above the KL limit.

    It works with every trainer that calls transformers' callbacks, TRL's and ours.

    Args:
        model: What is trained.
        look: Measures it. Where several processes train, all of them get the same.
        objectives: The bank's.
        settings: Say when to check and when to stop.
        saves: Whether the trainer is to save a checkpoint after every check within the limit.
        progress: Told after every step.
    """

    def __init__(
        self,
        model: nn.Module,
        look: Look,
        objectives: Sequence[str],
        settings: PolicySettings,
        *,
        saves: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._model, self._look, self._objectives = model, look, objectives
        self._settings, self._saves, self._progress = settings, saves, progress
        self._found: Found | None = None
        self._weights: dict[str, Tensor] = {}
        self.stopped = False

    @property
    def began(self) -> bool:
        """Whether anything was found yet."""
        return self._found is not None

    @property
    def found(self) -> Found:
        """What was found; only after training began."""
        if self._found is None:
            raise TrainingError("training ended before it began; report it as a fault")
        return self._found

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_others: Any) -> None:
        """Check what there is before training; a run that goes on has done so."""
        if self._found is None:
            first = self._look(0, None)
            self._found = Found(first, first, [first.point(self._objectives)])
        elif self._progress:
            self._progress(state.global_step)
        self._keep()
        self._model.train()

    def on_step_end(self, _args: Any, state: Any, control: Any, **_others: Any) -> object:
        """Check, if it is time to, and end the run if the policy moved too far."""
        step: int = state.global_step
        self._check_weights(step)
        if self._progress:
            self._progress(1)
        if step % self._settings.check_every == 0 or step == self._settings.max_steps:
            check = self._look(step, self.found.first.seen)
            if not math.isfinite(check.seen.kl):
                raise TrainingError(
                    f"the policy's KL is {check.seen.kl} after step {step}, so its probabilities "
                    "are no numbers any more; lower the learning rate, or train in float32"
                )
            self.found.curve.append(check.point(self._objectives))
            limit = self._settings.max_kl
            if limit is not None and check.seen.kl > limit:
                self.stopped = control.should_training_stop = True
            else:
                self.found.kept = check
                self._keep()
                control.should_save = self._saves
            self._model.train()
        return control

    def on_log(
        self, _args: Any, state: Any, _control: Any, logs: Any = None, **_others: Any
    ) -> None:
        """End a run whose loss is no number."""
        for name in ("loss", "policy_loss", "value_loss"):
            value = (logs or {}).get(name)
            if isinstance(value, float) and not math.isfinite(value):
                raise TrainingError(
                    f"the {name.replace('_', ' ')} is {value} at step {state.global_step}; lower "
                    "the learning rate, or train in float32"
                )

    def on_save(self, args: Any, state: Any, _control: Any, **_others: Any) -> None:
        """Complete a checkpoint by what was found so far."""
        if not PartialState().is_main_process:
            return
        found = {
            "first": _plain(self.found.first),
            "kept": _plain(self.found.kept),
            "curve": [vars(point) for point in self.found.curve],
        }
        path = Path(args.output_dir, f"checkpoint-{state.global_step}", MARK)
        write_text(path, json.dumps(found) + "\n")
        for older in checkpoints(path.parent.parent)[:-KEPT]:
            shutil.rmtree(older, ignore_errors=True)

    def resume(self, checkpoint: Path) -> None:
        """Take over what a checkpoint's run had found."""
        found = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        curve = [PolicyCheckpoint(**point) for point in found["curve"]]
        self._found = Found(_check(found["first"]), _check(found["kept"]), curve)

    def put_back(self) -> None:
        """Give the model the weights of the kept check."""
        trained = trained_parameters(self._model)
        with torch.no_grad():
            for name, kept in self._weights.items():
                local(trained[name]).copy_(kept)

    def _keep(self) -> None:
        self._weights = {
            name: local(parameter).detach().to("cpu", copy=True)
            for name, parameter in trained_parameters(self._model).items()
        }

    def _check_weights(self, step: int) -> None:
        for name, parameter in trained_parameters(self._model).items():
            if not bool(local(parameter).isfinite().all()):
                raise TrainingError(
                    f"the weight {name} is not finite after step {step}, so a loss or its gradient "
                    "was not; lower the learning rate, or train in float32"
                )


def checkpoints(folder: Path) -> list[Path]:
    """Return a run's checkpoints, the newest last, those that were not finished among them."""
    found = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*"))
    return [folder / match[0] for match in sorted((m for m in found if m), key=lambda m: int(m[1]))]


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what is trained, by name; of a model in shards this process's."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # after a pass some weights are left whole, in copies
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def local(parameter: Tensor) -> Tensor:
    """Return this process's part of a weight; all of it where it is not in shards."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _plain(check: Check) -> dict[str, Any]:
    shares = check.shares and [None if math.isnan(v) else v for v in check.shares.values.tolist()]
    return {"step": check.step, "seen": check.seen.plain(), "shares": shares}


def _check(plain: dict[str, Any]) -> Check:
    shares = plain["shares"]
    if shares is not None:
        shares = Shares.of([float("nan") if value is None else value for value in shares])
    return Check(plain["step"], HeldOut.from_plain(plain["seen"]), shares)
