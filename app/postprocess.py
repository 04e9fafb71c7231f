"""Foreground bias and small-region filter (paper section 2.3), and filters of pieces and traces that no organ is in."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from app.labels import NUM_CLASSES

FOREGROUND_BIAS = 0.6  # added to every logit but the background's
MIN_REGION_PX = 50  # a smaller region is noise; counted on the network's grid
# Organs that are less, all together, are no abdomen's. Open CT has at least 600 ml in parts of abdomens, labelled or
# segmented, and at most 26 ml in heads and thighs. The share is for small cut-outs, of one organ say.
TRACES_ML, TRACES_SHARE = 50.0, 0.01
MIN_PIECE_SHARE = 0.1  # of an organ's largest piece; 0.03 to 0.15 gave one DSC on held-out patients

# 8-connected inside a slice, no connection between slices
_IN_SLICE = np.zeros((3, 3, 3), bool)
_IN_SLICE[1] = True
# Weights of a cell's four corners (columns) in its 4 x 4 pixels (rows), which lie at 1/8, 3/8, 5/8 and 7/8 of its side.
_FAR = torch.arange(1, 8, 2) / 8
_NEAR_FAR = torch.stack([1 - _FAR, _FAR])
_WEIGHTS = torch.einsum("ay,bx->yxab", _NEAR_FAR, _NEAR_FAR).reshape(16, 4)
_SLICES_AT_ONCE = 16  # region numbers take 4 bytes a voxel, too much for a whole scan


def labels_from_logits(logits: torch.Tensor) -> torch.Tensor:
    """Labels from logits at a quarter of the slice's size: the bias, 4x bilinear upsampling, argmax.

    Softmax changes nothing and is left out. Interpolated logits are a weighted mean of four neighbours, so where
    these agree on the largest it is the largest between them too: only cells between neighbours that do not agree,
    a few in a hundred, are interpolated at all.

    Args:
        logits: (N, 14, h, w) floating point.

    Returns:
        uint8 (N, 4 h, 4 w).
    """
    logits = F.pad(logits.float(), (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1)  # (N, h + 2, w + 2, 14)
    logits[..., 1:] += FOREGROUND_BIAS  # before the upsampling, whose weights sum to 1: it changes nothing there
    largest = logits.argmax(dim=3).to(torch.uint8)
    # Neighbour k of a cell lies at its corner (y, x); the cell's 16 pixels lie between.
    corners = [(slice(y, y - 1 or None), slice(x, x - 1 or None)) for y in (0, 1) for x in (0, 1)]
    first, second, third, fourth = (largest[:, y, x] for y, x in corners)  # (N, h + 1, w + 1)
    cells = first[:, :, None, :, None].repeat(1, 1, 4, 1, 4)  # (N, h + 1, 4, w + 1, 4)
    n, i, j = torch.where((first != second) | (first != third) | (first != fourth))
    neighbours = torch.stack([logits[:, y, x][n, i, j] for y, x in corners], dim=1)  # (mixed cells, 4, 14)
    with torch.autocast(logits.device.type, enabled=False):  # training validates under autocast, which rounds
        pixels = (_WEIGHTS.to(logits.device) @ neighbours).argmax(dim=2).to(torch.uint8)  # (mixed cells, 16)
    cells[n, i, :, j, :] = pixels.view(-1, 4, 4)
    return cells.flatten(3, 4).flatten(1, 2)[:, 2:-2, 2:-2]


def remove_small_components(labels: np.ndarray, min_region_px: int = MIN_REGION_PX) -> None:
    """Apply both filters in place: to small regions in each slice, then to minor pieces in the volume."""
    remove_small_regions(labels, min_region_px)
    remove_minor_pieces(labels)


def remove_small_regions(labels: np.ndarray, min_region_px: int = MIN_REGION_PX) -> None:
    """Turn 8-connected regions of one label and fewer than `min_region_px` pixels in a slice to background.

    Args:
        labels: uint8 (z, y, x), 0..13, changed in place.
        min_region_px: Smallest region that stays.
    """
    for start in range(0, len(labels), _SLICES_AT_ONCE):
        part = labels[start : start + _SLICES_AT_ONCE]
        for label, box in enumerate(ndimage.find_objects(part, NUM_CLASSES - 1), start=1):
            if box is None:
                continue
            inside = part[box]
            regions, _ = ndimage.label(inside == label, structure=_IN_SLICE)
            too_small = np.bincount(regions.ravel()) < min_region_px
            too_small[0] = False  # region 0 is all that has another label
            inside[too_small[regions]] = 0


def remove_minor_pieces(labels: np.ndarray, min_share: float = MIN_PIECE_SHARE) -> None:
    """Turn pieces of an organ that lie apart from it, far smaller than its largest, to background.

    Not in the paper, whose network sees slices one by one, and now and then an organ where another slice shows that
    there is none. Pieces are 26-connected blocks of 2 x 2 pixels that hold the organ: a quarter of the time and
    memory, at most 2 bytes a voxel, and a gap of a pixel parts nothing.

    Args:
        labels: uint8 (z, y, x), 0..13, changed in place.
        min_share: Least size that stays, of the organ's largest piece, both counted in blocks.
    """
    for label, box in enumerate(ndimage.find_objects(labels, NUM_CLASSES - 1), start=1):
        if box is None:
            continue
        inside = labels[box]
        height, width = inside.shape[1:]
        blocks = np.empty((len(inside), -(-height // 2), -(-width // 2)), bool)
        for plane, plane_blocks in zip(inside, blocks, strict=True):
            organ = np.pad(plane == label, ((0, height % 2), (0, width % 2)))
            rows = organ[::2] | organ[1::2]
            np.logical_or(rows[:, ::2], rows[:, 1::2], out=plane_blocks)
        pieces, _ = ndimage.label(blocks, structure=np.ones((3, 3, 3)))
        sizes = np.bincount(pieces[blocks])  # pieces are numbered from 1
        minor = (sizes < min_share * sizes.max()) & (sizes > 0)
        if minor.any():
            for plane, plane_pieces in zip(inside, pieces, strict=True):
                apart = minor[plane_pieces].repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
                plane[apart & (plane == label)] = 0


def remove_traces(labels: np.ndarray, voxel_ml: float) -> None:
    """Turn all to background where the organs together are less than `TRACES_ML` and `TRACES_SHARE` of the scan.

    Not in the paper, whose scans are all of abdomens: in a head or a leg the network finds a speck now and then.

    Args:
        labels: uint8 (z, y, x), 0..13, changed in place.
        voxel_ml: Volume of a voxel.
    """
    found = np.count_nonzero(labels)
    if found * voxel_ml < TRACES_ML and found < TRACES_SHARE * labels.size:
        labels[...] = 0
