"""Files and folders as pieces of limited size, with their checksums, for ways that carry no large file.

FOLDER/pieces.tar.000, .001, ...    a tar archive, cut
FOLDER/pieces.sha256                of each piece, as `sha256sum` writes and checks it
"""

import hashlib
import tarfile
from pathlib import Path
from typing import Any

from app.record import file_sha256

NAME = "pieces.tar"
SUMS = "pieces.sha256"


class PiecesError(Exception):
    """Pieces are missing, damaged or in the way; the message names them."""


class _Cut:
    """A file that is written into pieces; tarfile's stream only writes."""

    def __init__(self, folder: Path, piece_bytes: int):
        self.folder, self.piece_bytes = folder, piece_bytes
        self.sums: dict[str, str] = {}
        self._piece = bytearray()

    def write(self, data: bytes) -> None:
        self._piece += data
        while len(self._piece) > self.piece_bytes:
            self._put(bytes(self._piece[: self.piece_bytes]))
            del self._piece[: self.piece_bytes]

    def finish(self) -> None:
        self._put(bytes(self._piece))

    def _put(self, piece: bytes) -> None:
        name = f"{NAME}.{len(self.sums):03}"
        (self.folder / name).write_bytes(piece)
        self.sums[name] = hashlib.sha256(piece).hexdigest()


class _Joined:
    """The pieces, read as one file, a piece at a time: tarfile's stream takes more than it asked for."""

    def __init__(self, pieces: list[Path]):
        self._left = iter(pieces)

    def read(self, size: int) -> bytes:
        piece = next(self._left, None)
        return piece.read_bytes() if piece else b""


def split(path: Path, folder: Path, piece_mib: float) -> list[Path]:
    """Put a file, or what a folder holds, into pieces.

    Args:
        path: What to carry. A file keeps its name; of a folder only the content's names are kept.
        folder: For the pieces, made if absent.
        piece_mib: No piece is larger.

    Returns:
        The pieces.

    Raises:
        PiecesError: The folder holds pieces already.
        OSError: Reading or writing fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob(f"{NAME}.*")):
        raise PiecesError(f"{folder} holds pieces already")
    cut: Any = _Cut(folder, int(piece_mib * 2**20))
    with tarfile.open(fileobj=cut, mode="w|", bufsize=1 << 20) as archive:
        for item in sorted(path.iterdir()) if path.is_dir() else [path]:
            archive.add(item, arcname=item.name)
    cut.finish()
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in cut.sums.items()))
    return [folder / name for name in cut.sums]


def join(folder: Path, target: Path) -> None:
    """Check all pieces, then unpack them.

    Args:
        folder: With the pieces.
        target: Folder that gets what was packed, made if absent.

    Raises:
        PiecesError: A piece is missing or damaged.
        OSError: Reading or writing fails.
    """
    if not (folder / SUMS).exists():
        raise PiecesError(f"{folder / SUMS} is missing")
    lines = [line.split("  ", 1) for line in (folder / SUMS).read_text().splitlines()]
    pieces = [folder / name for _, name in lines]
    for piece, (digest, _) in zip(pieces, lines, strict=True):
        if not piece.exists():
            raise PiecesError(f"{piece} is missing; there are to be {len(pieces)} pieces")
        if file_sha256(piece) != digest:
            raise PiecesError(f"{piece} is damaged: its SHA-256 is not that of {SUMS}")
    target.mkdir(parents=True, exist_ok=True)
    joined: Any = _Joined(pieces)
    with tarfile.open(fileobj=joined, mode="r|") as archive:
        archive.extractall(target, filter="data")
