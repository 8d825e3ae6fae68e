"""The commands that train: preference models, and policies on them."""

import re
from collections.abc import Callable
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
    COUNT,
    Report,
    command,
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
    wrapped,
)
from morlaif_hub.evaluation.wording import bounds, number, percent
from morlaif_hub.workspace import Workspace

if TYPE_CHECKING:
    from morlaif_hub.bank.bank import PMBank
    from morlaif_hub.hub.manifest import PolicyManifest
    from morlaif_hub.judges.base import Judge

ABOVE_ZERO = click.FloatRange(min=0, min_open=True)

HELD_OUT = 0.2
"""Share of the prompts that a policy is measured on rather than trained on."""


def folder_name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Return a name that a folder of the workspace can have, for an option's callback."""
    if not re.fullmatch(r"\w[\w.-]*", value):
        raise click.BadParameter(
            f"{value!r} must be a folder's name: letters, digits, '_', '-' and '.'"
        )
    return value


_LEARNING = (
    click.option(
        "--epochs",
        type=ABOVE_ZERO,
        metavar="N",
        help="Passes over the prompts, in place of --max-steps.",
    ),
    click.option(
        "--learning-rate",
        type=ABOVE_ZERO,
        metavar="X",
        help="Constant. [default: 5e-4, ppo 2e-4, --form full 1e-5]",
    ),
    click.option(
        "--beta",
        type=click.FloatRange(min=0),
        metavar="X",
        help="Weight of the KL to the model before training: in the loss (grpo), the "
        "reward (rloo; ppo, at the start) or the implicit reward (online-dpo). [default: "
        "grpo 0.02, rloo and ppo 0.05, online-dpo 0.1]",
    ),
    click.option(
        "--prompts-per-step",
        type=COUNT,
        metavar="N",
        help="Different prompts in a step, of all processes together. [default: grpo and "
        "rloo 4, online-dpo 16, ppo 32]",
    ),
    click.option(
        "--completions",
        type=COUNT,
        metavar="N",
        help="Sampled for each of them: always 2 for online-dpo and 1 for ppo. [default: "
        "grpo and rloo 8]",
    ),
    click.option(
        "--batch-size",
        type=COUNT,
        metavar="N",
        help="Completions that a process learns from at once: lower it when memory runs "
        "out. [default: as many as fit]",
    ),
    click.option(
        "--max-new-tokens",
        type=COUNT,
        metavar="N",
        default=32,
        show_default=True,
        help="Limit of an answer.",
    ),
    click.option(
        "--form",
        type=click.Choice(["lora", "full"]),
        default="lora",
        show_default=True,
        help="Train an adapter, or all weights.",
    ),
    click.option(
        "--rank",
        type=COUNT,
        metavar="N",
        default=8,
        show_default=True,
        help="Of the adapter.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16"]),
        default="bfloat16",
        show_default=True,
        help="Of the model below an adapter; with --form full, of what is computed.",
    ),
    click.option(
        "--aggregation",
        type=click.Choice(["sum_then_normalize", "normalize_then_sum"]),
        default="sum_then_normalize",
        show_default=True,
        help="How grpo makes one advantage of several objectives; normalize_then_sum is GDPO's.",
    ),
    click.option(
        "--use-vllm",
        "vllm",
        metavar="URL|colocate",
        help="Sample with vLLM: with TRL's server at a URL, or on the GPUs that train.",
    ),
    click.option(
        "--check-every",
        type=COUNT,
        metavar="N",
        default=2,
        show_default=True,
        help="Steps between two checks on held-out prompts.",
    ),
)


def _learning_options(function: Callable[..., Report]) -> Callable[..., Report]:
    """Add to `train-policy` how it trains; what is not given is chosen by the algorithm."""
    for option in reversed(_LEARNING):
        function = option(function)
    return function


