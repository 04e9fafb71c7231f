"""Blur and sharpening, in half of the slices: the reconstruction kernels of other scanners."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.batch import Array, Slices
from training.config import Config


class Blur(NamedTuple):
    """float32 (N,), share of a Gaussian of sigma 1 pixel that is mixed in; a negative one sharpens."""

    share: Array


def draw(rng: np.random.Generator, slices: Slices, config: Config, labelled: bool) -> Blur:
    """0 in half of the slices, uniform in +-`blur` in the others."""
    count = len(slices.entry)
    share = rng.integers(0, 2, count) * rng.uniform(-1, 1, count) * config.blur
    return Blur(share.astype(np.float32))


def apply(hu: Tensor, drawn: Blur) -> Tensor:
    """float32 (N, H, W) in and out. 5 taps a side hold 99 % of the Gaussian."""
    taps = torch.exp(-0.5 * torch.arange(-2.0, 3.0, device=hu.device) ** 2)
    taps = taps / taps.sum()
    padded = F.pad(hu[:, None], (2, 2, 2, 2), mode="replicate")
    blurred = F.conv2d(F.conv2d(padded, taps.view(1, 1, 1, 5)), taps.view(1, 1, 5, 1))[:, 0]
    return hu + drawn.share[:, None, None] * (blurred - hu)
