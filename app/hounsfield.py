"""Whether a volume's numbers are HU; where they are HU on another scale beyond doubt, they are put right.

On the HU scale three things lie where physics has put them, whoever the patient is: air at -1000, fat at -100 and
soft tissue around 40. They are looked for in the volume's histogram as HU, and as each other scale that CTs are
known to come in. Figures called "seen" are of 60 CTs: abdomens, chests, heads and thighs, of many scanners.
"""

from typing import NamedTuple

import numpy as np

from app.errors import InputError

AIR_HU, CLIPPED_AIR_HU = -1000, -1024  # air peaks at the one; most scanners store nothing below the other
AIR_BAND_HU = (-1060, -940)  # holds both, and still does when all is 24 HU off
LUNG_TOP_HU = -600  # lungs lie below; between them and fat there is little but edges
BODY_HU = (-200, 300)  # fat, soft tissue, and what contrast agent fills; most of bone lies above
FAT_HU, SOFT_TISSUE_HU = (-200, -30), (20, 150)
BELOW_AIR_HU = -1300  # the noise of air ends here; below lies padding

LEAST_FAT = 0.02  # of the body; seen: 0.25 and more, and the skin's edge alone is as much
LEAST_SOFT_TISSUE = 0.05  # of the body; seen: 0.24 and more
MOST_BELOW_AIR = 0.05  # of all but padding, which is of one value; seen: none, but metal's streaks can go there
MOST_SATURATED = 0.01  # at the highest int16: more than metal ever fills
LEAST_CONTRAST_HU = 100  # from the 1st to the 99th percentile of blocks' means; seen: 200 and more


class Scale(NamedTuple):
    """Stored = factor * (HU + offset)."""

    factor: float
    offset: int
    words: str


class Limits(NamedTuple):
    """Least shares: of the body in all voxels, of the body in all that is denser than lung, of air in all voxels."""

    body: float
    body_without_lung: float
    air: float


HU = Scale(1, 0, "HU")
TENTH = Scale(0.1, 0, "HU / 10")
ODD_SCALES = (
    TENTH,
    Scale(10, 0, "HU x 10"),
    Scale(1, 1024, "HU + 1024, stored without its intercept"),  # -1024: DICOM's most common
    Scale(1, 8192, "HU + 8192, stored without its intercept"),
    Scale(1, -1024, "HU - 1024, its intercept applied twice"),
)
RARER = {  # instead of these, where air lies better so
    1024: Scale(1, 1000, "HU + 1000, stored without its intercept"),
    -1024: Scale(1, -1000, "HU - 1000, its intercept applied twice"),
}
BETTER_HU = 8  # by more than this: air's peak is found to a few HU
CERTAIN = Limits(0.10, 0.75, 0.01)  # seen where air is not clipped: 0.13, 0.81 and 0.22, or more
LIKELY = Limits(0.02, 0.50, 0.01)
PLAUSIBLE = Limits(0.02, 0.50, 0)  # of 3,000 boxes cut from the CTs at random 2 in 100 have less, the body's edges


def put_on_hu_scale(hu: np.ndarray) -> tuple[str, ...]:
    """Make a volume's numbers HU, in place, where it is certain how. Nearly always they are HU and left alone.

    Args:
        hu: int16 (z, y, x), at least one voxel.

    Returns:
        What was changed or is in doubt, one line each.

    Raises:
        InputError: With the cause alone: the numbers are not HU, or there is no body in them.
    """
    values = f"values from {hu.min()} to {hu.max()}"
    histogram = Histogram(hu)
    if histogram.shows_a_body(HU, CERTAIN):
        return ()
    others = [scale for scale in ODD_SCALES if histogram.shows_a_body(scale, LIKELY)]
    if histogram.shows_a_body(HU, PLAUSIBLE) and not _is_flat(hu):
        if others:
            raise InputError(f"{values}, which may be HU or {others[0].words}")
        if histogram.share(HU, *AIR_BAND_HU) < CERTAIN.air:
            return (f"no air at {AIR_HU} HU ({values}): not a CT, or its air was clipped away?",)
        return (f"little in it is fat or soft tissue ({values}): not HU, or hardly any body in view?",)
    if len(others) != 1 or not histogram.shows_a_body(others[0], CERTAIN):
        raise InputError(_cause(hu, histogram, values))
    if others == [TENTH]:
        raise InputError(f"{values}, which are {TENTH.words}: too coarse when they are rounded")
    scale = histogram.better_placed(others[0])
    _convert(hu, scale)
    return (f"{values} are {scale.words}: made HU (only so air, fat and soft tissue are at their places)",)


