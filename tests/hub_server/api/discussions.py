"""Discussions and pull requests. A pull request is a branch `refs/pr/<number>`."""

import time

from tests.hub_server.access import Found, find
from tests.hub_server.describe import short_id
from tests.hub_server.routes import route
from tests.hub_server.state import State
from tests.hub_server.store import Repo
from tests.hub_server.wire import Answer, Json, Refusal, Request, json_answer, timestamp

PAGE = 50


def open_pull_request(repo: Repo, author: str, header: Json, *, commit: str | None = None) -> int:
    """Open a pull request of a commit, or an empty draft, and return its number."""
    title, text = header["summary"], header.get("description") or ""
    opened = _open(repo, author, title=title, text=text)
    opened["isPullRequest"] = True
    opened["status"] = "open" if commit else "draft"
    start = commit or repo.git.resolve("main")
    repo.git.set_ref(f"refs/pr/{opened['num']}", start)
    return int(opened["num"])


def _open(repo: Repo, author: str, *, title: str, text: str) -> Json:
    opened: Json = {
        "num": len(repo.discussions) + 1,
        "title": title,
        "status": "open",
        "author": author,
        "createdAt": timestamp(time.time()),
        "isPullRequest": False,
        "mergeCommitId": None,
        "events": [],
    }
    repo.discussions.append(opened)
    _add_event(opened, author, kind="comment", data=_comment(text, author))
    return opened


def _comment(text: str, author: str, *, edited: bool = False, hidden: bool = False) -> Json:
    latest: Json = {"raw": text, "html": text, "updatedAt": timestamp(time.time())}
    latest["author"] = {"name": author}
    return {"edited": edited, "hidden": hidden, "latest": latest, "history": []}


def _add_event(discussion: Json, author: str, *, kind: str, data: Json) -> Json:
    number = len(discussion["events"])
    event = {
        "id": short_id(f"{discussion['num']}/{number}"),
        "type": kind,
        "createdAt": timestamp(time.time()),
        "author": {"name": author},
        "data": data,
    }
    discussion["events"].append(event)
    return event


def _summary(repo: Repo, discussion: Json) -> Json:
    keys = ("num", "title", "status", "createdAt", "isPullRequest")
    summary = {key: discussion[key] for key in keys}
    author, about = {"name": discussion["author"]}, {"name": repo.id, "type": repo.kind}
    return summary | {"author": author, "repo": about}


@route("GET", "/api/{kinds}/{repo}/discussions")
def listing(state: State, request: Request, *, kind: str, repo_id: str) -> Answer:
    """List a repository's discussions, newest first."""
    repo, _ = find(state, request, kind=kind, repo_id=repo_id)
    kinds = {"pull_request": [True], "discussion": [False]}.get(
        request.value("type"), [True, False]
    )
    statuses = {"open": ["open", "draft"], "closed": ["closed", "merged"]}
    wanted = statuses.get(request.value("status"))
    found = [
        _summary(repo, discussion)
        for discussion in reversed(repo.discussions)
        if discussion["isPullRequest"] in kinds
        and (wanted is None or discussion["status"] in wanted)
        and request.value("author") in ("", discussion["author"])
    ]
    start = int(request.value("p", "0")) * PAGE
    page = found[start : start + PAGE]
    return json_answer({"discussions": page, "count": len(found), "start": start})


@route("POST", "/api/{kinds}/{repo}/discussions")
def create(state: State, request: Request, *, kind: str, repo_id: str) -> Answer:
    """Open a discussion or an empty pull request."""
    repo, caller = find(state, request, kind=kind, repo_id=repo_id, need="contribute")
    body, author = request.json, caller.user().name
    with state.store.lock:
        if body.get("pullRequest"):
            header = {"summary": body["title"], "description": body.get("description")}
            number = open_pull_request(repo, author, header)
        else:
            text = body.get("description") or ""
            number = _open(repo, author, title=body["title"], text=text)["num"]
    url = f"{request.base}/{repo.path}/discussions/{number}"
    return json_answer({"num": number, "pullRequest": bool(body.get("pullRequest")), "url": url})


