"""What 12 probes cost: preference models that read the middle layer of their frozen base.

Random probes on one base score a natural list of texts. Their cost is told in forward passes of the
whole base over the same packed rows, so that it does not depend on the machine; a pass of
transformers over padded batches of 8 texts of similar length is beside it. All take turns.

    python -m benchmarks.probes --tiny                     # seconds, to see how it works
    python -m benchmarks.probes                            # on the embedded model
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.floors import tokens, unique_tokens
from benchmarks.loops import BATCH
from benchmarks.options import max_length_option, pairs_option, threads_option, tiny_option
from benchmarks.texts import find_pairs, natural_texts
from morlaif_hub.bank.bare import BareBase
from morlaif_hub.bank.classifier import load_base
from morlaif_hub.bank.engine import Engine
from morlaif_hub.bank.layout import Ids
from morlaif_hub.bank.padded import PaddedScorer
from morlaif_hub.bank.plain import plain_scores
from morlaif_hub.bank.pooling import Wanted
from morlaif_hub.bank.probes import ProbeFiles
from morlaif_hub.cli.command import COUNT, Report, command, seed_option
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import paragraphs, table, wrapped
from morlaif_hub.hub.manifest import InputFormat, Pooling
from morlaif_hub.models.embedded import embedded_model
from morlaif_hub.models.formats import Encoder, Text
from morlaif_hub.models.language_model import load_tokenizer
from morlaif_hub.workspace import Workspace
from tests.tiny import save_tiny

PROBES = 12
POOLINGS: tuple[Pooling, ...] = ("last", "mean", "last+mean")
GOAL = 0.6
"""Base forwards that 12 probes of the middle layer may cost: half of the layers, and a little."""
TOLERANCE = 1e-3
"""How far a score may be off transformers' own, in standard deviations of a probe's scores."""
TINY_LAYERS = 10
COMPARED = 8
"""Texts whose scores are compared."""


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        layer: That the probes read.
        layers: Of the base.
        tokens: Of the texts.
        unique: Of these, what is left where texts share what they begin with.
        seconds: Of each turn, by what was timed: `probes`, `base` packed, `padded` base.
        difference: Between scores and those of transformers, in standard deviations.
        method: By which the engine scores.
    """

    layer: int
    layers: int
    tokens: int
    unique: int
    seconds: dict[str, list[float]]
    difference: float
    method: str

    @property
    def forwards(self) -> float:
        """What the probes cost, in base forwards over the packed texts: the median of the turns."""
        both = zip(self.seconds["probes"], self.seconds["base"], strict=True)
        return median(probes / base for probes, base in both)


