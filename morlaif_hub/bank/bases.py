"""Finding the base that an adapter or a probe belongs on, by the hash of its weights.

A copy that is on this machine stands in for a repository: what counts is that the weights are the
same.
"""

from pathlib import Path

from morlaif_hub.bank.adapter_config import ADAPTER_CONFIG
from morlaif_hub.bank.adapters import check_adapter, check_base, describe_base
from morlaif_hub.bank.members import Member
from morlaif_hub.errors import ArtifactError, BaseMismatchError, HubError, ModelNotFoundError
from morlaif_hub.hub.client import is_local
from morlaif_hub.hub.manifest import MANIFEST_NAME, BaseIdentity
from morlaif_hub.hub.remote_files import refuse_damaged
from morlaif_hub.models.embedded import embedded_at_hand
from morlaif_hub.models.language_model import ModelFolder, known_base, model_folder


def base_of(member: Member, stand_in: str | Path | None) -> ModelFolder | None:
    """Return the base of an adapter or a probe, its weights compared; None for a full model."""
    manifest = member.manifest
    if manifest is None:
        return _plain_base(member, stand_in)
    if manifest.form == "full":
        return None
    if stand_in is not None:
        found = model_folder(stand_in)
        check_base(manifest.base, found.base, member.source, name=found.name)
        return found
    return find_base(manifest.base, member.source)


def find_base(declared: BaseIdentity, where: str) -> ModelFolder:
    """Return the base with the declared weights, from this machine if it is there.

    A model that was used here before and the embedded model stand in without a download; else the
    declared repo is fetched. Where one is declared, the embedded model is not made ready in vain.

    Raises:
        ModelNotFoundError: If the declared base has no repo and is not on this machine.
        BaseMismatchError: If what was found has other weights.
    """
    if known := known_base(declared.weights_sha256):
        return known
    local_only = declared.repo_id is None and declared.source.startswith("gguf:")
    if local_only or embedded_at_hand(declared.source):
        embedded = model_folder(None)
        if embedded.base.weights_sha256 == declared.weights_sha256:
            return embedded
    if declared.repo_id is not None and is_local(declared.repo_id):
        raise ArtifactError(
            f"{where}: {MANIFEST_NAME} names its base by a path, {declared.repo_id!r}, which means "
            "nothing on another machine; pass base="
        )
    if declared.repo_id is None:
        raise ModelNotFoundError(
            f"{where}: its base (weights {declared.weights_sha256[:12]}, source "
            f"{declared.source}) has no repo id and is not on this machine; pass base="
        )
    pinned = declared.repo_id + (f"@{declared.revision}" if declared.revision else "")
    try:
        found = model_folder(pinned)
    except (ArtifactError, HubError, ModelNotFoundError) as error:
        raise type(error)(
            f"{where}: its base {describe_base(declared)} is not to be had: {error}; or pass "
            "base= with a folder that holds the same weights"
        ) from error
    if found.base.weights_sha256 != declared.weights_sha256:
        refuse_damaged(found.path, f"{where}: its base {declared.repo_id}")
    check_base(declared, found.base, where)
    return found


def _plain_base(member: Member, stand_in: str | Path | None) -> ModelFolder | None:
    if not (member.path / ADAPTER_CONFIG).is_file():
        return None
    if stand_in is not None:
        return model_folder(stand_in)
    config = check_adapter(member.path, member.source).config
    name = config.get("base_model_name_or_path")
    if not name:
        raise BaseMismatchError(f"{member.source}: {ADAPTER_CONFIG} names no base; pass base=")
    if member.repo_id is not None and is_local(name):
        raise BaseMismatchError(
            f"{member.source}: {ADAPTER_CONFIG} names its base by a path, {name!r}, which means "
            "nothing on another machine; pass base="
        )
    revision = config.get("revision")
    try:
        found = model_folder(f"{name}@{revision}" if revision else name)
    except (ArtifactError, HubError, ModelNotFoundError) as error:
        raise type(error)(f"{member.source}: its base is not to be had: {error}") from error
    refuse_damaged(found.path, f"{member.source}: its base {name}")
    return found
