"""Against hand-worked logits and a flood fill written again, pixel by pixel."""

from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from app.postprocess import (
    labels_from_logits,
    remove_minor_pieces,
    remove_small_components,
    remove_small_regions,
    remove_traces,
)


def flood_filled(labels, min_region_px):
    """The filter again: breadth first through the eight neighbours in the slice."""
    out = labels.copy()
    seen = np.zeros(labels.shape, bool)
    height, width = labels.shape[1:]
    for start in np.ndindex(labels.shape):
        if labels[start] == 0 or seen[start]:
            continue
        seen[start] = True
        region, queue = [start], deque([start])
        while queue:
            z, y, x = queue.popleft()
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    near = (z, y + dy, x + dx)
                    inside = 0 <= near[1] < height and 0 <= near[2] < width
                    if inside and not seen[near] and labels[near] == labels[start]:
                        seen[near] = True
                        region.append(near)
                        queue.append(near)
        if len(region) < min_region_px:
            for place in region:
                out[place] = 0
    return out


def filtered(labels, *min_region_px):
    labels = labels.copy()
    assert remove_small_regions(labels, *min_region_px) is None  # in place
    return labels


@settings(deadline=None, max_examples=150)
@given(
    arrays.arrays(
        np.uint8,
        st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
        elements=st.sampled_from([0, 0, 1, 2, 13]),
    ),
    st.integers(1, 20),
)
def test_like_a_flood_fill(labels, min_region_px):
    assert np.array_equal(filtered(labels, min_region_px), flood_filled(labels, min_region_px))


def test_every_slice_of_a_long_scan_is_filtered():
    labels = np.zeros((100, 12, 12), np.uint8)
    labels[:, 1:8, 1:8] = 4  # 49 pixels: noise
    labels[::7, 8, 8] = 4  # touches its corner: the 50th
    expected = np.where(np.arange(100)[:, None, None] % 7 == 0, labels, 0)
    assert np.array_equal(filtered(labels), expected)


