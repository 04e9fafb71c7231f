"""The bytes of a file, in chunks: hashed as they are read, decompressed with every checksum verified."""

import hashlib
import zlib
from collections.abc import Iterator
from io import FileIO
from typing import BinaryIO

from app.errors import InputError

_CHUNK_BYTES = 1 << 15  # bytes read at a time; deflate makes at most 33 MB of one
WBITS = {"gzip": 31, "zlib": 47}  # zlib's codes; 47 takes gzip too, as MetaIO does


def chunks_of(file: BinaryIO | FileIO, digest: "hashlib._Hash") -> Iterator[bytes]:
    """All bytes of an open file; each goes into the digest too."""
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        yield chunk


def inflated(chunks: Iterator[bytes], compression: str, warnings: list[str]) -> Iterator[bytes]:
    """Decompress, member after member. zlib checks each member's CRC and length; an end before that is an error.

    What follows the last member and gives no byte is garbage (often zeros): the members before it
    are whole, so a warning does. All chunks are consumed, so that the digest is that of the file.
    """
    garbage = f"bytes behind the end of the {compression} stream are ignored"
    inflater = zlib.decompressobj(WBITS[compression])
    whole_members, begun, fresh = 0, False, True  # of the member that is being read: bytes came; none came out
    for data in chunks:
        while data:
            try:
                part = inflater.decompress(data)
            except zlib.error as error:
                if whole_members and fresh:
                    warnings.append(garbage)
                    for _ in chunks:
                        pass
                    return
                detail = str(error).rpartition(": ")[2]
                raise InputError(f"damaged {compression} stream ({detail})") from None
            begun, fresh = True, fresh and not part
            data = inflater.unused_data
            if inflater.eof:
                whole_members += 1
                inflater, begun, fresh = zlib.decompressobj(WBITS[compression]), False, True
            if part:
                yield part
    if not whole_members or not fresh:
        raise InputError(f"truncated: its {compression} stream has no end")
    if begun:
        warnings.append(garbage)


def take(chunks: Iterator[bytes], size: int) -> bytes:
    """The first `size` bytes and what came with them; fewer where the stream ends."""
    head = b""
    while len(head) < size and (chunk := next(chunks, b"")):
        head += chunk
    return head


class Stream:
    """A stream of chunks, read into buffers."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = memoryview(b"")

    def read_into(self, buffer: memoryview) -> int:
        """Fill the buffer. Returns the number of bytes, fewer than asked for only at the end."""
        done = 0
        while done < len(buffer):
            if not self._chunk and not self._next():
                break
            part = self._chunk[: len(buffer) - done]
            buffer[done : done + len(part)] = part
            self._chunk = self._chunk[len(part) :]
            done += len(part)
        return done

    def skip(self, size: int) -> None:
        """Pass over so many bytes, or over all that is left."""
        while size > 0 and (self._chunk or self._next()):
            part = min(size, len(self._chunk))
            self._chunk = self._chunk[part:]
            size -= part

    def rest(self) -> Iterator[bytes]:
        """All that is left, in chunks."""
        yield bytes(self._chunk)
        yield from self._chunks

    def _next(self) -> bool:
        self._chunk = memoryview(next(self._chunks, b""))
        return bool(self._chunk)
