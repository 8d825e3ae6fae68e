"""Finding artifacts on the Hub: by kind, principle, base and author, with what they claim.

The Hub is asked for repositories by their tags, page by page, and of each only the manifest is
read, at the commit that was listed. Nothing is stored: the cache of the Hub's client would later
take a folder with the manifest alone for the whole repository.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Annotated, Any, NamedTuple, get_args
from urllib.parse import quote, urlencode, urlsplit

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as validated

from morlaif_hub.errors import (
    HubError,
    ManifestError,
    MorlaifHubError,
    OptionError,
    UnknownNameError,
)
from morlaif_hub.hub.access import (
    ANSWER_SECONDS,
    Asked,
    NoAnswer,
    RepoType,
    ask_once,
    endpoint,
    refusal,
)
from morlaif_hub.hub.claims import Claims, claims_of
from morlaif_hub.hub.manifest import (
    MANIFEST_NAME,
    MANIFESTS,
    BaseIdentity,
    Kind,
    Manifest,
    Verdict,
    parse_manifest,
)

LIMIT = 100
LARGEST_MANIFEST = 2_000_000  # bytes; the largest of ours has some 20,000
PAGE = 100  # repositories, so that a page arrives within ANSWER_SECONDS
READERS = 8  # manifests that are read at the same time
LONGEST_REASON = 300  # characters of a reason that may quote a stranger

_PRINCIPLE = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_AUTHOR = re.compile(r"[\w.-]+", re.ASCII)
_WEIGHTS = re.compile(r"[0-9a-f]{8,64}")
_FIELDS = ("downloads", "lastModified", "private", "sha")


class _Shelf(NamedTuple):
    """Where artifacts of one kind are, and what of them the Hub has tags for."""

    tag: str
    repo_type: RepoType = "model"
    has_principles: bool = True
    base: str | None = None  # `tag`: the Hub knows it; `manifest`: only the manifest does


_SHELVES: dict[Kind, _Shelf] = {
    "preference-model": _Shelf("morlaif-pm", base="tag"),
    "feedback-dataset": _Shelf("morlaif-feedback", repo_type="dataset"),
    "bank": _Shelf("morlaif-bank"),
    "policy": _Shelf("morlaif-policy", base="tag"),
    "base": _Shelf("morlaif-base", has_principles=False, base="manifest"),
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """A repository that the Hub lists under the tags that were asked for.

    Attributes:
        repo_id: Its id.
        commit: The commit that was listed and whose manifest was read.
        kind: Of artifact.
        private: Whether only some may see it.
        downloads: As the Hub counts them; None if it does not say.
        last_modified: When it was changed last; None if the Hub does not say.
        claims: What its manifest says; None if there is a problem.
        problem: Why it has no claims that can be used; None if it has.
    """

    repo_id: str
    commit: str | None
    kind: Kind
    private: bool
    downloads: int | None
    last_modified: datetime | None
    claims: Claims | None
    problem: str | None


class SearchResult(NamedTuple):
    """What was found.

    Attributes:
        found: What is fit and measured best comes first, what cannot be used last.
        more: Whether there are repositories beyond the limit that were not looked at.
    """

    found: tuple[Found, ...]
    more: bool


class _Wish(NamedTuple):
    kind: Kind
    principle: str | None
    base: str | None
    author: str | None

    @property
    def shelf(self) -> _Shelf:
        return _SHELVES[self.kind]

    @property
    def base_by_tag(self) -> bool:
        named = self.base is not None and not _WEIGHTS.fullmatch(self.base)
        return named and self.shelf.base == "tag"


@validated(frozen=True, config=ConfigDict(extra="ignore"))
class _Listed:
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?$", max_length=200)]
    sha: Annotated[str, Field(pattern=r"^[0-9a-f]{40,64}$")] | None = None
    lastModified: datetime | None = None  # as the Hub names it
    downloads: int | None = None
    private: bool = False


def search_hub(
    *,
    principle: str | None = None,
    base: str | None = None,
    author: str | None = None,
    kind: Kind = "preference-model",
    limit: int = LIMIT,
) -> SearchResult:
    """Return what is on the Hub, with what the manifests claim.

    Private repositories are found too, if the token may read them. A repository whose manifest is
    missing, broken or contradicts its tags is returned with the problem, never left out.

    Args:
        principle: Name of a principle that it is about.
        base: What it is for: the repo id of a base, or 8 or more hexadecimal digits of the hash
            of its weights.
        author: User or organisation whose repository it is.
        kind: Of artifact.
        limit: How many repositories to look at, the most downloaded first.

    Raises:
        OptionError, UnknownNameError: If what is asked for cannot be.
        HubError: If the Hub refuses, cannot be reached, or breaks off; there is no partial result.

    Example:
        >>> search_hub(kind="feedback-dataset", base="gpt2")
        Traceback (most recent call last):
        ...
        morlaif_hub.errors.OptionError: a feedback-dataset has no base; leave it out
    """
    wish = _Wish(kind, principle, base, author)
    _check(wish, limit)
    repositories: dict[str, _Listed] = {}  # by id: a list that changes while it is read repeats
    more = False
    for listed in _listed(wish):
        if len(repositories) == limit and listed.id not in repositories:
            more = True
            break
        repositories.setdefault(listed.id, listed)
    pool = ThreadPoolExecutor(READERS)
    try:
        found = [f for f in pool.map(partial(_read, wish), repositories.values()) if f is not None]
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C nothing new is begun
    return SearchResult(tuple(sorted(found, key=_rank)), more)


def _check(wish: _Wish, limit: int) -> None:
    if wish.kind not in _SHELVES:
        raise UnknownNameError("kind of artifact", wish.kind, get_args(Kind))
    if limit < 1:
        raise OptionError(f"the limit must be 1 or more, got {limit}")
    for what, value, present in (
        ("principle", wish.principle, wish.shelf.has_principles),
        ("base", wish.base, wish.shelf.base),
    ):
        if value is not None and not present:
            raise OptionError(f"a {wish.kind} has no {what}; leave it out")
    if wish.principle is not None and not _PRINCIPLE.fullmatch(wish.principle):
        raise OptionError(
            f"{wish.principle!r} is no name of a principle: lower-case letters, digits, '_', '-'"
        )
    if wish.author is not None and not _AUTHOR.fullmatch(wish.author):
        raise OptionError(f"{wish.author!r} is no user or organisation of the Hub")
    if wish.base is not None and not (_WEIGHTS.fullmatch(wish.base) or _is_repo_id(wish.base)):
        raise OptionError(
            f"{wish.base!r} is no base: give a repo id such as user/name, or 8 or more "
            "hexadecimal digits of the hash of its weights, as the cards show it"
        )


def _is_repo_id(text: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def _listed(wish: _Wish) -> Iterator[_Listed]:
    """Yield what the Hub lists, page by page.

    The client's own listing waits without end for a Hub that hangs, for 23 seconds and more for
    one in trouble, and sends the token to whatever address a page names as the next.
    """
    address = f"{endpoint()}/api/{wish.shelf.repo_type}s"
    query: str | None = _query(wish)
    asked: set[str] = set()
    while query is not None:
        if query in asked:
            raise HubError(f"the Hub's list of artifacts ({wish.shelf.tag}) has no end; try again")
        asked.add(query)
        page, query = _page(wish, f"{address}?{query}", number=len(asked))
        yield from page


def _query(wish: _Wish) -> str:
    filters = [wish.shelf.tag]
    if wish.principle is not None:
        filters.append(f"principle:{wish.principle}")
    if wish.base_by_tag:
        filters.append(f"base_model:{wish.base}")
    query: dict[str, Any] = {"filter": filters, "expand": _FIELDS, "sort": "downloads"}
    if wish.author is not None:
        query["author"] = wish.author
    return urlencode({**query, "limit": PAGE}, doseq=True)


def _page(wish: _Wish, url: str, *, number: int) -> tuple[list[_Listed], str | None]:
    """Return a page of the list, and what to ask for the next one; None if it is the last."""
    from huggingface_hub.errors import HfHubHTTPError

    def ask() -> tuple[list[_Listed], str | None]:
        body, following = _get(url)
        return (
            TypeAdapter(list[_Listed]).validate_json(body),
            # Of the address only the question is taken, so that the token stays with this Hub.
            None if following is None else urlsplit(following).query,
        )

    what = f"the list of artifacts ({wish.shelf.tag})"
    try:
        return ask_once(ask)
    except NoAnswer as error:
        if number > 1:
            raise HubError(
                f"{what} broke off at page {number} ({error}), and a part of it is not shown for "
                "the whole; try again"
            ) from error
        raise HubError(
            f"the Hub cannot be reached for {what} ({error}); get online, or try again later"
        ) from error
    except HfHubHTTPError as error:
        raise refusal(Asked(what), error) from error


def _get(url: str, largest: int | None = None) -> tuple[bytes, str | None]:
    """Return what is at an address of the Hub, and the address of the next page if there is one.

    Of what has more than `largest` bytes, a little more than those are returned.
    """
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # all three documented
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    headers = build_hf_headers()
    with get_session().stream("GET", url, headers=headers, timeout=ANSWER_SECONDS) as response:
        hf_raise_for_status(response)
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if largest is not None and len(body) > largest:
                break
        return bytes(body), response.links.get("next", {}).get("url")


def _read(wish: _Wish, listed: _Listed) -> Found | None:
    """Return what a repository claims; None if it is not for the base that is wished for."""
    claims, problem = None, None
    try:
        claims = claims_of(_manifest(wish, listed))
        problem = _contradiction(wish, claims)
    except MorlaifHubError as error:
        problem = " ".join(str(error).split())
    if claims is not None and _is_of_another_base(wish, claims.base):
        return None
    if problem is not None and len(problem) > LONGEST_REASON:
        problem = problem[:LONGEST_REASON] + " ..."
    return Found(
        repo_id=listed.id,
        commit=listed.sha,
        kind=wish.kind,
        private=listed.private,
        downloads=listed.downloads,
        last_modified=listed.lastModified,
        claims=claims if problem is None else None,
        problem=problem,
    )


def _manifest(wish: _Wish, listed: _Listed) -> Manifest:
    from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

    if listed.sha is None:
        raise HubError("the Hub names no commit of it")
    folder = listed.id if wish.shelf.repo_type == "model" else f"datasets/{listed.id}"
    url = f"{endpoint()}/{quote(folder)}/resolve/{listed.sha}/{MANIFEST_NAME}"
    try:
        body, _ = ask_once(partial(_get, url, LARGEST_MANIFEST))
    except NoAnswer as error:
        raise HubError(f"{MANIFEST_NAME} could not be read ({error}); try again") from error
    except RemoteEntryNotFoundError as error:
        raise ManifestError(f"it has no {MANIFEST_NAME}") from error
    except HfHubHTTPError as error:
        raise refusal(Asked(listed.id, listed.sha, wish.shelf.repo_type), error) from error
    if len(body) > LARGEST_MANIFEST:
        raise ManifestError(f"{MANIFEST_NAME} has over {LARGEST_MANIFEST:,} bytes")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise ManifestError(f"{MANIFEST_NAME}: not UTF-8") from error
    manifest: Manifest = parse_manifest(text, MANIFESTS[wish.kind], MANIFEST_NAME)
    return manifest


def _contradiction(wish: _Wish, claims: Claims) -> str | None:
    """Return what a manifest says against the tags by which it was found."""
    if wish.principle is not None and wish.principle not in claims.principles:
        names = ", ".join(claims.principles)
        return f"its tags say {wish.principle}, its manifest says {names or 'no principle'}"
    if wish.base_by_tag and (claims.base is None or claims.base.repo_id != wish.base):
        theirs = claims.base and claims.base.repo_id
        return f"its tags say that it is for {wish.base}, its manifest names {theirs or 'no repo'}"
    return None


def _is_of_another_base(wish: _Wish, base: BaseIdentity | None) -> bool:
    """Whether the manifest rules out a repository that no tag could."""
    if wish.base is None or wish.base_by_tag:
        return False
    if base is None:
        return True
    if _WEIGHTS.fullmatch(wish.base):
        return not base.weights_sha256.startswith(wish.base)
    return base.repo_id != wish.base


_RANKS: dict[Verdict | None, int] = {"fit": 0, "unproven": 1, None: 2, "wrong way": 3}


def _rank(found: Found) -> tuple[bool, int, float, str]:
    claims = found.claims
    if claims is None:
        return True, 0, 0.0, found.repo_id
    worst = max((_RANKS[verdict] for verdict in claims.verdicts.values()), default=_RANKS[None])
    low = claims.accuracy.interval[0] if claims.accuracy else float("-inf")
    return False, worst, -low, found.repo_id
