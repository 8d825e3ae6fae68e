"""The command that shows verdicts, to be read beside what they are about."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from morlaif_hub.cli.columns import side_by_side, wrap
from morlaif_hub.cli.command import COUNT, Report, command, seed_option
from morlaif_hub.cli.tables import (
    Cell,
    disagreements,
    doubts,
    paragraphs,
    table,
    terminal_width,
    wrapped,
)
from morlaif_hub.evaluation.wording import bounds, number, percent
from morlaif_hub.workspace import Workspace

if TYPE_CHECKING:
    from morlaif_hub.feedback.audit import Selection
    from morlaif_hub.feedback.dataset import Labelled
    from morlaif_hub.hub.manifest import BiasReport, FeedbackManifest, JudgeRecord
    from morlaif_hub.statistics import Estimate

LINES = 12  # of a prompt or response that are shown unless all are asked for
EVERY_PAIR = 10  # pairs of principles that are listed; of more, the ends of the list
KINDS = {
    "random": "drawn at random",
    "flipped": "flipped by the order",
    "uncertain": "least certain",
}

Agreements = Mapping[tuple[str, str], "Estimate | None"]


@command("inspect-feedback")
@click.argument("principles", metavar="PRINCIPLE...", nargs=-1, required=True)
@click.option(
    "--show",
    "shows",
    type=click.Choice(list(KINDS)),
    multiple=True,
    default=tuple(KINDS),
    help="Which verdicts: any, those whose preferred response changed with the order, the least "
    "certain; repeats. [default: all three]",
)
@click.option(
    "-n", "count", type=COUNT, metavar="N", default=2, show_default=True, help="Of each kind."
)
@click.option("--full", is_flag=True, help="Show long texts whole.")
@seed_option
def inspect_feedback(
    workspace: Workspace,
    *,
    principles: tuple[str, ...],
    shows: tuple[str, ...],
    count: int,
    full: bool,
    seed: int,
) -> Report:
    """Read some of a judge's verdicts on each PRINCIPLE.

    A prompt is shown with both responses side by side, the probabilities that the judge gave in
    both orders, and what people chose, where that is known. Of several principles, it is shown how
    often they prefer the same response. A PRINCIPLE is one of the workspace's, a folder with a
    feedback data set, or a Hub id of one.
    """
    from morlaif_hub.feedback import audit

    data: dict[str, Any] = {}
    texts: list[str] = []
    sides, judges = {}, {}
    for name in dict.fromkeys(principles):
        dataset = _load(name, workspace)
        rows = [item for items in dataset.splits for item in items]
        selections = {
            show: audit.select_verdicts(rows, show, n=count, seed=seed)
            for show in audit.SHOWS
            if show in shows
        }
        manifest = dataset.manifest
        data[name] = {
            "judge": manifest.judge.spec,
            "pairs": len(rows),
            "shown": {
                show: {"found": found, "verdicts": [_plain(item, manifest) for item in shown]}
                for show, (found, shown) in selections.items()
            },
        }
        texts.append(_section(name, manifest, selections, most=None if full else LINES))
        sides[name] = audit.preferred_sides(dataset)
        judges[name] = manifest.judge
    agreements = audit.agreement(sides, seed=seed)
    text = paragraphs(*_warnings(judges), *texts, _agreement_text(list(sides), agreements))
    return Report({"principles": data, "agreement": _plain_agreement(agreements)}, text)


def _warnings(judges: "Mapping[str, JudgeRecord]") -> Iterator[list[str]]:
    tried = {name: judge.validation for name, judge in judges.items()}
    yield doubts({name: found.verdict if found else None for name, found in tried.items()}, "judge")
    yield disagreements({name: judge.choices for name, judge in judges.items()})


def _load(name: str, workspace: Workspace) -> Any:
    from morlaif_hub.errors import DataError
    from morlaif_hub.feedback.dataset import FeedbackDataset

    if "/" in name:
        return FeedbackDataset.load(name)
    folder = workspace.feedback(name)
    if not folder.is_dir():
        there = sorted(p.name for p in workspace.all_feedback.glob("[a-z]*") if p.is_dir())
        raise DataError(
            f"the workspace {workspace.root} has no feedback on {name!r}; it has: "
            f"{', '.join(there) or 'none'}. Make some with morlaif-hub collect-feedback {name}"
        )
    return FeedbackDataset.load(folder)


def _plain(item: "Labelled", manifest: "FeedbackManifest") -> dict[str, Any]:
    from morlaif_hub.feedback.dataset import to_row
    from morlaif_hub.judges.single_objective import drawn_principle

    drawn = drawn_principle(manifest.judge.spec, item.comparison)

    row = to_row(item)
    for name in ("chosen", "rejected", "margin"):
        del row[name]
    return {**row, "split": item.comparison.split, "drawn": drawn and drawn.name}


def _plain_agreement(agreements: Agreements) -> list[dict[str, Any]]:
    unknown = {"value": None, "interval": None, "n": 0}
    return [
        {"principles": list(pair), **(unknown if known is None else known._asdict())}
        for pair, known in agreements.items()
    ]


def _section(
    name: str,
    manifest: "FeedbackManifest",
    selections: "Mapping[Any, Selection]",
    *,
    most: int | None,
) -> str:
    from morlaif_hub.judges.single_objective import drawn_principle

    width = terminal_width()
    pairs = manifest.train_pairs + manifest.test_pairs
    blocks = [
        f"{name}\n{'=' * len(name)}\n"
        + wrapped(f"{pairs:,} pairs, judged by {manifest.judge.spec}. {_in_words(manifest.bias)}")
        + "\n"
        + wrapped(f"A is better where: {manifest.principle.criterion}", indent="    ")
    ]
    for show, (found, shown) in selections.items():
        for i, item in enumerate(shown, start=1):
            said = f"{name}, {KINDS[show]}: {i} of {found:,} "
            heading = said + "─" * max(0, width - len(said))
            drawn = drawn_principle(manifest.judge.spec, item.comparison)
            said_of = (
                wrapped(f"drawn, by the set as it is now: {drawn.criterion}", indent="    ")
                if drawn
                else ""
            )
            lines = [heading, *filter(None, [said_of]), *_verdict_lines(item, width, most=most)]
            blocks.append("\n".join(lines))
        if not shown:
            blocks.append(f"{name}, {KINDS[show]}: none")
    return "\n\n".join(blocks)


def _in_words(bias: "BiasReport") -> str:
    said = [f"{percent(bias.flip_rate.value)} flip with the order", f"{percent(bias.tie_rate)} tie"]
    if bias.human_agreement is not None:
        said.append(f"{percent(bias.human_agreement.value)} agree with people")
    return ", ".join(said) + "."


def _verdict_lines(item: "Labelled", width: int, *, most: int | None) -> Iterator[str]:
    pair, verdict = item
    first, second = verdict.probability_a_first, verdict.probability_a_second
    yield wrapped(
        f"P(A is better): {number(verdict.probability_a, 3)} together, {number(first, 3)} with A "
        f"shown first, {number(second, 3)} with B shown first"
    )
    yield f"pair {pair.id[:12]}" + (f", {pair.split} split" if pair.split else "")
    yield ""
    prompt = "\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in pair.prompt)
    yield from wrap(prompt, width, most=most, end=True)
    yield ""
    preferred = None if verdict.tie else "a" if verdict.probability_a > 0.5 else "b"
    titles = []
    for side in ("a", "b"):
        likes = {"the judge": side == preferred, "people": side == pair.human_choice}
        fans = " and ".join(who for who, does in likes.items() if does)
        titles.append(side.upper() + (f": preferred by {fans}" if fans else ""))
    if verdict.tie:
        titles = [f"{title} (a tie)" for title in titles]
    texts = (pair.response_a, pair.response_b)
    left, right = zip(titles, texts, strict=True)
    yield from side_by_side(left, right, width, most=most)


def _agreement_text(names: Sequence[str], agreements: Agreements) -> str:
    if len(names) < 2:
        return ""
    both_ways = {**agreements, **{pair[::-1]: found for pair, found in agreements.items()}}
    rows: list[list[Cell]] = []
    for i, one in enumerate(names, start=1):
        found = [both_ways.get((one, other)) for other in names]
        rows.append([f"{i} {one}", *(known.value if known else None for known in found)])
    listed = sorted(
        ((known.value, pair, known) for pair, known in agreements.items() if known), reverse=True
    )
    if len(listed) > EVERY_PAIR:
        listed = [*listed[: EVERY_PAIR // 2], *listed[-EVERY_PAIR // 2 :]]
    details: list[list[Cell]] = [
        [f"{one} and {other}", known.value, bounds(known.interval), known.n]
        for _, (one, other), known in listed
    ]
    note = wrapped(
        "How often two principles prefer the same response, of the pairs that both were judged on; "
        "a tie counts one half."
    )
    header = ("principles", "agreement", "95 % interval", "pairs")
    return paragraphs(
        "agreement between principles\n" + "=" * 28 + "\n" + note,
        table(("", *map(str, range(1, len(names) + 1))), rows),
        table(header, details) if details else "No two of them share a pair.",
    )
