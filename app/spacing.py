"""Whether a volume has a person's size: a spacing that is not in mm is found, and made right where that is certain.

A file's unit is a convention that some programs do not keep, and NIfTI's own field for it is often wrong.
"""

from dataclasses import replace

import numpy as np

from app.errors import InputError
from app.geometry import Geometry

_LONGEST_MM = 2500.0  # a tall person with raised arms
_WIDEST_MM = 1000.0  # bores measure up to 900 mm
_NARROWEST_MM = 100.0  # a limb or a child; narrower slices are cut out of wider ones
_PIXEL_MM = (0.2, 5.0)  # 512 pixels over 100 mm; resampled for a coarse network
_SLICE_MM = (0.1, 60.0)  # scans thinned out for training have a slice every 50 mm
_POWERS = (10, 100, 1000, 0.1, 0.01, 0.001)  # cm, metres and microns, and slips of the decimal point


def checked_spacing(geometry: Geometry) -> tuple[Geometry, tuple[str, ...]]:
    """The geometry of a CT with its spacing in mm, and warnings.

    Parts of scans are taken as they are. What no person fills is taken at another power of ten, where that makes it a
    usual scan; no two powers do, because no usual slice is ten times as wide as another. The header of the mask stays
    in the file's unit, so that other programs lay it on the CT.

    Raises:
        InputError: No person has this size, and what was meant is not certain. The cause alone.
    """
    spacing_mm, size = np.array(geometry.spacing_mm), np.array(geometry.shape)
    if _is_usual(spacing_mm, spacing_mm * size):
        return geometry, ()
    field = f"a field of view of {_listed(spacing_mm * size)} mm in voxels of {_listed(spacing_mm)} mm"
    power = next((power for power in _POWERS if _is_usual(spacing_mm * power, spacing_mm * power * size)), None)
    if _is_possible(spacing_mm, spacing_mm * size):
        return geometry, (f"{field}: is its spacing in mm?",) if power else ()
    cubic = spacing_mm.max() < 1.01 * spacing_mm.min()
    if power is None or (cubic and power in (10, 100)):  # an animal's: micro-CT has cubic voxels
        raise InputError(f"{field} is no person's: its spacing must be wrong")
    spacing_mm *= power
    warning = f"{field} is no person's: voxels of {_listed(spacing_mm)} mm are assumed"
    return replace(geometry, spacing_mm=tuple(spacing_mm.tolist())), (warning,)


def _is_usual(spacing_mm: np.ndarray, sides_mm: np.ndarray) -> bool:
    """Whether it is a scan of a trunk, head or limb, whole in its slices, as scans are stored. Arguments: (z, y, x)."""
    limits = [_SLICE_MM, _PIXEL_MM, _PIXEL_MM, (0, _LONGEST_MM), *[(_NARROWEST_MM, _WIDEST_MM)] * 2]
    values = (*spacing_mm, *sides_mm)
    return all(low <= value <= high for value, (low, high) in zip(values, limits, strict=True))


def _is_possible(spacing_mm: np.ndarray, sides_mm: np.ndarray) -> bool:
    """Whether a scanner makes such voxels and a person is as large, whatever the axes are called."""
    _, second_mm, longest_mm = np.sort(sides_mm)
    too_fine = (spacing_mm[1:] < _PIXEL_MM[0]) & (sides_mm[1:] < _NARROWEST_MM)
    return bool(
        longest_mm <= _LONGEST_MM and second_mm <= _WIDEST_MM and spacing_mm[0] >= _SLICE_MM[0] and not too_fine.any()
    )


def _listed(zyx: np.ndarray) -> str:
    return " x ".join(f"{value:.3g}" for value in zyx[::-1])
