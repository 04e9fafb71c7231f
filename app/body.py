"""Where in its slices the body is: beside it lies air, which costs the network as much as organs do.

One box serves the whole volume: the network's image pooling depends on the frame, which must not change from slice to
slice. Training shows the network crops of many frames.
"""

import numpy as np
from scipy import ndimage

from app.network import OUTPUT_STRIDE

ABOVE_FAT_HU = -50  # soft tissue and bone; in scans clipped at -100 or -125 HU they cannot be told apart
MARGIN_PX = 16  # around soft tissue: organs lie inside it
_STEP_PX = 4  # every fourth pixel is looked at, which is fine enough


def body_box(hu: np.ndarray, smallest_px: int) -> tuple[slice, slice]:
    """Rows and columns of the largest connected soft tissue in the volume's projection along z, with a margin.

    Args:
        hu: int16 (z, y, x), at least one voxel.
        smallest_px: Least height and width of the box, where the slices have as much.

    Returns:
        (rows, columns): multiples of the network's output stride long, or the whole slice; that too where no
        soft tissue is found.
    """
    tissue = (hu[:, ::_STEP_PX, ::_STEP_PX] > ABOVE_FAT_HU).any(axis=0)
    tissue = ndimage.binary_opening(tissue, np.ones((3, 3)))  # without table, tubes and noise
    parts, _ = ndimage.label(tissue)
    sizes = np.bincount(parts.ravel())[1:]
    if not sizes.size:
        return slice(0, hu.shape[1]), slice(0, hu.shape[2])
    box = ndimage.find_objects(parts)[sizes.argmax()]
    rows, columns = (_widened(part, size, smallest_px) for part, size in zip(box, hu.shape[1:], strict=True))
    return rows, columns


def _widened(part: slice, size: int, smallest_px: int) -> slice:
    """From steps to pixels; with the margin, long enough, and inside 0..size."""
    first, last = part.start * _STEP_PX - MARGIN_PX, part.stop * _STEP_PX + MARGIN_PX
    length = max(last - first, smallest_px)
    length = min(size, -(-length // OUTPUT_STRIDE) * OUTPUT_STRIDE)
    start = min(max(0, (first + last - length) // 2), size - length)
    return slice(start, start + length)