class Histogram:
    """Of int16 voxels (z, y, x): of some hundred rows and columns of each slice, which are enough."""

    def __init__(self, voxels: np.ndarray):
        step = max(1, min(voxels.shape[1:]) // 128)
        self._counts = np.zeros(2**16, np.int64)
        for plane in voxels[:, ::step, ::step]:
            self._counts += np.bincount(plane.ravel().view(np.uint16) ^ np.uint16(2**15), minlength=2**16)
        self._voxels = int(self._counts.sum())

    def shows_a_body(self, scale: Scale, limits: Limits) -> bool:
        """Whether the voxels look like a CT on that scale.

        Of the body and of all that is denser than lung the most frequent value is left out: little of a tissue has it,
        but on it lie clipped air and padding, where there are any.
        """
        tissue, denser, below = (
            self._counts_of(scale, *band) for band in (BODY_HU, (LUNG_TOP_HU, np.inf), (-np.inf, BELOW_AIR_HU))
        )
        body = (tissue.sum() - tissue.max()) / self._voxels
        padding = below.max(initial=0)
        return bool(
            body >= limits.body
            and tissue.sum() - tissue.max() >= limits.body_without_lung * (denser.sum() - denser.max())
            and self.share(scale, *AIR_BAND_HU) >= limits.air
            and self.share(scale, *FAT_HU) >= LEAST_FAT * body
            and self.share(scale, *SOFT_TISSUE_HU) >= LEAST_SOFT_TISSUE * body
            and below.sum() - padding <= MOST_BELOW_AIR * (self._voxels - padding)
            and self._counts[-1] <= MOST_SATURATED * self._voxels
        )

    def share(self, scale: Scale, low_hu: float, high_hu: float) -> float:
        """Of the voxels from low to below high, in all."""
        return float(self._counts_of(scale, low_hu, high_hu).sum()) / self._voxels

    def _counts_of(self, scale: Scale, low_hu: float, high_hu: float) -> np.ndarray:
        first, last = (int(np.clip(np.ceil(scale.factor * (hu + scale.offset)) + 2**15, 0, 2**16)) for hu in (low_hu, high_hu))
        return self._counts[first:last]

    def better_placed(self, scale: Scale) -> Scale:
        """The scale, or the rarer one that is 24 HU off if that puts air where it belongs."""
        rarer = RARER.get(scale.offset)
        if rarer and self._air_off_hu(rarer) + BETTER_HU < self._air_off_hu(scale):
            return rarer
        return rarer if scale.offset > 0 and self._air_peaks_at_zero() else scale

    def _air_off_hu(self, scale: Scale) -> int:
        """How far air is from its place: its peak from -1000 or the lowest voxels but padding from -1024."""
        counts = self._counts_of(scale, BELOW_AIR_HU, LUNG_TOP_HU)
        peak = BELOW_AIR_HU + int(np.convolve(counts, np.ones(9), "same").argmax())
        lowest = BELOW_AIR_HU + int(np.searchsorted(np.cumsum(counts), 0.001 * counts.sum()))  # but for outliers
        return min(abs(peak - AIR_HU), abs(lowest - CLIPPED_AIR_HU))

    def _air_peaks_at_zero(self) -> bool:
        """Whether values begin at 0 amid air's peak: it lies there in HU + 1000, and at 24 in HU + 1024."""
        zero, above_zero, around_24 = (self._counts[2**15 :][part].mean() for part in np.s_[:1, 1:9, 17:33])
        return zero > above_zero > 2 * around_24


def _convert(hu: np.ndarray, scale: Scale) -> None:
    for plane in hu:
        plane[...] = np.clip(np.rint(plane / scale.factor) - scale.offset, -(2**15), 2**15 - 1)


def _is_flat(hu: np.ndarray) -> bool:
    """Whether there is nothing but noise: the parts of a mean slice are alike."""
    mean = hu[:: -(-len(hu) // 8)].mean(axis=0)  # of eight slices, which is enough
    parts = [part for rows in np.array_split(mean, min(32, mean.shape[0])) for part in np.array_split(rows, min(32, rows.shape[1]), 1)]
    return bool(np.ptp(np.percentile([part.mean() for part in parts], (1, 99))) < LEAST_CONTRAST_HU)


def _cause(hu: np.ndarray, histogram: Histogram, values: str) -> str:
    if _is_flat(hu):
        return f"no body in it, or not HU: {values}, which but for noise are the same everywhere"
    if histogram.share(HU, BELOW_AIR_HU, LUNG_TOP_HU) > 1 - PLAUSIBLE.body:
        return f"no body in it: nearly all of it is air ({values})"
    return f"{values} are not HU: fat and soft tissue are not at -100 and 40"
