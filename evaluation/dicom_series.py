"""The DICOM CT series that a mask lies on: found by its geometry, images paired with the mask's slices by position.

Files are known by their headers, whatever they are called and however they are sorted. Pixels are not read.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from highdicom.spatial import PixelToReferenceTransformer
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from app.cases import files_below
from app.dicomheader import looks_like_dicom
from app.geometry import LPS_TO_RAS, is_invertible
from evaluation.masks import Mask

MULTIFRAME_CLASSES = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
SHARED = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns")
SAME_PLACE_VOXELS = 0.25  # scanners round positions, some to 0.1 mm; an error of half a voxel must still be found


class SeriesError(ValueError):
    """A mask lies on no series, or on several. `str` is one line that names the files and the difference."""


class MaskOnSeries(NamedTuple):
    """A mask, cut into what each image of its series shows.

    Attributes:
        images: Headers of one series, without pixels: one a slice, each place once, or one multi-frame image.
        labels: (frames, rows, columns) uint8, of each image or of each frame of the multi-frame one.
        slice_spacing_mm: Between neighbouring frames, at right angles to them.
    """

    images: list[pydicom.Dataset]
    labels: np.ndarray
    slice_spacing_mm: float


def lay_on_series(mask: Mask, path: Path, number: int | None = None) -> MaskOnSeries:
    """Find the CT series whose voxels are the mask's, whatever the order and direction of the mask's axes.

    Args:
        mask: As `read_mask` gives it.
        path: A folder, flat or nested, with other series and other files in it or not; or one file.
        number: SeriesNumber, where several series have one grid, as two kernels of one scan have.

    Raises:
        SeriesError: No series fits, or several do.
    """
    if not path.exists():
        raise SeriesError(f"{path}: no such file or folder")
    candidates = [images for images in _find_series(path) if number in (None, _number(images))]
    if not candidates:
        raise SeriesError(f"{path}: no CT series" + ("" if number is None else f" with number {number}"))
    fitting, differences = [], []
    for images in candidates:
        try:
            fitting.append(_lay(mask, images))
        except SeriesError as difference:
            differences.append(f"series {_number(images)}: {difference}")
    if not fitting:
        raise SeriesError(f"{mask.path} does not lie on {path}: {'; '.join(differences)}")
    if len(fitting) > 1:
        numbers = [_number(on_series.images) for on_series in fitting]
        advice = f"choose one by its number ({', '.join(map(str, numbers))})"
        if None in numbers or len(set(numbers)) < len(numbers):
            folders = [str(Path(on_series.images[0].filename).parent) for on_series in fitting]
            advice = f"give the folder of one alone ({', '.join(folders)})"
        raise SeriesError(f"{mask.path} lies on {len(fitting)} series in {path}: {advice}")
    return fitting[0]


def _find_series(path: Path) -> list[list[pydicom.Dataset]]:
    """Headers of all CT images, by SeriesInstanceUID, sorted by path."""
    files = sorted(file for file in files_below(path) if file.is_file()) if path.is_dir() else [path]
    series: dict[str, list[pydicom.Dataset]] = {}
    for file in files:
        if header := _ct_header(file):
            series.setdefault(str(header.get("SeriesInstanceUID")), []).append(header)
    return list(series.values())


def _ct_header(file: Path) -> pydicom.Dataset | None:
    """The header of a CT image; None of a localizer, another object, another file or a damaged one.

    A damaged image does not go unnoticed: `_lay` then finds a slice of the mask without an image.
    """
    try:
        with open(file, "rb") as stream:
            if not looks_like_dicom(stream.read(132)):
                return None
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True)  # without a preamble too
        list(header)  # decodes every element, and so finds the damaged ones
        is_ct = header.SOPClassUID in (CTImageStorage, *MULTIFRAME_CLASSES)
        return header if is_ct and "LOCALIZER" not in (header.get("ImageType") or ()) else None
    except Exception:  # noqa: BLE001  # pydicom raises every kind
        return None


def _number(images: list[pydicom.Dataset]) -> int | None:
    return images[0].get("SeriesNumber")


def _lay(mask: Mask, images: list[pydicom.Dataset]) -> MaskOnSeries:
    """Compare both grids at three corners of every frame. A tilted gantry shears the mask as it does the series.

    Raises:
        SeriesError: With the difference alone.
    """
    _check_complete(images)
    corners_mm = _corners_mm(images)
    rows, columns = images[0].Rows, images[0].Columns
    frame_to_lps = np.eye(4)
    frame_to_lps[:3, 0] = (corners_mm[0, 1] - corners_mm[0, 0]) / columns
    frame_to_lps[:3, 1] = (corners_mm[0, 2] - corners_mm[0, 0]) / rows
    normal = np.cross(frame_to_lps[:3, 0], frame_to_lps[:3, 1])
    frame_to_lps[:3, 2] = normal / np.linalg.norm(normal)
    mask_to_lps = np.vstack([LPS_TO_RAS @ mask.affine[:3], mask.affine[3]])
    if not (is_invertible(frame_to_lps) and is_invertible(mask_to_lps)):
        raise SeriesError("its grid or the mask's has no orientation")

    turn = io_orientation(np.linalg.inv(frame_to_lps) @ mask_to_lps)
    labels = apply_orientation(mask.labels.T, turn).T  # (slice, row, column)
    to_lps = mask_to_lps @ inv_ornt_aff(turn, mask.labels.T.shape)  # from (column, row, slice)
    if labels.shape[1:] != (rows, columns):
        sizes = "{} x {} pixels, the mask's slices {} x {}".format(rows, columns, *labels.shape[1:])
        raise SeriesError(f"its images have {sizes}")
    found = (corners_mm - to_lps[:3, 3]) @ np.linalg.inv(to_lps[:3, :3]).T
    slices = np.rint(found[:, 0, 2]).clip(0, len(labels) - 1)
    expected = np.zeros_like(found)
    expected[:, 1, 0], expected[:, 2, 1], expected[:, :, 2] = columns, rows, slices[:, None]
    if not np.abs(found - expected).max() <= SAME_PLACE_VOXELS:  # not: a NaN fails every comparison
        apart_mm = np.linalg.norm((found - expected) @ to_lps[:3, :3].T, axis=2).max()
        raise SeriesError(f"its images lie up to {apart_mm:.3g} mm from the mask's slices")

    slices = slices.astype(int)
    places, first_at_place = np.unique(slices, return_index=True)
    if len(places) < len(labels):
        raise SeriesError(f"{len(labels) - len(places)} of the mask's {len(labels)} slices have no image")
    if len(images) > 1:  # an image that is there twice is referred to once
        slices, images = places, [images[i] for i in first_at_place]
        if len({image.SOPInstanceUID for image in images}) < len(images):
            raise SeriesError("several of its images have one SOPInstanceUID, which a segmentation refers to them by")
    elif len(places) < len(slices):
        raise SeriesError("some of its frames lie at one place")
    return MaskOnSeries(images, labels[slices], abs(float(to_lps[:3, 2] @ frame_to_lps[:3, 2])))


def _check_complete(images: list[pydicom.Dataset]) -> None:
    """Raise SeriesError unless the images make one series that a segmentation can refer to."""
    if lacking := [key for key in ("SOPInstanceUID", *SHARED) if not all(image.get(key) for image in images)]:
        raise SeriesError(f"an image has no {', '.join(lacking)}")
    if len({tuple(str(image[keyword].value) for keyword in SHARED) for image in images}) > 1:
        raise SeriesError("its images differ in size, study or frame of reference")
    if len(images) > 1 and any(image.SOPClassUID in MULTIFRAME_CLASSES for image in images):
        raise SeriesError(f"{len(images)} files, a multi-frame one among them: that must be the only one")


def _corners_mm(images: list[pydicom.Dataset]) -> np.ndarray:
    """(frame, corner, LPS): the first pixel's centre, and the centres one past the end of its row and of its column."""
    try:
        corners = np.array([[0, 0], [images[0].Columns, 0], [0, images[0].Rows]])  # (column, row)
        return np.array(
            [
                PixelToReferenceTransformer.for_image(image, frame)(corners)
                for image in images
                for frame in range(1, (image.get("NumberOfFrames") or 1) + 1)
            ]
        )
    except Exception:  # noqa: BLE001  # of the kind that the missing or damaged attribute brings
        raise SeriesError("an image has no position, orientation or pixel spacing") from None
