"""The commands that compare policies."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from morlaif_hub.cli.banks import bank_option, bank_sources, load_bank
from morlaif_hub.cli.command import (
    COUNT,
    Report,
    command,
    constitution_option,
    hint,
    length_and_temperature,
    local,
    seed_option,
)
from morlaif_hub.cli.policies import HELD_OUT
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import Cell, legend, paragraphs, table, wrapped
from morlaif_hub.evaluation.wording import bounds, listed, number, percent
from morlaif_hub.workspace import Workspace, write_text

if TYPE_CHECKING:
    from morlaif_hub.bank.bank import PMBank
    from morlaif_hub.evaluation.winrate import Comparisons, Contrast, Outcome
    from morlaif_hub.messages import Prompt
    from morlaif_hub.principles import Principle


@click.group()
def evaluate() -> None:
    """Compare policies with each other."""


@command("winrate", with_models=True)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--judge", metavar="SPEC", required=True, help="Who says which answer is better.")
@click.option(
    "--principle",
    "principles",
    metavar="NAME",
    multiple=True,
    help="On which; repeat it for several. [default: those of the bank]",
)
@click.option(
    "--prompts",
    metavar="SRC",
    default="everyday",
    show_default=True,
    help="As for sample-pairs.",
)
@click.option(
    "--all-prompts",
    is_flag=True,
    help="Take all of them, for prompts that neither policy learnt from, and not only the fifth "
    "that train-policy holds out with the same --seed.",
)
@click.option("--limit", type=COUNT, metavar="N", help="Take so many of them at the most.")
@click.option(
    "--responses",
    type=COUNT,
    metavar="N",
    default=1,
    show_default=True,
    help="Answers of each policy to a prompt.",
)
@length_and_temperature
@bank_option
@constitution_option
@seed_option
def winrate(
    workspace: Workspace,
    *,
    a: str,
    b: str,
    judge: str,
    principles: tuple[str, ...],
    prompts: str,
    all_prompts: bool,
    limit: int | None,
    banks: tuple[str, ...],
    constitution: str,
    **sampling: Any,
) -> Report:
    """Compare the policies A and B on prompts that are held out.

    A policy is the name of one in the workspace, `embedded`, a folder or a Hub id. Both answer
    the same prompts, and a judge says in both orders which answer is better, on every principle;
    where the orders disagree it is a tie. Shown beside: what a bank scores, how long the answers
    are, whether they end, and how far each policy moved from its base. Intervals resample prompts.
    Answers and verdicts are kept, so nothing is sampled or asked twice. Written to reports/ in the
    workspace.
    """
    workspace.check_writable()
    chosen = _prompts(prompts, limit=limit, seed=sampling["seed"], everything=all_prompts)
    from morlaif_hub.evaluation.answers import find_contestant
    from morlaif_hub.evaluation.winrate import Contest, compare
    from morlaif_hub.feedback.cache import CachedJudge, VerdictCache
    from morlaif_hub.judges.base import load_judge
    from morlaif_hub.models.generation import SamplingSettings

    first, second = find_contestant(a, workspace), find_contestant(b, workspace)
    bank = _bank(workspace, banks)
    asked_on = _principles(principles, bank, constitution)
    asked = load_judge(judge)
    with VerdictCache() as cache, Progress() as progress:
        found = compare(
            first,
            second,
            Contest(
                chosen,
                asked_on,
                CachedJudge(asked, cache),
                bank,
                SamplingSettings(distinct=False, **sampling),
            ),
            folder=workspace.root / "answers",
            progress=progress,
        )
    taught = _taught(bank, asked.spec)
    data = {"a": a, "b": b, "judge": asked.spec, "taught": taught, "prompts": len(chosen)}
    data |= found.plain()
    report = _write(workspace, found, data)
    data["path"] = local(report)
    return Report(data, _shown(found, data, {p.name: p.high_score for p in asked_on}))


evaluate.add_command(winrate)


def _shown(found: "Comparisons", data: dict[str, Any], meanings: dict[str, str]) -> str:
    return paragraphs(
        _doubts(data["judge"], data["taught"], found),
        _outcomes(found, data["a"], data["b"]),
        _beside(found, data["a"], data["b"]),
        legend(meanings),
        data["path"],
    )


def _write(workspace: Workspace, found: "Comparisons", data: dict[str, Any]) -> Path:
    """Write what was found, and draw it."""
    from morlaif_hub.evaluation.winrate import draw_outcomes

    a, b = data["a"], data["b"]
    report = workspace.reports / f"winrate-{_file_name(a)}-{_file_name(b)}.json"
    write_text(report, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    if (drawn := draw_outcomes(found, (a, b))) is not None:
        report.with_suffix(".png").write_bytes(drawn)
    return report


def _prompts(source: str, *, limit: int | None, seed: int, everything: bool) -> "list[Prompt]":
    """Return the prompts that policies trained on this source with this seed did not learn from."""
    from morlaif_hub.comparisons import prompt_id, read_prompts, split_by_prompt

    given = read_prompts(source)
    if not everything:
        apart = split_by_prompt(map(prompt_id, given), test_fraction=HELD_OUT, seed=seed)
        given = [prompt for prompt in given if prompt_id(prompt) in apart] or given
    return given[:limit]


def _bank(workspace: Workspace, given: Sequence[str]) -> "PMBank | None":
    """Return the bank that was named, or the workspace's; None if it has none."""
    from morlaif_hub.errors import ModelNotFoundError

    try:
        sources = bank_sources(workspace, given)
    except ModelNotFoundError:
        hint("there is no bank, so no scores are shown; name one with --bank")
        return None
    return load_bank(sources)


