"""Downloading: small files from the Hub itself, large ones by a redirect to the second origin."""

from urllib.parse import quote

from tests.hub_server.access import commit_of, find
from tests.hub_server.routes import route
from tests.hub_server.state import State
from tests.hub_server.store import Repo
from tests.hub_server.wire import Answer, Refusal, Request

KINDS_IN_API = {"model": "models", "dataset": "datasets", "space": "spaces"}


@route("GET", "/{prefix}{repo}/(?:resolve|raw)/{rev}/{path}")
def resolve(
    state: State, request: Request, *, kind: str, repo_id: str, rev: str, path: str
) -> Answer:
    """Return a file at a revision, with the commit that the revision is."""
    repo, _ = find(state, request, kind=kind, repo_id=repo_id, need="read")
    commit = commit_of(repo, rev)
    headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
    blob = repo.git.tree(commit).files.get(path)
    if blob is None:
        raise Refusal(404, "Entry not found", "EntryNotFound", headers=headers)
    if request.method == "GET" and request.headers.get("X-HF-Download-Counter"):
        repo.downloads += 1
    found = repo.git.blob(blob)
    if found.lfs is None:
        name = quote(path.rpartition("/")[2])
        headers |= {"ETag": f'"{blob}"', "Content-Type": "application/octet-stream"}
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{name}; filename=\"{name}\";"
        return Answer(200, headers, repo.git.read(blob), ranged=True)
    headers |= {
        "Location": state.sign(request, f"/lfs/{found.lfs}"),
        "Vary": "Origin, Accept",
        "X-Linked-Etag": f'"{found.lfs}"',
        "X-Linked-Size": str(found.size),
    }
    if state.settings.xet and found.lfs in state.store.xet_ids:
        xet_id = state.store.xet_ids[found.lfs]
        headers |= _xet_headers(request, repo, commit=commit, xet_id=xet_id)
    return Answer(302, headers, f"Found. Redirecting to {headers['Location']}".encode())


def _xet_headers(request: Request, repo: Repo, *, commit: str, xet_id: str) -> dict[str, str]:
    """Tell a client that speaks Xet where to get a token and the file's parts."""
    api = f"{request.base}/api/{KINDS_IN_API[repo.kind]}/{repo.id}"
    token = f'<{api}/xet-read-token/{commit}>; rel="xet-auth"'
    parts = f'<{request.cdn}/v1/reconstructions/{xet_id}>; rel="xet-reconstruction-info"'
    return {"X-Xet-Hash": xet_id, "Link": f"{token}, {parts}"}


@route("GET", "/lfs/{hash}", "cdn")
def large_file(state: State, request: Request, **parts: str) -> Answer:
    """Return a large file to whoever has its signed address."""
    state.check_signature(request)
    path = state.store.large_file(parts["hash"])
    if not path.exists():
        raise Refusal(404, "No such object")
    headers = {"ETag": f'"{parts["hash"]}"', "Content-Type": "application/octet-stream"}
    return Answer(200, headers, path, ranged=True)
