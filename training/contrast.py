"""Contrast phases that were not scanned: an organ's enhancement, taken out of a labelled slice or put in.

BTCV is portal venous. A network that saw little else told organs by their brightness: in unenhanced and arterial
scans it gave half of a left kidney to the spleen.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from app.labels import NUM_CLASSES

# By label, of an organ without contrast medium: rounded medians in two unenhanced scans (acrin_flt001, lidc0314) and
# in the labels of btcv0023 and totalseg_example. Gallbladder and stomach hold what no contrast medium reaches.
UNENHANCED_HU = {1: 50, 2: 30, 3: 45, 4: 30, 5: 40, 6: 40, 7: 10, 8: 10, 10: 20, 12: 30, 13: 30}
AORTA = 5
FAT_HU = -100
BRIGHT_HU = 300  # above fat; what is brighter beside an organ (bone, contrast in bowel) is not a share of it
RIM_PX = 2  # an organ's blurred edge reaches this far out of its label


def draw_washout(rng: np.random.Generator, share: float) -> np.ndarray:
    """Per organ (14,) float32: 0 as scanned, 1 unenhanced, negative brighter than scanned; all 0 but in `share`.

    Organs wash out together, more or less; in the arterial phase the aorta is bright and the others are not yet.
    """
    washout = np.zeros(NUM_CLASSES, np.float32)
    if rng.random() < share:
        organs = list(UNENHANCED_HU)
        washout[organs] = rng.uniform(-0.3, 1.1) + rng.normal(0, 0.2, len(organs))
        if rng.random() < 0.4:
            washout[AORTA] = rng.uniform(-2, 0)
        washout[13] = washout[2]  # both kidneys are in the same phase
    return washout


def wash_out(hu: Tensor, organ: Tensor, washout: Tensor) -> Tensor:
    """Slices with each organ's enhancement changed; its texture stays.

    Args:
        hu: float (N, H, W).
        organ: int64 (N, H, W), 0 where none is known.
        washout: (N, 14), from `draw_washout`.

    Returns:
        HU like `hu`: an organ whose mean is m moves by -washout * (m - its unenhanced HU). Pixels around it, blurred
        with it, move in proportion to what they have above fat: no bright rim stays to tell where it was.
    """
    count = len(hu) * NUM_CLASSES
    index = (organ + NUM_CLASSES * torch.arange(len(hu), device=hu.device)[:, None, None]).flatten()
    sums = torch.zeros(count, device=hu.device).index_add_(0, index, hu.flatten())
    mean = (sums / torch.bincount(index, minlength=count).clamp(min=1)).view(-1, NUM_CLASSES)
    unenhanced = mean.clone()
    unenhanced[:, list(UNENHANCED_HU)] = torch.tensor([*UNENHANCED_HU.values()], dtype=hu.dtype, device=hu.device)
    offset = -washout * (mean - unenhanced)  # (N, 14)
    around = _spread((offset / (mean - FAT_HU).clamp(min=1)).flatten()[index].view_as(hu))
    return hu + torch.where(organ > 0, offset.flatten()[index].view_as(hu), around * (hu - FAT_HU).clamp(0, BRIGHT_HU))


def _spread(x: Tensor) -> Tensor:
    """Values of organs (0 elsewhere) carried RIM_PX outwards, of either sign the largest."""
    both, size = torch.stack([x, -x], dim=1).clamp(min=0), 2 * RIM_PX + 1
    rows = F.max_pool2d(both, (1, size), 1, (0, RIM_PX))  # rows, then columns: the same, and faster
    up, down = F.max_pool2d(rows, (size, 1), 1, (RIM_PX, 0)).unbind(dim=1)
    return up - down
