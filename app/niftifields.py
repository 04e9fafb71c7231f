"""Where the fields of a NIfTI header lie, in versions 1 and 2, and which version and byte order a header has."""

from typing import Literal

import numpy as np

from app.errors import InputError

NIFTI1_BYTES, NIFTI2_BYTES = 348, 540
MAGIC1, PAIR, MAGIC2 = b"n+1\0", b"ni1\0", b"n+2\0\r\n\x1a\n"

FIELDS = {  # type and offset in NIfTI-1, then in NIfTI-2
    "sizeof_hdr": ("i4", 0, "i4", 0),
    "dim": ("8i2", 40, "8i8", 16),
    "datatype": ("i2", 70, "i2", 12),
    "bitpix": ("i2", 72, "i2", 14),
    "pixdim": ("8f4", 76, "8f8", 104),
    "vox_offset": ("f4", 108, "i8", 168),
    "scl_slope": ("f4", 112, "f8", 176),
    "scl_inter": ("f4", 116, "f8", 184),
    "xyzt_units": ("u1", 123, "i4", 500),
    "cal_max": ("f4", 124, "f8", 192),
    "cal_min": ("f4", 128, "f8", 200),
    "qform_code": ("i2", 252, "i4", 344),
    "sform_code": ("i2", 254, "i4", 348),
    "quaternion": ("3f4", 256, "3f8", 352),
    "qoffset": ("3f4", 268, "3f8", 376),
    "srow": ("(3,4)f4", 280, "(3,4)f8", 400),
}
_TYPES1, _OFFSETS1, _TYPES2, _OFFSETS2 = zip(*FIELDS.values(), strict=True)
NIFTI1 = np.dtype({"names": list(FIELDS), "formats": _TYPES1, "offsets": _OFFSETS1, "itemsize": NIFTI1_BYTES})
NIFTI2 = np.dtype({"names": list(FIELDS), "formats": _TYPES2, "offsets": _OFFSETS2, "itemsize": NIFTI2_BYTES})


def fields_of(raw: bytes) -> np.ndarray:
    """The fields of a header, by name.

    Its magic number says that it is one, and of which version. Other readers believe the number of dimensions
    where `sizeof_hdr` does not say the byte order.

    Args:
        raw: The first `NIFTI2_BYTES` of the file, or all it has.

    Returns:
        Structured array without dimensions, of `NIFTI1` or `NIFTI2` in the header's byte order.

    Raises:
        InputError: With the cause alone: the caller knows the file.
    """
    if len(raw) < 4:
        raise InputError(f"{len(raw)} bytes are too few for a NIfTI header")
    little, big = int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")
    order_of_size: dict[int, Literal["<", ">"]] = {little: "<", big: ">"}
    for layout, magics, start in ((NIFTI1, (MAGIC1, PAIR), 344), (NIFTI2, (MAGIC2,), 4)):
        order = order_of_size.get(layout.itemsize)
        if order and len(raw) < layout.itemsize:
            raise InputError(f"ends after {len(raw)} bytes, inside the NIfTI header")
        if len(raw) >= layout.itemsize and raw.startswith(magics, start):
            if order is None:
                order = "<" if 1 <= np.ndarray((), layout, raw)["dim"][0] <= 7 else ">"
            return np.ndarray((), layout.newbyteorder(order), raw)
    if NIFTI1_BYTES in order_of_size:
        raise InputError("an Analyze header, or a damaged NIfTI-1 one (its magic number is missing)")
    raise InputError(f"not a NIfTI file (it starts with {raw[:4].hex(' ')})")
