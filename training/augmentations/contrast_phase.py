"""Contrast phases that were not scanned: an organ's enhancement, taken out of a labelled slice or put in.

BTCV is portal venous. A network that saw little else told organs by their brightness: in unenhanced and arterial
scans it gave half of a left kidney to the spleen.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from app.labels import NUM_CLASSES
from training.batch import Array, Slices
from training.config import Config

# By label, of an organ without contrast medium: rounded medians in two unenhanced scans (acrin_flt001, lidc0314) and
# in the labels of btcv0023 and totalseg_example. Gallbladder and stomach hold what no contrast medium reaches.
UNENHANCED_HU = {1: 50, 2: 30, 3: 45, 4: 30, 5: 40, 6: 40, 7: 10, 8: 10, 10: 20, 12: 30, 13: 30}
RIGHT_KIDNEY, AORTA, LEFT_KIDNEY = 2, 5, 13
WASHOUT, WASHOUT_SD = (-0.3, 1.1), 0.2  # of all organs together, uniform; of one organ beside them, normal
ARTERIAL_SHARE, ARTERIAL_WASHOUT = 0.4, (-2, 0)  # of the slices in another phase; of the aorta in them
FAT_HU = -100
BRIGHT_HU = 300  # above fat; what is brighter beside an organ (bone, contrast in bowel) is not a share of it
RIM_PX = 2  # an organ's blurred edge reaches this far out of its label


class ContrastPhase(NamedTuple):
    """float32 (N, 14), for each label value 0 as scanned, 1 unenhanced, negative brighter than scanned."""

    washout: Array


def draw(rng: np.random.Generator, slices: Slices, config: Config, labelled: bool) -> ContrastPhase:
    """Another phase in `phase_share` of the labelled slices.

    Organs wash out together, more or less; in the arterial phase the aorta is bright and the others are not yet.
    """
    count, organs = len(slices.entry), list(UNENHANCED_HU)
    washout = np.zeros((count, NUM_CLASSES), np.float32)
    washout[:, organs] = rng.uniform(*WASHOUT, (count, 1)) + rng.normal(0, WASHOUT_SD, (count, len(organs)))
    arterial = rng.random(count) < ARTERIAL_SHARE
    washout[:, AORTA] = np.where(arterial, rng.uniform(*ARTERIAL_WASHOUT, count), washout[:, AORTA])
    washout[:, LEFT_KIDNEY] = washout[:, RIGHT_KIDNEY]  # both kidneys are in one phase
    other_phase = rng.random(count) < config.phase_share * labelled
    return ContrastPhase(washout * other_phase[:, None].astype(np.float32))


def apply(hu: Tensor, organ: Tensor, drawn: ContrastPhase) -> Tensor:
    """Slices with each organ's enhancement changed; its texture stays.

    Args:
        hu: float (N, H, W).
        organ: int64 (N, H, W), 0 where none is known.
        drawn: Of these slices.

    Returns:
        HU like `hu`: an organ whose mean is m moves by -washout * (m - its unenhanced HU). Pixels around it, blurred
        with it, move in proportion to what they have above fat: no bright rim stays to tell where it was.
    """
    washout = drawn.washout
    count = len(hu) * NUM_CLASSES
    index = (organ + NUM_CLASSES * torch.arange(len(hu), device=hu.device)[:, None, None]).flatten()
    both = torch.stack([hu.flatten(), torch.ones_like(hu).flatten()], dim=1)
    total, pixels = torch.zeros(count, 2, device=hu.device).index_add_(0, index, both).unbind(dim=1)
    mean = (total / pixels.clamp(min=1)).view(-1, NUM_CLASSES)
    offset = (-washout * (mean - _unenhanced_hu(hu.device))).nan_to_num()  # (N, 14)
    around = _spread((offset / (mean - FAT_HU).clamp(min=1)).flatten()[index].view_as(hu))
    return hu + torch.where(organ > 0, offset.flatten()[index].view_as(hu), around * (hu - FAT_HU).clamp(0, BRIGHT_HU))


@cache
def _unenhanced_hu(device: torch.device) -> Tensor:
    """(14,), NaN where there is none; copied to the device once, for a copy waits for all that it does."""
    return torch.tensor([UNENHANCED_HU.get(label, torch.nan) for label in range(NUM_CLASSES)], device=device)


def _spread(x: Tensor) -> Tensor:
    """Values of organs (0 elsewhere) carried RIM_PX outwards, of either sign the largest."""
    both, size = torch.stack([x, -x], dim=1).clamp(min=0), 2 * RIM_PX + 1
    rows = F.max_pool2d(both, (1, size), 1, (0, RIM_PX))  # a square's maximum: rows, then columns
    up, down = F.max_pool2d(rows, (size, 1), 1, (RIM_PX, 0)).unbind(dim=1)
    return up - down
