"""From a NIfTI header, of version 1 or 2, to what the image is.

Read by hand: a mask must carry the very bytes of its CT's geometry, and a header that lies must be
caught before memory is taken for it. A damaged field is made good where the others leave no doubt.
"""

import math
from dataclasses import dataclass

import numpy as np

from app.errors import InputError
from app.geometry import LPS_TO_RAS, SAME_AXES, cosines, is_invertible
from app.maskheader import mask_header_like
from app.niftifields import PAIR, fields_of

_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_REFUSED = {1: "1-bit", 32: "complex64", 128: "RGB", 1536: "float128", 1792: "complex128", 2048: "complex256"}
_REFUSED[2304] = "RGBA"
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # metres, microns; anything else is millimetres, as ITK takes it
_LAST_CODE = 5  # of the standard's coordinate systems


@dataclass(frozen=True)
class Header:
    """What an image file says of itself, whatever its format.

    Attributes:
        shape: Voxels per axis in the file's order, slowest first (k, j, i).
        dtype: Of one stored voxel, with its byte order.
        slope, inter: HU = slope * stored + inter.
        affine: (4, 4) float64, voxel (i, j, k) to RAS mm; finite, not singular.
        offsets: Bytes before the first voxel; several where the header does not say which, and the file's length must.
        compression: None, or "gzip" or "zlib" where the voxels alone are compressed.
        mask_header: The 352 bytes that stand before the voxels of a mask in this geometry.
        warnings: One line each, without the file's name.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    slope: float
    inter: float
    affine: np.ndarray
    offsets: tuple[int, ...]
    compression: str | None
    mask_header: bytes
    warnings: tuple[str, ...] = ()

    @property
    def voxel_bytes(self) -> int:
        """Of all voxels, decompressed."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse_nifti(raw: bytes) -> Header:
    """Header of a single-file NIfTI image, of either version and byte order.

    Args:
        raw: The first `NIFTI2_BYTES` of the file, decompressed, or all it has.

    Raises:
        InputError: With the cause alone: the caller knows the file.
    """
    header = fields_of(raw)
    shape = _shape(header["dim"].tolist())
    code, bitpix, size = (header[name].item() for name in ("datatype", "bitpix", "sizeof_hdr"))
    if code not in _DTYPES:
        raise InputError(f"voxels of type {_REFUSED.get(code, f'code {code}')} are not CT numbers")
    dtype = np.dtype(_DTYPES[code]).newbyteorder(header["dim"].dtype.byteorder)
    slope, inter, doubts = _scaling(header["scl_slope"].item(), header["scl_inter"].item())
    if bitpix != 8 * dtype.itemsize:
        doubts.append(f"bitpix {bitpix} contradicts the data type {dtype.name}: the data type is used")
    if size != header.dtype.itemsize:
        doubts.append(f"sizeof_hdr {size} is wrong: the magic number is that of a header of {header.dtype.itemsize}")
    with np.errstate(all="ignore"):  # damaged fields overflow; they are refused below
        form, repairs, form_doubts = _form(header)
        mask_header = mask_header_like(header, form if repairs else None)
    affine = np.eye(4)
    affine[:3] = form * mm_per_unit(header["xyzt_units"].item())
    warnings = (*repairs, *form_doubts, *doubts)
    return Header(shape, dtype, slope, inter, affine, _offsets(header, raw), None, mask_header, warnings)


def mm_per_unit(xyzt_units: int) -> float:
    """Length of the header's unit of space, by its field of that name."""
    return _MM_PER_UNIT.get(xyzt_units & 7, 1.0)


def _scaling(slope: float, inter: float) -> tuple[float, float, list[str]]:
    """Slope and intercept as they are used, and warnings."""
    if slope == 0 or not math.isfinite(slope):  # so the standard says "not scaled"
        if inter == 0 or not math.isfinite(inter):
            return 1.0, 0.0, []
        return 1.0, 0.0, [f"scl_inter {inter:g} is not used: scl_slope {slope:g} says that values are not scaled"]
    if not math.isfinite(inter):
        return slope, 0.0, [f"scl_inter is {inter:g}: 0 is used"]
    return slope, inter, []


