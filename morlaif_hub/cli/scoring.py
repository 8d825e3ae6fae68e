"""The commands that use a bank: score responses, and choose among them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from morlaif_hub.cli.banks import (
    about_bank,
    bank_option,
    bank_sources,
    choose_reward,
    load_bank,
    reward_options,
    with_words,
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
from morlaif_hub.cli.tables import Cell, printable, table
from morlaif_hub.evaluation.wording import number
from morlaif_hub.workspace import Workspace

if TYPE_CHECKING:
    from morlaif_hub.bank.bank import PMBank
    from morlaif_hub.models.language_model import Dtype
    from morlaif_hub.steering import Steered


@command("score", with_models=True)
@bank_option
@click.option("--prompt", metavar="TEXT", help="What was asked.")
@click.option(
    "--response", "responses", metavar="TEXT", multiple=True, help="What to score; repeats."
)
@click.option("--pairs", metavar="SRC", help="Pairs to score instead: a file, folder or data set.")
@click.option("--limit", type=COUNT, metavar="N", help="Use the first so many pairs.")
@click.option(
    "--output",
    metavar="FOLDER",
    help="Where the scores of pairs are kept. [default: a folder of their own under scores/ in the "
    "workspace]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the weights: float32 is exact; bfloat16 takes half the memory, off by about 1 %.",
)
def score(
    workspace: Workspace,
    *,
    banks: tuple[str, ...],
    prompt: str | None,
    responses: tuple[str, ...],
    pairs: str | None,
    dtype: "Dtype",
    **kept: Any,
) -> Report:
    """Score responses with every preference model of a bank.

    With --pairs, both responses of every pair are scored, on a GPU if there is one, and kept as
    parquet files, 256 pairs each, with the columns id, prompt_id, split, human_choice and, for
    every objective, its scores of response A and of response B, as in detail_a and detail_b. The
    file scores.json beside them says what they are scores of. The same command goes on where it
    was stopped; a larger --limit into the same --output adds what is missing.

    Several processes share the work, as in accelerate launch -m morlaif_hub score ... or torchrun
    --standalone --nproc_per_node 2 -m morlaif_hub score ...

    --json lists single pairs up to 1,000; of more than that, it only says in which files they are.
    """
    single = prompt is not None and bool(responses)
    if single == (pairs is not None) or (prompt is not None) != bool(responses):
        raise click.UsageError("give either --prompt and --response, or --pairs")
    if prompt is not None:
        for name in ("output", "limit"):
            if kept[name] is not None:
                raise click.UsageError(f"--{name} is for --pairs")
        bank = load_bank(bank_sources(workspace, banks), dtype=dtype)
        return _responses_report(bank, prompt, responses)
    from morlaif_hub.cli.score_pairs import PairsWanted, pairs_report

    return pairs_report(workspace, banks, PairsWanted(str(pairs), dtype=dtype, **kept))


def _responses_report(bank: "PMBank", prompt: str, responses: Sequence[str]) -> Report:
    scores = bank.score([prompt] * len(responses), responses).tolist()
    data = {
        **about_bank(bank),
        "responses": [
            {"response": response, "scores": dict(zip(bank.objectives, row, strict=True))}
            for response, row in zip(responses, scores, strict=True)
        ],
    }
    rows = [[*row, response] for row, response in zip(scores, responses, strict=True)]
    return Report(data, with_words(bank, table((*bank.objectives, "response"), rows)))


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
        **about_bank(bank),
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
    text = with_words(
        bank,
        printable(steered.best.text),
        f"{steered.scalarizer} of {weights}",
        table(("rank", "reward", *bank.objectives, "answer"), rows),
    )
    return Report(data, text)
