"""The commands that train: preference models, and policies on them."""

import re
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
    wrapped,
)
from morlaif_hub.evaluation.wording import bounds, number, percent
from morlaif_hub.workspace import Workspace

if TYPE_CHECKING:
    from morlaif_hub.hub.manifest import PolicyManifest

HELD_OUT = 0.2
"""Share of the prompts that a policy is measured on rather than trained on."""


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
