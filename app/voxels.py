"""From stored voxels to int16 HU, block by block: the peak is the volume and one block."""

from collections.abc import Callable

import numpy as np

from app.errors import InputError
from app.nifti import Header
from app.stream import Stream

NO_NUMBER = -(2**15)  # for NaN and infinity; in int16 files it is padding as well
_BLOCK_BYTES = 1 << 20  # bytes of stored voxels converted at a time: stays in the cache, yet holds several slices


def fill(target: np.ndarray, header: Header, stream: Stream) -> None:
    """Decode all voxels into `target` (int16, the file's axes, slowest first); `NO_NUMBER` for NaN and infinity."""
    to_hu = _converter(header.dtype, header.slope, header.inter)
    blocks = blocks_of(target.shape, header.dtype.itemsize)
    buffer = bytearray(target[blocks[0]].size * header.dtype.itemsize)
    for block in blocks:
        place = target[block]
        raw = memoryview(buffer)[: place.size * header.dtype.itemsize]
        if stream.read_into(raw) < len(raw):
            raise InputError("truncated: it ends before its last voxel")
        place[...] = to_hu(np.frombuffer(raw, header.dtype)).reshape(place.shape)


def blocks_of(shape: tuple[int, ...], itemsize: int) -> list[tuple[slice, slice]]:
    """Cut an array, in the order of its memory, into pieces of about `_BLOCK_BYTES`: whole slices or rows of one."""
    slices, rows, columns = shape
    rows_per_block = max(1, _BLOCK_BYTES // (columns * itemsize))
    row_step, slice_step = min(rows, rows_per_block), max(1, rows_per_block // rows)
    return [
        (slice(k, k + slice_step), slice(j, j + row_step))
        for k in range(0, slices, slice_step)
        for j in range(0, rows, row_step)
    ]


def _converter(dtype: np.dtype, slope: float, inter: float) -> Callable[[np.ndarray], np.ndarray]:
    """The function from stored voxels (1-D, of `dtype`) to int16 HU, rounded and saturated, or `NO_NUMBER`."""

    def to_hu(stored: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            hu = stored.astype(np.float64) * slope + inter
        hu[~np.isfinite(hu)] = NO_NUMBER
        return np.clip(np.rint(hu, out=hu), -(2**15), 2**15 - 1, out=hu).astype(np.int16)

    native = dtype.newbyteorder("=")
    if native == np.int16 and (slope, inter) == (1, 0):
        return lambda stored: stored.astype(np.int16, copy=False)
    if native.itemsize <= 2:  # a table of all values is five times as fast as converting each voxel
        index = np.dtype(f"u{native.itemsize}")
        table = to_hu(np.arange(256**native.itemsize, dtype=index).view(native))
        return lambda stored: table[stored.astype(native, copy=False).view(index)]
    return to_hu
