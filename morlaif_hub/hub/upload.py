"""One folder, one commit: a repository gets all of an artifact's files or none of them.

A commit is made on the parent that was seen before. When its answer is lost, or the Hub says that
the parent has moved, what is on the Hub is compared with what was sent before anything is sent
again: the same files mean that the commit is there. So a retry never makes a second commit, and a
lost answer is no failure.

Source:
    https://huggingface.co/docs/huggingface_hub/guides/upload (`create_commit`, `parent_commit`).
    `upload_folder` is not used: over Xet it makes several commits of one folder.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from json import JSONDecodeError
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple

from morlaif_hub.errors import HubError, MorlaifHubError
from morlaif_hub.hub.access import (
    LOG_IN,
    PATIENCE,
    TRIES,
    Asked,
    NoAnswer,
    ask_once,
    endpoint,
    has_token,
    is_passing,
    is_the_hubs,
    patiently,
    refusal,
    within,
)
from morlaif_hub.hub.remote_files import RemoteFile, listed_files

KEPT = frozenset({".gitattributes"})
"""What the Hub itself puts into a repository."""

COMMIT_SECONDS = 300.0
"""How long one try to commit may take, beside the time that its bytes need."""
SLOWEST = 50_000
"""Bytes per second that a connection has to manage."""

_VERSION = re.compile(r"v([1-9][0-9]*)")
_LOOKED_BACK = 20  # commits since the parent among which a lost one is looked for


class Account(NamedTuple):
    """Whose token it is, and where it may write."""

    name: str
    organizations: tuple[str, ...]


@dataclass(frozen=True)
class Remote:
    """A repository as it is on the Hub.

    Attributes:
        asked: Which one, and its branch.
        commit: Its newest commit.
        private: Whether it is.
        files: By path.
    """

    asked: Asked
    commit: str
    private: bool
    files: dict[str, RemoteFile]

    def differs(self, folder: Path) -> tuple[list[str], list[str]]:
        """Return the paths that a commit of a folder would write, and those it would delete."""
        paths = list(folder_files(folder))
        written = [path for path in paths if not _same(self.files.get(path), folder / path)]
        return written, sorted(set(self.files) - set(paths) - KEPT)


def account() -> Account:
    """Return whose token is set, before any work is done with it.

    Raises:
        HubError: If there is none, it is not valid or may only read, or the Hub gives no answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not has_token():
        raise HubError(
            f"publishing needs a token of your account on the Hub: {LOG_IN} (a token with write "
            f"access, from {endpoint()}/settings/tokens); --dry-run needs none"
        )
    try:
        me = ask_once(HfApi().whoami)
    except NoAnswer as error:
        raise HubError(
            f"the Hub cannot be reached ({error}), so nothing can be published now; get online "
            "and try again"
        ) from error
    except HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise HubError(
                f"the Hub answered {error.response.status_code} when asked whose token this is, "
                "so nothing can be published now; try again later"
            ) from error
        raise HubError(
            f"the Hub does not accept your token; {LOG_IN} again, with a token from "
            f"{endpoint()}/settings/tokens"
        ) from error
    role = me.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise HubError(
            f"the token of {me['name']} may only read; publishing needs one with write access, "
            f"from {endpoint()}/settings/tokens"
        )
    return Account(me["name"], tuple(org["name"] for org in me.get("orgs", [])))


def remote(asked: Asked) -> Remote | None:
    """Return a repository as it is on the Hub; None if there is none that may be read.

    Raises:
        HubError: If the Hub refuses for another reason, or gives no answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    api = HfApi()

    def ask() -> Any:
        try:
            return api.repo_info(asked.repo_id, repo_type=asked.repo_type, revision=asked.revision)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
        except HfHubHTTPError as error:  # what strangers are told of a missing one
            if error.response.status_code == 401:
                return None
            raise

    info = patiently(asked, ask)
    if info is None:
        return None
    files = patiently(asked, partial(_tree, asked, info.sha))
    return Remote(asked, info.sha, bool(info.private), files)


def create_repository(asked: Asked) -> None:
    """Create a private repository unless it is there.

    Raises:
        HubError: If the Hub refuses.
    """
    from huggingface_hub import HfApi

    create = partial(
        HfApi().create_repo,
        asked.repo_id,
        repo_type=asked.repo_type,
        private=True,
        exist_ok=True,
    )
    patiently(asked, create)


def make_public(asked: Asked) -> None:
    """Let everybody read a repository.

    Raises:
        HubError: If the Hub refuses.
    """
    from huggingface_hub import HfApi

    change = partial(
        HfApi().update_repo_settings, asked.repo_id, repo_type=asked.repo_type, private=False
    )
    patiently(asked, change)


def open_pull_request(asked: Asked, *, title: str) -> Asked:
    """Open a pull request without changes and return its branch, to commit to.

    Raises:
        HubError: If the Hub refuses, or its answer is lost: then it may have been opened.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_pull_request(asked.repo_id, title, repo_type=asked.repo_type)
        if made.status == "draft":
            api.change_discussion_status(asked.repo_id, made.num, "open", repo_type=asked.repo_type)
    except Exception as error:  # whatever it was, a request may be open now
        said = refusal(asked, error)
        raise HubError(
            f"{said}; a pull request without changes may be open now: look at {endpoint()}/"
            f"{asked.repo_id}/discussions before you push again"
        ) from error
    return asked._replace(revision=f"refs/pr/{made.num}")


