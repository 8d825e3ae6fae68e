"""Reading about repositories: one, many, a tree, some paths."""

import json
from urllib.parse import parse_qs

from tests.hub_server import describe
from tests.hub_server.access import commit_of, find
from tests.hub_server.routes import route
from tests.hub_server.state import State
from tests.hub_server.wire import Answer, Json, Refusal, Request, json_answer, page

SORTED_BY = ("lastModified", "createdAt", "downloads", "likes", "trendingScore")
EXPANDED_PAGE = 50


@route("GET", "/api/{kinds}/{repo}/revision/{rev}")
@route("GET", "/api/{kinds}/{repo}")
def info(state: State, request: Request, *, kind: str, repo_id: str, rev: str = "main") -> Answer:
    """Describe one repository at a revision."""
    repo, _ = find(state, request, kind=kind, repo_id=repo_id)
    about = describe.info(repo, commit_of(repo, rev), blobs=request.flag("blobs"))
    properties = request.values("expand")
    return json_answer(describe.expanded(about, properties) if properties else about)


@route("GET", "/api/{kinds}")
def listing(state: State, request: Request, *, kind: str) -> Answer:
    """List the repositories that fit all filters, the first ones of the given order first."""
    key = request.value("sort", "trendingScore")
    if key not in SORTED_BY:
        raise Refusal(400, f'"sort" must be one of [{", ".join(SORTED_BY)}]')
    found = _matching(state, request, kind)
    # Two passes: sorting is stable, so that equal ones stay newest first.
    for part in ("createdAt", key):
        found.sort(key=lambda about: about[part], reverse=True)
    largest = state.settings.page_size
    size = min(int(request.value("limit", str(largest))), largest)
    return page(request, [_shown(request, about) for about in found], size=size)


def _matching(state: State, request: Request, kind: str) -> list[Json]:
    caller = state.accounts.caller(request)
    with state.store.lock:
        repos = list(state.store.repos.values())
    visible = [
        repo
        for repo in repos
        if repo.kind == kind and not repo.disabled
        if not repo.private or caller.may_read(repo.id)
    ]
    rows = [describe.info(repo, commit_of(repo, "main")) for repo in visible]
    return [about for about in rows if _fits(request, about)]


def _fits(request: Request, about: Json) -> bool:
    author, search = request.value("author").lower(), request.value("search").lower()
    task, gated = request.value("pipeline_tag"), request.values("gated")
    labels = {*about["tags"], about.get("library_name"), about.get("pipeline_tag")}
    return (
        author in ("", about["author"].lower())
        and search in about["id"].lower()
        and task in ("", about.get("pipeline_tag"))
        and (not gated or request.flag("gated") == bool(about["gated"]))
        and labels.issuperset(request.values("filter"))
    )


def _shown(request: Request, about: Json) -> Json:
    if properties := request.values("expand"):
        return describe.expanded(about, properties)
    full, card, config = (request.flag(name) for name in ("full", "cardData", "config"))
    return describe.listed(about, full=full, card=card, config=config)


@route("GET", "/api/{kinds}/{repo}/tree/{rev}")
@route("GET", "/api/{kinds}/{repo}/tree/{rev}/{path}")
def tree(
    state: State, request: Request, *, kind: str, repo_id: str, rev: str, path: str = ""
) -> Answer:
    """List a folder, or everything below it."""
    repo, _ = find(state, request, kind=kind, repo_id=repo_id)
    commit = commit_of(repo, rev)
    files, folders = repo.git.tree(commit)
    if path and path not in folders:
        raise Refusal(404, f"{path} does not exist on {rev!r}", "EntryNotFound")
    prefix = f"{path}/" if path else ""

    def wanted(name: str) -> bool:
        direct = "/" not in name[len(prefix) :]
        return name.startswith(prefix) and (direct or request.flag("recursive"))

    entries = [describe.folder_entry(name, folders[name]) for name in folders if wanted(name)]
    entries += [
        describe.file_entry(state, repo, path=name, blob=files[name])
        for name in files
        if wanted(name)
    ]
    entries.sort(key=lambda entry: entry["path"])
    size = state.settings.page_size
    if request.flag("expand"):
        size = min(size, EXPANDED_PAGE)
        entries = [describe.with_last_commit(repo, commit, entry) for entry in entries]
    return page(request, entries, size=size)


@route("POST", "/api/{kinds}/{repo}/paths-info/{rev}")
def paths_info(state: State, request: Request, *, kind: str, repo_id: str, rev: str) -> Answer:
    """Describe the paths that exist; the others are left out."""
    repo, _ = find(state, request, kind=kind, repo_id=repo_id)
    commit = commit_of(repo, rev)
    files, folders = repo.git.tree(commit)
    paths, expand = _asked_paths(request)
    entries = []
    for path in (asked.strip("/") for asked in paths):
        if path in files:
            entries.append(describe.file_entry(state, repo, path=path, blob=files[path]))
        elif path in folders:
            entries.append(describe.folder_entry(path, folders[path]))
    if expand:
        entries = [describe.with_last_commit(repo, commit, entry) for entry in entries]
    return json_answer(entries)


def _asked_paths(request: Request) -> tuple[list[str], bool]:
    """Return the paths of a form, as the client sends it, or of JSON."""
    if request.headers.get("Content-Type", "").startswith("application/json"):
        body = json.loads(request.data)
        return body["paths"], bool(body.get("expand"))
    form = parse_qs(request.data.decode(), keep_blank_values=True)
    return form.get("paths", []), form.get("expand", [""])[0].lower() in ("true", "1")
