"""From a CT file of any orientation to int16 HU (z, y, x).

Files are read with numpy and zlib alone. SimpleITK returns pixels from truncated and bit-flipped .nii.gz without an
error, makes float32 of a sloped uint8 file, refuses directions that are not quite orthonormal, and takes a second to
import. Here every length and checksum is verified, the header's sizes are checked before memory is taken, and voxels
go block by block to where they belong in the reoriented array: the peak is the int16 volume and one block.
"""

import contextlib
import hashlib
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from app.errors import InputError
from app.formats import REFUSED, SUFFIXES
from app.geometry import Geometry, geometry_of
from app.nifti import Header, parse_nifti
from app.niftifields import NIFTI2_BYTES
from app.stream import Stream, chunks_of, inflated, take
from app.textheader import LONGEST_HEADER, parse_metaimage, parse_nrrd
from app.voxels import fill

_NIFTI = (parse_nifti, NIFTI2_BYTES)  # parser, bytes of the file it must see
_PARSERS = {
    ".nii.gz": _NIFTI,
    ".nii": _NIFTI,
    ".mha": (parse_metaimage, LONGEST_HEADER),
    ".nrrd": (parse_nrrd, LONGEST_HEADER),
}
_NIFTI_BEGINS = {struct.pack(order + "i", size) for order in "<>" for size in (348, 540)}  # never a gzip stream's
_DEFLATE_RATIO = 1032  # no deflate stream holds more bytes than this per byte of its own
_TAIL_BYTES = 512  # some writers leave a few bytes of any content behind the last voxel
_ZEROS_BYTES = 8 << 20  # longest tail of zeros: some writers fill a file up to blocks of up to 4 MiB


@dataclass
class Volume:
    """A CT in memory.

    Attributes:
        hu: int16 HU, (z, y, x), C-contiguous; x runs to the patient's right, y forward, z up ("RAS" in
            nibabel's and ITK's `DICOMOrient` words, stored z, y, x).
        geometry: For `maskfile.write_mask`.
        warnings: One line each, without the file's name.
        sha256: Hex digest of the file's bytes as they were read; of a DICOM series see `series_sha256`.
    """

    hu: np.ndarray
    geometry: Geometry
    warnings: tuple[str, ...]
    sha256: str


def read_volume(path: Path) -> Volume:
    """Read a CT, in one pass over the file.

    Args:
        path: A .nii.gz, .nii (NIfTI-1 or 2), .mha or .nrrd file that holds one 3-D volume of numbers.

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
    raise InputError(f"{str(path)!r}: {cause}")  # `repr` keeps a name with a line break on one line


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
        chunks = chunks_of(file, digest)
        compressed = path.name.lower().endswith(".gz")
        if compressed and os.pread(file.fileno(), 4, 0) in _NIFTI_BEGINS:  # unpacked by a web server
            compressed = False
            warnings.append("it is not compressed, whatever its name says")
        if compressed:
            chunks = inflated(chunks, "gzip", warnings)
        head = take(chunks, header_bytes)
        header = parse(head[:header_bytes])
        _check_size(header, before.st_size, compressed)

        stream = Stream(chain([head], chunks))
        stream.skip(_offset(path, header, compressed, warnings))
        if header.compression:
            stream = Stream(inflated(stream.rest(), header.compression, warnings))
        geometry, geometry_warnings = geometry_of(header.shape, header.affine, header.mask_header)
        hu = np.empty(geometry.shape, np.int16)
        slices = geometry.in_file_order(hu)
        fill(slices, header, stream)
        # Zeros behind a last voxel of zero may stand in for voxels that are lost.
        _check_end(stream, _TAIL_BYTES if slices[-1, -1, -1] == round(header.inter) else _ZEROS_BYTES, warnings)
        after = os.fstat(file.fileno())
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise InputError("the file changed while it was read")
    warnings = [*header.warnings, *geometry_warnings, *warnings]
    return Volume(hu, geometry, tuple(warnings), digest.hexdigest())


def _format(path: Path) -> tuple[Callable[[bytes], Header], int]:
    name = path.name.lower()
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return _PARSERS[suffix]
    path.stat()  # raises where the file is missing, which matters more than its name
    if path.is_dir():
        raise InputError("a folder, not a file")
    for suffix, advice in REFUSED.items():
        if name.endswith(suffix):
            raise InputError(advice)
    raise InputError("unknown kind of file: " + ", ".join(SUFFIXES) + " and DICOM are read")


def _offset(path: Path, header: Header, compressed: bool, warnings: list[str]) -> int:
    """Bytes before the first voxel; where the header does not say it, the last voxel must end the file."""
    if len(header.offsets) == 1:
        return header.offsets[0]
    length = path.stat().st_size
    if compressed:
        length, longest = 0, header.voxel_bytes + max(header.offsets)
        with open(path, "rb", buffering=0) as file:
            for chunk in inflated(chunks_of(file, hashlib.sha256()), "gzip", []):
                length += len(chunk)
                if length > longest:
                    break
    offset = length - header.voxel_bytes
    if offset not in header.offsets:
        raise InputError("its header does not say where its voxels begin, and its length does not tell")
    warnings.append(f"its header does not say where its voxels begin: at byte {offset}, by its length")
    return offset


def _check_size(header: Header, file_bytes: int, compressed: bool) -> None:
    """Refuse what the file cannot hold or the machine cannot, before any memory is taken."""
    declared = header.voxel_bytes
    size = f"{' x '.join(map(str, reversed(header.shape)))} voxels of {header.dtype.itemsize} bytes"
    available = file_bytes - (0 if compressed else header.offsets[0])
    if compressed or header.compression:
        if declared > available * _DEFLATE_RATIO:
            raise InputError(f"its header declares {size}, more than {file_bytes} bytes can hold compressed")
    elif declared > available:
        raise InputError(f"its header declares {size}, but {max(available, 0)} bytes follow it: truncated?")
    elif available > declared + _ZEROS_BYTES:
        raise InputError(f"its header declares {size}, but {available} bytes follow it")
    check_memory(header.shape)


def check_memory(shape: tuple[int, int, int]) -> None:
    """Refuse a volume of int16 that the machine cannot hold."""
    if 2 * int(np.prod(shape, dtype=object)) > _memory_bytes():
        raise InputError(f"{' x '.join(map(str, reversed(shape)))} voxels: more than the memory of this machine")


def _memory_bytes() -> int:
    """Memory this process may have: the machine's, or its container's limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            limits.append(int(Path(path).read_text()))
    return min(limits)


def _check_end(stream: Stream, longest_zeros: int, warnings: list[str]) -> None:
    """Read to the end, where checksums are verified, and refuse a file that holds more than it declares."""
    excess, zeros = 0, True
    for chunk in stream.rest():
        excess += len(chunk)
        zeros = zeros and not np.frombuffer(chunk, np.uint8).any()
        if excess > (longest_zeros if zeros else _TAIL_BYTES):
            raise InputError("it holds more voxels than its header declares")
    if excess:
        warnings.append(f"{excess} bytes behind the last voxel are ignored")
