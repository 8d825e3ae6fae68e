"""Finding the repository that a request names, if its sender may do with it what it asks for."""

from typing import Literal, NamedTuple

from tests.hub_server.accounts import Caller, unauthorized
from tests.hub_server.state import State
from tests.hub_server.store import Repo
from tests.hub_server.wire import Refusal, Request

Need = Literal["see", "read", "contribute", "write"]
"""See that it exists and what is in it; read its files; open pull requests; change it."""


class Found(NamedTuple):
    """A repository, and who asked for it."""

    repo: Repo
    caller: Caller


def find(state: State, request: Request, *, kind: str, repo_id: str, need: Need = "see") -> Found:
    """Return the repository, if its sender may.

    Raises:
        Refusal: As the Hub says it: to strangers a private repository looks like one that does not
            exist, and to those without a token both look like a wrong password.
    """
    caller = state.accounts.caller(request)
    _follow_rename(state, request, kind=kind, repo_id=repo_id)
    repo = state.store.repos.get((kind, repo_id))
    if repo is None or (repo.private and not caller.may_read(repo_id)):
        if caller.token is None:
            raise unauthorized("RepoNotFound" if state.settings.http_compat else None)
        raise Refusal(404, "Repository not found", "RepoNotFound")
    if repo.disabled:
        raise Refusal(403, "Access to this resource is disabled.")
    if need != "see":
        _check_gate(request, repo, caller)
    if need in ("contribute", "write"):
        _check_writer(repo, caller, need)
    return Found(repo, caller)


def _follow_rename(state: State, request: Request, *, kind: str, repo_id: str) -> None:
    new_id = state.store.moved.get((kind, repo_id))
    if new_id is not None:
        query = f"?{request.query}" if request.query else ""
        location = request.path.replace(repo_id, new_id, 1) + query
        raise Refusal(307, "Temporary Redirect", headers={"Location": location})


def _check_gate(request: Request, repo: Repo, caller: Caller) -> None:
    if not repo.gated or caller.may_read(repo.id) or caller.name in repo.grants:
        return
    what = f"Access to {repo.kind} {repo.id} is restricted"
    if caller.token is None:
        login = "You must have access to it and be authenticated to access it. Please log in."
        raise Refusal(401, f"{what}. {login}", "GatedRepo")
    ask = f"Visit {request.base}/{repo.path} to ask for access."
    raise Refusal(403, f"{what} and you are not in the authorized list. {ask}", "GatedRepo")


def _check_writer(repo: Repo, caller: Caller, need: Need) -> None:
    """Let members of the owner write, and everybody with more than a read token contribute."""
    caller.user()
    if caller.token is not None and caller.token.role == "read":
        text = "Forbidden: you must use a write token to upload to a repository."
        raise Refusal(403, text)
    if need == "write" and not caller.may_write(repo.id):
        raise Refusal(403, f"Forbidden: you don't have write access to {repo.id}")


def writing(revision: str, *, create_pr: bool) -> Need:
    """Return what it takes to write at a revision: everybody may propose."""
    return "contribute" if create_pr or revision.startswith("refs/pr/") else "write"


def commit_of(repo: Repo, revision: str) -> str:
    """Return the commit of a revision.

    Raises:
        Refusal: If there is no such branch, tag or commit.
    """
    commit = repo.git.resolve(revision)
    if commit is None:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit
