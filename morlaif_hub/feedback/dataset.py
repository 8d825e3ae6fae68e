"""Feedback datasets: verdicts as rows that every TRL trainer reads, and back again.

An artifact's folder holds `data/train.parquet` and `data/test.parquet`. Half of a row's columns
follow from the others; when a set is read they are worked out again, since it may be a stranger's.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import parquet

from morlaif_hub.comparisons import Comparison, split_by_prompt
from morlaif_hub.errors import ArtifactError, DataError, JudgeError, MissingColumnError
from morlaif_hub.feedback.bias import bias_figure
from morlaif_hub.feedback.spool import SPLITS, Spool
from morlaif_hub.figures import png
from morlaif_hub.hub.artifact import FIGURES_FOLDER, open_artifact, seal, stage
from morlaif_hub.hub.client import Resolved, fetch
from morlaif_hub.hub.manifest import MANIFEST_NAME, DatasetReference, FeedbackManifest
from morlaif_hub.judges.base import Verdict
from morlaif_hub.sources import Split
from morlaif_hub.statistics import log_odds

if TYPE_CHECKING:
    from datasets import DatasetDict, Features

DATA_FOLDER = "data"
DATASET_FILES = ["morlaif.json", "data/*.parquet", "LICENSE*", "figures/*"]
COLUMNS = (
    "id",
    "prompt",
    "response_a",
    "response_b",
    "probability_a",
    "probability_a_first",
    "probability_a_second",
    "flipped",
    "tie",
    "chosen",
    "rejected",
    "margin",
    "human_choice",
)
ROWS_AT_ONCE = 2_000  # in memory while a set is written; of each row group
_CLOSE = 1e-6  # how far a number may be off what follows from the others


class Labelled(NamedTuple):
    """A comparison and the verdict on it."""

    comparison: Comparison
    verdict: Verdict


class Splits(NamedTuple):
    """Labelled comparisons to train on and held out; no prompt is on both sides."""

    train: list[Labelled]
    test: list[Labelled]


@dataclass(frozen=True)
class FeedbackDataset:
    """The verdicts on one principle, as read from an artifact.

    Attributes:
        manifest: What the set says about itself.
        splits: Its rows.
        reference: Which set it is: the Hub's id and commit if it came from there, and the hash of
            its data.
    """

    manifest: FeedbackManifest
    splits: Splits
    reference: DatasetReference

    @classmethod
    def load(cls, source: str | Path) -> "FeedbackDataset":
        """Read and check an artifact: a local folder, or a Hub id with or without `@revision`.

        Raises:
            ManifestError, ArtifactError: If manifest or files are not as they should be.
            DataError: If the rows are not, or contradict themselves or the manifest.
            HubError: If the Hub does not give it.
        """
        resolved = fetch(source, repo_type="dataset", allow_patterns=DATASET_FILES)
        manifest = open_artifact(resolved.path, FeedbackManifest, where=resolved.label)
        splits = Splits(
            train=_read_split(resolved, manifest, split="train"),
            test=_read_split(resolved, manifest, split="test"),
        )
        _check_splits(splits, manifest, where=str(source))
        reference = DatasetReference(
            repo_id=resolved.repo_id, revision=resolved.revision, sha256=data_sha256(manifest)
        )
        return cls(manifest, splits, reference)

    def to_datasets(self) -> "DatasetDict":
        """Return the splits as `datasets.Dataset`s, ready for TRL's trainers."""
        from datasets import Dataset, DatasetDict  # a second of imports that loading can do without

        datasets = DatasetDict()
        for name, items in self.splits._asdict().items():
            rows = [to_row(item) for item in items]
            columns = {column: [row[column] for row in rows] for column in COLUMNS}
            datasets[name] = Dataset.from_dict(columns, features=features())
        return datasets


