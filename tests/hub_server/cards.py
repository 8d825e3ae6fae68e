"""Cards: the YAML at the head of a README, what the Hub refuses in it, and the tags it makes of it.

The Hub's own rules are closed. These are the ones that it shows in public: good enough to see that
a card of ours passes and that its tags arrive, not to foresee every tag that it adds.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from tests.hub_server.wire import Json

_HEAD = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", re.DOTALL)
_REPO_ID = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]+)?|code|multilingual")
_ARXIV = re.compile(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})")

_LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl
    apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1
    ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license
    llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other
"""
LICENSES = frozenset(_LICENSES.split())


def read_card(readme: str) -> Json:
    """Return the YAML of a card as JSON; nothing if it has none that can be read."""
    try:
        data = _metadata(readme)
    except yaml.YAMLError:
        return {}
    return json.loads(json.dumps(data, default=str)) if isinstance(data, dict) else {}


def _metadata(readme: str) -> Any:
    match = _HEAD.match(readme)
    return yaml.safe_load(match[1]) if match else None


def problem(readme: str) -> str | None:
    """Return what the Hub would refuse in a card; None if it would take it."""
    try:
        data = _metadata(readme)
    except yaml.YAMLError as error:
        return f"Invalid YAML: {error}"
    if data is None:
        return None
    if not isinstance(data, dict):
        return "metadata must be a mapping"
    return next(_problems(data), None)


def _problems(data: dict[str, Any]) -> Iterator[str]:
    for key in ("library_name", "pipeline_tag", "license_name", "license_link", "pretty_name"):
        if not isinstance(data.get(key), str | None):
            yield f'"{key}" must be a string'
    for key in ("license", "language", "datasets", "base_model", "tags"):
        yield from _strings(key, data.get(key))
    if set(_listed(data.get("license"))) - LICENSES:
        yield f'"license" must be one of [{", ".join(sorted(LICENSES))}]'
    rules = (
        ("language", _LANGUAGE, "It must be an ISO 639 code, in lower case."),
        ("base_model", _REPO_ID, "Use a model id from https://hf.co/models."),
        ("datasets", _REPO_ID, "Use a dataset id from https://hf.co/datasets."),
    )
    for key, pattern, hint in rules:
        for value in _listed(data.get(key)):
            if not pattern.fullmatch(value):
                yield f'"{key}" with value "{value}" is not valid. {hint}'


def _strings(key: str, value: Any) -> Iterator[str]:
    """Check a field that is a string or a list of strings; `tags` is always a list."""
    if key == "tags" and not isinstance(value, list | None):
        yield '"tags" must be an array'
    for index, item in enumerate(_listed(value)):
        if not isinstance(item, str):
            yield f'"{key}[{index}]" must be a string'


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def library(card: Json, files: Iterable[str], config: Json) -> str | None:
    """Return the library that a model is for."""
    if "adapter_config.json" in files:
        return "peft"
    return card.get("library_name") or ("transformers" if config.get("model_type") else None)


def tags(card: Json, files: Iterable[str], *, readme: str, config: Json) -> list[str]:
    """Return a repository's tags: its author's own, and what card and files say."""
    names = set(files)
    adapter = "adapter_config.json" in names
    found: list[Any] = [library(card, names, config), card.get("library_name")]
    if any(name.endswith(".safetensors") for name in names):
        found.append("safetensors")
    found += [config.get("model_type"), card.get("pipeline_tag")]
    found += _listed(card.get("tags")) + _listed(card.get("language"))
    relation = card.get("base_model_relation") or ("adapter" if adapter else "finetune")
    for base in _listed(card.get("base_model")):
        found += [f"base_model:{base}", f"base_model:{relation}:{base}"]
    for key in ("task_categories", "size_categories", "license"):
        found += [f"{key}:{value}" for value in _listed(card.get(key))]
    found += [f"dataset:{value}" for value in _listed(card.get("datasets"))]
    found += [f"arxiv:{number}" for number in _ARXIV.findall(readme)]
    return list(dict.fromkeys(str(tag) for tag in [*found, "region:us"] if tag))
