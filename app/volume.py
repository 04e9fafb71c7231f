"""From a CT file of any orientation to int16 HU (z, y, x), and back from a mask to a file in the CT's geometry.

Files are read with numpy and zlib alone. SimpleITK returns pixels from truncated and bit-flipped
.nii.gz without a word, makes float32 of a sloped uint8 file, refuses directions that are not quite
orthonormal, and takes a second to import; its writer succeeds on a full disk. Here every length and
checksum is verified, the header's sizes are checked before memory is taken, and voxels go block by
block to where they belong in the reoriented array: the peak is the int16 volume and one block.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from app.nifti import HEADER_BYTES, SAME_AXES, VOXEL_OFFSET, Header, InputError, cosines, parse_nifti
from app.textheader import LONGEST_HEADER, parse_metaimage, parse_nrrd

__all__ = ["Geometry", "InputError", "OutputError", "Volume", "read_volume", "remove_stale_temporaries", "write_mask"]

FORMATS = {  # suffix: (parser, bytes of the file it must see)
    ".nii.gz": (parse_nifti, HEADER_BYTES),
    ".nii": (parse_nifti, HEADER_BYTES),
    ".mha": (parse_metaimage, LONGEST_HEADER),
    ".nrrd": (parse_nrrd, LONGEST_HEADER),
}
_REFUSED_SUFFIXES = (".hdr", ".img", ".hdr.gz", ".img.gz", ".mhd", ".nhdr")

_CHUNK = 1 << 15  # bytes read at a time; deflate makes at most 33 MB of one
_BLOCK = 1 << 20  # bytes of stored voxels converted at a time: stays in the cache, yet holds several slices
_DEFLATE_RATIO = 1032  # no deflate stream holds more bytes than this per byte of its own
_PADDING = 512  # bytes that some writers leave behind the last voxel
_WBITS = {"gzip": 31, "zlib": 47}  # zlib's words; 47 also takes gzip, as MetaIO does
_GZIP_LEVEL = 3  # on real masks as fast as 1 and 8 % smaller; 6 takes twice as long
_TEMPORARY = (".mask-", ".partial")  # never "*.nii.gz": no pattern takes a half-written file for a mask
_STALE_S = 3600  # where locks do not work, a temporary older than this is no one's


class OutputError(OSError):
    """A mask that could not be written. `str` is one line that names the file and the cause."""


@dataclass(frozen=True)
class Geometry:
    """Where a volume lies, and all that is needed to write a mask in its file's own axes.

    Attributes:
        shape: Of the reoriented array, (z, y, x).
        spacing_mm: Of the reoriented array, (z, y, x).
        axes: Array axis (0, 1, 2 for z, y, x) of each file axis, slowest file axis first.
        flips: Whether each file axis, slowest first, runs against its array axis.
        mask_header: The 352 bytes that stand before the voxels of a mask.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    mask_header: bytes

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel, in ml; of a sheared one, that of its edges at right angles."""
        return float(np.prod(self.spacing_mm)) / 1000.0

    def in_file_order(self, array: np.ndarray) -> np.ndarray:
        """View of a (z, y, x) array with the file's axes, slowest first."""
        return array.transpose(self.axes)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]


@dataclass
class Volume:
    """A CT in memory.

    Attributes:
        hu: int16 HU, (z, y, x), C-contiguous; x runs to the patient's right, y forward, z up ("RAS" in
            nibabel's and ITK's `DICOMOrient` words, stored z, y, x).
        geometry: For `write_mask`.
        warnings: One line each, without the file's name.
        sha256: Hex digest of the file's bytes as they were read.
    """

    hu: np.ndarray
    geometry: Geometry
    warnings: tuple[str, ...]
    sha256: str


# Reading


