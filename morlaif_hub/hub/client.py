"""The way to the Hub: the one place that talks to it.

Others ask for a source, a local path or a repo id, and get a folder with a pinned commit. What
looks like a repo id is never taken for a folder, and the other way round, so that a folder of
the same name on this machine cannot stand in for a repository.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Literal, NamedTuple, TypeVar

from morlaif_hub.errors import DataError, HubError, ModelNotFoundError, MorlaifHubError

RepoType = Literal["model", "dataset"]
T = TypeVar("T")

ANSWER_SECONDS = 3.0
"""How long the Hub may take to say whether it has a repository.

With the time that a new process takes to import its libraries, less than 5 seconds.
"""

_LOCAL = re.compile(r"/|(\.\.?|~)(/|$)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"(?!.*(\.\.|//))\w[\w./+#-]*", re.ASCII)
_NOT_FOUND: dict[str, type[MorlaifHubError]] = {"model": ModelNotFoundError, "dataset": DataError}


class Resolved(NamedTuple):
    """Where a source is on this machine.

    Attributes:
        path: An absolute path: a folder, or a file if a local file was asked for.
        repo_id: The Hub repository; None for a local path.
        revision: Its commit, 40 hexadecimal digits; None for a local path.
    """

    path: Path
    repo_id: str | None
    revision: str | None


class _Wanted(NamedTuple):
    """A repository at a revision, None for its main branch, as the Hub's client is asked for it."""

    repo_id: str
    revision: str | None
    repo_type: RepoType
    allow_patterns: Sequence[str] | None


def fetch(
    source: str | Path,
    *,
    repo_type: RepoType = "model",
    allow_patterns: Sequence[str] | None = None,
) -> Resolved:
    """Return a source's folder, downloading it unless the Hub's cache has all of it.

    A branch or tag is resolved to a commit once. Without a network, what the cache has is used:
    a pinned commit at once, a branch as it was when it was last fetched.

    Args:
        source: A local folder or file (a `Path`, or text that starts with `./`, `../`, `/` or
            `~`), or `repo_id`, or `repo_id@revision`.
        repo_type: What kind of repository `repo_id` is.
        allow_patterns: Shell patterns; only files of a repository that match one are fetched.

    Raises:
        ModelNotFoundError: If there is no such path, repository, revision or file.
        DataError: The same for a data set.
        HubError: If the Hub refuses, or cannot be reached and its cache does not have it.
    """
    if isinstance(source, Path) or _LOCAL.match(source):
        return Resolved(_existing(Path(source), repo_type), None, None)
    wanted = _parse(source, repo_type, allow_patterns)
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its own httpx

    try:
        folder = _download(wanted)
    except MorlaifHubError:
        raise
    except HfHubHTTPError as error:
        raise _refusal(wanted, error) from error
    except (httpx.TransportError, OSError, RuntimeError) as error:  # the last one is hf_xet's
        # Of the others, only the system's own text is known not to quote a token.
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise HubError(f"{_named(wanted)} could not be downloaded: {reason}; try again") from error
    if not folder.is_dir():
        raise _NOT_FOUND[repo_type](
            f"{wanted.repo_id}: it has no file that matches {', '.join(allow_patterns or ('*',))}"
        )
    return Resolved(folder, wanted.repo_id, folder.name)


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Within this context the Hub's client, and what is built on it, tell nobody what is done.

    TRL's trainers announce themselves to the Hub when they are made. A run on this machine is
    nobody else's business, and one that is said to need no network must open no connection.

    Source:
        https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_TELEMETRY
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before


def _existing(path: Path, repo_type: RepoType) -> Path:
    full = Path(os.path.expanduser(path))  # unlike Path's own, it takes ~nobody for a name
    if full.is_dir():
        return full.resolve()
    if full.exists():  # a link to a file keeps its name, whose ending says what it is
        return full.parent.resolve() / full.name
    raise _NOT_FOUND[repo_type](f"{path}: no such file or folder")


def _parse(source: str, repo_type: RepoType, allow_patterns: Sequence[str] | None) -> _Wanted:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented

    repo_id, at, revision = source.partition("@")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise _NOT_FOUND[repo_type](
            f"{source!r} is no repo id such as user/name, or user/name@revision; "
            "start a local path with ./ or /"
        ) from error
    # A revision becomes part of a path in the Hub's cache, and a stranger's bank may name it.
    if at and not _REVISION.fullmatch(revision):
        raise _NOT_FOUND[repo_type](
            f"{source!r}: the revision {revision!r} is no branch, tag or commit"
        )
    return _Wanted(repo_id, revision or None, repo_type, allow_patterns)


