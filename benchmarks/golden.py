"""How far golden scores move, where they must not and where they must.

The golden scores of a workspace's preference models are computed again in many ways: on the same
weights in other threads, batches and kernels, which a copy that works may do; and on weights that
were rounded, quantised again or trained again, which is what the golden scores are there to
notice. `GOLDEN_TOLERANCE` is put between the two. See docs/golden.md.

    python benchmarks/golden.py --workspace ./morlaif --seed 1
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import click
import torch
from torch import Tensor

from morlaif_hub.bank.adapters import AdapterFiles, check_adapter
from morlaif_hub.bank.bases import find_base
from morlaif_hub.bank.classifier import load_classifier
from morlaif_hub.bank.engine import Engine
from morlaif_hub.bank.golden import golden_sequences
from morlaif_hub.cli.command import Report, command
from morlaif_hub.cli.tables import paragraphs, table, wrapped
from morlaif_hub.errors import OptionError
from morlaif_hub.feedback.dataset import FeedbackDataset
from morlaif_hub.hub.artifact import open_artifact, weights_sha256
from morlaif_hub.hub.manifest import MANIFEST_NAME, PreferenceModelManifest
from morlaif_hub.models.embedded import GGUF_SHA256, WHEEL, embedded_model
from morlaif_hub.models.formats import Encoder
from morlaif_hub.models.language_model import ModelFolder, load_tokenizer, model_folder
from morlaif_hub.preference_models.measure import GOLDEN_TOLERANCE
from morlaif_hub.preference_models.preferences import feedback_preferences
from morlaif_hub.preference_models.train import TrainSettings, train_preference_models
from morlaif_hub.principles import load_constitution
from morlaif_hub.workspace import Workspace

OTHER_TEXTS = 64
QUANTISED = ("Q8_0", "Q5_1", "Q4_1", "Q4_0")
Change = Callable[[Tensor], Tensor]
Kind = Literal["same", "coarse", "other"]
MEANING: dict[Kind, str] = {
    "same": "the same weights, in float32: has to pass",
    "coarse": "the same weights in a coarser arithmetic: looks like other weights",
    "other": "other weights: has to be refused",
}


@dataclass(frozen=True)
class Row:
    """How far one way to compute them moves the golden scores.

    Attributes:
        name: The way.
        kind: What has to happen, see `MEANING`.
        largest: Over the texts, of each preference model, in standard deviations of its
            calibration.
        mean: The same, the mean over the texts.
    """

    name: str
    kind: Kind
    largest: tuple[float, ...]
    mean: tuple[float, ...]


class Bench:
    """A workspace's preference models on their base, and the golden texts as tokens.

    Args:
        folders: Preference models on one base with one input format.

    Raises:
        OptionError: If there is none, or they differ in base or format.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        if not folders:
            raise OptionError("the workspace has no preference models; train some first")
        self.manifests = [open_artifact(folder, PreferenceModelManifest) for folder in folders]
        common = {(m.base.weights_sha256, m.input_format) for m in self.manifests}
        if len(common) > 1:
            raise OptionError("the preference models differ in their base or in how they read text")
        self.names = [manifest.principle.name for manifest in self.manifests]
        self.base: ModelFolder = find_base(self.manifests[0].base, str(folders[0]))
        self.encoder = Encoder(load_tokenizer(self.base.path), self.manifests[0].input_format)
        self.std = torch.tensor([manifest.calibration.std for manifest in self.manifests])
        self._adapters = self.adapters(folders)
        self.golden = self._ids(*golden_sequences())
        self.others = self._ids(*_other_texts())
        self.reference = self.engine().score(self.golden)

    def adapters(self, folders: Sequence[Path]) -> dict[str, AdapterFiles]:
        """Return the checked files of other adapters of the same principles, in the same order."""
        return {
            name: check_adapter(folder, str(folder))
            for name, folder in zip(self.names, folders, strict=True)
        }

    def engine(
        self,
        folder: Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        attention: str | None = None,
        change: Change | None = None,
        adapters: dict[str, AdapterFiles] | None = None,
    ) -> Engine:
        """Return what scores, in the way of the reference but for what is given.

        Args:
            folder: Of another base.
            dtype: Of the arithmetic.
            attention: An implementation's name.
            change: Applied to every weight of the base.
            adapters: Other ones.
        """
        pad = self.encoder.tokenizer.pad_token_id
        model = load_classifier(
            folder or self.base.path, dtype=dtype, pad_token_id=pad, attention=attention
        )
        if change:
            _apply(change, model.named_parameters())
        return Engine(model, pad_token_id=pad, adapters=adapters or self._adapters)

    def row(self, name: str, kind: Kind, scores: Tensor) -> Row:
        """Return how far the golden texts' scores, shape (texts, preference models), moved."""
        moved = (scores - self.reference).abs().double() / self.std
        return Row(name, kind, tuple(moved.amax(0).tolist()), tuple(moved.mean(0).tolist()))

    def _ids(self, prompts: Sequence[Any], responses: Sequence[str]) -> list[tuple[int, ...]]:
        return [self.encoder.ids(p, r) for p, r in zip(prompts, responses, strict=True)]


