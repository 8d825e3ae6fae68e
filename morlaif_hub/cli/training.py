"""The commands that train: preference models, and policies on them."""

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from morlaif_hub.cli.banks import (
    bank_option,
    bank_sources,
    choose_reward,
    load_bank,
    reward_options,
)
from morlaif_hub.cli.command import (
    Report,
    command,
    constitution_option,
    hint,
    local,
    seed_option,
)
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import (
    Cell,
    doubts,
    legend,
    paragraphs,
    table,
    validation_table,
    wrapped,
)
from morlaif_hub.evaluation.wording import bounds, number, percent
from morlaif_hub.workspace import Workspace

if TYPE_CHECKING:
    from morlaif_hub.hub.manifest import PolicyManifest, PreferenceModelManifest
    from morlaif_hub.preference_models.preferences import Preferences
    from morlaif_hub.principles import Principle

HELD_OUT = 0.2
"""Share of the prompts that a policy is measured on rather than trained on."""


@command("train-pm", with_models=True)
@click.argument("principles", metavar="PRINCIPLE...", nargs=-1, required=True)
@click.option(
    "--base", metavar="MODEL", help="What they are adapters of. [default: the embedded model]"
)
@click.option(
    "--layers",
    metavar="top:F|all",
    default="top:0.25",
    show_default=True,
    help="Which layers are adapted; the layers below are shared by a whole bank.",
)
@click.option(
    "--labels",
    type=click.Choice(["feedback", "human"]),
    default="feedback",
    show_default=True,
    help="What to learn from: the workspace's feedback, or people's choices in --pairs.",
)
@click.option("--pairs", metavar="SRC", help="Pairs with people's choices, for --labels human.")
@click.option(
    "--license",
    metavar="SPDX",
    help="Of the preference models; the licence of what they learn from has to allow for it. "
    "[default: that of the feedback, 'other' for --labels human]",
)
@constitution_option
@seed_option
def train_pm(
    workspace: Workspace,
    *,
    principles: tuple[str, ...],
    base: str | None,
    layers: str,
    labels: str,
    pairs: str | None,
    license: str | None,
    constitution: str,
    seed: int,
) -> Report:
    """Train a preference model for each PRINCIPLE.

    All share one run. Their accuracy on held-out pairs is shown beside that of a rule that sees
    length alone, and they are tested on the principles' probes. Written to pms/PRINCIPLE in the
    workspace, in place of what is there.
    """
    from morlaif_hub.principles import load_constitution

    if (labels == "human") != (pairs is not None):
        raise click.UsageError("--labels human and --pairs SRC go together")
    chosen = load_constitution(constitution)
    wanted = [chosen.get(name) for name in dict.fromkeys(principles)]
    workspace.check_writable()
    from morlaif_hub.models.language_model import model_folder
    from morlaif_hub.preference_models.lora import LoraSettings
    from morlaif_hub.preference_models.train import TrainSettings, train_preference_models

    settings = TrainSettings(lora=LoraSettings(layers=layers), seed=seed)
    preferences = _preferences(wanted, workspace, pairs=pairs, seed=seed)
    if license is None and pairs is not None:
        license = "other"
        hint("the licence is written down as 'other'; --license names that of the pairs")
    if license is not None:
        preferences = [replace(given, license=license) for given in preferences]
    with Progress() as progress:
        manifests = train_preference_models(
            preferences,
            base=model_folder(base),
            folders=[workspace.preference_model(principle.name) for principle in wanted],
            settings=settings,
            progress=progress.reach,
        )
    return _models_report(manifests, workspace)


def _preferences(
    principles: "Sequence[Principle]", workspace: Workspace, *, pairs: str | None, seed: int
) -> "list[Preferences]":
    from morlaif_hub.errors import DataError
    from morlaif_hub.feedback.dataset import FeedbackDataset
    from morlaif_hub.hub.manifest import DatasetReference
    from morlaif_hub.preference_models.preferences import feedback_preferences, human_preferences

    if pairs is None:
        for principle in principles:
            if not workspace.feedback(principle.name).is_dir():
                raise DataError(
                    f"the workspace {workspace.root} has no feedback on {principle.name!r}; make "
                    f"some with morlaif-hub collect-feedback {principle.name}"
                )
        return [
            feedback_preferences(p, FeedbackDataset.load(workspace.feedback(p.name)))
            for p in principles
        ]
    from morlaif_hub.cli.pairs import read_pairs

    given = read_pairs(pairs, workspace)
    source = given.source
    dataset = DatasetReference(
        repo_id=source.name if source.revision else None,
        revision=source.revision,
        sha256=source.sha256,
    )
    return [human_preferences(p, given.comparisons, dataset=dataset, seed=seed) for p in principles]


