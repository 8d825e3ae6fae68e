"""Which bank a command scores with, what is said of it, and what reward it makes of the scores."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from morlaif_hub.cli.command import Report, hint
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import doubts, legend, paragraphs, wrapped
from morlaif_hub.errors import ModelNotFoundError, MorlaifHubError
from morlaif_hub.evaluation.wording import listed, number
from morlaif_hub.workspace import Workspace

if TYPE_CHECKING:
    from morlaif_hub.bank.bank import PMBank
    from morlaif_hub.models.language_model import Dtype


SCALE = (
    "Scores are in standard deviations of each preference model's reference set: 0 is average, "
    "higher is better."
)


class Weights(click.ParamType[dict[str, float]]):
    """`objective=number`, several with commas between them."""

    name = "K=V,..."

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002  # click's signature
        ctx: click.Context | None,  # noqa: ARG002  # click's signature
    ) -> dict[str, float]:
        """Return the weights by name; whether they are the bank's is not known here."""
        if isinstance(value, dict):
            return value
        weights: dict[str, float] = {}
        for part in str(value).split(","):
            name, equals, text = (piece.strip() for piece in part.partition("="))
            if not (name and equals and text):
                self.fail(f"{part!r} is not objective=number, as in conciseness=1,detail=0.5")
            if name in weights:
                self.fail(f"{name!r} is there twice")
            try:
                weights[name] = float(text)
            except ValueError:
                self.fail(f"the weight of {name!r} must be a number, got {text!r}")
        return weights


def bank_option(function: Callable[..., Report]) -> Callable[..., Report]:
    """Add `--bank` to a command that scores."""
    return click.option(
        "--bank",
        "banks",
        metavar="REPO",
        multiple=True,
        help="A preference model or a bank; repeat it for several. [default: the workspace's bank "
        "if it is current, or else its preference models]",
    )(function)


def reward_options(function: Callable[..., Report]) -> Callable[..., Report]:
    """Add `--weights` and `--scalarizer` to a command that makes one reward of scores."""
    function = click.option(
        "--scalarizer",
        metavar="NAME",
        help="How scores become one reward; morlaif-hub plugins lists them. [default: the bank's "
        "own, or else linear]",
    )(function)
    return click.option(
        "--weights",
        type=Weights(),
        help="One per objective. [default: the bank's own, or else all the same]",
    )(function)


def bank_sources(workspace: Workspace, given: Sequence[str]) -> list[str | Path]:
    """Return the banks that were named, else the workspace's, else its preference models.

    Its bank is left aside, and stderr says so, when a preference model was trained after it was
    made.

    Raises:
        ModelNotFoundError: If there are none.
        ManifestError: If the workspace's bank has no valid manifest.
    """
    from morlaif_hub.hub.manifest import MANIFEST_NAME

    if given:
        return list(given)
    models = _models(workspace)
    if (workspace.bank / MANIFEST_NAME).is_file():
        reasons = _out_of_date(workspace.bank, models)
        if not models or not reasons:
            return [workspace.bank]
        hint(
            f"the bank {workspace.bank} is out of date ({'; '.join(reasons)}), so all preference "
            f"models of {models[0].parent} are used"
        )
    if not models:
        raise _none(workspace)
    return list(models)


def member_sources(workspace: Workspace, given: Sequence[str]) -> list[str | Path]:
    """Return what a new bank is made of: what was named, else the workspace's preference models.

    Raises:
        ModelNotFoundError: If there are none.
    """
    sources: list[str | Path] = list(given) or list(_models(workspace))
    if not sources:
        raise _none(workspace)
    return sources


def bank_is_current(workspace: Workspace) -> bool:
    """Whether the workspace has a bank, of its preference models as they are now.

    Raises:
        ManifestError: If it has a bank without a valid manifest.
    """
    from morlaif_hub.hub.manifest import MANIFEST_NAME

    if not (workspace.bank / MANIFEST_NAME).is_file():
        return False
    return not _out_of_date(workspace.bank, _models(workspace))


