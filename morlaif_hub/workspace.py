"""Where a project's artifacts are kept on this machine."""

import os
from dataclasses import dataclass
from pathlib import Path

from morlaif_hub.errors import WorkspaceError

DEFAULT = "./morlaif"


@dataclass(frozen=True)
class Workspace:
    """A folder with one place for each kind of artifact.

    Attributes:
        root: The folder; it is created when something is written.
    """

    root: Path

    @classmethod
    def at(cls, folder: str | Path | None = None) -> "Workspace":
        """Return a workspace: a folder, else `MORLAIF_WORKSPACE`, else `./morlaif`."""
        chosen = folder or os.environ.get("MORLAIF_WORKSPACE") or DEFAULT
        return cls(Path(chosen).expanduser())

    @property
    def pairs(self) -> Path:
        """Sampled responses and the pairs made of them."""
        return self.root / "pairs"

    @property
    def all_feedback(self) -> Path:
        """Feedback datasets, a folder each."""
        return self.root / "feedback"

    @property
    def bank(self) -> Path:
        """The bank."""
        return self.root / "bank"

    @property
    def reports(self) -> Path:
        """Reports as JSON and HTML."""
        return self.root / "reports"

    @property
    def training(self) -> Path:
        """What training that was killed goes on from."""
        return self.root / "training"

    @property
    def scores(self) -> Path:
        """Scores of sets of pairs, a folder each."""
        return self.root / "scores"

    def feedback(self, principle: str) -> Path:
        """The feedback dataset of a principle."""
        return self.all_feedback / principle

    def preference_model(self, principle: str) -> Path:
        """The preference model of a principle."""
        return self.root / "pms" / principle

    def policy(self, name: str) -> Path:
        """A trained policy."""
        return self.root / "policies" / name

    def check_writable(self) -> None:
        """Check, before any work, that artifacts can be written.

        Raises:
            WorkspaceError: If they cannot; the message says why and what to do.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".write-test-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise WorkspaceError(
                f"the workspace {self.root} cannot be written ({error.strerror}); choose another "
                "with --workspace or MORLAIF_WORKSPACE"
            ) from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, making its folder.

    Raises:
        WorkspaceError: If it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise WorkspaceError(f"{path} cannot be written: {error.strerror}") from error
