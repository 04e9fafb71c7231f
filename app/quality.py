"""What a mask is worth: `ok`, `look` or `implausible`, with reasons, by rules of anatomy.

The rules know what the network does not: a whole body, its organs' order and their sizes. They were made for adults
and for masks of a whole or a part of an abdomen; an organ that is absent is never implausible by itself, for it may
have been taken out. What is unusual in a living patient is `look`, what no patient has is `implausible`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from app.labels import NUM_CLASSES, ORGANS
from app.measure import Measure
from app.plausible import mark

VERDICTS = OK, LOOK, IMPLAUSIBLE = "ok", "look", "implausible"

# Cross-section of the body. 330 cm2 is a circle of 64 cm, more than a head; measured around what was "found": 84 to
# 267 cm2 in heads and thighs, 373 to 1,190 in parts of abdomens, down to 2 cm long.
TRUNK_CM2 = 330
SPINE_CM2 = 5  # of bone in it; measured there: none in a phantom, 0 to 8 in thighs, 7 to 123 in parts of abdomens
# Pairs of organs that stand in order: no head has so many by chance. Then a slim patient or a child is believed.
PAIRS_IN_ORDER = 10
# Gas within 30 mm of the liver's top, along the body: measured at least 220 cm2 in a slice where all that is in view.
LUNG_CM2, LUNG_REACH_MM = 20, 30
LIVER_ML = 100  # less may be a speck in a pelvis: wrong, yet no reason to condemn the rest
MISPLACED_MM = 10  # less may come of organs that the first or last slice cuts
MISPLACED = 3  # organs: one may be a speck, or a kidney that never rose from the pelvis
PIECES_APART_MM = 50  # no slice that was missed breaks an organ so far
PIECE_SHARE = 0.1  # of the largest piece; less is a speck
SOLID_HU = (-50, 300)  # between fat and dense contrast; measured in livers, kidneys and spleens: 0 to 235

_LIVER, _RK, _SPLEEN, _PANCREAS, _AORTA, _IVC, _RAG, _LAG, _GALLBLADDER, _ESOPHAGUS, _STOMACH, _DUODENUM, _LK = (
    organ.label for organ in ORGANS
)
# Organs' centres along each array axis: from right to left, from front to back, from top to bottom. Each organ of a
# group stands before each of the later groups, by at least 11 mm in all of 45 label maps (FLARE22, BTCV, AMOS,
# TotalSegmentator).
_ORDER = {
    2: ((_LIVER, _RK, _GALLBLADDER), (_IVC,), (_AORTA,), (_LK,), (_SPLEEN,)),
    1: ((_LIVER, _PANCREAS, _STOMACH), (_RK, _LK, _SPLEEN)),
    0: ((_ESOPHAGUS,), (_LIVER, _SPLEEN), (_RK, _LK)),
}
_SOLID = (_LIVER, _RK, _SPLEEN, _LK)
_TUBES = (_AORTA, _IVC, _ESOPHAGUS)  # they go on outside the scan; their ranges are of the abdominal part
_DOUBTFUL = (_GALLBLADDER, _DUODENUM)  # taken out in many patients; hardly known to the shipped weights

_CELL_MM = (5, 4, 4)  # (z, y, x): shapes are judged on a coarse grid, which takes a tenth of a second
_AIR_HU, _GAS_HU, _BONE_HU = -200, -400, 200  # fat is above the first, lung and bowel gas are below the second
_IN_SLICE = np.zeros((3, 3, 3), bool)
_IN_SLICE[1] = True


class Quality(NamedTuple):
    """A verdict on a mask, `OK`, `LOOK` or `IMPLAUSIBLE`, and why, one plain line each; an `OK` mask may have notes."""

    verdict: str
    reasons: tuple[str, ...]


_Findings = Iterator[tuple[str, str]]  # (verdict, reason)


class _Scan(NamedTuple):
    """A scan on the coarse grid: uint8 labels and int16 HU (z, y, x)."""

    labels: np.ndarray
    hu: np.ndarray
    spacing_mm: tuple[float, float, float]


def assess(
    labels: np.ndarray, hu: np.ndarray, spacing_mm: tuple[float, float, float], measures: dict[int, Measure]
) -> Quality:
    """Judge a mask.

    Args:
        labels: uint8 (z, y, x), 0..13; axes run up, forward and to the patient's right.
        hu: int16 (z, y, x), the CT.
        spacing_mm: (z, y, x).
        measures: Of this mask, by `measure_organs`.
    """
    scan = _coarse(labels, hu, spacing_mm)
    body_cm2, gas_cm2, bone_cm2 = _cross_sections(scan)
    pairs, misplaced = _order(scan)
    found = [
        *([] if pairs >= PAIRS_IN_ORDER and not misplaced else _no_abdomen(scan.labels, body_cm2, bone_cm2)),
        *_no_lung(scan, gas_cm2, measures[_LIVER].ml),
        *_out_of_place(misplaced),
        *_in_pieces(scan),
        *_organ_by_organ(measures, len(labels)),
    ]
    worst = max((verdict for verdict, _ in found), key=VERDICTS.index, default=OK)
    # In a mask that cannot be right, all other findings follow from that.
    return Quality(worst, tuple(reason for verdict, reason in found if verdict == worst or worst != IMPLAUSIBLE))


def _coarse(labels: np.ndarray, hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> _Scan:
    z, y, x = (max(1, round(cell / size)) for cell, size in zip(_CELL_MM, spacing_mm, strict=True))
    labels, hu = np.ascontiguousarray(labels[::z, ::y, ::x]), np.ascontiguousarray(hu[::z, ::y, ::x])
    return _Scan(labels, hu, (z * spacing_mm[0], y * spacing_mm[1], x * spacing_mm[2]))


def _cross_sections(scan: _Scan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the largest body in each slice: area in cm2 with all that it encloses, and areas of gas and of bone in it."""
    air_hu = max(_AIR_HU, int(scan.hu.min()))  # where air was clipped away, it has the lowest value
    solid = ndimage.binary_opening(scan.hu > air_hu, np.ones((1, 2, 2)))  # without table, tubes and noise
    parts, _ = ndimage.label(solid, _IN_SLICE)
    body = np.array([plane == np.bincount(plane[plane > 0], minlength=1).argmax() for plane in parts]) & solid
    beside, _ = ndimage.label(~body, _IN_SLICE)
    outside = np.zeros(beside.max() + 1, bool)
    for edge in (beside[:, 0], beside[:, -1], beside[:, :, 0], beside[:, :, -1]):
        outside[edge] = True
    outside[0] = False  # the body, where it reaches the edge
    body = ~outside[beside]
    gas, bone = body & (scan.hu <= max(_GAS_HU, air_hu)), body & (scan.hu > _BONE_HU)
    cell_cm2 = scan.spacing_mm[1] * scan.spacing_mm[2] / 100
    return tuple(np.count_nonzero(part, axis=(1, 2)) * cell_cm2 for part in (body, gas, bone))


