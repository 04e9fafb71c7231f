"""Gaussian noise, in half of the slices: windows of one image of noise, which costs less than drawing it anew."""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.batch import Array, Slices
from training.config import Config

BANK_PX = 1024


class Noise(NamedTuple):
    """float32 (N,), standard deviation in HU; float32 (N, 2), where the window lies, 0..1 of the way down and right."""

    sd_hu: Array
    place: Array


def draw(rng: np.random.Generator, slices: Slices, config: Config, labelled: bool) -> Noise:
    """A standard deviation of 0 in half of the slices, uniform up to `noise_hu` in the others."""
    count = len(slices.entry)
    sd_hu = rng.uniform(-1, 1, count).clip(min=0) * config.noise_hu
    return Noise(sd_hu.astype(np.float32), rng.random((count, 2), np.float32))


def apply(hu: Tensor, drawn: Noise) -> Tensor:
    """float32 (N, H, W) in and out."""
    y, x = (
        (drawn.place[:, axis, None] * (BANK_PX - size)).long() + torch.arange(size, device=hu.device)
        for axis, size in enumerate(hu.shape[1:])
    )
    return hu + drawn.sd_hu[:, None, None] * bank(hu.device)[y[:, :, None], x[:, None, :]]


@cache
def bank(device: torch.device) -> Tensor:
    """Noise (1024, 1024) of mean 0 and standard deviation 1, equal on every device and in every run."""
    return torch.randn(BANK_PX, BANK_PX, generator=torch.Generator().manual_seed(0)).to(device)