def same_weights(bench: Bench) -> Iterator[Row]:
    """Yield how far the scores of the same weights move."""
    engine, golden = bench.engine(), bench.golden
    row = partial(bench.row, kind="same")
    kept = torch.tensor([manifest.golden.scores for manifest in bench.manifests]).T
    yield row("as the manifests have them", scores=kept)
    yield row("the same again", scores=engine.score(golden))
    for threads in (1, 2, 4):
        with _threads(threads):
            yield row(f"threads: {threads}", scores=engine.score(golden))
    alone = torch.cat([engine.score([ids]) for ids in golden])
    yield row("each text alone", scores=alone)
    among = engine.score([*golden, *bench.others])[: len(golden)]
    yield row(f"among {OTHER_TEXTS} other texts", scores=among)
    for attention in ("eager", "sdpa"):
        scores = bench.engine(attention=attention).score(golden)
        yield row(f"attention: {attention}", scores=scores)
    if _can_convert(bench.base):
        with _converted_again() as folder:
            same = weights_sha256(folder) == bench.base.base.weights_sha256
            name = f"a second conversion of the file ({'same' if same else 'OTHER'} hash)"
            yield row(name, scores=bench.engine(folder).score(golden))


def coarse_arithmetic(bench: Bench) -> Iterator[Row]:
    """Yield how far the scores of the same weights move in bfloat16, asked for or allowed."""
    row = partial(bench.row, kind="coarse")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        yield row("float32, bfloat16 allowed inside", scores=bench.engine().score(bench.golden))
    finally:
        torch.set_float32_matmul_precision(before)
    scores = bench.engine(dtype=torch.bfloat16).score(bench.golden)
    yield row("bfloat16", scores=scores)


def other_weights(bench: Bench) -> Iterator[Row]:
    """Yield how far the scores move when the base's or the adapter's weights are rounded."""
    row = partial(bench.row, kind="other")
    rounded = bench.engine(change=_rounded)
    yield row("base rounded to bfloat16", scores=rounded.score(bench.golden))
    for quantised in QUANTISED if importlib.util.find_spec("gguf") else ():
        engine = bench.engine(change=partial(_quantised, to=quantised))
        yield row(f"base quantised to {quantised}", scores=engine.score(bench.golden))
    engine = bench.engine()
    adapted = ((n, p) for n, p in engine.model.named_parameters() if _is_adapters(n))
    _apply(_rounded, adapted)
    yield row("adapter rounded to bfloat16", scores=engine.score(bench.golden))


def trained_again(bench: Bench, workspace: Workspace, *, seed: int) -> Row:
    """Return how far the scores move when the adapters are trained again with another seed."""
    with TemporaryDirectory(prefix="morlaif-golden-") as folder:
        adapters = bench.adapters(_trained_again(bench, workspace, Path(folder), seed=seed))
        scores = bench.engine(adapters=adapters).score(bench.golden)
    return bench.row(f"adapter trained again, seed {seed}", "other", scores)


def original_weights(bench: Bench, original: str) -> Row:
    """Return how far the scores move on the weights that the base was quantised from.

    Raises:
        ModelNotFoundError: If they are not to be had.
        HubError: If the Hub cannot be reached.
    """
    scores = bench.engine(model_folder(original).path).score(bench.golden)
    return bench.row(f"base: {original}", "other", scores)