def _no_abdomen(labels: np.ndarray, body_cm2: np.ndarray, bone_cm2: np.ndarray) -> _Findings:
    weights = np.count_nonzero(labels, axis=(1, 2))
    if not weights.any():
        weights = np.ones_like(weights)
    median_cm2, median_bone_cm2 = (np.median(np.repeat(area, weights)) for area in (body_cm2, bone_cm2))
    where = "where organs were found" if labels.any() else "in the median slice"
    if median_cm2 < TRUNK_CM2:
        yield IMPLAUSIBLE, f"no abdomen in view: the body's cross-section is {median_cm2:.0f} cm2 {where}"
    elif median_bone_cm2 < SPINE_CM2:
        yield IMPLAUSIBLE, f"no abdomen in view: no spine {where}"


def _no_lung(scan: _Scan, gas_cm2: np.ndarray, liver_ml: float) -> _Findings:
    slices = np.flatnonzero((scan.labels == _LIVER).any(axis=(1, 2)))
    if liver_ml < LIVER_ML or not len(slices):
        return
    top, reach = slices[-1], round(LUNG_REACH_MM / scan.spacing_mm[0])
    if top + reach < len(gas_cm2) and gas_cm2[max(0, top - reach) : top + reach + 1].max() < LUNG_CM2:
        yield IMPLAUSIBLE, "no lung above the liver, though the scan goes on there"