def measure(base: Path, given: Sequence[Text], *, repeats: int, seed: int) -> Measured:
    """Return what 12 random probes of a base's middle layer cost on texts."""
    texts, starts = [text.ids for text in given], [text.start for text in given]
    pad = load_tokenizer(base).pad_token_id
    model = load_base(base, dtype=torch.float32, pad_token_id=pad)
    config = model.config.get_text_config()
    depth, width = config.num_hidden_layers, config.hidden_size
    probes = random_probes(depth // 2, width, seed=seed)
    engine = Engine(model, pad_token_id=pad, adapters={}, probes=probes)
    ways: dict[str, Callable[[], Any]] = {
        "probes": lambda: engine.score(texts, starts),
        "base": lambda: list(engine.pooled(texts, [depth], starts)),
        "padded": lambda: padded_forward(model, texts, pad),
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    with Progress() as progress:
        progress.start("turns", repeats)
        for _ in range(repeats):
            for name, run in ways.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
            progress.advance(1)
    few = texts[:COMPARED], starts[:COMPARED]
    plain = plain_scores(model, *few, slots=(), probes=tuple(probes.values()))
    return Measured(
        layer=depth // 2,
        layers=depth,
        tokens=tokens(texts),
        unique=unique_tokens(texts),
        seconds=dict(seconds),
        difference=_difference(engine.score(*few), plain),
        method=engine.method,
    )


def random_probes(layer: int, width: int, *, seed: int) -> dict[str, ProbeFiles]:
    """Return 12 probes with random weights, of all kinds of pooling."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for i in range(PROBES):
        pooling = POOLINGS[i % len(POOLINGS)]
        size = width * (2 if pooling == "last+mean" else 1)
        weight = torch.randn(size, generator=generator)
        found[f"probe{i:02}"] = ProbeFiles(weight, layer, pooling, f"probe{i:02}")
    return found


@torch.inference_mode()
def padded_forward(model: Any, texts: Sequence[Ids], pad: int) -> None:
    """Run the whole base by transformers, texts of similar length together, in batches of 8."""
    ordered = PaddedScorer.order(list(texts))
    whole = BareBase(model, None, watched=False)
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        longest = max(map(len, batch))
        ids = torch.tensor([[*text, *[pad] * (longest - len(text))] for text in batch])
        mask = torch.tensor([[1] * len(t) + [0] * (longest - len(t)) for t in batch])
        whole.run(ids, mask, Wanted())


def _difference(scores: Tensor, plain: Tensor) -> float:
    return float(((scores - plain).abs() / plain.std(0)).max())


@command("probes", with_models=True)
@tiny_option
@click.option("--responses", type=COUNT, metavar="N", default=1, show_default=True)
@pairs_option("take texts from")
@click.option("--texts", type=COUNT, metavar="N", help="Of the list. [default: 64; tiny: 16]")
@max_length_option
@click.option("--repeats", type=COUNT, metavar="N", help="The median counts. [default: 5; tiny: 3]")
@threads_option
@seed_option
def main(
    workspace: Workspace,
    *,
    tiny: bool,
    pairs: str | None,
    texts: int | None,
    responses: int,
    max_length: int,
    repeats: int | None,
    seed: int,
) -> Report:
    """Show what 12 probes of the middle layer cost, in forward passes of their base."""
    del workspace  # nothing of it is used
    found = find_pairs(pairs, tiny=tiny, seed=seed)
    with TemporaryDirectory(prefix="morlaif-probes-") as place:
        base = save_tiny(Path(place, "base"), layers=TINY_LAYERS) if tiny else embedded_model()
        how = InputFormat(kind="chat", append_eos=True, max_length=max_length)
        chosen = natural_texts(
            found.comparisons,
            Encoder(load_tokenizer(base), how),
            responses=responses,
            texts=texts or (16 if tiny else 64),
        )
        measured = measure(base, chosen, repeats=repeats or (3 if tiny else 5), seed=seed)
    return report(measured, chosen, origin=found.origin, tiny=tiny)


def report(measured: Measured, texts: Sequence[Any], *, origin: str, tiny: bool) -> Report:
    """Return it as a report, which fails if scores are not those of transformers."""
    equal = measured.difference <= TOLERANCE
    held = measured.forwards <= GOAL
    data = {
        "base": "a tiny model" if tiny else "the embedded model",
        "texts": len(texts),
        "texts_from": origin,
        "threads": torch.get_num_threads(),
        "layer": measured.layer,
        "layers": measured.layers,
        "tokens": measured.tokens,
        "unique_tokens": measured.unique,
        "seconds": measured.seconds,
        "base_forwards": measured.forwards,
        "goal": None if tiny else GOAL,
        "held": None if tiny else held,
        "difference": measured.difference,
        "equal": equal,
        "method": measured.method,
    }
    said = (
        f"{PROBES} random probes of layer {measured.layer} of {measured.layers} of {data['base']}, "
        f"{data['threads']} threads, {len(texts)} texts of {measured.tokens:,} tokens "
        f"({measured.unique:,} with shared beginnings once). Texts: {origin}. Medians of "
        f"{len(measured.seconds['base'])} turns."
    )
    names = {
        "probes": f"{PROBES} probes",
        "base": "the whole base on the same packed rows",
        "padded": "the whole base by transformers, padded batches",
    }
    whole = median(measured.seconds["base"])
    forwards = {"probes": measured.forwards, "base": 1.0}
    rows = [
        (names[n], f"{median(turns):.3f}", f"{forwards.get(n, median(turns) / whole):.2f}")
        for n, turns in measured.seconds.items()
    ]
    verdict = "" if tiny else f"At most {GOAL} base forwards: {'held' if held else 'NOT held'}. "
    scores = f"Scores are off transformers' by {measured.difference:.1e} standard deviations."
    text = paragraphs(
        wrapped(said), table(("what", "seconds", "base forwards"), rows), verdict + scores
    )
    return Report(data, text, exit_code=int(not equal))


if __name__ == "__main__":
    main()