def _principles(
    names: Sequence[str], bank: "PMBank | None", constitution: str
) -> "list[Principle]":
    """Return the principles that were named, or those that the bank's members were trained on."""
    from morlaif_hub.principles import Principle, load_constitution

    if names:
        known = load_constitution(constitution)
        return [known.get(name) for name in dict.fromkeys(names)]
    records = [m.manifest.principle for m in bank.members if m.manifest] if bank else []
    if not records:
        raise click.UsageError("there is no bank with principles; name some with --principle")
    return [
        Principle(
            name=record.name,
            criterion=record.criterion,
            opposite=record.opposite,
            high_score=record.high_score,
            length=record.length,
        )
        for record in records
    ]


def _taught(bank: "PMBank | None", spec: str) -> list[str]:
    """Return the objectives whose preference models learnt from this judge's verdicts."""
    if bank is None:
        return []
    learnt = {m.objective: m.manifest and m.manifest.judge for m in bank.members}
    return [name for name, judge in learnt.items() if judge and judge.spec == spec]


def _file_name(spec: str) -> str:
    return re.sub(r"[^\w.-]+", "-", spec).strip("-.") or "policy"


def _doubts(spec: str, taught: Sequence[str], found: "Comparisons") -> list[str]:
    """Return what has to be said before any result."""
    lines = []
    if taught:
        lines.append(
            f"NOT INDEPENDENT: the preference models of {listed(taught)} learnt from the verdicts "
            f"of this judge, {spec}; policies trained on them are judged by their own teacher."
        )
    for reason, count in found.unanswered.items():
        lines.append(f"UNANSWERED: {count:,} questions, {reason}; they are in no share below.")
    return [wrapped(line) for line in lines]


def _outcomes(found: "Comparisons", a: str, b: str) -> str:
    rows = [_outcome_row(name, outcome) for name, outcome in found.principles.items()]
    if found.overall and len(found.principles) > 1:
        rows.append(_outcome_row("all", found.overall))
    if not rows:
        return ""
    header = ("judged on", "pairs", "wins", "ties", "losses", "wins + ties / 2", "95 % interval")
    note = f"wins: pairs in which the answer of {a} is preferred to that of {b}, in both orders."
    return table((*header, "orders disagree"), rows) + "\n" + wrapped(note)


def _outcome_row(name: str, outcome: "Outcome") -> list[Cell]:
    shares = [percent(share.value) for share in (outcome.win, outcome.tie, outcome.loss)]
    low, high = outcome.score.interval
    return [
        name,
        outcome.n,
        *shares,
        percent(outcome.score.value),
        f"{percent(low)} to {percent(high)}",
        percent(outcome.flipped),
    ]


def _beside(found: "Comparisons", a: str, b: str) -> str:
    rows = [_contrast_row(f"score: {name}", c) for name, c in found.objectives.items()]
    rows += [
        _contrast_row("words", found.words),
        _contrast_row("ended by itself", found.finished),
        ["KL to its base", *(None if kl is None else number(kl, 3) for kl in found.kl), None, None],
    ]
    return table(("", a, b, "difference", "95 % interval"), rows)


def _contrast_row(name: str, contrast: "Contrast") -> list[Cell]:
    difference = contrast.difference
    return [
        name,
        contrast.a,
        contrast.b,
        number(difference.value, sign=True),
        bounds(difference.interval, sign=True),
    ]
