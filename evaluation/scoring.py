"""DSC and NSD of one case by FLARE22's rules.

Rules and tolerances are those of the organizers' scripts (JunMa11/FLARE). The scripts fail where the truth lies on one
slice; here that slice is scored.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from app.labels import ORGANS
from evaluation.masks import Mask, check_same_grid, read_mask
from evaluation.organs import ALL_LABELS
from evaluation.surface import check_masks, normalised_surface_dice

TOLERANCES_MM = {1: 5, 2: 3, 3: 3, 4: 5, 5: 2, 6: 2, 7: 2, 8: 2, 9: 2, 10: 3, 11: 5, 12: 7, 13: 3}  # by label
SCORED_ON_TRUTH_SLICES = {5, 6, 10}  # aorta, IVC, esophagus go on beyond the slices that were annotated
MINIMUM_DSC = 0.2  # below it NSD is 0 unseen (FLARE22's newest script; an older one lacks it, FLARE23's has 0.1)
METRICS = ("DSC", "NSD")


class Score(NamedTuple):
    """Of one organ in one case, each 0..1."""

    dsc: float
    nsd: float


Scores = Mapping[int, Score]  # of one case, by label; an organ that is not annotated has none


def dice_coefficient(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Twice the voxels in both over the sum of the voxels in each.

    Args:
        prediction, truth: 3-dimensional bool, of one shape.

    Returns:
        0..1; NaN if both are empty (`score_case` gives 1 there, by the organizers' rule).

    Raises:
        ValueError: The masks are not bool, not three-dimensional or not of one shape.
    """
    check_masks(prediction, truth)
    voxels = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return float(2 * np.count_nonzero(prediction & truth) / voxels) if voxels else float("nan")


def score_case(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing_mm: tuple[float, float, float],
    labels: Collection[int] = ALL_LABELS,
    minimum_dsc: float = MINIMUM_DSC,
) -> Scores:
    """DSC and NSD of each organ.

    Args:
        prediction, truth: (z, y, x) uint8 labels, of one shape; the first axis is the organizers' third.
        spacing_mm: Of the truth, (z, y, x).
        labels: The organs annotated in the truth; the others are not scored.
        minimum_dsc: Where DSC is below, NSD is 0.

    Returns:
        Label -> Score, in the order of `labels`, not rounded. (1, 1) where both masks lack the organ, (0, 0)
        where one does.

    Raises:
        ValueError: The arrays are not uint8, not three-dimensional or not of one shape, or a label is unknown.
    """
    if prediction.dtype != np.uint8 or truth.dtype != np.uint8:
        raise ValueError(f"labels must be uint8, got {prediction.dtype} and {truth.dtype}")
    if prediction.ndim != 3 or prediction.shape != truth.shape:
        raise ValueError(f"labels must be two volumes of one shape, got {prediction.shape} and {truth.shape}")
    if unknown := set(labels) - set(ALL_LABELS):
        raise ValueError(f"no organ has label {min(unknown)}")
    foreground = _foreground_box(prediction | truth)
    prediction, truth = prediction[foreground], truth[foreground]
    prediction_boxes, truth_boxes = (ndimage.find_objects(mask, max_label=len(ORGANS)) for mask in (prediction, truth))
    scores = {}
    for label in labels:
        in_prediction, in_truth = prediction_boxes[label - 1], truth_boxes[label - 1]
        if in_prediction is None or in_truth is None:
            scores[label] = Score(1.0, 1.0) if in_prediction is in_truth else Score(0.0, 0.0)
            continue
        box = [slice(min(p.start, t.start), max(p.stop, t.stop)) for p, t in zip(in_prediction, in_truth, strict=True)]
        if label in SCORED_ON_TRUTH_SLICES:  # the organizers' script leaves out the top slice; the only one stays
            box[0] = slice(in_truth[0].start, max(in_truth[0].stop - 1, in_truth[0].start + 1))
        organ_prediction, organ_truth = (mask[tuple(box)] == label for mask in (prediction, truth))
        dsc = dice_coefficient(organ_prediction, organ_truth)
        if dsc < minimum_dsc:
            nsd = 0.0
        else:
            nsd = normalised_surface_dice(organ_prediction, organ_truth, spacing_mm, TOLERANCES_MM[label])
        scores[label] = Score(dsc, nsd)
    return scores


def _foreground_box(labels: np.ndarray) -> tuple[slice, ...]:
    """Box around all organs: finding each organ's own box in it takes a third of the time."""
    seen_along_z = labels.max(axis=0)
    profiles = (labels.max(axis=(1, 2)), seen_along_z.max(axis=1), seen_along_z.max(axis=0))
    occupied = [np.flatnonzero(profile) for profile in profiles]
    return tuple(slice(where[0], where[-1] + 1) if where.size else slice(0, 0) for where in occupied)


def score_files(
    prediction: Path, truth: Path, labels: Collection[int] = ALL_LABELS, minimum_dsc: float = MINIMUM_DSC
) -> Scores:
    """`score_masks` of two NIfTI files; raises MaskError too if one of them is not a readable mask."""
    return score_masks(read_mask(prediction), read_mask(truth), labels, minimum_dsc)


def score_masks(
    prediction: Mask, truth: Mask, labels: Collection[int] = ALL_LABELS, minimum_dsc: float = MINIMUM_DSC
) -> Scores:
    """`score_case` of two masks, rounded to the organizers' 4 decimals.

    Raises:
        MaskError: The masks differ in geometry.
    """
    check_same_grid(prediction, truth)
    scores = score_case(prediction.labels, truth.labels, truth.spacing_mm, labels, minimum_dsc)
    # The organizers round with numpy: 0.00015 becomes 0.0002 where Python's own round() gives 0.0001.
    return {label: Score(*(float(np.round(value, 4)) for value in score)) for label, score in scores.items()}
