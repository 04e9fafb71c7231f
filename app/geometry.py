"""Where voxels lie: a grid in the patient, and how it is turned to axes that run right, anterior, superior."""

from dataclasses import dataclass

import numpy as np

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
SAME_AXES = 1e-3  # largest difference between two direction cosines that are called equal


@dataclass(frozen=True)
class Geometry:
    """Where a volume lies, and all that is needed to write a mask in its file's own axes.

    Attributes:
        shape: Of the reoriented array, (z, y, x).
        spacing_mm: Of the reoriented array, (z, y, x).
        axes: Array axis (0, 1, 2 for z, y, x) of each file axis, slowest file axis first.
        flips: Whether each file axis, slowest first, runs against its array axis.
        mask_header: The 352 bytes that stand before the voxels of a mask.
        upright: Volume of a voxel over that of a box with its edges: below 1 where the grid is sheared (gantry tilt).
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    mask_header: bytes
    upright: float = 1.0

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel, in ml."""
        return float(np.prod(self.spacing_mm)) * self.upright / 1000.0

    def in_file_order(self, array: np.ndarray) -> np.ndarray:
        """View of a (z, y, x) array with the file's axes, slowest first."""
        return array.transpose(self.axes)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]


def geometry_of(
    shape: tuple[int, int, int], affine: np.ndarray, mask_header: bytes
) -> tuple[Geometry, tuple[str, ...]]:
    """The grid of a file, turned to its nearest axes, and warnings.

    The largest direction cosine is assigned first, then the largest that is left: so do ITK's `DICOMOrient` and
    nibabel.

    Args:
        shape: Voxels per axis in the file's order, slowest first (k, j, i).
        affine: (4, 4), voxel (i, j, k) to RAS mm; invertible.
        mask_header: As in `Geometry`.
    """
    directions = cosines(affine)  # (world x, y, z; file axis i, j, k)
    left = np.abs(directions)
    world_axis = [0, 0, 0]
    for _ in range(3):
        world, axis = np.unravel_index(left.argmax(), left.shape)
        world_axis[axis] = int(world)
        left[world, :] = left[:, axis] = -1
    i, j, k = world_axis
    axes = (2 - k, 2 - j, 2 - i)
    z, y, x = (axes.index(axis) for axis in range(3))  # the file axis of each array axis, slowest first
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[::-1].tolist()
    geometry = Geometry(
        shape=(shape[z], shape[y], shape[x]),
        spacing_mm=(spacing[z], spacing[y], spacing[x]),
        axes=axes,
        flips=(bool(directions[k, 2] < 0), bool(directions[j, 1] < 0), bool(directions[i, 0] < 0)),
        mask_header=mask_header,
        upright=float(abs(np.linalg.det(directions))),
    )
    if np.abs(directions.T @ directions - np.eye(3)).max() > SAME_AXES:
        return geometry, ("its axes are not at right angles: the nearest ones are used",)
    return geometry, ()


def cosines(affine: np.ndarray) -> np.ndarray:
    """(3, 3): unit direction of each voxel axis, in columns."""
    return affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)


def is_invertible(affine: np.ndarray) -> bool:
    """Whether three directions are finite and span space (a box of unit edges holds more than a thousandth)."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(lengths).all() or lengths.min() <= 0:
        return False
    return bool(abs(np.linalg.det(cosines(affine))) > 1e-3)
