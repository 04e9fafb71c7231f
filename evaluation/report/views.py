"""Pictures of one case: slices of the CT as radiologists look at them, with what was segmented drawn on them.

Volumes come as app.volume gives them, (z, y, x) with x to the patient's right, y forward, z up; pictures
show the patient's right (or front) on the left, and the head (or front) on top.
"""

import base64
import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from app.labels import COLOURS, ORGANS
from app.preview import DISPLAY_WINDOW_HU, fill_organs, richest_slice

PLANES = ("axial", "coronal", "sagittal")  # across array axis 0, 1, 2
TILE_PX = 200
OVERVIEW_PX = (330, 440)  # rows, columns: all of one shape, so that they stand in line
SMALLEST_VIEW_MM = 90  # an adrenal gland is 30 mm long: it needs its surroundings to be judged
MARGIN_MM = 20
OVERVIEW_MARGIN_MM = 40
SCALE_BAR_MM = 20
GAP_PX = 3
FILL = 0.4  # opacity of areas
# Told apart by the colour-blind (Okabe and Ito).
CORRECT, FALSE_POSITIVE, FALSE_NEGATIVE = (0, 158, 115), (213, 94, 0), (86, 180, 233)
ERROR_COLOURS = {"correct": CORRECT, "wrongly an organ": FALSE_POSITIVE, "organ missed": FALSE_NEGATIVE}


class Scan(NamedTuple):
    """One case in memory.

    Attributes:
        hu: int16 (z, y, x).
        prediction: uint8, as `hu`.
        truth: As `prediction`, or None.
        spacing_mm: (z, y, x).
    """

    hu: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray | None
    spacing_mm: tuple[float, float, float]


class Picture(NamedTuple):
    """An encoded picture and what to say to those who do not see it.

    Attributes:
        uri: data: URI.
        size: (width, height) in pixels.
        alt: Alternative text.
    """

    uri: str
    size: tuple[int, int]
    alt: str


@dataclass(frozen=True)
class _View:
    """A rectangle of one slice, and the square pixels that show it.

    Attributes:
        axis, index: The slice.
        spacing_mm: Of the slice as displayed, (rows, columns).
        top_mm, left_mm: Corner, from the displayed slice's corner.
        mm_per_px: Scale.
        shape: (rows, columns) in pixels.
    """

    axis: int
    index: int
    spacing_mm: np.ndarray
    top_mm: float
    left_mm: float
    mm_per_px: float
    shape: tuple[int, int]

    def labels(self, volume: np.ndarray) -> np.ndarray:
        """Of each pixel, from the nearest voxel; background outside the scan."""
        return self._sample(displayed(volume, self.axis, self.index), 0, 0)

    def inside(self, volume: np.ndarray, label: int) -> np.ndarray:
        """Where an organ is, its border interpolated: thick slices would show as stairs."""
        plane = (displayed(volume, self.axis, self.index) == label).astype(np.float32)
        inside = self._sample(plane, 1, 0) >= 0.5
        return inside if inside.any() else self._sample(plane, 0, 0) > 0  # a thin organ must not vanish

    def grey(self, hu: np.ndarray) -> np.ndarray:
        """(rows, columns, 3) float32, 0..255, soft-tissue window."""
        low, high = DISPLAY_WINDOW_HU
        plane = displayed(hu, self.axis, self.index).astype(np.float32)
        grey = (np.clip(self._sample(plane, 1, low), low, high) - low) * (255 / (high - low))
        return np.repeat(grey[..., None], 3, axis=2)

    def _sample(self, plane: np.ndarray, order: int, outside: float) -> np.ndarray:
        corner_mm = np.array([self.top_mm, self.left_mm])
        offset = (corner_mm + self.mm_per_px / 2) / self.spacing_mm - 0.5  # from pixel to voxel centres
        step = self.mm_per_px / self.spacing_mm
        return ndimage.affine_transform(
            plane, step, offset, self.shape, order=order, mode="grid-constant", cval=outside
        )


