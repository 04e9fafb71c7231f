"""Label maps for the tests of evaluation: 13 boxes, written as NIfTI."""

import nibabel
import numpy as np

from evaluation.organs import ALL_LABELS

AFFINE = np.diag([0.75, 0.75, 2.5, 1])


def save(path, labels, affine=AFFINE):
    """Write (x, y, z) labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels, affine), path)
    return path


def body(seed, shape=(24, 22, 14)):
    """(x, y, z) labels: 13 boxes, each at least three slices high."""
    random = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    for label in ALL_LABELS:
        lower = random.integers(0, np.array(shape) - 7)
        labels[tuple(slice(start, start + random.integers(3, 8)) for start in lower)] = label
    return labels
