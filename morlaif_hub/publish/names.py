"""What published artifacts are called, unless their owner says otherwise."""

import re

from morlaif_hub.errors import OptionError
from morlaif_hub.hub.client import is_repo_id
from morlaif_hub.hub.manifest import (
    BankManifest,
    BaseIdentity,
    BaseManifest,
    FeedbackManifest,
    Manifest,
    PolicyManifest,
    PreferenceModelManifest,
)
from morlaif_hub.models.embedded import GGUF_SHA256

ANYBODY = "<user>"
"""Stands for the account in a dry run without a token."""
BASE_PREFIX = "morlaif-base-"
EMBEDDED_NAME = "smollm2"

_LONGEST_PART = 36  # characters; a repository's name may have 96
_DATA_ENDINGS = re.compile(r"\.(jsonl|json|parquet|txt)(\.gz)?$")


def target_repository(repo_id: str | None, manifest: Manifest, owner: str) -> str:
    """Return the repository to publish as: the given one, or the default one.

    Args:
        repo_id: `user/name`, or a name in the owner's account; None for the default.
        manifest: Of what is published.
        owner: The account.

    Raises:
        OptionError: If `repo_id` is no repository.
    """
    if repo_id is None:
        return default_repo_id(manifest, owner)
    whole = repo_id if "/" in repo_id else f"{owner}/{repo_id}"
    if "@" in repo_id or not is_repo_id(whole.replace(ANYBODY, "user")):
        raise OptionError(
            f"--repo-id {repo_id!r} is no repository to publish as; accepted: user/name, or a name "
            "in your account, of letters, digits, '-', '_' and '.', without a revision"
        )
    return whole


def default_repo_id(manifest: Manifest, owner: str) -> str:
    """Return the repository that an artifact is published as: `<owner>/morlaif-pm-...` and so on.

    Example:
        >>> from morlaif_hub.hub.manifest import BaseIdentity
        >>> base_name(BaseIdentity(repo_id="ann/Tiny-LM", revision=None, weights_sha256="a" * 64,
        ...     source="hub"))
        'tiny-lm'
    """
    match manifest:
        case BaseManifest():
            name = f"{BASE_PREFIX}{base_name(manifest.base)}"
        case PreferenceModelManifest():
            name = f"morlaif-pm-{_part(manifest.principle.name)}-{base_name(manifest.base)}"
        case FeedbackManifest():
            source = _DATA_ENDINGS.sub("", manifest.source.name.rpartition("/")[2])
            name = f"morlaif-feedback-{_part(manifest.principle.name)}-{_part(source)}"
        case BankManifest():
            name = f"morlaif-bank-{_bank_name(manifest)}"
        case PolicyManifest():
            name = f"morlaif-policy-{_part(manifest.name)}"
    return f"{owner}/{name}"


def subject(manifest: Manifest) -> str:
    """Return what an artifact is about: what a repository may get a new version of."""
    match manifest:
        case BaseManifest():
            return f"weights {manifest.base.weights_sha256[:12]}"
        case PreferenceModelManifest() | FeedbackManifest():
            return manifest.principle.name
        case BankManifest() | PolicyManifest():
            return manifest.name


def base_name(base: BaseIdentity) -> str:
    """Return how the names of what is made on a base end."""
    if base.source == f"gguf:{GGUF_SHA256}":
        return EMBEDDED_NAME
    if base.repo_id is not None:
        return _part(base.repo_id.rpartition("/")[2]).removeprefix(BASE_PREFIX)
    return base.weights_sha256[:8]


def _bank_name(manifest: BankManifest) -> str:
    """Return a bank's name; one without a name of its own is called by its objectives."""
    if manifest.name != "bank":
        return _part(manifest.name)
    names = [part.name for part in manifest.objectives]
    joined = "-".join(names)
    return joined if len(joined) <= _LONGEST_PART else f"{len(names)}-principles"


def _part(text: str) -> str:
    """Return text as a part of a repository's name, which has no `--`, `..` or odd characters."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return plain[:_LONGEST_PART].strip("-") or "unnamed"