def features() -> "Features":
    """Return the columns' types; fixed, since an empty column would be given another."""
    from datasets import Features, Value

    messages = [{"role": Value("string"), "content": Value("string")}]
    types: dict[str, Any] = dict.fromkeys(COLUMNS, Value("string"))
    types |= dict.fromkeys(("prompt", "chosen", "rejected"), messages)
    types |= dict.fromkeys(("flipped", "tie"), Value("bool"))
    probabilities = (name for name in COLUMNS if name.startswith("probability"))
    types |= dict.fromkeys((*probabilities, "margin"), Value("float64"))
    return Features(types)


def to_row(labelled: Labelled) -> dict[str, Any]:
    """Return the row of a verdict. `margin` is in log-odds, >= 0; of a tie, A is `chosen`."""
    comparison, verdict = labelled
    probability_a = verdict.probability_a
    a_is_chosen = probability_a >= 0.5
    sides = (comparison.response_a, comparison.response_b)
    chosen, rejected = sides if a_is_chosen else sides[::-1]
    return {
        "id": comparison.id,
        "prompt": [dict(message) for message in comparison.prompt],
        "response_a": comparison.response_a,
        "response_b": comparison.response_b,
        "probability_a": probability_a,
        "probability_a_first": verdict.probability_a_first,
        "probability_a_second": verdict.probability_a_second,
        "flipped": verdict.flipped,
        "tie": probability_a == 0.5,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "margin": abs(float(log_odds(probability_a))),
        "human_choice": comparison.human_choice,
    }


def from_row(row: Mapping[str, Any], *, split: Split | None = None) -> Labelled:
    """Return the verdict of a row.

    Raises:
        MissingColumnError: If a column is not there.
        DataError: If a value is not what it should be, or contradicts the others.
    """
    missing = [name for name in COLUMNS if name not in row]
    if missing:
        raise MissingColumnError(f"no column {missing[0]!r}; needed: {', '.join(COLUMNS)}")
    comparison = Comparison(
        row["prompt"], row["response_a"], row["response_b"], row["human_choice"], split
    )
    try:
        verdict = Verdict(row["probability_a_first"], row["probability_a_second"])
    except JudgeError as error:
        raise DataError(str(error)) from error
    labelled = Labelled(comparison, verdict)
    for name, expected in to_row(labelled).items():
        if not _same(row[name], expected):
            raise DataError(
                f"{name} is {row[name]!r}, but {expected!r} follows from the rest of the row"
            )
    return labelled


def held_out_prompts(
    comparisons: Sequence[Comparison], *, test_fraction: float, seed: int
) -> frozenset[str]:
    """Return the ids of the prompts that go to the test split.

    The source's own split counts if it puts every comparison on a side, and some on each; a prompt
    that it has on both sides is trained on. Otherwise prompts are drawn.

    Args:
        comparisons: All that are to be split.
        test_fraction: Share of the prompts to draw.
        seed: Another seed draws others.
    """
    by_side: dict[Split | None, set[str]] = {"train": set(), "test": set(), None: set()}
    for comparison in comparisons:
        by_side[comparison.split].add(comparison.prompt_id)
    if by_side["train"] and by_side["test"] and not by_side[None]:
        return frozenset(by_side["test"] - by_side["train"])
    everything = [comparison.prompt_id for comparison in comparisons]
    return split_by_prompt(everything, test_fraction=test_fraction, seed=seed)


