"""A scan of any size, made of a real one's slices: mirrored at each end, so that it has no seams."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np

EXAMPLE = Path(__file__).parents[1] / "examples" / "tcga_lihc_a3kf_art_0000.nii.gz"


def make_scan(
    path: Path,
    shape_zyx: tuple[int, int, int],
    source: Path = EXAMPLE,
    level: int = 6,
    slice_mm: float | None = None,
) -> None:
    """Write a CT.

    Args:
        path: .nii.gz to write.
        shape_zyx: Slices are the source's, up and down again as often as it takes; in plane its middle, or
            mirrored at its borders.
        source: Little-endian int16 NIfTI-1, .nii.gz.
        level: Of gzip.
        slice_mm: Thickness of the slices; None: the source's. Thinner ones repeat its slices: as long a body.

    Raises:
        ValueError: The source is of another kind.
    """
    content = gzip.decompress(source.read_bytes())
    _, width, height, depth = struct.unpack_from("<4h", content, 40)
    (data_type,), (offset,) = struct.unpack_from("<h", content, 70), struct.unpack_from("<f", content, 108)
    if (data_type, content[344:347]) != (4, b"n+1"):
        raise ValueError(f"{source}: not a little-endian int16 NIfTI-1 file")
    voxels = np.frombuffer(content, "<i2", depth * height * width, int(offset)).reshape(depth, height, width)
    header = bytearray(content[: int(offset)])
    struct.pack_into("<3h", header, 42, *reversed(shape_zyx))
    source_mm = struct.unpack_from("<f", content, 88)[0]
    thinner = slice_mm / source_mm if slice_mm else 1.0
    for offset in (88, 288, 304, 320):  # pixdim[3], and the third column of srow_x, srow_y, srow_z
        struct.pack_into("<f", header, offset, struct.unpack_from("<f", content, offset)[0] * thinner)
    z = mirrored(0, math.ceil(shape_zyx[0] * thinner), depth)[(np.arange(shape_zyx[0]) * thinner).astype(int)]
    y, x = (mirrored((have - want) // 2, want, have) for want, have in zip(shape_zyx[1:], (height, width), strict=True))
    with gzip.open(path, "wb", level) as file:
        file.write(header)
        for k in z:
            file.write(voxels[k][np.ix_(y, x)].tobytes())


def mirrored(start: int, count: int, size: int) -> np.ndarray:
    """`count` indices from `start` on, reflected into 0 .. size - 1; the ends come twice."""
    k = np.arange(start, start + count) % (2 * size)
    return np.minimum(k, 2 * size - 1 - k)
