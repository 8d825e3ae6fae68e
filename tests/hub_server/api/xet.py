"""Xet storage: tokens from the Hub, and at the second origin xorbs, shards and reconstructions."""

import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple

from tests.hub_server.access import Need, find, writing
from tests.hub_server.accounts import bearer
from tests.hub_server.routes import route
from tests.hub_server.state import VALID_SECONDS, State
from tests.hub_server.store import move_into
from tests.hub_server.wire import Answer, Json, Refusal, Request, byte_range, json_answer
from tests.hub_server.xet_format import ShardFile, Term, chunks, read_shard, unpack


@route("GET", "/api/{kinds}/{repo}/xet-(?P<may>read|write)-token/{rev}")
def token(state: State, request: Request, *, kind: str, repo_id: str, may: str, rev: str) -> Answer:
    """Exchange an access token for one that the storage takes, for an hour."""
    need: Need = "read"
    if may == "write":
        need = writing(rev, create_pr=request.flag("create_pr"))
    find(state, request, kind=kind, repo_id=repo_id, need=need)
    if not state.settings.xet:
        raise Refusal(404, "This Hub has no Xet storage")
    expires, value = int(time.time()) + VALID_SECONDS, _token(state, may)
    headers = {
        "X-Xet-Access-Token": value,
        "X-Xet-Cas-Url": request.cdn,
        "X-Xet-Token-Expiration": str(expires),
    }
    body = {"accessToken": value, "casUrl": request.cdn, "exp": expires}
    return json_answer(body, headers=headers)


def _token(state: State, may: str) -> str:
    return f"xet_{may}_{state.signature(may)}"


def _check_token(state: State, request: Request, *may: str) -> None:
    given = bearer(request.headers.get("Authorization"))
    if given not in [_token(state, granted) for granted in may]:
        raise Refusal(401, "Invalid Xet token")


def _xorb(state: State, xorb: str) -> Path:
    return state.store.root / "xorbs" / xorb


@route("GET", "/v1/chunks/[^/]+/{hash}", "cdn")
def known_chunk(state: State, request: Request, **_parts: str) -> Answer:
    """Say that no other repository has this chunk: each upload is complete in itself."""
    _check_token(state, request, "read", "write")
    raise Refusal(404, "No such chunk")


@route("POST", "/v1/xorbs/[^/]+/{hash}", "cdn")
def put_xorb(state: State, request: Request, **parts: str) -> Answer:
    """Receive a xorb under the name that the client gives it."""
    _check_token(state, request, "write")
    path = _xorb(state, parts["hash"])
    new = not path.exists()
    move_into(request.body, path)
    return json_answer({"was_inserted": new})


@route("GET", "/v1/get_xorb/{hash}", "cdn")
def get_xorb(state: State, request: Request, **parts: str) -> Answer:
    """Return a xorb, or a part, to whoever has its signed address."""
    state.check_signature(request)
    headers = {"Content-Type": "application/octet-stream"}
    return Answer(200, headers, _xorb(state, parts["hash"]), ranged=True)


@route("POST", "/(?P<version>v[12])/shards", "cdn")
def put_shard(state: State, request: Request, *, version: str) -> Answer:
    """Receive the list of what the xorbs make, and make it."""
    _check_token(state, request, "write")
    for file in read_shard(request.data):
        _assemble(state, file)
    if version == "v1":
        return json_answer({"result": 1})
    steps: list[Json] = [
        {"type": "validating", "verified": 0, "total": 0},
        {"type": "committing", "stage": "uploading"},
        {"type": "committing", "stage": "syncing"},
        {"type": "result"},
    ]
    lines = "".join(f"{json.dumps(step)}\n" for step in steps)
    return Answer(200, {"Content-Type": "application/x-ndjson"}, lines.encode())


def _assemble(state: State, file: ShardFile) -> None:
    """Put a file together, so that LFS and git see it like any other large file."""
    path = state.store.temporary()
    try:
        sha256, size = _unpack_into(path, state, file)
        if file.sha256 not in (None, sha256):
            raise Refusal(400, f"The file's sha256 is {sha256}, not {file.sha256}")
        move_into(path, state.store.large_file(sha256))
    finally:
        path.unlink(missing_ok=True)
    with state.store.lock:
        state.store.xet_files[file.xet_id] = {"size": size, "terms": file.terms}
        state.store.xet_ids[sha256] = file.xet_id


