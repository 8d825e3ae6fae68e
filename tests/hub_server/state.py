"""What every handler gets: the store, the accounts, the settings, and signed addresses."""

import hmac
import secrets
import time
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from tests.hub_server.accounts import Accounts
from tests.hub_server.store import Store
from tests.hub_server.wire import Refusal, Request

VALID_SECONDS = 3600


@dataclass(frozen=True)
class Settings:
    """How a server behaves.

    Attributes:
        xet: Whether it has Xet storage; without, large files go over LFS.
        http_compat: Whether a 401 carries `X-Error-Code: RepoNotFound`. The real Hub sends none:
            its client looks at the address instead, but only if that begins with `https://`.
        page_size: Rows of a listing on one page.
        part_bytes: Size from which an LFS upload goes in parts; None for never.
    """

    xet: bool = True
    http_compat: bool = True
    page_size: int = 1000
    part_bytes: int | None = None


@dataclass(frozen=True)
class State:
    """One server's state."""

    store: Store
    settings: Settings
    accounts: Accounts = field(default_factory=Accounts)
    key: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def signature(self, text: str) -> str:
        """Return what only this server can write under a text."""
        return hmac.new(self.key, text.encode(), "sha256").hexdigest()[:32]

    def sign(self, request: Request, path: str) -> str:
        """Return an address at the second origin that works for an hour, without a token."""
        expires = int(time.time()) + VALID_SECONDS
        return f"{request.cdn}{path}?exp={expires}&sig={self.signature(f'{path}|{expires}')}"

    def check_signature(self, request: Request) -> None:
        """Check that an address was signed here.

        Raises:
            Refusal: With status 403 if not, or if it is too old.
        """
        given = {name: values[0] for name, values in parse_qs(request.query).items()}
        expires = given.get("exp", "0")
        good = self.signature(f"{request.path}|{expires}")
        if given.get("sig") != good or int(expires) < time.time():
            raise Refusal(403, "Request has expired or its signature does not match")
