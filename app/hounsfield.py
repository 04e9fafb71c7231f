"""Whether a volume's numbers can be HU."""

import numpy as np


def doubts(hu: np.ndarray) -> tuple[str, ...]:
    """Why a volume may not be a CT, one line each.

    Args:
        hu: int16 (z, y, x), at least one voxel.
    """
    low, high = int(hu.min()), int(hu.max())
    if low == high:
        return (f"every voxel is {low} HU: not a CT?",)
    if low >= 0 and high <= 255:
        return (f"values from {low} to {high}, the range of an 8-bit picture: not a CT?",)
    if low >= -200:
        return (f"no voxel under -200 HU (values from {low} to {high}): not a CT, or its air was clipped away?",)
    return ()
