"""DSC of whole cases, segmented as the image does it: same streaming, bias and small-region filter."""

from pathlib import Path

import numpy as np
import torch

from app.labels import NUM_CLASSES
from app.postprocess import remove_small_regions
from app.segment import segment
from training.store import UNCERTAIN, Case, read_volume

SLICES_PER_STEP = 8


def dice(prediction: np.ndarray, truth: np.ndarray, annotated: tuple[int, ...]) -> np.ndarray:
    """DSC per label value, (14,) float; NaN for background and for organs not annotated; 1 if both are empty.

    Pixels marked UNCERTAIN in the truth are background to the organs that are annotated.
    """
    pairs = np.bincount(
        prediction.ravel().astype(np.int64) * NUM_CLASSES + np.where(truth == UNCERTAIN, 0, truth).ravel(),
        minlength=NUM_CLASSES**2,
    ).reshape(NUM_CLASSES, NUM_CLASSES)
    sizes = pairs.sum(axis=1) + pairs.sum(axis=0)
    scores = np.where(sizes > 0, 2 * pairs.diagonal() / np.maximum(sizes, 1), 1.0)
    scores[[c for c in range(NUM_CLASSES) if c not in annotated]] = np.nan
    return scores


def validate(network: torch.nn.Module, store: Path, cases: list[Case], dtype: torch.dtype) -> np.ndarray:
    """DSC (cases, 14) of a branch on whole labelled cases; see `dice`. The network is left as it was."""
    was_training = network.training
    network.eval()
    scores = []
    device = next(network.parameters()).device
    for case in cases:
        hu, truth = read_volume(store, case)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            labels = segment(network, hu, (case.mean_hu, case.std_hu), SLICES_PER_STEP)
        remove_small_regions(labels)
        scores.append(dice(labels, truth, case.annotated))
    network.train(was_training)
    return np.array(scores)
