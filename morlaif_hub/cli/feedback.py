"""The commands that make feedback: pairs of responses, judges, verdicts."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from morlaif_hub.cli.command import (
    COUNT,
    Report,
    command,
    constitution_option,
    length_and_temperature,
    local,
    seed_option,
)
from morlaif_hub.cli.judge_options import (
    Estimate,
    JudgeProgress,
    find_out,
    judge_of,
    judge_options,
)
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import (
    Cell,
    disagreements,
    doubts,
    paragraphs,
    table,
    validation_table,
    wrapped,
)
from morlaif_hub.evaluation.wording import bounds, percent
from morlaif_hub.workspace import Workspace

if TYPE_CHECKING:
    from morlaif_hub.cli.pairs import PairStream
    from morlaif_hub.comparisons import Comparison
    from morlaif_hub.feedback.collect import CollectionPlan
    from morlaif_hub.hub.manifest import FeedbackManifest


@command("sample-pairs", with_models=True)
@click.option("--model", metavar="MODEL", help="What answers. [default: the embedded model]")
@click.option(
    "--prompts",
    metavar="SRC",
    default="everyday",
    show_default=True,
    help="A built-in set (everyday, risky), a text file with one prompt a line, or rows with "
    "prompts in a file, folder or Hub data set.",
)
@click.option(
    "--responses",
    type=click.IntRange(min=2),
    metavar="N",
    default=2,
    show_default=True,
    help="Different responses to each prompt.",
)
@click.option("--all-pairs", is_flag=True, help="Pair every response with every other.")
@click.option("--limit", type=COUNT, metavar="N", help="Use the first so many prompts.")
@length_and_temperature
@click.option(
    "--stop",
    metavar="TEXT",
    multiple=True,
    default=(),
    help="End a response before this text; repeats.",
)
@click.option(
    "--system",
    metavar="TEXT",
    help="A system message for every prompt, in place of its own; it is part of the pairs.",
)
@seed_option
def sample_pairs(
    workspace: Workspace,
    *,
    model: str | None,
    prompts: str,
    limit: int | None,
    all_pairs: bool,
    system: str | None,
    **sampling: Any,
) -> Report:
    """Let a model answer prompts, and pair its responses.

    Written to pairs/ in the workspace, in place of what was sampled before.
    """
    from morlaif_hub.comparisons import read_prompts
    from morlaif_hub.sampling import PAIRS_FILE

    workspace.check_writable()
    chosen = read_prompts(prompts, limit=limit)
    if system is not None:
        told = {"role": "system", "content": system}
        chosen = [(told, *(m for m in p if m["role"] != "system")) for p in chosen]
    from morlaif_hub import sampling as library
    from morlaif_hub.models.generation import SamplingSettings
    from morlaif_hub.policies.artifact import load_policy

    settings = SamplingSettings(**sampling)
    with Progress() as progress:
        progress.start("sampling", len(chosen) * settings.responses)
        sampled = library.sample_pairs(
            load_policy(model),
            chosen,
            folder=workspace.pairs,
            settings=settings,
            all_pairs=all_pairs,
            progress=progress.advance,
        )
    responses = [response for found in sampled.responses for response in found]
    finished = sum(response.finished for response in responses) / len(responses)
    path = workspace.pairs / PAIRS_FILE
    data = {
        "prompts": len(chosen),
        "prompts_without_a_pair": sampled.prompts_without_a_pair,
        "responses": len(responses),
        "pairs": len(sampled.comparisons),
        "finished": finished,
        "path": local(path),
    }
    text = (
        f"{len(sampled.comparisons):,} pairs of {len(responses):,} responses to "
        f"{len(chosen):,} prompts; {percent(finished)} of the responses ended by themselves, the "
        f"others at the limit of tokens.\n{local(path)}"
    )
    if sampled.prompts_without_a_pair:
        text = (
            f"{sampled.prompts_without_a_pair:,} prompts got fewer than two different responses "
            f"and are in no pair.\n\n{text}"
        )
    return Report(data, text, "morlaif-hub collect-feedback conciseness --judge likelihood:")


@command("validate-judge", with_models=True)
@click.argument("spec")
@click.argument("principles", metavar="[PRINCIPLE...]", nargs=-1)
@click.option(
    "--pairs",
    metavar="SRC",
    help="Try it on some pairs between which people chose, too; a file, folder or Hub data set.",
)
@judge_options
@constitution_option
@seed_option
def validate_judge(
    workspace: Workspace,
    *,
    spec: str,
    principles: tuple[str, ...],
    pairs: str | None,
    constitution: str,
    seed: int,
    **asking: Any,
) -> Report:
    """Test the judge SPEC on the probes of principles.

    A probe is a pair with a known better side. Without PRINCIPLE it is tested on the whole set.
    `fit` means that the 95 % interval of its accuracy lies above one half, `wrong way` below it;
    `unproven` that it contains one half. People's choices, with --pairs, are less of a test: they
    chose for many reasons, so a judge of one principle may be right and disagree.
    """
    from morlaif_hub.errors import DataError
    from morlaif_hub.principles import load_constitution

    chosen = load_constitution(constitution)
    wanted = [chosen.get(name) for name in principles or chosen.names]
    probes = sum(len(principle.probes) for principle in wanted)
    if not probes:
        raise DataError(
            f"no probes of {', '.join(p.name for p in wanted)}; add [[principles.probes]] to the "
            "set, with prompt, better and worse"
        )
    from morlaif_hub.judges import validation

    judge = judge_of(spec, asking)
    sample = [] if pairs is None else _choices(pairs, workspace, seed=seed)
    find_out(judge)
    with JudgeProgress(judge) as progress:
        progress.start("asking the judge", probes)
        records = validation.validate_judge(judge, wanted, progress=progress.advance)
        if sample:
            progress.start("asking about choices of people", len(sample) * len(wanted))
        choices = validation.validate_on_choices(judge, wanted, sample, progress=progress.advance)
    data = {
        "judge": judge.spec,
        "principles": {name: asdict(record) for name, record in records.items()},
        "choices": {name: asdict(record) for name, record in choices.items()},
    }
    verdicts = {p.name: records[p.name].verdict if p.name in records else None for p in wanted}
    rows: list[list[Cell]] = [
        [name, found.n, found.accuracy, bounds(found.interval), found.verdict]
        for name, found in choices.items()
    ]
    header = ("on choices of people", "n", "accuracy", "95 % interval", "verdict")
    warnings = (doubts(verdicts, "judge"), disagreements(choices))
    return Report(
        data,
        paragraphs(*warnings, validation_table(records), table(header, rows) if rows else ""),
    )


def _choices(pairs: str, workspace: Workspace, *, seed: int) -> "list[Comparison]":
    from morlaif_hub.cli.pairs import pair_stream, shown
    from morlaif_hub.errors import DataError
    from morlaif_hub.judges.validation import sample_choices

    with Progress() as progress:
        sample = sample_choices(shown(pair_stream(pairs, workspace), progress), seed=seed)
    if not sample:
        raise DataError(
            f"{pairs}: no pair has a human choice; give pairs with chosen and rejected responses "
            "or with a human_choice"
        )
    return sample


@command("collect-feedback", with_models=True)
@click.argument("principles", metavar="PRINCIPLE...", nargs=-1, required=True)
@click.option("--judge", "spec", metavar="SPEC", required=True, help="Who says what is better.")
@click.option(
    "--pairs",
    metavar="SRC",
    help="A file, folder or Hub data set of pairs. [default: what sample-pairs wrote]",
)
@click.option("--limit", type=COUNT, metavar="N", help="Use the first so many pairs.")
@click.option("--dry-run", is_flag=True, help="Say how much there is to ask, and ask nothing.")
@click.option(
    "--unvalidated", is_flag=True, help="Do not test the judge first; the dataset then says so."
)
@click.option(
    "--license",
    metavar="NAME",
    default="apache-2.0",
    show_default=True,
    help="Of the dataset; the licence of the pairs has to allow for it.",
)
@judge_options
@constitution_option
@seed_option
def collect_feedback(
    workspace: Workspace,
    *,
    principles: tuple[str, ...],
    spec: str,
    pairs: str | None,
    dry_run: bool,
    constitution: str,
    **collecting: Any,
) -> Report:
    """Let a judge label pairs, one dataset for each PRINCIPLE.

    The judge is tested on the principles' probes first; if it prefers the worse side, nothing is
    labelled. Answers are kept as they come, so a run that was stopped goes on where it was. The
    baseline with one principle drawn for each pair: PRINCIPLE `constitutional`, --constitution
    constitutional, --judge single-objective:SPEC.
    Written to feedback/PRINCIPLE in the workspace, in place of what is there.
    """
    from morlaif_hub.principles import DEFAULT_CONSTITUTION, load_constitution

    chosen = load_constitution(constitution)
    wanted = [chosen.get(name) for name in dict.fromkeys(principles)]
    if not dry_run:
        workspace.check_writable()
    from morlaif_hub.cli.pairs import pair_stream, shown
    from morlaif_hub.feedback import collect

    # The stream ends at the limit by itself, having told what it left out until there.
    judge = judge_of(spec, collecting)
    stream = pair_stream(pairs, workspace, limit=collecting.pop("limit"))
    settings = collect.CollectSettings(**collecting)
    if not dry_run:
        find_out(judge)
    with JudgeProgress(judge) as progress:
        given = shown(stream, progress)
        if dry_run:
            estimate = Estimate(judge)
            each = estimate.add if estimate.known else None
            plan = collect.plan_feedback(wanted, given, judge, settings=settings, each=each)
            return _plan_report(plan, stream, orders=judge.orders, estimate=estimate)
        manifests = collect.collect_feedback(
            wanted,
            given,
            judge,
            folder=workspace.all_feedback,
            source=stream.source,
            settings=settings,
            progress=progress,
        )
    theirs = "" if constitution == DEFAULT_CONSTITUTION else f" --constitution {constitution}"
    report = _feedback_report(manifests, stream, workspace)
    return report._replace(next_step=f"morlaif-hub train-pm {' '.join(manifests)}{theirs}")


def _plan_report(
    plan: "CollectionPlan", stream: "PairStream", *, orders: bool, estimate: Estimate
) -> Report:
    to_ask = plan.questions - plan.cached
    data: dict[str, Any] = {
        "questions": plan.questions,
        "cached": plan.cached,
        "to_ask": to_ask,
        "calls": to_ask * (2 if orders else 1),
        "duplicates": stream.repeated,
        "bad_rows": stream.bad,
    }
    text = (
        f"{plan.questions:,} questions: {plan.cached:,} answers are cached, {to_ask:,} are to be "
        f"asked{', each in both orders' if orders else ''}. The judge's test comes on top."
    )
    if estimate.known:
        data["estimate"] = estimate.data()
        text = f"{text}\n{estimate.text()}"
    return Report(data, text)


def _feedback_report(
    manifests: "Mapping[str, FeedbackManifest]", stream: "PairStream", workspace: Workspace
) -> Report:
    data = {
        "duplicates": stream.repeated,
        "bad_rows": stream.bad,
        "principles": {
            name: {
                "pairs": manifest.train_pairs + manifest.test_pairs,
                "train_pairs": manifest.train_pairs,
                "test_pairs": manifest.test_pairs,
                "validated": manifest.judge.validated,
                "validation": manifest.judge.validation and asdict(manifest.judge.validation),
                "choices": manifest.judge.choices and asdict(manifest.judge.choices),
                "bias": asdict(manifest.bias),
                "calls": manifest.calls,
                "cost_usd": manifest.cost_usd,
                "unanswered": [asdict(record) for record in manifest.unanswered],
                "path": local(workspace.feedback(name)),
            }
            for name, manifest in manifests.items()
        },
    }
    rows: list[list[Cell]] = []
    for name, manifest in manifests.items():
        bias, agreement = manifest.bias, manifest.bias.human_agreement
        rows.append(
            [
                name,
                manifest.train_pairs,
                manifest.test_pairs,
                percent(0.5 + bias.position_bias.value),
                percent(bias.flip_rate.value),
                percent(bias.tie_rate),
                None if agreement is None else percent(agreement.value),
                local(workspace.feedback(name)),
            ]
        )
    verdicts = {
        name: manifest.judge.validation.verdict if manifest.judge.validation else None
        for name, manifest in manifests.items()
    }
    header = (
        "principle",
        "train pairs",
        "test pairs",
        "shown first wins",
        "flips",
        "ties",
        "agrees with people",
        "dataset",
    )
    text = paragraphs(
        doubts(verdicts, "judge"),
        disagreements({name: manifest.judge.choices for name, manifest in manifests.items()}),
        _unanswered(manifests),
        table(header, rows),
    )
    return Report(data, text)


def _unanswered(manifests: "Mapping[str, FeedbackManifest]") -> list[str]:
    """Return what got no verdict: how much, and the most frequent reasons."""
    lines = []
    for name, manifest in manifests.items():
        left_out = sum(record.n for record in manifest.unanswered)
        if left_out:
            pairs = manifest.train_pairs + manifest.test_pairs + left_out
            reasons = "; ".join(f"{record.reason}: {record.n:,}" for record in manifest.unanswered)
            lines.append(
                wrapped(
                    f"NO VERDICT on {left_out:,} of {pairs:,} pairs for {name}, which are left out "
                    f"({reasons}). The next run asks them again."
                )
            )
    return lines
