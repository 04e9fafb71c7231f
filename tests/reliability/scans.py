"""Real scans for the trials, thinned out, and the shipped network on them."""

import os
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from app.cases import Case
from app.monitor import ResourceMonitor
from app.options import WEIGHTS
from app.pipeline import segment_case
from app.segment import Segmenter
from app.volume import read_volume
from app.weights import load_weights
from benchmarks.scan import EXAMPLE

ABDOMEN = slice(15, 27)  # slices of the example that hold all organs but the esophagus
RAS = ((0, 1), (1, 1), (2, 1))  # nibabel's words for axes that run right, forward and up


def shipped_segmenter() -> Segmenter:
    return Segmenter(load_weights(WEIGHTS), torch.device("cpu"), 2048)


def example_part(part: slice) -> tuple[np.ndarray, np.ndarray]:
    """Slices of the shipped example: int16 HU (x, y, z), running right, forward, up; and their affine."""
    volume = read_volume(EXAMPLE)
    affine = np.diag([*reversed(volume.geometry.spacing_mm), 1.0])
    return volume.hu[part].T, affine


def real_scans(count: int, most_slices: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The shipped example, and scans of FLARE22_CT_DIR where there are any: name, HU (x, y, z), affine.

    Args:
        count: How many at most.
        most_slices: Of a longer scan every second, third ... slice is taken: its whole range, at its true statistics.
    """
    folder = os.environ.get("FLARE22_CT_DIR")
    others = sorted(Path(folder).glob("labelled/images/*.nii.gz")) if folder else []
    for path in [EXAMPLE, *others[:: max(1, len(others) // max(1, count - 1))]][:count]:
        volume = read_volume(path)
        every = -(-len(volume.hu) // most_slices)
        z_mm, y_mm, x_mm = volume.geometry.spacing_mm
        yield path.name.removesuffix("_0000.nii.gz"), volume.hu[::every].T, np.diag([x_mm, y_mm, every * z_mm, 1.0])


def segmented(segmenter: Segmenter, folder: Path, array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Labels of an image in any orientation, from file to file; (x, y, z), running right, forward, up."""
    ct, mask = folder / "ct.nii.gz", folder / "ct_mask.nii.gz"
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array), affine), ct)
    monitor = ResourceMonitor(folder / "monitor.csv", device="cpu")
    segment_case(Case("ct", ct, mask), read_volume(ct), segmenter, monitor, lambda done, total: None)
    return np.asarray(nib.as_closest_canonical(nib.load(mask)).dataobj)


def agreement(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Percent of all voxels with the same label, and of those that either calls an organ."""
    same, organ = one == other, (one > 0) | (other > 0)
    return {
        "voxels, %": round(100 * float(same.mean()), 4),
        "organ voxels, %": round(100 * float(same[organ].mean()), 3),
    }
