"""The augmentations of section 2.1 and those that few patients need, one file each: what it draws and what it does.

`draw` makes the random numbers of a batch, without pixels; `augment` applies them on the device. Each augmentation has
a random stream of its own, named after its file: one that is added or changed leaves the others' numbers alone.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.preprocess import WINDOW_HU, normalise
from training.augmentations import blur, contrast_phase, intensity, noise, saturation, statistics, view
from training.batch import Batch, Slices
from training.config import Config
from training.store import UNCERTAIN


class Draws(NamedTuple):
    """What each augmentation drew, named as its module."""

    saturation: saturation.Saturation
    contrast_phase: contrast_phase.ContrastPhase
    intensity: intensity.Intensity
    noise: noise.Noise
    blur: blur.Blur
    view: view.View
    statistics: statistics.Statistics


def draw(slices: Slices, config: Config, labelled: bool, step: int) -> Draws:
    """Random numbers of a step's batch; a function of its arguments alone.

    Args:
        slices: Of the whole batch.
        config: Seed and sizes of the augmentations.
        labelled: Whether organs are known; without, those that move organs draw nothing.
        step: Of the run.
    """
    modules = (saturation, contrast_phase, intensity, noise, blur, view, statistics)
    drawn = []
    for module in modules:
        name = module.__name__.rpartition(".")[2]
        rng = np.random.default_rng([config.seed, labelled, step, *name.encode()])
        drawn.append(module.draw(rng, slices, config, labelled))
    return Draws(*drawn)


def augment(batch: Batch, config: Config, weak: bool = False) -> tuple[Tensor, Tensor]:
    """Images and labels as the network takes them, on the batch's device. No step waits for the device.

    Args:
        batch: Its tensors on one device.
        config: Settings; an augmentation whose size is 0 is left out.
        weak: The same view of the slices without contrast phase, jitter, noise and blur.

    Returns:
        images float32 (N, 1, crop, crop), z-scored; labels uint8 (N, crop, crop), 0..13 or UNCERTAIN. What lies
        beyond the frame is air, and known to be background even where the slice has no labels.
    """
    draws = batch.draws
    organ = torch.where(batch.labels == UNCERTAIN, 0, batch.labels).long()
    hu = saturation.apply(batch.hu.float(), draws.saturation)
    if not weak:
        hu = _strengthened(hu, organ, draws, config)
    grid = view.grid(batch.labels, draws.view, config)
    images = view.sample(hu.clamp(*WINDOW_HU), grid, WINDOW_HU[0], "bilinear")
    labels = view.sample(batch.labels.float(), grid, 0, "nearest")[:, 0].byte()
    mean_hu, std_hu = (value[:, None, None, None] for value in draws.statistics)
    return normalise(images, mean_hu, std_hu), labels


def _strengthened(hu: Tensor, organ: Tensor, draws: Draws, config: Config) -> Tensor:
    """Other HU in the same places; float32 (N, H, W) in and out."""
    if config.phase_share:
        hu = contrast_phase.apply(hu, organ, draws.contrast_phase)
    hu = intensity.apply(hu, organ, draws.intensity)
    if config.noise_hu:
        hu = noise.apply(hu, draws.noise)
    return blur.apply(hu, draws.blur) if config.blur else hu
