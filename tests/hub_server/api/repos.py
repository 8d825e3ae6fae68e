"""Accounts and repositories: who am I, create, delete, move, settings."""

import re

from tests.hub_server import accounts, cards
from tests.hub_server.access import find
from tests.hub_server.describe import short_id
from tests.hub_server.routes import route
from tests.hub_server.state import State
from tests.hub_server.wire import Answer, Json, Refusal, Request, json_answer

_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_]([\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)


@route("GET", "/api/whoami-v2")
def whoami(state: State, request: Request) -> Answer:
    """Tell a token's user, organisations and role."""
    caller = state.accounts.caller(request)
    if caller.token is None:
        raise accounts.unauthorized()
    return json_answer(accounts.describe(caller.token))


@route("GET", "/api/agent-harnesses")
def agent_harnesses(_state: State, _request: Request) -> Answer:
    """Tell the client that there is nothing to know about who runs it."""
    return json_answer({"harnesses": {}, "standardEnvVars": []})


@route("POST", "/api/validate-yaml")
def validate_card(_state: State, request: Request) -> Answer:
    """Check a card; the client asks before each upload of one."""
    found = cards.problem(request.json["content"])
    errors = [{"message": found}] if found else []
    return json_answer({"errors": errors, "warnings": []}, status=400 if found else 200)


@route("POST", "/api/repos/create")
def create(state: State, request: Request) -> Answer:
    """Create a repository; a 409 names the one that exists, which the client needs."""
    caller = state.accounts.caller(request)
    kind, repo_id = _named(request.json, caller.user().name)
    if not caller.may_write(repo_id):
        namespace = repo_id.split("/")[0]
        text = f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"'
        raise Refusal(403, text)
    if not _NAME.fullmatch(repo_id.split("/")[1]) or repo_id.endswith(".git"):
        raise Refusal(400, f"Invalid repo name: {repo_id}")
    url = f"{request.base}/{'' if kind == 'model' else f'{kind}s/'}{repo_id}"
    with state.store.lock:
        if (kind, repo_id) in state.store.repos:
            text = f"You already created this {kind} repo: {repo_id}"
            raise Refusal(409, text, body={"url": url})
        repo = state.store.create(
            kind, repo_id, author=caller.user().name, private=_is_private(request.json)
        )
        repo.sdk = request.json.get("sdk")
        state.store.save()
    return json_answer({"url": url, "name": repo_id, "id": short_id(f"{kind}/{repo_id}")})


@route("DELETE", "/api/repos/delete")
def delete(state: State, request: Request) -> Answer:
    """Delete a repository."""
    kind, repo_id = _named(request.json, state.accounts.caller(request).user().name)
    with state.store.lock:
        repo, _ = find(state, request, kind=kind, repo_id=repo_id, need="write")
        state.store.delete(repo)
        state.store.save()
    return Answer(body=b"OK")


@route("POST", "/api/repos/move")
def move(state: State, request: Request) -> Answer:
    """Rename a repository, or hand it to another namespace."""
    kind = request.json.get("type") or "model"
    source, target = request.json["fromRepo"], request.json["toRepo"]
    with state.store.lock:
        repo, caller = find(state, request, kind=kind, repo_id=source, need="write")
        if not caller.may_write(target):
            text = f"You don't have the rights to create a {kind} under this namespace"
            raise Refusal(403, text)
        if (kind, target) in state.store.repos:
            raise Refusal(409, "A repository with this name already exists")
        state.store.move(repo, target)
        state.store.save()
    return Answer(body=b"OK")


@route("PUT", "/api/{kinds}/{repo}/settings")
def settings(state: State, request: Request, *, kind: str, repo_id: str) -> Answer:
    """Change who sees a repository, or who may read its files."""
    repo, _ = find(state, request, kind=kind, repo_id=repo_id, need="write")
    if "visibility" in request.json or "private" in request.json:
        repo.private = _is_private(request.json)
    repo.gated = request.json.get("gated", repo.gated)
    state.store.save()
    return json_answer({"private": repo.private, "gated": repo.gated})


@route("GET", "/api/{kinds}/{repo}/auth-check")
def may_read(state: State, request: Request, *, kind: str, repo_id: str) -> Answer:
    """Tell whether the caller may read a repository's files."""
    find(state, request, kind=kind, repo_id=repo_id, need="read")
    return json_answer({})


@route("GET", "/api/{kinds}/{repo}/auth-check/write")
def may_write(state: State, request: Request, *, kind: str, repo_id: str) -> Answer:
    """Tell whether the caller may change a repository."""
    find(state, request, kind=kind, repo_id=repo_id, need="write")
    return json_answer({})


def _named(body: Json, user: str) -> tuple[str, str]:
    """Return the kind and id of the repository that a body names; by default the user's own."""
    return body.get("type") or "model", f"{body.get('organization') or user}/{body['name']}"


def _is_private(body: Json) -> bool:
    return body.get("visibility") == "private" or bool(body.get("private"))