def _order(scan: _Scan) -> tuple[int, list[int]]:
    """How many pairs of `_ORDER` are in view, and the fewest organs without which all others stand in order."""
    places = np.nonzero(scan.labels)
    organs = scan.labels[places]
    voxels = np.bincount(organs, minlength=NUM_CLASSES)
    centres_mm = [  # [axis][label]
        np.bincount(organs, place * mm, NUM_CLASSES) / np.maximum(voxels, 1)
        for place, mm in zip(places, scan.spacing_mm, strict=True)
    ]
    pairs = [
        (axis, one, other)
        for axis, groups in _ORDER.items()
        for before, after in combinations(groups, 2)
        for one, other in product(before, after)
        if voxels[one] and voxels[other]
    ]
    wrong = [
        (one, other) for axis, one, other in pairs if centres_mm[axis][one] < centres_mm[axis][other] - MISPLACED_MM
    ]
    misplaced = []
    while wrong:
        counts = Counter(organ for pair in wrong for organ in pair)
        misplaced.append(max(counts, key=lambda label: (counts[label], -voxels[label])))
        wrong = [pair for pair in wrong if misplaced[-1] not in pair]
    return len(pairs), misplaced


def _out_of_place(misplaced: list[int]) -> _Findings:
    if len(misplaced) >= MISPLACED:
        yield IMPLAUSIBLE, f"on the wrong side of other organs, as if mirrored or upside down: {_names(misplaced)}"
    elif misplaced:
        yield LOOK, f"on the wrong side of other organs: {_names(misplaced)}"


def _in_pieces(scan: _Scan) -> _Findings:
    for label, box in enumerate(ndimage.find_objects(scan.labels, NUM_CLASSES - 1), start=1):
        if box is None:
            continue
        pieces, _ = ndimage.label(scan.labels[box] == label, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces[pieces > 0])[1:]
        large = sizes >= PIECE_SHARE * sizes.max()
        boxes = [piece for piece, is_large in zip(ndimage.find_objects(pieces), large, strict=True) if is_large]
        if any(_gap_mm(one, other, scan.spacing_mm) > PIECES_APART_MM for one, other in combinations(boxes, 2)):
            yield LOOK, f"in pieces far apart: {_names([label])}"


def _gap_mm(one: tuple[slice, ...], other: tuple[slice, ...], spacing_mm: tuple[float, float, float]) -> float:
    """Between two boxes of slices, along the axis that parts them most; negative if they overlap."""
    axes = zip(one, other, spacing_mm, strict=True)
    return max(max(a.start - b.stop, b.start - a.stop) * mm for a, b, mm in axes)


def _organ_by_organ(measures: dict[int, Measure], slices: int) -> _Findings:
    present = {label: organ for label, organ in measures.items() if organ.voxels}
    if not present.keys() & set(_SOLID):
        yield LOOK, "no liver, kidney or spleen found" if present else "no organ found"
    cut = [label for label, organ in present.items() if organ.first_slice == 0 or organ.last_slice == slices - 1]
    odd = {label: mark(label, organ.ml, 0, label in cut) for label, organ in present.items() if label not in _TUBES}
    for label, word in odd.items():
        if word and label != _DUODENUM:
            yield LOOK, f"{word} {_names([label])}: {present[label].ml:.1f} ml"
    for label in _SOLID:
        mean_hu = measures[label].mean_hu
        if mean_hu is not None and not SOLID_HU[0] <= mean_hu <= SOLID_HU[1]:
            yield LOOK, f"{_names([label])} of {mean_hu:.0f} HU"
    whole = {label for label, word in odd.items() if not word and label not in cut}
    expected = set(measures) - set(_DOUBTFUL) if _LIVER in whole else set()
    expected |= {_RK, _LK} if whole & {_RK, _LK} else set()
    if missing := sorted(expected - set(present)):
        yield LOOK, f"not found beside organs that are whole in view: {_names(missing)}"
    if ends := [label for label in cut if label not in _TUBES]:
        yield OK, f"cut off by the first or last slice: {_names(ends)}"


def _names(labels: Iterable[int]) -> str:
    return ", ".join(ORGANS[label - 1].name for label in labels)