def displayed(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice as it is shown: all axes run against the screen's."""
    return np.take(volume, index, axis)[::-1, ::-1]


def organ_strip(name: str, scan: Scan, label: int, ml: float) -> Picture | None:
    """Three orthogonal slices, each through the organ's largest area in that direction, side by side.

    The organ of the prediction is drawn with a thick contour, its neighbours with thin ones; with a truth, what
    is wrong in this organ is filled: FALSE_POSITIVE or FALSE_NEGATIVE. An organ that was not found is shown
    where the truth has it; None if that has none either.
    """
    organ = scan.prediction == label
    where = "its largest area"
    if not organ.any():
        if scan.truth is None or not (organ := scan.truth == label).any():
            return None
        where = "the largest area of the true one, which was not found"
    tiles = []
    for axis in range(3):
        view = _organ_view(organ, axis, scan.spacing_mm)
        rgb = view.grey(scan.hu)
        if scan.truth is not None:
            _fill_errors(rgb, view.labels(scan.prediction) == label, view.labels(scan.truth) == label)
        for other in np.unique(view.labels(scan.prediction)):
            if other not in (0, label):
                _contour(rgb, view.inside(scan.prediction, other), other, 1)
        _contour(rgb, view.inside(scan.prediction, label), label, 2)
        tiles.append(_annotated(rgb, view, "A" if axis == 2 else "R"))
    gap = np.full((TILE_PX, GAP_PX, 3), 255, np.uint8)
    strip = np.concatenate([tiles[0], gap, tiles[1], gap, tiles[2]], axis=1)
    name_of_organ = ORGANS[label - 1].name
    alt = f"{name}, {name_of_organ}, {ml:.1f} ml: axial, coronal and sagittal CT slice through {where}, contours drawn"
    return _encode(strip, alt + (", wrong areas filled" if scan.truth is not None else ""))


def overviews(name: str, scan: Scan) -> dict[str, Picture]:
    """The whole abdomen with all organs filled: "axial" and "coronal" of the prediction.

    With a truth also "truth" and "errors" of the axial slice, and all three of the slice with the most
    wrong pixels: "worst prediction", "worst truth" and "worst errors".
    """
    every = scan.prediction if scan.truth is None else np.where(scan.prediction > 0, scan.prediction, scan.truth)
    axial = _whole_view(every, 0, richest_slice(every, 0), scan.spacing_mm)
    coronal = _whole_view(every, 1, richest_slice(every, 1), scan.spacing_mm)

    def picture(view: _View, labels: np.ndarray, words: str) -> Picture:
        rgb = fill_organs(view.grey(scan.hu), view.labels(labels), FILL)
        return _encode(_annotated(rgb, view, "R"), f"{name}, {PLANES[view.axis]} slice {view.index}: {words}")

    pictures = {
        "axial": picture(axial, scan.prediction, "segmented organs over the CT"),
        "coronal": picture(coronal, scan.prediction, "segmented organs over the CT"),
    }
    if scan.truth is not None:
        wrong = [np.count_nonzero(p != t) for p, t in zip(scan.prediction, scan.truth, strict=True)]
        worst = _whole_view(every, 0, int(np.argmax(wrong)), scan.spacing_mm) if any(wrong) else axial
        pictures["truth"] = picture(axial, scan.truth, "true organs over the CT")
        pictures["errors"] = _errors(name, scan, scan.truth, axial)
        pictures["worst prediction"] = picture(worst, scan.prediction, "segmented organs over the CT")
        pictures["worst truth"] = picture(worst, scan.truth, "true organs over the CT")
        pictures["worst errors"] = _errors(name, scan, scan.truth, worst)
    return pictures


def _errors(name: str, scan: Scan, true: np.ndarray, view: _View) -> Picture:
    rgb = view.grey(scan.hu)
    prediction, truth = view.labels(scan.prediction), view.labels(true)
    areas = {
        CORRECT: (prediction == truth) & (truth > 0),
        FALSE_POSITIVE: (prediction != truth) & (prediction > 0),
        FALSE_NEGATIVE: (prediction != truth) & (prediction == 0),
    }
    for colour, area in areas.items():
        rgb[area] += 0.6 * (np.array(colour) - rgb[area])
    shown = np.count_nonzero(truth > 0) + np.count_nonzero((truth == 0) & (prediction > 0))
    share = np.count_nonzero(areas[CORRECT]) / shown if shown else 1
    alt = f"{name}, axial slice {view.index}: correct and wrong pixels; {share:.0%} of the organs' pixels are correct"
    return _encode(_annotated(rgb, view, "R"), alt)


def _organ_view(organ: np.ndarray, axis: int, spacing_mm: tuple[float, float, float]) -> _View:
    """Square, around the organ's largest slice along an axis."""
    others = tuple(a for a in range(3) if a != axis)
    index = int(np.argmax(organ.sum(axis=others)))
    spacing = np.delete(spacing_mm, axis)
    low_mm, high_mm = _box_mm(displayed(organ, axis, index), spacing)
    side_mm = max(SMALLEST_VIEW_MM, float((high_mm - low_mm).max()) + 2 * MARGIN_MM)
    top_mm, left_mm = (low_mm + high_mm - side_mm) / 2
    return _View(axis, index, spacing, top_mm, left_mm, side_mm / TILE_PX, (TILE_PX, TILE_PX))


def _whole_view(labels: np.ndarray, axis: int, index: int, spacing_mm: tuple[float, float, float]) -> _View:
    """All organs of the case as seen along an axis, and a margin."""
    spacing = np.delete(spacing_mm, axis)
    projection = labels.max(axis=axis)[::-1, ::-1]
    if projection.any():
        low_mm, high_mm = _box_mm(projection, spacing)
        size_mm = high_mm - low_mm + 2 * OVERVIEW_MARGIN_MM
    else:
        low_mm, high_mm = np.zeros(2), np.array(projection.shape) * spacing
        size_mm = high_mm
    mm_per_px = float((size_mm / OVERVIEW_PX).max())
    top_mm, left_mm = (low_mm + high_mm - mm_per_px * np.array(OVERVIEW_PX)) / 2
    return _View(axis, index, spacing, top_mm, left_mm, mm_per_px, OVERVIEW_PX)


def _box_mm(plane: np.ndarray, spacing_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the box around what is not zero."""
    spans = [np.flatnonzero(plane.any(axis=axis)) for axis in (1, 0)]
    return np.array([s[0] for s in spans]) * spacing_mm, np.array([s[-1] + 1 for s in spans]) * spacing_mm


def _contour(rgb: np.ndarray, inside: np.ndarray, label: int, width_px: int) -> None:
    core = ndimage.binary_erosion(inside, iterations=width_px, border_value=1)
    rgb[inside & ~core] = COLOURS[label]


def _fill_errors(rgb: np.ndarray, found: np.ndarray, true: np.ndarray) -> None:
    for area, colour in ((found & ~true, FALSE_POSITIVE), (true & ~found, FALSE_NEGATIVE)):
        rgb[area] += FILL * (np.array(colour) - rgb[area])


def _annotated(rgb: np.ndarray, view: _View, left_side: str) -> np.ndarray:
    """Rounded to uint8, with the letter of the side on the left and a scale bar."""
    image = Image.fromarray(np.rint(np.clip(rgb, 0, 255)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    height = view.shape[0]
    draw.text((5, height // 2 - 7), left_side, fill=(255, 255, 255), font=ImageFont.load_default(13))
    bar_px = round(SCALE_BAR_MM / view.mm_per_px)
    draw.line([(6, height - 7), (6 + bar_px, height - 7)], fill=(255, 255, 255), width=2)
    return np.asarray(image)


def _encode(rgb: np.ndarray, alt: str) -> Picture:
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "WEBP", quality=82, method=4)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return Picture(f"data:image/webp;base64,{data}", (rgb.shape[1], rgb.shape[0]), alt)