def read_volume(path: Path) -> Volume:
    """Read a CT, in one pass over the file.

    Args:
        path: A .nii.gz, .nii (NIfTI-1), .mha or .nrrd file that holds one 3-D volume of numbers.

    Returns:
        The reoriented volume; values rounded to whole HU and saturated to int16.

    Raises:
        InputError: The file is missing, damaged, of another kind, or larger than the machine.
    """
    path = Path(path)
    try:
        return _read(path)
    except InputError as error:
        cause = str(error)
    except FileNotFoundError:
        cause = "a link to a file that is not there" if path.is_symlink() else "no such file"
    except OSError as error:
        cause = error.strerror or type(error).__name__
    except MemoryError:
        cause = "not enough memory for its voxels"
    except ValueError as error:  # a name with a zero byte
        cause = str(error)
    raise InputError(f"{_shown(path)}: {cause}")


def _read(path: Path) -> Volume:
    parse, header_bytes = _format(path)
    if not stat.S_ISREG(path.stat().st_mode):  # asked before opening: a pipe would wait for a writer
        raise InputError("a folder, not a file" if path.is_dir() else "not a regular file")
    warnings: list[str] = []
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        if before.st_size == 0:
            raise InputError("an empty file")
        chunks = _chunks(file, digest)
        compressed = path.name.lower().endswith(".gz")
        if compressed:
            chunks = _inflated(chunks, "gzip", warnings)
        head = _take(chunks, header_bytes)
        header = parse(head[:header_bytes])
        _check_size(header, before.st_size, compressed)

        stream = _Stream(chain([head], chunks))
        stream.skip(header.offset)
        if header.compression:
            stream = _Stream(_inflated(stream.rest(), header.compression, warnings))
        geometry, geometry_warnings = _geometry(header)
        hu = np.empty(geometry.shape, np.int16)
        low, high = _fill(geometry.in_file_order(hu), header, stream)
        _check_end(stream, warnings)
        after = os.fstat(file.fileno())
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise InputError("the file changed while it was read")
    warnings = [*header.warnings, *geometry_warnings, *warnings, *_doubts(low, high)]
    return Volume(hu, geometry, tuple(warnings), digest.hexdigest())


def _format(path: Path) -> tuple[Callable[[bytes], Header], int]:
    name = path.name.lower()
    for suffix, parser in FORMATS.items():
        if name.endswith(suffix):
            return parser
    path.stat()  # a missing file is missing, whatever its name
    if path.is_dir():
        raise InputError("a folder, not a file")
    if name.endswith(_REFUSED_SUFFIXES):
        raise InputError("one part of an image in two files: convert it to one .nii.gz file")
    raise InputError("unknown kind of file: " + ", ".join(FORMATS) + " are read")


def _chunks(file, digest) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        yield chunk


def _inflated(chunks: Iterator[bytes], compression: str, warnings: list[str]) -> Iterator[bytes]:
    """Decompress, member after member. zlib checks each member's CRC and length; an end before that is an error.

    What follows the last member and gives no byte is garbage (often zeros): the members before it
    are whole, so a warning does. All chunks are consumed, so that the digest is that of the file.
    """
    garbage = f"bytes behind the end of the {compression} stream are ignored"
    inflater = zlib.decompressobj(_WBITS[compression])
    whole_members, begun, fresh = 0, False, True  # of the present member: has bytes; has given none
    for data in chunks:
        while data:
            try:
                inflated = inflater.decompress(data)
            except zlib.error as error:
                if whole_members and fresh:
                    warnings.append(garbage)
                    for _ in chunks:
                        pass
                    return
                detail = str(error).rpartition(": ")[2]
                raise InputError(f"damaged {compression} stream ({detail})") from None
            begun, fresh = True, fresh and not inflated
            data = inflater.unused_data
            if inflater.eof:
                whole_members += 1
                inflater, begun, fresh = zlib.decompressobj(_WBITS[compression]), False, True
            if inflated:
                yield inflated
    if not whole_members or not fresh:
        raise InputError(f"truncated: its {compression} stream has no end")
    if begun:
        warnings.append(garbage)


def _take(chunks: Iterator[bytes], size: int) -> bytes:
    """The first `size` bytes and what came with them; fewer where the stream ends."""
    head = b""
    while len(head) < size and (chunk := next(chunks, b"")):
        head += chunk
    return head


