"""One CT and its label map to a case of the slice store: read as inference reads it, checked, stored."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.cases import Case as Scan
from app.cases import input_sha256
from app.ct import read_ct
from app.errors import InputError
from app.geometry import Geometry
from app.labels import NUM_CLASSES
from app.nifti import parse_nifti
from app.preprocess import clipped_statistics
from app.record import file_sha256
from app.resample import nearest_spacing, resample_in_plane, resampled_shape
from app.volume import Volume, read_volume
from app.voxels import NO_NUMBER
from evaluation.masks import SAME_PLACE_VOXELS, corners_apart_mm
from training.partial_labels import mark_uncertain
from training.store import Case, read_case, write_case

# By how much voxels cut off at 275 HU exceed it, and the mean square of that excess (HU, HU^2): measured on
# slices of the same scans before they were cut. A scan's statistics are shifted to what they were.
EXCESS_HU, EXCESS_SQUARE_HU2 = 180.0, 62800.0


class CaseError(Exception):
    """A case that cannot be prepared; the message says why."""


@dataclass(frozen=True)
class Job:
    """One case to prepare.

    Attributes:
        name, patient: As in `Case`.
        scan: The CT, an image file or a DICOM series.
        labels: Label map; None for an unlabelled case.
        store: Folder.
        annotated: Label values that were looked for; empty for an unlabelled case.
        saturated_hu: HU at which the image was cut off before we got it; None if it was not.
        spacing_mm: (lowest, highest) in plane; images outside are resampled to the nearer. None: never.
        shrink: Factor by which slices are made smaller.
    """

    name: str
    patient: str
    scan: Scan
    labels: Path | None
    store: Path
    annotated: tuple[int, ...]
    saturated_hu: int | None
    spacing_mm: tuple[float, float] | None
    shrink: int

    @property
    def settings(self) -> dict:
        """What the stored case depends on besides its files."""
        spacing_mm = self.spacing_mm and list(self.spacing_mm)
        settings = {"annotated": list(self.annotated), "saturated_hu": self.saturated_hu}
        return {**settings, "spacing_mm": spacing_mm, "shrink": self.shrink}


def prepare(job: Job) -> tuple[str, ...] | None:
    """Read, check and store one case.

    Returns:
        Warnings of its image, or None if the store has it, made from these files by these settings.

    Raises:
        CaseError: With the case's name and the cause.
    """
    try:
        return _prepare(job)
    except (CaseError, InputError, OSError, MemoryError) as error:
        raise CaseError(f"{job.name}: {error}") from None


def _prepare(job: Job) -> tuple[str, ...] | None:
    stored = read_case(job.store, job.name)
    if stored:
        image_sha256 = input_sha256(job.scan)
        if image_sha256 != stored.image_sha256 and stored.image_sha256:
            raise CaseError("the store has another image of that name: give --suffix, or remove that case")
        labels_sha256 = file_sha256(job.labels) if job.labels else None
        made_from = (image_sha256, labels_sha256, job.settings)
        if made_from == (stored.image_sha256, stored.labels_sha256, stored.settings):
            return None

    image = read_ct(job.scan.source)
    hu, spacing_mm = image.hu, image.geometry.spacing_mm
    labels_volume = read_volume(job.labels) if job.labels else None
    labels = _checked_labels(labels_volume, image.geometry, job.annotated) if labels_volume else None
    mean_hu, std_hu = unsaturated_statistics(hu, job.saturated_hu)
    if job.spacing_mm:
        new_mm = nearest_spacing(spacing_mm[1:], job.spacing_mm)
        shape = resampled_shape(hu.shape, spacing_mm[1:], new_mm)
        if shape != hu.shape:
            hu, spacing_mm = resample_in_plane(hu, shape, order=1), (spacing_mm[0], *new_mm)
            labels = resample_in_plane(labels, shape, order=0) if labels is not None else None
    if job.shrink > 1:
        hu, labels = shrink(hu, labels, job.shrink)
        spacing_mm = (spacing_mm[0], spacing_mm[1] * job.shrink, spacing_mm[2] * job.shrink)

    organ_pixels: list[list[int]] = []
    if labels is not None:
        organ_pixels = [np.bincount(plane.ravel(), minlength=NUM_CLASSES).tolist() for plane in labels]
        labels = mark_uncertain(hu, labels, spacing_mm, job.annotated)
    case = Case(
        name=job.name,
        patient=job.patient,
        shape=hu.shape,
        spacing_mm=spacing_mm,
        mean_hu=mean_hu,
        std_hu=std_hu,
        saturated_hu=job.saturated_hu,
        annotated=job.annotated,
        organ_pixels=organ_pixels,
        image_sha256=image.sha256,
        labels_sha256=labels_volume.sha256 if labels_volume else None,
        settings=job.settings,
    )
    write_case(job.store, case, hu, labels)
    return image.warnings


def _checked_labels(labels: Volume, geometry: Geometry, annotated: tuple[int, ...]) -> np.ndarray:
    """A label map as uint8, found to lie where its image lies and to hold what it may.

    Raises:
        CaseError: It does not.
    """
    if labels.hu.shape != geometry.shape:
        raise CaseError(f"the label map has {labels.hu.shape} voxels (z, y, x), its image {geometry.shape}")
    off_mm = corners_apart_mm(_array_affine(labels.geometry), _array_affine(geometry), geometry.shape)
    if off_mm > SAME_PLACE_VOXELS * min(labels.geometry.spacing_mm):  # in the unit of the headers, not yet mm
        raise CaseError(f"the label map lies up to {off_mm:.1f} mm away from its image")
    values = np.unique(labels.hu)
    if values[0] == NO_NUMBER:
        raise CaseError("the label map holds NaN or infinity")
    unknown = [int(value) for value in values if not 0 <= value < NUM_CLASSES]
    if unknown:
        raise CaseError(f"the label map holds {_listed(unknown)}, not 0 to {NUM_CLASSES - 1} alone")
    unexpected = [int(value) for value in values if value and value not in annotated]
    if unexpected:
        raise CaseError(f"the label map holds {_listed(unexpected)}, not among the annotated organs")
    return labels.hu.astype(np.uint8)


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")


def _array_affine(geometry: Geometry) -> np.ndarray:
    """(4, 4): index (z, y, x) in the reoriented array to RAS mm."""
    header = parse_nifti(geometry.mask_header)
    to_file = np.zeros((4, 4))  # index in the reoriented array to i, j, k
    to_file[[2, 1, 0], geometry.axes] = np.where(geometry.flips, -1, 1)
    to_file[[2, 1, 0], 3] = np.where(geometry.flips, np.array(header.shape) - 1, 0)
    to_file[3, 3] = 1
    return header.affine @ to_file


def unsaturated_statistics(hu: np.ndarray, saturated_hu: int | None) -> tuple[float, float]:
    """Mean and standard deviation of the clipped volume, estimated as if nothing had been cut off above.

    With e the excess of a cut voxel over the limit s, (s + e)^2 - s^2 = 2 s e + e^2.
    """
    mean_hu, std_hu = clipped_statistics(hu)
    if saturated_hu is None:
        return mean_hu, std_hu
    share = np.count_nonzero(hu >= saturated_hu) / hu.size
    square_hu2 = mean_hu**2 + std_hu**2 + share * (2 * saturated_hu * EXCESS_HU + EXCESS_SQUARE_HU2)
    mean_hu += share * EXCESS_HU
    return mean_hu, float(np.sqrt(square_hu2 - mean_hu**2))


def shrink(hu: np.ndarray, labels: np.ndarray | None, factor: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Slices smaller by a whole factor: the mean HU and the commonest label of each block; a rest at the rim goes."""
    depth, height, width = (hu.shape[0], hu.shape[1] // factor, hu.shape[2] // factor)

    def blocks(volume: np.ndarray) -> np.ndarray:  # (z, y, x, factor * factor)
        whole = volume[:, : height * factor, : width * factor].reshape(depth, height, factor, width, factor)
        return whole.transpose(0, 1, 3, 2, 4).reshape(depth, height, width, -1)

    small = np.rint(blocks(hu).mean(axis=-1, dtype=np.float32)).astype(np.int16)
    if labels is None:
        return small, None
    votes = blocks(labels)
    counts = np.stack([np.count_nonzero(votes == label, axis=-1) for label in range(NUM_CLASSES)], axis=-1)
    return small, counts.argmax(axis=-1).astype(np.uint8)
