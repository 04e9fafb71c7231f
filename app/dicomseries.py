"""Sort DICOM files into CT series, by their content; count the other objects by kind."""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from app.dicomgrid import Frame, frames_of
from app.dicomheader import DicomHeader, read_dicom_header
from app.errors import InputError

_DIRECTORY = "1.2.840.10008.1.3.10"  # of a DICOMDIR; the files that it lists are found by their content
_LONGEST_NUMBER = 12  # characters of an integer string, PS3.5, 6.2
_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"  # classic, and .1 and .2: enhanced
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kinds, .1 to .4


@dataclass(frozen=True)
class Series:
    """The files of one CT series.

    Attributes:
        folder: The deepest that holds them all.
        number: SeriesNumber, or None.
        files: Its objects, sorted by path.
        damaged: Files in the same folder that cannot be read, and why: they may be slices of it.
    """

    folder: Path
    number: int | None
    files: tuple[Path, ...]
    damaged: tuple[tuple[Path, str], ...] = ()


@dataclass
class _Found:
    """What is known of a series while its files are looked through.

    Attributes:
        first: Its first plane, the first axial one if there is one. Others are not kept: there may be millions.
        heights_mm: The lowest and the highest plane, along the first one's normal.
        faulty: How many of its planes lie in the patient, but do not say where: an error when the series is read.
    """

    number: int | None
    files: list[Path] = field(default_factory=list)
    first: Frame | None = None
    heights_mm: tuple[float, float] = (math.inf, -math.inf)
    faulty: int = 0

    def add(self, header: DicomHeader) -> None:
        """The planes of one of its files."""
        try:
            frames = frames_of(header)
        except InputError:
            self.faulty += _planes_in_the_patient(header)
            return
        for frame in frames:
            if self.first is None or (frame.is_axial and not self.first.is_axial):
                self.first = frame
            height_mm = float(frame.position_mm @ self.first.normal)
            self.heights_mm = min(self.heights_mm[0], height_mm), max(self.heights_mm[1], height_mm)


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
    damaged: list[tuple[Path, str]] = []
    for path in sorted(files):
        try:
            with open(path, "rb") as file:
                header = read_dicom_header(file)
            kind = _kind(header)
        except (InputError, OSError) as error:
            damaged.append((path, getattr(error, "strerror", None) or str(error)))
            continue
        if kind != "CT slice":
            others[kind] += 1
            continue
        uid = header.text("SeriesInstanceUID") or str(path.parent)  # some anonymisers empty it
        found = by_uid.setdefault(uid, _Found(_series_number(header)))
        found.files.append(path)
        found.add(header)
    del others["DICOMDIR"]
    series = []
    for found in by_uid.values():
        if kind := _not_a_volume(found):
            others[kind] += len(found.files)
            continue
        folder = Path(os.path.commonpath([path.parent for path in found.files]))
        beside = tuple((path, cause) for path, cause in damaged if folder in path.parents)
        series.append(Series(folder, found.number, tuple(found.files), beside))
    told = {path for one in series for path, _ in one.damaged}
    for folder in sorted({path.parent for path, _ in damaged if path not in told}):
        series.append(Series(folder, None, (), tuple(entry for entry in damaged if entry[0].parent == folder)))
    return series, others


def _kind(header: DicomHeader) -> str:
    """What an object is, in words for the user; InputError if it does not even say its class."""
    sop_class, modality = header.text("SOPClassUID"), header.text("Modality")
    if not (sop_class or modality or header.text("MediaStorageSOPClassUID")):
        raise InputError("no DICOM object: lost in a transfer?")
    if header.text("MediaStorageSOPClassUID") == _DIRECTORY:
        return "DICOMDIR"
    if f"{sop_class}.".startswith(f"{_SECONDARY_CAPTURE}."):
        return "secondary capture"
    is_image = f"{sop_class}.".startswith(f"{_CT_IMAGE}.")
    if modality != "CT" and (modality or not is_image):
        return modality or "object without a modality"
    if header.pixels is None and is_image:
        raise InputError("truncated: a CT image without its pixels")
    if header.pixels is None:
        return "CT object without an image"
    if header.unsigned("SamplesPerPixel", 1) != 1:
        return "colour image"
    return "localizer" if "LOCALIZER" in header.words("ImageType") else "CT slice"


def _series_number(header: DicomHeader) -> int | None:
    """For names alone: no series is refused for it."""
    text = header.text("SeriesNumber")
    return int(text) if text.isdecimal() and len(text) <= _LONGEST_NUMBER else None


def _planes_in_the_patient(header: DicomHeader) -> int:
    """Of an object that does not say rightly where they lie. Screenshots that are stored as CT images have none."""
    if frames := header.items("PerFrameFunctionalGroupsSequence"):
        return len(frames)
    return bool(header.text("ImagePositionPatient") or header.text("ImageOrientationPatient"))


def _not_a_volume(found: _Found) -> str:
    """Why the planes of a series are not taken, in words for the user; "" if they are, or may not be passed over."""
    if found.first is None:
        return "" if found.faulty > 1 else "CT image without a position"
    if not found.first.is_axial:
        return "image of a CT series that is not axial"
    if found.faulty:
        return ""
    lowest_mm, highest_mm = found.heights_mm
    return "" if highest_mm - lowest_mm > 0.1 else "image of a CT series at one place (a single slice)"


def series_sha256(sums: Iterable[str]) -> str:
    """One checksum of a series: SHA-256 of its files' hex digests, sorted, a line each. Names play no part."""
    return hashlib.sha256("\n".join(sorted(sums)).encode()).hexdigest()
