"""Bare git repositories, written object by object.

Only loose objects and plain ref files, so that a repository needs no git program, and yet
`git clone <path>` and `git fsck` find an ordinary one. A tree is seen as `{path: blob id}`.
"""

import hashlib
import os
import re
import secrets
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

OBJECT_ID = re.compile(r"[0-9a-f]{40}")
_SHORT_ID = re.compile(r"[0-9a-f]{7,39}")
_POINTER = re.compile(
    rb"\Aversion https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n\Z"
)
_LONGEST_POINTER = 200


class Blob(NamedTuple):
    """What a blob stands for.

    Attributes:
        size: Bytes of the file: for an LFS pointer, of what it points to.
        lfs: The sha256 that an LFS pointer names; None for an ordinary file.
        stored: Bytes of the blob itself.
    """

    size: int
    lfs: str | None
    stored: int


class Tree(NamedTuple):
    """A commit's files and folders, each with its object id."""

    files: dict[str, str]
    folders: dict[str, str]


@dataclass(frozen=True)
class Commit:
    """One commit, read back."""

    id: str
    tree: str
    parents: tuple[str, ...]
    author: str
    time: int
    message: str


def pointer(sha256: str, size: int) -> bytes:
    """Return the LFS pointer that stands for a large file."""
    spec = "https://git-lfs.github.com/spec/v1"
    return f"version {spec}\noid sha256:{sha256}\nsize {size}\n".encode()