@command("train-policy", with_models=True)
@click.option(
    "--model",
    metavar="MODEL",
    help="What is trained: a model, or a policy as train-sft makes it. [default: the embedded "
    "model]",
)
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
    type=click.Choice(["ppo", "grpo", "rloo", "online-dpo"]),
    default="grpo",
    show_default=True,
    help="How to train.",
)
@reward_options
@click.option(
    "--max-steps",
    type=COUNT,
    metavar="N",
    default=10,
    show_default=True,
    help="Steps, at the most: each samples answers, scores them and learns from them.",
)
@click.option(
    "--max-kl",
    type=ABOVE_ZERO,
    metavar="X",
    help="Stop at the first check above this mean KL per token, in nats, and keep the one before.",
)
@click.option(
    "--judge",
    metavar="SPEC",
    help="Ask a judge, in both orders, whether the answers to held-out prompts got better; one "
    "that the bank did not learn from.",
)
@click.option(
    "--judge-on",
    metavar="PRINCIPLE",
    default="helpfulness",
    show_default=True,
    help="On what it is asked.",
)
@_learning_options
@click.option(
    "--name",
    metavar="NAME",
    default="policy",
    show_default=True,
    callback=folder_name,
    help="What to call the policy.",
)
@seed_option
def train_policy(
    workspace: Workspace,
    *,
    model: str | None,
    prompts: str,
    banks: tuple[str, ...],
    scalarizer: str | None,
    weights: dict[str, float] | None,
    judge: str | None,
    judge_on: str,
    name: str,
    **training: Any,
) -> Report:
    """Train a policy for what a bank scores.

    The reward rises by design; what to look at is what else changed. A run that was killed goes on
    where it stopped. Written to policies/NAME in the workspace, in place of what is there.
    """
    from morlaif_hub.comparisons import prompt_id, read_prompts, split_by_prompt
    from morlaif_hub.principles import load_constitution

    principle = load_constitution().get(judge_on)
    sources = bank_sources(workspace, banks)
    workspace.check_writable()
    given = read_prompts(prompts)
    from morlaif_hub.cli.voice import one_voice
    from morlaif_hub.policies import train
    from morlaif_hub.policies.artifact import policy_folder
    from morlaif_hub.scoring.processes import Processes

    settings = train.PolicySettings(**training)
    apart = split_by_prompt(map(prompt_id, given), test_fraction=HELD_OUT, seed=settings.seed)
    learnt = [prompt for prompt in given if prompt_id(prompt) not in apart]
    processes = Processes()
    with one_voice(processes):
        base, bank = policy_folder(model), load_bank(sources, device=processes.device)
        reward = choose_reward(bank, weights=weights, scalarizer=scalarizer)
        asked = (_judge(judge, bank), principle) if judge else None
        with Progress() as progress:
            progress.start(
                f"training with {settings.algorithm}", settings.planned(len(learnt)).max_steps
            )
            trained = train.train_policy(
                base,
                train.RewardSpec(bank, reward.scalarizer, reward.weights),
                prompts=learnt,
                held_out=[prompt for prompt in given if prompt_id(prompt) in apart],
                folder=workspace.policy(name),
                settings=settings,
                judge=asked,
                checkpoints=workspace.training,
                progress=progress.advance,
            )
        if not processes.main:
            raise click.exceptions.Exit(0)
    return _policy_report(trained.manifest, workspace)


def _judge(spec: str, bank: "PMBank") -> "Judge":
    from morlaif_hub.judges.base import load_judge

    judge = load_judge(spec)
    manifests = [member.manifest for member in bank.members]
    if any(m and m.judge and m.judge.spec == judge.spec for m in manifests):
        hint(
            f"the judge {judge.spec} made the labels that the bank learnt from, so it is not "
            "independent: it may share what the bank overlooks"
        )
    return judge


def _policy_report(manifest: "PolicyManifest", workspace: Workspace) -> Report:
    from morlaif_hub.hub.over_optimisation import signs
    from morlaif_hub.policies.artifact import policy_summary

    found = signs(manifest)
    summary = policy_summary(manifest) | _watched(manifest) | {"warnings": found}
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
        ["different answers", percent(first.distinct or 0), percent(kept.distinct or 0)],
    ]
    if kept.judged is not None:
        rows.append(["preferred by the judge", None, percent(kept.judged)])
    reason = (
        f"The KL was above the limit of {manifest.max_kl} at step {last.step}, so the weights of "
        f"step {manifest.steps} are kept. "
        if manifest.stopped_by == "max_kl"
        else ""
    )
    said = (
        f"{reason}On held-out prompts, the reward changed until step {manifest.steps} by "
        f"{number(kept.reward - first.reward, sign=True)} (95 % interval "
        f"{bounds(summary['delta_interval'], sign=True)}), at a KL of {number(kept.kl, 3)} nats "
        "per token."
    )
    text = paragraphs(
        doubts({o.name: o.verdict for o in manifest.objectives}, "preference model"),
        wrapped(said),
        table(("on held-out prompts", "before", "after"), rows),
        [wrapped(f"WARNING: {sign}") for sign in found],
        legend({o.name: o.high_score for o in manifest.objectives}),
        folder,
    )
    return Report(summary, text, f"morlaif-hub steer --model {folder} --prompt '...'")


def _watched(manifest: "PolicyManifest") -> dict[str, Any]:
    """Return what else was found on held-out prompts, for programs."""
    first = manifest.curve[0]
    kept = next(point for point in manifest.curve if point.step == manifest.steps)
    watched = manifest.watched
    found: dict[str, Any] = {
        "steps": manifest.steps,
        "stopped_by": manifest.stopped_by,
        "finished_before": first.finished,
        "finished_after": kept.finished,
        "distinct_before": first.distinct,
        "distinct_after": kept.distinct,
        "change_intervals": {},
        "judge": None,
    }
    if watched is not None:
        found["change_intervals"] = {row.objective: list(row.interval) for row in watched.changes}
    if watched is not None and watched.judge is not None:
        found["judge"] = {
            "spec": watched.judge.spec,
            "principle": watched.judge.principle,
            "preferred": kept.judged,
            "interval": list(watched.judge.interval),
        }
    return found
