"""Foreground bias and small-region filter (paper section 2.3)."""

import numpy as np
import torch
from scipy import ndimage

from app.labels import NUM_CLASSES

FOREGROUND_BIAS = 0.6  # added to every logit but the background's
MIN_REGION_PX = 50  # a smaller region is noise; counted on the network's grid

# 8-connected inside a slice, no connection between slices
_IN_SLICE = np.zeros((3, 3, 3), bool)
_IN_SLICE[1] = True
_SLICES_AT_ONCE = 16  # region numbers take 4 bytes a voxel: no need to have them of a whole scan


def decide(logits: torch.Tensor) -> torch.Tensor:
    """Labels from logits: the bias, then argmax (softmax changes nothing and is left out).

    Args:
        logits: (N, 14, H, W), changed in place.

    Returns:
        uint8 (N, H, W).
    """
    logits[:, 1:] += FOREGROUND_BIAS
    return logits.argmax(dim=1).to(torch.uint8)


def remove_small_regions(labels: np.ndarray, min_region_px: int = MIN_REGION_PX) -> None:
    """Turn 8-connected regions of one label and fewer than `min_region_px` pixels in a slice to background.

    Args:
        labels: uint8 (z, y, x), 0..13, changed in place.
        min_region_px: Smallest region that stays.
    """
    for start in range(0, len(labels), _SLICES_AT_ONCE):
        part = labels[start : start + _SLICES_AT_ONCE]
        for label, box in enumerate(ndimage.find_objects(part, NUM_CLASSES - 1), start=1):
            if box is None:
                continue
            inside = part[box]
            regions, _ = ndimage.label(inside == label, structure=_IN_SLICE)
            too_small = np.bincount(regions.ravel()) < min_region_px
            too_small[0] = False  # everything that is not this label
            inside[too_small[regions]] = 0
