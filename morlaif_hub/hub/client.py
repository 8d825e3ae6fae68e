"""From a source to a folder: the one place that downloads from the Hub.

Others ask for a source, a local path or a repo id, and get a folder with a pinned commit. What
looks like a repo id is never taken for a folder, and the other way round, so that a folder of
the same name on this machine cannot stand in for a repository.
"""

import errno
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple

from morlaif_hub.errors import HubError, MorlaifHubError
from morlaif_hub.hub.access import (
    ANSWER_SECONDS,
    NOT_FOUND,
    Asked,
    NoAnswer,
    RepoType,
    ask_once,
    is_passing,
    is_the_hubs,
    refusal,
)
from morlaif_hub.hub.remote_files import note_commit, remove_damaged

Progress = Callable[[str, int, int], None]
"""Told a stage's name, how much of it is done, and of how much."""

AT_ONCE = 8
"""How many repositories are fetched at the same time."""
DOWNLOADS = 3
"""How often a download is begun at most; the client itself tries again after most faults."""

_LOCAL = re.compile(r"/|(\.\.?|~)(/|$)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"(?!.*(\.\.|//))\w[\w./+#-]*", re.ASCII)
_LOG = logging.getLogger(__name__)


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

    @property
    def label(self) -> str:
        """What errors call it: the repository at its commit, or the local path."""
        return f"{self.repo_id}@{self.revision}" if self.repo_id else str(self.path)


class _Wanted(NamedTuple):
    """What is to be downloaded: files of a repository, into the Hub's cache or another one."""

    asked: Asked
    allow_patterns: Sequence[str] | None
    cache: Path | None
    quiet: bool


def fetch(
    source: str | Path,
    *,
    repo_type: RepoType = "model",
    allow_patterns: Sequence[str] | None = None,
    cache: Path | None = None,
    quiet: bool = False,
) -> Resolved:
    """Return a source's folder, downloading it unless the Hub's cache has all of it.

    A branch or tag is resolved to a commit once, which is one request; if the cache has that
    commit whole, it is the only one. Without a network, what the cache has is used: a pinned
    commit at once, without asking, a branch as it was when it was last fetched.

    Args:
        source: A local folder or file (a `Path`, or text that starts with `./`, `../`, `/` or
            `~`), or `repo_id`, or `repo_id@revision`.
        repo_type: What kind of repository `repo_id` is.
        allow_patterns: Shell patterns; only files of a repository that match one are fetched.
        cache: A folder to download into instead of the Hub's cache.
        quiet: Whether to show no bars.

    Raises:
        ModelNotFoundError: If there is no such path, repository, revision or file.
        DataError: The same for a data set.
        HubError: If the Hub refuses, or cannot be reached and its cache does not have it.
    """
    if is_local(source):
        return Resolved(_existing(Path(source), repo_type), None, None)
    wanted = _Wanted(parse_repository(str(source), repo_type), allow_patterns, cache, quiet)
    try:
        folder = _download(wanted)
    except MorlaifHubError:
        raise
    except Exception as error:  # the Hub's come from three libraries; all others go on up
        if not is_the_hubs(error):
            raise
        raise refusal(wanted.asked, error) from error
    if not folder.is_dir():
        raise NOT_FOUND[repo_type](
            f"{wanted.asked.repo_id}: it has no file that matches "
            f"{', '.join(allow_patterns or ('*',))}"
        )
    return Resolved(folder, wanted.asked.repo_id, folder.name)


def fetch_all(
    sources: Sequence[str | Path],
    *,
    repo_type: RepoType = "model",
    allow_patterns: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[Resolved]:
    """Return the folders of several sources, fetched at the same time, in their order.

    Args:
        sources: As for `fetch`.
        repo_type: As for `fetch`.
        allow_patterns: As for `fetch`.
        progress: Told how many are there. Without it, a bar of the Hub's client is shown when
            there is something to wait for.

    Raises:
        ModelNotFoundError, DataError, HubError: As `fetch`, for the first source that fails.
    """
    quiet = progress is not None or len(sources) > 1
    one = partial(fetch, repo_type=repo_type, allow_patterns=allow_patterns, quiet=quiet)
    remote = sum(not is_local(source) for source in sources)
    if remote == 0 or (len(sources) == 1 and progress is None):
        return [one(source) for source in sources]
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        with _counted(len(sources), progress) as count:
            futures = [pool.submit(one, source) for source in sources]
            return [_and_count(future.result(), count) for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after an error nobody waits for the rest


def is_local(source: str | Path) -> bool:
    """Whether a source means a path of this machine; a repo id never does."""
    return isinstance(source, Path) or _LOCAL.match(source) is not None


def repository_files(found: Resolved, repo_type: RepoType = "model") -> list[str]:
    """Return the names of all files of a fetched repository, those too that were not fetched.

    Of a local folder, its own files.
    """
    if found.repo_id is None:
        return sorted(p.relative_to(found.path).as_posix() for p in found.path.rglob("*"))
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree = get_cached_repo_tree(found.repo_id, repo_type=repo_type, revision=found.revision)
    except CachedRepoTreeNotFoundError:
        return sorted(p.relative_to(found.path).as_posix() for p in found.path.rglob("*"))
    return sorted(entry.path for entry in tree)


def is_repo_id(text: str) -> bool:
    """Whether a text is `user/name` as the Hub takes it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1 and not text.startswith(".") and "/." not in text


def parse_repository(source: str, repo_type: RepoType = "model") -> Asked:
    """Return the repository and revision that `user/name` or `user/name@revision` names.

    Raises:
        ModelNotFoundError, DataError: If the text is neither.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented

    repo_id, at, revision = source.partition("@")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise NOT_FOUND[repo_type](
            f"{source!r} is no repo id such as user/name, or user/name@revision; "
            "start a local path with ./ or /"
        ) from error
    # A revision becomes part of a path in the Hub's cache, and a stranger's bank may name it.
    if at and not _REVISION.fullmatch(revision):
        raise NOT_FOUND[repo_type](
            f"{source!r}: the revision {revision!r} is no branch, tag or commit"
        )
    return Asked(repo_id, revision or None, repo_type)


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
    raise NOT_FOUND[repo_type](f"{path}: no such file or folder")


def _download(wanted: _Wanted) -> Path:
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = wanted.asked
    cached = _complete_in_cache(wanted)
    if cached is not None and asked.revision == cached.name:
        return cached
    snapshot = _snapshot(wanted)
    try:
        commit = _commit_on_the_hub(asked)
    except NoAnswer as silence:
        try:
            return Path(snapshot(local_files_only=True))
        except LocalEntryNotFoundError as error:
            raise HubError(
                f"the Hub cannot be reached ({silence}), and its cache does not have "
                f"{asked.name}; get online, or give a local folder that starts with ./ or /"
            ) from error
    if cached is not None and commit == cached.name:
        return cached
    folder = _downloaded_whole(wanted, commit)
    note_commit(folder, wanted.asked.revision)
    return folder


def _downloaded_whole(wanted: _Wanted, commit: str | None) -> Path:
    """Download, again after faults that pass and after files that came damaged."""
    for number in range(DOWNLOADS):
        try:
            folder = Path(_snapshot(wanted)(revision=commit))
            _check_download(wanted, folder)
            return folder
        except Exception as error:  # raised again, unless a second try may help
            if number == DOWNLOADS - 1 or not is_passing(error):
                raise
            sleep(2.0**number)
    raise AssertionError("the last try returns or raises")


def _check_download(wanted: _Wanted, folder: Path) -> None:
    """Compare what was downloaded with its hashes.

    Raises:
        ConnectionError: If something came damaged, or the list of files did not come: then the
            client returns what little its cache may have.
    """
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        _cached_tree(wanted, folder.name)
    except CachedRepoTreeNotFoundError as error:
        raise ConnectionError(errno.EIO, "the list of its files did not come") from error
    if damaged := remove_damaged(folder):
        raise ConnectionError(errno.EIO, f"{', '.join(damaged)} came with other bytes than listed")


def _commit_on_the_hub(asked: Asked) -> str | None:
    """Ask the Hub once which commit a repository is at.

    Downloads are retried for 23 seconds and more, so this comes before one is begun.
    """
    from huggingface_hub import HfApi

    ask = partial(
        HfApi().repo_info,
        asked.repo_id,
        repo_type=asked.repo_type,
        revision=asked.revision,
        timeout=ANSWER_SECONDS,
    )
    info = ask_once(ask)
    if info.id != asked.repo_id:
        _LOG.warning("%s was renamed on the Hub; use its new name, %s", asked.repo_id, info.id)
    return info.sha


def _snapshot(wanted: _Wanted) -> Callable[..., str]:
    from huggingface_hub import snapshot_download

    patterns = wanted.allow_patterns
    options: dict[str, Any] = {"tqdm_class": _no_bar()} if wanted.quiet else {}
    return partial(
        snapshot_download,
        wanted.asked.repo_id,
        repo_type=wanted.asked.repo_type,
        revision=wanted.asked.revision,
        allow_patterns=None if patterns is None else list(patterns),
        cache_dir=wanted.cache,
        **options,
    )


def _complete_in_cache(wanted: _Wanted) -> Path | None:
    """Return the folder of a revision, as last fetched, if the cache is known to have all of it."""
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    try:
        # Where the list of files is not cached, snapshot_download takes what is there for all.
        _cached_tree(wanted, wanted.asked.revision)
        return Path(_snapshot(wanted)(local_files_only=True))
    except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
        return None


def _cached_tree(wanted: _Wanted, revision: str | None) -> Any:
    from huggingface_hub import get_cached_repo_tree

    asked = wanted.asked
    return get_cached_repo_tree(
        asked.repo_id, repo_type=asked.repo_type, revision=revision, cache_dir=wanted.cache
    )


def _no_bar() -> type:
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # documented

    class NoBar(tqdm):
        """Counts and shows nothing: many downloads at once would write over each other."""

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **{**named, "disable": True})

    return NoBar


@contextmanager
def _counted(total: int, progress: Progress | None) -> Iterator[Callable[[], None]]:
    """Tell how many of `total` repositories are there, whenever the result is called."""
    done = 0
    if progress is None:
        from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # documented

        # The delay keeps the bar away when all is in the cache.
        with tqdm(total=total, desc="fetching repositories", delay=1.0) as bar:
            yield bar.update
        return
    progress("fetching from the Hub", 0, total)

    def count() -> None:
        nonlocal done
        done += 1
        progress("fetching from the Hub", done, total)

    yield count


def _and_count(found: Resolved, count: Callable[[], object]) -> Resolved:
    count()
    return found
