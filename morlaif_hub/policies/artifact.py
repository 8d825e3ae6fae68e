"""Policies as artifacts: a LoRA and all that is needed to know what it was trained for."""

from pathlib import Path
from typing import Any

from peft import PeftModel

from morlaif_hub.bank.bank import find_base
from morlaif_hub.hub.artifact import open_artifact
from morlaif_hub.hub.client import fetch
from morlaif_hub.hub.manifest import MANIFEST_NAME, PolicyManifest, manifest_kind
from morlaif_hub.models.embedded import EMBEDDED
from morlaif_hub.models.language_model import Dtype, LanguageModel

POLICY_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt"]


def load_policy(spec: str | Path | None = None, *, dtype: Dtype = "bfloat16") -> LanguageModel:
    """Return a policy ready to answer: one of ours with its base, or any causal language model.

    Args:
        spec: None or `embedded` for the embedded model, a folder or a repo id.
        dtype: Of the base; a LoRA stays in float32.

    Raises:
        ArtifactError: If a policy's files are not what its manifest says.
        BaseMismatchError: If its base is not the one that it was trained on.
        ModelNotFoundError: If there is no such model.
    """
    if spec is None or str(spec) == EMBEDDED:
        return LanguageModel.load(None, dtype=dtype)
    folder = fetch(spec, allow_patterns=POLICY_FILES).path
    if not (folder / MANIFEST_NAME).is_file() or manifest_kind(folder) != "policy":
        return LanguageModel.load(spec, dtype=dtype)
    manifest = open_artifact(folder, PolicyManifest)
    base = find_base(manifest.base, str(spec))
    policy = LanguageModel.load(None if base.name == EMBEDDED else base.path, dtype=dtype)
    adapted = PeftModel.from_pretrained(policy.model, folder)
    # The model below PEFT's wrapper holds the LoRA layers and is an ordinary transformers model.
    return LanguageModel(adapted.get_base_model().eval(), policy.tokenizer, policy.base, str(spec))


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
