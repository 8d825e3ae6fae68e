"""Asking the Hub: within a time that a person waits, again where that is safe, errors in words.

Everything that talks to the Hub goes through here, so that one refusal is told in one way, with
its next step, and no text of a request, which may quote a token, gets into a message.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future
from json import JSONDecodeError
from threading import Thread
from time import monotonic, sleep
from typing import Literal, NamedTuple, TypeVar

from morlaif_hub.errors import DataError, HubError, ModelNotFoundError, MorlaifHubError

RepoType = Literal["model", "dataset"]
T = TypeVar("T")

ANSWER_SECONDS = 3.0
"""How long the Hub may take to say whether it has a repository.

With the time that a new process takes to import its libraries, less than 5 seconds.
"""
_SHORT_PAUSES = (0.2, 0.8)  # seconds, both within ANSWER_SECONDS
TRIES = 4
PATIENCE = 30.0
"""Seconds in which each try has to be answered; the client itself would wait without end."""
ENOUGH = 20.0
"""Seconds after which no other try is begun; some questions the client itself asks for so long."""
LONGEST_PAUSE = 30.0
"""Seconds; a Hub that asks for a longer pause than this is told to the user instead."""

ODD_TOKEN = (
    "your token for the Hub has characters that no token has; set HF_TOKEN to one from your "
    "account's settings, or unset it"
)
LOG_IN = "log in with 'hf auth login' or set HF_TOKEN"
NOT_FOUND: dict[str, type[MorlaifHubError]] = {"model": ModelNotFoundError, "dataset": DataError}


class Asked(NamedTuple):
    """A repository that is asked for; the revision is None for its main branch."""

    repo_id: str
    revision: str | None = None
    repo_type: RepoType = "model"

    @property
    def name(self) -> str:
        """The repository as the user writes it."""
        return f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id


class NoAnswer(Exception):
    """The Hub gave no answer that means anything; the text says why, without any request's text."""


def endpoint() -> str:
    """Return the address of the Hub that is used, without a slash at its end."""
    from huggingface_hub import constants

    return constants.ENDPOINT.rstrip("/")


def has_token() -> bool:
    """Whether there is a token, from `HF_TOKEN` or `hf auth login`; not whether it is valid."""
    from huggingface_hub import get_token

    return bool(get_token())


def ask_once(ask: Callable[[], T]) -> T:
    """Return the Hub's answer to one question, within `ANSWER_SECONDS`.

    A connection that is cut off and a server that stumbles are given two more tries in that time.

    Raises:
        NoAnswer: If there is none: no network, no time, a server in trouble, or no Hub at all.
        HfHubHTTPError: If the Hub refuses, for `refusal` to put into words.
        HubError: If the token cannot be sent.
    """
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its own httpx

    try:
        return within(ANSWER_SECONDS, lambda: _again_if_cut_off(ask))
    except OfflineModeIsEnabled as error:
        raise NoAnswer("HF_HUB_OFFLINE is set") from error
    except TimeoutError as error:
        raise NoAnswer(f"no answer within {ANSWER_SECONDS:g} seconds") from error
    except HfHubHTTPError as error:
        if not is_passing(error):
            raise
        raise NoAnswer(f"it answered {error.response.status_code}") from error
    except httpx.TransportError as error:
        raise NoAnswer(type(error).__name__) from error  # its text may quote the token
    except UnicodeEncodeError:
        raise HubError(ODD_TOKEN) from None  # the error holds the token
    except ValueError as error:  # a network that asks for a log-in answers everything with a page
        raise NoAnswer("what answered is not a Hub") from error


def patiently(asked: Asked, ask: Callable[[], T]) -> T:
    """Return the Hub's answer, asking again after faults that pass.

    Only for questions that may be asked twice. The pauses are those that the Hub asks for, or else
    1, 2 and 4 seconds.

    Raises:
        HubError, ModelNotFoundError, DataError: If the Hub refuses, or the faults do not pass.
    """
    start = monotonic()
    for number in range(TRIES):
        try:
            return within(PATIENCE, ask)
        except Exception as error:  # the Hub's come from three libraries; all others go on up
            if not is_the_hubs(error):
                raise
            pause = _pause_after(error, number)
            if pause is None or number == TRIES - 1 or monotonic() - start > ENOUGH:
                raise refusal(asked, error) from error
            sleep(pause)
    raise AssertionError("the last try returns or raises")


def is_the_hubs(error: BaseException) -> bool:
    """Whether an error comes from the way to the Hub, not from a fault in this program."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its own httpx

    # A RuntimeError is hf_xet's; a ValueError is an answer that is not JSON, or a refused card.
    theirs = HfHubHTTPError | httpx.TransportError | OSError | RuntimeError | ValueError
    return isinstance(error, theirs)


def is_passing(error: BaseException) -> bool:
    """Whether an error may be gone a moment later: a lost connection, 408, 429 or 5xx."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its own httpx

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in (408, 429) or status >= 500
    if isinstance(error, OfflineModeIsEnabled):  # a ConnectionError too, but it stays
        return False
    return isinstance(error, httpx.TransportError | ConnectionError | TimeoutError)


