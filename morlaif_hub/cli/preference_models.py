"""The command that trains preference models."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from morlaif_hub.cli.command import (
    COUNT,
    Report,
    command,
    constitution_option,
    hint,
    local,
    seed_option,
    typed,
)
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import (
    Cell,
    doubts,
    legend,
    paragraphs,
    table,
    validation_table,
)
from morlaif_hub.evaluation.wording import bounds, number
from morlaif_hub.workspace import Workspace

if TYPE_CHECKING:
    from morlaif_hub.hub.manifest import PreferenceModelManifest
    from morlaif_hub.preference_models.preferences import Preferences
    from morlaif_hub.preference_models.standing import Standing
    from morlaif_hub.principles import Principle


FORMS_WITH = {
    "layers": ("lora",),
    **dict.fromkeys(
        (
            "epochs",
            "batch_size",
            "learning_rate",
            "loss",
            "label_smoothing",
            "distillation",
            "trainer",
        ),
        ("lora", "full"),
    ),
}
"""The forms that an option means something to, where those are not all."""


@command("train-pm", with_models=True)
@click.argument("principles", metavar="PRINCIPLE...", nargs=-1, required=True)
@click.option(
    "--base", metavar="MODEL", help="What they are adapters of. [default: the embedded model]"
)
@click.option(
    "--form",
    type=click.Choice(["lora", "probe", "full"]),
    default="lora",
    show_default=True,
    help="An adapter; a linear head on a middle layer, which is best for little data and costs "
    "half a pass for all of a bank; or a model of its own.",
)
@click.option(
    "--layers",
    metavar="top:F|all",
    default="top:0.25",
    show_default=True,
    help="Which layers are adapted; the layers below are shared by a whole bank.",
)
@click.option(
    "--epochs",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    default=1.0,
    show_default=True,
    help="Passes over the pairs, at most.",
)
@click.option(
    "--batch-size",
    type=COUNT,
    metavar="N",
    default=16,
    show_default=True,
    help="Pairs in a step, of all processes together.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="At its peak. [default: by form and size of the base]",
)
@click.option(
    "--loss",
    type=click.Choice(["soft", "margin"]),
    default="soft",
    show_default=True,
    help="soft learns the verdicts' probabilities; margin is TRL's.",
)
@click.option(
    "--label-smoothing",
    type=click.FloatRange(min=0, max=1, max_open=True),
    metavar="X",
    default=0.0,
    show_default=True,
    help="How far labels are drawn to one half.",
)
@click.option(
    "--distillation",
    type=click.FloatRange(min=0, max=1),
    metavar="X",
    default=0.5,
    show_default=True,
    help="How far labels of small sets are drawn to what a probe predicts; 0 trains none.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=8),
    metavar="N",
    default=1024,
    show_default=True,
    help="Tokens of a text that are read; longer ones are cut on the left.",
)
@click.option(
    "--trainer",
    type=click.Choice(["auto", "together", "trl"]),
    default="auto",
    show_default=True,
    help="together trains adapters of all principles in one pass; trl one after another, with "
    "TRL's RewardTrainer and on several processes.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="bfloat16",
    show_default=True,
    help="Of the base while training. Scores are always measured in float32.",
)
@click.option(
    "--labels",
    type=click.Choice(["feedback", "human"]),
    default="feedback",
    show_default=True,
    help="What to learn from: the workspace's feedback, or people's choices in --pairs.",
)
@click.option("--pairs", metavar="SRC", help="Pairs with people's choices, for --labels human.")
@click.option(
    "--license",
    metavar="SPDX",
    help="Of the preference models; the licence of what they learn from has to allow for it. "
    "[default: that of the feedback, 'other' for --labels human]",
)
@constitution_option
@seed_option
def train_pm(
    workspace: Workspace,
    *,
    principles: tuple[str, ...],
    base: str | None,
    labels: str,
    pairs: str | None,
    license: str | None,
    constitution: str,
    seed: int,
    **training: Any,
) -> Report:
    """Train a preference model for each PRINCIPLE.

    All share one run. Killed in its training of adapters or whole models, it goes on there; what is
    before that, and probes, begin again. Their accuracy on held-out pairs is shown beside that of a
    rule that sees length alone, and they are tested on the principles' probes. Written to
    pms/PRINCIPLE in the workspace, in place of what is there.
    """
    from morlaif_hub.principles import load_constitution

    _check_form(training["form"], training["trainer"])
    if (labels == "human") != (pairs is not None):
        raise click.UsageError("--labels human and --pairs SRC go together")
    chosen = load_constitution(constitution)
    wanted = [chosen.get(name) for name in dict.fromkeys(principles)]
    workspace.check_writable()
    from morlaif_hub.cli.voice import one_voice
    from morlaif_hub.models.language_model import model_folder
    from morlaif_hub.preference_models.settings import GradientSettings, TrainSettings
    from morlaif_hub.preference_models.train import train_preference_models
    from morlaif_hub.scoring.processes import Processes

    of_all = {name: training.pop(name) for name in ("form", "trainer", "max_length", "dtype")}
    settings = TrainSettings(gradient=GradientSettings(**training), seed=seed, **of_all)
    processes = Processes()
    with one_voice(processes), Progress() as progress:
        preferences = _preferences(wanted, workspace, pairs=pairs, seed=seed)
        if license is None and pairs is not None:
            license = "other"
            hint("the licence is written down as 'other'; --license names that of the pairs")
        if license is not None:
            preferences = [replace(given, license=license) for given in preferences]
        manifests = train_preference_models(
            preferences,
            base=model_folder(base),
            folders=[workspace.preference_model(principle.name) for principle in wanted],
            settings=settings,
            checkpoints=workspace.training,
            progress=progress.reach,
            watch=lambda standings: progress.say(standing_line(standings)),
        )
        if not processes.main:
            raise click.exceptions.Exit(0)
    return _models_report(manifests, workspace)


def _check_form(form: str, trainer: str) -> None:
    """Refuse options that would change nothing, rather than ignore them.

    Raises:
        click.UsageError: If one was typed that the form has no use for.
    """
    for option in typed():
        forms = FORMS_WITH.get(option.name or "", (form,))
        if form not in forms:
            raise click.UsageError(
                f"{option.opts[0]} is for --form {' or '.join(forms)} and changes nothing for "
                f"--form {form}; leave out either"
            )
    if (form, trainer) == ("full", "together"):
        raise click.UsageError(
            "--trainer together is for --form lora; whole models are trained one after another, "
            "with --trainer trl"
        )


def _preferences(
    principles: "Sequence[Principle]", workspace: Workspace, *, pairs: str | None, seed: int
) -> "list[Preferences]":
    from morlaif_hub.errors import DataError
    from morlaif_hub.feedback.dataset import FeedbackDataset
    from morlaif_hub.hub.manifest import DatasetReference
    from morlaif_hub.preference_models.preferences import feedback_preferences, human_preferences

    if pairs is None:
        for principle in principles:
            if not workspace.feedback(principle.name).is_dir():
                raise DataError(
                    f"the workspace {workspace.root} has no feedback on {principle.name!r}; make "
                    f"some with morlaif-hub collect-feedback {principle.name}"
                )
        return [
            feedback_preferences(p, FeedbackDataset.load(workspace.feedback(p.name)))
            for p in principles
        ]
    from morlaif_hub.cli.pairs import read_pairs

    given = read_pairs(pairs, workspace)
    source = given.source
    dataset = DatasetReference(
        repo_id=source.name if source.revision else None,
        revision=source.revision,
        sha256=source.sha256,
    )
    return [human_preferences(p, given.comparisons, dataset=dataset, seed=seed) for p in principles]


def standing_line(standings: "Sequence[Standing]") -> str:
    """Return in a line how preference models in training stand after the same step."""
    at = f"step {standings[0].step:,} of {standings[0].total:,}"
    if standings[0].ended:
        return f"{standings[0].principle}: training ended at {at}"
    found = []
    for name, check in ((one.principle, one.check) for one in standings if one.check):
        accuracy = "all ties" if check.accuracy is None else number(check.accuracy)
        found.append(f"{name} {accuracy} ({number(check.log_loss, 3)})")
    return f"{at}, accuracy (loss) on validation pairs: {', '.join(found)}"


def _models_report(manifests: "Sequence[PreferenceModelManifest]", workspace: Workspace) -> Report:
    data: dict[str, Any] = {}
    rows: list[list[Cell]] = []
    for manifest in manifests:
        name, training = manifest.principle.name, manifest.training
        folder = local(workspace.preference_model(name))
        data[name] = {
            "pairs": training.pairs,
            "kept": training.gradient.kept if training.gradient else None,
            "evaluations": [asdict(evaluation) for evaluation in manifest.evaluations],
            "length_correlation": manifest.length_correlation,
            "validation": manifest.validation and asdict(manifest.validation),
            "path": folder,
        }
        rows.append([name, training.pairs, *_held_out(manifest), folder])
    header = (
        "principle",
        "train pairs",
        "accuracy",
        "95 % interval",
        "by length alone",
        "calibration error",
        "preference model",
    )
    records = {m.principle.name: m.validation for m in manifests if m.validation}
    verdicts = {m.principle.name: m.validation.verdict if m.validation else None for m in manifests}
    text = paragraphs(
        doubts(verdicts, "preference model"),
        table(header, rows),
        validation_table(records) if records else "",
        legend({m.principle.name: m.principle.high_score for m in manifests}),
    )
    banks = " ".join(f"--bank {folder['path']}" for folder in data.values())
    return Report({"principles": data}, text, f"morlaif-hub steer {banks} --prompt '...'")


def _held_out(manifest: "PreferenceModelManifest") -> list[Cell]:
    """Return accuracy, interval, length baseline, calibration error; nothing if all are ties."""
    found = {evaluation.metric: evaluation for evaluation in manifest.evaluations}
    accuracy, error = found.get("accuracy"), found.get("calibration_error")
    shown: list[Cell] = [None, None, None]
    if accuracy:
        shown = [accuracy.value, bounds(accuracy.interval), accuracy.length_baseline]
    return [*shown, f"{number(error.value)} [{bounds(error.interval)}]" if error else None]