def _download(wanted: _Wanted) -> Path:
    from huggingface_hub.errors import LocalEntryNotFoundError

    if (cached := _complete_in_cache(wanted)) is not None:
        return cached
    snapshot = _snapshot(wanted)
    silence = _why_no_answer(wanted)
    if silence is None:
        return Path(snapshot())
    try:
        return Path(snapshot(local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise HubError(
            f"the Hub cannot be reached ({silence}), and its cache does not have "
            f"{_named(wanted)}; get online, or give a local folder that starts with ./ or /"
        ) from error


def _snapshot(wanted: _Wanted) -> Callable[..., str]:
    from huggingface_hub import snapshot_download

    patterns = wanted.allow_patterns
    return partial(
        snapshot_download,
        wanted.repo_id,
        repo_type=wanted.repo_type,
        revision=wanted.revision,
        allow_patterns=None if patterns is None else list(patterns),
    )


def _complete_in_cache(wanted: _Wanted) -> Path | None:
    """Return the folder of a pinned commit if the cache is known to have all of it."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    if wanted.revision is None or not _COMMIT.fullmatch(wanted.revision):
        return None
    repo_type, revision = wanted.repo_type, wanted.revision
    try:
        # Where the list of files is not cached, snapshot_download takes what is there for all.
        get_cached_repo_tree(wanted.repo_id, repo_type=repo_type, revision=revision)
        return Path(_snapshot(wanted)(local_files_only=True))
    except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
        return None


def _why_no_answer(wanted: _Wanted) -> str | None:
    """Ask the Hub for the repository once, and return why it gave no answer; None if it did.

    Downloads are retried for 23 seconds and more, so it is asked before one is begun.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its own httpx

    ask = partial(
        HfApi().repo_info,
        wanted.repo_id,
        repo_type=wanted.repo_type,
        revision=wanted.revision,
        timeout=ANSWER_SECONDS,
    )
    try:
        _within(ANSWER_SECONDS, ask)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except TimeoutError:
        return f"no answer within {ANSWER_SECONDS:g} seconds"
    except HfHubHTTPError as error:
        if error.response.status_code != 429 and error.response.status_code < 500:
            raise
        return f"it answered {error.response.status_code}"
    except httpx.TransportError as error:
        return type(error).__name__  # its text may quote the token
    except ValueError:  # a network that asks for a log-in answers everything with a page
        return "what answered is not a Hub"
    return None


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """Return what `ask` returns, or raise TimeoutError after that many seconds.

    A request's own timeout begins anew with each address of a host and each step, so it does not
    bound the whole. The thread is a daemon: a request that hangs does not hold up the program.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)

    Thread(target=run, daemon=True).start()
    return answer.result(timeout=seconds)


def _refusal(wanted: _Wanted, error: Exception) -> MorlaifHubError:
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    match error:
        case GatedRepoError():
            return HubError(
                f"{wanted.repo_id} is gated: ask for access on its page at huggingface.co, then "
                "log in with 'hf auth login' or set HF_TOKEN"
            )
        case DisabledRepoError():
            return HubError(f"{wanted.repo_id} was disabled on the Hub")
        case RevisionNotFoundError():
            return _NOT_FOUND[wanted.repo_type](
                f"{wanted.repo_id} is on the Hub, but has no revision {wanted.revision!r}"
            )
        case _ if isinstance(error, RepositoryNotFoundError) or status == 401:
            return _NOT_FOUND[wanted.repo_type](_missing(wanted))
    return HubError(f"the Hub answered {status} when asked for {_named(wanted)}")


def _missing(wanted: _Wanted) -> str:
    local = "; for the local folder, write ./ before it" if Path(wanted.repo_id).exists() else ""
    return (
        f"there is no {wanted.repo_type} {wanted.repo_id} on the Hub that you may read; if it is "
        f"private, log in with 'hf auth login' or set HF_TOKEN, and check that it is valid{local}"
    )


def _named(wanted: _Wanted) -> str:
    return f"{wanted.repo_id}@{wanted.revision}" if wanted.revision else wanted.repo_id
