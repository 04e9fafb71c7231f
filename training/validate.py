"""DSC of whole cases, segmented as the image does it."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from app.inference import segment_volume
from app.labels import NUM_CLASSES, ORGANS
from app.network import DeepLabV3Plus
from app.postprocess import MIN_REGION_PX
from app.segment import segment
from training.config import Config
from training.precision import mixed_precision
from training.store import UNCERTAIN, Case, read_pixels

SLICES_PER_STEP = 8


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


def validate(
    network: DeepLabV3Plus, store: Path, cases: list[Case], config: Config, data: dict
) -> dict[str, list[float]]:
    """DSC of a branch on whole labelled cases.

    The network is left as it was. In slices that were stored smaller, regions are smaller too, and so is the filter's
    limit.

    Args:
        network: The branch.
        store: Folder of the slice store.
        cases: Labelled ones.
        config: That the branch is trained with.
        data: Of `training.split.describe`: what the branch is trained on.

    Returns:
        Abbreviation of an organ to its DSC in each case that annotates it.
    """
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    segment_slices = partial(segment, network, slices_per_step=SLICES_PER_STEP, frame_px=config.crop_px)
    scores: dict[str, list[float]] = {}
    for case in cases:
        min_region_px = round(MIN_REGION_PX / case.settings.get("shrink", 1) ** 2)
        hu, truth = read_pixels(store, case)
        # Each case has slices of its own size: to look for the fastest kernels of each would take longer.
        no_search = torch.backends.cudnn.flags(enabled=True, benchmark=False)
        with mixed_precision(device, config.bf16), no_search:
            segmentation = segment_volume(
                segment_slices, hu, case.spacing_mm, data["spacing_mm"], data["slice_mm"],
                statistics_hu=(case.mean_hu, case.std_hu), min_region_px=min_region_px,
            )  # fmt: skip
        dsc = dice(segmentation.labels, truth)
        for organ in ORGANS:
            if organ.label in case.annotated:
                scores.setdefault(organ.abbreviation, []).append(float(dsc[organ.label]))
    network.train(was_training)
    return scores
