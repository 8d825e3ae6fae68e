"""The part of a card that the Hub reads: licence, tags, base, data and results, as plain fields.

Only what a manifest says is in it. An id that the Hub could not have given is left out, since it
would be a link to nothing, or the reason why a whole push is refused.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from morlaif_hub.hub.manifest import (
    BankManifest,
    BaseManifest,
    Evaluation,
    FeedbackManifest,
    Manifest,
    ObjectiveRecord,
    PolicyManifest,
    PreferenceModelManifest,
)

# With an account, or an old one without, such as `gpt2`.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_JOINERS = "\u200c\u200d"  # which Persian, Hindi and many emoji are written with

# https://huggingface.co/docs/hub/repositories-licenses; the Hub takes no other identifier.
_HUB_LICENSES = """
afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0
cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0
cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
creativeml-openrail-m ecl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 gemma gpl gpl-2.0 gpl-3.0 isc lgpl
lgpl-2.1 lgpl-3.0 llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 mit mpl-2.0 ms-pl ncsa odbl
odc-by ofl-1.1 openrail openrail++ osl-3.0 pddl postgresql unlicense wtfpl zlib
"""

# The Hub's names for how many rows a dataset has, by the first number that is too large.
_SIZES = {
    1_000: "n<1K",
    10_000: "1K<n<10K",
    100_000: "10K<n<100K",
    1_000_000: "100K<n<1M",
    10_000_000: "1M<n<10M",
    100_000_000: "10M<n<100M",
    1_000_000_000: "100M<n<1B",
}


def front_matter(manifest: Manifest) -> dict[str, Any]:
    """Return the fields that the Hub reads from a card: licence, tags, base, data and results."""
    license_id = manifest.license.lower()
    fields: dict[str, Any] = {"license": license_id}
    if license_id not in _HUB_LICENSES.split():
        fields = {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", license_id)}
    match manifest:
        case PreferenceModelManifest():
            return {**fields, **_preference_model_fields(manifest)}
        case FeedbackManifest():
            return {**fields, **_feedback_fields(manifest)}
        case BankManifest():
            # What loads it is no library that the Hub knows, and it was made from no base.
            tags = ["morlaif", "morlaif-bank", *_principle_tags(manifest.objectives)]
            return {**fields, "pipeline_tag": "text-classification", "tags": tags}
        case PolicyManifest():
            return {**fields, **_policy_fields(manifest)}
        case BaseManifest():
            library = {"library_name": "transformers", "pipeline_tag": "text-generation"}
            return {**fields, **library, "tags": ["morlaif", "morlaif-base"]}


def one_line(text: str) -> str:
    r"""Return a stranger's text on one line, without characters that act rather than show.

    Example:
        >>> one_line("red \x1b[31m\n text")
        'red �[31m text'
    """
    return "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in _JOINERS else c
        for c in " ".join(text.split())
    )


def _preference_model_fields(manifest: PreferenceModelManifest) -> dict[str, Any]:
    fields: dict[str, Any] = {"pipeline_tag": "text-classification"}
    if manifest.form != "probe":  # which no library but ours can load
        fields["library_name"] = "peft" if manifest.form == "lora" else "transformers"
    fields |= _base_fields(manifest.base.repo_id, manifest.form)
    if dataset := _hub_id(manifest.dataset.repo_id):
        fields["datasets"] = [dataset]
    fields["tags"] = ["morlaif", "morlaif-pm", f"principle:{manifest.principle.name}"]
    if results := _results(manifest):
        name = _hub_id(manifest.repo_id) or f"{manifest.principle.name} preference model"
        fields["model-index"] = [{"name": name, "results": results}]
    return fields


def _feedback_fields(manifest: FeedbackManifest) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "pretty_name": f"Feedback on {manifest.principle.name}",
        "task_categories": ["text-classification"],
        "task_ids": ["text-scoring"],
        "annotations_creators": ["machine-generated"],
        "size_categories": [_size(manifest.train_pairs + manifest.test_pairs)],
    }
    source = _hub_id(manifest.source.name)
    if source is not None and manifest.source.revision is not None:  # else it is a local name
        fields["source_datasets"] = [source]
    fields["tags"] = ["morlaif", "morlaif-feedback", f"principle:{manifest.principle.name}"]
    parquet = [e.path for e in manifest.files if e.path.endswith(".parquet")]
    splits: list[dict[str, Any]] = []
    for split in ("train", "test"):
        paths = [path for path in parquet if path.rpartition("/")[2].startswith(split)]
        if paths:
            splits.append({"split": split, "path": paths})
    if splits:
        fields["configs"] = [{"config_name": "default", "data_files": splits}]
    return fields


def _policy_fields(manifest: PolicyManifest) -> dict[str, Any]:
    return {
        "library_name": "peft" if manifest.form == "lora" else "transformers",
        "pipeline_tag": "text-generation",
        **_base_fields(manifest.base.repo_id, manifest.form),
        "tags": ["morlaif", "morlaif-policy", *_principle_tags(manifest.objectives)],
    }


def _principle_tags(objectives: Sequence[ObjectiveRecord]) -> list[str]:
    return [f"principle:{one_line(objective.name)}" for objective in objectives]


def _base_fields(repo_id: str | None, form: str) -> dict[str, Any]:
    base = _hub_id(repo_id)
    if base is None:
        return {}
    return {
        "base_model": base,
        "base_model_relation": "finetune" if form == "full" else "adapter",
    }


def _results(manifest: PreferenceModelManifest) -> list[dict[str, Any]]:
    """Return the Hub's `model-index` entries: one for each split that was held out."""
    repo_id, revision = _hub_id(manifest.dataset.repo_id), manifest.dataset.revision
    results: list[dict[str, Any]] = []
    for split in ("validation", "test"):
        metrics = [_metric(e) for e in manifest.evaluations if e.split == split]
        if metrics:
            task = {"type": "text-classification", "name": "pairwise preference"}
            source = {"type": repo_id or "unknown", "name": repo_id or "a set not on the Hub"}
            if repo_id is not None and revision is not None:
                source["revision"] = one_line(revision)
            source["split"] = split
            results.append({"task": task, "dataset": source, "metrics": metrics})
    return results


def _metric(evaluation: Evaluation) -> dict[str, Any]:
    name = one_line(evaluation.metric)
    low, high = evaluation.interval
    return {
        "type": name,
        "value": round(evaluation.value, 4),
        "name": f"{name} (95 % interval {low:.3f} to {high:.3f}, n = {evaluation.n})",
    }


def _size(rows: int) -> str:
    passed = len(list(takewhile(lambda limit: rows >= limit, _SIZES)))
    return [*_SIZES.values(), "n>1B"][passed]


def _hub_id(name: str | None) -> str | None:
    return name if name is not None and _HUB_ID.fullmatch(name) else None
