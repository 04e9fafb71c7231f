"""DSC of whole cases, segmented as the image does it: same streaming, bias and filters."""

from pathlib import Path

import numpy as np
import torch

from app.labels import NUM_CLASSES, ORGANS
from app.postprocess import MIN_REGION_PX, clean
from app.segment import segment
from training.config import Config
from training.precision import mixed_precision
from training.store import UNCERTAIN, Case, read_volume

SLICES_PER_STEP = 8
FULL_FRAME_PX = 512  # the frame that MIN_REGION_PX is meant for


def dice(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """DSC per label value, (14,) float; 1 where both are empty, as FLARE22 scores.

    Pixels marked UNCERTAIN in the truth are background to the organs that are annotated.

    Args:
        prediction: uint8, 0..13.
        truth: uint8 of the same shape, 0..13 or UNCERTAIN.
    """
    pairs = np.bincount(
        prediction.ravel().astype(np.int64) * NUM_CLASSES + np.where(truth == UNCERTAIN, 0, truth).ravel(),
        minlength=NUM_CLASSES**2,
    ).reshape(NUM_CLASSES, NUM_CLASSES)
    sizes = pairs.sum(axis=1) + pairs.sum(axis=0)
    return np.where(sizes > 0, 2 * pairs.diagonal() / np.maximum(sizes, 1), 1.0)


def validate(network: torch.nn.Module, store: Path, cases: list[Case], config: Config) -> dict[str, list[float]]:
    """DSC of a branch on whole labelled cases: abbreviation of an organ to its DSC in each case that annotates it.

    The network is left as it was. In smaller frames regions are smaller, and so is the filter's limit.
    """
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    min_region_px = round(MIN_REGION_PX * (config.frame_px / FULL_FRAME_PX) ** 2)
    scores: dict[str, list[float]] = {}
    for case in cases:
        hu, truth = read_volume(store, case)
        with mixed_precision(device, config.bf16):
            labels = segment(network, hu, (case.mean_hu, case.std_hu), SLICES_PER_STEP, config.crop_size)
        clean(labels, min_region_px)
        dsc = dice(labels, truth)
        for organ in ORGANS:
            if organ.label in case.annotated:
                scores.setdefault(organ.abbreviation, []).append(float(dsc[organ.label]))
    network.train(was_training)
    return scores
