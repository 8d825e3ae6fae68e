"""How much memory preference models take, each number from a process of its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from benchmarks.adapters import bank_engine, base_classifier, merged, save_random_adapters
from benchmarks.children import in_child, peak_megabytes
from benchmarks.floors import Texts
from morlaif_hub.bank.adapters import check_adapter

Kind = Literal["imports", "base", "bank", "merged"]
BANKS = (1, 12, 48)
MERGED = 12
SHORT_TEXTS = 8
SHORT_TOKENS = 128


@dataclass(frozen=True)
class Peak:
    """The most memory that something had.

    Attributes:
        name: What it is.
        megabytes: Resident at the peak, which may be while it was loaded; None if the process
            failed, as it does where there is not so much.
    """

    name: str
    megabytes: float | None


def peaks(base: Path, texts: Texts, *, layers: str, seed: int, scratch: Path) -> Iterator[Peak]:
    """Yield the peak of a bank of 1, 12 and 48, and of what there is instead.

    Each process loads what it is about, and scores the same few short texts once.

    Args:
        base: The folder of the base.
        texts: Of which the beginnings of the first ones are scored.
        layers: That are adapted, as `GradientSettings` takes them.
        seed: Of the adapters' weights.
        scratch: Where they are written.
    """
    folder = scratch / "memory"
    save_random_adapters(folder, base, count=max(BANKS), layers=layers, seed=seed)
    short = [list(text[:SHORT_TOKENS]) for text in texts[:SHORT_TEXTS]]
    asked: list[tuple[str, Kind, int]] = [
        ("nothing but the imports", "imports", 0),
        ("the base alone", "base", 0),
        *((f"a bank of {count}", "bank", count) for count in BANKS),
        (f"{MERGED} merged models", "merged", MERGED),
    ]
    for name, kind, count in asked:
        given = {
            "base": str(base),
            "adapters": str(folder),
            "kind": kind,
            "count": count,
            "texts": short,
            "threads": torch.get_num_threads(),
        }
        try:
            megabytes = in_child("benchmarks.memory:score", given, scratch=scratch)
        except RuntimeError:
            megabytes = None
        yield Peak(name, megabytes)


@torch.inference_mode()
def score(
    *, base: str, adapters: str, kind: Kind, count: int, texts: list[list[int]], threads: int
) -> float:
    """Load something, score texts with it, and return the peak of this process's memory in MB.

    Args:
        base: The folder of the base.
        adapters: The folder of the adapters' folders.
        kind: What is loaded.
        count: How many adapters or models.
        texts: Token ids.
        threads: Of torch.
    """
    torch.set_num_threads(threads)
    folders = sorted(Path(adapters).iterdir())[:count]
    files = {folder.name: check_adapter(folder, folder.name) for folder in folders}
    if kind == "bank":
        bank_engine(Path(base), files).score(texts)
    elif kind != "imports":
        models = (
            [merged(Path(base), adapter) for adapter in files.values()]
            if kind == "merged"
            else [base_classifier(Path(base), dtype=torch.float32)]
        )
        for model in models:
            for text in texts:
                model(input_ids=torch.tensor([text]), use_cache=False)
    return peak_megabytes()
