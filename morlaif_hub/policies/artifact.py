"""Policies as artifacts: weights and all that is needed to know what they were trained for."""

from pathlib import Path
from typing import Any

from morlaif_hub.bank.adapters import check_adapter, put_on
from morlaif_hub.bank.bases import find_base
from morlaif_hub.hub.artifact import open_artifact, weights_sha256
from morlaif_hub.hub.client import Resolved, fetch
from morlaif_hub.hub.manifest import MANIFEST_NAME, BaseIdentity, PolicyManifest, manifest_kind
from morlaif_hub.models.embedded import EMBEDDED
from morlaif_hub.models.language_model import (
    MODEL_FILES,
    Dtype,
    LanguageModel,
    check_model_files,
    load_causal_lm,
    load_tokenizer,
)

POLICY_FILES = [*MODEL_FILES, "LICENSE*", "figures/*"]
SLOT = "policy"


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
    # The model below PEFT's wrapper holds the LoRA layers and is an ordinary transformers model.
    return LanguageModel(adapted.get_base_model().eval(), policy.tokenizer, policy.base, name)


def policy_summary(manifest: PolicyManifest) -> dict[str, Any]:
    """Return what training changed on held-out prompts, as `train-policy --json` prints it.

    `others` has the change of every objective without weight; of all, where all have weight.
    """
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
