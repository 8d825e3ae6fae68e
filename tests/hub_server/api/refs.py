"""Branches and tags."""

from urllib.parse import unquote

from tests.hub_server.access import commit_of, find
from tests.hub_server.routes import route
from tests.hub_server.state import State
from tests.hub_server.store import Repo
from tests.hub_server.wire import Answer, Json, Refusal, Request, json_answer


@route("GET", "/api/{kinds}/{repo}/refs")
def refs(state: State, request: Request, *, kind: str, repo_id: str) -> Answer:
    """List branches and tags, and pull requests if asked for."""
    repo, _ = find(state, request, kind=kind, repo_id=repo_id)
    rows: Json = {"branches": _rows(repo, "refs/heads/"), "tags": _rows(repo, "refs/tags/")}
    rows["converts"] = []
    if request.flag("include_prs"):
        rows["pullRequests"] = _rows(repo, "refs/pr/")
    return json_answer(rows)


def _rows(repo: Repo, prefix: str) -> list[Json]:
    return [
        {"name": name, "ref": f"{prefix}{name}", "targetCommit": commit}
        for name, commit in repo.git.refs(prefix).items()
    ]


@route("POST", "/api/{kinds}/{repo}/branch/{name}")
def create_branch(state: State, request: Request, *, kind: str, repo_id: str, name: str) -> Answer:
    """Create a branch."""
    repo, _ = find(state, request, kind=kind, repo_id=repo_id, need="write")
    with state.store.lock:
        if repo.git.ref(f"refs/heads/{name}"):
            raise Refusal(409, f"Reference already exists: refs/heads/{name}")
        start = unquote(request.json.get("startingPoint") or "main")
        repo.git.set_ref(f"refs/heads/{name}", commit_of(repo, start))
    return json_answer({}, status=201)


@route("DELETE", "/api/{kinds}/{repo}/branch/{name}")
def delete_branch(state: State, request: Request, *, kind: str, repo_id: str, name: str) -> Answer:
    """Delete a branch other than `main`."""
    repo, _ = find(state, request, kind=kind, repo_id=repo_id, need="write")
    if name == "main":
        raise Refusal(403, "Cannot delete the default branch")
    _remove(state, repo, f"refs/heads/{name}")
    return json_answer({})


@route("POST", "/api/{kinds}/{repo}/tag/{rev}")
def create_tag(state: State, request: Request, *, kind: str, repo_id: str, rev: str) -> Answer:
    """Tag a commit."""
    repo, caller = find(state, request, kind=kind, repo_id=repo_id, need="write")
    name = request.json["tag"]
    with state.store.lock:
        commit = commit_of(repo, rev)
        if repo.git.ref(f"refs/tags/{name}"):
            raise Refusal(409, f"Tag reference exists already: {name}")
        author, message = caller.user().name, request.json.get("message")
        repo.git.tag(name, commit, author=author, message=message)
    return json_answer({})


@route("DELETE", "/api/{kinds}/{repo}/tag/{name}")
def delete_tag(state: State, request: Request, *, kind: str, repo_id: str, name: str) -> Answer:
    """Delete a tag."""
    repo, _ = find(state, request, kind=kind, repo_id=repo_id, need="write")
    _remove(state, repo, f"refs/tags/{name}")
    return json_answer({})


def _remove(state: State, repo: Repo, ref: str) -> None:
    with state.store.lock:
        if not repo.git.ref(ref):
            raise Refusal(404, f"Reference not found: {ref}", "RevisionNotFound")
        repo.git.set_ref(ref, None)


@route("POST", "/api/{kinds}/{repo}/super-squash/{rev}")
def squash(state: State, request: Request, *, kind: str, repo_id: str, rev: str) -> Answer:
    """Replace a branch's history by one commit."""
    repo, caller = find(state, request, kind=kind, repo_id=repo_id, need="write")
    message = request.json.get("message") or f"Super-squash branch '{rev}'"
    with state.store.lock:
        files = repo.git.tree(commit_of(repo, rev)).files
        made = repo.git.commit(files, (), author=caller.user().name, message=message)
        repo.move_branch(f"refs/heads/{rev}", made)
    return json_answer({})
