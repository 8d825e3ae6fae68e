"""Aligning a policy against a bank, by any of the algorithms, watched on held-out prompts."""

import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError

from morlaif_hub.errors import OptionError, TrainingError, WorkspaceError
from morlaif_hub.hub.manifest import PolicyManifest
from morlaif_hub.judges.base import Judge
from morlaif_hub.models.language_model import ModelFolder
from morlaif_hub.policies.referee import Referee
from morlaif_hub.policies.run import Run, Trained
from morlaif_hub.policies.settings import (
    PolicySettings,
    Progress,
    Prompts,
    RewardSpec,
    TrainedPolicy,
)
from morlaif_hub.policies.writing import write_policy
from morlaif_hub.preference_models.trl import random_states_kept
from morlaif_hub.principles import Principle

__all__ = ["PolicySettings", "RewardSpec", "TrainedPolicy", "train_policy"]


def train_policy(
    base: ModelFolder,
    reward: RewardSpec,
    *,
    prompts: Prompts,
    held_out: Prompts,
    folder: Path,
    settings: PolicySettings,
    judge: tuple[Judge, Principle] | None = None,
    checkpoints: Path | None = None,
    progress: Progress | None = None,
) -> TrainedPolicy:
    """Train a policy and write it as an artifact.

    Linear weights use one reward function per objective, another scalarizer is one function; either
    way a step costs one pass of the bank. All processes of a run call it alike, and the main one
    writes.

    Args:
        base: The model to align.
        reward: Bank, scalarizer and weights.
        prompts: What is trained on.
        held_out: What is measured on; no prompt of it may be trained on.
        folder: Where the artifact goes. What was there before is replaced only by a finished one.
        settings: How to train.
        judge: Who compares the answers to held-out prompts with those before training, and on
            which principle; None for nobody.
        checkpoints: A folder that gets one of its own for each run, from which it goes on if it was
            killed; removed when the artifact is written. None keeps nothing.
        progress: Told after every step how many were just done.

    Returns:
        What came of it, in every process.

    Raises:
        ObjectiveMismatchError: If the weights do not match the bank.
        OptionError: If prompts are lacking, too long or on both sides, or a step cannot be divided.
        TrainingError: If a loss, weight or reward becomes NaN or infinite, or memory runs out. What
            was good until then is written first, if there is anything.
        WorkspaceError: If something cannot be written.
    """
    _check_apart(prompts, held_out)
    run = Run(base, reward, settings, prompts=prompts, held_out=held_out)
    place = checkpoints and checkpoints / f"policy-{run.key(judge)}"
    with TemporaryDirectory(prefix="morlaif-") as scratch, random_states_kept(settings.seed):
        trained = run.train(
            place or Path(scratch),
            referee=Referee(*judge) if judge else None,
            saves=place is not None,
            progress=progress,
        )
        manifest = run.processes.together(lambda: _written(run, trained, folder))[0]
    return _finished(run, trained, manifest, folder=folder, place=place)


def _written(run: Run, trained: Trained, folder: Path) -> PolicyManifest | None:
    """Write the artifact in the main process, where there is anything to write."""
    if not run.processes.main or not trained.worth_writing:
        return None
    try:
        return write_policy(trained.model, run.tokenizer, trained.story, folder=folder)
    except WorkspaceError:
        raise
    except (OSError, SafetensorError) as error:
        raise WorkspaceError(f"the policy {folder} cannot be written: {error}") from error


def _finished(
    run: Run, trained: Trained, manifest: PolicyManifest | None, *, folder: Path, place: Path | None
) -> TrainedPolicy:
    """Tell what failed, else remove what the run would have gone on from."""
    found = trained.story.found
    if trained.failure is not None:
        kept = f" (the weights of step {found.kept.step} are kept in {folder})" if manifest else ""
        raise TrainingError(f"{trained.failure}{kept}") from trained.failure
    if manifest is None:
        raise TrainingError("the main process wrote no policy; report it as a fault")
    if place is not None and run.processes.main:
        shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):  # others' may be there
            place.parent.rmdir()
    return TrainedPolicy(manifest, found.first.seen, found.kept.seen)


def _check_apart(prompts: Prompts, held_out: Prompts) -> None:
    if not prompts or not held_out:
        raise OptionError(
            f"prompts to train on and to measure on are needed, got {len(prompts)} and "
            f"{len(held_out)}"
        )
    known = {str(list(prompt)) for prompt in prompts}
    both = [prompt for prompt in held_out if str(list(prompt)) in known]
    if both:
        raise OptionError(f"held-out prompt {both[0][-1]['content']!r} is trained on as well")
