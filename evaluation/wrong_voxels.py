"""The wrong voxels of one organ in one case, each of one kind: where it lies as seen from the other map.

A voxel that the label map gives to the organ and the mask does not is missed; the other way round it is extra. What is
missed is seen from the mask's organ, what is extra from the label map's.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from app.labels import NUM_CLASSES

KINDS = ("beyond_ends", "at_edge", "elsewhere")
_NOT_WRONG = len(KINDS)
_BEYOND_ENDS, _AT_EDGE, _ELSEWHERE = range(len(KINDS))
_ROUNDING_MM = 1e-6  # the tolerance itself still counts


class WrongVoxels(NamedTuple):
    """Numbers of voxels of one organ, int64.

    Attributes:
        annotated: In the label map, int.
        missed, extra: (z, 3): by slice and kind, in the order of KINDS.
        given_to: (14,): of those missed elsewhere, by the label that the mask has there.
        taken_from: (14,): of those extra elsewhere, by the label that the label map has there.
    """

    annotated: int
    missed: np.ndarray
    extra: np.ndarray
    given_to: np.ndarray
    taken_from: np.ndarray


def wrong_voxels(
    mask: np.ndarray, truth: np.ndarray, label: int, spacing_mm: tuple[float, float, float], tolerance_mm: float
) -> WrongVoxels:
    """Count the voxels in which a mask and the label map disagree about one organ.

    Args:
        mask, truth: (z, y, x) uint8 labels, of one shape.
        label: The organ.
        spacing_mm: (z, y, x).
        tolerance_mm: How far from the other map's organ, in its slice, the edge reaches.

    Returns:
        Each of the voxels in one kind: all that is missed and all that is extra.
    """
    depth = len(truth)
    missed, extra = np.zeros((2, depth, len(KINDS)), np.int64)
    given_to, taken_from = np.zeros((2, NUM_CLASSES), np.int64)
    boxes = ndimage.find_objects(((mask == label) | (truth == label)).view(np.uint8))
    for box in boxes:  # none where both lack the organ, else one
        in_mask, in_truth = (labels[box] == label for labels in (mask, truth))
        for has, lacks, counts, others, given in (
            (in_truth, in_mask, missed, mask[box], given_to),
            (in_mask, in_truth, extra, truth[box], taken_from),
        ):
            kinds = kinds_of_wrong(has, lacks, spacing_mm[1:], tolerance_mm)
            counts[box[0]] = [np.bincount(of_slice.ravel(), minlength=len(KINDS))[: len(KINDS)] for of_slice in kinds]
            given += np.bincount(others[kinds == _ELSEWHERE], minlength=NUM_CLASSES)
    return WrongVoxels(int(np.count_nonzero(truth == label)), missed, extra, given_to, taken_from)


def kinds_of_wrong(
    has: np.ndarray, lacks: np.ndarray, pixel_mm: tuple[float, float], tolerance_mm: float
) -> np.ndarray:
    """Sort the voxels that are in one mask of an organ and not in the other.

    Args:
        has, lacks: (z, y, x) bool, of one shape.
        pixel_mm: (y, x).
        tolerance_mm: Between the centres of voxels.

    Returns:
        (z, y, x) uint8, index into KINDS: 0 in slices beyond the first and last of `lacks`, or anywhere if it is
        empty; 1 in the others, no further than the tolerance from a voxel of `lacks` in the same slice; 2 the rest;
        3 where a voxel is in both masks or not in `has`.
    """
    wrong = has & ~lacks
    kinds = np.where(wrong, np.uint8(_BEYOND_ENDS), np.uint8(_NOT_WRONG))
    occupied = np.flatnonzero(lacks.any(axis=(1, 2)))
    for z in range(occupied[0], occupied[-1] + 1) if occupied.size else ():
        if wrong[z].any():
            kinds[z][wrong[z]] = _ELSEWHERE
            if lacks[z].any():  # a gap between two slices has no edge
                away_mm = ndimage.distance_transform_edt(~lacks[z], sampling=pixel_mm)
                kinds[z][wrong[z] & (away_mm <= tolerance_mm + _ROUNDING_MM)] = _AT_EDGE
    return kinds