def flooded_blocks(labels, min_share):
    """The filter of minor pieces again: breadth first through blocks of 2 x 2 pixels of the organ's box."""
    out = labels.copy()
    for label in set(labels[labels > 0].tolist()):
        places = np.argwhere(labels == label)
        origin = places.min(axis=0)
        left = {(z, y // 2, x // 2) for z, y, x in (places - origin).tolist()}
        pieces = []
        while left:
            piece, queue = set(), [left.pop()]
            while queue:
                block = queue.pop()
                piece.add(block)
                near = {tuple(np.add(block, np.subtract(step, 1)).tolist()) for step in np.ndindex(3, 3, 3)} & left
                left -= near
                queue += near
            pieces.append(piece)
        largest = max(len(piece) for piece in pieces)
        gone = set().union(*(piece for piece in pieces if len(piece) < min_share * largest))
        for place in places:
            z, y, x = (place - origin).tolist()
            if (z, y // 2, x // 2) in gone:
                out[tuple(place)] = 0
    return out


@settings(deadline=None, max_examples=150)
@given(
    arrays.arrays(
        np.uint8,
        st.tuples(st.integers(1, 5), st.integers(1, 13), st.integers(1, 13)),
        elements=st.sampled_from([0] * 12 + [1, 2, 13]),
    ),
    st.sampled_from([0.1, 0.4, 0.9, 1.0]),
)
def test_minor_pieces_like_a_flood_fill(labels, min_share):
    filtered = labels.copy()
    remove_minor_pieces(filtered, min_share)
    assert np.array_equal(filtered, flooded_blocks(labels, min_share))


@pytest.mark.parametrize(("slices", "stays"), [(1, False), (2, True)])
def test_a_piece_below_a_tenth_of_the_organ_goes(slices, stays):
    labels = np.zeros((30, 40, 40), np.uint8)
    labels[5:25, 4:14, 4:14] = 1  # 20 slices
    labels[:slices, 24:34, 24:34] = 1  # elsewhere, as large in each
    labels[29, 4:14, 24:34] = 3  # the only piece of another organ
    expected = labels.copy()
    if not stays:
        expected[:slices, 24:34, 24:34] = 0
    remove_small_components(labels)
    assert np.array_equal(labels, expected)


def test_both_filters_one_after_the_other():
    labels = np.zeros((20, 40, 40), np.uint8)
    labels[:, 4:20, 4:20] = 6
    labels[::2, 30:37, 30:37] = 6  # ten regions of 49 pixels: each too small, though 490 is not
    labels[3, 30:40, 25:35] = 6  # large enough in its slice, alone in the volume
    expected = np.zeros_like(labels)
    expected[:, 4:20, 4:20] = 6
    remove_small_components(labels)
    assert np.array_equal(labels, expected)


@pytest.mark.parametrize(
    ("voxels", "voxel_ml", "stay"),
    [
        (0, 1.0, False),
        (49, 1.0, False),
        (50, 1.0, True),
        (99, 0.5, False),
        (100, 0.5, True),
        (159, 0.001, False),  # a small cut-out: of its 16,000 voxels a hundredth will do
        (160, 0.001, True),
    ],
)
def test_less_than_any_abdomen_holds_goes(voxels, voxel_ml, stay):
    labels = np.zeros((20, 20, 40), np.uint8)
    labels.ravel()[:voxels] = 1 + np.arange(voxels) % 13  # of all organs together
    before = labels.copy()
    remove_traces(labels, voxel_ml)
    assert np.array_equal(labels, before if stay else 0 * before)


def logits_of(**values):
    """One pixel: the given logits (`b` for background, `c1` .. `c13`), -9 for the others."""
    logits = torch.full((1, 14, 1, 1), -9.0)
    for name, value in values.items():
        logits[0, 0 if name == "b" else int(name[1:])] = value
    return logits


@pytest.mark.parametrize(
    ("logits", "label"),
    [
        ({"b": 1.0, "c1": 0.5}, 1),  # 0.5 + 0.6 > 1.0
        ({"b": 1.0, "c13": 0.41}, 13),
        ({"b": 1.0, "c13": 0.39}, 0),  # 0.99 < 1.0
        ({"b": 1.0, "c4": 0.3, "c5": 0.2}, 0),
        ({"b": 1.0, "c4": 0.8, "c5": 0.9}, 5),  # the bias is the same for both
        ({"b": -0.1, "c2": -0.6}, 2),  # added, not multiplied
        ({"b": -0.1, "c2": -0.8}, 0),
    ],
)
def test_bias_of_the_foreground(logits, label):
    decided = labels_from_logits(logits_of(**logits))
    assert decided.dtype == torch.uint8
    assert decided.shape == (1, 4, 4)
    assert (decided == label).all()


@pytest.mark.parametrize("smoothness_px", [0, 1, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_deciding_against_torchs_upsampling_of_everything(smoothness_px, layout):
    """Bias, softmax and argmax at every pixel of the logits that torch has upsampled."""
    noise = np.random.default_rng(0).normal(size=(2, 14, 11, 8))
    logits = torch.from_numpy(ndimage.gaussian_filter(noise, (0, 0, smoothness_px, smoothness_px)) * 10).float()
    logits = logits.contiguous(memory_format=layout)
    upsampled = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    bias = torch.tensor([0.0] + [0.6] * 13).view(1, 14, 1, 1)
    expected = torch.softmax(upsampled + bias, dim=1).argmax(dim=1)
    assert len(expected.unique()) > 5
    assert torch.equal(labels_from_logits(logits).long(), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(labels_from_logits(logits).long(), expected)


def test_equal_logits_are_decided_one_way():
    assert not labels_from_logits(torch.cat([torch.full((1, 1, 3, 3), 0.6), torch.zeros(1, 13, 3, 3)], dim=1)).any()
