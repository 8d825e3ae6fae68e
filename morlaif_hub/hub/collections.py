"""Collections: lists of repositories on the Hub, which a bank's parts are gathered in.

Source:
    https://huggingface.co/docs/hub/collections
"""

import hashlib
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from morlaif_hub.errors import HubError, ModelNotFoundError
from morlaif_hub.hub.access import Asked, NoAnswer, RepoType, ask_once, patiently

LONGEST_TITLE = 60  # characters; the Hub takes no more

_SLUG = re.compile(r"(?:https?://[^/]+/)?(?:collections/)?([\w.-]+/[\w.-]+-[0-9a-f]{24})", re.ASCII)


class Listed(NamedTuple):
    """A repository in a Collection."""

    repo_id: str
    repo_type: RepoType


def collection_slug(source: str) -> str | None:
    """Return the slug if a source names a Collection: `user/title-` and 24 hexadecimal digits.

    Its address on the Hub is taken too.

    Example:
        >>> collection_slug("ann/kind-pms-0123456789abcdef01234567")
        'ann/kind-pms-0123456789abcdef01234567'
        >>> collection_slug("ann/morlaif-pm-toxicity-smollm2") is None
        True
    """
    found = _SLUG.fullmatch(source)
    return found[1] if found else None


def collection_items(slug: str) -> list[Listed]:
    """Return the models and data sets of a Collection, in its order.

    Raises:
        ModelNotFoundError: If there is none that may be read.
        HubError: If the Hub cannot be reached; a Collection is not kept in its cache.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        found = ask_once(partial(HfApi().get_collection, slug))
    except NoAnswer as error:
        raise HubError(
            f"the Hub cannot be reached ({error}), and what is in the Collection {slug} is known "
            "only there; get online, or name its preference models one by one"
        ) from error
    except HfHubHTTPError as error:
        raise ModelNotFoundError(
            f"there is no Collection {slug} on the Hub that you may read (it answered "
            f"{error.response.status_code}); check the slug, or log in with 'hf auth login' if "
            "it is private"
        ) from error
    return [
        Listed(item.item_id, cast(RepoType, item.item_type))
        for item in found.items
        if item.item_type in ("model", "dataset")
    ]


def gather(
    title: str, items: Sequence[Listed], *, namespace: str, private: bool, description: str
) -> str:
    """Return the address of a Collection of these repositories, making it and adding to it.

    One of that title is used again, and what it has stays. All steps can be repeated.

    Args:
        title: Cut to `LONGEST_TITLE`.
        items: What to put in.
        namespace: The user or organization whose Collection it is.
        private: Whether only they see it.
        description: A line below the title.

    Raises:
        HubError: If the Hub refuses.
    """
    from huggingface_hub import HfApi

    if len(title) > LONGEST_TITLE:  # another long title that begins like it is another one
        mark = hashlib.sha256(title.encode()).hexdigest()[:6]
        title = f"{title[: LONGEST_TITLE - 7]}-{mark}"
    api, asked = HfApi(), Asked(f"{namespace}/{title}")
    make = partial(
        api.create_collection,
        title,
        namespace=namespace,
        description=description[:150],
        private=private,
        exists_ok=True,
    )
    made: Any = patiently(asked, make)
    if bool(made.private) != private:  # it was made before, for a bank that was private then
        change = partial(api.update_collection_metadata, made.slug, private=private)
        patiently(asked, change)
    for item in items:
        add = partial(
            api.add_collection_item, made.slug, item.repo_id, item.repo_type, exists_ok=True
        )
        patiently(asked, add)
    return str(made.url)
