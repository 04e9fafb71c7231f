"""Changes to real scans that must not change the mask, or only a little. No truth is needed to count what they break.

The shipped weights, on the shipped example and on scans of FLARE22_CT_DIR where it is set. Counted as lost:
one of the 48 orientations of a scan whose mask, in world space, differs in more than 0.1 % of the voxels; a scan cut
in two, or all its HU moved by 10, whose mask differs in more than 1 % (the statistics of the z-score change with
both); a scan mirrored together with its header whose right and left kidney are not where they were.
"""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, ornt_transform

from app.labels import ORGANS
from tests.reliability.scans import ABDOMEN, RAS, agreement, example_part, real_scans, segmented, shipped_segmenter
from tests.reliability.trial import Row, main, row

ORIENTATIONS = [*itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))]
SAME_PERCENT, NEARLY_PERCENT = 99.9, 99.0
OFFSETS_HU = (-10, 10)
RIGHT_KIDNEY, LEFT_KIDNEY = (
    next(organ.label for organ in ORGANS if organ.abbreviation == abbreviation) for abbreviation in ("RK", "LK")
)


def trial(folder: Path, orientations: int = 48, scans: int = 5, slices: int = 24) -> Iterator[Row]:
    segmenter = shipped_segmenter()
    yield _orientations(segmenter, folder, orientations)
    yield from _scans(segmenter, folder, scans, slices)


def _orientations(segmenter, folder: Path, count: int) -> Row:
    array, affine = example_part(slice(ABDOMEN.start, ABDOMEN.stop, 2))
    expected = segmented(segmenter, folder, array, affine)
    problems, worst = [], 100.0
    for permutation, signs in ORIENTATIONS[:: len(ORIENTATIONS) // count]:
        turned, turned_affine = _turned(array, affine, permutation, signs)
        figure = agreement(segmented(segmenter, folder, turned, turned_affine), expected)
        worst = min(worst, figure["voxels, %"])
        problems.append([f"{permutation} {signs}: {figure}"] if figure["voxels, %"] < SAME_PERCENT else [])
    what = "another orientation of one scan: one mask in world space (99.9 % of the voxels)"
    return row(what, problems, **{"least agreement, %": worst})


def _turned(array: np.ndarray, affine: np.ndarray, permutation, signs) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels at the same places in the world, stored along other axes."""
    turn = ornt_transform(RAS, np.column_stack([permutation, signs]))
    return apply_orientation(array, turn), affine @ inv_ornt_aff(turn, array.shape)


def _scans(segmenter, folder: Path, count: int, slices: int) -> list[Row]:
    cut, moved, mirrored = [], [], []
    cut_figures, moved_figures = {}, {}
    names = []
    for name, array, affine in real_scans(count, slices):
        names.append(name)
        whole = segmented(segmenter, folder, array, affine)
        middle = array.shape[2] // 2
        halves = [segmented(segmenter, folder, half, affine) for half in (array[..., :middle], array[..., middle:])]
        cut_figures[name] = agreement(np.concatenate(halves, axis=2), whole)
        cut.append(_nearly(name, cut_figures[name]))
        for offset_hu in OFFSETS_HU:
            figure = agreement(segmented(segmenter, folder, array + np.int16(offset_hu), affine), whole)
            moved_figures[f"{name} {offset_hu:+d}"] = figure
            moved.append(_nearly(f"{name} {offset_hu:+d}", figure))
        turned = _turned(array, affine, (0, 1, 2), (-1, 1, 1))
        mirrored.append(_kidneys(name, whole, segmented(segmenter, folder, *turned)))
    return [
        row("a scan cut in two: nearly the parts of the whole (99 % of the voxels)", cut, scans=names, **cut_figures),
        row("all HU moved by 10: nearly the same mask (99 % of the voxels)", moved, **moved_figures),
        row("volume and header mirrored: right and left kidney stay where they were", mirrored, scans=names),
    ]


def _nearly(name: str, figure: dict[str, float]) -> list[str]:
    return [] if figure["voxels, %"] >= NEARLY_PERCENT else [f"{name}: {figure}"]


def _kidneys(name: str, before: np.ndarray, after: np.ndarray) -> list[str]:
    right, left = (np.argwhere(after == label) for label in (RIGHT_KIDNEY, LEFT_KIDNEY))
    if not len(right) or not len(left):
        return [f"{name}: a kidney is missing"]
    problem = [] if right[:, 0].mean() > left[:, 0].mean() else [f"{name}: the right kidney lies left of the left one"]
    for label, other in ((RIGHT_KIDNEY, LEFT_KIDNEY), (LEFT_KIDNEY, RIGHT_KIDNEY)):
        now = before[after == label]
        if np.count_nonzero(now == label) <= np.count_nonzero(now == other):
            problem.append(f"{name}: kidney {label} was {other}")
    return problem


if __name__ == "__main__":
    sys.exit(main(__spec__.name, trial))
