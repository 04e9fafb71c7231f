"""Whether a volume's numbers are HU; numbers that are certainly HU on another scale are converted.

On the HU scale three things lie where physics has put them, whoever the patient is: air at -1000, fat at -100 and
soft tissue around 40. They are looked for in the volume's histogram as HU, and as each other scale that CTs are
known to come in. Figures called "seen" are of 60 CTs: abdomens, chests, heads and thighs, of many scanners.
"""

from typing import NamedTuple

import numpy as np

from app.errors import InputError

AIR_HU, CLIPPED_AIR_HU = -1000, -1024  # air peaks at the first; most scanners store nothing below the second
AIR_BAND_HU = (-1060, -940)  # holds both peaks, even 24 HU off their places
BELOW_AIR_HU = -1300  # the noise of air ends above it; below lies padding
LUNG_TOP_HU = -600  # lungs lie below; between them and fat there is little but edges
BODY_HU = (-200, 300)  # fat, soft tissue, and what contrast agent fills; most of bone lies above
FAT_HU, SOFT_TISSUE_HU = (-200, -30), (20, 150)

LEAST_FAT = 0.02  # of the body; seen: 0.25 and more, and the skin's edge alone is as much
LEAST_SOFT_TISSUE = 0.05  # of the body; seen: 0.24 and more
MOST_BELOW_AIR = 0.05  # of all but padding, which is of one value; seen: none, but metal's streaks can go there
MOST_SATURATED = 0.01  # of all, at the highest int16: more than metal ever fills
LEAST_CONTRAST_HU = 100  # between the darkest and the brightest parts of a mean slice; seen: 200 and more


class Limits(NamedTuple):
    """Least shares: of the body in all voxels, of the body in all that is denser than lung, of air in all voxels."""

    body: float
    body_in_denser: float
    air: float


CERTAIN = Limits(0.10, 0.75, 0.01)  # seen where air is not clipped: 0.13, 0.81 and 0.22, or more
LIKELY = Limits(0.05, 0.50, 0.01)
PLAUSIBLE = Limits(0.02, 0.50, 0)  # of boxes cut from the CTs at random, 2 in 100 have less, at the body's edges


class Scale(NamedTuple):
    """Stored = factor * (HU + offset)."""

    factor: float
    offset: int
    words: str


HU = Scale(1, 0, "HU")
TENTH = Scale(0.1, 0, "HU / 10")
ODD_SCALES = (
    TENTH,
    Scale(10, 0, "HU x 10"),
    Scale(1, 1024, "HU + 1024, stored without its intercept"),  # -1024: DICOM's most common
    Scale(1, 8192, "HU + 8192, stored without its intercept"),
    Scale(1, -1024, "HU - 1024, its intercept applied twice"),
)
RARER = {  # by the common offset: what it may be instead, if air then lies nearer its place
    1024: Scale(1, 1000, "HU + 1000, stored without its intercept"),
    -1024: Scale(1, -1000, "HU - 1000, its intercept applied twice"),
}
BETTER_HU = 8  # least gain to choose the rarer scale: air's peak is found to a few HU


def put_on_hu_scale(hu: np.ndarray) -> tuple[str, ...]:
    """Make a volume's numbers HU, in place, where it is certain how. Nearly always they are HU and left alone.

    Args:
        hu: int16 (z, y, x), at least one voxel.

    Returns:
        What was changed or is in doubt, in one line, or nothing.

    Raises:
        InputError: With the cause alone: the numbers are not HU, or there is no body in them.
    """
    histogram = Histogram(hu)
    if histogram.shows_a_body(HU, CERTAIN):
        return ()
    values = f"values from {hu.min()} to {hu.max()}"
    others = [scale for scale in ODD_SCALES if histogram.shows_a_body(scale, LIKELY)]
    if _is_flat(hu) and not others:
        raise InputError(f"no body in it, or not HU: {values}, which but for noise are the same everywhere")
    if histogram.shows_a_body(HU, PLAUSIBLE):
        if others:
            raise InputError(f"{values}, which may be HU or {others[0].words}")
        if histogram.share(HU, *AIR_BAND_HU) < CERTAIN.air:
            return (f"no air at {AIR_HU} HU ({values}): not a CT, or its air was clipped away?",)
        return (f"little in it is fat or soft tissue ({values}): not HU, or hardly any body in view?",)
    if len(others) != 1 or not histogram.shows_a_body(others[0], CERTAIN):
        if histogram.share(HU, BELOW_AIR_HU, LUNG_TOP_HU) > 1 - PLAUSIBLE.body:
            raise InputError(f"no body in it: nearly all of it is air ({values})")
        raise InputError(f"{values} are not HU: fat and soft tissue are not at -100 and 40")
    if others == [TENTH]:
        raise InputError(f"{values}, which are {TENTH.words}: too coarse when they are rounded")
    scale = histogram.better_placed(others[0])
    _convert(hu, scale)
    return (f"{values} are {scale.words}: made HU, for only so air, fat and soft tissue are at their places",)