def _shape(dim: list[int]) -> tuple[int, int, int]:
    if not 1 <= dim[0] <= 7:
        raise InputError(f"the header declares {dim[0]} dimensions")
    sizes = dim[1 : dim[0] + 1]
    if len(sizes) < 3 or max(sizes[3:], default=1) > 1:
        raise InputError(f"a {len(sizes)}-D image ({' x '.join(map(str, sizes))}), not one volume")
    if min(sizes[:3]) < 1 or max(sizes[:3]) >= 2**15:  # the mask is NIfTI-1, with sizes of int16
        raise InputError("the header declares a size of " + " x ".join(map(str, sizes)))
    return sizes[2], sizes[1], sizes[0]


def _offsets(header: np.ndarray, raw: bytes) -> tuple[int, ...]:
    """Where the voxels may begin: where vox_offset says, else behind the header, with or without four bytes between."""
    offset, end = header["vox_offset"].item(), header.dtype.itemsize
    if end + 4 <= offset < 2**31 and offset == int(offset) and not raw.startswith(PAIR, 344):
        return (int(offset),)
    return end, end + 4


def _form(header: np.ndarray) -> tuple[np.ndarray, list[str], list[str]]:
    """(3, 4) affine to RAS in the file's unit: sform, else qform, else what ITK assumes.

    Returns:
        The affine; what had to be repaired, so that the mask needs other fields than its CT has; what is doubtful.
    """
    qfac, *pixdim = header["pixdim"][:4].tolist()
    no_spacing = "voxel spacing " + " x ".join(f"{size:g}" for size in pixdim) + " is not positive"
    spaced = all(0 < size < math.inf for size in np.float32(pixdim))  # NaN is not; float32, as in the mask
    shift, sform = header["qoffset"].astype(np.float64), header["srow"].astype(np.float64)
    qform = np.column_stack([_rotation(header["quaternion"].tolist(), qfac) * pixdim, shift])
    forms = {"sform": sform, "qform": qform}
    codes = {name: code for name in forms if (code := header[f"{name}_code"].item()) > 0}
    if not codes and spaced:
        # nibabel would take axis j as running forward; ITK, which made most masks, takes it as running back.
        assumed = "no orientation in the header (sform and qform codes are 0): L, P, S assumed, as ITK does"
        return np.column_stack([LPS_TO_RAS * pixdim, np.zeros(3)]), [], [assumed]

    good = [name for name in codes if np.isfinite(np.float32(forms[name])).all() and is_invertible(forms[name])]
    if not spaced:  # nibabel reads a negative size in the qform as its absolute value, ITK turns the axis round
        good = [name for name in good if name != "qform"]
    if not good:
        raise InputError(no_spacing if not spaced else f"the {next(iter(codes))} is singular: it gives no orientation")
    name = min(good, key=lambda name: codes[name] > _LAST_CODE)
    repairs, doubts, form = [], [], forms[name]
    if not spaced:
        repairs.append(f"{no_spacing}: that of the {name} is used")
    elif np.abs(np.linalg.norm(form[:, :3], axis=0) / pixdim - 1).max() > 0.01:
        doubts.append(f"{name} and pixdim disagree on the voxel spacing: the {name} is used")
    repairs += [
        f"{odd}_code {code} is not one of the standard's: the {name} is used"
        for odd, code in codes.items()
        if code > _LAST_CODE
    ]
    if len(good) == 2:
        if np.abs(cosines(sform) - cosines(qform)).max() > SAME_AXES:
            doubts.append(f"sform and qform disagree on the orientation: the {name} is used")
        elif np.abs(sform[:, 3] - shift).max() > min(pixdim) / 2:  # half a voxel
            doubts.append(f"sform and qform disagree on the origin: the {name} is used")
    elif len(codes) == 2 and spaced:
        (other,) = codes.keys() - good
        repairs.append(f"the {other} is singular: the {name} is used")
    return form, repairs, doubts


def _rotation(quaternion: list[float], qfac: float) -> np.ndarray:
    """The standard's rotation, its third column turned round where qfac is negative; NaN where there is none."""
    b, c, d = quaternion
    squared = b * b + c * c + d * d
    if squared > 1.01:  # no unit quaternion has it
        return np.full((3, 3), np.nan)
    if 1.0 - squared < 1e-7:  # the standard's own threshold: half a turn, give or take float32's rounding
        a, length = 0.0, math.sqrt(squared)
        b, c, d = b / length, c / length, d / length
    else:  # also for NaN
        a = math.sqrt(1.0 - squared)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    rotation[:, 2] *= -1.0 if qfac < 0 else 1.0
    return rotation
