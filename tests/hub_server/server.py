"""The server as tests use it: start it, give out tokens, look inside, make things go wrong."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.hub_server import api  # noqa: F401 - importing it registers the routes
from tests.hub_server.faults import Fault, FaultKind, Plan
from tests.hub_server.routes import answer
from tests.hub_server.state import Settings, State
from tests.hub_server.store import Repo, Store
from tests.hub_server.transport import Record, Transport
from tests.hub_server.wire import Answer, Json, Origin, Request


class LoopbackHub:
    """A Hugging Face Hub on this machine, for real clients.

    What it keeps is in `root`: a second server on the same folder finds the repositories again,
    but no users and no tokens.

    Args:
        root: Where to keep repositories and files; created if absent.
        port: Of the Hub; 0 for a free one.
        cdn_port: Of the second origin, which has the large files; 0 for a free one.
        settings: More of `Settings`: `xet`, `http_compat`, `page_size`, `part_bytes`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root, LoopbackHub(Path(root)) as hub:
        ...     token = hub.add_user("ann")
        ...     commit = hub.commit("model", "ann/x", {"a.txt": b"1"})
        ...     hub.commits("model", "ann/x").index(commit), hub.files("model", "ann/x")["a.txt"]
        (0, b'1')
    """

    def __init__(self, root: Path, *, port: int = 0, cdn_port: int = 0, **settings: Any) -> None:
        self._state = State(Store(Path(root)), Settings(**settings))
        self._plan = Plan()
        self._wanted_ports = port, cdn_port
        self._transport = Transport(
            self._answer, plan=self._plan, temporary=self._state.store.temporary
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen on both ports.

        Raises:
            OSError: If a port is taken.
        """
        hub_port, cdn_port = self._wanted_ports
        self._transport.start(hub_port=hub_port, cdn_port=cdn_port)

    def stop(self) -> None:
        """Close both ports and write down what git does not keep."""
        self._transport.stop()
        self._state.store.save()

    @property
    def url(self) -> str:
        """The Hub's address, what `HF_ENDPOINT` has to be."""
        return f"http://{self._transport.host}:{self._transport.ports['hub']}"

    @property
    def cdn_url(self) -> str:
        """The address of the second origin."""
        return f"http://{self._transport.host}:{self._transport.ports['cdn']}"

    def _answer(self, origin: Origin, request: Request) -> Answer:
        return answer(self._state, origin, request)

    # People.

    def add_user(
        self,
        name: str,
        *,
        role: str = "write",
        orgs: Mapping[str, str] | None = None,
        scopes: Mapping[str, list[str]] | None = None,
        token: str | None = None,
    ) -> str:
        """Create a user, or another token for one, and return the token.

        Args:
            name: The user's name.
            role: What the token may do: `read`, `write` or `fineGrained`.
            orgs: The user's role (`read`, `contributor`, `write`, `admin`) by organisation.
            scopes: What a fine-grained token may do (`repo.content.read`, `repo.write`) by user,
                organisation or repository; by default both in the user's own namespace.
            token: The token itself; by default a random one.
        """
        return self._state.accounts.add(
            name,
            role=role,
            orgs=dict(orgs or {}),
            scopes=None if scopes is None else dict(scopes),
            value=token,
        )

    # What is here.

    def repo(self, kind: str, repo_id: str) -> Repo | None:
        """Return a repository, whose attributes may be set; None if there is none of this id."""
        return self._state.store.repos.get((kind, repo_id))

    def commits(self, kind: str, repo_id: str, *, revision: str = "main") -> list[str]:
        """Return a revision's commits, newest first."""
        git = self._state.store.repos[kind, repo_id].git
        return [commit.id for commit in git.history(self._commit(kind, repo_id, revision))]

    def tags(self, kind: str, repo_id: str) -> dict[str, str]:
        """Return the commit of each tag."""
        return self._state.store.repos[kind, repo_id].git.refs("refs/tags/")

    def files(self, kind: str, repo_id: str, *, revision: str = "main") -> dict[str, bytes]:
        """Return the bytes of each file at a revision, large ones included."""
        repo = self._state.store.repos[kind, repo_id]
        blobs = repo.git.tree(self._commit(kind, repo_id, revision)).files
        found = {path: self._state.store.file(repo, blob) for path, blob in blobs.items()}
        return {
            path: content if isinstance(content, bytes) else content.read_bytes()
            for path, content in found.items()
        }

    def _commit(self, kind: str, repo_id: str, revision: str) -> str:
        commit = self._state.store.repos[kind, repo_id].git.resolve(revision)
        if commit is None:
            raise KeyError(f"{kind} {repo_id} has no revision {revision!r}")
        return commit

    @property
    def collections(self) -> dict[str, Json]:
        """The collections by slug."""
        return self._state.store.collections

    # Changes from behind.

    def commit(
        self,
        kind: str,
        repo_id: str,
        files: Mapping[str, bytes | None],
        *,
        author: str = "bob",
        message: str = "Change behind the scenes",
    ) -> str:
        """Commit to `main` without asking anybody, and return the commit.

        For writers who race a test, and for hostile repositories: no path and no card is checked.

        Args:
            kind: `model`, `dataset` or `space`.
            repo_id: The repository, created if absent.
            files: What to write at each path; None deletes it.
            author: Who the commit is by.
            message: Its message.
        """
        store = self._state.store
        with store.lock:
            repo = self.repo(kind, repo_id) or store.create(kind, repo_id, author=author)
            parent = self._commit(kind, repo_id, "main")
            blobs = dict(repo.git.tree(parent).files)
            for path, content in files.items():
                if content is None:
                    del blobs[path]
                else:
                    blobs[path] = store.put_file(repo, path, content, files=blobs)
            made = repo.git.commit(blobs, (parent,), author=author, message=message)
            repo.move_branch("refs/heads/main", made)
            return made

    def rename(self, kind: str, old_id: str, new_id: str) -> None:
        """Rename a repository; its old id leads to the new one."""
        self._state.store.move(self._state.store.repos[kind, old_id], new_id)

    # Trouble.

    def fault(self, method: str, path: str, kind: FaultKind, **details: Any) -> Fault:
        """Let the next requests go wrong; see `Fault` for the kinds and the details."""
        return self._plan.add_fault(Fault(method, path, kind, **details))

    def before(
        self, method: str, path: str, callback: Callable[[], object], *, times: int = 1
    ) -> None:
        """Run a callback before the next matching requests are handled."""
        self._plan.add_hook(method, path, callback=callback, times=times)

    # What was asked.

    @property
    def log(self) -> list[Record]:
        """All requests in the order in which they came."""
        return self._transport.log

    def requests(self, method: str | None = None, path: str = "") -> list[Record]:
        """Return the requests of a method, or of all, whose path has a match of `path`."""
        return [
            record
            for record in list(self.log)
            if method in (None, record.method) and re.search(path, record.path)
        ]

    def clear_log(self) -> None:
        """Forget the requests so far."""
        self.log.clear()

    @property
    def leaks(self) -> list[Record]:
        """The requests that brought an access token to the second origin."""
        leaked = self._state.accounts.leaked
        return [
            record
            for record in list(self.log)
            if record.origin == "cdn" and (leaked(record.auth or "") or leaked(record.query))
        ]
