"""CutMix for segmentation (Yun et al., 2019; French et al., 2020), as CPS uses it.

The same boxes are cut from the second half's images and from its pseudo-labels (made on unmixed images).
"""

import numpy as np
import torch
from torch import Tensor


def random_boxes(rng: np.random.Generator, count: int, height: int, width: int) -> Tensor:
    """One random box a sample as a bool mask (count, height, width), True inside.

    A box covers 1/4 to 1/2 of the slice, its aspect ratio between 1/2 and 2 (log-uniform).
    """
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask in masks:
        area = rng.uniform(0.25, 0.5) * height * width
        aspect = np.exp(rng.uniform(np.log(0.5), np.log(2)))
        h = min(height, round(np.sqrt(area * aspect)))
        w = min(width, round(np.sqrt(area / aspect)))
        y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
        mask[y : y + h, x : x + w] = True
    return masks


def mix(first: Tensor, second: Tensor, boxes: Tensor) -> Tensor:
    """`second` inside the boxes, `first` elsewhere. Images (N, 1, H, W) or labels (N, H, W); boxes (N, H, W)."""
    return torch.where(boxes[:, None] if first.ndim == 4 else boxes, second, first)
