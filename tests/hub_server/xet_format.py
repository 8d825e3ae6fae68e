"""The two files of Xet storage: xorbs, which hold compressed chunks, and shards, which list files.

A file is a sequence of terms; a term is a run of chunks of one xorb. Numbers are little-endian.

Source:
    https://github.com/huggingface/xet-core and https://huggingface.co/docs/xet
"""

import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

_CHUNK_HEADER = 8
_XORB_FOOTER = b"XETBLOB"
_SHARD_HEADER = _RECORD = 48
_END_OF_FILES = b"\xff" * 32
_HAS_VERIFICATION, _HAS_SHA256 = 1 << 31, 1 << 30
_STORED, _LZ4, _GROUPED_LZ4 = range(3)


class Chunk(NamedTuple):
    """One chunk of a xorb.

    Attributes:
        start: Where its header begins in the xorb.
        end: Where its data end.
        scheme: How it is compressed.
        size: Its bytes when unpacked.
    """

    start: int
    end: int
    scheme: int
    size: int


class Term(NamedTuple):
    """A run of chunks, from `first` to before `last`, which unpack to `size` bytes."""

    xorb: str
    size: int
    first: int
    last: int


class ShardFile(NamedTuple):
    """One file of a shard; its sha256 if the client told it."""

    xet_id: str
    terms: list[Term]
    sha256: str | None


@lru_cache(maxsize=256)
def chunks(xorb: Path) -> list[Chunk]:
    """Return a xorb's chunks. Its name is the hash of its content, so that it never changes."""
    content, start, found = xorb.read_bytes(), 0, []
    while start + _CHUNK_HEADER <= len(content):
        header = content[start : start + _CHUNK_HEADER]
        if header.startswith(_XORB_FOOTER):
            break
        end = start + _CHUNK_HEADER + int.from_bytes(header[1:4], "little")
        found.append(Chunk(start, end, header[4], int.from_bytes(header[5:8], "little")))
        start = end
    return found


def unpack(term: Term, xorb: Path) -> Iterator[bytes]:
    """Yield the unpacked chunks of a term."""
    with xorb.open("rb") as file:
        for chunk in chunks(xorb)[term.first : term.last]:
            file.seek(chunk.start + _CHUNK_HEADER)
            yield _unpacked(file.read(chunk.end - chunk.start - _CHUNK_HEADER), chunk)


def _unpacked(packed: bytes, chunk: Chunk) -> bytes:
    if chunk.scheme == _STORED:
        return packed
    plain: bytes = pa.Codec("lz4").decompress(packed, chunk.size, asbytes=True)
    if chunk.scheme == _LZ4:
        return plain
    # Every fourth byte first, then every fourth plus one, and so on: floats pack better like that.
    mixed, start = bytearray(chunk.size), 0
    for plane in range(4):
        length = len(range(plane, chunk.size, 4))
        mixed[plane::4] = plain[start : start + length]
        start += length
    return bytes(mixed)


def read_shard(content: bytes) -> list[ShardFile]:
    """Return the files that a shard lists."""
    found, start = [], _SHARD_HEADER
    while start + _RECORD <= len(content):
        xet_id = content[start : start + 32]
        if xet_id == _END_OF_FILES:
            break
        flags, count = struct.unpack_from("<II", content, start + 32)
        start += _RECORD
        terms = [_term(content, start + _RECORD * index) for index in range(count)]
        start += _RECORD * count * (2 if flags & _HAS_VERIFICATION else 1)
        sha256 = None
        if flags & _HAS_SHA256:
            sha256 = _hex(content[start : start + 32])
            start += _RECORD
        found.append(ShardFile(_hex(xet_id), terms, sha256))
    return found


def _term(content: bytes, start: int) -> Term:
    _, size, first, last = struct.unpack_from("<IIII", content, start + 32)
    return Term(_hex(content[start : start + 32]), size, first, last)


def _hex(raw: bytes) -> str:
    """Return a hash as Xet writes it: as four numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))