class _Stream:
    """A stream of chunks, read into buffers."""

    def __init__(self, chunks: Iterator[bytes]):
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
        while size > 0 and (self._chunk or self._next()):
            part = min(size, len(self._chunk))
            self._chunk = self._chunk[part:]
            size -= part

    def rest(self) -> Iterator[bytes]:
        yield self._chunk
        yield from self._chunks

    def _next(self) -> bool:
        self._chunk = memoryview(next(self._chunks, b""))
        return bool(self._chunk)


def _check_size(header: Header, file_bytes: int, compressed: bool) -> None:
    """Refuse what the file cannot hold or the machine cannot, before any memory is taken."""
    voxels = int(np.prod(header.shape, dtype=object))
    declared = voxels * header.dtype.itemsize
    size = f"{' x '.join(map(str, reversed(header.shape)))} voxels of {header.dtype.itemsize} bytes"
    available = file_bytes - (0 if compressed else header.offset)
    if compressed or header.compression:
        if declared > available * _DEFLATE_RATIO:
            raise InputError(f"its header declares {size}, more than {file_bytes} bytes can hold compressed")
    elif declared > available:
        raise InputError(f"its header declares {size}, but {max(available, 0)} bytes follow it: truncated?")
    elif available > declared + _PADDING:
        raise InputError(f"its header declares {size}, but {available} bytes follow it")
    if 2 * voxels > _memory_bytes():
        raise InputError(f"its header declares {size}, more than the memory of this machine")


