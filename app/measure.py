"""What a mask says of each organ: volume, HU, and the slices it is in."""

from typing import NamedTuple

import numpy as np

from app.labels import NUM_CLASSES, ORGANS


class Measure(NamedTuple):
    """One organ in one scan; what an absent organ does not have is None.

    Attributes:
        voxels: How many.
        ml: Volume.
        mean_hu, sd_hu: Mean and (population) standard deviation over the organ's voxels.
        first_slice, last_slice: Lowest and highest z index.
    """

    voxels: int
    ml: float
    mean_hu: float | None
    sd_hu: float | None
    first_slice: int | None
    last_slice: int | None


def measure_organs(labels: np.ndarray, hu: np.ndarray, voxel_ml: float) -> dict[int, Measure]:
    """Measure all organs in one pass, slice by slice: at no time is more than a slice held as floats.

    Args:
        labels: uint8 (z, y, x), 0..13.
        hu: int16 (z, y, x).
        voxel_ml: Volume of a voxel.

    Returns:
        By label, 1..13.
    """
    voxels = np.zeros((len(labels), NUM_CLASSES), np.int64)
    sums, squares = np.zeros(NUM_CLASSES), np.zeros(NUM_CLASSES)
    for plane, plane_hu, plane_voxels in zip(labels, hu, voxels, strict=True):
        inside = np.flatnonzero(plane != 0)
        organ, values = plane.ravel()[inside], plane_hu.ravel()[inside].astype(np.float64)
        plane_voxels += np.bincount(organ, minlength=NUM_CLASSES)
        sums += np.bincount(organ, values, NUM_CLASSES)
        squares += np.bincount(organ, values * values, NUM_CLASSES)
    return {
        organ.label: _measure(voxels[:, organ.label], sums[organ.label], squares[organ.label], voxel_ml)
        for organ in ORGANS
    }


def _measure(along_z: np.ndarray, total: float, squares: float, voxel_ml: float) -> Measure:
    voxels = int(along_z.sum())
    if not voxels:
        return Measure(0, 0.0, None, None, None, None)
    mean = total / voxels
    variance = max(0.0, squares / voxels - mean * mean)
    slices = np.flatnonzero(along_z)
    return Measure(
        voxels=voxels,
        ml=round(voxels * voxel_ml, 2),
        mean_hu=round(float(mean), 1),
        sd_hu=round(float(np.sqrt(variance)), 1),
        first_slice=int(slices[0]),
        last_slice=int(slices[-1]),
    )