@route("GET", "/api/{kinds}/{repo}/discussions/{number}")
def details(state: State, request: Request, *, kind: str, repo_id: str, number: str) -> Answer:
    """Return a discussion with everything that was said."""
    repo, _ = find(state, request, kind=kind, repo_id=repo_id)
    discussion = _discussion(repo, number)
    answer = _summary(repo, discussion) | {"events": discussion["events"], "diff": ""}
    if discussion["isPullRequest"]:
        changes = {"base": "refs/heads/main", "mergeCommitId": discussion["mergeCommitId"]}
        answer |= {"changes": changes, "filesWithConflicts": []}
    return json_answer(answer)


def _discussion(repo: Repo, number: str) -> Json:
    if not 0 < int(number) <= len(repo.discussions):
        raise Refusal(404, "Discussion not found")
    return repo.discussions[int(number) - 1]


def _changeable(found: Found, number: str) -> tuple[Json, str]:
    """Return a discussion that the caller may change, and the caller's name."""
    discussion, author = _discussion(found.repo, number), found.caller.user().name
    if author != discussion["author"] and not found.caller.may_write(found.repo.id):
        raise Refusal(403, "Forbidden: this discussion is not yours")
    return discussion, author


@route("POST", "/api/{kinds}/{repo}/discussions/{number}/comment")
def comment(state: State, request: Request, *, kind: str, repo_id: str, number: str) -> Answer:
    """Add a comment."""
    repo, caller = find(state, request, kind=kind, repo_id=repo_id, need="contribute")
    author = caller.user().name
    data = _comment(request.json["comment"], author)
    event = _add_event(_discussion(repo, number), author, kind="comment", data=data)
    return json_answer({"newMessage": event})


@route("POST", "/api/{kinds}/{repo}/discussions/{number}/comment/{event}/{action}")
def change_comment(
    state: State, request: Request, *, kind: str, repo_id: str, number: str, **parts: str
) -> Answer:
    """Edit or hide a comment."""
    found = find(state, request, kind=kind, repo_id=repo_id, need="contribute")
    discussion, author = _changeable(found, number)
    events = [event for event in discussion["events"] if event["id"] == parts["event"]]
    if not events or events[0]["type"] != "comment":
        raise Refusal(404, "Comment not found")
    hidden = parts["action"] == "hide"
    text = "" if hidden else request.json["content"]
    events[0]["data"] = _comment(text, author, edited=not hidden, hidden=hidden)
    return json_answer({"updatedComment": events[0]})


@route("POST", "/api/{kinds}/{repo}/discussions/{number}/title")
def rename(state: State, request: Request, *, kind: str, repo_id: str, number: str) -> Answer:
    """Change a discussion's title."""
    found = find(state, request, kind=kind, repo_id=repo_id, need="contribute")
    discussion, author = _changeable(found, number)
    data = {"from": discussion["title"], "to": request.json["title"]}
    discussion["title"] = request.json["title"]
    event = _add_event(discussion, author, kind="title-change", data=data)
    return json_answer({"newTitle": event})


@route("POST", "/api/{kinds}/{repo}/discussions/{number}/status")
def change_status(
    state: State, request: Request, *, kind: str, repo_id: str, number: str
) -> Answer:
    """Open or close a discussion."""
    found = find(state, request, kind=kind, repo_id=repo_id, need="contribute")
    discussion, author = _changeable(found, number)
    discussion["status"] = request.json["status"]
    data = {"status": discussion["status"]}
    event = _add_event(discussion, author, kind="status-change", data=data)
    return json_answer({"newStatus": event})


@route("POST", "/api/{kinds}/{repo}/discussions/{number}/merge")
def merge(state: State, request: Request, *, kind: str, repo_id: str, number: str) -> Answer:
    """Merge a pull request; a file that both sides have is taken from the pull request."""
    repo, caller = find(state, request, kind=kind, repo_id=repo_id, need="write")
    discussion, author = _discussion(repo, number), caller.user().name
    with state.store.lock:
        ours, theirs = repo.git.resolve("main"), repo.git.resolve(f"refs/pr/{number}")
        if not ours or not theirs or discussion["status"] == "merged":
            raise Refusal(409, "This pull request cannot be merged")
        files = repo.git.tree(ours).files | repo.git.tree(theirs).files
        message = f"{discussion['title']} (#{number})"
        made = repo.git.commit(files, (ours, theirs), author=author, message=message)
        repo.move_branch("refs/heads/main", made)
        discussion |= {"status": "merged", "mergeCommitId": made}
    _add_event(discussion, author, kind="status-change", data={"status": "merged"})
    return json_answer({"newStatus": "merged"})