def _unpack_into(path: Path, state: State, file: ShardFile) -> tuple[str, int]:
    """Write a file's terms one after the other; return its sha256 and its size."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as output:
        for term in file.terms:
            xorb = _xorb(state, term.xorb)
            if not xorb.exists():
                raise Refusal(400, f"The shard names a xorb that is not here: {term.xorb}")
            for piece in unpack(term, xorb):
                digest.update(piece)
                size += output.write(piece)
    return digest.hexdigest(), size


class _Piece(NamedTuple):
    """What a range needs of one term: chunks `first` to before `last`, and their place."""

    xorb: str
    first: int
    last: int
    size: int
    start_byte: int
    last_byte: int


@route("GET", "/(?P<version>v[12])/reconstructions/{hash}", "cdn")
def reconstruction(state: State, request: Request, *, version: str, **parts: str) -> Answer:
    """Tell which parts of which xorbs make a file, or the asked range of it."""
    _check_token(state, request, "read", "write")
    file = state.store.xet_files.get(parts["hash"])
    if file is None:
        raise Refusal(404, "No such file")
    wanted = byte_range(request.headers.get("Range"), file["size"]) or (0, file["size"])
    offset, pieces = _pieces(state, [Term(*term) for term in file["terms"]], wanted)
    terms = [
        {
            "hash": piece.xorb,
            "unpacked_length": piece.size,
            "range": {"start": piece.first, "end": piece.last},
        }
        for piece in pieces
    ]
    sources = _sources_v2 if version == "v2" else _sources_v1
    found = {"offset_into_first_range": offset, "terms": terms}
    return json_answer(found | sources(state, request, _merged(pieces)))


def _pieces(state: State, terms: list[Term], wanted: tuple[int, int]) -> tuple[int, list[_Piece]]:
    """Return the pieces of a range, and how far into the first one it begins."""
    pieces: list[_Piece] = []
    position = offset = 0
    for term in terms:
        kept: list[int] = []
        table = chunks(_xorb(state, term.xorb))
        for index in range(term.first, term.last):
            end = position + table[index].size
            if position < wanted[1] and end > wanted[0]:
                if not pieces and not kept:
                    offset = wanted[0] - position
                kept.append(index)
            position = end
        if kept:
            first, last = kept[0], kept[-1]
            size = sum(table[index].size for index in kept)
            place = table[first].start, table[last].end - 1
            pieces.append(_Piece(term.xorb, first, last + 1, size, *place))
    return offset, pieces


def _merged(pieces: list[_Piece]) -> list[_Piece]:
    """Join pieces that overlap: the client takes the first source of a xorb that has a chunk."""
    merged: list[_Piece] = []
    for piece in sorted(pieces):
        last = merged[-1] if merged else None
        if last and last.xorb == piece.xorb and piece.first < last.last:
            end, last_byte = max(last.last, piece.last), max(last.last_byte, piece.last_byte)
            merged[-1] = last._replace(last=end, last_byte=last_byte)
        else:
            merged.append(piece)
    return merged


def _sources_v2(state: State, request: Request, pieces: list[_Piece]) -> Json:
    xorbs: dict[str, list[Json]] = {}
    for piece in pieces:
        places = {
            "chunks": {"start": piece.first, "end": piece.last},
            "bytes": {"start": piece.start_byte, "end": piece.last_byte},
        }
        url = state.sign(request, f"/v1/get_xorb/{piece.xorb}")
        xorbs.setdefault(piece.xorb, []).append({"url": url, "ranges": [places]})
    return {"xorbs": xorbs}


def _sources_v1(state: State, request: Request, pieces: list[_Piece]) -> Json:
    fetch: dict[str, list[Json]] = {}
    for piece in pieces:
        source = {
            "range": {"start": piece.first, "end": piece.last},
            "url": state.sign(request, f"/v1/get_xorb/{piece.xorb}"),
            "url_range": {"start": piece.start_byte, "end": piece.last_byte},
        }
        fetch.setdefault(piece.xorb, []).append(source)
    return {"fetch_info": fetch}
