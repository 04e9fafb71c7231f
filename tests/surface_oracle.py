"""What the scores are measured against: google-deepmind/surface-distance, and the organizers' rules in their order."""

import warnings
from unittest import mock

import numpy as np
import surface_distance


def library_nsd(prediction, truth, spacing_mm, tolerance_mm):
    """Surface dice of two bool masks by the library; NaN if both are empty."""
    with warnings.catch_warnings(), mock.patch.multiple(np, create=True, Inf=np.inf, NaN=np.nan):  # gone in numpy 2
        warnings.simplefilter("ignore")  # deprecated scipy names; 0 / 0
        distances = surface_distance.compute_surface_distances(truth, prediction, spacing_mm)
        return float(surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm))


def organizers_scores(prediction, truth, spacing_mm, labels, minimum_dsc=0.2):
    """Label -> (DSC, NSD) of (x, y, z) labels; fails, as theirs, if aorta, IVC or esophagus lie on one slice."""
    tolerances_mm = [5, 3, 3, 5, 2, 2, 2, 2, 2, 3, 5, 7, 3]
    scores = {}
    for label in labels:
        organ_prediction, organ_truth = prediction == label, truth == label
        if not organ_prediction.any() or not organ_truth.any():
            scores[label] = (1.0, 1.0) if organ_prediction.any() == organ_truth.any() else (0.0, 0.0)
            continue
        if label in (5, 6, 10):
            z = np.nonzero(organ_truth)[2]
            organ_prediction, organ_truth = (mask[:, :, z.min() : z.max()] for mask in (organ_prediction, organ_truth))
        dsc = float(surface_distance.compute_dice_coefficient(organ_truth, organ_prediction))
        nsd = library_nsd(organ_prediction, organ_truth, spacing_mm, tolerances_mm[label - 1])
        scores[label] = (dsc, nsd if dsc >= minimum_dsc else 0.0)
    return scores
