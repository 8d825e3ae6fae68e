"""Changing files: how each is to be uploaded, the commit itself, the history."""

import base64
import json
from collections.abc import Callable

from tests.hub_server import cards
from tests.hub_server.access import commit_of, find, writing
from tests.hub_server.api.discussions import open_pull_request
from tests.hub_server.git import pointer
from tests.hub_server.routes import route
from tests.hub_server.state import State
from tests.hub_server.store import Repo, attributes, is_large, matches
from tests.hub_server.wire import Answer, Json, Refusal, Request, json_answer, page, timestamp

MOVED_ON = "The branch was updated since you opened this page. Please refresh and try again."
UNKNOWN_FILE = (
    "Your push was rejected because an LFS pointer pointed to a file that does not exist. "
    "Offending file: - "
)


@route("POST", "/api/{kinds}/{repo}/preupload/{rev}")
def preupload(state: State, request: Request, *, kind: str, repo_id: str, rev: str) -> Answer:
    """Say for each file whether it goes into the commit or is uploaded on its own first."""
    need = writing(rev, create_pr=request.flag("create_pr"))
    repo, _ = find(state, request, kind=kind, repo_id=repo_id, need=need)
    commit = commit_of(repo, rev)
    files = repo.git.tree(commit).files
    body = request.json
    rules = body.get("gitAttributes") or attributes(repo, files)
    ignored = _ignored(body.get("gitIgnore"), repo, files)
    rows = []
    for file in body["files"]:
        path, sample = file["path"], base64.b64decode(file.get("sample", ""))
        row = {
            "path": path,
            "uploadMode": "lfs" if is_large(path, file["size"], sample, rules) else "regular",
            "shouldIgnore": any(matches(path, pattern) for pattern in ignored),
        }
        if blob := files.get(path):
            # From this the client sees that it has nothing new to send.
            row["oid"] = repo.git.blob(blob).lfs or blob
        rows.append(row)
    return json_answer({"files": rows, "commitOid": commit})


def _ignored(given: str | None, repo: Repo, files: dict[str, str]) -> list[str]:
    blob = files.get(".gitignore")
    text = given or (repo.git.read(blob).decode("utf-8", "replace") if blob else "")
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@route("POST", "/api/{kinds}/{repo}/commit/{rev}")
def commit(state: State, request: Request, *, kind: str, repo_id: str, rev: str) -> Answer:
    """Make one commit of all operations, or none."""
    as_pull_request = request.flag("create_pr")
    need = writing(rev, create_pr=as_pull_request)
    repo, caller = find(state, request, kind=kind, repo_id=repo_id, need=need)
    header, operations = _parsed(request.data)
    url = f"{request.base}/{repo.path}"
    ref = rev if rev.startswith("refs/") else f"refs/heads/{rev}"
    with state.store.lock:
        parent = _parent(repo, ref, header.get("parentCommit"), strict=not as_pull_request)
        files = _changed(state, repo, dict(repo.git.tree(parent).files), operations)
        message = "\n\n".join(filter(None, (header["summary"], header.get("description"))))
        author = caller.user().name
        made = repo.git.commit(files, (parent,), author=author, message=message)
        answer: Json = {"success": True, "commitOid": made, "hookOutput": ""}
        answer["commitUrl"] = f"{url}/commit/{made}"
        if as_pull_request:
            number = open_pull_request(repo, author, header, commit=made)
            answer["pullRequestUrl"] = f"{url}/discussions/{number}"
        else:
            repo.move_branch(ref, made)
    return json_answer(answer)


def _parsed(body: bytes) -> tuple[Json, list[Json]]:
    """Return the header and the operations of newline-separated JSON."""
    try:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
    except ValueError as error:
        raise Refusal(400, f"Invalid JSON in request body: {error}") from error
    headers = [line["value"] for line in lines if line["key"] == "header"]
    if not headers or not headers[0].get("summary"):
        raise Refusal(400, '"summary" is required')
    return headers[0], [line for line in lines if line["key"] != "header"]


def _parent(repo: Repo, ref: str, wanted: str | None, *, strict: bool) -> str:
    """Return the commit to build on: the branch's, which has to be the wanted one if strict."""
    head = repo.git.ref(ref)
    if head is None:
        raise Refusal(404, f"Invalid rev id: {ref.removeprefix('refs/heads/')}", "RevisionNotFound")
    if not wanted or head.startswith(wanted):
        return head
    if strict:
        raise Refusal(412, MOVED_ON)
    return commit_of(repo, wanted)


def _changed(
    state: State, repo: Repo, files: dict[str, str], operations: list[Json]
) -> dict[str, str]:
    """Return the files after all operations."""
    for operation in operations:
        if operation["key"] not in _OPERATIONS:
            raise Refusal(400, f"Unknown operation {operation['key']!r}")
        _check_path(operation["value"]["path"])
        _OPERATIONS[operation["key"]](state, repo, files, operation["value"])
    for path in files:
        folder = path.rpartition("/")[0]
        while folder:
            if folder in files:
                raise Refusal(400, f"{folder} is both a file and a folder")
            folder = folder.rpartition("/")[0]
    return files


def _check_path(path: str) -> None:
    parts = path.rstrip("/").split("/")
    if any(part in ("", ".", "..", ".git") for part in parts) or not path.isprintable():
        raise Refusal(400, f"Invalid path: {path!r}")


def _add(_state: State, repo: Repo, files: dict[str, str], value: Json) -> None:
    content = value["content"].encode()
    if value.get("encoding") == "base64":
        content = base64.b64decode(content)
    if value["path"] == "README.md":
        found = cards.problem(content.decode("utf-8", "replace"))
        if found:
            raise Refusal(400, f"Invalid metadata in README.md. {found}")
    files[value["path"]] = repo.git.put("blob", content)


def _add_large(state: State, repo: Repo, files: dict[str, str], value: Json) -> None:
    stored = state.store.large_file(value["oid"])
    if not stored.exists():
        raise Refusal(400, UNKNOWN_FILE + value["path"])
    content = pointer(value["oid"], stored.stat().st_size)
    files[value["path"]] = repo.git.put("blob", content)


def _delete(_state: State, _repo: Repo, files: dict[str, str], value: Json) -> None:
    if files.pop(value["path"], None) is None:
        raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")


def _delete_folder(_state: State, _repo: Repo, files: dict[str, str], value: Json) -> None:
    gone = [path for path in files if path.startswith(f"{value['path'].rstrip('/')}/")]
    if not gone:
        raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
    for path in gone:
        del files[path]


_OPERATIONS: dict[str, Callable[[State, Repo, dict[str, str], Json], None]] = {
    "file": _add,
    "lfsFile": _add_large,
    "deletedFile": _delete,
    "deletedFolder": _delete_folder,
}


@route("GET", "/api/{kinds}/{repo}/commits/{rev}")
def history(state: State, request: Request, *, kind: str, repo_id: str, rev: str) -> Answer:
    """List a revision's commits, newest first."""
    repo, _ = find(state, request, kind=kind, repo_id=repo_id)
    rows = []
    for made in repo.git.history(commit_of(repo, rev)):
        title, _, message = made.message.partition("\n\n")
        row: Json = {"id": made.id, "title": title, "message": message}
        row |= {"authors": [{"user": made.author, "avatar": ""}], "date": timestamp(made.time)}
        if "formatted" in request.values("expand"):
            row["formatted"] = {"title": title, "message": message}
        rows.append(row)
    answer = page(request, rows, size=state.settings.page_size)
    answer.headers["X-Total-Count"] = str(len(rows))
    return answer
