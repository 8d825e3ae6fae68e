"""The command that fine-tunes a policy on dialogues."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from morlaif_hub.cli.command import COUNT, Report, command, hint, local, seed_option
from morlaif_hub.cli.policies import folder_name
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import Cell, paragraphs, table, wrapped
from morlaif_hub.evaluation.wording import bounds, number
from morlaif_hub.workspace import Workspace

if TYPE_CHECKING:
    from morlaif_hub.policies.sft import Dialogues, TrainedSft


@command("train-sft", with_models=True)
@click.option("--model", metavar="MODEL", help="What is trained. [default: the embedded model]")
@click.option(
    "--dataset",
    metavar="SRC",
    required=True,
    help="Dialogues: messages, whole conversations as text (hh-rlhf, guanaco), or prompts with "
    "responses, in a file, folder or Hub data set.",
)
@click.option("--limit", type=COUNT, metavar="N", help="Read so many dialogues at the most.")
@click.option(
    "--form",
    type=click.Choice(["lora", "full"]),
    default="lora",
    show_default=True,
    help="An adapter on all linear layers, or the whole model.",
)
@click.option(
    "--epochs",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    default=1.0,
    show_default=True,
    help="Passes over the dialogues.",
)
@click.option(
    "--batch-size",
    type=COUNT,
    metavar="N",
    help="Dialogues in a step, of all processes together. [default: 64, fewer for small sets]",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="At its peak. [default: 2e-4 for an adapter, 2e-5 for a whole model]",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=8),
    metavar="N",
    default=1024,
    show_default=True,
    help="Tokens of a dialogue that are read; longer ones are cut at the end.",
)
@click.option(
    "--rank", type=COUNT, metavar="N", default=16, show_default=True, help="Of the adapter."
)
@click.option(
    "--template",
    type=click.Choice(["own", "plain"]),
    help="The model's own chat template, or a plain one, a line for each turn, for base models "
    "without one. [default: its own if it has one]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="bfloat16",
    show_default=True,
    help="Of an adapter's base while training.",
)
@click.option(
    "--license",
    metavar="SPDX",
    help="Of the policy; that of the dialogues has to allow for it. [default: that of the model]",
)
@click.option(
    "--name",
    metavar="NAME",
    default="sft",
    show_default=True,
    callback=folder_name,
    help="What to call the policy.",
)
@seed_option
def train_sft(
    workspace: Workspace,
    *,
    model: str | None,
    dataset: str,
    limit: int | None,
    license: str | None,
    name: str,
    **training: Any,
) -> Report:
    """Fine-tune a model on dialogues, to sample pairs from.

    It learns what the assistant says in every turn and where it ends it, and nothing else. Its
    loss is measured on dialogues that are held out. A run that was killed goes on where it
    stopped. Written to policies/NAME in the workspace, in place of what is there.
    """
    workspace.check_writable()
    data = _dialogues(dataset, limit=limit, license=license)
    from morlaif_hub.cli.voice import one_voice
    from morlaif_hub.policies import sft
    from morlaif_hub.policies.artifact import policy_folder
    from morlaif_hub.scoring.processes import Processes

    settings = sft.SftSettings(**training)
    with one_voice(Processes()), Progress() as progress:
        trained = sft.train_sft(
            policy_folder(model),
            data,
            folder=workspace.policy(name),
            settings=settings,
            checkpoints=workspace.training,
            progress=progress.reach,
        )
        if trained is None:
            raise click.exceptions.Exit(0)
    return _report(trained, workspace)


def _dialogues(dataset: str, *, limit: int | None, license: str | None) -> "Dialogues":
    """Read dialogues; a few rows that cannot be read are left out, and stderr says which."""
    from morlaif_hub.cli.pairs import TOLERATED
    from morlaif_hub.comparisons import read_dialogues
    from morlaif_hub.errors import DataError
    from morlaif_hub.hub.manifest import SourceRecord
    from morlaif_hub.policies.sft_data import Dialogues
    from morlaif_hub.sources import resolve_source, source_sha256

    found = resolve_source(dataset)
    source = SourceRecord(name=found.name, revision=found.revision, sha256=source_sha256(found))
    pinned = found.path if found.revision is None else f"{found.name}@{found.revision}"
    bad: list[str] = []
    dialogues = list(read_dialogues(pinned, limit=limit, on_bad=bad.append))
    if len(bad) > TOLERATED * (len(bad) + len(dialogues)):
        raise DataError(bad[0])
    _tell_left_out(Counter(bad), beside=len(dialogues))
    return Dialogues(dialogues, source, license)


def _tell_left_out(reasons: "Counter[str]", *, beside: int) -> None:
    from morlaif_hub.cli.pairs import SHOWN

    if not reasons:
        return
    rows = "1 row is" if reasons.total() == 1 else f"{reasons.total():,} rows are"
    shown = "; ".join(why for why, _ in reasons.most_common(SHOWN))
    more = "; ..." if len(reasons) > SHOWN else ""
    hint(f"{rows} left out, beside {beside:,} that can be read: {shown}{more}")


def _report(trained: "TrainedSft", workspace: Workspace) -> Report:
    manifest, record = trained.manifest, trained.record
    folder = local(workspace.policy(manifest.name))
    data = {
        "dialogues": record.dialogues,
        "held_out": record.loss_before.n,
        "left_out": trained.left_out,
        "tokens": record.tokens,
        "template": record.template,
        "steps": manifest.steps,
        "loss_before": record.loss_before.value,
        "loss_before_interval": list(record.loss_before.interval),
        "loss_after": record.loss_after.value,
        "loss_after_interval": list(record.loss_after.interval),
        "change_interval": list(record.change),
        "path": folder,
    }
    losses = (("before", record.loss_before), ("after", record.loss_after))
    rows: list[list[Cell]] = [
        [when, number(loss.value, 3), bounds(loss.interval, 3)] for when, loss in losses
    ]
    low, high = record.change
    change = record.loss_after.value - record.loss_before.value
    said = (
        f"Learnt from {record.dialogues:,} dialogues, {record.tokens:,} of the assistant's tokens, "
        f"in {manifest.steps:,} steps. The loss per token on {record.loss_before.n:,} held-out "
        f"dialogues changed by {number(change, 3, sign=True)} nats (95 % interval "
        f"{bounds(record.change, 3, sign=True)})."
    )
    worse = "WORSE: it rose on dialogues that were not learnt from." if low > 0 else ""
    unclear = "A change is not shown: the interval holds zero." if low <= 0 <= high else ""
    left_out = [wrapped(f"left out: {n:,} dialogues, {why}") for why, n in trained.left_out.items()]
    text = paragraphs(
        worse,
        wrapped(said),
        unclear,
        table(("loss", "nats", "95 % interval"), rows),
        left_out,
        folder,
    )
    return Report(data, text, f"morlaif-hub sample-pairs --model {folder}")
