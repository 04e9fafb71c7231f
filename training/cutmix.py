"""CutMix for segmentation (Yun et al., 2019; French et al., 2020), as CPS uses it.

The two slices of a pair exchange a box each; their pseudo-labels, made on the unmixed images, exchange the
same boxes. Pairs are neighbours in the batch, so a pair is never split among processes.
"""

import numpy as np
import torch
from torch import Tensor


def random_boxes(rng: np.random.Generator, count: int, height: int, width: int) -> Tensor:
    """One random box a sample: int64 (count, 4), first row, first column, behind last row, behind last column.

    A box covers 1/4 to 1/2 of the slice, its aspect ratio between 1/2 and 2 (log-uniform).
    """
    boxes = []
    for _ in range(count):
        area = rng.uniform(0.25, 0.5) * height * width
        aspect = np.exp(rng.uniform(np.log(0.5), np.log(2)))
        h = min(height, round(np.sqrt(area * aspect)))
        w = min(width, round(np.sqrt(area / aspect)))
        y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
        boxes.append((y, x, y + h, x + w))
    return torch.tensor(boxes)


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """The boxes as masks: bool (N, height, width), True inside."""
    top, left, bottom, right = boxes[:, :, None].unbind(1)  # each (N, 1)
    y, x = (torch.arange(size, device=boxes.device) for size in (height, width))
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return rows[:, :, None] & columns[:, None, :]


def mix(values: Tensor, mask: Tensor) -> Tensor:
    """Each sample with its partner's values inside its mask.

    Args:
        values: Images (N, 1, H, W) or labels (N, H, W), N even; samples 2i and 2i + 1 are partners.
        mask: bool (N, H, W).
    """
    partners = values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return torch.where(mask[:, None] if values.ndim == 4 else mask, partners, values)
