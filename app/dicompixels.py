"""The pixels of a DICOM file, plane by plane, in HU: plain numbers are read here, compressed ones by GDCM."""

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from app.dicomgrid import Frame
from app.dicomheader import BIG_ENDIAN, EXPLICIT, IMPLICIT, ITEM, SEQUENCE_END, UNDEFINED, DicomHeader
from app.errors import InputError
from app.gdcm import DecodeError, Decoder

_AIR_HU = -1024
_SCANNED_HU = (-1024, 3071)  # what 12 bits hold; a padding value in this range may be tissue, so it is left


def read_planes(
    path: Path, file: BinaryIO, header: DicomHeader, frames: Sequence[Frame], decoder: Decoder
) -> Iterator[np.ndarray]:
    """Yield the planes one by one.

    Args:
        path: Of the file; GDCM opens it by its name.
        file: The same file, open.
        header: Its header.
        frames: The planes that are wanted, in the order they are to come.
        decoder: For compressed pixels.

    Yields:
        int16 HU (row, column), rounded and saturated; pixels that were not scanned (PixelPaddingValue) are air.

    Raises:
        InputError: With the cause alone: the caller knows the file.
    """
    pixels = header.pixels
    if pixels is None:
        raise InputError("it has no pixels")
    if header.items("ModalityLUTSequence"):
        raise InputError("its HU are given by a table (Modality LUT): not supported")
    plain = header.text("TransferSyntaxUID") in (IMPLICIT, EXPLICIT, BIG_ENDIAN)
    planes = (
        _plain_planes(file, header, pixels, frames)
        if plain
        else _compressed_planes(file, header, pixels, frames, path, decoder)
    )
    for frame, hu in zip(frames, planes, strict=True):
        hu = np.clip(np.rint(hu), -(2**15), 2**15 - 1).astype(np.int16)
        padding_hu = _padding_hu(header, frame)
        if padding_hu is not None:
            hu[hu == padding_hu] = _AIR_HU
        yield hu


def _plain_planes(
    file: BinaryIO, header: DicomHeader, place: tuple[int, int], frames: Sequence[Frame]
) -> Iterator[np.ndarray]:
    allocated, stored = header.unsigned("BitsAllocated", 16), header.unsigned("BitsStored", 16)
    high = header.unsigned("HighBit", stored - 1)
    if allocated not in (8, 16) or not 0 < stored <= high + 1 <= allocated:
        raise InputError(f"pixels of {stored} bits in {allocated}, the highest at {high}, are not supported")
    endian = ">" if header.text("TransferSyntaxUID") == BIG_ENDIAN else "<"
    unsigned = np.dtype(f"{endian}u{allocated // 8}")
    kind = "i" if header.unsigned("PixelRepresentation", 0) else "u"
    at, size = place
    plane_bytes = unsigned.itemsize * frames[0].shape[0] * frames[0].shape[1]
    available = min(size, os.fstat(file.fileno()).st_size - at)
    declared = plane_bytes * int(header.number("NumberOfFrames", 1))
    if available < declared:
        raise InputError(f"truncated: {available} of the {declared} bytes of its pixels")
    for frame in frames:
        file.seek(at + frame.index * plane_bytes)
        pixels = np.frombuffer(file.read(plane_bytes), unsigned).astype(unsigned.newbyteorder("="))
        pixels = pixels << (allocated - 1 - high)  # the bits above may hold overlays, in older files
        values = pixels.view(f"{kind}{allocated // 8}") >> (allocated - stored)
        yield values.reshape(frame.shape) * frame.slope + frame.intercept


def _compressed_planes(
    file: BinaryIO,
    header: DicomHeader,
    place: tuple[int, int],
    frames: Sequence[Frame],
    path: Path,
    decoder: Decoder,
) -> Iterator[np.ndarray]:
    if len({(frame.slope, frame.intercept) for frame in frames}) > 1:
        raise InputError("compressed frames, each with a rescaling of its own, are not supported")
    if header.text("PhotometricInterpretation") == "MONOCHROME1":  # GDCM would invert them
        raise InputError("compressed pixels of MONOCHROME1 are not supported")
    _check_fragments(file, *place)
    count, (rows, columns) = int(header.number("NumberOfFrames", 1)), frames[0].shape
    try:
        volume = decoder.decode(path, count, rows * columns)
    except DecodeError as error:
        raise InputError(f"GDCM cannot decode its pixels ({header.text('TransferSyntaxUID')}): {error}") from None
    if volume.shape != (count, rows, columns):
        raise InputError(f"decoded, its pixels have the shape {volume.shape}, not {(count, rows, columns)}")
    yield from (volume[frame.index] for frame in frames)


def _check_fragments(file: BinaryIO, at: int, size: int) -> None:
    """Compressed pixels come in pieces with a mark behind the last (PS3.5, A.4): without it the file is cut short."""
    if size != UNDEFINED:
        raise InputError("damaged DICOM: compressed pixels that do not come in pieces")
    file_bytes = os.fstat(file.fileno()).st_size
    while at + 8 <= file_bytes:
        file.seek(at)
        group, element, length = struct.unpack("<HHI", file.read(8))
        if group << 16 | element == SEQUENCE_END:
            return
        if group << 16 | element != ITEM:
            raise InputError("damaged DICOM: its compressed pixels are not in pieces")
        at += 8 + length
    raise InputError("truncated: its compressed pixels have no end")


def _padding_hu(header: DicomHeader, frame: Frame) -> int | None:
    """HU of pixels that were not scanned, where no tissue has them; else None."""
    padding = header.unsigned("PixelPaddingValue", -1)
    if padding < 0:
        return None
    if header.unsigned("PixelRepresentation", 0) and padding >= 2**15:
        padding -= 2**16
    hu = round(padding * frame.slope + frame.intercept)
    low, high = _SCANNED_HU
    return None if low <= hu <= high else max(-(2**15), min(2**15 - 1, hu))
