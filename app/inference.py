"""A CT in memory to filtered labels: the stages in their order. The program, validation and benchmarks all run it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np

from app.look import slabs_per_look
from app.postprocess import MIN_REGION_PX, remove_small_components, remove_traces
from app.preprocess import clipped_statistics
from app.resample import nearest_spacing, resample_in_plane, resampled_shape
from app.slabs import slices_per_slab


class Segmentation(NamedTuple):
    """Of one CT.

    Attributes:
        labels: uint8 (z, y, x), 0..13, on the CT's own grid.
        statistics_hu: Mean and standard deviation that its HU were z-scored with.
        network_spacing_mm: (y, x) of the slices that the network saw.
        slices_per_slab: So many neighbours were averaged for it.
        slabs_per_look: It looked at every so many slabs first, to leave out stretches without organs; 1: at all.
    """

    labels: np.ndarray
    statistics_hu: tuple[float, float]
    network_spacing_mm: tuple[float, float]
    slices_per_slab: int
    slabs_per_look: int


def segment_volume(
    segment: Callable[..., np.ndarray],
    hu: np.ndarray,
    spacing_mm: tuple[float, float, float],
    trained_spacing_mm: tuple[float, float],
    trained_slice_mm: float | None,
    *,
    statistics_hu: tuple[float, float] | None = None,
    min_region_px: int = MIN_REGION_PX,
    keep_traces: bool = False,
    stage: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> Segmentation:
    """Statistics, resampling where needed, slabs of thin slices, a look for organs, network, filters, the CT's grid.

    The statistics are those of the scan, not of its slabs: averaging takes noise away, which moves them little (by 4 HU
    of 100, slices of 0.5 mm, simulated), and training shifts them by more.

    Args:
        segment: `app.segment.segment` with its network, or a Segmenter: labels from HU and their statistics.
        hu: int16 (z, y, x), at least one voxel; rows run to anterior, columns to the right, slices upwards.
        spacing_mm: (z, y, x).
        trained_spacing_mm: (lowest, highest) in-plane spacing that the network saw in training.
        trained_slice_mm: Thickness of the slices it saw, to average thinner ones to; None: every slice by itself, and
            none left out.
        statistics_hu: Mean and standard deviation of the clipped scan; None: those of `hu`.
        min_region_px: Smallest region of a slice that stays.
        keep_traces: Keep the specks of a scan without an abdomen, to measure what the network finds there.
        stage: Entered with "preprocess", "segment" and "postprocess", each while that runs.
    """
    with stage("preprocess"):
        statistics_hu = statistics_hu or clipped_statistics(hu)
        network_spacing_mm = nearest_spacing(spacing_mm[1:], trained_spacing_mm)
        network_shape = resampled_shape(hu.shape, spacing_mm[1:], network_spacing_mm)
        network_hu = hu if network_shape == hu.shape else resample_in_plane(hu, network_shape, order=1)
    with stage("segment"):
        slices, slabs = 1, 1
        if trained_slice_mm is not None:
            slices = slices_per_slab(spacing_mm[0], trained_slice_mm)
            slabs = slabs_per_look(slices * spacing_mm[0])
        labels = segment(network_hu, statistics_hu, slices_per_slab=slices, slabs_per_look=slabs)
    with stage("postprocess"):
        remove_small_components(labels, min_region_px)
        if not keep_traces:
            remove_traces(labels, spacing_mm[0] * network_spacing_mm[0] * network_spacing_mm[1] / 1000)
        if network_shape != hu.shape:
            labels = resample_in_plane(labels, hu.shape, order=0)
    return Segmentation(labels, statistics_hu, network_spacing_mm, slices, slabs)
