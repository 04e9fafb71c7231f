"""The 352 bytes before the voxels of a mask: a NIfTI-1 header, and four zero bytes that say "no extension"."""

import numpy as np

from app.geometry import SAME_AXES
from app.niftifields import FIELDS, MAGIC1, NIFTI1, NIFTI1_BYTES

VOXEL_OFFSET = 352


def mask_header_of(shape: tuple[int, int, int], affine: np.ndarray) -> bytes:
    """For an input that is not NIfTI: sform and qform, in mm.

    Args:
        shape: (k, j, i).
        affine: (4, 4), voxel (i, j, k) to RAS mm.
    """
    header = np.zeros((), NIFTI1)
    header["dim"] = 3, *shape[::-1], 1, 1, 1, 1
    header["pixdim"] = 1
    header["xyzt_units"] = 2  # mm
    return mask_header_like(header, affine[:3])


def mask_header_like(header: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    """For a NIfTI input: its own header with a mask's data type and scaling, of one volume.

    Every other byte of NIfTI-1 stays as it was. NIfTI-2 becomes NIfTI-1, which ITK reads too.

    Args:
        header: From `fields_of`.
        affine: (3, 4) to RAS in the header's unit, where its fields of geometry must be made anew; None where they
            are sound. A sheared grid gets a sform alone. ITK would lay the mask by the qform, which cannot be
            sheared, beside the patient; without a qform it refuses the mask.
    """
    raw = bytearray(header.tobytes() if header.dtype.itemsize == NIFTI1_BYTES else NIFTI1_BYTES)
    mask = np.ndarray((), NIFTI1.newbyteorder(header["dim"].dtype.byteorder), raw)
    with np.errstate(over="ignore"):
        for name in FIELDS:
            mask[name] = header[name]
    mask["sizeof_hdr"] = NIFTI1_BYTES
    mask["datatype"], mask["bitpix"] = 2, 8  # uint8
    mask["vox_offset"], mask["scl_slope"], mask["scl_inter"] = VOXEL_OFFSET, 1, 0
    mask["cal_max"] = mask["cal_min"] = 0  # the CT's display window does not fit labels
    raw[140:148] = bytes(8)  # glmax, glmin
    raw[344:348] = MAGIC1
    if mask["dim"][0] > 3:  # the others have a size of 1; programs expect masks of three dimensions
        mask["dim"][0], mask["dim"][4:] = 3, 1
    if affine is not None:
        spacing = np.linalg.norm(affine[:, :3], axis=0)
        u, _, vt = np.linalg.svd(affine[:, :3] / spacing)
        rotation = u @ vt
        qfac = 1.0 if np.linalg.det(rotation) > 0 else -1.0
        sheared = np.abs(rotation * spacing - affine[:, :3]).max() > SAME_AXES * spacing.max()
        mask["pixdim"][:4] = qfac, *spacing
        mask["qform_code"], mask["sform_code"] = not sheared, 1
        mask["quaternion"], mask["qoffset"] = _quaternion(rotation * [1, 1, qfac]), affine[:, 3]
        mask["srow"] = affine
    return bytes(raw) + bytes(VOXEL_OFFSET - NIFTI1_BYTES)


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
