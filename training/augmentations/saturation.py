"""The bright end of a slice, so that a network cannot tell saturated training data from true HU.

Slices of saturated cases mostly get a plausible excess back inside bone; true ones are now and then cut off.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.batch import Array, Slices
from training.config import Config

RESTORED_SHARE, CUT_SHARE = 0.8, 0.2  # of the saturated slices, and of the true ones
EXCESS_HU = (100, 500)  # bone over the limit, uniform
CUT_AT_HU = 275  # where BTCV's scans were cut off


class Saturation(NamedTuple):
    """float32 (N,) each, HU: where the slice was cut off, what is added there inside bone, where it is cut off now."""

    limit_hu: Array
    excess_hu: Array
    cut_at_hu: Array


def draw(rng: np.random.Generator, slices: Slices, config: Config, labelled: bool) -> Saturation:
    """An excess for saturated slices, a limit for others."""
    saturated = np.isfinite(slices.saturated_hu)
    chance, excess_hu = rng.random(len(saturated)), rng.uniform(*EXCESS_HU, len(saturated))
    return Saturation(
        slices.saturated_hu,
        np.where(saturated & (chance < RESTORED_SHARE), excess_hu, 0).astype(np.float32),
        np.where(~saturated & (chance < CUT_SHARE), CUT_AT_HU, np.inf).astype(np.float32),
    )


def apply(hu: Tensor, drawn: Saturation) -> Tensor:
    """float32 (N, H, W) in and out; the excess grows from the rim of bone to its inside."""
    limit_hu, excess_hu, cut_at_hu = (value[:, None, None] for value in drawn)
    saturated = hu >= limit_hu
    interior = F.avg_pool2d(saturated.float(), 7, 1, 3)  # share of saturated pixels in the 7x7 around each
    return torch.minimum(torch.where(saturated, hu + excess_hu * interior, hu), cut_at_hu)
