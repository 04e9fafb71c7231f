"""From a DICOM series to a volume in memory, file by file."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from app.dicomgrid import Frame, Grid, frames_of, grid_of
from app.dicomheader import DicomHeader, read_dicom_header
from app.dicompixels import read_planes
from app.dicomseries import Series, series_sha256
from app.errors import InputError
from app.gdcm import Decoder
from app.geometry import geometry_of
from app.maskheader import mask_header_of
from app.stream import chunks_of
from app.volume import Volume, check_memory


def read_series(series: Series) -> Volume:
    """Read a series.

    Returns:
        The volume; its mask will lie as dcm2niix lays the CT. Its checksum is `series_sha256` of the files' own.

    Raises:
        InputError: A file is damaged or changes meanwhile, or the slices do not make a volume. One line that names
            the folder, and the file if it is one file's fault.
    """
    try:
        return _read(series)
    except InputError as error:
        cause = str(error)
    except MemoryError:
        cause = "not enough memory for its voxels"
    raise InputError(f"{str(series.folder)!r}: {cause}")


@dataclass
class _File:
    """One file of the series.

    Attributes:
        path: The file.
        header: Its header.
        state: (size, time of its last change, ns) when the header was read.
        planes: (frame, its place k in the stack).
    """

    path: Path
    header: DicomHeader
    state: tuple[int, int]
    planes: list[tuple[Frame, int]] = field(default_factory=list)


def _read(series: Series) -> Volume:
    if series.damaged:
        (path, cause), *_ = series.damaged
        example = f"{str(path.relative_to(series.folder))!r} among them ({cause})"
        raise InputError(f"{len(series.damaged)} files that cannot be read, {example}: lost slices?")
    files, grid = _laid_out(series)
    check_memory(grid.shape)
    geometry, _ = geometry_of(grid.shape, grid.affine, mask_header_of(grid.shape, grid.affine))
    hu = np.empty(geometry.shape, np.int16)
    stack, filled = geometry.in_file_order(hu), np.zeros(grid.shape[0], bool)
    with Decoder() as decoder:
        sums = [_fill_from(file, series, stack, filled, decoder) for file in files]
    return Volume(hu, geometry, grid.warnings, series_sha256(sums))


def _laid_out(series: Series) -> tuple[list[_File], Grid]:
    """The files with the places of their planes, from their headers."""
    files: list[_File] = []
    frames: list[Frame] = []
    for path in series.files:
        with _opened(path, series) as stream:
            header = read_dicom_header(stream)
            frames += frames_of(header, len(files))
            files.append(_File(path, header, _state(stream)))
    grid = grid_of(frames)
    for k, place in enumerate(grid.places):
        for frame in place:
            files[frame.file].planes.append((frame, k))
    return files, grid


def _fill_from(file: _File, series: Series, stack: np.ndarray, filled: np.ndarray, decoder: Decoder) -> str:
    """Put the planes of one file where they belong. Returns the SHA-256 of the file.

    Args:
        stack: int16 (k, j, i), j upwards.
        filled: Of each k, whether its plane is there.
    """
    digest = hashlib.sha256()
    with _opened(file.path, series) as stream:
        for _ in chunks_of(stream, digest):
            pass
        planes = read_planes(file.path, stream, file.header, [frame for frame, _ in file.planes], decoder)
        for (_, k), plane in zip(file.planes, planes, strict=True):
            upwards = plane[::-1]
            if filled[k] and not np.array_equal(stack[k], upwards):
                raise InputError("another image of the series lies at the same place: several scans in one?")
            stack[k], filled[k] = upwards, True
        if _state(stream) != file.state:
            raise InputError("the file changed while it was read")
    return digest.hexdigest()


def _state(stream: BinaryIO) -> tuple[int, int]:
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns


@contextmanager
def _opened(path: Path, series: Series) -> Iterator[BinaryIO]:
    """A file of the series, open; what goes wrong with it is said under its name."""
    try:
        with open(path, "rb") as stream:
            yield stream
    except InputError as error:
        cause = str(error)
    except OSError as error:
        cause = error.strerror or type(error).__name__
    else:
        return
    raise InputError(f"{str(path.relative_to(series.folder))!r}: {cause}")
