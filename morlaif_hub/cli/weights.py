"""The command that fits a bank's weights."""

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from morlaif_hub.cli.banks import (
    about_bank,
    bank_option,
    bank_sources,
    load_bank,
    with_words,
)
from morlaif_hub.cli.command import COUNT, Report, command, hint, local, seed_option, typed
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import Cell, paragraphs, table, wrapped
from morlaif_hub.errors import MorlaifHubError
from morlaif_hub.evaluation.wording import bounds, number
from morlaif_hub.workspace import Workspace

if TYPE_CHECKING:
    from morlaif_hub.bank.bank import PMBank
    from morlaif_hub.cli.labels import Labels, Scores
    from morlaif_hub.statistics import Estimate
    from morlaif_hub.weights import ScalarizerAccuracy, WeightFit


@command("fit-weights", with_models=True)
@bank_option
@click.option(
    "--labels",
    "source",
    metavar="SRC",
    help="Pairs with people's choices, or a feedback data set. [default: people's choices in the "
    "workspace's feedback]",
)
@click.option(
    "--verdicts",
    is_flag=True,
    help="Fit the judge's verdicts of the feedback data set, not people's choices.",
)
@click.option("--limit", type=COUNT, metavar="N", help="Use the first so many labelled pairs.")
@click.option(
    "--scalarizer",
    metavar="NAME",
    help="Which one the bank is written with. [default: the bank's own, or else linear]",
)
@seed_option
def fit_weights(
    workspace: Workspace,
    *,
    banks: tuple[str, ...],
    source: str | None,
    verdicts: bool,
    limit: int | None,
    scalarizer: str | None,
    seed: int,
) -> Report:
    """Fit a bank's weights on people's choices.

    A logistic regression of the choice on the differences of the calibrated scores. Weights are
    for a weighted sum, the scalarizer linear; their absolute values sum to 1, and a negative one
    says that people prefer the lower score. With 95 % intervals over prompts they are written into
    the workspace's bank, in place of what is there; one that was named by its repository is pinned
    there, part by part, and itself left as it is. Where the scalarizer takes no such weights, the
    bank is left as it is and the exit code is 1; all is shown nevertheless, and the scores are
    kept.

    Pairs of prompts that the preference models learnt from are left out, as far as the workspace
    tells. The accuracy of every scalarizer is shown beside that of equal weights; it is measured
    on prompts that were left out of the fit.

    Very many pairs are best scored before by several processes, with score --pairs SRC and the
    same --bank: those scores are used.
    """
    if verdicts and source is None:
        raise click.UsageError("--verdicts needs --labels, the feedback data set that has them")
    sources = bank_sources(workspace, banks)
    workspace.check_writable()
    from morlaif_hub.bank.artifact import check_pinnable
    from morlaif_hub.cli.labels import device_alone, read_labels
    from morlaif_hub.rewards import bind_scalarizer

    bank = load_bank(sources, device=device_alone())
    check_pinnable(bank, workspace.bank)
    chosen = scalarizer or bank.scalarizer or "linear"
    bind_scalarizer(chosen, bank.objectives)  # a wrong name must not wait for the scores
    labels = read_labels(source, workspace, bank.members, verdicts=verdicts)
    if labels.left_out:
        hint(f"{labels.left_out:,} labelled pairs are left out: preference models learnt from them")
    found = _fit(bank, labels.first(limit), workspace, seed)
    problem = _problem(bank, found, chosen)
    if problem is None:
        _write(bank, found, workspace, chosen)
    return _report(bank, found, workspace, scalarizer=chosen, problem=problem)


class _Found(NamedTuple):
    """What was fitted, on what, and how well scalarizers do with it and with equal weights."""

    labels: "Labels"
    scores: "Scores"
    fit: "WeightFit"
    fitted: "list[ScalarizerAccuracy]"
    equal: "list[ScalarizerAccuracy]"


def _fit(bank: "PMBank", labels: "Labels", workspace: Workspace, seed: int) -> _Found:
    from morlaif_hub import weights
    from morlaif_hub.cli.labels import score_labels

    names, p, prompts = bank.objectives, labels.probabilities, labels.prompts
    weights.check_enough(p, prompts, objectives=len(names))
    with Progress() as progress:
        progress.start("scoring", len(p))
        scores = score_labels(bank, labels, workspace, progress=progress.advance)
        fit = weights.fit_weights(
            scores.a - scores.b,
            p,
            prompts,
            objectives=names,
            seed=seed,
            progress=progress.reach,
        )
        progress.start("comparing scalarizers", None)
        fitted, equal = (
            weights.compare_scalarizers(scores.a, scores.b, p, prompts, weights=w, seed=seed)
            for w in (fit.held_out_weights, [1 / len(names)] * len(names))
        )
    return _Found(labels, scores, fit, fitted, equal)


def _problem(bank: "PMBank", found: _Found, scalarizer: str) -> str | None:
    """Return why a scalarizer does not take the fitted weights; None if it does."""
    from morlaif_hub.rewards import bind_scalarizer

    try:
        bind_scalarizer(scalarizer, bank.objectives, weights=found.fit.named)
    except MorlaifHubError as error:
        return str(error)
    return None


