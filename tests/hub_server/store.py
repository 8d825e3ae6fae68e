"""What the server keeps: repositories, large files, collections, in a folder.

The folder has `repos/<kind>s/<owner>/<name>.git`, `lfs/` by sha256, `xorbs/` by Xet hash and
`state.json` with what git does not know (privacy, gates, discussions, collections).
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from threading import RLock

from tests.hub_server.git import GitRepository, pointer
from tests.hub_server.wire import Json, Refusal

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
LARGE_BYTES = 10 * 1024 * 1024
"""A file from this size on is stored outside git, whatever its name."""

_LARGE_ENDINGS = """
    7z arrow bin bz2 ckpt ftz gz h5 joblib lfs.* mlmodel model msgpack npy npz onnx ot parquet
    pb pickle pkl pt pth rar safetensors tar tar.* tflite tgz wasm xz zip zst
"""
GIT_ATTRIBUTES = "".join(
    f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in _LARGE_ENDINGS.split()
)


@dataclass
class Repo:
    """A repository and what the Hub knows of it beside git.

    Attributes:
        kind: `model`, `dataset` or `space`.
        private: Whether only its owner's people know of it.
        gated: `auto` or `manual` if its files are for those in `grants` only.
        disabled: Whether the Hub has taken it down.
        grants: Names of users who passed the gate.
        modified: When a branch last moved, in seconds since 1970.
    """

    kind: str
    id: str
    git: GitRepository
    private: bool = False
    gated: str | bool = False
    disabled: bool = False
    grants: set[str] = field(default_factory=set)
    created: float = field(default_factory=time.time)
    modified: float = field(default_factory=time.time)
    downloads: int = 0
    likes: int = 0
    sdk: str | None = None
    discussions: list[Json] = field(default_factory=list)

    @property
    def owner(self) -> str:
        """The user or organisation that it belongs to."""
        return self.id.split("/")[0]

    @property
    def path(self) -> str:
        """Its path on the Hub's web site and in addresses of files."""
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"

    def move_branch(self, ref: str, commit: str) -> None:
        """Point a branch, by its full ref name, at a commit."""
        self.git.set_ref(ref, commit)
        self.modified = time.time()


