"""DICOM series: which files are slices of which CT, and from them to a volume in memory."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from app.dicomgrid import Frame, frames_of, grid_of
from app.dicomheader import DicomHeader, read_dicom_header
from app.dicompixels import read_planes
from app.errors import InputError
from app.gdcm import Decoder
from app.geometry import geometry_of
from app.nifti import mask_header_of
from app.stream import chunks_of
from app.volume import Volume, check_memory

_DIRECTORY = "1.2.840.10008.1.3.10"  # DICOMDIR: what it lists is found without it
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kinds, .1 to .4


@dataclass(frozen=True)
class Series:
    """The files of one CT series.

    Attributes:
        folder: The deepest that holds them all.
        number: SeriesNumber, or None.
        files: Its objects, sorted by path.
        damaged: Files in the same folder that cannot be read: they may be slices of it.
    """

    folder: Path
    number: int | None
    files: tuple[Path, ...]
    damaged: tuple[Path, ...] = ()


@dataclass
class _Found:
    """What is known of a series while its files are looked through."""

    number: int | None
    files: list[Path] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)


def find_series(files: Iterable[Path]) -> tuple[list[Series], Counter[str]]:
    """Sort DICOM files by SeriesInstanceUID, whatever they are called and wherever they lie.

    Args:
        files: DICOM objects of any kind.

    Returns:
        (the axial CT series of at least two slices, in the order of their files; how many other objects there
        are, by kind). Damaged files where no series is are a series without files, which cannot be read either.
    """
    by_uid: dict[str, _Found] = {}
    others: Counter[str] = Counter()
    damaged: list[Path] = []
    for path in sorted(files):
        try:
            with open(path, "rb") as file:
                header = read_dicom_header(file)
            kind, number = _kind(header), header.number("SeriesNumber", -1)
        except (InputError, OSError):
            damaged.append(path)
            continue
        if kind != "CT slice":
            others[kind] += 1
            continue
        found = by_uid.setdefault(header.text("SeriesInstanceUID"), _Found(int(number) if number >= 0 else None))
        found.files.append(path)
        try:
            found.frames += frames_of(header)
        except InputError:
            continue  # a slice that does not say where it lies: said when the series is read
    del others["DICOMDIR"]
    series = []
    for found in by_uid.values():
        if kind := _not_a_volume(found.frames):
            others[kind] += len(found.files)
            continue
        folder = Path(os.path.commonpath([path.parent for path in found.files]))
        beside = tuple(path for path in damaged if folder in path.parents)
        series.append(Series(folder, found.number, tuple(found.files), beside))
    told = {path for one in series for path in one.damaged}
    for folder in sorted({path.parent for path in damaged if path not in told}):
        series.append(Series(folder, None, (), tuple(path for path in damaged if path.parent == folder)))
    return series, others


def _kind(header: DicomHeader) -> str:
    """What an object is, in words for the user."""
    sop_class, modality = header.text("SOPClassUID"), header.text("Modality")
    if sop_class == _DIRECTORY or (header.text("MediaStorageSOPClassUID") == _DIRECTORY and not modality):
        return "DICOMDIR"
    if f"{sop_class}.".startswith(f"{_SECONDARY_CAPTURE}."):
        return "secondary capture"
    if modality != "CT":
        return modality or "object without a modality"
    if header.pixels is None:
        return "CT object without an image"
    return "localizer" if "LOCALIZER" in header.words("ImageType") else "CT slice"


def _not_a_volume(frames: list[Frame]) -> str:
    """Why the planes of a series are not taken, in words for the user; "" if they are."""
    if not frames:
        return "CT image without a position"
    if not frames[0].is_axial:
        return "image of a CT series that is not axial"
    heights_mm = [float(frame.position_mm @ frames[0].normal) for frame in frames]
    return "" if max(heights_mm) - min(heights_mm) > 0.1 else "image of a CT series at one place (a single slice)"


def read_series(series: Series) -> Volume:
    """Read a series, file by file, into a volume.

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


def series_sha256(sums: Iterable[str]) -> str:
    """One checksum of a series: SHA-256 of its files' hex digests, sorted, a line each. Names play no part."""
    return hashlib.sha256("\n".join(sorted(sums)).encode()).hexdigest()


def _read(series: Series) -> Volume:
    if series.damaged:
        name = series.damaged[0].relative_to(series.folder)
        raise InputError(
            f"{len(series.damaged)} DICOM files that cannot be read, {str(name)!r} among them: lost slices?"
        )
    headers: list[DicomHeader] = []
    frames: list[Frame] = []
    states: list[os.stat_result] = []
    for index, path in enumerate(series.files):
        with _opened(path, series) as file:
            states.append(os.fstat(file.fileno()))
            headers.append(read_dicom_header(file))
            frames += frames_of(headers[-1], index)
    grid = grid_of(frames)
    check_memory(grid.shape)
    geometry, _ = geometry_of(grid.shape, grid.affine, mask_header_of(grid.shape, grid.affine))
    hu = np.empty(geometry.shape, np.int16)
    slices, filled = geometry.in_file_order(hu), np.zeros(len(grid.places), bool)
    wanted = [[] for _ in series.files]  # of each file: (frame, its place k)
    for k, place in enumerate(grid.places):
        for frame in place:
            wanted[frame.file].append((frame, k))
    sums = []
    with Decoder() as decoder:
        for path, header, state, planes in zip(series.files, headers, states, wanted, strict=True):
            with _opened(path, series) as file:
                digest = hashlib.sha256()
                for _ in chunks_of(file, digest):
                    pass
                sums.append(digest.hexdigest())
                frames = [frame for frame, _ in planes]
                for (_, k), plane in zip(planes, read_planes(path, file, header, frames, decoder), strict=True):
                    upwards = plane[::-1]
                    if filled[k] and not np.array_equal(slices[k], upwards):
                        raise InputError("another image of the series lies at the same place: several scans in one?")
                    slices[k], filled[k] = upwards, True
                after = os.fstat(file.fileno())
                if (after.st_size, after.st_mtime_ns) != (state.st_size, state.st_mtime_ns):
                    raise InputError("the file changed while it was read")
    return Volume(hu, geometry, grid.warnings, series_sha256(sums), tuple(sorted(sums)))


@contextmanager
def _opened(path: Path, series: Series) -> Iterator[BinaryIO]:
    """A file of the series, open; what goes wrong with it is said under its name."""
    try:
        with open(path, "rb") as file:
            yield file
    except InputError as error:
        cause = str(error)
    except OSError as error:
        cause = error.strerror or type(error).__name__
    else:
        return
    raise InputError(f"{str(path.relative_to(series.folder))!r}: {cause}")
