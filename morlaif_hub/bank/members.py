"""Finding the preference models of a bank, each with its manifest checked.

A bank's artifact names its members. It may come from a stranger, so one from the Hub can name
nothing on this machine, and a local one only what lies in the same workspace.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from morlaif_hub.errors import ArtifactError, OptionError
from morlaif_hub.hub.artifact import open_artifact
from morlaif_hub.hub.client import Resolved, fetch
from morlaif_hub.hub.manifest import (
    MANIFEST_NAME,
    BankManifest,
    ObjectiveRecord,
    PreferenceModelManifest,
    manifest_kind,
    manifest_sha256,
)

PM_FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "LICENSE*", "figures/*"]
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


def find_members(sources: Sources) -> tuple[list[Member], BankManifest | None]:
    """Return the preference models that sources name, and the manifest if they are one bank.

    Args:
        sources: As for `PMBank.from_pretrained`.

    Raises:
        ArtifactError: If an artifact is unsafe or damaged, or a bank's member is not the one that
            it was made of, or is named by what a bank must not name.
        OptionError: If there is no source, or one has no name for its objective.
    """
    if isinstance(sources, Mapping):
        named: list[tuple[str | None, str | Path]] = list(sources.items())
    elif isinstance(sources, str | Path):
        named = [(None, sources)]
    else:
        named = [(None, source) for source in sources]
    if not named:
        raise OptionError("a bank needs at least one preference model, got none")
    members: list[Member] = []
    banks: list[BankManifest] = []
    for name, source in named:
        found = fetch(source, allow_patterns=PM_FILES)
        if name is None and manifest_kind(found.path) == "bank":
            banks.append(_open_bank(found.path))
            members += [_bank_member(found, part) for part in banks[-1].objectives]
        else:
            members.append(_member(name, source, found))
    return members, banks[0] if len(banks) == len(named) == 1 else None


def _open_bank(folder: Path) -> BankManifest:
    manifest = open_artifact(folder, BankManifest)
    objectives = [part.name for part in manifest.objectives]
    weighted = [weight.objective for weight in manifest.weights]
    if sorted(weighted) != sorted(objectives):
        raise ArtifactError(
            f"{folder}: has weights for {', '.join(weighted) or 'nothing'}, but its objectives "
            f"are {', '.join(objectives) or 'none'}; each needs one weight"
        )
    return manifest


def _member(name: str | None, source: str | Path, found: Resolved) -> Member:
    if not (found.path / MANIFEST_NAME).is_file():
        if name is None:
            raise OptionError(
                f"{source} has no {MANIFEST_NAME}, so its objective has no name; pass a mapping "
                f"such as {{'helpfulness': {str(source)!r}}}"
            )
        return Member(name, str(source), found.path, found.repo_id, found.revision, None)
    manifest = open_artifact(found.path, PreferenceModelManifest)
    objective = name or manifest.principle.name
    return Member(objective, str(source), found.path, found.repo_id, found.revision, manifest)


def _bank_member(bank: Resolved, part: ObjectiveRecord) -> Member:
    source = _bank_source(bank, part)
    found = fetch(source, allow_patterns=PM_FILES)
    if not (found.path / MANIFEST_NAME).is_file():
        raise ArtifactError(
            f"{bank.path}: {part.name} ({part.repo_id}) has no {MANIFEST_NAME}, so it cannot be "
            "the preference model that this bank was made of"
        )
    if manifest_sha256(found.path) != part.sha256:
        raise ArtifactError(
            f"{bank.path}: {part.name} ({part.repo_id}) is not the preference model that this "
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
