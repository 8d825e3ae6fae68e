"""Users, organisations and access tokens: who is asking, and what they may read and write."""

import base64
import secrets
import time
from dataclasses import dataclass, field

from tests.hub_server.wire import Json, Refusal, Request, timestamp

WRITING_ROLES = ("admin", "write", "contributor")
READ_SCOPE, WRITE_SCOPE = "repo.content.read", "repo.write"


@dataclass
class User:
    """A user with a role in each of their organisations."""

    name: str
    orgs: dict[str, str] = field(default_factory=dict)

    def role_in(self, namespace: str) -> str | None:
        """Return the user's role in a namespace: `admin` in their own, None in strangers'."""
        return "admin" if namespace == self.name else self.orgs.get(namespace)


@dataclass(frozen=True)
class Token:
    """An access token.

    Attributes:
        role: `read`, `write` or `fineGrained`.
        scopes: What a fine-grained token may do, by user, organisation or repository.
    """

    user: User
    role: str
    scopes: dict[str, list[str]]
    created: float = field(default_factory=time.time)

    def allows(self, scope: str, names: tuple[str, str]) -> bool:
        """Return whether the token permits an action on a namespace or one of its repositories."""
        if self.role != "fineGrained":
            return scope == READ_SCOPE or self.role == "write"
        granted = {given for name in names for given in self.scopes.get(name, [])}
        # Who may write a repository may read it.
        return scope in granted or (scope == READ_SCOPE and WRITE_SCOPE in granted)


@dataclass(frozen=True)
class Caller:
    """Who sent a request; without a token, nobody."""

    token: Token | None = None

    @property
    def name(self) -> str | None:
        """The user's name."""
        return self.token.user.name if self.token else None

    def is_member(self, namespace: str) -> bool:
        """Return whether a namespace is the caller's own or one of their organisations."""
        return self.token is not None and self.token.user.role_in(namespace) is not None

    def may_read(self, repo_id: str) -> bool:
        """Return whether the caller sees what is private in this repository or collection."""
        names = (repo_id.split("/")[0], repo_id)
        return self.is_member(names[0]) and self._token.allows(READ_SCOPE, names)

    def may_write(self, repo_id: str) -> bool:
        """Return whether the caller may change this repository or collection."""
        names = (repo_id.split("/")[0], repo_id)
        role = self.token.user.role_in(names[0]) if self.token else None
        return role in WRITING_ROLES and self._token.allows(WRITE_SCOPE, names)

    @property
    def _token(self) -> Token:
        assert self.token is not None
        return self.token

    def user(self) -> User:
        """Return the user.

        Raises:
            Refusal: With status 401 if there was no token.
        """
        if self.token is None:
            raise unauthorized()
        return self.token.user


class Accounts:
    """All users and all tokens that were ever given out."""

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.tokens: dict[str, Token] = {}

    def add(
        self,
        name: str,
        *,
        role: str,
        orgs: dict[str, str] | None,
        scopes: dict[str, list[str]] | None,
        value: str | None,
    ) -> str:
        """Return a new token of a user, who is created or joins more organisations."""
        user = self.users.setdefault(name, User(name))
        user.orgs |= orgs or {}
        value = value or f"hf_{secrets.token_hex(17)}"
        granted = {name: [READ_SCOPE, WRITE_SCOPE]} if scopes is None else scopes
        self.tokens[value] = Token(user, role, granted if role == "fineGrained" else {})
        return value

    def caller(self, request: Request) -> Caller:
        """Return who sent a request.

        Raises:
            Refusal: With status 401 if the token is unknown.
        """
        value = bearer(request.headers.get("Authorization"))
        if value is None:
            return Caller()
        if value not in self.tokens:
            raise unauthorized()
        return Caller(self.tokens[value])

    def leaked(self, text: str) -> bool:
        """Return whether a header or address carries one of the tokens."""
        return any(value in text or value in (bearer(text) or "") for value in self.tokens)


def bearer(header: str | None) -> str | None:
    """Return the token of an `Authorization` header; git and others send it as a password."""
    kind, _, value = (header or "").partition(" ")
    if kind == "Basic":
        try:
            return base64.b64decode(value).decode().partition(":")[2]
        except ValueError:
            return ""
    return value.strip() if kind == "Bearer" else None


def unauthorized(code: str | None = None) -> Refusal:
    """Return what the Hub tells those whom it does not know, whatever they asked for."""
    challenge = 'Bearer realm="Authentication required", charset="UTF-8"'
    headers = {"WWW-Authenticate": challenge}
    return Refusal(401, "Invalid username or password.", code, headers=headers)


def describe(token: Token) -> Json:
    """Return what `whoami-v2` says about a token and its user."""
    user = token.user
    access: Json = {
        "displayName": "tests",
        "role": token.role,
        "createdAt": timestamp(token.created),
    }
    if token.role == "fineGrained":
        kinds = {user.name: "user", **dict.fromkeys(user.orgs, "org")}
        access["fineGrained"] = {
            "canReadGatedRepos": False,
            "global": [],
            "scoped": [
                {"entity": {"type": kinds.get(name, "model"), "name": name}, "permissions": scopes}
                for name, scopes in token.scopes.items()
            ],
        }
    orgs = [
        {"type": "org", "name": org, "fullname": org, "roleInOrg": role, "isEnterprise": False}
        for org, role in user.orgs.items()
    ]
    return {
        "type": "user",
        "name": user.name,
        "fullname": user.name,
        "email": f"{user.name}@localhost",
        "emailVerified": True,
        "isPro": False,
        "canPay": False,
        "avatarUrl": "",
        "orgs": orgs,
        "auth": {"type": "access_token", "accessToken": access},
    }