def load_bank(
    sources: Sequence[str | Path], *, dtype: "Dtype" = "float32", device: str = "cpu"
) -> "PMBank":
    """Load a bank, showing on stderr how far what comes from the Hub is.

    Args:
        sources: As for `PMBank.from_pretrained`.
        dtype: Of the weights.
        device: Where to score.

    Raises:
        MorlaifHubError: As `PMBank.from_pretrained`.
    """
    from morlaif_hub.bank.bank import PMBank

    with Progress() as progress:
        return PMBank.from_pretrained(
            list(sources), dtype=dtype, device=device, progress=progress.reach
        )


def about_bank(bank: "PMBank") -> dict[str, Any]:
    """Return what a program has to know of whose scores are printed."""
    return {"objectives": bank.high_scores, "validation": _verdicts(bank)}


def _verdicts(bank: "PMBank") -> dict[str, str | None]:
    records = {m.objective: m.manifest and m.manifest.validation for m in bank.members}
    return {name: record.verdict if record else None for name, record in records.items()}


def with_words(bank: "PMBank", *results: str) -> str:
    """Return results with what a person has to know of whose scores they are."""
    return paragraphs(
        doubts(_verdicts(bank), "preference model"),
        *results,
        legend(bank.high_scores),
        wrapped(SCALE),
    )


def _models(workspace: Workspace) -> list[Path]:
    from morlaif_hub.hub.manifest import MANIFEST_NAME

    everything = workspace.preference_model("*").parent.glob(f"*/{MANIFEST_NAME}")
    # A run that was killed leaves its unfinished folder, whose name starts with a dot.
    return sorted(path.parent for path in everything if not path.parent.name.startswith("."))


def _none(workspace: Workspace) -> MorlaifHubError:
    return ModelNotFoundError(
        f"no --bank was given and the workspace {workspace.root} has none; name a bank or a "
        "preference model, or make one with morlaif-hub train-pm"
    )


def _out_of_date(bank: Path, models: Sequence[Path]) -> list[str]:
    """Return in words how a workspace's bank differs from its preference models."""
    from morlaif_hub.hub.manifest import (
        MANIFEST_NAME,
        BankManifest,
        manifest_sha256,
        read_manifest,
    )

    # Members on the Hub are pinned by commit; only folders change.
    objectives = read_manifest(bank, BankManifest).objectives
    parts = [part for part in objectives if part.repo_id.startswith("../")]
    folders = {part.name: (bank / part.repo_id).resolve() for part in parts}
    there = [part for part in parts if (folders[part.name] / MANIFEST_NAME).is_file()]
    gone = [part.name for part in parts if part not in there]
    other = [part.name for part in there if manifest_sha256(folders[part.name]) != part.sha256]
    left_out = [model.name for model in models if model.resolve() not in folders.values()]
    found = {"no longer there": gone, "trained again since": other, "not in it": left_out}
    return [f"{what}: {listed(names)}" for what, names in found.items() if names]


class Reward(NamedTuple):
    """A scalarizer's name, and the weights by objective; None means all the same."""

    scalarizer: str
    weights: dict[str, float] | None


def choose_reward(
    bank: "PMBank", *, weights: dict[str, float] | None, scalarizer: str | None
) -> Reward:
    """Return what was asked for, else what the bank was published with; stderr says which.

    Raises:
        MorlaifHubError: If the bank's scores cannot be combined like this.
    """
    from morlaif_hub.rewards import bind_scalarizer

    own = bank.weights
    chosen = Reward(
        scalarizer or bank.scalarizer or "linear",
        weights if weights is not None else own,
    )
    # At once, so that a wrong name does not wait for a model to load.
    bind_scalarizer(chosen.scalarizer, bank.objectives, weights=chosen.weights)
    whose = "as given" if weights is not None else "the bank's own" if own else "all the same"
    shown = chosen.weights or dict.fromkeys(bank.objectives, 1 / len(bank.objectives))
    written = ", ".join(f"{name} {number(value)}" for name, value in shown.items())
    click.echo(f"reward: {chosen.scalarizer} of {written} (weights: {whose})", err=True)
    return chosen
