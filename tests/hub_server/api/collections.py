"""Collections: named lists of repositories, each with a note."""

import re
import time

from tests.hub_server.accounts import Caller, unauthorized
from tests.hub_server.describe import short_id
from tests.hub_server.routes import route
from tests.hub_server.state import State
from tests.hub_server.wire import Answer, Json, Refusal, Request, json_answer, page, timestamp

LONGEST_DESCRIPTION, LONGEST_NOTE = 150, 500
ITEMS_IN_LISTING = 4


@route("POST", "/api/collections")
def create(state: State, request: Request) -> Answer:
    """Create a collection; a 409 names the one that has this title already."""
    caller, body = state.accounts.caller(request), request.json
    owner = body.get("namespace") or caller.user().name
    caller.user()
    if not caller.may_write(owner):
        raise Refusal(403, f"Forbidden: you don't have write access to {owner}")
    _check_length("description", body.get("description"), LONGEST_DESCRIPTION)
    title = body["title"]
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    slug = f"{owner}/{slug}-{short_id(f'{owner}/{title}')}"
    with state.store.lock:
        if slug in state.store.collections:
            text = "You already have a collection with this title"
            raise Refusal(409, text, body={"slug": slug})
        collection: Json = {
            "slug": slug,
            "title": title,
            "description": body.get("description"),
            "owner": owner,
            "private": bool(body.get("private")),
            "theme": "orange",
            "upvotes": 0,
            "position": len(state.store.collections),
            "lastUpdated": timestamp(time.time()),
            "items": [],
        }
        state.store.collections[slug] = collection
        state.store.save()
    return json_answer(_shown(state, caller, collection))


@route("GET", "/api/collections")
def listing(state: State, request: Request) -> Answer:
    """List collections, last changed first, with their first items."""
    caller = state.accounts.caller(request)
    owners, items = request.values("owner"), set(request.values("item"))
    rows = []
    for collection in state.store.collections.values():
        names = {f"{item['type']}s/{item['id']}" for item in collection["items"]}
        hidden = collection["private"] and not caller.may_read(collection["slug"])
        unfit = (owners and collection["owner"] not in owners) or (items and not items & names)
        if not hidden and not unfit:
            rows.append(_shown(state, caller, collection))
    rows.sort(key=lambda row: row["lastUpdated"], reverse=True)
    for row in rows:
        del row["position"]  # the client counts them itself
        row["items"] = row["items"][:ITEMS_IN_LISTING]
    largest = state.settings.page_size
    return page(request, rows, size=min(int(request.value("limit", str(largest))), largest))


@route("GET", "/api/collections/{owner}/{name}")
def get(state: State, request: Request, *, owner: str, name: str) -> Answer:
    """Return a collection with all items that the caller may see."""
    caller = state.accounts.caller(request)
    collection = _find(state, caller, f"{owner}/{name}")
    return json_answer(_shown(state, caller, collection))


@route("PATCH", "/api/collections/{owner}/{name}")
def update(state: State, request: Request, *, owner: str, name: str) -> Answer:
    """Change a collection's title, description and the like; its slug stays."""
    caller, collection = _writable(state, request, f"{owner}/{name}")
    _check_length("description", request.json.get("description"), LONGEST_DESCRIPTION)
    for key in ("title", "description", "private", "theme", "position"):
        collection[key] = request.json.get(key, collection[key])
    _changed(state, collection)
    return json_answer({"success": True, "data": _shown(state, caller, collection)})


@route("DELETE", "/api/collections/{owner}/{name}")
def delete(state: State, request: Request, *, owner: str, name: str) -> Answer:
    """Delete a collection, not what is in it."""
    _, collection = _writable(state, request, f"{owner}/{name}")
    del state.store.collections[collection["slug"]]
    state.store.save()
    return json_answer({"success": True})


