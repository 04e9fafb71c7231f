"""The 348 bytes of a NIfTI-1 header: from bytes to what an image is, and to the header of its mask.

Read by hand: a mask must carry the very bytes of its CT's geometry, and a header that lies must be
caught before memory is taken for it.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np

from app.errors import InputError
from app.geometry import LPS_TO_RAS, SAME_AXES, cosines, is_invertible

HEADER_BYTES = 348
VOXEL_OFFSET = 352  # of a mask: the header and four zero bytes that say "no extension"

_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_REFUSED = {1: "1-bit", 32: "complex64", 128: "RGB", 1536: "float128", 1792: "complex128", 2048: "complex256"}
_REFUSED[2304] = "RGBA"
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # metres, microns; anything else is millimetres, as ITK takes it


@dataclass(frozen=True)
class Header:
    """What an image file says of itself, whatever its format.

    Attributes:
        shape: Voxels per axis in the file's order, slowest first (k, j, i).
        dtype: Of one stored voxel, with its byte order.
        slope, inter: HU = slope * stored + inter.
        affine: (4, 4) float64, voxel (i, j, k) to RAS mm; finite, not singular.
        offset: Bytes before the first voxel.
        compression: None, or "gzip" or "zlib" where the voxels alone are compressed.
        mask_header: The 352 bytes that stand before the voxels of a mask in this geometry.
        warnings: One line each, without the file's name.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    slope: float
    inter: float
    affine: np.ndarray
    offset: int
    compression: str | None
    mask_header: bytes
    warnings: tuple[str, ...] = ()


def parse_nifti(raw: bytes) -> Header:
    """Header of a single-file NIfTI-1 image, of either byte order.

    Args:
        raw: The first 348 bytes of the file, decompressed.

    Raises:
        InputError: With the cause alone: the caller knows the file.
    """
    order = _byte_order(raw)

    def field(code: str, at: int) -> tuple:
        return struct.unpack_from(order + code, raw, at)

    shape = _shape(field("8h", 40))
    code, bitpix = field("2h", 70)
    if code not in _DTYPES:
        raise InputError(f"voxels of type {_REFUSED.get(code, f'code {code}')} are not CT numbers")
    dtype = np.dtype(order + _DTYPES[code])
    if bitpix != 8 * dtype.itemsize:
        raise InputError(f"bitpix {bitpix} contradicts the data type {dtype.name}")

    qfac, *pixdim = field("4f", 76)
    if not all(0 < size < math.inf for size in pixdim):  # also false for NaN
        raise InputError("voxel spacing " + " x ".join(f"{size:g}" for size in pixdim) + " is not positive")
    offset, slope, inter = field("3f", 108)
    if not VOXEL_OFFSET <= offset < 2**31 or offset != int(offset):
        raise InputError(f"vox_offset {offset:g} is not a place behind the header")
    if slope == 0 or not math.isfinite(slope):
        slope, inter = 1.0, 0.0  # the standard's word for "not scaled"
    if not math.isfinite(inter):
        raise InputError(f"scl_inter is {inter:g}")

    affine, warnings = _affine(field, qfac, pixdim)
    return Header(shape, dtype, slope, inter, affine, int(offset), None, _mask_header(raw, order), warnings)