def _memory_bytes() -> int:
    """Memory this process may have: the machine's, or its container's limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            limits.append(int(Path(path).read_text()))
    return min(limits)


def _geometry(header: Header) -> tuple[Geometry, list[str]]:
    """Nearest axes: the largest direction cosine is assigned first, then the largest that is left.

    ITK's `DICOMOrient` and nibabel do the same, so that oblique scans come out as theirs do.
    """
    directions = cosines(header.affine)  # (world x, y, z; file axis i, j, k)
    left = np.abs(directions)
    world_axis = [0, 0, 0]
    for _ in range(3):
        world, axis = np.unravel_index(left.argmax(), left.shape)
        world_axis[axis] = int(world)
        left[world, :] = left[:, axis] = -1
    axes = tuple(2 - world_axis[axis] for axis in (2, 1, 0))  # k, j, i; z, y, x
    flips = tuple(bool(directions[world_axis[axis], axis] < 0) for axis in (2, 1, 0))
    spacing = np.linalg.norm(header.affine[:3, :3], axis=0)[::-1]
    place = [axes.index(axis) for axis in range(3)]  # file axis of z, y, x
    geometry = Geometry(
        shape=tuple(header.shape[axis] for axis in place),
        spacing_mm=tuple(float(spacing[axis]) for axis in place),
        axes=axes,
        flips=flips,
        mask_header=header.mask_header,
    )
    if np.abs(directions.T @ directions - np.eye(3)).max() > SAME_AXES:
        return geometry, ["its axes are not at right angles: the nearest ones are used"]
    return geometry, []


def _fill(target: np.ndarray, header: Header, stream: _Stream) -> tuple[int, int]:
    """Decode all voxels into `target` (int16, the file's axes, slowest first). Returns the lowest and highest HU."""
    to_hu = _converter(header.dtype, header.slope, header.inter)
    blocks = _blocks(target.shape, header.dtype.itemsize)
    buffer = bytearray(target[blocks[0]].size * header.dtype.itemsize)
    low, high = 2**15, -(2**15)
    for block in blocks:
        place = target[block]
        raw = memoryview(buffer)[: place.size * header.dtype.itemsize]
        if stream.read_into(raw) < len(raw):
            raise InputError("truncated: it ends before its last voxel")
        hu = to_hu(np.frombuffer(raw, header.dtype))
        low, high = min(low, int(hu.min())), max(high, int(hu.max()))
        place[...] = hu.reshape(place.shape)
    return low, high


def _blocks(shape: tuple[int, ...], itemsize: int) -> list[tuple[slice, slice]]:
    """Cut an array, in the order of its memory, into pieces of about `_BLOCK` bytes: whole slices or rows of one."""
    slices, rows, columns = shape
    rows_per_block = max(1, _BLOCK // (columns * itemsize))
    row_step, slice_step = min(rows, rows_per_block), max(1, rows_per_block // rows)
    return [
        (slice(k, k + slice_step), slice(j, j + row_step))
        for k in range(0, slices, slice_step)
        for j in range(0, rows, row_step)
    ]


def _converter(dtype: np.dtype, slope: float, inter: float) -> Callable[[np.ndarray], np.ndarray]:
    """The function from stored voxels (1-D, of `dtype`) to int16 HU, rounded and saturated."""

    def to_hu(stored: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            hu = stored.astype(np.float64) * slope + inter
        if not np.isfinite(hu).all():
            raise InputError("some voxels are NaN or infinite")
        return np.clip(np.rint(hu, out=hu), -(2**15), 2**15 - 1, out=hu).astype(np.int16)

    native = dtype.newbyteorder("=")
    if native == np.int16 and (slope, inter) == (1, 0):
        return lambda stored: stored.astype(np.int16, copy=False)
    if native.itemsize <= 2:  # every value there is, once: five times as fast as converting each voxel
        index = np.dtype(f"u{native.itemsize}")
        table = to_hu(np.arange(256**native.itemsize, dtype=index).view(native))
        return lambda stored: table[stored.astype(native, copy=False).view(index)]
    return to_hu


def _check_end(stream: _Stream, warnings: list[str]) -> None:
    """Read to the end, where checksums are verified, and refuse a file that holds more than it declares."""
    excess = 0
    for chunk in stream.rest():
        excess += len(chunk)
        if excess > _PADDING:
            raise InputError("it holds more voxels than its header declares")
    if excess:
        warnings.append(f"{excess} bytes behind the last voxel are ignored")


def _doubts(low: int, high: int) -> list[str]:
    """Why a volume of these values may not be a CT."""
    if low == high:
        return [f"every voxel is {low} HU: not a CT?"]
    if low >= 0 and high <= 255:
        return [f"values from {low} to {high}, the range of an 8-bit picture: not a CT?"]
    if low >= -200:
        return [f"no voxel under -200 HU (values from {low} to {high}): not a CT, or its air was clipped away?"]
    return []


def _shown(path: Path) -> str:
    """The path on one line, whatever is in it."""
    return repr(os.fspath(path))


# Writing


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
        raise ValueError(f"a mask's name must end in .nii.gz, got {_shown(path)}")
    try:
        with _temporary_in(path.parent) as (file, temporary):
            checksum = _write_gzip(file, geometry, mask)
            file.flush()
            os.fsync(file.fileno())
            sha256 = _verified(temporary, VOXEL_OFFSET + mask.size, checksum)
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        cause = error.strerror or str(error)
        raise OutputError(f"{_shown(path)}: cannot be written: {cause}") from error
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
def _temporary_in(folder: Path):
    """A new locked file and its path; gone at the end unless renamed, whatever ends it (Ctrl-C and SIGTERM too)."""
    path = folder / secrets.token_hex(8).join(_TEMPORARY)
    try:
        with open(path, "x+b", buffering=0) as file:
            if not _lock(file.fileno(), unsupported=True):  # another run took it for stale, in this very moment
                raise OSError(errno.EAGAIN, "another run removed its temporary file")
            yield file, path
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _write_gzip(file, geometry: Geometry, mask: np.ndarray) -> int:
    """Compress header and voxels into `file`. Returns the CRC-32 of what went in."""
    compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _WBITS["gzip"])  # no name, no time: the same bytes
    voxels = geometry.in_file_order(mask)
    parts = (np.ascontiguousarray(voxels[block]) for block in _blocks(voxels.shape, 1))
    checksum = 0
    for part in chain([geometry.mask_header], parts):
        checksum = zlib.crc32(part, checksum)
        _write_all(file, compressor.compress(part))
    _write_all(file, compressor.flush())
    return checksum


def _write_all(file, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _verified(path: Path, size: int, checksum: int) -> str:
    """SHA-256 of a written file, after it was decompressed and found to be what was meant."""
    digest = hashlib.sha256()
    found_size, found = 0, 0
    try:
        with open(path, "rb", buffering=0) as file:
            for part in _inflated(_chunks(file, digest), "gzip", warnings := []):
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
