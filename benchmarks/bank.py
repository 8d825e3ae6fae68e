"""How fast a bank of 12 preference models scores, against PEFT's own ways and against the floor.

Random LoRA adapters on one base score natural lists of texts: one response to each prompt, two,
eight. The engine and its opponents take turns in one process. An opponent is timed on some adapters
only, other ones in every turn, and its time is multiplied: it does the same work for each.

    python -m benchmarks.bank --tiny                           # seconds, to see how it works
    python -m benchmarks.bank --layers quarter --responses 2   # on the embedded model
    python -m benchmarks.bank --memory

Opponents, each with mini-batches of 8 texts:

* a: set the adapter, run all texts in their order, padded to the longest of all; for each adapter.
* b: the same, but texts of similar length together, padded to the longest of their batch.
* c: mixed batches, texts of similar length together, each once for every adapter.
"""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch

from benchmarks.memory import Peak, peaks
from benchmarks.options import (
    adapters_timed_option,
    dtype_option,
    layers_option,
    max_length_option,
    pairs_option,
    threads_option,
    tiny_option,
)
from benchmarks.settings import ADAPTERS, DEPTHS, RESPONSES, Bench, Plan, Setting
from benchmarks.tables import shown
from benchmarks.texts import Pairs, find_pairs
from morlaif_hub.cli.command import COUNT, Report, command, seed_option
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import paragraphs, table, wrapped
from morlaif_hub.evaluation.wording import duration
from morlaif_hub.models.embedded import embedded_model
from morlaif_hub.workspace import Workspace
from tests.tiny import save_tiny

TINY_LAYERS = 10


def measure(plan: Plan, base: Path, pairs: Pairs, *, scratch: Path) -> list[Setting]:
    """Return what each setting takes, telling on stderr how long it will be and how far it is."""
    bench = Bench(plan, base, pairs.comparisons, scratch=scratch)
    click.echo(f"this takes about {duration(bench.estimate())}, and the loading", err=True)
    found = []
    with Progress() as progress:
        for depth in plan.layers:
            stage = f"LoRA on {DEPTHS[depth].words}"
            progress.start(stage, len(plan.responses) * plan.repeats)
            for setting in bench.settings(depth, done=progress.advance):
                found.append(setting)
    return found


def memory(plan: Plan, base: Path, pairs: Pairs, *, scratch: Path) -> list[Peak]:
    """Return the peak memory of a bank and of what there is instead."""
    bench_texts = plan.texts_of(base, pairs.comparisons, responses=1)
    layers = DEPTHS[plan.layers[0]].layers
    found = []
    with Progress() as progress:
        progress.start("memory, each in a process of its own", 6)
        for peak in peaks(base, bench_texts, layers=layers, seed=plan.seed, scratch=scratch):
            found.append(peak)
            progress.advance(1)
    return found


@command("bank", with_models=True)
@tiny_option
@layers_option(DEPTHS)
@click.option(
    "--responses",
    type=click.Choice([str(n) for n in RESPONSES]),
    multiple=True,
    default=[str(n) for n in RESPONSES],
    show_default=True,
    help="To each prompt; can be given several times.",
)
@pairs_option("take texts from")
@click.option("--texts", type=COUNT, metavar="N", help="Of a list. [default: 64; tiny: 16]")
@max_length_option
@click.option("--repeats", type=COUNT, metavar="N", help="The median counts. [default: 5; tiny: 1]")
@adapters_timed_option("on which an opponent is timed in each turn")
@click.option(
    "--opponents",
    type=click.Choice(["a", "b", "c"]),
    multiple=True,
    default=["a", "b", "c"],
    show_default=True,
    help="Which to time; can be given several times. Scores are compared with those of a.",
)
@dtype_option("bfloat16 measures the engine in it as well.")
@click.option("--memory", "with_memory", is_flag=True, help="Measure the memory as well.")
@click.option("--no-times", is_flag=True, help="Measure nothing but the memory.")
@threads_option
@seed_option
def main(
    workspace: Workspace,
    *,
    tiny: bool,
    pairs: str | None,
    with_memory: bool,
    no_times: bool,
    **options: Any,
) -> Report:
    """Show how fast a bank of 12 preference models scores, and how far from the limit that is."""
    del workspace  # nothing of it is used
    options["responses"] = [int(n) for n in options["responses"]]
    options["texts"] = options["texts"] or (16 if tiny else 64)
    options["repeats"] = options["repeats"] or (1 if tiny else 5)
    plan = Plan(**options)
    found = find_pairs(pairs, tiny=tiny, seed=plan.seed)
    with TemporaryDirectory(prefix="morlaif-bank-") as place:
        scratch = Path(place)
        base = save_tiny(scratch / "base", layers=TINY_LAYERS) if tiny else embedded_model()
        settings = [] if no_times else measure(plan, base, found, scratch=scratch)
        both = with_memory or no_times
        peak = memory(plan, base, found, scratch=scratch) if both else []
    return report(plan, settings, peak, origin=found.origin, tiny=tiny)


def report(
    plan: Plan, settings: list[Setting], peak: list[Peak], *, origin: str, tiny: bool
) -> Report:
    """Return all of it as a report, which fails if the engine's scores are not the opponent's."""
    name = "a tiny model" if tiny else "the embedded model"
    about: dict[str, Any] = {
        "base": name,
        "adapters": ADAPTERS,
        "texts_from": origin,
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "versions": {n: version(n) for n in ("torch", "transformers", "peft")},
    }
    data = about | {
        "plan": asdict(plan),
        "settings": [setting.data(judged=not tiny) for setting in settings],
        "memory": [asdict(p) for p in peak],
        "equal": all(setting.equal for setting in settings),
    }
    said = (
        f"{ADAPTERS} random adapters on {name}, {about['threads']} threads. Texts: {origin}. The "
        f"opponents were timed on {plan.adapters_timed} of the adapters in each turn (c on at "
        f"least 2) and their time multiplied; medians of {plan.repeats}."
    )
    memories = table(
        ("peak memory", "MB"), ((p.name, p.megabytes and round(p.megabytes)) for p in peak)
    )
    text = paragraphs(
        wrapped(said) if settings else "",
        shown(settings, judged=not tiny) if settings else "",
        memories if peak else "",
    )
    return Report(data, text, exit_code=int(not data["equal"]))


if __name__ == "__main__":
    main()