def mask_header_of(shape: tuple[int, int, int], affine: np.ndarray) -> bytes:
    """The 352 bytes before a mask's voxels, for an input that is not NIfTI: sform and qform, in mm.

    A sheared grid gets a sform alone. ITK would lay the mask by the qform, which cannot be sheared, beside the
    patient; without a qform it refuses the mask.

    Args:
        shape: (k, j, i).
        affine: (4, 4), voxel (i, j, k) to RAS mm.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    u, _, vt = np.linalg.svd(affine[:3, :3] / spacing)
    rotation = u @ vt
    qfac = 1.0 if np.linalg.det(rotation) > 0 else -1.0
    raw = bytearray(HEADER_BYTES)
    struct.pack_into("<i", raw, 0, HEADER_BYTES)
    struct.pack_into("<8h", raw, 40, 3, *shape[::-1], 1, 1, 1, 1)
    struct.pack_into("<8f", raw, 76, qfac, *spacing, 1, 1, 1, 1)
    raw[123] = 2  # mm
    sheared = np.abs(rotation * spacing - affine[:3, :3]).max() > SAME_AXES * spacing.max()
    struct.pack_into("<2h", raw, 252, 0 if sheared else 1, 1)
    struct.pack_into("<6f", raw, 256, *_quaternion(rotation * [1, 1, qfac]), *affine[:3, 3])
    struct.pack_into("<12f", raw, 280, *affine[:3].ravel())
    return _mask_header(bytes(raw), "<")


def _byte_order(raw: bytes) -> str:
    if len(raw) < 4:
        raise InputError(f"{len(raw)} bytes are too few for a NIfTI header")
    sizes = {order: struct.unpack_from(order + "i", raw)[0] for order in "<>"}
    if 540 in sizes.values():
        raise InputError("NIfTI-2 is not supported: convert it to NIfTI-1")
    order = next((order for order in "<>" if sizes[order] == HEADER_BYTES), None)
    if order is None:
        raise InputError(f"not a NIfTI-1 file (it starts with {raw[:4].hex(' ')})")
    if len(raw) < HEADER_BYTES:
        raise InputError(f"ends after {len(raw)} bytes, inside the NIfTI header")
    magic = raw[344:348]
    if magic == b"ni1\0":
        raise InputError("a header of a .hdr/.img pair: convert it to one .nii.gz file")
    if magic != b"n+1\0":
        raise InputError("an Analyze header, or a damaged NIfTI-1 one (its magic number is missing)")
    return order


def _shape(dim: tuple[int, ...]) -> tuple[int, int, int]:
    if not 1 <= dim[0] <= 7:
        raise InputError(f"the header declares {dim[0]} dimensions")
    sizes = dim[1 : dim[0] + 1]
    if min(sizes) < 1:
        raise InputError("the header declares a size of " + " x ".join(map(str, sizes)))
    if len(sizes) < 3 or max(sizes[3:], default=1) > 1:
        raise InputError(f"a {len(sizes)}-D image ({' x '.join(map(str, sizes))}), not one volume")
    return sizes[2], sizes[1], sizes[0]


def _affine(field, qfac: float, pixdim: list[float]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(4, 4) RAS affine in mm, and warnings: sform, else qform, else what ITK assumes."""
    qform_code, sform_code = field("2h", 252)
    sform = np.array(field("12f", 280), np.float64).reshape(3, 4)
    quaternion, shift = field("3f", 256), field("3f", 268)
    qform = np.column_stack([_rotation(quaternion, qfac) * pixdim, shift])
    warnings = []
    if sform_code > 0:
        chosen, name = sform, "sform"
        comparable = qform_code > 0 and is_invertible(qform) and is_invertible(sform)
        if comparable and np.abs(cosines(sform) - cosines(qform)).max() > SAME_AXES:
            warnings.append("sform and qform disagree on the orientation: the sform is used")
    elif qform_code > 0:
        chosen, name = qform, "qform"
    else:
        # nibabel would take axis j as running forward; ITK, which made most masks, takes it as running back.
        chosen, name = np.column_stack([LPS_TO_RAS * pixdim, np.zeros(3)]), "pixdim"
        warnings.append("no orientation in the header (sform and qform codes are 0): L, P, S assumed, as ITK does")
    if not np.isfinite(chosen).all() or not is_invertible(chosen):
        raise InputError(f"the {name} is singular: it gives no orientation")
    if np.abs(np.linalg.norm(chosen[:, :3], axis=0) / pixdim - 1).max() > 0.01:
        warnings.append(f"{name} and pixdim disagree on the voxel spacing: the {name} is used")
    affine = np.eye(4)
    affine[:3] = chosen * mm_per_unit(field("B", 123)[0])
    return affine, tuple(warnings)


def mm_per_unit(xyzt_units: int) -> float:
    """Length of the header's unit of space, by its field of that name."""
    return _MM_PER_UNIT.get(xyzt_units & 7, 1.0)


def _rotation(quaternion: tuple[float, float, float], qfac: float) -> np.ndarray:
    """The standard's rotation of (b, c, d), its third column turned round where qfac is negative."""
    b, c, d = quaternion
    squared = b * b + c * c + d * d
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


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """(b, c, d) of a proper rotation, for a >= 0: the largest column of 4 q q^T, which never divides by zero."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    outer = np.array(
        [
            [1 + xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, 1 + xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, 1 - xx + yy - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, 1 - xx - yy + zz],
        ]
    )
    column = outer[:, np.argmax(np.diag(outer))]
    quaternion = column / np.linalg.norm(column)
    return quaternion[1:] * (-1.0 if quaternion[0] < 0 else 1.0)


def _mask_header(raw: bytes, order: str) -> bytes:
    """The header with a mask's data type and scaling; every byte of geometry as it was."""
    mask = bytearray(raw)
    struct.pack_into(order + "2h", mask, 70, 2, 8)  # uint8
    struct.pack_into(order + "3f", mask, 108, VOXEL_OFFSET, 1, 0)
    struct.pack_into(order + "2f", mask, 124, 0, 0)  # cal_max, cal_min: no viewer's window of the CT
    struct.pack_into(order + "2i", mask, 140, 0, 0)  # glmax, glmin
    mask[344:348] = b"n+1\0"
    return bytes(mask) + bytes(VOXEL_OFFSET - HEADER_BYTES)