def commit_folder(folder: Path, target: Remote, *, message: str) -> str:
    """Make a repository hold exactly a folder's files, in one commit on the one that was seen.

    Args:
        folder: Its files, and no others, are in the repository afterwards (beside `KEPT`).
        target: The repository as it was seen; its commit becomes the parent.
        message: The commit's title.

    Returns:
        The commit; the one that is there if it has these files already.

    Raises:
        HubError: If the Hub refuses, or somebody else changed the repository meanwhile. Nothing
            of the folder is on the Hub then, unless the message says that this is not known.
    """
    written, deleted = target.differs(folder)
    if not written and not deleted:
        return target.commit
    seconds = COMMIT_SECONDS + sum((folder / path).stat().st_size for path in written) / SLOWEST
    send = partial(_commit, folder, target, written, deleted, message)
    for number in range(TRIES):
        try:
            return within(seconds, send)
        except Exception as error:  # the Hub's come from three libraries; all others go on up
            if not is_the_hubs(error):
                raise
            if not _may_have_landed(error):
                raise _not_published(target.asked, error) from error
            if (landed := _landed(folder, target, error)) is not None:
                return landed
            if number == TRIES - 1:
                raise _not_published(target.asked, error) from error
            sleep(2.0**number)
    raise AssertionError("the last try returns or raises")


def tag_version(asked: Asked, commit: str) -> str:
    """Tag a commit with the next version, `v1`, `v2` and so on, unless it has one.

    Raises:
        HubError: If the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    for number in range(TRIES):
        refs = patiently(
            asked, partial(api.list_repo_refs, asked.repo_id, repo_type=asked.repo_type)
        )
        versions = {
            tag.name: tag.target_commit for tag in refs.tags if _VERSION.fullmatch(tag.name)
        }
        for name, target in versions.items():
            if target == commit:
                return name
        name = f"v{max((int(name[1:]) for name in versions), default=0) + 1}"
        try:
            within(
                PATIENCE,
                partial(
                    api.create_tag,
                    asked.repo_id,
                    tag=name,
                    revision=commit,
                    repo_type=asked.repo_type,
                ),
            )
        except Exception as error:  # told as what it is, unless another try may help
            taken = isinstance(error, HfHubHTTPError) and error.response.status_code == 409
            if not taken and (number == TRIES - 1 or not is_passing(error)):
                raise refusal(asked, error) from error
            sleep(0.5)  # then the list of tags tells whether it is there, and what is next
        else:
            return name
    raise HubError(f"{asked.repo_id}: others took every version for the commit {commit[:12]}")


def folder_files(folder: Path) -> Iterator[str]:
    """Yield the paths of a folder's files, in order."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _commit(
    folder: Path, target: Remote, written: Iterable[str], deleted: Iterable[str], message: str
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    # Made anew for each try: the client marks them as it goes.
    add = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=folder / path) for path in written]
    delete = [CommitOperationDelete(path_in_repo=path) for path in deleted]
    asked = target.asked
    done = HfApi().create_commit(
        asked.repo_id,
        [*add, *delete],
        commit_message=message,
        repo_type=asked.repo_type,
        revision=asked.revision,
        parent_commit=target.commit,
    )
    return str(done.oid)


def _may_have_landed(error: Exception) -> bool:
    """Whether the commit may be there all the same, or may succeed when it is sent again."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return is_passing(error) or error.response.status_code == 412  # the parent has moved
    if isinstance(error, MorlaifHubError):
        return False
    # What hf_xet raises are builtin errors; the others come from an answer that cannot be read.
    unread = isinstance(error, JSONDecodeError | UnicodeDecodeError | LookupError)
    return unread or is_passing(error) or isinstance(error, OSError | RuntimeError)


def _landed(folder: Path, target: Remote, error: Exception) -> str | None:
    """Return the commit with a folder's files, None if nothing was committed since the parent."""
    from huggingface_hub import HfApi

    asked = target.asked
    try:
        commits = patiently(
            asked,
            partial(
                HfApi().list_repo_commits,
                asked.repo_id,
                repo_type=asked.repo_type,
                revision=asked.revision,
            ),
        )
        newer = []
        for commit in commits[:_LOOKED_BACK]:
            if commit.commit_id == target.commit:
                break
            newer.append(commit)
        for commit in newer:
            files = patiently(asked, partial(_tree, asked, commit.commit_id))
            if Remote(asked, commit.commit_id, target.private, files).differs(folder) == ([], []):
                return str(commit.commit_id)
    except MorlaifHubError as unknown:
        raise HubError(
            f"{asked.repo_id}: the Hub's answer was lost ({type(error).__name__}), and it cannot "
            f"be asked whether the commit is there ({unknown}); push again when it can be reached:"
            " what is there is compared first"
        ) from error
    if newer:
        by, title = ", ".join(newer[0].authors) or "somebody", " ".join(newer[0].title.split())
        raise HubError(
            f"{asked.repo_id} was changed by {by} while this was being pushed (commit "
            f"{newer[0].commit_id[:12]}, {title!r}), so nothing of it was published; look at that "
            "change, then push again"
        ) from error
    return None


def _not_published(asked: Asked, error: Exception) -> HubError:
    from huggingface_hub.errors import HfHubHTTPError

    others = MorlaifHubError | JSONDecodeError | UnicodeDecodeError | HfHubHTTPError
    if isinstance(error, ValueError) and not isinstance(error, others):
        # The client's own checks: the Hub does not take the card's metadata, for one.
        said = " ".join(str(error).split())
        return HubError(f"{asked.repo_id}: nothing was published: {said}")
    return HubError(f"nothing was published: {refusal(asked, error)}")


def _tree(asked: Asked, commit: str) -> dict[str, RemoteFile]:
    from huggingface_hub import HfApi

    return listed_files(
        HfApi().list_repo_tree(
            asked.repo_id, repo_type=asked.repo_type, revision=commit, recursive=True
        )
    )


def _same(there: RemoteFile | None, path: Path) -> bool:
    return there is not None and there.is_at(path)
