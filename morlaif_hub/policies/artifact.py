"""Policies as artifacts: weights and all that is needed to know what they were trained for."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from morlaif_hub.bank.adapters import check_adapter, put_on
from morlaif_hub.bank.bases import find_base
from morlaif_hub.errors import OptionError
from morlaif_hub.hub.artifact import cache_folder, open_artifact, seal, stage, weights_sha256
from morlaif_hub.hub.client import Resolved, fetch
from morlaif_hub.hub.manifest import (
    MANIFEST_NAME,
    BaseIdentity,
    BaseManifest,
    PolicyManifest,
    manifest_kind,
    manifest_sha256,
)
from morlaif_hub.models.embedded import EMBEDDED
from morlaif_hub.models.language_model import (
    MODEL_FILES,
    Dtype,
    LanguageModel,
    ModelFolder,
    check_model_files,
    load_causal_lm,
    load_tokenizer,
    model_folder,
)
from morlaif_hub.policies.turns import use_template

POLICY_FILES = [*MODEL_FILES, "LICENSE*", "figures/*"]
SLOT = "policy"
MERGED = "merged-policies"


def load_policy(spec: str | Path | None = None, *, dtype: Dtype = "bfloat16") -> LanguageModel:
    """Return a policy ready to answer: one of ours with its base, or any causal language model.

    Args:
        spec: None or `embedded` for the embedded model, a folder or a repo id.
        dtype: Of the base; a LoRA stays in float32.

    Raises:
        ArtifactError: If a policy's files are not what its manifest says, or its LoRA is not one
            that is safe to load.
        BaseMismatchError: If its base is not the one that it was trained on, or its LoRA has
            other tensors than the base takes.
        ModelNotFoundError: If there is no such model.
    """
    if spec is None or str(spec) == EMBEDDED:
        return LanguageModel.load(None, dtype=dtype)
    fetched = fetch(spec, allow_patterns=POLICY_FILES)
    folder = fetched.path
    if not (folder / MANIFEST_NAME).is_file() or manifest_kind(folder) != "policy":
        return LanguageModel.load(spec, dtype=dtype)
    manifest = open_artifact(folder, PolicyManifest, where=fetched.label)
    if manifest.form == "full":
        return _load_full(fetched, str(spec), dtype)
    return _load_lora(folder, manifest, str(spec), dtype)


def policy_folder(spec: str | Path | None = None) -> ModelFolder:
    """Return the folder of a whole model, to be trained on: as `model_folder`, or one of a policy.

    The LoRA of a policy is merged into its base, once, and the result is kept in the cache: a
    policy that is trained on it has those weights as its base.

    Args:
        spec: As for `load_policy`.

    Raises:
        ArtifactError, BaseMismatchError, ModelNotFoundError: As `load_policy`.
        WorkspaceError: If the cache cannot be written.
    """
    if spec is None or str(spec) == EMBEDDED:
        return model_folder(spec)
    fetched = fetch(spec, allow_patterns=POLICY_FILES)
    folder = fetched.path
    if not (folder / MANIFEST_NAME).is_file() or manifest_kind(folder) != "policy":
        return model_folder(spec)
    manifest = open_artifact(folder, PolicyManifest, where=fetched.label)
    if manifest.form == "full":
        return model_folder(spec)
    merged = cache_folder() / MERGED / manifest_sha256(folder)[:16]
    if not (merged / MANIFEST_NAME).is_file():
        _merge(folder, manifest, merged, name=str(spec))
    return replace(model_folder(merged), name=str(spec))


def _merge(folder: Path, manifest: PolicyManifest, merged: Path, *, name: str) -> None:
    files = check_adapter(folder, name, task="CAUSAL_LM")
    base = find_base(manifest.base, name)
    # In float32, since the differences are small; in what the base has, it would be rounded twice.
    adapted = put_on(load_causal_lm(base.path, dtype="float32"), SLOT, files, autocast=True)
    tokenizer = _tokenizer(base.path, manifest)
    with stage(merged) as staging:
        adapted.merge_and_unload().save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        identity = BaseIdentity(
            repo_id=None,
            revision=None,
            weights_sha256=weights_sha256(staging),
            source="local",
        )
        whole = BaseManifest(
            license=manifest.license,
            base=identity,
            made_from=f"the policy {manifest.name} ({manifest.algorithm}), its LoRA merged into "
            f"the weights {manifest.base.weights_sha256[:12]}",
            versions={n: version(n) for n in ("torch", "transformers", "peft")},
        )
        seal(staging, whole)


def _tokenizer(folder: Path, manifest: PolicyManifest) -> Any:
    """Return a policy's tokenizer: its base's, with the template that it learnt dialogues in."""
    tokenizer = load_tokenizer(folder)
    if manifest.sft is not None:
        use_template(tokenizer, manifest.sft.template)
    return tokenizer


def _load_full(fetched: Resolved, name: str, dtype: Dtype) -> LanguageModel:
    folder = fetched.path
    check_model_files(folder, fetched.label)
    # Its own weights, not those of the base in its manifest, are what this policy is.
    identity = BaseIdentity(
        repo_id=fetched.repo_id,
        revision=fetched.revision,
        weights_sha256=weights_sha256(folder),
        source="hub" if fetched.repo_id else "local",
    )
    model = load_causal_lm(folder, dtype=dtype)
    return LanguageModel(model, load_tokenizer(folder), identity, name)


def _load_lora(folder: Path, manifest: PolicyManifest, name: str, dtype: Dtype) -> LanguageModel:
    files = check_adapter(folder, name, task="CAUSAL_LM")
    base = find_base(manifest.base, name)
    policy = LanguageModel.load(None if base.name == EMBEDDED else base.path, dtype=dtype)
    adapted = put_on(policy.model, SLOT, files, autocast=True)
    tokenizer = _tokenizer(base.path, manifest)
    # The model below PEFT's wrapper holds the LoRA layers and is an ordinary transformers model.
    return LanguageModel(adapted.get_base_model().eval(), tokenizer, policy.base, name)


def policy_summary(manifest: PolicyManifest) -> dict[str, Any]:
    """Return what training changed on held-out prompts, as `train-policy --json` prints it.

    `others` has the change of every objective without weight; of all, where all have weight.

    Raises:
        OptionError: If the policy was trained on dialogues, and has no rewards.
    """
    if manifest.delta_interval is None:
        raise OptionError(f"the policy {manifest.name!r} was trained for no reward")
    before = manifest.curve[0]
    after = next(point for point in manifest.curve if point.step == manifest.steps)
    unweighted = [w.objective for w in manifest.weights if w.value == 0]
    watched = unweighted or list(before.objectives)
    return {
        "reward_before": before.reward,
        "reward_after": after.reward,
        "delta_interval": list(manifest.delta_interval),
        "others": {name: after.objectives[name] - before.objectives[name] for name in watched},
        "kl": manifest.kl,
        "words_before": before.words,
        "words_after": after.words,
    }