@route("POST", "/api/collections/{owner}/{name}/items")
def add_item(state: State, request: Request, *, owner: str, name: str) -> Answer:
    """Add a repository at the end."""
    caller, collection = _writable(state, request, f"{owner}/{name}")
    asked, note = request.json["item"], request.json.get("note")
    _check_length("note", note, LONGEST_NOTE)
    if not _visible(state, caller, asked):
        raise Refusal(404, f"{asked['type']} {asked['id']} not found", "RepoNotFound")
    with state.store.lock:
        items = collection["items"]
        if any((item["type"], item["id"]) == (asked["type"], asked["id"]) for item in items):
            raise Refusal(409, "This item is already in the collection")
        item_id = short_id(f"{collection['slug']}/{asked['type']}/{asked['id']}")
        items.append({"_id": item_id, "type": asked["type"], "id": asked["id"], "note": note})
        _changed(state, collection)
    return json_answer(_shown(state, caller, collection))


@route("PATCH", "/api/collections/{owner}/{name}/items/{item}")
def update_item(state: State, request: Request, *, owner: str, name: str, item: str) -> Answer:
    """Change an item's note or its place."""
    _, collection = _writable(state, request, f"{owner}/{name}")
    found = _item(collection, item)
    _check_length("note", request.json.get("note"), LONGEST_NOTE)
    found["note"] = request.json.get("note", found["note"])
    if "position" in request.json:
        collection["items"].remove(found)
        collection["items"].insert(request.json["position"], found)
    _changed(state, collection)
    return json_answer({"success": True})


@route("DELETE", "/api/collections/{owner}/{name}/items/{item}")
def delete_item(state: State, request: Request, *, owner: str, name: str, item: str) -> Answer:
    """Take an item out."""
    _, collection = _writable(state, request, f"{owner}/{name}")
    collection["items"].remove(_item(collection, item))
    _changed(state, collection)
    return json_answer({"success": True})


def _find(state: State, caller: Caller, slug: str) -> Json:
    collection: Json | None = state.store.collections.get(slug)
    if collection is None or (collection["private"] and not caller.may_read(slug)):
        raise Refusal(404, "Collection not found")
    return collection


def _writable(state: State, request: Request, slug: str) -> tuple[Caller, Json]:
    caller = state.accounts.caller(request)
    if caller.token is None:
        raise unauthorized()
    collection = _find(state, caller, slug)
    if not caller.may_write(slug):
        raise Refusal(403, f"Forbidden: you don't have write access to {slug}")
    return caller, collection


def _item(collection: Json, item_id: str) -> Json:
    items: list[Json] = collection["items"]
    for item in items:
        if item["_id"] == item_id:
            return item
    raise Refusal(404, "Item not found")


def _changed(state: State, collection: Json) -> None:
    collection["lastUpdated"] = timestamp(time.time())
    state.store.save()


def _visible(state: State, caller: Caller, item: Json) -> bool:
    """Return whether the caller may know of an item; papers and the like are not checked."""
    if item["type"] not in ("model", "dataset", "space"):
        return True
    repo = state.store.repos.get((item["type"], item["id"]))
    return repo is not None and (not repo.private or caller.may_read(repo.id))


def _shown(state: State, caller: Caller, collection: Json) -> Json:
    kind = "user" if collection["owner"] in state.accounts.users else "org"
    owner = {"name": collection["owner"], "fullname": collection["owner"], "type": kind}
    seen = [item for item in collection["items"] if _visible(state, caller, item)]
    items = []
    for position, item in enumerate(seen):
        note = {"html": item["note"], "text": item["note"]} if item["note"] else None
        row = {"position": position, "author": item["id"].split("/")[0], "note": note}
        items.append(item | row)
    return collection | {"owner": owner, "items": items, "gating": False}


def _check_length(name: str, text: str | None, longest: int) -> None:
    if text and len(text) > longest:
        raise Refusal(400, f'"{name}" must have at most {longest} characters, got {len(text)}')
