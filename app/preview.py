"""One picture a case: the mask over the CT, so that a swapped kidney or an upside-down patient shows at once."""

import struct
import zlib
from pathlib import Path

import numpy as np
from scipy import ndimage

from app.labels import COLOURS, NUM_CLASSES

DISPLAY_WINDOW_HU = (-160, 240)
HEIGHT_PX = 512
FILL = 0.35  # opacity of an organ's inside; its outline is opaque


def write_preview(path: Path, hu: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> None:
    """Write a PNG: axial and coronal slice side by side, as radiologists look at them (patient's right on the left).

    Each goes through the most organs, and of those slices through the most organ voxels; one scale for both.

    Args:
        path: Of the file.
        hu: int16 (z, y, x), x to the patient's right, y forward, z up.
        labels: uint8, as `hu`.
        spacing_mm: (z, y, x).

    Raises:
        OSError: It cannot be written.
    """
    z, y = richest_slice(labels, 0), richest_slice(labels, 1)
    px_per_mm = HEIGHT_PX / (max(hu.shape[1] * spacing_mm[1], hu.shape[0] * spacing_mm[0]))
    axial = _overlay(hu[z, ::-1, ::-1], labels[z, ::-1, ::-1], spacing_mm[1:], px_per_mm)
    coronal = _overlay(hu[::-1, y, ::-1], labels[::-1, y, ::-1], spacing_mm[::2], px_per_mm)
    picture = np.concatenate([axial, coronal], axis=1)
    try:
        path.write_bytes(_png(picture))
    except OSError:
        path.unlink(missing_ok=True)  # half a picture, on a full disk
        raise


def richest_slice(labels: np.ndarray, axis: int) -> int:
    """Index along an axis of the slice with the most organs, then the most organ voxels; the middle if none."""
    slices = np.moveaxis(labels, axis, 0)
    counts = np.stack([np.bincount(part.ravel(), minlength=NUM_CLASSES)[1:] for part in slices])
    if not counts.any():
        return len(slices) // 2
    return int(np.lexsort((counts.sum(axis=1), (counts > 0).sum(axis=1)))[-1])


def _overlay(hu: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float], px_per_mm: float) -> np.ndarray:
    """RGB (HEIGHT_PX, width, 3) uint8 of one slice with square pixels, centred between black bands."""
    low, high = DISPLAY_WINDOW_HU
    height, width = (max(1, round(n * mm * px_per_mm)) for n, mm in zip(hu.shape, spacing_mm, strict=True))
    grey = np.clip((_resized(hu.astype(np.float32), (height, width), order=1) - low) / (high - low), 0, 1) * 255
    organs = _resized(labels, (height, width), order=0)
    rgb = np.rint(fill_organs(grey[..., None], organs, FILL)).astype(np.uint8)
    above = (HEIGHT_PX - height) // 2
    return np.pad(rgb, ((above, HEIGHT_PX - height - above), (0, 0), (0, 0)))


def fill_organs(grey: np.ndarray, labels: np.ndarray, opacity: float) -> np.ndarray:
    """A slice with its organs in their colours: outlines opaque, insides of an opacity from 0 to 1.

    Args:
        grey: Floats 0..255, (rows, columns, 1 or 3).
        labels: uint8 (rows, columns).
        opacity: Of the insides.

    Returns:
        Floats 0..255, (rows, columns, 3).
    """
    inside = labels > 0
    outline = inside & ((ndimage.maximum_filter(labels, 3) != labels) | (ndimage.minimum_filter(labels, 3) != labels))
    alpha = np.where(outline, 1.0, np.where(inside, opacity, 0.0))[..., None]
    return grey * (1 - alpha) + np.array(COLOURS)[labels] * alpha


def _png(rgb: np.ndarray) -> bytes:
    """A PNG file of a picture, uint8 (height, width, 3). SimpleITK's writer ends the program at names not in UTF-8."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = rgb.shape
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    rows = np.pad(rgb.reshape(height, -1), ((0, 0), (1, 0)))  # before each row 0: no filter
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows.tobytes())), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _resized(image: np.ndarray, size: tuple[int, int], order: int) -> np.ndarray:
    zoom = [new / old for new, old in zip(size, image.shape, strict=True)]
    return ndimage.zoom(image, zoom, order=order, mode="nearest", grid_mode=True)