def _other_texts() -> tuple[list[Any], list[str]]:
    """Return prompts and responses of many lengths, none of them golden."""
    prompts, responses = golden_sequences()
    chosen = range(OTHER_TEXTS)
    texts = [" ".join((responses * 2)[k % 16 : k % 16 + 2 + k // 16 * 2]) for k in chosen]
    return [prompts[k % 16] for k in chosen], texts


def _apply(change: Change, parameters: Iterator[tuple[str, Tensor]]) -> None:
    with torch.no_grad():
        for _, parameter in parameters:
            parameter.copy_(change(parameter))


def _rounded(weight: Tensor) -> Tensor:
    return weight.bfloat16().float()


def _quantised(weight: Tensor, *, to: str) -> Tensor:
    """Quantise a matrix, as files of quantised models do, and read it back; leave vectors."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    if weight.dim() < 2:
        return weight
    kind = GGMLQuantizationType[to]
    return torch.from_numpy(dequantize(quantize(weight.numpy(), kind), kind))


def _is_adapters(name: str) -> bool:
    return "lora_" in name or ".modules_to_save." in name


def _trained_again(bench: Bench, workspace: Workspace, folder: Path, *, seed: int) -> list[Path]:
    constitution = load_constitution()
    preferences = [
        feedback_preferences(constitution.get(name), FeedbackDataset.load(workspace.feedback(name)))
        for name in bench.names
    ]
    folders = [folder / name for name in bench.names]
    settings = TrainSettings(seed=seed)
    train_preference_models(preferences, base=bench.base, folders=folders, settings=settings)
    return folders


def _can_convert(base: ModelFolder) -> bool:
    return base.base.source == f"gguf:{GGUF_SHA256}" and bool(importlib.util.find_spec(WHEEL))


@contextmanager
def _converted_again() -> Iterator[Path]:
    """Yield the embedded model as it is converted in an empty cache."""
    before = {name: os.environ.get(name) for name in ("MORLAIF_CACHE", "MORLAIF_EMBEDDED_MODEL")}
    with TemporaryDirectory(prefix="morlaif-golden-") as cache:
        try:
            os.environ.pop("MORLAIF_EMBEDDED_MODEL", None)
            os.environ["MORLAIF_CACHE"] = cache
            folder = embedded_model()
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        yield folder


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(
    workspace: Workspace, *, seed: int | None, original: str | None
) -> tuple[Bench, list[Row]]:
    """Return the preference models of a workspace and how far their golden scores move.

    Args:
        workspace: Also holds the feedback, for what is trained again.
        seed: Of that; None to leave it out.
        original: See `original_weights`; None to leave it out.
    """
    bench = Bench(sorted(path.parent for path in workspace.root.glob(f"pms/*/{MANIFEST_NAME}")))
    rows = []
    for row in chain(same_weights(bench), coarse_arithmetic(bench), other_weights(bench)):
        click.echo(f"{row.name}: {max(row.largest):.1e}", err=True)
        rows.append(row)
    if seed is not None:
        rows.append(trained_again(bench, workspace, seed=seed))
    if original is not None:
        rows.append(original_weights(bench, original))
    return bench, rows


def bounds(rows: Sequence[Row]) -> tuple[float, float]:
    """Return between what a tolerance has to lie.

    Returns:
        The largest move of any preference model on the same weights; the smallest of the largest
        moves that other weights bring.
    """
    same = max(x for row in rows if row.kind == "same" for x in row.largest)
    return same, min(x for row in rows if row.kind == "other" for x in row.largest)


def shown(bench: Bench, rows: Sequence[Row]) -> str:
    """Return the rows as a table, with what they say about the tolerance."""
    tables = [
        MEANING[kind]
        + "\n"
        + table(
            ("largest move", *bench.names, "mean"),
            (
                (row.name, *(f"{x:.1e}" for x in row.largest), f"{max(row.mean):.1e}")
                for row in rows
                if row.kind == kind
            ),
        )
        for kind in MEANING
    ]
    low, high = bounds(rows)
    units = "In standard deviations of each preference model's calibration; 'mean' is the largest "
    between = (
        f"the same weights move a score by at most {low:.1e}, other weights the worst one by at "
        f"least {high:.1e}; GOLDEN_TOLERANCE is {GOLDEN_TOLERANCE:g}"
    )
    return paragraphs(*tables, wrapped(f"{units}of the means over the texts."), wrapped(between))


@command("golden", with_models=True)
@click.option(
    "--seed",
    type=int,
    metavar="N",
    help="Train the adapters again, with this seed, from the workspace's feedback, and measure "
    "them too: some minutes.",
)
@click.option(
    "--original",
    metavar="MODEL",
    envvar="MORLAIF_HUB_ORIGINAL",
    help="A folder or repo id with the weights that the base was quantised from, to measure too.",
)
def main(workspace: Workspace, *, seed: int | None, original: str | None) -> Report:
    """Show how far the golden scores of a workspace's preference models move."""
    torch.set_num_threads(1)
    bench, rows = measure(workspace, seed=seed, original=original)
    low, high = bounds(rows)
    data = {
        "base": bench.base.base.weights_sha256,
        "calibration_std": dict(zip(bench.names, bench.std.tolist(), strict=True)),
        "rows": [
            {
                "name": row.name,
                "kind": row.kind,
                "largest": dict(zip(bench.names, row.largest, strict=True)),
                "mean": dict(zip(bench.names, row.mean, strict=True)),
            }
            for row in rows
        ],
        "same_at_most": low,
        "other_at_least": high,
        "tolerance": GOLDEN_TOLERANCE,
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
    return Report(data, shown(bench, rows))


if __name__ == "__main__":
    main()
