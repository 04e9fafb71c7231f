"""From the planes of a CT series to one grid: sorted by position, checked to be even, laid as dcm2niix lays it.

Only ImagePositionPatient and ImageOrientationPatient tell where a plane lies (DICOM PS3.3, C.7.6.2): not the order of
files or instance numbers, nor SliceThickness, which differs from the spacing wherever slices overlap or lie apart.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from app.dicomheader import DicomHeader
from app.errors import InputError
from app.geometry import LPS_TO_RAS, SAME_AXES

_UNEVEN = 0.01  # of the spacing: a position this far from an even place is rounded, or even enough
_ROUNDING_MM = 0.05  # positions are often written with one decimal
_SAME_PLACE = 0.01  # of the spacing: nearer planes lie at one place
_LEAST_TILT_DEGREES = 0.1  # a smaller angle comes of rounded directions
# Of an enhanced CT's frames; each holds one item, with the elements that a classic CT has at its top.
_MACROS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
)
_AXIAL = 0.7  # least cosine between a slice's normal and the body's axis: 45 degrees, gantries tilt by 30 at most


@dataclass(frozen=True)
class Frame:
    """One image plane of a series.

    Attributes:
        file: Index of its file among the series' files.
        index: Of the plane in its file.
        position_mm: (3,) centre of its first pixel, LPS.
        axes: (2, 3) unit vectors along a row (to higher columns) and down a column (to higher rows), LPS.
        spacing_mm: (2,) between rows, between columns.
        shape: Rows, columns.
        slope, intercept: HU = slope * stored + intercept.
        rescaled: Whether the file gives an intercept; else it is 0.
        acquisition: AcquisitionNumber as it stands; "" without one.
    """

    file: int
    index: int
    position_mm: np.ndarray
    axes: np.ndarray
    spacing_mm: np.ndarray
    shape: tuple[int, int]
    slope: float
    intercept: float
    rescaled: bool
    acquisition: str

    @cached_property
    def normal(self) -> np.ndarray:
        """(3,) unit vector across the plane, LPS."""
        return np.cross(*self.axes)

    @property
    def is_axial(self) -> bool:
        """Whether the normal lies within 45 degrees of the body's axis."""
        return bool(abs(self.normal[2]) >= _AXIAL)


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a series lie.

    Attributes:
        places: The planes at each k; more than one where files are there twice.
        shape: Voxels per axis, slowest first (k, j, i).
        affine: (4, 4), voxel (i, j, k) to RAS mm: i runs along rows, j up columns, k along the planes' normal.
        warnings: One line each.
    """

    places: tuple[tuple[Frame, ...], ...]
    shape: tuple[int, int, int]
    affine: np.ndarray
    warnings: tuple[str, ...]


def frames_of(header: DicomHeader, file: int = 0) -> list[Frame]:
    """The planes of one object: one of a classic CT image, those of its functional groups of an enhanced one.

    Args:
        header: Of the object.
        file: Goes into `Frame.file`.

    Raises:
        InputError: A plane does not say where it lies, or says nonsense.
    """
    per_frame = header.items("PerFrameFunctionalGroupsSequence")
    if not per_frame:
        if header.number("NumberOfFrames", 1) != 1:
            raise InputError("several frames without a position of each")
        return [_frame([header], header, file, 0)]
    if len(per_frame) != header.number("NumberOfFrames", 1):
        raise InputError("its NumberOfFrames is not the number of its frames' descriptions")
    shared = header.items("SharedFunctionalGroupsSequence")
    return [
        _frame([item for group in (one, *shared) for macro in _MACROS for item in group.items(macro)], header, file, k)
        for k, one in enumerate(per_frame)
    ]


def _frame(places: list[DicomHeader], header: DicomHeader, file: int, index: int) -> Frame:
    """A plane from the headers that describe it, the most particular first."""

    def first(keyword: str, count: int) -> np.ndarray:
        found = (numbers for place in places if (numbers := place.numbers(keyword, count)) is not None)
        if (numbers := next(found, None)) is None:
            raise InputError(f"it has no {keyword}: where it lies is not known")
        return np.array(numbers)

    axes = first("ImageOrientationPatient", 6).reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > SAME_AXES:
        raise InputError("its ImageOrientationPatient is not two directions at a right angle")
    spacing_mm = first("PixelSpacing", 2)
    if spacing_mm.min() <= 0:
        raise InputError("its PixelSpacing is not positive")
    shape = (header.unsigned("Rows", 0), header.unsigned("Columns", 0))
    if min(shape) < 1:
        raise InputError("its Rows or Columns are missing")
    slopes = (place.number("RescaleSlope", 0) for place in places)
    intercepts = [number for place in places for number in place.numbers("RescaleIntercept", 1) or ()]
    return Frame(
        file=file,
        index=index,
        position_mm=first("ImagePositionPatient", 3),
        axes=axes / np.linalg.norm(axes, axis=1, keepdims=True),
        spacing_mm=spacing_mm,
        shape=shape,
        slope=next(filter(None, slopes), 1.0),
        intercept=next(iter(intercepts), 0.0),
        rescaled=bool(intercepts),
        acquisition=header.text("AcquisitionNumber"),
    )


def grid_of(frames: list[Frame]) -> Grid:
    """The one grid that planes of a series make.

    Gantry tilt shifts each slice against the one before it: the grid is then sheared, and stays so. The network sees
    slices one by one, each as it was scanned; resampling them upright would blur them, and the mask would no longer
    have the series' own voxels.

    Raises:
        InputError: They do not make one: of different sizes, spacing or orientation, missing, uneven, too few.
    """
    first = frames[0]
    for name, values, tolerance in (
        ("sizes", [frame.shape for frame in frames], 0),
        ("pixel spacings", [frame.spacing_mm for frame in frames], 1e-3),
        ("orientations", [frame.axes.ravel() for frame in frames], SAME_AXES),
    ):
        if np.abs(np.array(values) - values[0]).max() > tolerance:
            found = sorted({" x ".join(f"{number:g}" for number in value) for value in values})
            raise InputError(f"its images have {len(found)} different {name}: {found[0]} and {found[1]}")
    if len({frame.rescaled for frame in frames}) > 1:
        raise InputError("some of its images have a RescaleIntercept, others have none")
    heights_mm = np.array([frame.position_mm @ first.normal for frame in frames])
    order = np.argsort(heights_mm, kind="stable")
    places = [tuple(frames[index] for index in place) for place in np.split(order, _breaks(heights_mm[order]))]
    if len(places) < 2:
        raise InputError("all its images lie at one place: no volume")
    positions_mm = np.array([place[0].position_mm for place in places])
    if any(
        np.linalg.norm(frame.position_mm - place[0].position_mm) > _ROUNDING_MM for place in places for frame in place
    ):
        raise InputError("some of its images lie side by side at one height")
    acquisitions = [place[0].acquisition for place in places if place[0].acquisition]
    if 1 + sum(one != next_one for one, next_one in pairwise(acquisitions)) > max(1, len(set(acquisitions))):
        raise InputError("images of one acquisition lie between those of another: several scans in one?")
    warnings = _check_even(positions_mm, first.normal)
    if len(frames) > len(places):
        warnings.append(f"{len(frames) - len(places)} images are there twice: each is used once")

    step_mm = (positions_mm[-1] - positions_mm[0]) / (len(places) - 1)
    row_mm, column_mm = first.axes * first.spacing_mm[::-1, None]  # along a row: the spacing between columns
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ np.column_stack([row_mm, -column_mm, step_mm])
    affine[:3, 3] = LPS_TO_RAS @ (positions_mm[0] + (first.shape[0] - 1) * column_mm)
    cosine = step_mm @ first.normal / np.linalg.norm(step_mm)
    tilt_degrees = np.degrees(np.arccos(min(1.0, cosine)))
    if tilt_degrees > _LEAST_TILT_DEGREES:
        warnings.append(f"gantry tilt of {tilt_degrees:.1f} degrees: the mask is sheared as the slices are (sform)")
    return Grid(tuple(places), (len(places), *first.shape), affine, tuple(warnings))


def _breaks(heights_mm: np.ndarray) -> np.ndarray:
    """Where, in sorted heights, the planes of the next place begin."""
    gaps_mm = np.diff(heights_mm)
    spacing_mm = np.median(gaps_mm[gaps_mm > _ROUNDING_MM]) if (gaps_mm > _ROUNDING_MM).any() else np.inf
    return np.flatnonzero(gaps_mm > _SAME_PLACE * spacing_mm) + 1


def _check_even(positions_mm: np.ndarray, normal: np.ndarray) -> list[str]:
    """Warnings; raises InputError where the places do not lie evenly on a line."""
    steps = np.linspace(0, 1, len(positions_mm))[:, None]
    even_mm = positions_mm[0] + steps * (positions_mm[-1] - positions_mm[0])
    heights_mm = positions_mm @ normal
    gaps_mm = np.diff(heights_mm)
    spacing_mm = float(np.median(gaps_mm))
    off_mm = float(np.linalg.norm(positions_mm - even_mm, axis=1).max())
    if off_mm <= max(_UNEVEN * spacing_mm, _ROUNDING_MM):
        return [f"its slices are up to {off_mm:.2f} mm from even places: evened"] if off_mm > _ROUNDING_MM else []
    in_steps = gaps_mm / spacing_mm
    missing = int(np.rint(in_steps).sum()) - len(gaps_mm)
    if missing > 0 and np.abs(in_steps - np.rint(in_steps)).max() < 0.1:
        raise InputError(
            f"slices are missing ({missing}): gaps of up to {gaps_mm.max():g} mm, the others {spacing_mm:g} mm"
        )
    if gaps_mm.max() - gaps_mm.min() > max(_UNEVEN * spacing_mm, _ROUNDING_MM):
        raise InputError(f"its slices are unevenly spaced: {gaps_mm.min():g} to {gaps_mm.max():g} mm")
    raise InputError(f"its slices do not lie one above the other: up to {off_mm:.1f} mm off a straight line")