class Histogram:
    """Of int16 voxels (z, y, x): of some hundred rows and columns of each slice, which are enough."""

    def __init__(self, voxels: np.ndarray) -> None:
        step = max(1, min(voxels.shape[1:]) // 128)
        self._counts = np.zeros(2**16, np.int64)  # of -2^15, ... 2^15 - 1
        for plane in voxels[:, ::step, ::step]:
            self._counts += np.bincount(plane.ravel().view(np.uint16) ^ np.uint16(2**15), minlength=2**16)
        self._voxels = int(self._counts.sum())

    def share(self, scale: Scale, low_hu: float, high_hu: float) -> float:
        """Of the voxels from low to below high, in all."""
        return float(self._counts_of(scale, low_hu, high_hu).sum()) / self._voxels

    def shows_a_body(self, scale: Scale, limits: Limits) -> bool:
        """Whether the voxels look like a CT on that scale.

        Of the body, and of all that is denser than lung, the most frequent value is left out: it makes little of a
        tissue, but it is where clipped air and padding lie, if there are any.
        """
        body, denser, below_air = (
            self._counts_of(scale, *band) for band in (BODY_HU, (LUNG_TOP_HU, np.inf), (-np.inf, BELOW_AIR_HU))
        )
        body, denser = body.sum() - body.max(), denser.sum() - denser.max()
        padding = below_air.max(initial=0)
        return bool(
            body >= limits.body * self._voxels
            and body >= limits.body_in_denser * denser
            and self._counts_of(scale, *AIR_BAND_HU).sum() >= limits.air * self._voxels
            and self._counts_of(scale, *FAT_HU).sum() >= LEAST_FAT * body
            and self._counts_of(scale, *SOFT_TISSUE_HU).sum() >= LEAST_SOFT_TISSUE * body
            and below_air.sum() - padding <= MOST_BELOW_AIR * (self._voxels - padding)
            and self._counts[-1] <= MOST_SATURATED * self._voxels
        )

    def better_placed(self, scale: Scale) -> Scale:
        """The scale, or the rarer one that is 24 HU off if that puts air where it belongs."""
        rarer = RARER.get(scale.offset)
        if rarer and self._air_off_hu(rarer) + BETTER_HU < self._air_off_hu(scale):
            return rarer
        return rarer if scale.offset > 0 and rarer and self._air_peaks_at_zero() else scale

    def _air_off_hu(self, scale: Scale) -> int:
        """How far air is from its place: its peak from -1000 or the lowest voxels but padding from -1024."""
        counts = self._counts_of(scale, BELOW_AIR_HU, LUNG_TOP_HU)
        peak = BELOW_AIR_HU + int(np.convolve(counts, np.ones(9), "same").argmax())
        lowest = BELOW_AIR_HU + int(np.searchsorted(np.cumsum(counts), 0.001 * counts.sum()))  # of all but outliers
        return min(abs(peak - AIR_HU), abs(lowest - CLIPPED_AIR_HU))

    def _air_peaks_at_zero(self) -> bool:
        """Whether values begin at 0 amid air's peak: it lies there in HU + 1000, and at 24 in HU + 1024."""
        zero, above_zero, around_24 = (self._counts[2**15 :][part].mean() for part in np.s_[:1, 1:9, 17:33])
        return bool(zero > above_zero > 2 * around_24)

    def _counts_of(self, scale: Scale, low_hu: float, high_hu: float) -> np.ndarray:
        first, last = np.clip(np.ceil(scale.factor * (np.array([low_hu, high_hu]) + scale.offset)) + 2**15, 0, 2**16)
        return self._counts[int(first) : int(last)]


def _convert(hu: np.ndarray, scale: Scale) -> None:
    stored = np.arange(2**16, dtype=np.uint16).view(np.int16)  # each value of int16 once
    to_hu = np.clip(np.rint(stored / scale.factor) - scale.offset, -(2**15), 2**15 - 1).astype(np.int16)
    for plane in hu:
        plane[...] = to_hu[plane.view(np.uint16)]


def _is_flat(hu: np.ndarray) -> bool:
    """Whether there is nothing but noise: all parts of a mean slice have about one value."""
    mean = hu[:: -(-len(hu) // 8)].mean(axis=0)  # of eight slices, which are enough
    parts = [
        part.mean()
        for rows in np.array_split(mean, min(32, mean.shape[0]))
        for part in np.array_split(rows, min(32, mean.shape[1]), axis=1)
    ]
    return bool(np.ptp(np.percentile(parts, (1, 99))) < LEAST_CONTRAST_HU)
