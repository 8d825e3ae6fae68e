"""Pairs that a command scores: by all processes of a run, of which one speaks."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from morlaif_hub.cli.banks import about_bank, bank_sources, load_bank, with_words
from morlaif_hub.cli.command import Report, hint
from morlaif_hub.cli.pairs import PairStream
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import Cell, table, wrapped
from morlaif_hub.cli.voice import one_voice
from morlaif_hub.evaluation.wording import bounds
from morlaif_hub.scoring.pairs import ScoredPairs, score_pairs
from morlaif_hub.scoring.parts import PARTS, ScoresOf, scored_by
from morlaif_hub.scoring.processes import Processes
from morlaif_hub.scoring.summary import ObjectiveSummary, summarize
from morlaif_hub.workspace import Workspace

if TYPE_CHECKING:
    from morlaif_hub.bank.bank import PMBank
    from morlaif_hub.models.language_model import Dtype

SHOWN = 20
"""Pairs in the table."""
LISTED = 1000
"""Pairs that `--json` lists at most: more are in the files alone."""


class PairsWanted(NamedTuple):
    """What `score --pairs` was asked for; the fields are its options."""

    pairs: str
    dtype: "Dtype"
    limit: int | None
    output: str | None


def pairs_report(workspace: Workspace, banks: Sequence[str], wanted: PairsWanted) -> Report:
    """Score pairs with all processes of this run, and report in the main one; the others end here.

    Raises:
        MorlaifHubError: As `score_pairs`; in the main process, whichever of them failed.
    """
    processes = Processes()
    with one_voice(processes):
        loaded = _load(workspace, banks, wanted, processes)
        scored = _score(loaded, workspace, wanted)
        cut = sum(processes.together(lambda: loaded.bank.texts_cut))
        if not processes.main:
            raise click.exceptions.Exit(0)
        loaded.stream.tell()
        if before := scored.count - scored.new:
            hint(f"{before:,} of {scored.count:,} pairs had been scored before")
        return _report(loaded.bank, scored, cut)


class _Loaded(NamedTuple):
    """What scores, what is to be scored, and how many pairs that is at most, if it is known."""

    bank: "PMBank"
    stream: PairStream
    most: int | None


def _load(
    workspace: Workspace, banks: Sequence[str], wanted: PairsWanted, processes: Processes
) -> _Loaded:
    loaded = []

    def load() -> None:
        sources = bank_sources(workspace, banks)
        stream = PairStream(wanted.pairs, limit=wanted.limit)
        most = stream.most() if processes.main else None
        bank = load_bank(sources, dtype=wanted.dtype, device=processes.device)
        loaded.append(_Loaded(bank, stream, most))

    processes.together(load)
    return loaded[0]


def _score(loaded: _Loaded, workspace: Workspace, wanted: PairsWanted) -> ScoredPairs:
    bank, stream, most = loaded
    of = ScoresOf(stream.source, scored_by(bank), wanted.dtype, wanted.limit)
    folder = Path(wanted.output).expanduser() if wanted.output else workspace.scores / of.name
    with Progress() as progress:
        progress.start("scoring", most)
        return score_pairs(bank, stream, folder, of=of, progress=progress.advance)


def _report(bank: "PMBank", scored: ScoredPairs, cut: int) -> Report:
    summary = summarize(scored)
    few = scored.count <= LISTED
    rows = scored.first(LISTED if few else SHOWN)
    data = {
        **about_bank(bank),
        "output": str(scored.folder),
        "count": scored.count,
        "texts_cut": cut,
        "summary": {name: asdict(found) for name, found in summary.items()},
        **({"pairs": rows} if few else {"pairs_only_in": str(scored.folder / PARTS)}),
    }
    where = f"{scored.count:,} pairs are scored in {scored.folder}."
    if cut:
        where += (
            f" {cut:,} texts are longer than a preference model reads and were cut on the left."
        )
    text = with_words(bank, _rows(rows[:SHOWN], scored), _table(summary), wrapped(where))
    return Report(data, text)


def _rows(rows: Sequence[Mapping[str, Any]], scored: ScoredPairs) -> str:
    names = scored.objectives
    header = ("pair", *(f"{name} {side}" for name in names for side in "AB"), "people chose")
    cells: list[list[Cell]] = [
        [
            row["id"][:8],
            *(row[side][name] for name in names for side in ("response_a", "response_b")),
            (row["human_choice"] or "-").upper(),
        ]
        for row in rows
    ]
    more = scored.count - len(rows)
    return table(header, cells) + (f"\n... and {more:,} more in the files" if more else "")


def _table(summary: Mapping[str, ObjectiveSummary]) -> str:
    header = ("all pairs", "mean A", "mean B", "n", "agreement", "95 % interval")
    rows: list[list[Cell]] = [
        [
            name,
            found.mean_a,
            found.mean_b,
            found.n,
            found.agreement,
            bounds(found.interval) if found.interval else "-",
        ]
        for name, found in summary.items()
    ]
    if not any(found.n for found in summary.values()):
        return table(header[:3], [row[:3] for row in rows])
    note = (
        "agreement: share of the n pairs with a known human choice in which the higher score is "
        "that of the response that people chose."
    )
    return table(header, rows) + "\n" + wrapped(note)
