"""The endpoints, by topic; importing a module registers its routes."""

from tests.hub_server.api import (
    collections,
    commits,
    discussions,
    files,
    lfs,
    metadata,
    refs,
    repos,
    xet,
)

__all__ = [
    "collections",
    "commits",
    "discussions",
    "files",
    "lfs",
    "metadata",
    "refs",
    "repos",
    "xet",
]
