"""Cards: the README of an artifact, rendered from its manifest alone.

A manifest is text from a stranger, so whatever a template prints is escaped for HTML and Markdown
unless a filter of this module made it. A field that a template names and the context lacks, or
that is null where a value is printed, is an error: a card never has silent gaps.
"""

import html
import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from morlaif_hub.hub.manifest import (
    BankManifest,
    BaseManifest,
    FeedbackManifest,
    Manifest,
    PolicyManifest,
    PreferenceModelManifest,
    to_plain,
)

HUB = "https://huggingface.co"

_SHORT = 12  # characters of a hash or commit that a card shows
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_PLAIN_CODE = re.compile(r"[\w./@:+=, -]*[\w./@:+=,-]", re.ASCII)
_INLINE_MARKUP = re.compile(r"([\\`*_\[\]|~$])")
_BLOCK_MARKUP = re.compile(r"^([#+=-]|\d+[.)](?=\s|$))")
_BLANK_LINES = re.compile(r"\n{3,}")

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


def render_card(manifest: Manifest, *, figures: Sequence[str]) -> str:
    """Return the card of an artifact: YAML front matter, then Markdown.

    Args:
        manifest: Of any kind.
        figures: Names of the images in the artifact's `figures/` folder, in order.

    Raises:
        jinja2.UndefinedError: If the template names a field that the manifest does not have.
    """
    return render_context(manifest.kind, card_context(manifest, figures=figures))


def card_context(manifest: Manifest, *, figures: Sequence[str]) -> dict[str, Any]:
    """Return what a card is rendered from: the manifest's plain fields and what follows them."""
    context = to_plain(manifest)
    for name in ("files", "kind", "schema_version"):
        del context[name]
    header = yaml.safe_dump(
        front_matter(manifest), sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return {**context, "figures": list(figures), "front_matter": Markup(header)}


def render_context(kind: str, context: dict[str, Any]) -> str:
    """Return the card of that kind of artifact for a context made by `card_context`."""
    card = _environment().get_template(f"{kind}.md.jinja").render(context)
    return _BLANK_LINES.sub("\n\n", card)


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
            return {**fields, **_bank_fields(manifest)}
        case PolicyManifest():
            return {**fields, **_policy_fields(manifest)}
        case BaseManifest():
            library = {"library_name": "transformers", "pipeline_tag": "text-generation"}
            return {**fields, **library, "tags": ["morlaif", "morlaif-base"]}


def escape_markdown(text: str) -> Markup:
    r"""Return a stranger's text as one line of Markdown that shows exactly that text.

    Example:
        >>> print(escape_markdown("<b> *is* | not"))
        &lt;b&gt; \*is\* \| not
    """
    line = html.escape(" ".join(text.split()), quote=False)
    line = _INLINE_MARKUP.sub(r"\\\1", line)
    return Markup(_BLOCK_MARKUP.sub(lambda found: _escape_last(found[1]), line))


def _preference_model_fields(manifest: PreferenceModelManifest) -> dict[str, Any]:
    fields: dict[str, Any] = {"pipeline_tag": "text-classification"}
    if manifest.form != "probe":
        fields["library_name"] = "peft" if manifest.form == "lora" else "transformers"
    fields |= _base_fields(manifest.base.repo_id, manifest.form)
    if manifest.dataset.repo_id is not None:
        fields["datasets"] = [_one_line(manifest.dataset.repo_id)]
    fields["tags"] = ["morlaif", "morlaif-pm", f"principle:{manifest.principle.name}"]
    results = _results(manifest)
    if results:
        name = f"{manifest.principle.name} preference model"
        fields["model-index"] = [{"name": name, "results": results}]
    return fields


def _feedback_fields(manifest: FeedbackManifest) -> dict[str, Any]:
    tags = ["morlaif", "morlaif-feedback", f"principle:{manifest.principle.name}"]
    fields: dict[str, Any] = {"tags": tags}
    parquet = [e.path for e in manifest.files if e.path.endswith(".parquet")]
    splits: list[dict[str, Any]] = []
    for split in ("train", "test"):
        paths = [path for path in parquet if path.rpartition("/")[2].startswith(split)]
        if paths:
            splits.append({"split": split, "path": paths})
    if splits:
        fields["configs"] = [{"config_name": "default", "data_files": splits}]
    return fields


def _bank_fields(manifest: BankManifest) -> dict[str, Any]:
    principles = [f"principle:{_one_line(o.name)}" for o in manifest.objectives]
    return {
        "pipeline_tag": "text-classification",
        "tags": ["morlaif", "morlaif-bank", *principles],
    }


def _policy_fields(manifest: PolicyManifest) -> dict[str, Any]:
    principles = [f"principle:{_one_line(o.name)}" for o in manifest.objectives]
    return {
        "library_name": "peft" if manifest.form == "lora" else "transformers",
        "pipeline_tag": "text-generation",
        **_base_fields(manifest.base.repo_id, manifest.form),
        "tags": ["morlaif", "morlaif-policy", *principles],
    }


def _base_fields(repo_id: str | None, form: str) -> dict[str, Any]:
    if repo_id is None:
        return {}
    relation = "finetune" if form == "full" else "adapter"
    return {"base_model": _one_line(repo_id), "base_model_relation": relation}


def _results(manifest: PreferenceModelManifest) -> list[dict[str, Any]]:
    """Return the Hub's `model-index` entries: one for each split that was held out."""
    dataset = manifest.dataset
    repo_id = None if dataset.repo_id is None else _one_line(dataset.repo_id)
    results: list[dict[str, Any]] = []
    for split in ("validation", "test"):
        metrics = [
            {
                "type": _one_line(evaluation.metric),
                "value": evaluation.value,
                "name": f"{_one_line(evaluation.metric)} (95 % interval "
                f"{evaluation.interval[0]:.3f} to {evaluation.interval[1]:.3f}, "
                f"n = {evaluation.n})",
            }
            for evaluation in manifest.evaluations
            if evaluation.split == split
        ]
        if metrics:
            task = {"type": "text-classification", "name": "pairwise preference"}
            source = {"type": repo_id or "unknown", "name": repo_id or "a set not on the Hub"}
            if dataset.revision is not None:
                source["revision"] = _one_line(dataset.revision)
            source["split"] = split
            results.append({"task": task, "dataset": source, "metrics": metrics})
    return results


def _one_line(text: str) -> str:
    return " ".join(text.split())


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("morlaif_hub.hub"),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=_printed,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        bounds=_bounds,
        caption=_caption,
        code=_code,
        literal=_literal,
        number=_number,
        percent=lambda share: Markup(f"{100 * float(share):.0f} %"),
        setting=lambda value: _code(value if isinstance(value, str) else _literal(value)),
        short=lambda sha256: _code(str(sha256)[:_SHORT]),
        url_path=lambda path: Markup(quote(str(path))),
    )
    environment.globals.update(model_link=_model_link, dataset_link=_dataset_link)
    return environment