def held_out_rows(spool: Spool, *, test_fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return which comparisons go to the test split, by the rule of `held_out_prompts`.

    Args:
        spool: All that are to be split.
        test_fraction: Share of the prompts to draw.
        seed: Another seed draws others.

    Returns:
        Shape (n,), in the order of the spool.
    """
    ids, prompts = np.unique(spool.prompt_ids, return_inverse=True)
    in_train, in_test, unknown = (
        np.isin(np.arange(len(ids)), prompts[spool.splits == SPLITS[side]])
        for side in ("train", "test", None)
    )
    if in_train.any() and in_test.any() and not unknown.any():
        return np.asarray(~in_train[prompts])
    drawn = split_by_prompt(
        (str(identifier, "ascii") for identifier in ids), test_fraction=test_fraction, seed=seed
    )
    held_out = np.fromiter((str(i, "ascii") in drawn for i in ids), dtype=bool, count=len(ids))
    return np.asarray(held_out[prompts])


def write_feedback(
    folder: Path, rows: Iterable[tuple[Split, Labelled]], *, manifest: FeedbackManifest
) -> FeedbackManifest:
    """Write a feedback dataset's artifact: data, figure, manifest and card, all or nothing.

    Args:
        folder: Replaced if it exists.
        rows: Each with its side; written in portions as they come.
        manifest: Without its files.

    Returns:
        The manifest with its files.

    Raises:
        WorkspaceError: If the folder cannot be written.
    """
    with stage(folder) as staging:
        _write_rows(staging / DATA_FOLDER, rows)
        (staging / FIGURES_FOLDER).mkdir()
        figure = png(bias_figure(manifest.bias))
        (staging / FIGURES_FOLDER / "judge_bias.png").write_bytes(figure)
        return seal(staging, manifest)


def _write_rows(folder: Path, rows: Iterable[tuple[Split, Labelled]]) -> None:
    folder.mkdir()
    schema = features().arrow_schema
    waiting: dict[Split, list[dict[str, Any]]] = {"train": [], "test": []}
    with ExitStack() as files:
        writers = {
            split: files.enter_context(parquet.ParquetWriter(folder / f"{split}.parquet", schema))
            for split in waiting
        }

        def write(split: Split) -> None:
            writers[split].write_table(pyarrow.Table.from_pylist(waiting[split], schema=schema))
            waiting[split].clear()

        for split, labelled in rows:
            waiting[split].append(to_row(labelled))
            if len(waiting[split]) == ROWS_AT_ONCE:
                write(split)
        for split, left in waiting.items():
            if left:
                write(split)


def data_sha256(manifest: FeedbackManifest) -> str:
    """Return the hash of a set's data: over the hashes of its parquet files, in order."""
    data = [file for file in manifest.files if file.path.startswith(f"{DATA_FOLDER}/")]
    return sha256("\n".join(f"{file.path} {file.sha256}" for file in data).encode()).hexdigest()


def _read_split(found: Resolved, manifest: FeedbackManifest, *, split: Split) -> list[Labelled]:
    path = f"{DATA_FOLDER}/{split}.parquet"
    if path not in {file.path for file in manifest.files}:  # and so its hash was checked
        raise ArtifactError(f"{found.label}: {MANIFEST_NAME} lists no {path}")
    try:
        rows = parquet.read_table(found.path / path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{found.label}: {path}: not a readable parquet file: {error}") from error
    labelled = []
    for i, row in enumerate(rows, start=1):
        try:
            labelled.append(from_row(row, split=split))
        except DataError as error:
            raise type(error)(f"{found.label}: {path}: row {i}: {error}") from error
    return labelled


def _check_splits(splits: Splits, manifest: FeedbackManifest, *, where: str) -> None:
    prompts = [{item.comparison.prompt_id for item in items} for items in splits]
    found = (*map(len, splits), *map(len, prompts))
    said = (
        manifest.train_pairs,
        manifest.test_pairs,
        manifest.train_prompts,
        manifest.test_prompts,
    )
    if found != said:
        raise DataError(
            f"{where}: train pairs, test pairs, train prompts and test prompts are {found}, but "
            f"the manifest says {said}"
        )
    if prompts[0] & prompts[1]:
        raise DataError(f"{where}: a prompt is in both splits, so the test split tests nothing")
    ids = [item.comparison.id for items in splits for item in items]
    if len(set(ids)) < len(ids):
        raise DataError(f"{where}: a comparison is there twice")


def _same(found: object, expected: object) -> bool:
    if isinstance(expected, float):
        return isinstance(found, float) and abs(found - expected) <= _CLOSE
    return type(found) is type(expected) and found == expected
