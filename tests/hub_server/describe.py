"""Repositories and files as the API tells them: `model_info`, `list_repo_tree` and the like."""

import hashlib
import json
import re
from dataclasses import dataclass

from tests.hub_server import cards
from tests.hub_server.state import State
from tests.hub_server.store import Repo
from tests.hub_server.wire import Json, timestamp

# What a listing leaves out unless it is asked for with `full`.
_FULL_ONLY = """
    author baseModels disabled downloadsAllTime gated inference lastModified model-index sha
    siblings spaces transformersInfo usedStorage widgetData
"""


@dataclass(frozen=True)
class Readme:
    """What a repository's files say about it."""

    text: str
    card: Json
    config: Json


def short_id(text: str) -> str:
    """Return 24 hexadecimal digits, as the Hub's database numbers things."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def info(repo: Repo, commit: str, *, blobs: bool = False) -> Json:
    """Return everything about a repository at a commit."""
    files = repo.git.tree(commit).files
    readme = _readme(repo, files)
    own = _model(repo, files, readme) if repo.kind == "model" else _data(readme)
    about = {
        "_id": short_id(f"{repo.kind}/{repo.id}"),
        "id": repo.id,
        "author": repo.owner,
        "sha": commit,
        "createdAt": timestamp(repo.created),
        "lastModified": timestamp(repo.modified),
        "private": repo.private,
        "gated": repo.gated,
        "disabled": repo.disabled,
        "downloads": repo.downloads,
        "downloadsAllTime": repo.downloads,
        "likes": repo.likes,
        "trendingScore": 0,
        "tags": cards.tags(readme.card, files, readme=readme.text, config=readme.config),
        "cardData": readme.card or None,
        "siblings": [_sibling(repo, path, files[path], blobs=blobs) for path in sorted(files)],
        "usedStorage": sum(repo.git.blob(blob).size for blob in files.values()),
    }
    return about | ({"sdk": repo.sdk} if repo.sdk else {}) | own


def expanded(about: Json, properties: list[str]) -> Json:
    """Return only the properties that were asked for, and the id."""
    return {key: about.get(key) for key in dict.fromkeys(["_id", "id", *properties])}


def listed(about: Json, *, full: bool, card: bool, config: bool) -> Json:
    """Return what a listing shows of a repository."""
    hidden = [] if full else _FULL_ONLY.split()
    hidden = [*hidden, *([] if card or full else ["cardData"]), *([] if config else ["config"])]
    return {key: value for key, value in about.items() if key not in hidden}


def _readme(repo: Repo, files: dict[str, str]) -> Readme:
    blob = files.get("README.md")
    text = repo.git.read(blob).decode("utf-8", "replace") if blob else ""
    config = _json(repo, files.get("config.json")) if repo.kind == "model" else {}
    config = {key: config[key] for key in ("architectures", "model_type") if key in config}
    adapter = _json(repo, files.get("adapter_config.json"))
    if adapter:
        keys = ("base_model_name_or_path", "task_type")
        config["peft"] = {key: adapter.get(key) for key in keys}
    return Readme(text, cards.read_card(text), config)


def _json(repo: Repo, blob: str | None) -> Json:
    try:
        value = json.loads(repo.git.read(blob)) if blob else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _model(repo: Repo, files: dict[str, str], readme: Readme) -> Json:
    about: Json = {
        "modelId": repo.id,
        "library_name": cards.library(readme.card, files, readme.config),
        "pipeline_tag": readme.card.get("pipeline_tag"),
    }
    return {key: value for key, value in about.items() if value} | {
        "config": readme.config or None,
        "model-index": readme.card.get("model-index"),
        "spaces": [],
        "baseModels": None,
        "inference": None,
        "transformersInfo": None,
        "widgetData": None,
    }


def _data(readme: Readme) -> Json:
    body = re.sub(r"\A---.*?\n---", "", readme.text, flags=re.DOTALL).strip()
    return {"description": body[:400]}


def _sibling(repo: Repo, path: str, blob: str, *, blobs: bool) -> Json:
    if not blobs:
        return {"rfilename": path}
    found = repo.git.blob(blob)
    large: Json = {"sha256": found.lfs, "size": found.size, "pointerSize": found.stored}
    about: Json = {"rfilename": path, "blobId": blob, "size": found.size}
    return about | ({"lfs": large} if found.lfs else {})


def file_entry(state: State, repo: Repo, *, path: str, blob: str) -> Json:
    """Return a file as a tree lists it."""
    found = repo.git.blob(blob)
    entry: Json = {"type": "file", "oid": blob, "size": found.size, "path": path}
    if found.lfs:
        entry["lfs"] = {"oid": found.lfs, "size": found.size, "pointerSize": found.stored}
        if state.settings.xet and found.lfs in state.store.xet_ids:
            entry["xetHash"] = state.store.xet_ids[found.lfs]
    return entry


def folder_entry(path: str, tree: str) -> Json:
    """Return a folder as a tree lists it."""
    return {"type": "directory", "oid": tree, "size": 0, "path": path}


def with_last_commit(repo: Repo, commit: str, entry: Json) -> Json:
    """Return an entry with the commit that last changed it, as `expand` asks for."""
    last = repo.git.info(commit)
    for older in repo.git.history(commit):
        files, folders = repo.git.tree(older.id)
        if (files | folders).get(entry["path"]) != entry["oid"]:
            break
        last = older
    title = last.message.split("\n")[0]
    made: Json = {"lastCommit": {"id": last.id, "title": title, "date": timestamp(last.time)}}
    if entry["type"] == "file":
        made["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
    return entry | made