def _printed(value: object) -> Markup:
    """Return what an expression of a template prints."""
    if isinstance(value, Markup):
        return value
    if value is None or isinstance(value, bool | list | dict):
        raise TypeError(f"a card cannot print {value!r}; the template must say it in words")
    if isinstance(value, int | float):
        return Markup(f"{value:g}" if isinstance(value, float) else f"{value}")
    return escape_markdown(str(value))


def _escape_last(text: str) -> str:
    return f"{text[:-1]}\\{text[-1]}"


def _number(value: float, digits: int = 3, sign: str = "-") -> Markup:
    return Markup(f"{float(value):{sign}.{digits}f}")


def _bounds(interval: Sequence[float]) -> Markup:
    return Markup(f"{float(interval[0]):.3f} to {float(interval[1]):.3f}")


def _caption(figure: str) -> str:
    return figure.rpartition("/")[2].rpartition(".")[0].replace("_", " ")


def _code(text: object) -> Markup:
    text = str(text)
    if _PLAIN_CODE.fullmatch(text):
        return Markup(f"`{text}`")
    return Markup(f"<code>{escape_markdown(text)}</code>")


def _literal(value: object) -> Markup:
    # JSON is Python too for the strings and numbers that the templates' code blocks hold, and it
    # keeps line breaks escaped, so that no value can end a code block.
    return Markup(json.dumps(value, ensure_ascii=False, default=str))


def _model_link(repo_id: str, revision: str | None) -> Markup:
    return _link(repo_id, revision, f"{HUB}/{repo_id}")


def _dataset_link(repo_id: str, revision: str | None) -> Markup:
    return _link(repo_id, revision, f"{HUB}/datasets/{repo_id}")


def _link(repo_id: str, revision: str | None, address: str) -> Markup:
    if not _REPO_ID.fullmatch(repo_id):
        return _code(repo_id)
    if revision is None:
        return Markup(f"[{escape_markdown(repo_id)}]({address})")
    tree = f"{address}/tree/{quote(str(revision), safe='')}"
    return Markup(f"[{escape_markdown(repo_id)}]({tree}) at {_code(revision[:_SHORT])}")
