"""Which function answers which request: `@route("GET", "/api/{kinds}/{repo}/refs")`.

Patterns are matched against the path as it was sent, since a revision may hold an encoded slash;
handlers get the decoded parts as keyword arguments.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar
from urllib.parse import unquote

from tests.hub_server.state import State
from tests.hub_server.store import KINDS
from tests.hub_server.wire import Answer, Origin, Refusal, Request

Handler = TypeVar("Handler", bound=Callable[..., Answer])

PARTS = {
    "kinds": "models|datasets|spaces",
    "prefix": "(?:datasets/|spaces/)?",
    "repo": "[^/]+/[^/]+?|[^/]+?",
    "hash": "[0-9a-f]{64}",
    "number": r"\d+",
    "path": ".+",
}
"""What a part of a pattern matches; any other one matches up to the next slash."""


@dataclass(frozen=True)
class Route:
    """One pattern and its handler."""

    origin: Origin
    method: str
    pattern: re.Pattern[str]
    handler: Callable[..., Answer]


ROUTES: list[Route] = []


def route(method: str, pattern: str, origin: Origin = "hub") -> Callable[[Handler], Handler]:
    """Register the decorated function for a method and a path, a regular expression with names."""
    pieces = re.split(r"\{(\w+)\}", pattern)
    for index in range(1, len(pieces), 2):
        name = pieces[index]
        pieces[index] = f"(?P<{name}>{PARTS.get(name, '[^/]+')})"
    compiled = re.compile("".join(pieces))

    def register(handler: Handler) -> Handler:
        ROUTES.append(Route(origin, method, compiled, handler))
        return handler

    return register


def answer(state: State, origin: Origin, request: Request) -> Answer:
    """Return the answer to a request."""
    try:
        return _handle(state, origin, request)
    except Refusal as refusal:
        return refusal.answer


def _handle(state: State, origin: Origin, request: Request) -> Answer:
    path = request.path.rstrip("/") or "/"
    for entry in _routes(origin, request.method):
        if match := entry.pattern.fullmatch(path):
            return entry.handler(state, request, **_arguments(match.groupdict()))
    raise Refusal(404, f"No such route: {request.method} {request.path}")


@cache
def _routes(origin: Origin, method: str) -> list[Route]:
    """Return the routes of a method; what can be got can be asked about with HEAD."""
    wanted = "GET" if method == "HEAD" else method
    return [entry for entry in ROUTES if (entry.origin, entry.method) == (origin, wanted)]


def _arguments(parts: dict[str, str]) -> dict[str, str]:
    """Decode the parts, and make a repository's kind of `models` or `datasets/`."""
    arguments = {name: unquote(value) for name, value in parts.items()}
    for name in ("kinds", "prefix"):
        if name in arguments:
            arguments["kind"] = KINDS[arguments.pop(name).rstrip("/") or "models"]
    if "repo" in arguments:
        arguments["repo_id"] = arguments.pop("repo")
    return arguments
