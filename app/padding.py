"""Voxels that hold no number, NaN for one: around the patient they are padding and become air, in him an error."""

import numpy as np

from app.errors import InputError
from app.voxels import NO_NUMBER

_KIND = f"NaN, infinite or {NO_NUMBER}"


def fill_padding(volume: np.ndarray) -> tuple[str, ...]:
    """Give padding the lowest value that the volume holds, in place: that is air, whatever the values' scale.

    Args:
        volume: int16 (z, y, x), `NO_NUMBER` where a voxel holds none.

    Returns:
        One line if there was any, else none.

    Raises:
        InputError: With the cause alone: such voxels lie between others, or there are no others.
    """
    if volume.min() > NO_NUMBER:
        return ()
    empty = [plane.max() == NO_NUMBER for plane in volume]
    if all(empty):
        raise InputError(f"every voxel is {_KIND}")
    missing, lowest, enclosed = 0, 2**15, False
    for plane in volume:
        number = plane > NO_NUMBER
        missing += number.size - int(number.sum())
        lowest = min(lowest, int(plane.min(where=number, initial=2**15 - 1)))
        enclosed |= bool((_between(number, axis=0) & _between(number, axis=1) & ~number).any())
    share = f"{100 * missing / volume.size:.3g} % of its voxels are {_KIND}"
    if enclosed or (np.diff(np.flatnonzero(np.logical_not(empty))) > 1).any():
        raise InputError(f"{share}, some of them amid others")
    for plane in volume:
        plane[plane == NO_NUMBER] = lowest
    return (f"{share}, all of them around the others: taken for air ({lowest})",)


def _between(number: np.ndarray, axis: int) -> np.ndarray:
    """Where a number lies on either side of a voxel, along the axis."""
    before = np.logical_or.accumulate(number, axis)
    behind = np.flip(np.logical_or.accumulate(np.flip(number, axis), axis), axis)
    return before & behind