def within(seconds: float, ask: Callable[[], T]) -> T:
    """Return what `ask` returns, or raise TimeoutError after that many seconds.

    A request's own timeout begins anew with each address of a host and each step, so it does not
    bound the whole. The thread is a daemon: a request that hangs does not hold up the program.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:  # whoever waits for the answer gets it
            answer.set_exception(error)

    Thread(target=run, daemon=True).start()
    return answer.result(timeout=seconds)


def refusal(asked: Asked, error: BaseException) -> MorlaifHubError:
    """Return, in words and with the next step, why the Hub did not do what it was asked for."""
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    error = _cause(error)
    if isinstance(error, MorlaifHubError):
        return error
    not_found = NOT_FOUND[asked.repo_type]
    match error:
        case GatedRepoError():
            page = f"{endpoint()}/{_path(asked)}"
            return HubError(f"{asked.repo_id} is gated: ask for access at {page}, then {LOG_IN}")
        case DisabledRepoError():
            return HubError(
                f"{asked.repo_id} was disabled on the Hub, so nobody can load it; use another"
            )
        case RevisionNotFoundError():
            return not_found(
                f"{asked.repo_id} is on the Hub, but has no revision {asked.revision!r}; leave "
                f"out @{asked.revision} for its newest version, or see its tags and commits at "
                f"{endpoint()}/{_path(asked)}/commits/main"
            )
        case OfflineModeIsEnabled():
            return HubError(f"{asked.name}: HF_HUB_OFFLINE is set; unset it to reach the Hub")
        case RepositoryNotFoundError():
            return not_found(_missing(asked, error.response.status_code))
        case HfHubHTTPError() if error.response.status_code == 401:
            return not_found(_missing(asked, 401))
        case HfHubHTTPError():
            return HubError(_answered(asked, error.response.status_code))
    return HubError(f"{asked.name}: the connection to the Hub failed ({_reason(error)}); try again")


def _cause(error: BaseException) -> BaseException:
    """Return the answer or the lost connection that the Hub's client made an error of its own of.

    Where there is none, the error itself.
    """
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its own httpx

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MorlaifHubError):
        if isinstance(cause, HfHubHTTPError | httpx.TransportError):
            return cause
        cause = cause.__cause__
    return error


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, JSONDecodeError | UnicodeDecodeError):
        return "what answered is not a Hub, or a Hub in trouble"
    # Only the system's own text is known not to quote a token.
    return getattr(error, "strerror", None) or type(error).__name__


def _again_if_cut_off(ask: Callable[[], T]) -> T:
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its own httpx

    for pause in _SHORT_PAUSES:
        try:
            return ask()
        except Exception as error:  # raised again, unless it will pass
            # Where nothing listens at all, a second look a moment later sees nothing else.
            if not is_passing(error) or isinstance(error, httpx.ConnectError):
                raise
        sleep(pause)
    return ask()


def _missing(asked: Asked, status: int) -> str:
    local = "; for the local folder, write ./ before it" if os.path.exists(asked.repo_id) else ""
    if has_token() and status == 401:  # a valid token is told 404
        return (
            f"the Hub does not accept your token, so {asked.repo_id} cannot be read; {LOG_IN} "
            f"again, or unset HF_TOKEN for what is public{local}"
        )
    if has_token():
        return (
            f"there is no {asked.repo_type} {asked.repo_id} on the Hub that your account may "
            f"read; check the name, or ask its owner for access{local}"
        )
    return (
        f"there is no {asked.repo_type} {asked.repo_id} on the Hub that everybody may read; check "
        f"the name, or if it is private, {LOG_IN}{local}"
    )


def _answered(asked: Asked, status: int) -> str:
    if status == 403:
        return (
            f"{asked.name}: the Hub answered 403, so your token may not do this; use one that "
            f"may, which to publish has write access to {asked.repo_id.partition('/')[0]}"
        )
    later = "; it limits requests, so wait a few minutes" if status == 429 else "; try again later"
    return f"the Hub answered {status} when asked for {asked.name}{later if status >= 429 else ''}"


def _path(asked: Asked) -> str:
    return asked.repo_id if asked.repo_type == "model" else f"{asked.repo_type}s/{asked.repo_id}"


def _pause_after(error: Exception, number: int) -> float | None:
    """Return how many seconds to wait before asking again; None not to."""
    if not is_passing(error):
        return None
    response = getattr(error, "response", None)
    wanted = response.headers.get("Retry-After", "") if response is not None else ""
    pause = float(wanted) if wanted.isdigit() else float(2**number)
    return pause if pause <= LONGEST_PAUSE else None