class Store:
    """All that is kept in one folder; changes are made under `lock`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = RLock()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.moved: dict[tuple[str, str], str] = {}
        self.collections: dict[str, Json] = {}
        self.xet_ids: dict[str, str] = {}  # sha256 -> Xet hash of the same file
        self.xet_files: dict[str, Json] = {}  # Xet hash -> where its parts are
        for folder in ("repos", "lfs", "xorbs", "temporary"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        if self._state.exists():
            self._load()

    @property
    def _state(self) -> Path:
        return self.root / "state.json"

    def _load(self) -> None:
        state = json.loads(self._state.read_text())
        for row in state["repos"]:
            git = GitRepository(self._git_folder(row["kind"], row["id"]))
            repo = Repo(git=git, **{**row, "grants": set(row["grants"])})
            self.repos[repo.kind, repo.id] = repo
        self.moved = {(kind, old): new for kind, old, new in state["moved"]}
        self.collections = state["collections"]
        self.xet_ids, self.xet_files = state["xet_ids"], state["xet_files"]

    def save(self) -> None:
        """Write `state.json`, so that a server on the same folder finds everything again."""
        names = [part.name for part in fields(Repo) if part.name != "git"]
        with self.lock:
            rows = [{name: getattr(repo, name) for name in names} for repo in self.repos.values()]
            moved = [[kind, old, new] for (kind, old), new in self.moved.items()]
            state = {"repos": rows, "moved": moved, "collections": self.collections}
            state |= {"xet_ids": self.xet_ids, "xet_files": self.xet_files}
            self._state.write_text(json.dumps(state, default=sorted))

    def _git_folder(self, kind: str, repo_id: str) -> Path:
        return self.root / "repos" / f"{kind}s" / f"{repo_id}.git"

    def create(self, kind: str, repo_id: str, *, author: str, private: bool = False) -> Repo:
        """Create a repository with the Hub's initial commit."""
        with self.lock:
            git = GitRepository(self._git_folder(kind, repo_id))
            files = {".gitattributes": git.put("blob", GIT_ATTRIBUTES.encode())}
            first = git.commit(files, (), author=author, message="initial commit")
            git.set_ref("refs/heads/main", first)
            self.moved.pop((kind, repo_id), None)
            self.repos[kind, repo_id] = repo = Repo(kind, repo_id, git, private=private)
            return repo

    def delete(self, repo: Repo) -> None:
        """Remove a repository from the folder."""
        with self.lock:
            shutil.rmtree(repo.git.path)
            del self.repos[repo.kind, repo.id]

    def move(self, repo: Repo, new_id: str) -> None:
        """Give a repository another id; the old one leads to it from now on."""
        with self.lock:
            folder = self._git_folder(repo.kind, new_id)
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.rename(repo.git.path, folder)
            old = repo.kind, repo.id
            repo.id, repo.git = new_id, GitRepository(folder)
            self.repos[repo.kind, new_id] = self.repos.pop(old)
            self.moved.pop((repo.kind, new_id), None)
            self.moved[old] = new_id

    def temporary(self) -> Path:
        """Return a path for a file that is still being received."""
        return self.root / "temporary" / secrets.token_hex(8)

    def large_file(self, sha256: str) -> Path:
        """Return where a large file is, or would be."""
        return self.root / "lfs" / sha256[:2] / sha256

    def keep_large(self, body: bytes | Path, sha256: str | None = None) -> str:
        """Keep a large file, moving it if it is in a file already, and return its sha256.

        Raises:
            Refusal: If its content has another sha256 than the one given.
        """
        if isinstance(body, bytes):
            found = hashlib.sha256(body).hexdigest()
        else:
            with body.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 not in (None, found):
            raise Refusal(400, f"BadDigest: the content's sha256 is {found}, not {sha256}")
        move_into(body, self.large_file(found))
        return found

    def put_file(self, repo: Repo, path: str, content: bytes, *, files: dict[str, str]) -> str:
        """Store a file as the Hub would, in git or outside, and return its blob."""
        if not is_large(path, len(content), content[:512], attributes(repo, files)):
            return repo.git.put("blob", content)
        return repo.git.put("blob", pointer(self.keep_large(content), len(content)))

    def file(self, repo: Repo, blob: str) -> bytes | Path:
        """Return a file's bytes; for a large one where it is."""
        sha256 = repo.git.blob(blob).lfs
        return repo.git.read(blob) if sha256 is None else self.large_file(sha256)


def move_into(body: bytes | Path, target: Path) -> None:
    """Put received bytes, or the temporary file that has them, at a path in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(body, bytes):
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        temporary.write_bytes(body)
        body = temporary
    os.replace(body, target)


def attributes(repo: Repo, files: dict[str, str]) -> str:
    """Return the `.gitattributes` among files."""
    blob = files.get(".gitattributes")
    return repo.git.read(blob).decode("utf-8", "replace") if blob else ""


def is_large(path: str, size: int, sample: bytes, attributes: str) -> bool:
    """Return whether a file belongs outside git: by its pattern, its size, or as binary."""
    rows = [line.split() for line in attributes.splitlines() if "filter=lfs" in line]
    named = any(matches(path, row[0]) for row in rows)
    return named or size >= LARGE_BYTES or b"\0" in sample


def matches(path: str, pattern: str) -> bool:
    """Return whether a path fits a pattern of `.gitattributes` or `.gitignore`.

    Without a slash a pattern is for the file's name or any folder's; with one for the whole path.
    """
    inner = pattern.strip("/")
    parts = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.split(r"(\*\*/|\*\*|\*|\?)", inner)
    expression = "".join(parts.get(token, re.escape(token)) for token in tokens)
    anchor = "" if "/" in pattern.rstrip("/") else "(.*/)?"
    return re.fullmatch(f"{anchor}{expression}(/.*)?", path) is not None
