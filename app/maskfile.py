"""Write a mask in its CT's geometry, whole or not at all; remove what killed runs left half written."""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
import zlib
from collections.abc import Iterator
from io import FileIO
from itertools import chain
from pathlib import Path

import numpy as np

from app.errors import InputError, OutputError
from app.geometry import Geometry
from app.maskheader import VOXEL_OFFSET
from app.stream import WBITS, chunks_of, inflated
from app.voxels import blocks_of

_GZIP_LEVEL = 3  # on real masks as fast as level 1 and 8 % smaller; level 6 takes twice as long
_TEMPORARY = (".mask-", ".partial")  # never "*.nii.gz": no pattern takes a half-written file for a mask
_STALE_S = 3600  # where locks do not work, an older temporary file is taken for a killed run's


def write_mask(mask: np.ndarray, geometry: Geometry, path: Path) -> str:
    """Write a mask in the geometry of the CT it belongs to, whole or not at all.

    The bytes go to a hidden temporary file beside `path`, which is synced, read back, compared with
    what was meant, and only then renamed. The same mask gives the same bytes.

    Args:
        mask: uint8 labels, (z, y, x), as `Volume.hu`.
        geometry: Of the CT.
        path: Ends in .nii.gz, in a folder that exists; replaced if it is there.

    Returns:
        SHA-256 of the file, a hex digest.

    Raises:
        ValueError: `mask` or `path` is not as above.
        OutputError: The file could not be written; what was at `path` before is untouched, no temporary stays.
    """
    path = Path(path)
    if mask.dtype != np.uint8 or mask.shape != geometry.shape:
        raise ValueError(f"mask must be uint8 {geometry.shape}, got {mask.dtype} {mask.shape}")
    if not path.name.endswith(".nii.gz"):
        raise ValueError(f"a mask's name must end in .nii.gz, got {str(path)!r}")
    try:
        try:
            sha256 = _write(mask, geometry, path)
        except (FileNotFoundError, BlockingIOError):  # where locks do not reach other machines, a run that began in
            sha256 = _write(mask, geometry, path)  # this moment has removed the temporary file as a killed run's
        _sync_folder(path.parent)
    except OSError as error:
        cause = error.strerror or str(error)
        raise OutputError(f"{str(path)!r}: cannot be written: {cause}") from error
    return sha256


def _write(mask: np.ndarray, geometry: Geometry, path: Path) -> str:
    """One attempt. Returns the SHA-256 of the file."""
    with _temporary_in(path.parent) as (file, temporary):
        checksum = _write_gzip(file, geometry, mask)
        os.fsync(file.fileno())
        file.seek(0)  # not opened anew: on SMB the lock keeps all other descriptors out
        sha256 = _verified(file, VOXEL_OFFSET + mask.size, checksum)
        os.replace(temporary, path)
    return sha256


def remove_stale_temporaries(folder: Path) -> None:
    """Remove the temporary files that killed runs left in a folder, never those of a run that lives.

    A living run holds a lock on its file. What cannot be looked at or removed is left, without an error.
    """
    prefix, suffix = _TEMPORARY
    for path in Path(folder).glob(f"{prefix}*{suffix}"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if _is_stale(descriptor):
                    path.unlink()
            finally:
                os.close(descriptor)


def _is_stale(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return False
    return _lock(descriptor, unsupported=time.time() - status.st_mtime > _STALE_S)


def _lock(descriptor: int, unsupported: bool) -> bool:
    """Whether the lock was free and is now held; `unsupported` where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return unsupported
    return True


@contextlib.contextmanager
def _temporary_in(folder: Path) -> Iterator[tuple[FileIO, Path]]:
    """A new locked file and its path; gone at the end unless renamed, whatever ends it (Ctrl-C and SIGTERM too)."""
    path = folder / secrets.token_hex(8).join(_TEMPORARY)
    try:
        with open(path, "x+b", buffering=0) as file:
            if not _lock(file.fileno(), unsupported=True):  # another run has just taken it for a killed run's
                raise OSError(errno.EAGAIN, "another run removed its temporary file")
            yield file, path
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _write_gzip(file: FileIO, geometry: Geometry, mask: np.ndarray) -> int:
    """Compress header and voxels into `file`. Returns the CRC-32 of what went in."""
    compressor = zlib.compressobj(
        _GZIP_LEVEL, zlib.DEFLATED, WBITS["gzip"]
    )  # without a name or a time, so that equal masks give equal bytes
    voxels = geometry.in_file_order(mask)
    blocks = (voxels[block].tobytes() for block in blocks_of(voxels.shape, 1))
    checksum = 0
    for part in chain([geometry.mask_header], blocks):
        checksum = zlib.crc32(part, checksum)
        _write_all(file, compressor.compress(part))
    _write_all(file, compressor.flush())
    return checksum


def _write_all(file: FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _verified(file: FileIO, size: int, checksum: int) -> str:
    """SHA-256 of a written file, from here on, after it was decompressed and found to be what was meant."""
    digest = hashlib.sha256()
    found_size, found = 0, 0
    warnings: list[str] = []
    try:
        for part in inflated(chunks_of(file, digest), "gzip", warnings):
            found, found_size = zlib.crc32(part, found), found_size + len(part)
    except InputError as error:
        raise OSError(errno.EIO, f"read back: {error}") from None
    if warnings or (found_size, found) != (size, checksum):
        raise OSError(errno.EIO, "read back, it is not what was written")
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make the new name last through a power cut. Not every file system can: the mask is in place either way."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
