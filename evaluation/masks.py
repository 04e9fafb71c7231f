"""Read a label mask: whole numbers 0..13 on the grid of its CT, checked before anything is scored.

Voxels keep the order of the file, whatever its orientation, as the organizers take them: their third
array axis is our first one (nibabel's x, y, z seen as z, y, x, without a copy).
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from app.labels import NUM_CLASSES
from app.nifti import mm_per_unit

_NIBABEL_ERRORS = (ImageFileError, HeaderDataError, WrapStructError)
SAME_PLACE_VOXELS = 0.1  # two grids agree if no corner of one lies further from the other's: headers are float32


class MaskError(ValueError):
    """A mask that cannot be scored. `str` is one line that names the file or files and the cause."""


class Mask(NamedTuple):
    """A label mask as it lies in its file.

    Attributes:
        path: The file, for messages.
        labels: (z, y, x) uint8, 0 (background) to 13; C-contiguous.
        spacing_mm: Of the array's axes, (z, y, x).
        affine: (4, 4) float64, voxel (x, y, z) to RAS mm.
    """

    path: Path
    labels: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray


def read_mask(path: Path) -> Mask:
    """Read a NIfTI mask (.nii.gz or .nii) whole, checksum included.

    Raises:
        MaskError: The file is missing, no NIfTI, truncated or damaged, not one volume (further dimensions must be
            of size 1), without voxels, their size or their place, or holds anything but whole numbers from 0 to 13.
    """
    opener = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rb") as stream:
            image = nibabel.Nifti1Image.from_stream(stream)
            proxy: Any = image.dataobj  # an ArrayProxy; nibabel's types know less
            stored = proxy.get_unscaled()
            stream.read()  # to the end: only there gzip's checksum is compared
    except FileNotFoundError:
        raise MaskError(f"{path}: no such file") from None
    except (OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error, *_NIBABEL_ERRORS) as error:
        raise MaskError(f"{path}: cannot be read as NIfTI ({error or 'not enough memory'})") from error
    if stored.ndim < 3 or max(stored.shape[3:], default=1) > 1:
        raise MaskError(f"{path}: a mask has 3 dimensions, this file has {stored.ndim}: {stored.shape}")
    if stored.size == 0:
        raise MaskError(f"{path}: it has no voxels: {stored.shape}")
    mm = mm_per_unit(int(image.header["xyzt_units"]))
    # The decimal that was meant is converted, not the float32 beside it: a distance may be the very tolerance.
    x_mm, y_mm, z_mm = (float(np.float32(float(str(zoom)) * mm)) for zoom in image.header.get_zooms()[:3])
    spacing_mm = (z_mm, y_mm, x_mm)
    if not all(0 < length < math.inf for length in spacing_mm):
        raise MaskError(f"{path}: its voxels measure {' x '.join(f'{length:g}' for length in spacing_mm[::-1])} mm")
    affine = image.affine.copy()
    affine[:3] *= mm
    if not np.isfinite(affine).all():
        raise MaskError(f"{path}: its header does not say where its voxels lie")
    labels = _to_labels(stored.reshape(stored.shape[:3]).T, proxy.slope, proxy.inter, path)
    return Mask(path, labels, spacing_mm, affine)


def _to_labels(stored: np.ndarray, slope: float, inter: float, path: Path) -> np.ndarray:
    """Stored voxels (z, y, x) of any real type to uint8 labels, slice by slice."""
    if stored.dtype.kind not in "iuf":
        raise MaskError(f"{path}: not a mask: its voxels are {stored.dtype}, a mask holds whole numbers")
    scaled = (slope, inter) != (1, 0)
    labels = np.empty(stored.shape, np.uint8)
    for into, values in zip(labels, stored, strict=True):
        values = values * slope + inter if scaled else values
        lowest, highest = values.min(), values.max()
        if not (lowest >= 0 and highest < NUM_CLASSES):  # not: a NaN fails every comparison
            found = f"a slice holds values from {lowest:g} to {highest:g}, a mask holds 0 to {NUM_CLASSES - 1}"
            raise MaskError(f"{path}: not a mask of the organs: {found} (is this a CT?)")
        into[...] = values
        if values.dtype.kind == "f" and (into != values).any():
            value = values[into != values][0]
            raise MaskError(f"{path}: not a mask: it holds {value:g}, a mask holds whole numbers")
    return labels


def check_same_grid(prediction: Mask, truth: Mask) -> None:
    """Raise MaskError naming both files unless their voxels lie in the same places."""
    if prediction.labels.shape == truth.labels.shape:
        apart_mm = corners_apart_mm(prediction.affine, truth.affine, truth.labels.shape[::-1])
        if apart_mm <= SAME_PLACE_VOXELS * min(truth.spacing_mm):
            return
    raise MaskError(
        f"{prediction.path} and {truth.path} differ in geometry: {_describe(prediction)} and {_describe(truth)}"
    )


def corners_apart_mm(one: np.ndarray, other: np.ndarray, shape: tuple[int, int, int]) -> float:
    """The largest distance between corresponding corners of two grids.

    Args:
        one, other: (4, 4), voxel index to mm.
        shape: Number of voxels of both grids along each axis of the index.

    Returns:
        mm; NaN where an affine holds one.
    """
    corners = np.indices((2, 2, 2)).reshape(3, 8) * np.reshape(shape, (3, 1))
    return float(np.linalg.norm((one - other)[:3] @ np.vstack([corners, np.ones(8)]), axis=0).max())


def _describe(mask: Mask) -> str:
    shape, spacing = ("x".join(f"{n:g}" for n in reversed(along)) for along in (mask.labels.shape, mask.spacing_mm))
    origin = ", ".join(f"{mm:g}" for mm in mask.affine[:3, 3])
    return f"{shape} voxels of {spacing} mm, {''.join(map(str, nibabel.aff2axcodes(mask.affine)))} from ({origin})"
