"""The command that looks for artifacts on the Hub."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from morlaif_hub.cli.command import COUNT, Report, command
from morlaif_hub.cli.tables import Cell, legend, paragraphs, table, wrapped
from morlaif_hub.evaluation.wording import bounds, listed, number
from morlaif_hub.workspace import Workspace

if TYPE_CHECKING:
    from morlaif_hub.hub.catalog import Found, SearchResult
    from morlaif_hub.hub.claims import Claims

KINDS = ("preference-model", "feedback-dataset", "bank", "policy", "base")
CLAIMS = "These are the claims of their authors; check one with `morlaif-hub verify REPO`."
HEADER = ("repo", "principle", "accuracy", "length-only", "n", "validation", "updated")
ACCURACY = (
    "accuracy: on held-out pairs, with its 95 % interval; length-only: the same for a rule that "
    "sees length alone; n: the number of those pairs."
)
VALIDATION = (
    "validation: accuracy on the probes of the principle, and whether its interval lies above 0.5 "
    "(fit), contains it (unproven) or lies below (wrong way); that of a data set is its judge's."
)
SHORT = 12  # digits of a hash


@command("search")
@click.option("--principle", metavar="NAME", help="Only what is about this principle.")
@click.option(
    "--base",
    metavar="BASE",
    help="Only what is for this base: a repo id, or 8 or more digits of the hash of its weights.",
)
@click.option("--author", metavar="USER", help="Only what this user or organisation has.")
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default="preference-model",
    show_default=True,
    help="What to look for.",
)
@click.option(
    "--limit",
    type=COUNT,
    metavar="N",
    default=100,
    show_default=True,
    help="Look at so many repositories, the most downloaded first.",
)
def search(
    _workspace: Workspace,
    *,
    principle: str | None,
    base: str | None,
    author: str | None,
    kind: Any,
    limit: int,
) -> Report:
    """Find preference models and more on the Hub.

    What is shown is what the manifests claim, and nothing of it has been checked. What is fit on
    its principle's probes comes first, then unproven, not validated and wrong way; within these,
    the highest lower end of the accuracy's interval. Repositories whose manifest cannot be used
    come last, with the reason. Your private ones are found with HF_TOKEN or `hf auth login`.
    """
    from morlaif_hub.hub.catalog import search_hub

    result = search_hub(principle=principle, base=base, author=author, kind=kind, limit=limit)
    wished = [
        f"{what} {value}"
        for what, value in (("principle", principle), ("base", base), ("author", author))
        if value is not None
    ]
    data = {"kind": kind, "found": [_plain(found) for found in result.found], "more": result.more}
    return Report(data, _text(result, ", ".join([kind, *wished]), limit), _next_step(result.found))


def _plain(found: "Found") -> dict[str, Any]:
    changed = found.last_modified
    return {**asdict(found), "last_modified": changed.isoformat() if changed else None}


def _text(result: "SearchResult", wished: str, limit: int) -> str:
    more = wrapped(
        f"MORE: the Hub has more than {limit} of them, and only the {limit} most downloaded were "
        "looked at; narrow the search, or raise --limit."
    )
    beyond = more if result.more else ""
    if not result.found:
        nothing = wrapped(f"Nothing found on the Hub that you may read: {wished}.")
        return paragraphs(beyond, nothing)
    used = [claims for found in result.found if (claims := found.claims)]
    return paragraphs(
        beyond,
        wrapped(f"{len(result.found)} found: {wished}. {CLAIMS}"),
        _table(result.found),
        legend(_meanings(result.found)),
        [
            *([wrapped(ACCURACY)] if any(claims.accuracy for claims in used) else []),
            *([wrapped(VALIDATION)] if any(claims.verdicts for claims in used) else []),
        ],
    )


def _table(found: "Sequence[Found]") -> str:
    """Return a row of figures for each repository, and below it the rest in words."""
    rows = [_row(one) for one in found]
    needed = [i for i, _ in enumerate(HEADER) if any(row[i] is not None for row in rows)]
    figures = table([HEADER[i] for i in needed], [[row[i] for i in needed] for row in rows])
    first, *others = figures.splitlines()  # the last column, a date, is never wrapped
    lines = [first]
    for one, line in zip(found, others, strict=True):
        lines += [line, wrapped(f"    {_rest(one)}", indent=" " * 4)]
    return "\n".join(lines)


def _row(found: "Found") -> list[Cell]:
    claims = found.claims
    names = claims.principles if claims else ()
    shown = f"{len(names)} principles" if len(names) > 2 else listed(names) or None
    measured: list[Cell] = [None, None, None]
    if claims and (accuracy := claims.accuracy):
        interval = f"{number(accuracy.value)} ({bounds(accuracy.interval)})"
        measured = [interval, accuracy.length_baseline, accuracy.n]
    updated = f"{found.last_modified:%Y-%m-%d}" if found.last_modified else "-"
    return [found.repo_id, shown, *measured, _validation(claims) if claims else None, updated]


def _validation(claims: "Claims") -> str | None:
    if claims.validation:
        return f"{claims.validation.verdict} {number(claims.validation.accuracy)}"
    verdicts = list(claims.verdicts.values())
    if len(verdicts) > 1:
        return f"{verdicts.count('fit')} of {len(verdicts)} fit"
    return None if not verdicts else verdicts[0] or "none"


def _rest(found: "Found") -> str:
    claims = found.claims
    private = ["private"] if found.private else []
    if claims is None:
        return "; ".join([*private, f"NO CLAIMS: {found.problem}"])
    base = claims.base
    elsewhere = claims.published_as not in (None, found.repo_id)
    said = [
        base and f"base {base.repo_id or 'not on the Hub'} (weights {base.weights_sha256[:SHORT]})",
        claims.judge and f"judge {claims.judge}",
        claims.pairs is not None and f"{claims.pairs:,} pairs",
        f"licence {claims.license}",
        elsewhere and f"made for {claims.published_as}, so a copy or a new name",
    ]
    return "; ".join([*private, *(words for words in said if words)])


def _meanings(found: "Sequence[Found]") -> dict[str, str]:
    """Return what a high score means; by repository where one principle has several meanings."""
    by_name: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for one in found:
        for name, words in one.claims.high_scores.items() if one.claims else ():
            by_name[name][words].append(one.repo_id)
    return {
        name if len(meanings) == 1 else f"{name} of {listed(repos)}": words
        for name, meanings in by_name.items()
        for words, repos in meanings.items()
    }


def _next_step(found: "Sequence[Found]") -> str | None:
    for one in found:
        claims = one.claims
        if claims is None or one.kind not in ("preference-model", "bank"):
            continue
        if "wrong way" not in claims.verdicts.values():
            return f"morlaif-hub score --bank {one.repo_id} --prompt '...' --response '...'"
    return None
