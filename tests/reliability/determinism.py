"""The same scan again: bit-equal under the same settings, nearly so under others.

The shipped weights, on 12 slices of the shipped example. Counted as lost: a run whose mask differs by a byte from
the first one's; a step size, number of threads or number format by which more than 0.1 % of the voxels change.
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from app.device import compute_dtype
from app.inference import segment_volume
from app.segment import segment
from benchmarks.machine import dtypes
from tests.reliability.runs import finish, masks, start
from tests.reliability.scans import ABDOMEN, agreement, example_part, shipped_segmenter
from tests.reliability.trial import Row, main, row

LEAST_PERCENT = 99.9


def trial(folder: Path, runs: int = 20, slices: int = 12) -> Iterator[Row]:
    array, affine = example_part(slice(ABDOMEN.start, ABDOMEN.start + slices))
    yield _bit_equal(folder, runs, array, affine)
    yield _other_settings(np.ascontiguousarray(array.T), tuple(np.diag(affine)[2::-1]))


def _bit_equal(folder: Path, runs: int, array: np.ndarray, affine: np.ndarray) -> Row:
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array), affine), folder / "ct.nii.gz")
    first, problems = None, []
    for number in range(runs):
        outputs = folder / f"out{number}"
        status = finish(start(folder / "ct.nii.gz", outputs))
        found = masks(outputs)
        first = first or found
        problems.append([] if status == 0 and found and found == first else [f"run {number}, status {status}: differs"])
    return row("the same run again: masks equal to the last byte", problems)


def _other_settings(hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> Row:
    weights, cpu = shipped_segmenter().weights, torch.device("cpu")
    shipped_dtype = compute_dtype(cpu)
    networks = {dtype: weights.network(cpu, dtype) for dtype in dtypes("cpu")}
    settings = [{"step": step} for step in (1, 2, 3, 4, 8, 12)]
    settings += [{"threads": threads} for threads in (1, 2, 3, 4)]
    settings += [{"dtype": dtype} for dtype in networks]

    def labels(step=2, threads=1, dtype=shipped_dtype):
        torch.set_num_threads(threads)
        segment_slices = partial(segment, networks[dtype], slices_per_step=step, frame_px=weights.frame_px)
        return segment_volume(segment_slices, hu, spacing_mm, weights.spacing_mm, weights.slice_mm).labels

    reference, problems, figures = labels(), [], {}
    threads = torch.get_num_threads()
    try:
        for setting in settings:
            ((name, value),) = setting.items()
            figure = agreement(labels(**setting), reference)
            problems.append([f"{setting}: {figure}"] if figure["voxels, %"] < LEAST_PERCENT else [])
            figures[f"{name} {str(value).removeprefix('torch.')}"] = figure
    finally:
        torch.set_num_threads(threads)
    reference_is = f"step 2, 1 thread, {str(shipped_dtype).removeprefix('torch.')}"
    what = "another step size, number of threads or number format: at least 99.9 % of the voxels the same"
    return row(what, problems, reference=reference_is, **figures)


if __name__ == "__main__":
    sys.exit(main(__spec__.name, trial))
