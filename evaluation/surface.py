"""Normalised surface dice (NSD), as google-deepmind/surface-distance defines it, several times as fast.

The surface of a mask lies between voxel centres. Every 2x2x2 block of neighbouring voxels, of which some
are inside and some outside, holds one surface element: its place is the block's centre, its area that of
the marching-cubes triangles through the block. A surface element counts as found when the other mask has
an element within the tolerance, whatever the areas; NSD is the area found over all area, of both masks.

That library measures the distance from everywhere to everywhere. Here an element that both surfaces have
in common is found without a search (it is most of them), and the rest ask a k-d tree no further than the
tolerance.
"""

from collections.abc import Iterable
from itertools import permutations, product

import numpy as np
from scipy.spatial import KDTree

# Directions of a triangle's normal: the axes along which it has a component; all components are equally large.
_NORMALS = ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))

# Bit of each corner in a block's code, by its place in the block.
_CORNER_BITS = np.array([[[128, 64], [32, 16]], [[8, 4], [2, 1]]])

# Marching cubes knows 14 shapes; turning, mirroring and exchanging inside and outside gives all 256 codes.
# For each: code -> {axes of the normal: size of the normal's components, in eighths of a voxel's face},
# triangles of one direction added up.
_SHAPES: dict[int, dict[tuple[int, ...], int]] = {
    0b00000000: {},
    0b00000001: {(0, 1, 2): 1},  # one corner
    0b00000011: {(0, 1): 4},  # two along an edge,
    0b00000110: {(0, 1, 2): 2},  # across a face,
    0b00011000: {(0, 1, 2): 2},  # across the block
    0b00000111: {(0,): 4, (0, 1, 2): 3},  # three of a face,
    0b00011001: {(1, 2): 4, (0, 1, 2): 1},  # an edge and the far corner,
    0b00010110: {(0, 1, 2): 3},  # no two on an edge
    0b00001111: {(0,): 8},  # four: a face,
    0b00010111: {(0, 1, 2): 6},  # a corner and its neighbours,
    0b00011011: {(0, 2): 2, (1, 2): 2, (0, 1, 2): 4},  # a path of three edges,
    0b00011110: {(0,): 4, (0, 1, 2): 4},  # three of a face and one apart,
    0b00111100: {(0, 1): 8},  # two edges apart,
    0b01101001: {(0, 1, 2): 4},  # every other corner
}


def _normals_of_all_codes() -> np.ndarray:
    """Sizes of the normals' components in eighths, by code and direction: (256, 7) float64."""
    eighths = np.zeros((256, len(_NORMALS)))
    for code, sizes in _SHAPES.items():
        inside = (code & _CORNER_BITS) > 0
        for axes, mirrored in product(permutations(range(3)), product((1, -1), repeat=3)):
            turned = inside.transpose(axes)[tuple(slice(None, None, step) for step in mirrored)]
            turned_code = int(_CORNER_BITS[turned].sum())
            for normal, size in sizes.items():
                direction = _NORMALS.index(tuple(sorted(axes.index(axis) for axis in normal)))
                eighths[[turned_code, 255 - turned_code], direction] = size
    return eighths


_EIGHTHS = _normals_of_all_codes()


def surface_areas_mm2(spacing_mm: Iterable[float]) -> np.ndarray:
    """Area of the surface element of each of the 256 block codes.

    Args:
        spacing_mm: Voxel spacing along the three axes.

    Returns:
        (256,) float64; 0 for the codes 0 and 255, which are no surface.
    """
    x, y, z = (float(s) for s in spacing_mm)
    faces = np.array([y * z, x * z, x * y])  # a voxel's faces, by the axis of their normal
    return _EIGHTHS @ [np.sqrt((faces[list(axes)] ** 2).sum()) / 8 for axes in _NORMALS]


def block_codes(mask: np.ndarray) -> np.ndarray:
    """Which corners of each 2x2x2 block are inside, one bit a corner.

    Args:
        mask: (x, y, z) bool; outside the array there is background.

    Returns:
        (x + 1, y + 1, z + 1) uint8: blocks are centred on the corners of the voxels.
    """
    codes: np.ndarray = np.pad(mask.view(np.uint8), 1)
    codes = codes[:, :, :-1] << 1 | codes[:, :, 1:]
    codes = codes[:, :-1] << 2 | codes[:, 1:]
    return codes[:-1] << 4 | codes[1:]


def normalised_surface_dice(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: Iterable[float], tolerance_mm: float
) -> float:
    """Share of both surfaces, by area, that lies within the tolerance of the other one.

    Args:
        prediction, truth: (x, y, z) bool, or the axes in any other order.
        spacing_mm: Voxel spacing along the three axes, in their order.
        tolerance_mm: Largest distance that counts as agreement.

    Returns:
        0..1; 0 if one mask is empty, NaN if both are.

    Raises:
        ValueError: The masks are not bool, not three-dimensional or not of one shape, or the spacing is not
            three positive numbers.
    """
    check_masks(prediction, truth)
    axes_mm = np.array([float(spacing) for spacing in spacing_mm])
    if axes_mm.shape != (3,) or not (axes_mm > 0).all():
        raise ValueError(f"spacing_mm must be three positive numbers, got {axes_mm.tolist()}")
    areas_mm2 = surface_areas_mm2(axes_mm)
    codes = [block_codes(mask) for mask in (prediction, truth)]
    surfaces = [(code != 0) & (code != 255) for code in codes]
    shared = surfaces[0] & surfaces[1]
    total_mm2 = agreeing_mm2 = 0.0
    for code, surface, other in zip(codes, surfaces, reversed(surfaces), strict=True):
        element_mm2 = areas_mm2[code[surface]]
        agrees = shared[surface]  # distance 0
        agrees[~agrees] = _near(surface & ~shared, other, axes_mm, tolerance_mm)
        total_mm2 += element_mm2.sum()
        agreeing_mm2 += element_mm2[agrees].sum()
    return float(agreeing_mm2 / total_mm2) if total_mm2 else float("nan")


def _near(asking: np.ndarray, other: np.ndarray, spacing_mm: np.ndarray, tolerance_mm: float) -> np.ndarray:
    """For each True of `asking`, in array order: is there a True of `other` within the tolerance? Returns 1-D bool."""
    elements, targets = _indices(asking), _indices(other)
    near = np.zeros(len(elements), bool)
    if not len(elements) or not len(targets):
        return near
    tree = KDTree(targets * spacing_mm, leafsize=32, balanced_tree=False, compact_nodes=False)
    reach_mm = tolerance_mm + 1e-6  # the tree wants "closer than"; the tolerance itself still counts
    _, nearest = tree.query(elements * spacing_mm, distance_upper_bound=reach_mm)
    found = np.flatnonzero(nearest < len(targets))
    # Measured again from whole steps, as the library does: an exact tolerance must not be lost to rounding.
    steps_mm = (elements[found] - targets[nearest[found]]) * spacing_mm
    near[found] = np.sqrt((steps_mm**2).sum(axis=1)) <= tolerance_mm
    return near


def _indices(where: np.ndarray) -> np.ndarray:
    """Indices of the True elements, in array order: (n, 3). argwhere, six times as fast."""
    return np.stack(np.unravel_index(np.flatnonzero(where), where.shape), axis=1)


def check_masks(prediction: np.ndarray, truth: np.ndarray) -> None:
    """Raise ValueError unless both are bool volumes of one shape."""
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != bool or mask.ndim != 3:
            raise ValueError(f"{name} must be a 3-dimensional bool array, got {mask.ndim} dimensions of {mask.dtype}")
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth differ in shape: {prediction.shape} and {truth.shape}")
