"""Finding the preference models of a bank, each with its manifest checked.

A bank's artifact names its members. It may come from a stranger, so one from the Hub can name
nothing on this machine, and a local one only what lies in the same workspace.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from morlaif_hub.bank.adapter_config import ADAPTER_CONFIG
from morlaif_hub.bank.probes import PROBE_WEIGHTS
from morlaif_hub.errors import ArtifactError, OptionError
from morlaif_hub.hub.artifact import open_artifact
from morlaif_hub.hub.client import Progress, Resolved, fetch_all, is_local, repository_files
from morlaif_hub.hub.collections import collection_items, collection_slug
from morlaif_hub.hub.manifest import (
    MANIFEST_NAME,
    BankManifest,
    ObjectiveRecord,
    PreferenceModelManifest,
    manifest_kind,
    manifest_sha256,
)
from morlaif_hub.hub.remote_files import refuse_damaged
from morlaif_hub.models.language_model import LARGEST_CONFIG

PM_FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "LICENSE*", "figures/*"]
TELLING_FILES = [MANIFEST_NAME, "config.json", ADAPTER_CONFIG]
Sources = str | Path | Sequence[str | Path] | Mapping[str, str | Path]

_PINNED = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?@[0-9a-f]{40}", re.ASCII)


@dataclass(frozen=True)
class Member:
    """One preference model of a bank, as found on this machine.

    Attributes:
        objective: Its column's name.
        source: What the user called it.
        path: Its folder.
        repo_id: Its repository on the Hub; None for a local folder.
        revision: Its commit there.
        manifest: None for a plain reward model or adapter without one.
    """

    objective: str
    source: str
    path: Path
    repo_id: str | None
    revision: str | None
    manifest: PreferenceModelManifest | None


def find_members(
    sources: Sources, *, progress: Progress | None = None
) -> tuple[list[Member], BankManifest | None]:
    """Return the preference models that sources name, and the manifest if they are one bank.

    Args:
        sources: As for `PMBank.from_pretrained`.
        progress: Told how many repositories are there.

    Raises:
        ArtifactError: If an artifact is unsafe or damaged, or a bank's member is not the one that
            it was made of, or is named by what a bank must not name.
        OptionError: If there is no source, or one has no name for its objective.
    """
    named = _named(sources)
    if not named:
        raise OptionError("a bank needs at least one preference model, got none")
    found = fetch_all([s for _, s in named], allow_patterns=PM_FILES, progress=progress)
    members: list[Member] = []
    banks: list[BankManifest] = []
    for (name, source), folder in zip(named, found, strict=True):
        if name is None and manifest_kind(folder.path) == "bank":
            banks.append(_open_bank(folder))
            members += _bank_members(folder, banks[-1], progress)
        else:
            members.append(_member(name, source, folder))
    return members, banks[0] if len(banks) == len(named) == 1 else None


def _named(sources: Sources) -> list[tuple[str | None, str | Path]]:
    """Return each source with the name of its objective, where one is given."""
    if isinstance(sources, Mapping):
        return list(sources.items())
    given = [sources] if isinstance(sources, str | Path) else sources
    named: list[tuple[str | None, str | Path]] = []
    for source in given:
        # A folder of this machine may be called like a Collection.
        slug = None if is_local(source) else collection_slug(str(source))
        named += [(None, found) for found in (_in_collection(slug) if slug else [source])]
    return named


def _in_collection(slug: str) -> list[str]:
    """Return the bank of a Collection if it has one, else its preference models, at their commits.

    Which they are is told by their manifests. Bases and data sets are there to go with them.
    """
    models = [item.repo_id for item in collection_items(slug) if item.repo_type == "model"]
    found = fetch_all(models, allow_patterns=TELLING_FILES)
    kinds = {folder.label: manifest_kind(folder.path) for folder in found}
    for folder in found:
        if kinds[folder.label] is None and not _is_base(folder.path):
            raise OptionError(
                f"the Collection {slug} has {folder.repo_id}, without a {MANIFEST_NAME}, so its "
                "objective has no name; pass a mapping such as "
                f"{{'helpfulness': {folder.repo_id!r}}}"
            )
    banks = [label for label, kind in kinds.items() if kind == "bank"]
    parts = [label for label, kind in kinds.items() if kind == "preference-model"]
    if not parts and not banks:
        raise OptionError(f"the Collection {slug} has neither a bank nor a preference model")
    return banks if len(banks) == 1 else parts


def _is_base(folder: Path) -> bool:
    """Whether a repository without a manifest is a model that scores nothing by itself."""
    path = folder / "config.json"
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size < LARGEST_CONFIG else ""
        classes = json.loads(text)["architectures"]
        return not any("SequenceClassification" in name for name in classes)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _open_bank(bank: Resolved) -> BankManifest:
    manifest = open_artifact(bank.path, BankManifest, where=bank.label)
    objectives = [part.name for part in manifest.objectives]
    weighted = [weight.objective for weight in manifest.weights]
    if sorted(weighted) != sorted(objectives):
        raise ArtifactError(
            f"{bank.label}: has weights for {', '.join(weighted) or 'nothing'}, but its objectives "
            f"are {', '.join(objectives) or 'none'}; each needs one weight"
        )
    return manifest


def _member(name: str | None, source: str | Path, found: Resolved) -> Member:
    if not (found.path / MANIFEST_NAME).is_file():
        _refuse_bare_probe(source, found)
        if name is None:
            raise OptionError(
                f"{source} has no {MANIFEST_NAME}, so its objective has no name; pass a mapping "
                f"such as {{'helpfulness': {str(source)!r}}}"
            )
        _refuse_pickles(source, found)
        refuse_damaged(found.path, found.label)
        return Member(name, str(source), found.path, found.repo_id, found.revision, None)
    manifest = open_artifact(found.path, PreferenceModelManifest, where=found.label)
    objective = name or manifest.principle.name
    return Member(objective, str(source), found.path, found.repo_id, found.revision, manifest)


def _refuse_bare_probe(source: str | Path, found: Resolved) -> None:
    """Refuse a probe without a manifest: nothing else says what it reads of which base."""
    there = {path.name for path in found.path.iterdir()}
    if PROBE_WEIGHTS in there and not {"config.json", ADAPTER_CONFIG} & there:
        raise ArtifactError(
            f"{source}: {PROBE_WEIGHTS} without a {MANIFEST_NAME}, which says what a probe reads "
            "of which base; ask its owner to publish it as a preference model"
        )


def _refuse_pickles(source: str | Path, found: Resolved) -> None:
    """Say of a plain model without safetensors what it has instead; that was never fetched."""
    files = repository_files(found)
    if any(name.endswith(".safetensors") for name in files):
        return
    pickles = [name for name in files if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    other = f"; {', '.join(pickles)} is a pickle, which may run code, and is never loaded"
    raise ArtifactError(
        f"{source}: no weights in safetensors there{other if pickles else ''}; ask its owner to "
        "save it with safetensors"
    )


def _bank_members(
    bank: Resolved, manifest: BankManifest, progress: Progress | None
) -> list[Member]:
    sources = [_bank_source(bank, part) for part in manifest.objectives]
    if not sources:
        return []
    found = fetch_all(sources, allow_patterns=PM_FILES, progress=progress)
    return [
        _bank_member(bank, part, source, folder)
        for part, source, folder in zip(manifest.objectives, sources, found, strict=True)
    ]


def _bank_member(
    bank: Resolved, part: ObjectiveRecord, source: str | Path, found: Resolved
) -> Member:
    if not (found.path / MANIFEST_NAME).is_file():
        raise ArtifactError(
            f"{bank.label}: {part.name} ({part.repo_id}) has no {MANIFEST_NAME}, so it cannot be "
            "the preference model that this bank was made of"
        )
    if manifest_sha256(found.path) != part.sha256:
        raise ArtifactError(
            f"{bank.label}: {part.name} ({part.repo_id}) is not the preference model that this "
            "bank was made of: its manifest differs"
        )
    return _member(part.name, source, found)


def _bank_source(bank: Resolved, part: ObjectiveRecord) -> str | Path:
    """Return where a bank's member is, refusing what would read elsewhere on this machine."""
    where = f"{bank.repo_id or bank.path}: {part.name}"
    if bank.repo_id is None and part.repo_id.startswith("../"):
        path = (bank.path / part.repo_id).resolve()
        if bank.path.parent not in path.parents:
            raise ArtifactError(
                f"{where}: {part.repo_id!r} lies outside the bank's workspace {bank.path.parent}"
            )
        return path
    pinned = f"{part.repo_id}@{part.revision}"
    if not _PINNED.fullmatch(pinned):
        raise ArtifactError(
            f"{where}: {part.repo_id!r} at revision {part.revision!r} is no repo id with a commit "
            "of 40 hexadecimal digits, by which a bank names its preference models"
        )
    return pinned