def _write(bank: "PMBank", found: _Found, workspace: Workspace, scalarizer: str) -> None:
    import numpy as np

    from morlaif_hub.bank.artifact import FittedWeights, write_bank
    from morlaif_hub.hub.manifest import RateRecord, WeightFitRecord, WeightRecord

    fit, quality = found.fit, found.fit.quality
    rows = zip(fit.objectives, fit.weights.tolist(), fit.intervals, strict=True)
    weights = FittedWeights(
        tuple(WeightRecord(objective=o, value=w, interval=(*i,)) for o, w, i in rows),
        WeightFitRecord(
            labels=found.labels.kind,
            sources=found.labels.sources,
            pairs=fit.pairs,
            prompts=fit.prompts,
            l2=fit.l2,
            accuracy=RateRecord(**quality.accuracy._asdict()),
            equal_accuracy=RateRecord(**quality.equal_accuracy._asdict()),
        ),
    )
    folder = workspace.bank
    scores = np.concatenate(found.scores)
    write_bank(
        bank, folder, scores=scores, weights=weights, scalarizer=scalarizer, name=folder.name
    )


def _report(
    bank: "PMBank", found: _Found, workspace: Workspace, *, scalarizer: str, problem: str | None
) -> Report:
    fit, labels, folder = found.fit, found.labels, local(workspace.bank)
    whose = {"human": "people's choices", "feedback": "a judge's verdicts"}[labels.kind]
    fitted = f"fitted on {whose} in {fit.pairs:,} pairs of {fit.prompts:,} prompts"
    if problem is None:
        told = f"The weights, {fitted}, are in the bank {folder}, for {scalarizer}."
        next_step = "morlaif-hub steer --prompt '...'"
    else:
        told = (
            f"NOT WRITTEN: the bank {folder} is as it was. The weights, {fitted}, are not for the "
            f"scalarizer {scalarizer}: {problem}. Run it again with --scalarizer linear, which "
            "takes any weights; the scores are kept."
        )
        next_step = f"morlaif-hub fit-weights {_again()}--scalarizer linear"
    text = with_words(
        bank,
        paragraphs([wrapped(f"WARNING: {warning}") for warning in fit.warnings]),
        _weights_table(fit),
        _scalarizers_table(found),
        wrapped(told),
    )
    data = {
        **about_bank(bank),
        **_data(found),
        "scalarizer": scalarizer,
        "warnings": list(fit.warnings),
        "problem": problem,
        "path": folder if problem is None else None,
    }
    return Report(data, text, next_step, exit_code=0 if problem is None else 1)


def _again() -> str:
    """Return what decides on the fit, as it was typed, with a space behind it."""
    given = click.get_current_context().params
    words: list[str] = []
    for option in typed():
        if option.name in ("banks", "source", "verdicts", "limit", "seed"):
            value = given[option.name]
            for one in value if isinstance(value, tuple) else (value,):
                words += [option.opts[0]] if one is True else [option.opts[0], str(one)]
    return "".join(f"{shlex.quote(word)} " for word in words)


def _data(found: _Found) -> dict[str, Any]:
    fit, labels, quality = found.fit, found.labels, found.fit.quality
    rows = zip(fit.objectives, fit.weights.tolist(), fit.intervals, fit.inflation, strict=True)
    return {
        "labels": labels.kind,
        "sources": [asdict(source) for source in labels.sources],
        "pairs": fit.pairs,
        "prompts": fit.prompts,
        "left_out": labels.left_out,
        "weights": {
            name: {"weight": weight, "interval": interval, "vif": float(vif)}
            for name, weight, interval, vif in rows
        },
        "scale": fit.scale,
        "l2": fit.l2,
        "accuracy": _plain(quality.accuracy),
        "equal_accuracy": _plain(quality.equal_accuracy),
        "gain": _plain(quality.gain),
        "log_loss": quality.log_loss,
        "equal_log_loss": quality.equal_log_loss,
        "scalarizers": [
            {
                "scalarizer": one.name,
                "accuracy": _plain(one.accuracy),
                "above_linear": _plain(one.above_linear),
                "equal_accuracy": _plain(other.accuracy),
                "problem": one.problem,
            }
            for one, other in zip(found.fitted, found.equal, strict=True)
        ],
    }


def _weights_table(fit: "WeightFit") -> str:
    rows: list[list[Cell]] = [
        [name, number(weight, sign=True), bounds(interval, sign=True), number(vif, 1)]
        for name, weight, interval, vif in zip(
            fit.objectives, fit.weights, fit.intervals, fit.inflation, strict=True
        )
    ]
    note = (
        "Absolute values sum to 1. VIF: variance inflation factor, 1 where the other objectives "
        "have nothing to do with this one."
    )
    return table(("objective", "weight", "95 % interval", "VIF"), rows) + "\n" + wrapped(note)


def _scalarizers_table(found: _Found) -> str:
    header = (
        "scalarizer",
        *("fitted", "95 % interval"),
        *("above linear", "95 % interval"),
        *("equal", "95 % interval"),
    )
    rows: list[list[Cell]] = [
        [
            one.name,
            *_cells(one.accuracy),
            *_cells(one.above_linear if one.name != "linear" else None, digits=3),
            *_cells(other.accuracy),
        ]
        for one, other in zip(found.fitted, found.equal, strict=True)
    ]
    problems = [wrapped(f"Not measured: {s.problem}") for s in found.fitted if s.problem]
    note = (
        f"Accuracy with fitted and equal weights: share of {found.fit.quality.accuracy.n:,} pairs "
        "in which the preferred response has the higher reward, on prompts that were left out of "
        "the fit; above linear: its difference to that of linear, with fitted weights."
    )
    return "\n".join([table(header, rows), wrapped(note), *problems])


def _cells(estimate: "Estimate | None", digits: int = 2) -> list[Cell]:
    if estimate is None:
        return [None, None]
    sign = digits > 2  # a difference
    return [number(estimate.value, digits, sign=sign), bounds(estimate.interval, digits, sign=sign)]


def _plain(estimate: "Estimate | None") -> dict[str, Any] | None:
    return None if estimate is None else estimate._asdict()
