"""Organ-intensity jitter (section 2.1): another offset and scale for each organ, and for the slice with all in it."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.labels import NUM_CLASSES
from training.batch import Array, Slices
from training.config import Config


class Intensity(NamedTuple):
    """float32 (N, 14), of each label value (background stays), and (N,), of the whole slice; offsets in HU."""

    organ_offset_hu: Array
    organ_scale: Array
    slice_offset_hu: Array
    slice_scale: Array


def draw(rng: np.random.Generator, slices: Slices, config: Config, labelled: bool) -> Intensity:
    """Normal offsets, and scales around 1; of organs only in labelled slices."""
    count = len(slices.entry)
    organs = np.ones(NUM_CLASSES) * labelled
    organs[0] = 0
    organ_offset_hu = rng.normal(0, config.organ_offset_hu, (count, NUM_CLASSES)) * organs
    organ_scale = 1 + rng.normal(0, config.organ_scale, (count, NUM_CLASSES)) * organs
    slice_offset_hu = rng.normal(0, config.slice_offset_hu, count)
    slice_scale = 1 + rng.normal(0, config.slice_scale, count)
    values = (organ_offset_hu, organ_scale, slice_offset_hu, slice_scale)
    return Intensity(*(value.astype(np.float32) for value in values))


def apply(hu: Tensor, organ: Tensor, drawn: Intensity) -> Tensor:
    """float32 (N, H, W) in and out; organ int64 (N, H, W), 0 where none is known."""
    sample = torch.arange(len(hu), device=hu.device)[:, None, None]
    hu = hu * drawn.organ_scale[sample, organ] + drawn.organ_offset_hu[sample, organ]
    return hu * drawn.slice_scale[:, None, None] + drawn.slice_offset_hu[:, None, None]
