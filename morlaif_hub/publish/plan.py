"""What a push would do, what it did, and who follows it."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from morlaif_hub.publish.checks import Check
from morlaif_hub.publish.links import Need

Change = Literal["new", "changed", "same", "removed"]


class PlannedFile(NamedTuple):
    """A file of a push: its path, its size in bytes (0 if removed), and what becomes of it."""

    path: str
    size: int
    change: Change


@dataclass(frozen=True)
class PushPlan:
    """What a push would do.

    Attributes:
        kind: Of artifact.
        repo_id: The repository.
        exists: Whether it is on the Hub; None if nobody asked, without a token.
        public: Whether everybody may read it afterwards.
        files: What becomes of each file.
        needs: What is not on the Hub yet.
        card: The rendered card.
        refused: Why the push would be refused as things are; None if it would not.
    """

    kind: str
    repo_id: str
    exists: bool | None
    public: bool
    files: tuple[PlannedFile, ...]
    needs: tuple[Need, ...]
    card: str
    refused: str | None = None

    @property
    def bytes(self) -> int:
        """How much is sent, at most."""
        return sum(file.size for file in self.files if file.change in ("new", "changed"))


@dataclass(frozen=True)
class Published:
    """A push that succeeded.

    Attributes:
        repo_id: The repository.
        commit: What was committed, or was there already.
        tag: Its version; None for a pull request.
        url: Where to look at it.
        public: Whether everybody may read it.
        new: Whether there was anything to commit.
        checks: What was measured on the copy that was downloaded again.
        collection: The address of a bank's Collection.
        needs: What others would still like to have on the Hub.
    """

    repo_id: str
    commit: str
    tag: str | None
    url: str
    public: bool
    new: bool
    checks: tuple[Check, ...]
    collection: str | None
    needs: tuple[Need, ...]


class Watch(Protocol):
    """Follows a push."""

    def planned(self, plan: PushPlan) -> bool:
        """Return whether to go on, before anything is sent."""

    def step(self, text: str) -> None:
        """Take note of what is being done now."""


class Unwatched:
    """Follows a push without a word, and lets it go on."""

    def planned(self, plan: PushPlan) -> bool:  # noqa: ARG002  # the protocol's signature
        """Go on."""
        return True

    def step(self, text: str) -> None:
        """Say nothing."""
