"""Jitter of the z-score's mean and standard deviation: both move with the field of view and the table."""

from typing import NamedTuple

import numpy as np

from training.batch import Array, Slices
from training.config import Config


class Statistics(NamedTuple):
    """float32 (N,) each, HU: what the slice is z-scored with."""

    mean_hu: Array
    std_hu: Array


def draw(rng: np.random.Generator, slices: Slices, config: Config, labelled: bool) -> Statistics:
    """The case's mean +- jitter * std, and std * (1 +- jitter), uniform."""
    mean_share, std_share = rng.uniform(-1, 1, (2, len(slices.entry))) * config.statistics_jitter
    mean_hu = slices.mean_hu + mean_share * slices.std_hu
    return Statistics(mean_hu.astype(np.float32), (slices.std_hu * (1 + std_share)).astype(np.float32))