class GitRepository:
    """A bare repository in a folder, created if the folder has none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._commits: dict[str, Commit] = {}
        self._trees: dict[str, Tree] = {}
        self._blobs: dict[str, Blob] = {}
        if not (path / "HEAD").exists():
            for folder in ("objects", "refs/heads", "refs/tags"):
                (path / folder).mkdir(parents=True, exist_ok=True)
            (path / "HEAD").write_text("ref: refs/heads/main\n")
            (path / "config").write_text(
                "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n"
            )

    def _object(self, object_id: str) -> Path:
        return self.path / "objects" / object_id[:2] / object_id[2:]

    def put(self, kind: str, content: bytes) -> str:
        """Store an object and return its id."""
        raw = f"{kind} {len(content)}\0".encode() + content
        object_id = hashlib.sha1(raw, usedforsecurity=False).hexdigest()
        path = self._object(object_id)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            _replace(path, zlib.compress(raw, 1))
        return object_id

    def get(self, object_id: str) -> tuple[str, bytes]:
        """Return an object's kind and content."""
        head, _, content = zlib.decompress(self._object(object_id).read_bytes()).partition(b"\0")
        return head.split()[0].decode(), content

    def read(self, blob: str) -> bytes:
        """Return a blob's bytes: for a large file its pointer."""
        return self.get(blob)[1]

    def blob(self, blob: str) -> Blob:
        """Return what a blob stands for."""
        if blob not in self._blobs:
            content = self.read(blob)
            match = _POINTER.match(content) if len(content) < _LONGEST_POINTER else None
            size, sha256 = (int(match[2]), match[1].decode()) if match else (len(content), None)
            self._blobs[blob] = Blob(size, sha256, len(content))
        return self._blobs[blob]

    def ref(self, name: str) -> str | None:
        """Return what a full ref name (`refs/heads/main`) points to, or None."""
        path = self.path / name
        return path.read_text().strip() if path.is_file() else None

    def set_ref(self, name: str, target: str | None) -> None:
        """Point a ref at an object; None removes it."""
        path = self.path / name
        if target is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, f"{target}\n".encode())

    def refs(self, prefix: str) -> dict[str, str]:
        """Return the commits under a prefix (`refs/heads/`) by their names after it."""
        base = self.path / prefix
        names = sorted(str(p.relative_to(base)) for p in base.rglob("*") if p.is_file())
        commits = {name: self.resolve(f"{prefix}{name}") for name in names}
        return {name: commit for name, commit in commits.items() if commit}

    def resolve(self, revision: str) -> str | None:
        """Return the commit of a branch, tag, full ref or (shortened) commit id; None if none."""
        full = [revision] if revision.startswith("refs/") else []
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", *full):
            if target := self.ref(name):
                return self._peeled(target)
        if OBJECT_ID.fullmatch(revision):
            candidates = [revision] if self._object(revision).exists() else []
        elif _SHORT_ID.fullmatch(revision):
            folder = self.path / "objects" / revision[:2]
            candidates = [revision[:2] + path.name for path in folder.glob(f"{revision[2:]}*")]
        else:
            candidates = []
        commits = [candidate for candidate in candidates if self.get(candidate)[0] == "commit"]
        return commits[0] if len(commits) == 1 else None

    def _peeled(self, target: str) -> str:
        """Return the commit that an annotated tag points to; a commit as it is."""
        kind, content = self.get(target)
        return content.split(b"\n", 1)[0].split()[1].decode() if kind == "tag" else target

    def info(self, commit: str) -> Commit:
        """Return a commit's parents, author, time and message."""
        if commit not in self._commits:
            head, _, message = self.get(commit)[1].decode().partition("\n\n")
            rows = [line.split(" ", 1) for line in head.split("\n")]
            fields = {name: value for name, value in rows if name != "parent"}
            author, _, rest = fields["author"].partition(" <")
            seconds = rest.rpartition("> ")[2].split()[0]
            parents = tuple(value for name, value in rows if name == "parent")
            self._commits[commit] = Commit(
                commit, fields["tree"], parents, author, int(seconds), message
            )
        return self._commits[commit]

    def history(self, commit: str) -> Iterator[Commit]:
        """Yield a commit and its first parents, newest first."""
        following: str | None = commit
        while following:
            info = self.info(following)
            yield info
            following = info.parents[0] if info.parents else None

    def tree(self, commit: str) -> Tree:
        """Return all files and folders of a commit. The result is shared: do not change it."""
        if commit not in self._trees:
            found = Tree({}, {})
            self._walk(self.info(commit).tree, "", found)
            self._trees[commit] = found
        return self._trees[commit]

    def _walk(self, tree: str, prefix: str, found: Tree) -> None:
        rest = self.get(tree)[1]
        while rest:
            head, _, rest = rest.partition(b"\0")
            mode, name = head.split(b" ", 1)
            object_id, rest = rest[:20].hex(), rest[20:]
            path = prefix + name.decode()
            if mode == b"40000":
                found.folders[path] = object_id
                self._walk(object_id, f"{path}/", found)
            else:
                found.files[path] = object_id

    def commit(
        self, files: dict[str, str], parents: tuple[str, ...], *, author: str, message: str
    ) -> str:
        """Write a commit of `{path: blob}`, move no ref, and return its id."""
        who = f"{author} <{author}@users.noreply.localhost> {int(time.time())} +0000"
        lines = [f"tree {self._write_tree(files)}", *(f"parent {parent}" for parent in parents)]
        lines += [f"author {who}", f"committer {who}", "", message]
        return self.put("commit", "\n".join(lines).encode())

    def _write_tree(self, files: dict[str, str]) -> str:
        rows: list[tuple[bytes, bytes]] = []
        folders: dict[str, dict[str, str]] = {}
        for path, blob in files.items():
            first, below, rest = path.partition("/")
            if below:
                folders.setdefault(first, {})[rest] = blob
            else:
                rows.append((first.encode(), _row("100644", first, blob)))
        for name, inner in folders.items():
            # git sorts a folder as if its name ended in a slash.
            rows.append((f"{name}/".encode(), _row("40000", name, self._write_tree(inner))))
        return self.put("tree", b"".join(row for _, row in sorted(rows)))

    def tag(self, name: str, commit: str, *, author: str, message: str | None = None) -> None:
        """Tag a commit; with a message as an annotated tag."""
        target = commit
        if message:
            who = f"{author} <{author}@users.noreply.localhost> {int(time.time())} +0000"
            head = f"object {commit}\ntype commit\ntag {name}\ntagger {who}"
            target = self.put("tag", f"{head}\n\n{message}\n".encode())
        self.set_ref(f"refs/tags/{name}", target)


def _row(mode: str, name: str, object_id: str) -> bytes:
    return f"{mode} {name}\0".encode() + bytes.fromhex(object_id)


def _replace(path: Path, content: bytes) -> None:
    """Write a file in one step: who reads at the same time sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
