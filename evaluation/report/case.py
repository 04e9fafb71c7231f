"""One case of a report: its files read once, its scores, volumes and pictures kept."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from app.ct import read_ct
from app.errors import InputError
from app.geometry import Geometry, cosines
from app.labels import ORGANS
from app.plausible import mark, plausible_ml
from app.record import file_sha256
from evaluation.masks import Mask, MaskError, read_mask
from evaluation.report.run import CaseRecord
from evaluation.report.views import Picture, Scan, organ_strip, overviews
from evaluation.scoring import Score, Scores, score_masks


class OrganVolume(NamedTuple):
    """Volume of an organ in a mask, the plausible range for this scan, and `plausible.mark`'s word on it."""

    ml: float
    low_ml: float
    high_ml: float
    mark: str


class CaseReport(NamedTuple):
    """What the report says of a case; a field is empty where there is nothing to say.

    Attributes:
        record: What the run said.
        notes: What was found while reporting, one line each.
        volumes: By label; empty without a mask.
        scores: By label; empty without a truth for this case, zeros without a mask.
        overviews: As `views.overviews`.
        strips: By label, as `views.organ_strip`.
    """

    record: CaseRecord
    notes: tuple[str, ...] = ()
    volumes: Mapping[int, OrganVolume] = MappingProxyType({})
    scores: Scores = MappingProxyType({})
    overviews: Mapping[str, Picture] = MappingProxyType({})
    strips: Mapping[int, Picture] = MappingProxyType({})

    @property
    def mean_dsc(self) -> float:
        """Over the organs that are scored; NaN if none is."""
        return float(np.mean([score.dsc for score in self.scores.values()])) if self.scores else math.nan


def report_case(
    record: CaseRecord, truth: Path | None, annotated: Collection[int], pictures: bool = True
) -> CaseReport:
    """Read a case's CT, mask and truth, and make of them what the report shows.

    Args:
        record: The case.
        truth: Its ground truth, or None.
        annotated: Labels that the truth has; the others are not scored, nor shown as wrong.
        pictures: Whether to draw.

    Raises:
        MaskError: The mask or the truth is not a readable label map, or mask, truth and CT differ in geometry.
        OSError: The mask cannot be read.
    """
    notes: list[str] = []
    if record.mask is None or record.status == "failed":
        if record.status != "failed":
            notes.append("its mask is not there any more")
        return CaseReport(record, tuple(notes), scores=dict.fromkeys(annotated if truth else (), Score(0.0, 0.0)))
    if record.mask_sha256 and file_sha256(record.mask) != record.mask_sha256:
        notes.append("its mask is not the one that this run wrote: it has been changed since")
    prediction = read_mask(record.mask)
    true = read_mask(truth) if truth else None
    scores: Scores = score_masks(prediction, true, annotated) if true else {}
    scan = _scan(record, prediction, true, annotated, notes) if pictures else None
    volumes = _volumes(prediction)
    if scan is None:
        return CaseReport(record, tuple(notes), volumes, scores)
    strips = {
        label: strip for label, volume in volumes.items() if (strip := organ_strip(record.name, scan, label, volume.ml))
    }
    return CaseReport(record, tuple(notes), volumes, scores, overviews(record.name, scan), strips)


def _scan(
    record: CaseRecord, prediction: Mask, truth: Mask | None, annotated: Collection[int], notes: list[str]
) -> Scan | None:
    """The case in memory, or None with a note if there is no CT to draw on."""
    if record.ct is None:
        notes.append("its CT is not where the run found it: no pictures (--inputs DIR tells where it is)")
        return None
    try:
        volume = read_ct(record.ct)
    except InputError as error:
        notes.append(f"no pictures: {error}")
        return None
    if record.input_sha256 not in ("", volume.sha256):
        notes.append("its CT is not the one that this run segmented: it has been changed since")
    if volume.geometry.in_file_order(volume.hu).shape != prediction.labels.shape:
        raise MaskError(f"{record.mask} and its CT differ in shape: is this the mask of that CT?")
    labels = _reoriented(prediction, volume.geometry)
    true = None
    if truth is not None:
        true = _reoriented(truth, volume.geometry)
        missing = [organ.label for organ in ORGANS if organ.label not in annotated]
        # Where the truth does not know an organ, neither right nor wrong can be shown.
        true = np.where(np.isin(labels, missing) & (true == 0), labels, true)
    return Scan(volume.hu, labels, true, volume.geometry.spacing_mm)


def _reoriented(mask: Mask, geometry: Geometry) -> np.ndarray:
    """A mask in its file's axes, turned as its CT is read."""
    labels = np.empty(geometry.shape, np.uint8)
    geometry.in_file_order(labels)[...] = mask.labels
    return labels


def _volumes(mask: Mask) -> dict[int, OrganVolume]:
    """By label."""
    body_axis = 2 - int(np.argmax(np.abs(cosines(mask.affine)[2])))  # of (z, y, x): the one that runs up and down
    slices = np.moveaxis(mask.labels, body_axis, 0)
    voxels = np.stack([np.bincount(part.ravel(), minlength=len(ORGANS) + 1) for part in slices])  # (slice, label)
    voxel_ml = float(abs(np.linalg.det(mask.affine[:3, :3]))) / 1000
    volumes = {}
    for organ in ORGANS:
        along = voxels[:, organ.label]
        ml = round(float(along.sum()) * voxel_ml, 2)
        length_mm = np.count_nonzero(along) * mask.spacing_mm[body_axis]
        cut = bool(along[0] or along[-1])
        low_ml, high_ml = plausible_ml(organ.label, length_mm)
        volumes[organ.label] = OrganVolume(ml, low_ml, high_ml, mark(organ.label, ml, length_mm, cut))
    return volumes
