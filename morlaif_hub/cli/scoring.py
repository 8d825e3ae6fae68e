"""The commands that use a bank: score responses, and choose among them."""

from collections.abc import Sequence
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
    length_and_temperature,
    seed_option,
)
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import Cell, doubts, legend, paragraphs, printable, table, wrapped
from morlaif_hub.evaluation.wording import number
from morlaif_hub.workspace import Workspace

if TYPE_CHECKING:
    from morlaif_hub.bank.bank import PMBank
    from morlaif_hub.comparisons import Comparison
    from morlaif_hub.steering import Steered

SCALE = (
    "Scores are in standard deviations of each preference model's reference set: 0 is average, "
    "higher is better."
)


@command("score", with_models=True)
@bank_option
@click.option("--prompt", metavar="TEXT", help="What was asked.")
@click.option(
    "--response", "responses", metavar="TEXT", multiple=True, help="What to score; repeats."
)
@click.option("--pairs", metavar="SRC", help="Pairs to score instead: a file, folder or data set.")
@click.option("--limit", type=COUNT, metavar="N", help="Use the first so many pairs.")
def score(
    workspace: Workspace,
    *,
    banks: tuple[str, ...],
    prompt: str | None,
    responses: tuple[str, ...],
    pairs: str | None,
    limit: int | None,
) -> Report:
    """Score responses with every preference model of a bank."""
    single = prompt is not None and bool(responses)
    if single == (pairs is not None) or (prompt is not None) != bool(responses):
        raise click.UsageError("give either --prompt and --response, or --pairs")
    sources = bank_sources(workspace, banks)
    from morlaif_hub.cli.pairs import read_pairs

    given = read_pairs(pairs, workspace, limit=limit).comparisons if pairs else []
    bank = load_bank(sources)
    if prompt is not None:
        return _responses_report(bank, prompt, responses)
    return _pairs_report(bank, given)


def _responses_report(bank: "PMBank", prompt: str, responses: Sequence[str]) -> Report:
    scores = bank.score([prompt] * len(responses), responses).tolist()
    data = {
        **_about(bank),
        "responses": [
            {"response": response, "scores": dict(zip(bank.objectives, row, strict=True))}
            for response, row in zip(responses, scores, strict=True)
        ],
    }
    rows = [[*row, response] for row, response in zip(scores, responses, strict=True)]
    return Report(data, _with_words(bank, table((*bank.objectives, "response"), rows)))


def _pairs_report(bank: "PMBank", pairs: "Sequence[Comparison]") -> Report:
    names = bank.objectives
    with Progress() as progress:
        progress.start("scoring", 2 * len(pairs))
        scores = bank.score(
            [list(pair.prompt) for pair in pairs for _ in range(2)],
            [text for pair in pairs for text in (pair.response_a, pair.response_b)],
            progress=progress.advance,
        ).tolist()
    both = list(zip(pairs, scores[::2], scores[1::2], strict=True))
    data = {
        **_about(bank),
        "pairs": [
            {
                "id": pair.id,
                "human_choice": pair.human_choice,
                "response_a": dict(zip(names, a, strict=True)),
                "response_b": dict(zip(names, b, strict=True)),
            }
            for pair, a, b in both
        ],
    }
    header = ("pair", *(f"{name} {side}" for name in names for side in "AB"), "people chose")
    rows: list[list[Cell]] = [
        [
            pair.id[:8],
            *(value for sides in zip(a, b, strict=True) for value in sides),
            (pair.human_choice or "-").upper(),
        ]
        for pair, a, b in both
    ]
    return Report(data, _with_words(bank, table(header, rows)))


def _about(bank: "PMBank") -> dict[str, Any]:
    return {"objectives": bank.high_scores, "validation": _verdicts(bank)}


def _verdicts(bank: "PMBank") -> dict[str, str | None]:
    records = {m.objective: m.manifest and m.manifest.validation for m in bank.members}
    return {name: record.verdict if record else None for name, record in records.items()}


def _with_words(bank: "PMBank", *results: str) -> str:
    return paragraphs(
        doubts(_verdicts(bank), "preference model"),
        *results,
        legend(bank.high_scores),
        wrapped(SCALE),
    )


@command("steer", with_models=True)
@bank_option
@click.option("--model", metavar="MODEL", help="What answers. [default: the embedded model]")
@click.option("--prompt", metavar="TEXT", required=True, help="What to ask.")
@click.option(
    "--method",
    type=click.Choice(["best-of-n"]),
    default="best-of-n",
    show_default=True,
    help="How to steer: sample several answers and choose the best.",
)
@click.option(
    "-n",
    "--candidates",
    type=COUNT,
    metavar="N",
    default=8,
    show_default=True,
    help="Answers to choose from.",
)
@reward_options
@length_and_temperature
@seed_option
def steer(
    workspace: Workspace,
    *,
    banks: tuple[str, ...],
    model: str | None,
    prompt: str,
    method: str,
    candidates: int,
    weights: dict[str, float] | None,
    scalarizer: str | None,
    **sampling: Any,
) -> Report:
    """Answer a prompt with what a bank likes best.

    Several answers are sampled and ranked by weights that are chosen now; nothing is trained.
    """
    sources = bank_sources(workspace, banks)
    from morlaif_hub.models.generation import SamplingSettings
    from morlaif_hub.policies.artifact import load_policy
    from morlaif_hub.steering import best_of_n

    settings = SamplingSettings(**sampling)
    bank = load_bank(sources)
    reward = choose_reward(bank, weights=weights, scalarizer=scalarizer)
    policy = load_policy(model)
    with Progress() as progress:
        progress.start("sampling and scoring", 1)
        steered = best_of_n(
            prompt,
            bank=bank,
            policy=policy,
            n=candidates,
            weights=reward.weights,
            scalarizer=reward.scalarizer,
            sampling=settings,
        )
        progress.advance(1)
    if (found := len(steered.candidates)) < candidates:
        hint(f"{found} different answers came back of {candidates}: the policy repeats itself")
    return _steered_report(bank, steered, method)


def _steered_report(bank: "PMBank", steered: "Steered", method: str) -> Report:
    data = {
        **_about(bank),
        "method": method,
        "scalarizer": steered.scalarizer,
        "weights": steered.weights,
        "best": steered.best.text,
        "candidates": [candidate._asdict() for candidate in steered.candidates],
    }
    rows: list[list[Cell]] = [
        [rank, candidate.reward, *candidate.scores.values(), candidate.text]
        for rank, candidate in enumerate(steered.candidates, 1)
    ]
    weights = ", ".join(f"{name} {number(value)}" for name, value in steered.weights.items())
    text = _with_words(
        bank,
        printable(steered.best.text),
        f"{steered.scalarizer} of {weights}",
        table(("rank", "reward", *bank.objectives, "answer"), rows),
    )
    return Report(data, text)