def _models_report(manifests: "Sequence[PreferenceModelManifest]", workspace: Workspace) -> Report:
    data: dict[str, Any] = {}
    rows: list[list[Cell]] = []
    for manifest in manifests:
        name, training = manifest.principle.name, manifest.training
        folder = local(workspace.preference_model(name))
        data[name] = {
            "pairs": training.pairs,
            "kept": training.kept,
            "evaluations": [asdict(evaluation) for evaluation in manifest.evaluations],
            "length_correlation": manifest.length_correlation,
            "validation": manifest.validation and asdict(manifest.validation),
            "path": folder,
        }
        rows.append(
            [
                name,
                training.pairs,
                *_held_out(manifest),
                folder,
            ]
        )
    header = (
        "principle",
        "train pairs",
        "accuracy",
        "95 % interval",
        "by length alone",
        "preference model",
    )
    records = {m.principle.name: m.validation for m in manifests if m.validation}
    verdicts = {m.principle.name: m.validation.verdict if m.validation else None for m in manifests}
    text = paragraphs(
        doubts(verdicts, "preference model"),
        table(header, rows),
        validation_table(records) if records else "",
        legend({m.principle.name: m.principle.high_score for m in manifests}),
    )
    banks = " ".join(f"--bank {folder['path']}" for folder in data.values())
    return Report({"principles": data}, text, f"morlaif-hub steer {banks} --prompt '...'")


def _held_out(manifest: "PreferenceModelManifest") -> list[Cell]:
    """Return accuracy, interval and length baseline; nothing if all held-out pairs are ties."""
    for evaluation in manifest.evaluations:
        if evaluation.metric == "accuracy":
            return [evaluation.value, bounds(evaluation.interval), evaluation.length_baseline]
    return [None, None, None]


def _folder_name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", value):
        raise click.BadParameter(
            f"{value!r} must be a folder's name: letters, digits, '_', '-' and '.'"
        )
    return value


@command("train-policy", with_models=True)
@click.option("--model", metavar="MODEL", help="What is trained. [default: the embedded model]")
@click.option(
    "--prompts",
    metavar="SRC",
    default="everyday",
    show_default=True,
    help="As for sample-pairs. A fifth of them are held out, and everything is measured on those.",
)
@bank_option
@click.option(
    "--algorithm",
    type=click.Choice(["grpo"]),
    default="grpo",
    show_default=True,
    help="How to train.",
)
@reward_options
@click.option(
    "--max-steps",
    type=click.IntRange(min=1),
    metavar="N",
    default=10,
    show_default=True,
    help="Optimizer steps, at the most.",
)
@click.option(
    "--max-kl",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Stop at the first check above this mean KL per token, in nats, and keep the one before.",
)
@click.option(
    "--name",
    metavar="NAME",
    default="policy",
    show_default=True,
    callback=_folder_name,
    help="What to call the policy.",
)
@seed_option
def train_policy(
    workspace: Workspace,
    *,
    model: str | None,
    prompts: str,
    banks: tuple[str, ...],
    algorithm: str,
    scalarizer: str | None,
    weights: dict[str, float] | None,
    name: str,
    **training: Any,
) -> Report:
    """Train a policy for what a bank scores.

    The reward rises by design; what to look at is what else changed. Written to policies/NAME in
    the workspace, in place of what is there.
    """
    from morlaif_hub.comparisons import prompt_id, read_prompts, split_by_prompt

    sources = bank_sources(workspace, banks)
    workspace.check_writable()
    given = read_prompts(prompts)
    from morlaif_hub.models.language_model import model_folder
    from morlaif_hub.policies import trl

    settings = trl.PolicySettings(**training)
    apart = split_by_prompt(map(prompt_id, given), test_fraction=HELD_OUT, seed=settings.seed)
    base, bank = model_folder(model), load_bank(sources)
    reward = choose_reward(bank, weights=weights, scalarizer=scalarizer)
    with Progress() as progress:
        progress.start(f"training with {algorithm}", settings.max_steps)
        trained = trl.train_policy(
            base,
            trl.RewardSpec(bank, reward.scalarizer, reward.weights),
            prompts=[prompt for prompt in given if prompt_id(prompt) not in apart],
            held_out=[prompt for prompt in given if prompt_id(prompt) in apart],
            folder=workspace.policy(name),
            settings=settings,
            progress=progress.advance,
        )
    return _policy_report(trained.manifest, workspace)


def _policy_report(manifest: "PolicyManifest", workspace: Workspace) -> Report:
    from morlaif_hub.policies.artifact import policy_summary

    summary = policy_summary(manifest)
    folder = local(workspace.policy(manifest.name))
    first, last = manifest.curve[0], manifest.curve[-1]
    kept = next(point for point in manifest.curve if point.step == manifest.steps)
    objectives: list[list[Cell]] = [
        [name, value, kept.objectives[name]] for name, value in first.objectives.items()
    ]
    rows: list[list[Cell]] = [
        ["reward", first.reward, kept.reward],
        *objectives,
        ["words", first.words, kept.words],
        ["ended by itself", percent(first.finished), percent(kept.finished)],
    ]
    reason = (
        f"The KL was above the limit of {manifest.max_kl} at step {last.step}, so the weights of "
        f"step {manifest.steps} are kept. "
        if manifest.stopped_by == "max_kl"
        else ""
    )
    said = (
        f"{reason}On held-out prompts, the reward changed until step {manifest.steps} by "
        f"{number(kept.reward - first.reward, sign=True)} (95 % interval "
        f"{bounds(manifest.delta_interval, sign=True)}), at a KL of {number(manifest.kl, 3)} nats "
        "per token."
    )
    text = paragraphs(
        doubts({o.name: o.verdict for o in manifest.objectives}, "preference model"),
        wrapped(said),
        table(("on held-out prompts", "before", "after"), rows),
        legend({o.name: o.high_score for o in manifest.objectives}),
        folder,
    )
    return Report(summary, text, f"morlaif-hub steer --model {folder} --prompt '...'")
