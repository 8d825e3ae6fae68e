"""Large files over Git LFS: where to upload, the upload itself in one or more parts, the check."""

import hashlib
from pathlib import Path

from tests.hub_server.access import find, writing
from tests.hub_server.routes import route
from tests.hub_server.state import State
from tests.hub_server.store import move_into
from tests.hub_server.wire import Answer, Json, Refusal, Request, json_answer


@route("POST", "/{prefix}{repo}.git/info/lfs/objects/batch")
def batch(state: State, request: Request, *, kind: str, repo_id: str) -> Answer:
    """Tell for each object where it can be got or has to be put; nothing if it is here already."""
    body = request.json
    upload = body["operation"] == "upload"
    # The client names no branch when it proposes.
    branch = body.get("ref", {}).get("name")
    may = writing(branch or "", create_pr=branch is None)
    repo, _ = find(state, request, kind=kind, repo_id=repo_id, need=may if upload else "read")
    in_parts = state.settings.part_bytes is not None and "multipart" in body.get("transfers", [])
    rows, transfer = [], "basic"
    for asked in body["objects"]:
        row: Json = {"oid": asked["oid"], "size": asked["size"], "authenticated": True}
        here = state.store.large_file(asked["oid"]).exists()
        if not upload:
            row |= _download(state, request, asked["oid"], here=here)
        elif not here:
            parts = _part_count(state, asked["size"]) if in_parts else 0
            transfer = "multipart" if parts else transfer
            address = _upload(state, request, sha256=asked["oid"], parts=parts)
            verify = f"{request.base}/{repo.path}.git/info/lfs/objects/verify"
            row["actions"] = {"upload": address, "verify": {"href": verify, "header": {}}}
        rows.append(row)
    return json_answer(
        {"transfer": transfer, "objects": rows, "hash_algo": "sha256"},
        headers={"Content-Type": "application/vnd.git-lfs+json"},
    )


def _download(state: State, request: Request, sha256: str, *, here: bool) -> Json:
    if not here:
        return {"error": {"code": 404, "message": "Object does not exist"}}
    return {"actions": {"download": {"href": state.sign(request, f"/lfs/{sha256}")}}}


def _part_count(state: State, size: int) -> int:
    """Return in how many parts an object has to come; 0 for in one piece."""
    largest = state.settings.part_bytes
    return -(-size // largest) if largest and size > largest else 0


def _upload(state: State, request: Request, *, sha256: str, parts: int) -> Json:
    if not parts:
        return {"href": state.sign(request, f"/lfs/{sha256}"), "header": {}}
    header = {"chunk_size": str(state.settings.part_bytes)}
    for number in range(1, parts + 1):
        header[f"{number:05d}"] = state.sign(request, f"/lfs/{sha256}/part/{number}")
    return {"href": state.sign(request, f"/lfs/{sha256}/complete"), "header": header}


@route("PUT", "/lfs/{hash}", "cdn")
def put(state: State, request: Request, **parts: str) -> Answer:
    """Receive an object."""
    state.check_signature(request)
    sha256 = state.store.keep_large(request.body, parts["hash"])
    return Answer(headers={"ETag": f'"{sha256[:32]}"'})


@route("PUT", "/lfs/{hash}/part/{number}", "cdn")
def put_part(state: State, request: Request, **parts: str) -> Answer:
    """Receive one part of an object."""
    state.check_signature(request)
    move_into(request.body, _part(state, parts["hash"], int(parts["number"])))
    return Answer(headers={"ETag": f'"part-{parts["number"]}"'})


@route("POST", "/lfs/{hash}/complete", "cdn")
def complete(state: State, request: Request, **parts: str) -> Answer:
    """Join the parts that were received."""
    state.check_signature(request)
    numbers = sorted(part["partNumber"] for part in request.json["parts"])
    received = [_part(state, parts["hash"], number) for number in numbers]
    if not all(path.exists() for path in received):
        raise Refusal(400, "InvalidPart: not all parts were received")
    joined = state.store.temporary()
    digest = hashlib.sha256()
    with joined.open("wb") as file:
        for path in received:
            content = path.read_bytes()
            digest.update(content)
            file.write(content)
    if digest.hexdigest() != parts["hash"]:
        joined.unlink()
        raise Refusal(400, "InvalidPart: the parts make another object")
    move_into(joined, state.store.large_file(parts["hash"]))
    for path in received:
        path.unlink()
    return json_answer({})


def _part(state: State, sha256: str, number: int) -> Path:
    return state.store.root / "temporary" / f"{sha256}-{number:05d}"


@route("POST", "/{prefix}{repo}.git/info/lfs/objects/verify")
def verify(state: State, request: Request, *, kind: str, repo_id: str) -> Answer:
    """Say whether an object has arrived whole."""
    find(state, request, kind=kind, repo_id=repo_id, need="contribute")
    path = state.store.large_file(request.json["oid"])
    if not path.exists() or path.stat().st_size != request.json["size"]:
        raise Refusal(404, "Object does not exist")
    return json_answer({})
