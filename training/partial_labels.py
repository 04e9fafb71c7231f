"""Where an organ that a case does not annotate may hide: those pixels are neither background nor known.

If every pixel were left open, nothing would tell a missing organ from background, and it would swallow the
background (seen). So it may hide only in soft tissue, and the duodenum only around the pancreas.
"""

import numpy as np
from scipy import ndimage

from training.store import UNCERTAIN

ORGAN_HU = (-50, 250)  # between fat and the densest of contrast
PANCREAS, DUODENUM = 4, 12
# 98 % of the duodenum's voxels in 8 of FLARE22's label maps lie this near to the pancreas.
NEAR_PANCREAS_MM = 35.0
_GRID_MM = 2.0  # of the distance map; finer is slow and tells no more


def mark_uncertain(hu: np.ndarray, labels: np.ndarray, spacing_mm: tuple, annotated: tuple[int, ...]) -> np.ndarray:
    """Labels with UNCERTAIN where background may be an organ that is not annotated.

    Args:
        hu: int16 (z, y, x).
        labels: uint8 (z, y, x), 0..13.
        spacing_mm: (z, y, x).
        annotated: Label values that were looked for.

    Returns:
        uint8 (z, y, x). Where the duodenum alone is missing and there is no pancreas in view, it cannot be near.
    """
    missing = {organ for organ in range(1, 14) if organ not in annotated}
    if not missing:
        return labels
    hidden = (labels == 0) & (hu > ORGAN_HU[0]) & (hu < ORGAN_HU[1])
    if missing == {DUODENUM}:
        hidden &= _near(labels == PANCREAS, spacing_mm, NEAR_PANCREAS_MM)
    return np.where(hidden, np.uint8(UNCERTAIN), labels)


def _near(mask: np.ndarray, spacing_mm: tuple, distance_mm: float) -> np.ndarray:
    """Pixels nearer to the mask than a distance; measured on every k-th pixel in plane, about 2 mm apart."""
    k = max(1, int(_GRID_MM / spacing_mm[1]))
    coarse = mask[:, ::k, ::k]
    if not coarse.any():
        return np.zeros(mask.shape, bool)
    sampling = (spacing_mm[0], spacing_mm[1] * k, spacing_mm[2] * k)
    near = ndimage.distance_transform_edt(~coarse, sampling=sampling) < distance_mm
    return near.repeat(k, 1).repeat(k, 2)[:, : mask.shape[1], : mask.shape[2]]
